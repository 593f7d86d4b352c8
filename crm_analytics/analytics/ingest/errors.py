"""Why a cell, a record or a file is not accepted: reasons as data, and the exceptions that carry them."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from typing import Self


@dataclass(frozen=True, slots=True)
class Reason:
    """Why something is not accepted.

    `code` reads as English once its underscores are spaces, so prose needs no table of messages.
    """

    code: str
    column: str | None = None  #: header as found in the file
    found: str | None = None
    accepted: str | None = None
    remedy: str | None = None

    def __str__(self) -> str:
        """Renders the reason for people, as `raw.reason_text` does in SQL."""
        found = self.found if self.found is None else json.dumps(self.found, ensure_ascii=False)
        subject = " ".join(part for part in (self.column, found) if part is not None)
        accepted = self.accepted and f"accepted: {self.accepted}"
        what = _joined(": ", subject, self.code.replace("_", " "))
        return _joined("; ", what, accepted, self.remedy)

    def as_dict(self) -> dict[str, str]:
        """Returns the facts that are known, as `raw.rejected_rows.reasons` stores them."""
        facts = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: fact for name, fact in facts.items() if fact is not None}

    def about(self, column: str, cell: str | None) -> Self:
        """Returns the reason with the column's header and the cell, a long one cut."""
        found = cell if cell is None else quotable(cell)
        return type(self)(self.code, column, found, self.accepted, self.remedy)


class InvalidValue(ValueError):
    """A text that a rule does not accept. The caller, who knows the column, completes the reason."""

    def __init__(self, code: str, accepted: str, remedy: str | None = None) -> None:
        self.reason = Reason(code, accepted=accepted, remedy=remedy)
        super().__init__(str(self.reason))


class RefusedFile(Exception):
    """A file that cannot be read. `str(error)` names the file, the place and the reasons."""

    def __init__(self, file: str, *reasons: Reason, place: str | None = None) -> None:
        self.file = file
        self.place = place
        self.reasons = reasons
        super().__init__(_joined(": ", file, place, "; ".join(map(str, reasons))))


class UnrecognizedFile(RefusedFile):
    """A file whose folder, name and header do not tell its source."""


def cannot_be_read(file: str, error: Exception) -> RefusedFile:
    """Returns the refusal of a file that the operating system does not give, which may be different later."""
    found = getattr(error, "strerror", None) or str(error)
    remedy = "check that it is a file, and its permissions"
    return RefusedFile(file, Reason("cannot_be_read", found=found, remedy=remedy))


_LONGEST_QUOTE = 80


def quotable(text: str) -> str:
    """Returns a cell as reasons quote it: a long one is cut, and its length is given."""
    if len(text) <= _LONGEST_QUOTE:
        return text
    return f"{text[:_LONGEST_QUOTE]}… ({len(text):,} characters)"


def _joined(separator: str, *parts: str | None) -> str:
    return separator.join(part for part in parts if part)
