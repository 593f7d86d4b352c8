"""The landing folder: which files are in it, which of them are new or changed, and which are still growing."""

from __future__ import annotations

import hashlib
import os
import stat as modes
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from operator import attrgetter
from pathlib import Path

from crm_analytics.analytics.ingest.errors import Reason, RefusedFile, cannot_be_read
from crm_analytics.analytics.ingest.loading import ledger
from crm_analytics.analytics.ingest.reading.source_detection import detect_source
from crm_analytics.analytics.ingest.sources.registry import SOURCES

_IGNORED_PREFIXES = (".", "~")
_IGNORED_SUFFIXES = (
    *(".part", ".partial", ".filepart", ".crdownload", ".download"),
    *(".tmp", ".temp", ".swp", ".lock", "~"),
)
_FOR_ALL = modes.S_IRUSR | modes.S_IRGRP | modes.S_IROTH
_IGNORED_NAMES = {"thumbs.db", "desktop.ini"}

#: A file touched within so many seconds may still be growing: no run loads it yet.
QUIET_SECONDS = 5.0


@dataclass(slots=True)
class LandingFile:
    """A file in the landing folder, as its directory entry describes it; not frozen, because there are thousands of them."""

    #: Where it is in the file system.
    location: str
    #: Path below the landing folder, with `/`, as in the ledger.
    name: str
    #: Bytes.
    size: int
    #: Nanoseconds since 1970: numbers cost the garbage collector nothing, unlike a `stat_result`.
    modified_ns: int
    changed_ns: int

    @property
    def path(self) -> Path:
        """Where it is in the file system."""
        return Path(self.location)

    @property
    def modified_at(self) -> datetime:
        """UTC, to the microsecond, as in the ledger."""
        return _moment(self.modified_ns)

    @property
    def changed_at(self) -> datetime:
        """UTC; when content, name or permissions last changed. A copy may set `modified_at`, but not this."""
        return _moment(self.changed_ns)

    def age(self) -> float:
        """Returns the seconds since the file was last touched; a time in the future tells nothing."""
        now = datetime.now(UTC)
        ages = ((now - moment).total_seconds() for moment in (self.modified_at, self.changed_at))
        return min((age for age in ages if age >= 0), default=0)

    def is_unchanged(self) -> bool:
        """Returns whether the file is still as it was when this was noted."""
        try:
            now = os.stat(self.location)  # noqa: PTH116 a Path costs more
        except OSError:
            return False
        noted = (self.size, self.modified_ns, self.changed_ns)
        return (now.st_size, now.st_mtime_ns, now.st_ctime_ns) == noted


@dataclass(frozen=True)
class Unreadable:
    """An entry of the landing folder that cannot be read as a file: without content, it has no ledger entry."""

    #: Path below the landing folder.
    name: str
    #: The reason and the remedy.
    message: str

    @property
    def source(self) -> str | None:
        """The source in whose folder it is; None elsewhere."""
        folder = self.name.split("/")[0]
        return folder if folder in SOURCES else None


@dataclass
class Listing:
    """The entries of the landing folder, by name; without hidden, temporary and lock files."""

    files: list[LandingFile] = field(default_factory=list)
    unreadable: list[Unreadable] = field(default_factory=list)


@dataclass(slots=True)
class PendingFile(LandingFile):
    """A file that a load would read; or one of no known source, with the reason as `message`."""

    source: str | None
    message: str | None = None

    @classmethod
    def of(cls, file: LandingFile, source: str | None, message: str | None = None) -> PendingFile:
        """Returns the file as one of a source, or of none."""
        return cls(file.location, file.name, file.size, file.modified_ns, file.changed_ns, source, message)


def is_ignored(name: str) -> bool:
    """Returns whether a file or folder is hidden, temporary, a lock or a partial download."""
    folded = name.casefold()
    return (
        folded.startswith(_IGNORED_PREFIXES) or folded.endswith(_IGNORED_SUFFIXES) or folded in _IGNORED_NAMES
    )


def stat(path: Path, landing: Path) -> LandingFile:
    """Reads the directory entry of one file. Raises FileNotFoundError if it is gone."""
    return _landing_file(str(path), path.relative_to(landing).as_posix(), path.stat())


