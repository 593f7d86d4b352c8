"""Twins of the raw tables, without triggers, and the bare ways of filling them with typed rows."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from psycopg import sql

from bench.cost import Cost
from bench.environment import Environment
from bench.loads import TABLES

#: The database with the twins, in the schema `bench`; its own raw tables stay empty.
DATABASE = "twins"


@dataclass(frozen=True)
class TypedRows:
    """A table's rows as COPY reads them, without generated columns."""

    table: str
    columns: sql.Composed
    file: Path

    def chunks(self) -> Iterator[bytes]:
        """Yields the file's content, in pieces that COPY takes well."""
        with self.file.open("rb") as data:
            while chunk := data.read(1 << 20):
                yield chunk


def typed_rows(
    environment: Environment, database: str, name: str, *, of_last_file: bool = False
) -> list[TypedRows]:
    """Writes the rows of both tables, or those of the newest file of each, into files of this name."""
    found = []
    with environment.connect(database) as connection:
        for table in TABLES:
            columns = sql.SQL(", ").join(
                sql.Identifier(column)
                for (column,) in connection.execute(
                    "SELECT attname FROM pg_attribute WHERE attrelid = to_regclass(%s)"
                    " AND attnum > 0 AND NOT attisdropped AND attgenerated = '' ORDER BY attnum",
                    [f"raw.{table}"],
                )
            )
            newest = sql.SQL(
                f" WHERE file_id = (SELECT max(file_id) FROM raw.{table})" if of_last_file else ""
            )
            query = sql.SQL("COPY (SELECT {} FROM {}{}) TO STDOUT").format(
                columns, sql.Identifier("raw", table), newest
            )
            rows = TypedRows(table, columns, environment.folder / f"{name}_{table}.copy")
            with rows.file.open("wb") as out, connection.cursor().copy(query) as copy:
                for data in copy:
                    out.write(data)
            found.append(rows)
    return found


class Twins:
    """The twins on one connection."""

    def __init__(self, environment: Environment) -> None:
        self.environment = environment
        self.connection = environment.connect(DATABASE)
        # so that definitions name every table with its schema
        self.connection.execute("SET search_path = ''")

    def make(self, *, indexed: bool = True) -> None:
        """Makes empty twins with all defaults, generated columns and checks; with indexes and foreign keys if `indexed`."""
        self.connection.execute("DROP SCHEMA IF EXISTS bench CASCADE; CREATE SCHEMA bench")
        for table in TABLES:
            indexes = "" if indexed else " EXCLUDING INDEXES"
            self.connection.execute(f"CREATE TABLE bench.{table} (LIKE raw.{table} INCLUDING ALL{indexes})")
        if indexed:
            for statement in self._constraints("f"):
                self.connection.execute(statement)

    def copy(self, rows: TypedRows) -> Cost:
        """Fills a twin with one COPY in one transaction."""
        self.environment.checkpoint()
        return self.environment.measure(lambda: self.copy_in(rows, rows.chunks()))

    def copy_in(self, rows: TypedRows, chunks: Iterable[bytes]) -> None:
        """Adds rows of the table to its twin with one COPY in one transaction."""
        with self.connection.transaction():
            self._copy(rows, chunks)

    def copy_then_index(self, all_rows: list[TypedRows]) -> Cost:
        """Fills twins that have no indexes, then makes keys, indexes, foreign keys and statistics, in one transaction."""
        statements = [*self._constraints("p", "u"), *self._indexes(), *self._constraints("f")]
        self.environment.checkpoint()

        def work() -> None:
            with self.connection.transaction():
                for rows in all_rows:
                    self._copy(rows, rows.chunks())
                for statement in statements:
                    self.connection.execute(statement)
                self.connection.execute("ANALYZE bench.jobs, bench.payments")

        return self.environment.measure(work)

    def vacuum(self) -> None:
        """Brings full twins into the state of tables that have been there for a while."""
        self.connection.execute("VACUUM ANALYZE bench.jobs, bench.payments")

    def close(self) -> None:
        """Drops the twins."""
        self.connection.execute("DROP SCHEMA IF EXISTS bench CASCADE")
        self.connection.close()

    def _copy(self, rows: TypedRows, chunks: Iterable[bytes]) -> None:
        statement = sql.SQL("COPY {} ({}) FROM STDIN").format(
            sql.Identifier("bench", rows.table), rows.columns
        )
        with self.connection.cursor().copy(statement) as copy:
            for chunk in chunks:
                copy.write(chunk)

    def _constraints(self, *kinds: str) -> list[sql.SQL]:
        """Returns statements that add the raw tables' constraints of these kinds (p, u, f) to the twins."""
        return self._of_twins(
            "SELECT format('ALTER TABLE %%s ADD CONSTRAINT %%I %%s', conrelid::regclass, conname, pg_get_constraintdef(oid))"
            " FROM pg_constraint WHERE conrelid = ANY (%s::regclass[]) AND contype = ANY (%s)",
            [list(kinds)],
        )

    def _indexes(self) -> list[sql.SQL]:
        """Returns statements that make the raw tables' other indexes on the twins."""
        return self._of_twins(
            "SELECT pg_get_indexdef(indexrelid) FROM pg_index WHERE indrelid = ANY (%s::regclass[])"
            " AND NOT EXISTS (SELECT FROM pg_constraint c WHERE c.conindid = indexrelid AND c.conrelid = indrelid)",
            [],
        )

    def _of_twins(self, query: str, parameters: list[Any]) -> list[sql.SQL]:
        names = [f"raw.{table}" for table in TABLES]
        found = self.connection.execute(query.encode(), [names, *parameters]).fetchall()
        tables = rf"\braw\.({'|'.join(TABLES)})\b"
        return [sql.SQL(re.sub(tables, r"bench.\1", text)) for (text,) in found]
