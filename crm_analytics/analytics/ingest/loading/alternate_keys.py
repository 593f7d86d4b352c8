"""Alternate keys: rows known by another column than their key, until an export brings the key.

Some exports of a source lack the key column and have only the alternate (a number that people use). Their new rows
have the alternate in the key column, so such a row is one whose key equals its alternate.
"""

from __future__ import annotations

from typing import LiteralString

from crm_analytics.analytics.ingest.errors import Reason
from crm_analytics.analytics.ingest.loading.late_files import NewerFiles
from crm_analytics.analytics.ingest.loading.quarantine import quarantine_staged, reason_sql
from crm_analytics.analytics.ingest.loading.queries import (
    Connection,
    create_temporary,
    execute,
    fetch_value,
)
from crm_analytics.analytics.ingest.loading.staging import Staged


def find_keys(connection: Connection, staged: Staged, file_id: int) -> None:
    """Gives staged records that have only the alternate the key of the one row with it.

    Quarantines records whose alternate names several rows.
    """
    if not staged.by_alternate:
        return
    source = staged.source
    create_temporary(
        connection,
        source,
        "alternates",
        """
        SELECT t.{alternate} AS alternate, min(t.{key_column}) AS key, count(*) AS rows,
            left(string_agg(t.{key_column}, ', ' ORDER BY t.{key_column}), 200) AS keys
        FROM {table} t WHERE t.{alternate} IN (SELECT s.{alternate} FROM pg_temp.staged s)
        GROUP BY t.{alternate}
        """,
    )
    alternate, key_header = source.key.alternate or "", source.column(source.key.columns[0]).headers[0]
    accepted = f"one that names one {source.key.label}, or an export with the column {key_header}"
    reason = Reason("names_several_rows", staged.open_file.mapping[alternate], accepted=accepted)
    quarantine_staged(
        connection,
        staged.open_file,
        file_id,
        "JOIN pg_temp.alternates a ON a.alternate = s.{alternate} WHERE a.rows > 1",
        """
        jsonb_build_array(
            {reason} || jsonb_build_object('found', format('%s (%s rows: %s)', s.{alternate}, a.rows, a.keys))
        )
        """,
        reason=reason_sql(reason),
    )
    staged.rejected += execute(
        connection,
        source,
        """
        DELETE FROM pg_temp.staged s USING pg_temp.alternates a
        WHERE a.alternate = s.{alternate} AND a.rows > 1
        """,
    ).rowcount
    execute(
        connection,
        source,
        """
        UPDATE pg_temp.staged s SET {key_column} = a.key FROM pg_temp.alternates a
        WHERE a.alternate = s.{alternate} AND a.key <> s.{key_column}
        """,
    )


def bring_keys(connection: Connection, staged: Staged, newer: NewerFiles) -> bool:
    """Gives rows that are known by their alternate alone the key that a staged record brings.

    The keys are in the temporary table `rekeyed` (old_key, new_key). Returns whether there are any.
    """
    source = staged.source
    if (
        source.key.alternate is None
        or staged.by_alternate
        or not fetch_value(
            connection, source, "SELECT EXISTS (SELECT FROM {table} WHERE {key_column} = {alternate})"
        )
    ):
        return False
    create_temporary(
        connection,
        source,
        "rekeyed",
        """
        SELECT t.{key_column} AS old_key, s.key AS new_key
        FROM {table} t
        JOIN (
            SELECT s.{alternate}, min(s.{key_column}) AS key FROM pg_temp.staged s WHERE s.{alternate} IS NOT NULL
            GROUP BY s.{alternate} HAVING count(*) = 1
        ) s ON s.{alternate} = t.{alternate}
        WHERE t.{key_column} = t.{alternate} AND s.key <> t.{key_column} AND NOT EXISTS (
            SELECT FROM {table} o WHERE o.{alternate} = t.{alternate} AND o.{key_column} NOT IN (t.{key_column}, s.key)
        )
        """,
    )
    newer.keep_alternates_given_anew()
    # a row that is known under both names is one row: what the newer record says holds
    execute(
        connection,
        source,
        """
        DELETE FROM {table} t USING pg_temp.rekeyed r
        WHERE t.{key_column} = r.old_key AND EXISTS (SELECT FROM {table} o WHERE o.{key_column} = r.new_key)
        """,
    )
    execute(
        connection,
        source,
        "UPDATE {table} t SET {key_column} = r.new_key FROM pg_temp.rekeyed r WHERE t.{key_column} = r.old_key",
    )
    return bool(fetch_value(connection, source, "SELECT EXISTS (SELECT FROM pg_temp.rekeyed)"))


def accepted_condition(staged: Staged) -> LiteralString:
    """Returns SQL over a quarantined record `r`: whether the staged file has its key.

    A record of a file without keys was quarantined under its alternate, which must not be taken for a key that looks
    like one.
    """
    if staged.source.key.alternate is None:
        return "r.row_key IN (SELECT {record_key} FROM pg_temp.staged s)"
    known = " WHERE s.{key_column} <> s.{alternate}" if staged.by_alternate else ""
    return f"""
        CASE WHEN EXISTS (
            SELECT FROM raw.source_files f WHERE f.file_id = r.file_id AND f.mapping ? '{staged.source.key.columns[0]}'
        ) THEN r.row_key IN (SELECT s.{{key_column}} FROM pg_temp.staged s{known})
        ELSE r.row_key IN (SELECT s.{{alternate}} FROM pg_temp.staged s) END
        """
