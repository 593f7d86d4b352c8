"""The landing folder: which files lie there, which of them are new or changed, which still grow."""

from __future__ import annotations

import hashlib
import os
import stat as modes
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from crm_analytics.analytics.ingest.errors import RefusedFile
from crm_analytics.analytics.ingest.loading import ledger
from crm_analytics.analytics.ingest.reading.source_detection import detect_source
from crm_analytics.analytics.ingest.sources.sources import SOURCES

_IGNORED_PREFIXES = (".", "~")
_IGNORED_SUFFIXES = (
    *(".part", ".partial", ".filepart", ".crdownload", ".download"),
    *(".tmp", ".temp", ".swp", ".lock", "~"),
)
_IGNORED_NAMES = {"thumbs.db", "desktop.ini"}

QUIET_SECONDS = 5.0  #: a file touched within so many seconds may still be growing: no run loads it yet


@dataclass(frozen=True)
class LandingFile:
    """A file in the landing folder, as its directory entry describes it."""

    path: Path
    name: str  #: path below the landing folder, with `/`: what the ledger calls it
    size: int  #: bytes
    modified_at: datetime  #: UTC, to the microsecond, as the ledger keeps it
    changed_at: (
        datetime  #: UTC; when content, name or rights last changed: a copy may set `modified_at`, not this
    )

    def age(self) -> float:
        """Seconds since the file was last touched. A modification time in the future says nothing."""
        now = datetime.now(UTC)
        ages = ((now - moment).total_seconds() for moment in (self.modified_at, self.changed_at))
        return min((age for age in ages if age >= 0), default=0)

    def is_unchanged(self, landing: Path) -> bool:
        """Whether the file lies there as it did when this was noted."""
        try:
            now = stat(self.path, landing)
        except OSError:
            return False
        return (now.size, now.modified_at, now.changed_at) == (self.size, self.modified_at, self.changed_at)


@dataclass(frozen=True)
class Unreadable:
    """What stands in the landing folder and is no file that can be read: no content, so no ledger entry."""

    name: str  #: path below the landing folder
    message: str  #: names it, says why, and the remedy

    @property
    def source(self) -> str | None:
        """The source in whose folder it stands; None elsewhere."""
        folder = self.name.split("/")[0]
        return folder if folder in SOURCES else None


@dataclass
class Listing:
    """What the landing folder holds, by name; hidden, temporary and lock files left out."""

    files: list[LandingFile] = field(default_factory=list)
    unreadable: list[Unreadable] = field(default_factory=list)


@dataclass(frozen=True)
class PendingFile(LandingFile):
    """A file that a load would read, or could not: `source` is None and `message` says why."""

    source: str | None
    message: str | None = None


def is_ignored(name: str) -> bool:
    """Whether a file or folder name is hidden, temporary, a lock or a partial download."""
    folded = name.casefold()
    return (
        folded.startswith(_IGNORED_PREFIXES) or folded.endswith(_IGNORED_SUFFIXES) or folded in _IGNORED_NAMES
    )


def stat(path: Path, landing: Path) -> LandingFile:
    """The directory entry of one file; `FileNotFoundError` if it is gone."""
    return _described(path, landing, path.stat())


def _described(path: Path, landing: Path, status: os.stat_result) -> LandingFile:
    modified, changed = _moment(status.st_mtime_ns), _moment(status.st_ctime_ns)
    return LandingFile(path, _name(path, landing), status.st_size, modified, changed)


def _name(path: Path, landing: Path) -> str:
    """What the ledger calls a path: bytes that are no UTF-8, which it cannot hold, as `\\xff`."""
    return os.fsencode(path.relative_to(landing).as_posix()).decode("utf-8", "backslashreplace")


