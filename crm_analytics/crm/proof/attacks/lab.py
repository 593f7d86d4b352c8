"""What attacks are made of: the registry, the laboratory in which they run, and their outcomes."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import psycopg
from psycopg import sql


class Breach(AssertionError):
    """An attack got through, or a guard refused what it must allow."""


@dataclass(frozen=True)
class Attack:
    """One attack: what it tries, which guards (of `manifest.GUARDS`) it exercises, and how to run it.

    Attacks that differ only in their table or function are one `family`, which is one check in Dagster.
    """

    name: str
    family: str
    description: str
    guards: tuple[str, ...]
    run: Callable[[Lab], None]


@dataclass(frozen=True)
class Outcome:
    """Whether the guards held against one attack; `detail` tells what got through."""

    attack: Attack
    held: bool
    detail: str = ""


#: Every attack by name. Importing the package fills it.
ATTACKS: dict[str, Attack] = {}


def attack(*guards: str, on: Iterable[str] = ()) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Registers a function as an attack under its own name, with its docstring as the description.

    With `on`, registers one attack per table or RPC named there (`{}` in a guard's name), and passes it to the function.
    """

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        family, description = function.__name__, function.__doc__ or ""
        for target in on:
            run = partial(_run_on, function, target)
            register(
                family, description, [guard.format(target) for guard in guards], run, f"{family}_{target}"
            )
        if not on:
            register(family, description, guards, function)
        return function

    return decorate


def _run_on(function: Callable[..., None], target: str, lab: Lab) -> None:
    function(lab, target)


def register(
    family: str, description: str, guards: Iterable[str], run: Callable[[Lab], None], name: str = ""
) -> None:
    """Adds an attack to the registry; the only one of its family has the family's name."""
    ATTACKS[name or family] = Attack(name or family, family, description, tuple(guards), run)


def qualified(table: str) -> str:
    """Returns a table's name with its schema, which is public where none is given."""
    return table if "." in table else f"public.{table}"


class Lab:
    """A scratch database with a row in every table, where attacks are tried and rolled back."""

    def __init__(self, connection: psycopg.Connection[Any], sample: dict[str, Any]) -> None:
        self.connection = connection
        self.sample = sample

    def try_(self, attack: Attack) -> Outcome:
        """Runs one attack and rolls back whatever it did.

        An attack that ends with a database error was not held: what it needs is missing or refused.
        """
        try:
            with self.connection.transaction(force_rollback=True):
                attack.run(self)
        except Breach as breach:
            return Outcome(attack, False, str(breach))
        except psycopg.Error as error:
            return Outcome(attack, False, f"could not be tried: {error.sqlstate} {error}")
        return Outcome(attack, True)

    # -- what attacks use -------------------------------------------------------------------------------

    def run(self, statement: str, **values: Any) -> Any:
        """Runs one statement as the current role; returns the first column of its first row, if it has one."""
        cursor = self.connection.execute(statement, {**self.sample, **values})
        row = cursor.fetchone() if cursor.description else None
        return row[0] if row else None

    def play(self, calls: Iterable[tuple[str, str]]) -> dict[str, Any]:
        """Calls RPCs in order; returns the ids in their answers by the names given, which later calls may use."""
        ids: dict[str, Any] = {}
        for name, call in calls:
            ids[name] = self.run(f"SELECT public.{call}", **ids)["id"]
        return ids

    @contextmanager
    def role(self, name: str | None) -> Iterator[None]:
        """Acts as another role (None: as the login) in a savepoint that is rolled back."""
        with self.connection.transaction(force_rollback=True):
            if name is not None:
                self.connection.execute(sql.SQL("SET LOCAL ROLE {}").format(sql.Identifier(name)))
            yield

    def replication_roles(self) -> Iterator[None]:
        """Sets session_replication_role to each value in turn: `replica` skips triggers that are not ALWAYS."""
        for setting in ("origin", "replica"):
            self.run(f"SET LOCAL session_replication_role = {setting}")
            yield

    def stranger(self) -> str:
        """Creates a role without any membership, for the duration of one attack, and returns its name."""
        name = f"crm_stranger_{self.connection.info.backend_pid}"
        self.run(f"DO $$ BEGIN CREATE ROLE {name} NOLOGIN; EXCEPTION WHEN duplicate_object THEN NULL; END $$")
        return name

    def refused(
        self,
        statements: Iterable[str],
        role: str | None = None,
        sqlstates: Collection[str] = ("42501",),
        saying: str = "",
        **values: Any,
    ) -> None:
        """Expects each statement to be refused with one of the SQLSTATEs and a message that contains `saying`.

        Privileges and triggers refuse with the same SQLSTATE; the message tells which of the two held.

        Raises:
            Breach: naming the first statement that was not refused so.
        """
        for statement in statements:
            with self.role(role):
                try:
                    with self.connection.transaction():
                        cursor = self.connection.execute(statement, {**self.sample, **values})
                        self.connection.execute("SET CONSTRAINTS ALL IMMEDIATE")
                    found = f"succeeded ({cursor.statusmessage})"
                except psycopg.Error as error:
                    if error.sqlstate in sqlstates and saying in str(error):
                        continue
                    found = f"ended with {error.sqlstate}: {str(error).splitlines()[0]}"
            raise Breach(
                f"as {role or 'the owner'}: {statement} {found}, expected {'/'.join(sqlstates)} {saying}"
            )

    def expect(self, found: Any, expected: Any, what: str) -> None:
        """Expects a value to be what it must be.

        Raises:
            Breach: naming the value, what was found and what was expected.
        """
        if found != expected:
            raise Breach(f"{what}: {found}, expected {expected}")

    def columns(self, table: str, *, identity: bool = False, generated: bool = False) -> list[str]:
        """Returns the columns that a statement can write, and identity or generated columns if asked for."""
        query = """
            SELECT quote_ident(attname) FROM pg_attribute
            WHERE attrelid = %(table)s::regclass AND attnum > 0 AND NOT attisdropped
                AND (attgenerated = '' OR %(generated)s) AND (attidentity = '' OR %(identity)s)
            ORDER BY attnum
            """
        values = {"table": qualified(table), "identity": identity, "generated": generated}
        return [name for (name,) in self.connection.execute(query, values)]

    def writes(
        self, table: str, actions: Sequence[str] = ("INSERT", "UPDATE", "DELETE", "TRUNCATE")
    ) -> list[str]:
        """Returns statements that write a table in every way: default values, a copy, each column, all rows."""
        columns, home = self.columns(table), qualified(table)
        names = ", ".join(columns)
        statements = {
            "INSERT": [
                f"INSERT INTO {home} DEFAULT VALUES",
                f"INSERT INTO {home} ({names}) SELECT {names} FROM {home}",
            ],
            "UPDATE": [f"UPDATE {home} SET {column} = {column}" for column in columns],
            "DELETE": [f"DELETE FROM {home}"],
            "TRUNCATE": [f"TRUNCATE {home} CASCADE"],
        }
        return [statement for action in actions for statement in statements[action]]
