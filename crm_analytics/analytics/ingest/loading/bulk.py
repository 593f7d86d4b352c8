"""Bulk loads: fills a table whose indexes, keys and insert triggers are off meanwhile, and makes them again.

Everything happens in one savepoint, so a load that fails or is killed leaves the table as it was. What was taken off is
described by the catalog, so an index of a later migration is made again like the others. See
docs/decisions/bulk-loads.md.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from psycopg import errors, sql

from crm_analytics.analytics.ingest.loading.queries import Connection
from crm_analytics.analytics.ingest.sources.declaration import Source

log = logging.getLogger(__name__)

#: For fewer records, making the indexes again costs as much as it saves, and readers need not be kept out.
ENOUGH = 50_000
#: How often a lock that others hold is asked for, and how many seconds lie between two times. Nobody waits behind it.
#: A vacuum that wants to give back space insists for five seconds on a lock that the load's own transaction refuses.
TRIES, PAUSE = 30, 0.2
#: The trigger of which `raw.after_bulk_load` does the work for all rows at once.
_NOTES_MONTHS = "analytics.note_stale_months"
#: The table and those of its schema that it has foreign keys with.
_LINKED = """
    SELECT array_agg(t.oid::regclass::text)
    FROM pg_class t
    WHERE t.relnamespace = (SELECT relnamespace FROM pg_class WHERE oid = %(table)s::regclass) AND (
        t.oid = %(table)s::regclass OR EXISTS (
            SELECT FROM pg_constraint c
            WHERE c.contype = 'f' AND (t.oid, %(table)s::regclass) IN ((c.conrelid, c.confrelid), (c.confrelid, c.conrelid))
        )
    )
"""
#: What the description of an index, key or trigger does not tell; a table that has such a one is left alone.
_PLAIN = """
    SELECT NOT EXISTS (
        SELECT FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid
        WHERE i.indrelid = ANY (%(tables)s::regclass[]) AND (
            NOT i.indisvalid OR i.indisclustered OR i.indisreplident OR c.reltablespace <> 0 OR EXISTS (
                SELECT FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attstattarget >= 0
            )
        )
    ) AND NOT EXISTS (
        SELECT FROM pg_constraint c WHERE c.conrelid = ANY (%(tables)s::regclass[]) AND c.contype = 'f' AND NOT c.convalidated
    ) AND NOT EXISTS (
        SELECT FROM pg_trigger t WHERE t.tgrelid = ANY (%(tables)s::regclass[]) AND NOT t.tgisinternal AND t.tgenabled <> 'O'
    )
"""
#: What is taken off, in this order, and how: the statements that drop it, make it again, and comment it again.
_TAKEN_OFF = """
    SELECT kind, dropped, made, commented
    FROM (
        SELECT CASE c.contype WHEN 'f' THEN 'foreign key' ELSE 'key' END AS kind, c.conname AS name,
            format('ALTER TABLE %%s DROP CONSTRAINT %%I', c.conrelid::regclass, c.conname) AS dropped,
            format('ALTER TABLE %%s ADD CONSTRAINT %%I %%s', c.conrelid::regclass, c.conname, pg_get_constraintdef(c.oid))
                AS made,
            array_remove(ARRAY[
                'COMMENT ON CONSTRAINT ' || quote_ident(c.conname) || ' ON ' || c.conrelid::regclass || ' IS '
                    || quote_literal(obj_description(c.oid, 'pg_constraint')),
                'COMMENT ON INDEX ' || nullif(c.conindid, 0)::regclass || ' IS '
                    || quote_literal(CASE WHEN c.contype <> 'f' THEN obj_description(c.conindid, 'pg_class') END)
            ], NULL) AS commented
        FROM pg_constraint c
        WHERE (c.contype IN ('p', 'u', 'x') AND c.conrelid = %(table)s::regclass)
            OR (c.contype = 'f' AND c.conrelid = ANY (%(tables)s::regclass[]) AND c.confrelid = ANY (%(tables)s::regclass[])
                AND %(table)s::regclass IN (c.conrelid, c.confrelid))
        UNION ALL
        SELECT 'index', i.indexrelid::regclass::text, 'DROP INDEX ' || i.indexrelid::regclass,
            pg_get_indexdef(i.indexrelid),
            array_remove(ARRAY['COMMENT ON INDEX ' || i.indexrelid::regclass || ' IS '
                || quote_literal(obj_description(i.indexrelid, 'pg_class'))], NULL)
        FROM pg_index i
        WHERE i.indrelid = %(table)s::regclass
            AND NOT EXISTS (SELECT FROM pg_constraint c WHERE c.conindid = i.indexrelid AND c.contype <> 'f')
        UNION ALL
        SELECT 'trigger', t.tgname, format('DROP TRIGGER %%I ON %%s', t.tgname, t.tgrelid::regclass),
            pg_get_triggerdef(t.oid),
            array_remove(ARRAY['COMMENT ON TRIGGER ' || quote_ident(t.tgname) || ' ON ' || t.tgrelid::regclass || ' IS '
                || quote_literal(obj_description(t.oid, 'pg_trigger'))], NULL)
        FROM pg_trigger t
        -- 4: on INSERT
        WHERE t.tgrelid = %(table)s::regclass AND NOT t.tgisinternal AND t.tgtype & 4 <> 0
            AND t.tgfoid = ANY (%(replaced)s::regproc[]::oid[])
    ) AS object
    ORDER BY array_position(ARRAY['trigger', 'foreign key', 'index', 'key'], kind), name
