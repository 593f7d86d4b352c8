"""Which source a landing file belongs to, and when it was exported."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from pathlib import Path
from zoneinfo import ZoneInfo

from crm_analytics.analytics.ingest.errors import UnrecognizedFile
from crm_analytics.analytics.ingest.reading.locating import best_match, read_beginnings
from crm_analytics.analytics.ingest.sources.declaration import Source
from crm_analytics.analytics.ingest.sources.registry import SOURCES

_EXPORT_TIME = re.compile(
    r"(?<!\d)(\d{4})-(\d{2})-(\d{2})T(\d{2})[_:-](\d{2})[_:-](\d{2})(?:\.(\d{1,9}))?(Z)?", re.IGNORECASE
)


def export_time(path: Path, timezone: ZoneInfo) -> tuple[datetime, str]:
    """When the file was exported, in UTC, and where that is from: `name` or `mtime`.

    A full date-time in the file's name (with `Z` it is UTC, else business time), else the modification time.
    """
    for match in _EXPORT_TIME.finditer(path.name):
        *parts, fraction, utc = match.groups()
        try:
            year, month, day, hour, minute, second = (int(part) for part in parts)
            microsecond = int((fraction or "0").ljust(6, "0")[:6])
            zone_ = UTC if utc else timezone
            named = datetime(year, month, day, hour, minute, second, microsecond, zone_)
        except ValueError:
            continue
        return named.astimezone(UTC), "name"
    return datetime.fromtimestamp(path.stat().st_mtime, UTC), "mtime"


def recognize(path: Path, landing: Path) -> Source:
    """The source of a landing file: by its folder, else by its name, else by its header.

    Raises UnrecognizedFile where none or several sources fit, RefusedFile where the file cannot be read.
    """
    folders = path.relative_to(landing).parts[:-1] if path.is_relative_to(landing) else ()
    if folders:
        if folders[0] in SOURCES:
            return SOURCES[folders[0]]
        raise UnrecognizedFile(
            f"{'/'.join(folders)}/{path.name}: the folder {folders[0]!r} is no source; accepted: "
            f"{', '.join(SOURCES)}; move the file into one of these, or directly into the landing folder"
        )
    named = [
        source
        for source in SOURCES.values()
        if any(re.search(pattern, _words(path.stem)) for pattern in source.filename_patterns)
    ]
    if len(named) == 1:
        return named[0]
    fitting = _fitting_sources(path)
    if len(fitting) == 1:
        return fitting[0]
    accepted = f"move it into the folder of its source ({', '.join(SOURCES)})"
    if not fitting:
        raise UnrecognizedFile(
            f"{path.name}: neither its name nor its header tells the source of this file; {accepted}"
        )
    raise UnrecognizedFile(
        f"{path.name}: its header fits several sources ({', '.join(source.name for source in fitting)}); {accepted}"
    )


def _words(stem: str) -> str:
    """A file's name as words, for its patterns."""
    return re.sub(r"[\W_]+", " ", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", stem)).casefold().strip()


def _fitting_sources(path: Path) -> list[Source]:
    """The sources whose header the file has, with none of the headers that are foreign to them."""
    beginnings = read_beginnings(path)
    found = ((source, best_match(source, beginnings)) for source in SOURCES.values())
    return [
        source
        for source, located in found
        if located and located.match.complete and not located.match.folded & source.foreign_headers
    ]
