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
    "is_unit", "is_repair", "repair_rule", "segment_of", "is_elocals_lead", "is_proref_lead", "is_workiz_lead", "source_name", "revenue40", "ratio",
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


def test_a_month_reads_its_own_rows_by_index(analytics: Connection) -> None:
    """Metrics of one month read its jobs by date and their payments by job, whatever the history; long ranges all rows.

    The condition that decides is constant: it must be gone from the plan, with the way that it rules out. An empty join
    in its place would cost every job of a long range a visit.
    """
    analytics.execute("SET enable_seqscan = off")

    def plan(start: str, end: str) -> str:
        rows = analytics.execute(
            "EXPLAIN (COSTS OFF) SELECT * FROM analytics.compute_daily_metrics(%s::date, %s::date)",
            [start, end],
            prepare=False,
        )
        return "\n".join(row[0] for row in rows)

    month, years = plan("2024-03-01", "2024-04-01"), plan("2020-01-01", "2024-01-01")
    assert "Index Cond: ((job_date >= '2024-03-01'::date) AND (job_date < '2024-04-01'::date))" in month
    for text, looked_up, added_up in ((month, 1, 0), (years, 0, 1)):
        assert text.count("Index Cond: (job_id = j.job_id)") == looked_up, text
        assert text.count("Index Cond: (job_id IS NOT NULL)") == added_up, text
        assert "Join Filter: false" not in text, text


def test_facts_name_the_rule_that_made_the_row(analytics: Connection) -> None:
    """repair_rule and lead_rule say why a job is a repair or a lead, and are NULL where it is none."""
    analytics.execute(
        """
        INSERT INTO raw.jobs (job_id, type, source, created_at, job_date)
        SELECT type || '/' || source || '/' || paid, type, source, '2024-03-05', '2024-03-05'
        FROM (VALUES
            ('COD Repair', 'Google', 0), ('COD Service', 'Rely', 100.01), ('COD Service', 'Rely', 100),
            ('Warranty', 'Rely', 200), ('INS Service', 'Angi', 0)
        ) AS jobs (type, source, paid)
        """
    )
    analytics.execute(
        "INSERT INTO raw.payments (payment_id, job_ref, job_id_ref, paid_date, amount)"
        " SELECT 'P' || job_id, job_id, job_id, job_date, split_part(job_id, '/', 3)::numeric FROM raw.jobs"
    )
    analytics.execute(
        "INSERT INTO raw.elocals_leads (lead_id, lead_at, lead_date, cost) VALUES ('E', now(), '2024-03-05', 5)"
    )
    analytics.execute(
        "INSERT INTO raw.proref_leads (lead_id, lead_at, lead_date) VALUES ('R', now(), '2024-03-05')"
    )
    jobs = analytics.execute(
        "SELECT job_id, is_repair, repair_rule, is_lead, lead_rule FROM job_facts ORDER BY 1"
    )
    assert jobs.fetchall() == [
        ("COD Repair/Google/0", True, "repair_type", True, "jobs"),
        ("COD Service/Rely/100", False, None, True, "units"),
        ("COD Service/Rely/100.01", True, "paid_service", True, "units"),
        ("INS Service/Angi/0", False, None, False, None),
        ("Warranty/Rely/200", False, None, False, None),
    ]
    leads = analytics.execute("SELECT lead_id, lead_rule FROM lead_facts WHERE origin <> 'jobs' ORDER BY 1")
    assert leads.fetchall() == [("E", "elocals_paid"), ("R", "proref_not_passed")]


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
