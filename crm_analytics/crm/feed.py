"""An example of a consumer of the change feed: it applies every change once, whenever it is killed.

What it keeps is one row in the target database: the position of the last change that it applied, and that change's
hash. The row and the effects of the changes are written in one transaction, so that neither is there without the
other. Copy it, or use it as it is: a test kills it fifty times (docs/crm.md, Change feed).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

import psycopg
from psycopg.rows import class_row

Connection = psycopg.Connection[Any]

#: Where a target database keeps its consumers' places.
PLACES = """
    CREATE TABLE IF NOT EXISTS crm_feed_places (
        consumer text PRIMARY KEY,
        position bigint NOT NULL,
        payload_hash text NOT NULL
    )
    """


@dataclass(frozen=True)
class Change:
    """One change of a row of the CRM; `payload` has the row after the change (`row`), and what the action adds."""

    position: int
    audit_id: int
    actor_id: UUID | None
    action: str
    entity: str
    entity_id: UUID | None
    payload: dict[str, Any]
    created_at: datetime
    payload_hash: str


class FeedRewoundError(Exception):
    """The source no longer has the change that was applied last: it was restored from before it.

    Positions are given again after such a restore, to other changes. Compare the target with the source, then set the
    consumer's place to where they agree.
    """


def changes_after(source: Connection, position: int, limit: int) -> list[Change]:
    """Returns the next changes, in order; works on a replica, too."""
    with source.cursor(row_factory=class_row(Change)) as cursor:
        return cursor.execute("SELECT * FROM public.changes_after(%s, %s)", [position, limit]).fetchall()


def consume(
    source: Connection,
    target: Connection,
    consumer: str,
    apply: Callable[[Connection, Change], None],
    limit: int = 500,
) -> int:
    """Applies the next changes to the target, in one transaction of it; call it about once a second.

    Args:
        source: a connection to the CRM, whose login is a member of crm_app.
        target: a connection that is in no transaction, to a database with the table `PLACES`.
        consumer: the name under which the target keeps the place; two processes with one name take turns.
        apply: writes the effect of a change with the connection that it gets, and commits nothing.
        limit: how many changes at most.

    Returns:
        How many changes were applied; 0 if there is none to apply yet.

    Raises:
        FeedRewoundError: if the source was restored from before the last change that was applied.
    """
    with target.transaction():
        target.execute("INSERT INTO crm_feed_places VALUES (%s, 0, '') ON CONFLICT DO NOTHING", [consumer])
        place = target.execute(
            "SELECT position, payload_hash FROM crm_feed_places WHERE consumer = %s FOR UPDATE", [consumer]
        ).fetchone()
        assert place is not None
        last, last_hash = place
        # the last change once more, to see that the source still has it
        changes = changes_after(source, max(last - 1, 0), limit + (last > 0))
        if last > 0:
            if not changes or (changes[0].position, changes[0].payload_hash) != (last, last_hash):
                raise FeedRewoundError(f"the source no longer has change {last} as {consumer} applied it")
            del changes[0]
        for change in changes:
            apply(target, change)
        if changes:
            target.execute(
                "UPDATE crm_feed_places SET position = %s, payload_hash = %s WHERE consumer = %s",
                [changes[-1].position, changes[-1].payload_hash, consumer],
            )
    return len(changes)
