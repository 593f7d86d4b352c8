"""Turns the database errors by which the CRM's RPCs refuse a call into exceptions."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

import psycopg


class CrmError(Exception):
    """A refused call, which changed nothing.

    Attributes:
        sqlstate: 42501 (HTTP 403 in PostgREST), PT404, PT409 or PT422.
        message: what is wrong.
        detail: the machine-readable DETAIL: `rule`, `field`, `found`, `accepted`, `id` …; numbers are Decimal.
        hint: the remedy.
    """

    sqlstate = ""

    def __init__(self, message: str, detail: dict[str, Any], hint: str | None) -> None:
        super().__init__(message)
        self.message = message
        self.detail = detail
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} [{self.sqlstate}] {self.hint or ''}".rstrip()


class Forbidden(CrmError):
    """42501: the actor is unknown, inactive or lacks the role, or a guard refused a direct change."""

    sqlstate = "42501"


class NotFound(CrmError):
    """PT404: no row has an id that the call names."""

    sqlstate = "PT404"


class Conflict(CrmError):
    """PT409: the state of the rows does not allow the call."""

    sqlstate = "PT409"


class Invalid(CrmError):
    """PT422: an argument is not acceptable, whatever the state of the rows."""

    sqlstate = "PT422"


_BY_SQLSTATE: dict[str, type[CrmError]] = {
    error.sqlstate: error for error in (Forbidden, NotFound, Conflict, Invalid)
}


def from_database(error: psycopg.Error) -> CrmError | None:
    """Returns the exception for a database error with one of the four SQLSTATEs, None for every other error."""
    kind = _BY_SQLSTATE.get(error.sqlstate or "")
    if kind is None:
        return None
    diagnosis = error.diag
    try:
        detail = json.loads(diagnosis.message_detail or "{}", parse_float=Decimal)
    except ValueError:
        # PostgreSQL's own 42501 (a missing privilege) has no JSON.
        detail = {"text": diagnosis.message_detail}
    return kind(diagnosis.message_primary or str(error), detail, diagnosis.message_hint)