"""


class _NotPossible(Exception):
    """Raised where the table is in use, isn't empty any more, or has what its description does not tell."""


@dataclass(frozen=True)
class _TakenOff:
    """An object of the table that is off meanwhile, with the statements that drop it, make it again and comment it."""

    kind: str
    dropped: str
    made: str
    commented: list[str]


def fill_table(
    connection: Connection, source: Source, file_id: int, insert: Callable[[], object], *, was_empty: bool
) -> bool:
    """Fills a table by `insert` and analyzes it, while no other session can read or write it.

    Returns False, and leaves everything as it was, where that can't be done: others use the table all the time, it isn't
    empty any more, it belongs to somebody else, or something that is not ours depends on its keys.

    Args:
        connection: inside a transaction that holds raw.lock_links, where the table has links.
        source: the source whose table it is.
        file_id: the file whose rows they are.
        insert: puts the rows in: new ones, none of which the table had. Called once at most.
        was_empty: whether the table had no rows.

    Raises:
        psycopg.Error: what `insert` raises, except for violated constraints.
    """
    try:
        with connection.transaction():
            tables = _lock(connection, source.table)
            _fill(connection, source, tables, file_id, insert, was_empty)
        return True
    except (
        _NotPossible,
        errors.DependentObjectsStillExist,
        errors.InsufficientPrivilege,
        errors.IntegrityError,
        errors.LockNotAvailable,
        errors.ObjectInUse,
    ) as error:
        log.info("%s is loaded with its indexes on: %s", source.table, error)
        return False


def _lock(connection: Connection, table: str) -> list[str]:
    """Locks the table and those that it has foreign keys with; returns them.

    Asks without waiting, because who waits for such a lock keeps all later readers waiting.
    """
    tables: list[str] = _value(connection, _LINKED, {"table": table})
    for _ in range(TRIES):
        try:
            with connection.transaction():
                connection.execute(f"LOCK TABLE {', '.join(tables)} IN ACCESS EXCLUSIVE MODE NOWAIT".encode())
            return tables
        except errors.LockNotAvailable:
            time.sleep(PAUSE)
    raise _NotPossible("it is in use")


def _fill(
    connection: Connection,
    source: Source,
    tables: list[str],
    file_id: int,
    insert: Callable[[], object],
    was_empty: bool,
) -> None:
    name = sql.Identifier(*source.table_path)
    links = [source.reference.kept_by] if source.reference else []
    parts = {"table": source.table, "tables": tables, "replaced": [_NOTES_MONTHS, *links]}
    if was_empty and _value(connection, sql.SQL("SELECT EXISTS (SELECT FROM {})").format(name)):
        raise _NotPossible("it has rows by now")
    if not _value(connection, _PLAIN, parts):
        raise _NotPossible("it has an index, key or trigger in a state of its own")
    off = [_TakenOff(*row) for row in connection.execute(_TAKEN_OFF, parts)]
    for item in off:
        connection.execute(item.dropped.encode())
    insert()
    _make(connection, off, "key", "index")
    connection.execute(sql.SQL("ANALYZE {}").format(name))
    connection.execute("SELECT raw.after_bulk_load(%s::regclass, %s, %s)", [source.table, file_id, was_empty])
    _make(connection, off, "foreign key", "trigger")


def _make(connection: Connection, off: list[_TakenOff], *kinds: str) -> None:
    for kind in kinds:
        for item in off:
            if item.kind == kind:
                for statement in (item.made, *item.commented):
                    connection.execute(statement.encode())


def _value(connection: Connection, query: Any, parts: dict[str, Any] | None = None) -> Any:
    row = connection.execute(query, parts).fetchone()
    assert row is not None
    return row[0]
