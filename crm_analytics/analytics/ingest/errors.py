"""Why a cell, a record or a file is not accepted: reasons as data, and the exceptions that carry them."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace


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
        found = None if self.found is None else json.dumps(self.found, ensure_ascii=False)
        what = _joined(": ", _joined(" ", self.column, found), self.code.replace("_", " "))
        return _joined("; ", what, self.accepted and f"accepted: {self.accepted}", self.remedy)

    def as_dict(self) -> dict[str, str]:
        """Returns the facts that are known, as `raw.rejected_rows.reasons` stores them."""
        return {name: fact for name, fact in asdict(self).items() if fact is not None}

    def about(self, column: str, cell: str | None) -> Reason:
        """Returns the reason with the column's header and the cell, a long one cut."""
        return replace(self, column=column, found=cell and quotable(cell))


class InvalidValue(ValueError):
    """A text that a rule does not accept. The caller, who knows the column, completes the reason."""

    def __init__(self, code: str, accepted: str, remedy: str | None = None) -> None:
        self.reason = Reason(code, accepted=accepted, remedy=remedy)
        super().__init__(str(self.reason))


class RefusedFile(Exception):
    """A file that cannot be read. `why` names the place and the reasons; `str(error)` names the file, too."""

    def __init__(self, file: str, *reasons: Reason, place: str | None = None) -> None:
        self.reasons = reasons
        self.why = _joined(": ", place, "; ".join(map(str, reasons)))
        super().__init__(f"{file}: {self.why}")


class UnrecognizedFile(RefusedFile):
    """A file whose folder, name and header do not tell its source."""


def cannot_be_read(error: Exception) -> Reason:
    """Returns why the operating system does not give a file or folder, which may be different later."""
    found = getattr(error, "strerror", None) or str(error)
    return Reason("cannot_be_read", found=found, remedy="check that it is there, and its permissions")


_LONGEST_QUOTE = 80


def quotable(text: str, longest: int = _LONGEST_QUOTE) -> str:
    """Returns a text as reasons quote it: a long one is cut, and its length is given."""
    if len(text) <= longest:
        return text
    return f"{text[:longest]}… ({len(text):,} characters)"


def _joined(separator: str, *parts: str | None) -> str:
    return separator.join(part for part in parts if part)
