"""Records revisions: what a refresh changes in months that had ended when they were refreshed before, and why.

A refresh calls these functions in its own transaction, so that a revision is there exactly when its numbers are.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from typing import Any, NamedTuple

import psycopg


class Change(NamedTuple):
    """A measure of a row of monthly_metrics, before and after; 0 stands for no row."""

    month: date
    source: str
    segment: str
    measure: str
    old: Decimal | int
    new: Decimal | int


@dataclass(frozen=True)
class Revision:
    """A revision as reporting.revisions describes it."""

    month: date
    changes: str
    causes: str


def closed_months(connection: psycopg.Connection[Any], months: Sequence[date]) -> list[date]:
    """Returns those of the months whose changes are revisions.

    They had ended, in the business timezone, when they were last refreshed, and have had numbers: the first ones are
    history's beginning, whenever they come.
    """
    found = connection.execute(
        """
        SELECT m.month
        FROM unnest(%s::date[]) AS m (month)
        CROSS JOIN analytics.business b
        CROSS JOIN LATERAL (
            SELECT l.started_at
            FROM analytics.refresh_log l
            WHERE l.month = m.month
            ORDER BY l.finished_at DESC, l.refresh_id DESC
            LIMIT 1
        ) AS last
        WHERE (last.started_at AT TIME ZONE b.timezone)::date >= analytics.next_month(m.month)
            AND EXISTS (SELECT FROM analytics.refresh_log l WHERE l.month = m.month AND l.changed_rows > 0)
        """,
        [list(months)],
    )
    return [month for (month,) in found]


def record_revisions(
    connection: psycopg.Connection[Any],
    changes: Iterable[Change],
    refresh_ids: Mapping[date, int],
    answered: Sequence[int],
) -> None:
    """Writes one revision for each month of the changes, and moves its causes from the queue of stale months.

    Args:
        connection: inside the refresh's transaction.
        changes: what the refresh changes in closed months; without any, nothing is written.
        refresh_ids: the refresh's entries in analytics.refresh_log, by month.
        answered: the entries of the queue that the refresh answers.
    """
    by_month: dict[date, list[Change]] = {}
    for change in changes:
        by_month.setdefault(change.month, []).append(change)
    if not by_month:
        return
    revisions = dict(
        connection.execute(
            """
            INSERT INTO analytics.revisions (month, refresh_id)
            SELECT * FROM unnest(%s::date[], %s::bigint[]) RETURNING month, revision_id
            """,
            [list(by_month), [refresh_ids[month] for month in by_month]],
        ).fetchall()
    )
    with (
        connection.cursor() as cursor,
        cursor.copy(
            "COPY analytics.revision_changes (revision_id, source, segment, measure, old, new) FROM STDIN"
        ) as copy,
    ):
        for month, changed in by_month.items():
            for change in changed:
                copy.write_row((revisions[month], *change[1:]))
    connection.execute(
        """
        INSERT INTO analytics.revision_causes (
            revision_id, table_name, operation, file_id, changed_by, rows, noted_at
        )
        SELECT r.revision_id, s.table_name, s.operation, s.file_id, w.changed_by, sum(s.rows), min(s.noted_at)
        FROM unnest(%s::date[], %s::bigint[]) AS r (month, revision_id)
        JOIN analytics.stale_months s ON s.month = r.month
        CROSS JOIN LATERAL (SELECT CASE WHEN s.file_id IS NULL THEN s.changed_by END) AS w (changed_by)
        WHERE s.id = ANY (%s)
        GROUP BY r.revision_id, s.table_name, s.operation, s.file_id, w.changed_by
        """,
        [list(revisions), list(revisions.values()), list(answered)],
    )


def revisions_of(connection: psycopg.Connection[Any], run_id: str) -> list[Revision]:
    """Returns the revisions that a run made, the largest first: the one that changes the most dollars."""
    return [
        Revision(*row)
        for row in connection.execute(
            """
            SELECT month, changes, causes FROM reporting.revisions WHERE run_id = %s
            ORDER BY dollars DESC, changed_values DESC, month DESC
            """,
            [run_id],
        )
    ]
