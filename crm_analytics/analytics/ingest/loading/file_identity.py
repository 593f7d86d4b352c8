"""Which content a landing file has, its place in the order of its source, and whether it was loaded already."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime
from zoneinfo import ZoneInfo

from crm_analytics.analytics.ingest.loading.known_files import KnownFiles
from crm_analytics.analytics.ingest.loading.ledger import Content, Entry, Order
from crm_analytics.analytics.ingest.reading.pull_line import connector_of
from crm_analytics.analytics.ingest.reading.source_detection import export_time
from crm_analytics.analytics.ingest.storage.landing import LandingFile, fingerprint

#: What is at a path now comes after whatever was there before.
_LAST = datetime.max.replace(tzinfo=UTC)


@dataclass(frozen=True)
class IdentifiedFile:
    """A file to be read: its content with its export time in the order, and its ledger entry if it has one."""

    file: LandingFile
    content: Content
    entry: Entry | None
    #: Its modification time is before that of the content which it replaces.
    dated_back: bool

    @property
    def order(self) -> Order:
        """Its place in the order."""
        return (self.content.exported_at, self.content.path, _LAST)


def read_content(file: LandingFile, timezone: ZoneInfo) -> Content:
    """Reads what identifies a file's content. Raises OSError where the file cannot be read."""
    content = file.content
    exported_at, exported_at_from = export_time(file, timezone)
    return Content(
        file.name,
        fingerprint(content),
        file.size,
        file.modified_at,
        file.etag,
        exported_at,
        exported_at_from,
        connector_of(content),
    )


def identify(file: LandingFile, timezone: ZoneInfo, known: KnownFiles) -> IdentifiedFile:
    """Finds the file's place in the order among those of its source.

    The export time is frozen when a content is first seen, until other content of its path was loaded after it. It is
    never before that of the content which it replaces: contents of one path apply as they came.
    """
    content = read_content(file, timezone)
    here = known.at(content.path)
    entry = next((entry for entry in here if entry.sha256 == content.sha256), None)
    placed = [other for other in here if other.counts_in_order]
    own = content.exported_at
    if entry is not None and all(other.first_seen_at <= entry.first_seen_at for other in placed):
        own = entry.exported_at
    exported_at = max([own, *(other.exported_at for other in placed)])
    returned = entry is not None and (
        entry.exported_at != exported_at or any(other.first_seen_at > entry.first_seen_at for other in here)
    )
    content = replace(content, exported_at=exported_at, returned=returned)
    return IdentifiedFile(file, content, entry, own < exported_at)


def find_loaded_copy(item: IdentifiedFile, known: KnownFiles) -> Entry | None:
    """Returns the loaded entry with the same content, after which nothing else was exported.

    None where the file has to be read.
    """
    content, entry = item.content, item.entry
    if entry is not None and entry.status == "loaded" and not content.returned:
        return None
    twins = [
        other
        for other in known.with_content(content.sha256)
        if other.status == "loaded" and other is not entry
    ]
    if not twins:
        return None
    twin = max(twins, key=lambda other: other.order)
    if any(other.sha256 != content.sha256 for other in known.between(twin.order, item.order)):
        return None
    return twin
