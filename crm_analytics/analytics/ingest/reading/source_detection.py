"""Detects which source a landing file belongs to, and when it was exported."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from pathlib import PurePosixPath
from zoneinfo import ZoneInfo

from crm_analytics.analytics.ingest.errors import Reason, UnrecognizedFile
from crm_analytics.analytics.ingest.reading.header import (
    ENGLISH,
    Beginnings,
    Located,
    best_match,
    read_beginnings,
    why_unfit,
)
from crm_analytics.analytics.ingest.sources.declaration import Source
from crm_analytics.analytics.ingest.sources.registry import SOURCES
from crm_analytics.analytics.ingest.storage.landing import LandingFile

_EXPORT_TIME = re.compile(
    r"(?<!\d)(\d{4})-(\d{2})-(\d{2})T(\d{2})[_:-](\d{2})[_:-](\d{2})(?:\.(\d{1,9}))?(Z)?", re.IGNORECASE
)


def export_time(file: LandingFile, timezone: ZoneInfo) -> tuple[datetime, str]:
    """Returns when the file was exported, in UTC, and whether its `name` or its `mtime` tells.

    A full date-time in the file's name counts first (with `Z` it is UTC, otherwise business time), then the
    modification time.
    """
    for match in _EXPORT_TIME.finditer(PurePosixPath(file.name).name):
        *parts, fraction, utc = match.groups()
        try:
            year, month, day, hour, minute, second = (int(part) for part in parts)
            microsecond = int((fraction or "0").ljust(6, "0")[:6])
            zone_ = UTC if utc else timezone
            named = datetime(year, month, day, hour, minute, second, microsecond, zone_)
        except ValueError:
            continue
        return named.astimezone(UTC), "name"
    return file.modified_at, "mtime"


def detect_source(file: LandingFile) -> Source:
    """Returns the source of a landing file: its folder's, or else the one that its header identifies.

    A header that fits a source without identifying it is enough where the file's name tells the source. Whether the
    header of a file in a source's folder fits is not decided here, but where the file is opened.

    Raises UnrecognizedFile if no source or several sources can be meant, and RefusedFile if the file cannot be read.
    """
    *folders, name = file.name.split("/")
    if folders:
        if folders[0] in SOURCES:
            return SOURCES[folders[0]]
        remedy = "move the file into one of these, or directly into the landing folder"
        reason = Reason("unknown_source_folder", found=folders[0], accepted=", ".join(SOURCES), remedy=remedy)
        raise UnrecognizedFile(file.name, reason)
    beginnings = read_beginnings(file.content)
    headers = {name: best_match(source, beginnings) for name, source in SOURCES.items()}
    fitting = {name: header for name, header in headers.items() if header and header.fits}
    named = _named(name)
    meant = [name for name, header in fitting.items() if header.evidence.identifies]
    meant = meant or [name for name in fitting if name in named]
    if len(meant) == 1:
        return SOURCES[meant[0]]
    raise UnrecognizedFile(name, *_why_unrecognized(beginnings, headers, named, meant))


def _named(name: str) -> list[str]:
    """Returns the sources that the file's name tells."""
    words = (
        re.sub(r"[\W_]+", " ", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", PurePosixPath(name).stem))
        .casefold()
        .strip()
    )
    return [
        source.name
        for source in SOURCES.values()
        if any(re.search(pattern, words) for pattern in source.filename_patterns)
    ]


def _why_unrecognized(
    beginnings: Beginnings, headers: dict[str, Located | None], named: list[str], meant: list[str]
) -> list[Reason]:
    """Returns why none of the sources can be taken: of those named, or else of those whose columns the file has."""
    remedy = f"move it into the folder of its source ({', '.join(SOURCES)})"
    if meant:
        return [Reason("header_fits_several_sources", found=", ".join(meant), remedy=remedy)]
    if named:
        reasons = [
            Reason("name_tells_this_source_but_the_header_does_not_fit", found=", ".join(named)),
            *(reason for name in named for reason in why_unfit(SOURCES[name], beginnings, headers[name])),
        ]
        return list(dict.fromkeys(reasons))
    similar = [header for header in headers.values() if header and not header.match.missing]
    possible = [header.evidence.source.title for header in similar if header.fits]
    others = [header.evidence for header in similar if header.evidence.of_another_kind]
    if others and not possible:
        return [evidence.refusal() for evidence in others]
    accepted = None
    if possible:
        titles = " or ".join(possible)
        accepted = f"a name that tells the source, or headers that only {titles} have; the columns alone could be any list's"
    if not similar:
        remedy = f"{remedy}, or {ENGLISH}"
    found = beginnings.header_row
    return [Reason("neither_name_nor_header_tells_the_source", found=found, accepted=accepted, remedy=remedy)]