def _landing_file(location: str, relative: str, status: os.stat_result) -> LandingFile:
    return LandingFile(location, _name(relative), status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def _name(relative: str) -> str:
    """Returns a path below the landing folder as in the ledger, which has bytes that are not UTF-8 as `\\xff`."""
    return relative if relative.isascii() else os.fsencode(relative).decode("utf-8", "backslashreplace")


def _moment(nanoseconds: int) -> datetime:
    seconds, rest = divmod(nanoseconds, 1_000_000_000)
    return datetime.fromtimestamp(seconds, UTC).replace(microsecond=rest // 1000)


def missing(landing: Path) -> str:
    """Returns the sentence for a landing folder that does not exist."""
    return f"the landing folder {landing} does not exist: create it, or set LANDING_DIR"


def scan(landing: Path) -> Listing:
    """Lists every file of the landing folder and its subfolders, and what there cannot be read.

    Raises:
        FileNotFoundError: if the folder does not exist.
        OSError: if it cannot be listed.
    """
    if not landing.is_dir():
        raise FileNotFoundError(missing(landing))
    listing = Listing()

    def not_listed(error: OSError) -> None:
        folder = Path(error.filename)
        if folder == landing:
            raise OSError(
                error.errno,
                f"the landing folder {landing} cannot be listed ({error.strerror}): give this user permission to read it",
            )
        # a folder that is gone was removed meanwhile
        if not isinstance(error, FileNotFoundError):
            remedy = (
                "its files are not loaded: give this user permission to read the folder, or move it out of the landing"
                " folder"
            )
            refuse(folder, Reason("folder_cannot_be_listed", found=error.strerror, remedy=remedy))

    def refuse(path: Path, reason: Reason) -> None:
        name = _name(path.relative_to(landing).as_posix())
        listing.unreadable.append(Unreadable(name, str(reason)))

    seen: set[Path] = set()
    waiting = [str(landing)]
    while waiting:
        folder = waiting.pop()
        try:
            real = Path(folder).resolve()
            # a link to a folder above would lead around forever
            if real in seen:
                continue
            seen.add(real)
            with os.scandir(folder) as found:
                entries = [entry for entry in found if not is_ignored(entry.name)]
        except OSError as error:
            not_listed(error)
            continue
        below = "" if folder == str(landing) else Path(folder).relative_to(landing).as_posix() + "/"
        while entries:
            # an entry keeps what it knows of its file, which thousands of files needn't
            entry = entries.pop()
            location = entry.path
            try:
                # a Path for each of thousands of files would cost more than looking at it
                if entry.is_dir():
                    waiting.append(location)
                    continue
                status = entry.stat()
            except FileNotFoundError:
                path = Path(location)
                # anything but a link was removed since the folder was listed
                if path.is_symlink():
                    remedy = "put back what it links to, or remove the link"
                    refuse(path, Reason("broken_link", found=str(path.readlink()), remedy=remedy))
            except OSError as error:
                refuse(Path(location), cannot_be_read(error))
            else:
                if not modes.S_ISREG(status.st_mode):
                    reason = Reason("pipe_socket_or_device", accepted="files", remedy="remove it")
                    refuse(Path(location), reason)
                # what everybody may read need not be tried
                elif status.st_mode & _FOR_ALL != _FOR_ALL and not os.access(location, os.R_OK):
                    refuse(Path(location), cannot_be_read(PermissionError("Permission denied")))
                else:
                    listing.files.append(_landing_file(location, below + entry.name, status))
    listing.files.sort(key=attrgetter("name"))
    listing.unreadable.sort(key=attrgetter("name"))
    return listing


def fingerprint(path: Path) -> str:
    """Returns the SHA-256 of the file's content, in hexadecimal."""
    with path.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def declarations_version() -> int:
    """Returns a number that changes with any declaration, so that unrecognized files are then looked at again."""
    return sum(source.version for source in SOURCES.values())


def pending(
    connection: ledger.Connection,
    landing: Path,
    *,
    listing: Listing | None = None,
    only: str | None = None,
    quiet_seconds: float = 0,
    include_loaded: bool = False,
    read_only: bool = False,
) -> list[PendingFile]:
    """Lists the files of the landing folder that are new or changed since the ledger saw them, unrecognized ones too.

    Compares size and modification time first. Where only the time differs, the file is hashed, and if its content is
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
    """
    settled = ledger.seen_last(connection, {} if include_loaded else _versions(), declarations_version())
    files = [
        file
        for file in (listing or scan(landing)).files
        if (file.name, file.size, file.modified_ns // 1000) not in settled
    ]
    known: dict[str, list[ledger.Entry]] = {}
    for entry in ledger.entries_at(connection, [file.name for file in files]):
        known.setdefault(entry.path, []).append(entry)
    found = []
    for file in files:
        seen_here = known.get(file.name, [])
        current = _current_entry(file, seen_here)
        if current is not None and current.modified_at != file.modified_at and not read_only:
            ledger.touch(connection, current.file_id, file.modified_at)
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
                source = detect_source(file.path, landing).name
            except RefusedFile as error:
                message = error.why
            except OSError as error:
                message = str(cannot_be_read(error))
        if only is None or source is None or source == only:
            found.append(PendingFile.of(file, source, message))
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
        if (entry.size_bytes, entry.modified_at) == (file.size, file.modified_at):
            return entry
    same_size = [entry for entry in newest_first if entry.size_bytes == file.size]
    if same_size:
        try:
            sha256 = fingerprint(file.path)
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


def not_loaded(connection: ledger.Connection, landing: Path) -> list[str]:
    """Lists what is in the landing folder and not loaded after a run, each with the reason and the remedy."""
    if not landing.is_dir():
        return []
    listing = scan(landing)
    changing = "changed, or could not be read, when the run came to it (see its log); refresh again when it has settled"
    found = [(entry.path, entry.message) for entry in unreadable(connection, listing)]
    found += [(entry.name, entry.message) for entry in listing.unreadable]
    found += [(file.name, file.message or changing) for file in pending(connection, landing, listing=listing)]
    return [f"{name}: {message}" for name, message in found]
