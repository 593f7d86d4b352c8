"""The first line of a pulled file, which is no record: which connector wrote it, and what it may prove."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from typing import Any

from crm_analytics.analytics.ingest.errors import Reason, RefusedFile
from crm_analytics.analytics.ingest.reading.unpacking import beginning
from crm_analytics.analytics.ingest.sources.declaration import Source
from crm_analytics.analytics.ingest.storage.landing import Content
from crm_analytics.core.wording import counted

#: The only key of the line's object.
KEY = "crm_analytics_pull"
#: Bytes; the line has a handful of short facts.
_LONGEST = 1 << 16
_NAME = re.compile(r"[a-z][a-z0-9_]{0,99}")
_ACCEPTED = (
    f'{{"{KEY}": {{"connector": "…", "records": 123, "covers": {{"by": "…", "from": "YYYY-MM-DD", "to": "YYYY-MM-DD"}}}}}};'
    " covers, from and to may be null"
)
_PULL_AGAIN = "remove the file, and pull again"


@dataclass(frozen=True)
class Coverage:
    """Which rows of the table a pulled file must have: those with a local date in a window, both days included."""

    #: A column of the table: a date, or a moment.
    by: str
    #: None is an open end.
    first: date | None
    last: date | None

    def __str__(self) -> str:
        """Names the window for people."""
        ends = [f"from {self.first}" if self.first else "", f"to {self.last}" if self.last else ""]
        return f"with {self.by} {' '.join(filter(None, ends)) or 'on any day'}"


@dataclass(frozen=True)
class Pull:
    """What a connector says of the file that it wrote."""

    connector: str
    #: How many records the file has.
    records: int
    #: None: the file proves nothing about rows that it lacks.
    covers: Coverage | None


def read_pull(record: Mapping[str, Any]) -> Pull | None:
    """Returns what a file's first line says; None if it is a record like all others. Raises ValueError for a damaged one."""
    if record.keys() != {KEY}:
        return None
    try:
        told = record[KEY]
        connector, records, covers = told["connector"], int(told["records"]), told.get("covers")
        if not _NAME.fullmatch(connector) or records < 0:
            raise ValueError
        return Pull(connector, records, None if covers is None else _coverage(covers))
    except (KeyError, TypeError, AttributeError):
        raise ValueError from None


def _coverage(told: Mapping[str, Any]) -> Coverage:
    first, last = (None if told[end] is None else date.fromisoformat(told[end]) for end in ("from", "to"))
    if not isinstance(told["by"], str) or (first and last and first > last):
        raise ValueError
    return Coverage(told["by"], first, last)


def damaged_line(content: Content) -> RefusedFile:
    """Returns the refusal of a file whose first line is that of a pulled file, but cannot be understood."""
    return RefusedFile(
        content.name,
        Reason("damaged_line_of_a_pulled_file", accepted=_ACCEPTED, remedy=_PULL_AGAIN),
        place="line 1",
    )


def require_records(content: Content, pull: Pull, records: int) -> None:
    """Raises RefusedFile unless a pulled file has as many records as its connector wrote."""
    if records != pull.records:
        reason = Reason(
            "not_the_records_that_were_pulled",
            found=counted(records, "record"),
            accepted=f"{counted(pull.records, 'record')}, as the first line says",
            remedy=f"the file was cut off or changed: {_PULL_AGAIN}",
        )
        raise RefusedFile(content.name, reason)


def require_coverage(content: Content, pull: Pull, source: Source) -> None:
    """Raises RefusedFile if what a file covers makes no sense for its source."""
    if pull.covers is None:
        return
    by, first = pull.covers.by, pull.covers.first
    datable = [name for name, kind in source.staged_columns.items() if kind in ("date", "timestamptz")]
    if by not in datable:
        reason = Reason(
            "unknown_column_of_coverage",
            found=by,
            accepted=f"a date or time of {source.table}: {', '.join(datable)}",
            remedy="the connector must name one of these; this version of it may not fit the declaration",
        )
        raise RefusedFile(content.name, reason, place="line 1")
    if source.month_totals and first and first.day > 1:
        reason = Reason(
            "part_of_a_month",
            found=f"from {first}",
            accepted="whole months, because the file replaces them",
            remedy=f"pull from {first.replace(day=1)} on",
        )
        raise RefusedFile(content.name, reason, place="line 1")


def connector_of(content: Content) -> str | None:
    """Returns the connector that wrote a file, as far as its first line can be read; None if a person put it there.

    Raises OSError where the file cannot be read.
    """
    line = beginning(content, _LONGEST).split(b"\n", 1)[0]
    if not line.startswith(b"{"):
        return None
    try:
        record = json.loads(line)
        pull = read_pull(record) if isinstance(record, dict) else None
    except (ValueError, RecursionError):
        return None
    return pull.connector if pull else None
