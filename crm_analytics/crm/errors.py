"""Turns the database errors by which a call of the CRM's RPCs fails into exceptions.

`Busy` alone may be repeated as it is; for every other one, something must change first.
"""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any, ClassVar

import psycopg


class CrmError(Exception):
    """A call that failed and changed nothing.

    Attributes:
        sqlstate: PostgreSQL's code for the reason, e.g. 42501 (HTTP 403 in PostgREST), PT404, PT409 or PT422.
        message: what is wrong.
        detail: the machine-readable DETAIL: `rule`, `field`, `found`, `accepted`, `id` …; numbers are Decimal.
        hint: the remedy.
        retryable: whether the same call may succeed if it is repeated; inside a transaction, repeat all of it.
    """

    #: The codes that this exception stands for.
    sqlstates: ClassVar[tuple[str, ...]] = ()
    retryable: ClassVar[bool] = False

    def __init__(self, sqlstate: str, message: str, detail: dict[str, Any], hint: str | None) -> None:
        super().__init__(message)
        self.sqlstate = sqlstate
        self.message = message
        self.detail = detail
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} [{self.sqlstate}] {self.hint or ''}".rstrip()


class Forbidden(CrmError):
    """42501: the actor is unknown, inactive or lacks the role, or a guard refused a direct change."""

    sqlstates: ClassVar[tuple[str, ...]] = ("42501",)


class NotFound(CrmError):
    """PT404: no row has an id that the call names."""

    sqlstates: ClassVar[tuple[str, ...]] = ("PT404",)


class Conflict(CrmError):
    """PT409: the state of the rows does not allow the call."""

    sqlstates: ClassVar[tuple[str, ...]] = ("PT409",)


class Invalid(CrmError):
    """PT422: an argument is not acceptable, whatever the state of the rows."""

    sqlstates: ClassVar[tuple[str, ...]] = ("PT422",)


class Malformed(Invalid):
    """An argument is no value of its type: 22P02 (not a number, id or boolean), 22007 and 22008 (not a date or time),
    22003 (a number too large), 22P05 (a character that the database cannot store)."""

    sqlstates: ClassVar[tuple[str, ...]] = ("22P02", "22007", "22008", "22003", "22P05")


class Busy(CrmError):
    """The call met others and was ended, and may be repeated: 40P01 (deadlock), 55P03 (lock_timeout), 57014
    (statement_timeout or canceled)."""

    sqlstates: ClassVar[tuple[str, ...]] = ("40P01", "55P03", "57014")
    retryable = True


class WrongIsolation(CrmError):
    """25001: the transaction runs above READ COMMITTED, where it would not see what it waited for."""

    sqlstates: ClassVar[tuple[str, ...]] = ("25001",)


_BY_SQLSTATE: dict[str, type[CrmError]] = {
    sqlstate: error
    for error in (Forbidden, NotFound, Conflict, Invalid, Malformed, Busy, WrongIsolation)
    for sqlstate in error.sqlstates
}


def from_database(error: psycopg.Error) -> CrmError | None:
    """Returns the exception for a database error, or None for one that says nothing about the call."""
    kind = _BY_SQLSTATE.get(error.sqlstate or "")
    if kind is None:
        return None
    diagnosis = error.diag
    try:
        detail = json.loads(diagnosis.message_detail or "{}", parse_float=Decimal)
    except ValueError:
        # PostgreSQL's own errors (a missing privilege, a deadlock) have no JSON.
        detail = {"text": diagnosis.message_detail}
    return kind(error.sqlstate or "", diagnosis.message_primary or str(error), detail, diagnosis.message_hint)
