"""Seals the audit log, and compares the chain of seals with a head that was published elsewhere."""

from __future__ import annotations

from typing import Any

import psycopg


def seal(connection: psycopg.Connection[Any]) -> dict[str, Any]:
    """Seals the audit rows written since the last seal; needs the owner of the database.

    Returns:
        `id`, `hash` and `last_audit_id` of the chain's head (None until the first seal), and `row_count`, the number
        of rows sealed now.

    Raises:
        psycopg.errors.LockNotAvailable: if writers of the audit log did not finish in time; try again.
    """
    row = connection.execute("SELECT crm_private.seal_audit_safe()").fetchone()
    assert row is not None
    answer: dict[str, Any] = row[0]
    return answer


def head_is_in_chain(connection: psycopg.Connection[Any], head: str) -> bool:
    """Tells whether a seal that was published outside this database is still one of its seals."""
    return connection.execute("SELECT FROM public.audit_seals WHERE hash = %s", [head]).fetchone() is not None
