"""The rule functions of 0003_facts.sql, and the helper that comments columns."""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Any

import psycopg
import pytest

Connection = psycopg.Connection[Any]

#: Scalar functions that facts and metrics call for every row.
RULES = (
    "is_unit", "is_repair", "segment_of", "is_elocals_lead", "is_proref_lead", "source_name", "revenue40", "ratio",
    "month_of", "in_force",
)  # fmt: skip


@pytest.mark.parametrize(
    "relation",
    [
        "compute_daily_metrics('2024-03-01', '2024-04-01')",
        "job_facts_between('2020-01-01', '2030-01-01')",
        "lead_facts",
        "daily_by_source",
    ],
)
def test_rule_functions_are_inlined(analytics: Connection, relation: str) -> None:
    """A plan contains no call of a rule function: a SET clause or a second statement would cost a call per row."""
    plan = analytics.execute(f"EXPLAIN (VERBOSE, COSTS OFF) SELECT * FROM analytics.{relation}".encode())
    text = "\n".join(row[0] for row in plan)
    assert "Function Scan on analytics" not in text
    assert re.findall(rf"\b(?:{'|'.join(RULES)})\(", text) == []


def test_a_rule_that_is_not_inlined_is_found(analytics: Connection) -> None:
    """A rule with a SET clause shows as a call in the plan, so a plan without calls means that all are inlined."""
    (names,) = analytics.execute(
        "SELECT array_agg(DISTINCT proname::text) FROM pg_proc WHERE pronamespace = 'analytics'::regnamespace"
    ).fetchone() or ([],)
    assert set(RULES) <= set(names)
    analytics.execute("ALTER FUNCTION analytics.segment_of(text) SET work_mem = '4MB'")
    plan = analytics.execute("EXPLAIN (VERBOSE, COSTS OFF) SELECT * FROM analytics.lead_facts").fetchall()
    assert "segment_of(" in "\n".join(row[0] for row in plan)


def test_generated_columns_follow_the_rules(analytics: Connection) -> None:
    """Revenue40, profit and the ratios of a stored row equal what the rule functions give; no division by zero."""
    row = analytics.execute(
        """
        INSERT INTO analytics.daily_metrics (date, source, segment, units, repairs, leads, cost, revenue_gross)
        VALUES ('2024-03-01', 'Google', 'COD', 4, 3, 0, 12.50, 101.01)
        RETURNING revenue40, profit, conv_l_to_u, conv_u_to_r, cpl
        """
    ).fetchone()
    assert row == (Decimal("40.4040"), Decimal("27.9040"), None, Decimal("0.75"), None)


def test_described_columns_get_their_comments(analytics: Connection) -> None:
    """Continuation lines are joined, and a column that only some of the relations have is no error."""
    analytics.execute("CREATE TEMP TABLE one (a int, b int); CREATE TEMP TABLE two (a int)")
    analytics.execute(
        """
        SELECT analytics.describe('{one, two}', $$
    a: The first: it's
        long.
    b: The second.
$$)
        """
    )
    comments = analytics.execute(
        """
        SELECT c.relname, a.attname, col_description(c.oid, a.attnum)
        FROM pg_class c
        JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0
        WHERE c.relname IN ('one', 'two')
        ORDER BY 1, 2
        """
    ).fetchall()
    assert comments == [
        ("one", "a", "The first: it's long."),
        ("one", "b", "The second."),
        ("two", "a", "The first: it's long."),
    ]


def test_describing_an_unknown_column_fails(analytics: Connection) -> None:
    """A misspelled column would otherwise stay without a comment."""
    with pytest.raises(psycopg.errors.UndefinedColumn, match='column "amonut"'):
        analytics.execute("SELECT analytics.describe('{raw.payments}', E'\\n    amonut: Dollars.\\n')")
