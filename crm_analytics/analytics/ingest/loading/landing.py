"""The landing folder and the ledger: which files are new or changed, which still grow, and which no source recognizes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from crm_analytics.analytics.ingest.errors import RefusedFile, cannot_be_read
from crm_analytics.analytics.ingest.loading import ledger
from crm_analytics.analytics.ingest.reading.source_detection import detect_source
from crm_analytics.analytics.ingest.sources.registry import SOURCES
from crm_analytics.analytics.ingest.storage.landing import LandingFile, Listing, fingerprint
from crm_analytics.analytics.ingest.storage.places import Place, landing_at


@dataclass(slots=True)
class PendingFile:
    """A file that a load would read; or one of no known source, with the reason as `message`."""

    file: LandingFile
    source: str | None
    message: str | None = None

    @property
    def name(self) -> str:
        """Path below the landing folder."""
        return self.file.name


def scan(landing: Place) -> Listing:
    """Lists every file of the landing folder, and what there cannot be read; see `Landing.scan`."""
    return landing_at(landing).scan()


def declarations_version() -> int:
    """Returns a number that changes with any declaration, so that unrecognized files are then looked at again."""
    return sum(source.version for source in SOURCES.values())


def pending(
    connection: ledger.Connection,
    landing: Place,
    *,
    listing: Listing | None = None,
    only: str | None = None,
    quiet_seconds: float = 0,
    include_loaded: bool = False,
    read_only: bool = False,
) -> list[PendingFile]:
    """Lists the files of the landing folder that are new or changed since the ledger saw them, unrecognized ones too.

    Compares size, modification time and etag first. Where only the size is the same, the file is hashed, and if its content is
    known, its ledger entry gets the new time. Known content is pending where it replaced other content of its path. A
    refused or unrecognized file is pending again only when its content or its source's declaration changes.

    Args:
        connection: to the analytics database.
        landing: the landing folder.
        listing: what `scan` found there, if that is known.
        only: leaves out files of other sources, but not unrecognized ones.
        quiet_seconds: leaves out files touched within so many seconds, which may still be growing.
        include_loaded: lists every file, not only new and changed ones, for a forced reload.
        read_only: leaves the new time of known content out of the ledger, so that it is hashed again next time.

    Raises:
        FileNotFoundError: if the landing folder does not exist.
        LandingUnavailable: if it is not on this machine, and does not answer as it should.
    """
    settled = ledger.seen_last(connection, {} if include_loaded else _versions(), declarations_version())
    files = [
        file
        for file in (listing or scan(landing)).files
        if (file.name, file.size, file.modified_ns // 1000, file.etag) not in settled
    ]
    known: dict[str, list[ledger.Entry]] = {}
    for entry in ledger.entries_at(connection, [file.name for file in files]):
        known.setdefault(entry.path, []).append(entry)
    found = []
    for file in files:
        seen_here = known.get(file.name, [])
        current = _current_entry(file, seen_here)
        if (
            current is not None
            and (current.modified_at, current.etag) != (file.modified_at, file.etag)
            and not read_only
        ):
            ledger.touch(connection, current.file_id, file.modified_at, file.etag)
        source = current.source if current else None
        if (
            current is not None
            and current.declaration_version == _version(source)
            # otherwise it has come back
            and current is _latest(seen_here, source)
            and not (include_loaded and source)
        ):
            continue
        if file.age() < quiet_seconds:
            continue
        message = None
        if source is None:
            try:
                source = detect_source(file).name
            except RefusedFile as error:
                message = error.why
            except OSError as error:
                message = str(cannot_be_read(error))
        if only is None or source is None or source == only:
            found.append(PendingFile(file, source, message))
    return found


def _latest(entries: Iterable[ledger.Entry], source: str | None) -> ledger.Entry:
    """Returns the entry seen last at a path, of the source or of none."""
    return max(
        (entry for entry in entries if entry.source in (source, None)), key=lambda entry: entry.first_seen_at
    )


def _versions() -> dict[str, int]:
    return {source.name: source.version for source in SOURCES.values()}


def _version(source: str | None) -> int | None:
    return declarations_version() if source is None else _versions().get(source)


def _current_entry(file: LandingFile, known: Iterable[ledger.Entry]) -> ledger.Entry | None:
    """Returns the ledger's entry for what is at this path now, or None if its content is new."""
    newest_first = sorted(known, key=lambda entry: entry.first_seen_at, reverse=True)
    for entry in newest_first:
        if (entry.size_bytes, entry.modified_at, entry.etag) == (file.size, file.modified_at, file.etag):
            return entry
    same_size = [entry for entry in newest_first if entry.size_bytes == file.size]
    if same_size:
        try:
            sha256 = fingerprint(file.content)
        except OSError:
            return None
        for entry in same_size:
            if entry.sha256 == sha256:
                return entry
    return None


def unreadable(connection: ledger.Connection, listing: Listing) -> list[ledger.Entry]:
    """Lists the refused and unrecognized ledger entries whose files are still in the landing folder, unchanged."""
    present = {file.name: file for file in listing.files}
    return [
        entry
        for entry in ledger.entries(connection)
        if entry.status in ("refused", "unrecognized")
        and entry.path in present
        and _current_entry(present[entry.path], [entry])
    ]


def not_loaded(connection: ledger.Connection, landing: Place) -> list[str]:
    """Lists what is in the landing folder and not loaded after a run, each with the reason and the remedy."""
    if not landing_at(landing).exists():
        return []
    listing = scan(landing)
    changing = "changed, or could not be read, when the run came to it (see its log); refresh again when it has settled"
    found = [(entry.path, entry.message) for entry in unreadable(connection, listing)]
    found += [(entry.name, entry.message) for entry in listing.unreadable]
    found += [(file.name, file.message or changing) for file in pending(connection, landing, listing=listing)]
    return [f"{name}: {message}" for name, message in found]
