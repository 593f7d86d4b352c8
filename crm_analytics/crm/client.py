"""Calls one RPC of the CRM on a connection: arguments, transaction, errors.

The calls themselves are in rpc_methods.py.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, LiteralString
from uuid import UUID

import psycopg
from psycopg import sql
from psycopg.pq import TransactionStatus
from psycopg.types.json import Jsonb

from crm_analytics.crm.errors import from_database

Money = Decimal | int
Json = dict[str, Any] | list[Any]


@dataclass(frozen=True)
class CrmResult:
    """An RPC's answer: the id of the row concerned, and the whole JSON object (numbers are Decimal or int)."""

    id: UUID
    data: dict[str, Any]

    @property
    def duplicate(self) -> bool:
        """Tells whether the call repeated an earlier one, by its reference or idempotency key, and changed nothing."""
        return bool(self.data.get("duplicate", False))


class RpcCaller:
    """Calls RPCs on one connection; `CrmClient` adds a typed method for each of them.

    Every call is a transaction of its own, or a savepoint if the connection is already in a transaction. A refused
    call therefore changes nothing and leaves the connection usable. Behind a pooler that works by transaction, open the
    connection with `prepare_threshold=None`.

    Raises (every call):
        Forbidden, NotFound, Conflict, Invalid, Malformed, Busy, WrongIsolation: see crm_analytics.crm.errors.
        TypeError: for a float, because money is never a float.
    """

    def __init__(self, connection: psycopg.Connection[Any]) -> None:
        self.connection = connection

    def _call(self, function: str, arguments: dict[str, Any]) -> CrmResult:
        [data] = self._answers("SELECT {}({})::pg_catalog.text", function, arguments)
        return CrmResult(UUID(data["id"]), data)

    def _row(self, function: str, arguments: dict[str, Any]) -> dict[str, Any]:
        [row] = self._rows(function, arguments)
        return row

    def _rows(self, function: str, arguments: dict[str, Any]) -> list[dict[str, Any]]:
        return self._answers(
            "SELECT pg_catalog.to_jsonb(r)::pg_catalog.text FROM {}({}) r", function, arguments
        )

    def _answers(
        self, query: LiteralString, function: str, arguments: dict[str, Any]
    ) -> list[dict[str, Any]]:
        values = {name: _adapted(name, value) for name, value in arguments.items() if name != "self"}
        named = sql.SQL(", ").join(
            sql.SQL("{} => {}").format(sql.Identifier(f"p_{name}"), sql.Placeholder(name)) for name in values
        )
        statement = sql.SQL(query).format(sql.Identifier("public", function), named)
        connection = self.connection
        try:
            if connection.autocommit and connection.info.transaction_status == TransactionStatus.IDLE:
                rows = connection.execute(statement, values).fetchall()
            else:
                with connection.transaction():
                    rows = connection.execute(statement, values).fetchall()
        except psycopg.Error as error:
            known = from_database(error)
            if known is None:
                raise
            raise known from error
        return [json.loads(text, parse_float=Decimal) for (text,) in rows]


def _adapted(name: str, value: Any) -> Any:
    if isinstance(value, float):
        raise TypeError(f"{name}: {value!r} is a float; pass a Decimal, e.g. Decimal('12.50')")
    if isinstance(value, tuple):
        return list(value)  # an array; lists are JSON
    return Jsonb(value) if isinstance(value, dict | list) else value
