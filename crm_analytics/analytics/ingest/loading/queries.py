"""The statements of a load, all of them about one source."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, LiteralString

import psycopg
from psycopg import sql
from psycopg.pq import TransactionStatus

from crm_analytics.analytics.ingest.sources.declaration import Source

Connection = psycopg.Connection[Any]


def takes_statements(connection: Connection) -> bool:
    """Returns whether the session is between statements. After an interrupt or a lost server it isn't, and must end."""
    return connection.info.transaction_status == TransactionStatus.IDLE


def _text(part: Any) -> str:
    """Returns SQL as text, of a value its literal."""
    if isinstance(part, int):
        return str(part)
    return (part if isinstance(part, sql.Composable) else sql.Literal(part)).as_string(None)


@dataclass
class SourceSession:
    """A connection whose statements are about one source.

    Statements have the names of `Source.fragments`, of `parts`, and of further arguments in braces.
    """

    connection: Connection
    source: Source

    @property
    def parts(self) -> dict[str, Any]:
        """Values that every statement may name."""
        return {}

    def execute(self, statement: LiteralString, **parts: Any) -> psycopg.Cursor[Any]:
        """Executes a statement; parts are SQL, or values that become literals."""
        # planned anew for each file, because the tables grow from file to file
        return self.connection.execute(self.compose(statement, **parts), prepare=False)

    def compose(self, statement: LiteralString, **parts: Any) -> LiteralString:
        """Returns the statement with all its parts."""
        texts = {name: _text(part) for name, part in (self.parts | parts).items()}
        # sql.SQL.format would render every part of every statement of every file anew
        return statement.format(**self.source.fragment_texts, **texts)

    def row(self, statement: LiteralString, **parts: Any) -> tuple[Any, ...]:
        """Returns the only row of a query."""
        row = self.execute(statement, **parts).fetchone()
        assert row is not None
        return tuple(row)

    def value(self, statement: LiteralString, **parts: Any) -> Any:
        """Returns the only value of a query."""
        return self.row(statement, **parts)[0]

    def create_temporary(self, name: LiteralString, query: LiteralString, **parts: Any) -> None:
        """Puts a query's rows into a temporary table, which has them for the rest of the transaction."""
        self.execute(
            "CREATE TEMP TABLE IF NOT EXISTS {name} ON COMMIT DELETE ROWS AS "
            + query
            + " WITH NO DATA; "
            + EMPTY
            + "; INSERT INTO pg_temp.{name} "
            + query,
            name=sql.Identifier(name),
            **parts,
        )


#: Empties the temporary table {name}, which a file before may have filled in this transaction. All files of a session use
#: the same tables: making them is much of what a small file costs, and in a long transaction each new one needs further
#: locks until its end, of which the server has only so many.
EMPTY: LiteralString = (
    "DO $$ BEGIN IF EXISTS (SELECT FROM pg_temp.{name}) THEN TRUNCATE pg_temp.{name}; END IF; END $$"
)
#: Those that have the keys of newer files, for the older ones of a run.
NEWER = ("newer_keys", "newer_alternates", "newer_months")
_TEMPORARY = (
    *("staged", "as_found", "repeated", "conflicting", "known_alternates", "rekeyed", "changes", "totals"),
    *NEWER,
)


def drop_temporary(connection: Connection, names: Iterable[str] = _TEMPORARY) -> None:
    """Removes temporary tables of a session's loads: those of another source have other columns."""
    tables = sql.SQL(", ").join(sql.Identifier("pg_temp", name) for name in names)
    connection.execute(sql.SQL("DROP TABLE IF EXISTS {}").format(tables))
