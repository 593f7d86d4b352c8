"""Alternate keys: rows known by another column than their key, until an export brings the key.

Some exports of a source lack the key column and have only the alternate (a number that people use). Their new rows
have the alternate in the key column, so such a row is one whose key equals its alternate.
"""

from __future__ import annotations

from typing import LiteralString

from crm_analytics.analytics.ingest.errors import Reason
from crm_analytics.analytics.ingest.loading.late_files import NewerFiles
from crm_analytics.analytics.ingest.loading.quarantine import as_json
from crm_analytics.analytics.ingest.loading.staging import Staged

#: Rows that are known by their alternate alone.
KNOWN_BY_ALTERNATE: LiteralString = "SELECT FROM {table} WHERE {key_column} = {alternate}"


def find_keys(staged: Staged) -> None:
    """Gives staged records that have only the alternate the key of the one row with it.

    Quarantines records whose alternate names several rows.
    """
    if not staged.by_alternate:
        return
    key = staged.source.key
    staged.create_temporary(
        "known_alternates",
        """
        SELECT t.{alternate} AS alternate, min(t.{key_column}) AS key, count(*) AS rows,
            left(string_agg(t.{key_column}, ', ' ORDER BY t.{key_column}), 200) AS keys
        FROM {table} t WHERE t.{alternate} IN (SELECT s.{alternate} FROM pg_temp.staged s)
        GROUP BY t.{alternate}
        """,
    )
    key_header = staged.source.column(key.columns[0]).headers[0]
    reason = Reason(
        "names_several_rows",
        staged.open_file.mapping[str(key.alternate)],
        accepted=f"one that names one {key.label}, or an export with the column {key_header}",
    )
    staged.quarantine(
        "known_alternates",
        "c.alternate = s.{alternate} AND c.rows > 1",
        """
        jsonb_build_array(
            {reason} || jsonb_build_object('found', format('%s (%s rows: %s)', s.{alternate}, c.rows, c.keys))
        )
        """,
        reason=as_json(reason.as_dict()),
    )
    staged.execute(
        """
        UPDATE pg_temp.staged s SET {key_column} = a.key FROM pg_temp.known_alternates a
        WHERE a.alternate = s.{alternate} AND a.key <> s.{key_column}
        """
    )
    staged.answers.clear()


def bring_keys(staged: Staged, newer: NewerFiles) -> bool:
    """Gives rows that are known by their alternate alone the key that a staged record brings.

    The keys are in the temporary table `rekeyed` (old_key, new_key). Returns whether there are any.
    """
    if staged.source.key.alternate is None or staged.by_alternate or not staged.exists(KNOWN_BY_ALTERNATE):
        return False
    staged.create_temporary(
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
    staged.answers.clear()
    newer.keep_alternates_given_anew()
    # a row that is known under both names is one row, with the values of the newer record
    staged.execute(
        """
        DELETE FROM {table} t USING pg_temp.rekeyed r
        WHERE t.{key_column} = r.old_key AND EXISTS (SELECT FROM {table} o WHERE o.{key_column} = r.new_key)
        """
    )
    staged.execute(
        "UPDATE {table} t SET {key_column} = r.new_key FROM pg_temp.rekeyed r WHERE t.{key_column} = r.old_key"
    )
    return bool(staged.value("SELECT EXISTS (SELECT FROM pg_temp.rekeyed)"))
