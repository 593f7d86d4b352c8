"""Numbers and seals the audit log, and compares the chain of seals with a head that was published elsewhere."""

from __future__ import annotations

from typing import Any

import psycopg


def seal(connection: psycopg.Connection[Any]) -> dict[str, Any]:
    """Numbers and seals the audit rows that no seal covers yet; needs the owner of the database.

    Returns:
        `id`, `hash` and `last_position` of the chain's head (None until the first seal), and `row_count`, the number
        of rows sealed now.

    Raises:
        psycopg.errors.LockNotAvailable: if another sealing did not finish in time; try again.
    """
    row = connection.execute("SELECT crm_private.seal_audit_safe()").fetchone()
    assert row is not None
    answer: dict[str, Any] = row[0]
    return answer


def number(connection: psycopg.Connection[Any]) -> tuple[int, int]:
    """Gives committed audit rows their positions; needs the owner of the database, in autocommit.

    Notifies the channel `crm_changes` of the last position if there are new ones, so that a consumer of the change
    feed need not wait for its next poll.

    Returns:
        How many rows were numbered, and the last position.
    """
    row = connection.execute("SELECT numbered, last_position FROM crm_private.number_changes()").fetchone()
    assert row is not None
    numbered, last_position = row
    if numbered:
        connection.execute("SELECT pg_notify('crm_changes', %s)", [str(last_position)])
    return numbered, last_position


def head_is_in_chain(connection: psycopg.Connection[Any], head: str) -> bool:
    """Tells whether a seal that was published outside this database is still one of its seals."""
    return connection.execute("SELECT FROM public.audit_seals WHERE hash = %s", [head]).fetchone() is not None
