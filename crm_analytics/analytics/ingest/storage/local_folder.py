"""A landing folder on this machine, which people and other programs write into."""

from __future__ import annotations

import glob
import os
import stat as modes
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from operator import attrgetter
from pathlib import Path
from typing import BinaryIO, ClassVar

from crm_analytics.analytics.ingest.errors import Reason, cannot_be_read
from crm_analytics.analytics.ingest.storage.landing import (
    LandingFile,
    Listing,
    Unreadable,
    is_ignored,
    moment,
)

#: Begins the name of a file that is being published; scans ignore it.
_PUBLISHING = ".publishing-"
_FOR_ALL = modes.S_IRUSR | modes.S_IRGRP | modes.S_IROTH


@dataclass(slots=True)
class LocalFile(LandingFile):
    """A file, as its directory entry describes it."""

    #: Where it is in the file system.
    location: str
    #: Nanoseconds since 1970; when content, name or permissions last changed. A copy may set `modified_ns`, but not this.
    changed_ns: int

    etag: ClassVar[None] = None

    @property
    def content(self) -> Path:
        """See `LandingFile`."""
        return Path(self.location)

    @property
    def state(self) -> tuple[int, int, int]:
        """See `LandingFile`."""
        return self.size, self.modified_ns, self.changed_ns

    @property
    def touched_at(self) -> Sequence[datetime]:
        """See `LandingFile`."""
        return moment(self.modified_ns), moment(self.changed_ns)

    def is_unchanged(self) -> bool:
        """See `LandingFile`."""
        try:
            now = os.stat(self.location)  # noqa: PTH116 a Path costs more
        except OSError:
            return False
        return (now.st_size, now.st_mtime_ns, now.st_ctime_ns) == self.state


@dataclass(frozen=True)
class LocalFolder:
    """A folder of the file system; see `Landing`."""

    path: Path

    #: Nothing tells when a writer has closed a file.
    quiet_seconds: ClassVar[float] = 5.0

    def exists(self) -> bool:
        """See `Landing`."""
        return self.path.is_dir()

    def missing(self) -> str:
        """See `Landing`."""
        return f"the landing folder {self.path} does not exist: create it, or set LANDING_DIR"

    def prepare(self) -> None:
        """See `Landing`."""
        self.path.mkdir(parents=True, exist_ok=True)

    def scan(self) -> Listing:
        """See `Landing`."""
        return _scan(self.path)

    def find(self, name: str) -> LocalFile | None:
        """See `Landing`."""
        path = self.path / name
        try:
            status = path.stat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        return _local_file(str(path), name, status) if modes.S_ISREG(status.st_mode) else None

    def names(self, file: str | Path, source: str = "") -> list[str]:
        """See `Landing`."""
        root = self.path.resolve()
        places = [place / file for place in (Path.cwd(), root, root / source)]
        # a link inside the landing folder is a file of it
        paths = [path for place in places for path in (Path(os.path.normpath(place)), place.resolve())]
        found = [path.relative_to(root).as_posix() for path in paths if path.is_relative_to(root)]
        return list(dict.fromkeys(found))

    def below(self, folder: str) -> LocalFolder:
        """See `Landing`."""
        return LocalFolder(self.path / folder)

    def publish(self, name: str, write: Callable[[BinaryIO], None]) -> None:
        """See `Landing`. It is written under a name that scans ignore, and renamed."""
        path = self.path / name
        path.parent.mkdir(exist_ok=True)
        writing = path.with_name(f"{_PUBLISHING}{path.name}.part")
        try:
            with writing.open("wb") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
            writing.replace(path)
        except BaseException:
            writing.unlink(missing_ok=True)
            raise
        _sync(path.parent)

    def sweep(self, folder: str, beginning: str) -> None:
        """See `Landing`."""
        for left in (self.path / folder).glob(f"{_PUBLISHING}{glob.escape(beginning)}*.part"):
            left.unlink(missing_ok=True)

    @property
    def uri(self) -> str:
        """See `Landing`."""
        return self.path.as_uri()

    def __str__(self) -> str:
        return str(self.path)


def _sync(folder: Path) -> None:
    """Makes the names in a folder last through a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _local_file(location: str, relative: str, status: os.stat_result) -> LocalFile:
    return LocalFile(_name(relative), status.st_size, status.st_mtime_ns, location, status.st_ctime_ns)


def _name(relative: str) -> str:
    """Returns a path below the landing folder as in the ledger, which has bytes that are not UTF-8 as `\\xff`."""
    return relative if relative.isascii() else os.fsencode(relative).decode("utf-8", "backslashreplace")


def _scan(landing: Path) -> Listing:
    if not landing.is_dir():
        raise FileNotFoundError(LocalFolder(landing).missing())
    files: list[LocalFile] = []
    unreadable: list[Unreadable] = []

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
        unreadable.append(Unreadable(name, str(reason)))

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
                    files.append(_local_file(location, below + entry.name, status))
    files.sort(key=attrgetter("name"))
    unreadable.sort(key=attrgetter("name"))
    return Listing(files, unreadable)
