"""Detects which source a landing file belongs to, and when it was exported."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from pathlib import Path
from zoneinfo import ZoneInfo

from crm_analytics.analytics.ingest.errors import Reason, UnrecognizedFile
from crm_analytics.analytics.ingest.reading.header import ENGLISH, Beginnings, best_match, read_beginnings
from crm_analytics.analytics.ingest.sources.declaration import Source
from crm_analytics.analytics.ingest.sources.registry import SOURCES

_EXPORT_TIME = re.compile(
    r"(?<!\d)(\d{4})-(\d{2})-(\d{2})T(\d{2})[_:-](\d{2})[_:-](\d{2})(?:\.(\d{1,9}))?(Z)?", re.IGNORECASE
)


def export_time(path: Path, timezone: ZoneInfo) -> tuple[datetime, str]:
    """Returns when the file was exported, in UTC, and whether its `name` or its `mtime` tells.

    A full date-time in the file's name counts first (with `Z` it is UTC, otherwise business time), then the
    modification time.
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


def detect_source(path: Path, landing: Path) -> Source:
    """Returns the source of a landing file: by its folder, or else its name, or else its header.

    Raises UnrecognizedFile if no source or several sources fit, and RefusedFile if the file cannot be read.
    """
    sources = ", ".join(SOURCES)
    folders = path.relative_to(landing).parts[:-1] if path.is_relative_to(landing) else ()
    if folders:
        if folders[0] in SOURCES:
            return SOURCES[folders[0]]
        remedy = "move the file into one of these, or directly into the landing folder"
        reason = Reason("unknown_source_folder", found=folders[0], accepted=sources, remedy=remedy)
        raise UnrecognizedFile("/".join((*folders, path.name)), reason)
    named = [
        source
        for source in SOURCES.values()
        if any(re.search(pattern, _words(path.stem)) for pattern in source.filename_patterns)
    ]
    if len(named) == 1:
        return named[0]
    beginnings = read_beginnings(path)
    fitting = _fitting_sources(beginnings)
    if len(fitting) == 1:
        return fitting[0]
    remedy = f"move it into the folder of its source ({sources})"
    if not fitting:
        found = beginnings.header_row
        reason = Reason(
            "neither_name_nor_header_tells_the_source", found=found, remedy=f"{remedy}, or {ENGLISH}"
        )
    else:
        found = ", ".join(source.name for source in fitting)
        reason = Reason("header_fits_several_sources", found=found, remedy=remedy)
    raise UnrecognizedFile(path.name, reason)


def _words(stem: str) -> str:
    """Returns a file's name as words, for the sources' patterns."""
    return re.sub(r"[\W_]+", " ", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", stem)).casefold().strip()


def _fitting_sources(beginnings: Beginnings) -> list[Source]:
    """Returns the sources whose header the file has, without headers that are foreign to them."""
    found = ((source, best_match(source, beginnings)) for source in SOURCES.values())
    return [
        source
        for source, located in found
        if located and located.match.complete and not located.match.folded & source.foreign_headers
    ]