def _moment(nanoseconds: int) -> datetime:
    seconds, rest = divmod(nanoseconds, 1_000_000_000)
    return datetime.fromtimestamp(seconds, UTC).replace(microsecond=rest // 1000)


def scan(landing: Path) -> Listing:
    """Every file of the landing folder and its subfolders, and what there cannot be read.

    Raises:
        FileNotFoundError: if the folder does not exist.
        OSError: if it cannot be listed.
    """
    if not landing.is_dir():
        raise FileNotFoundError(f"landing folder {landing} does not exist: create it, or set LANDING_DIR")
    listing = Listing()

    def not_listed(error: OSError) -> None:
        folder = Path(error.filename)
        if folder == landing:
            raise OSError(
                error.errno,
                f"landing folder {landing} cannot be listed ({error.strerror}): give this user the right to read it",
            )
        if not isinstance(error, FileNotFoundError):  # else removed meanwhile
            refuse(
                folder,
                f"the folder cannot be listed ({error.strerror}), so its files are not loaded; give this user the"
                " right to read it, or move it out of the landing folder",
            )

    def refuse(path: Path, why: str) -> None:
        name = _name(path, landing)
        listing.unreadable.append(Unreadable(name, f"{name}: {why}"))

    seen: set[Path] = set()
    for folder, folders, names in os.walk(landing, onerror=not_listed, followlinks=True):
        real = Path(folder).resolve()
        if real in seen:  # a link to a folder above would go round for ever
            folders.clear()
            continue
        seen.add(real)
        folders[:] = [name for name in folders if not is_ignored(name)]
        for name in names:
            if is_ignored(name):
                continue
            path = Path(folder, name)
            try:
                status = path.stat()
            except FileNotFoundError:
                if path.is_symlink():  # else removed since the folder was listed
                    refuse(
                        path,
                        f"a link to {path.readlink()}, which is not there; put that back, or remove the link",
                    )
            except OSError as error:
                refuse(path, f"cannot be read ({error.strerror}); check it and the rights of its folder")
            else:
                if not modes.S_ISREG(status.st_mode):
                    refuse(path, "no regular file but a pipe, socket or device; accepted: files; remove it")
                elif not os.access(path, os.R_OK):
                    refuse(path, "cannot be read (Permission denied); give this user the right to read it")
                else:
                    listing.files.append(_described(path, landing, status))
    listing.files.sort(key=lambda file: file.name)
    listing.unreadable.sort(key=lambda entry: entry.name)
    return listing


def fingerprint(path: Path) -> str:
    """SHA-256 of the file's content, in hexadecimal."""
    with path.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def declarations_version() -> int:
    """Changes whenever any source's declaration does: a file that none recognized is then looked at again."""
    return sum(source.version for source in SOURCES.values())


def pending(
    connection: ledger.Connection,
    landing: Path,
    *,
    only: str | None = None,
    quiet_seconds: float = 0,
    include_loaded: bool = False,
) -> list[PendingFile]:
    """Which files of the landing folder are new or changed by the ledger, unrecognized ones among them.

    Size and modification time are compared first; a known path where only the time differs is hashed, and if its
    content is known, its ledger entry gets the new time. Known content is pending where it took the place of
    other content of its path. A refused or unrecognized file is pending again only
    when its content or its source's declaration changes.

    Args:
        connection: to the analytics database.
        landing: the landing folder.
        only: leave out files of other sources (unrecognized ones are reported all the same).
        quiet_seconds: files touched within so many seconds may still be growing, and are left out.
        include_loaded: every file, not only the new and changed ones (a forced reload).

    Raises:
        FileNotFoundError: if the landing folder does not exist.
    """
    known: dict[str, list[ledger.Entry]] = {}
    for entry in ledger.entries(connection):
        known.setdefault(entry.path, []).append(entry)
    found = []
    for file in scan(landing).files:
        seen_here = known.get(file.name, [])
        current = _current_entry(connection, file, seen_here)
        source = current.source if current else None
        if (
            current is not None
            and current.declaration_version == _version(source)
            and current is _latest(seen_here, source)  # else it has come back
            and not (include_loaded and source)
        ):
            continue
        if file.age() < quiet_seconds:
            continue
        message = None
        if source is None:
            try:
                source = detect_source(file.path, landing).name
            except (RefusedFile, OSError) as error:
                message = str(error)
        if only is None or source is None or source == only:
            found.append(PendingFile(**vars(file), source=source, message=message))
    return found


def _latest(entries: Iterable[ledger.Entry], source: str | None) -> ledger.Entry:
    """What was seen last at a path, by the source or by none."""
    return max(
        (entry for entry in entries if entry.source in (source, None)), key=lambda entry: entry.first_seen_at
    )


def _version(source: str | None) -> int | None:
    if source is None:
        return declarations_version()
    return SOURCES[source].version if source in SOURCES else None


def _current_entry(
    connection: ledger.Connection, file: LandingFile, known: Iterable[ledger.Entry]
) -> ledger.Entry | None:
    """The ledger's entry for what lies at this path now, or None if its content is new."""
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
                ledger.touch(connection, entry.file_id, file.modified_at)
                return entry
    return None


def unreadable(connection: ledger.Connection, landing: Path) -> list[ledger.Entry]:
    """Ledger entries, refused or unrecognized, of files that lie in the landing folder as they were then."""
    present = [(file.name, file.size, file.modified_at) for file in scan(landing).files]
    return ledger.unreadable(ledger.entries(connection), present)


def not_loaded(connection: ledger.Connection, landing: Path) -> list[str]:
    """What stands in the landing folder and is not loaded after a run, each with the reason and the remedy."""
    if not landing.is_dir():
        return []
    found = [f"{entry.path}: {entry.message}" for entry in unreadable(connection, landing)]
    found += [entry.message for entry in scan(landing).unreadable]
    found += [
        f"{file.name}: "
        + (
            file.message
            or "it was still changing, or could not be read, when the run came to it (the run's log says which);"
            " refresh again when it has settled"
        )
        for file in pending(connection, landing)
    ]
    return found
