"""Reads the rows that a number of the metrics is made of, together with the number as it is stored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from decimal import Decimal
from typing import Any, NamedTuple

import psycopg

from crm_analytics.analytics.warehouse.refresh import MEASURES, Stale, stale
from crm_analytics.core.months import next_month

#: The measures whose sums a ratio divides: numerator, denominator.
RATIOS = {
    "conv_l_to_u": ("units", "leads"),
    "conv_l_to_r": ("repairs", "leads"),
    "conv_u_to_r": ("repairs", "units"),
    "cpl": ("cost", "leads"),
}
#: The stored measures that the other metrics are made of.
MADE_OF = {"revenue40": ("revenue_gross",), "profit": ("revenue_gross", "cost"), **RATIOS}
#: Every metric that `analytics.explain_between` explains.
METRICS = (*MEASURES, *MADE_OF)


class Contribution(NamedTuple):
    """One row of `analytics.explain_between`: part of a number, and why it counts."""

    part: str
    kind: str
    id: str
    day: date
    source: str
    segment: str
    amount: Decimal
    rule: str
    file: str | None
    record_no: int | None


class Revised(NamedTuple):
    """A change of a number after its month had ended."""

    at: datetime
    measure: str
    change: Decimal
    causes: str


@dataclass(frozen=True)
class Explanation:
    """A number's rows, and what the metrics have stored for it, as one snapshot shows them.

    Attributes:
        rows: the contributions, the numerator's before the denominator's, then by day.
        stored: what is stored, by part: `whole`, or `numerator` and `denominator`.
        stale: why the two may differ; None if the month is up to date.
        revisions: how the month's number was revised, the newest first.
    """

    rows: Sequence[Contribution]
    stored: Mapping[str, Decimal]
    stale: Stale | None
    revisions: Sequence[Revised]

    @property
    def explained(self) -> dict[str, Decimal]:
        """What the rows add up to, by part."""
        totals = dict.fromkeys(self.stored, Decimal(0))
        for row in self.rows:
            totals[row.part] += row.amount
        return totals

    @property
    def is_equal(self) -> bool:
        """Whether the rows add up to what is stored, to the cent and beyond."""
        return self.explained == self.stored


def explain(
    connection: psycopg.Connection[Any],
    month: date,
    metric: str,
    source: str | None = None,
    segment: str | None = None,
    day: int | None = None,
) -> Explanation:
    """Returns the rows behind one number, the number itself and its revisions, all from one snapshot.

    Args:
        connection: to the analytics database, not inside a transaction.
        month: first day of the month.
        metric: one of `METRICS`.
        source: name of a source as the metrics show it; None for all of them.
        segment: COD, INS or OTHER; None for all of them.
        day: a day of the month; None for all of it.
    """
    first = month if day is None else month + timedelta(day - 1)
    end = next_month(month) if day is None else first + timedelta(1)
    asked = {
        "first": first,
        "end": end,
        "month": month,
        "metric": metric,
        "source": source,
        "segment": segment,
    }
    with connection.transaction():
        connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        # not prepared, so that the plan is for this metric and these days
        rows = connection.execute(
            """
            SELECT part, kind, id, day, source, segment, amount, rule, file, record_no
            FROM analytics.explain_between(%(first)s::date, %(end)s::date, %(metric)s, %(source)s, %(segment)s)
            ORDER BY part DESC, day, source, segment, kind, id
            """,
            asked,
            prepare=False,
        )
        contributions = [Contribution._make(row) for row in rows]
        stored = _stored(connection, "monthly_metrics" if day is None else "daily_metrics", asked)
        behind = stale(connection, month)
        revisions = _revisions(connection, asked)
    return Explanation(contributions, stored, behind[0] if behind else None, revisions)


def _revisions(connection: psycopg.Connection[Any], asked: Mapping[str, Any]) -> list[Revised]:
    """Returns the revisions that changed the month's number, also if only a day of it is asked for."""
    found = connection.execute(
        """
        SELECT r.revised_at, c.measure, c.change, r.causes
        FROM reporting.revisions r
        JOIN (
            SELECT revision_id, measure, sum(new - old) AS change
            FROM analytics.revision_changes
            WHERE measure = ANY (%(measures)s) AND (%(source)s::text IS NULL OR source = %(source)s)
                AND (%(segment)s::text IS NULL OR segment = %(segment)s)
            GROUP BY revision_id, measure
        ) c USING (revision_id)
        WHERE r.month = %(month)s AND c.change <> 0
        ORDER BY r.revised_at DESC, r.revision_id DESC, c.measure
        """,
        {**asked, "measures": list(MADE_OF.get(asked["metric"], (asked["metric"],)))},
    )
    return [Revised._make(row) for row in found]


def _stored(connection: psycopg.Connection[Any], table: str, asked: Mapping[str, Any]) -> dict[str, Decimal]:
    """Returns the metric's parts as a table of metrics has them."""
    metric = asked["metric"]
    columns = dict(zip(("numerator", "denominator"), RATIOS[metric], strict=True)) if metric in RATIOS else {}
    parts = columns or {"whole": metric}
    key = "month" if table == "monthly_metrics" else "date"
    row = connection.execute(
        f"""
        SELECT {", ".join(f"coalesce(sum({column}), 0)::numeric" for column in parts.values())}
        FROM analytics.{table}
        WHERE {key} = %(first)s AND (%(source)s::text IS NULL OR source = %(source)s)
            AND (%(segment)s::text IS NULL OR segment = %(segment)s)
        """,
        asked,
    ).fetchone()
    assert row is not None
    return dict(zip(parts, row, strict=True))


def source_named(connection: psycopg.Connection[Any], given: str) -> str | None:
    """Returns the name under which the metrics show a source, given in any spelling; None if there is no such source.

    A name that is spelled exactly as the metrics show it is that one, even if it is another's alias.
    """
    row = connection.execute(
        """
        SELECT known.source
        FROM (
            SELECT folded, source, 1 AS precedence FROM analytics.spellings
            UNION ALL
            SELECT raw.fold(source), source, 2 FROM reporting.sources
        ) known
        WHERE known.folded = raw.fold(%(given)s)
        ORDER BY known.source = %(given)s DESC, known.precedence
        LIMIT 1
        """,
        {"given": given},
    ).fetchone()
    return None if row is None else str(row[0])


def source_names(connection: psycopg.Connection[Any]) -> list[str]:
    """Returns the names of all sources that have numbers, in order."""
    return [
        name
        for (name,) in connection.execute(
            "SELECT DISTINCT source FROM analytics.monthly_metrics ORDER BY source"
        )
    ]


def months_with_rows(connection: psycopg.Connection[Any]) -> list[date]:
    """Returns the months for which raw or metric tables have a row, in order."""
    return [month for (month,) in connection.execute("SELECT m FROM analytics.every_month() m ORDER BY m")]
