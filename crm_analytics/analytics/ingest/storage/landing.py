"""What a landing folder is to all that reads it, wherever its files are: the interface, and what a listing tells of a file.

Nothing outside this package asks where the files are. A new kind of place is a `Landing` with its own `LandingFile`, chosen
in `places.py`.
"""

from __future__ import annotations

import hashlib
import io
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO, Literal, Protocol

from crm_analytics.analytics.ingest.sources.registry import SOURCES

_IGNORED_PREFIXES = (".", "~")
_IGNORED_SUFFIXES = (
    *(".part", ".partial", ".filepart", ".crdownload", ".download"),
    *(".tmp", ".temp", ".swp", ".lock", "~"),
)
_IGNORED_NAMES = {"thumbs.db", "desktop.ini"}


class LandingUnavailable(Exception):
    """Raised where nothing in a landing folder can be listed or read; the message says why, and the remedy."""


class LandingUnreachable(LandingUnavailable):
    """Raised where that may pass by itself: a network or a server that doesn't answer."""


class Content(Protocol):
    """Something that can be read from its beginning, as often as needed; a `Path` is one."""

    @property
    def name(self) -> str:
        """The file's name, without folders."""

    def open(self, mode: Literal["rb"], /) -> io.BufferedReader:
        """Opens the content, from which any place can be read. Raises OSError, or LandingUnavailable."""


@dataclass(slots=True)
class LandingFile(ABC):
    """A file of a landing folder, as its listing describes it; not frozen, because there are thousands of them."""

    #: Path below the landing folder, with `/`, as in the ledger.
    name: str
    #: Bytes.
    size: int
    #: Nanoseconds since 1970: numbers cost the garbage collector nothing, unlike a `stat_result`.
    modified_ns: int

    @property
    @abstractmethod
    def content(self) -> Content:
        """What is in it."""

    @property
    @abstractmethod
    def etag(self) -> str | None:
        """The storage's name of this version of the file: another version has another. None if it has no such name."""

    @property
    @abstractmethod
    def state(self) -> tuple[object, ...]:
        """What was noted of the file, which differs for every version of it that can be told apart."""

    @abstractmethod
    def is_unchanged(self) -> bool:
        """Returns whether the file is still as it was when this was noted. Raises LandingUnavailable."""

    @property
    def modified_at(self) -> datetime:
        """UTC, to the microsecond, as in the ledger."""
        return moment(self.modified_ns)

    @property
    def touched_at(self) -> Sequence[datetime]:
        """UTC; when anything about the file changed."""
        return (self.modified_at,)

    def age(self) -> float:
        """Returns the seconds since the file was last touched; a time in the future tells nothing."""
        now = datetime.now(UTC)
        ages = ((now - touched).total_seconds() for touched in self.touched_at)
        return min((age for age in ages if age >= 0), default=0)


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

    files: Sequence[LandingFile] = ()
    unreadable: list[Unreadable] = field(default_factory=list)


class Landing(Protocol):
    """A place where exports land: a folder for each source, or the files directly."""

    @property
    def quiet_seconds(self) -> float:
        """A file touched within so many seconds may still be growing: no run loads it yet."""

    def exists(self) -> bool:
        """Returns whether it is there, as far as that can be told without asking anybody."""

    def missing(self) -> str:
        """Returns the sentence for one that is not there."""

    def prepare(self) -> None:
        """Makes it, where that is ours to do."""

    def scan(self) -> Listing:
        """Lists every file in it and its subfolders, and what there cannot be read.

        Raises:
            FileNotFoundError: if it does not exist.
            OSError: if it cannot be listed.
            LandingUnavailable: the same, of what is not on this machine.
        """

    def find(self, name: str) -> LandingFile | None:
        """Returns the file at a path below it, or None if there is none. Raises OSError, or LandingUnavailable."""

    def names(self, file: str | Path, source: str = "") -> list[str]:
        """Returns the paths below it that a person may mean by this, the likeliest first.

        A name may begin where people are, at the landing folder, or at the source's folder in it.
        """

    def below(self, folder: str) -> Landing:
        """Returns one of its subfolders as a landing folder."""

    def publish(self, name: str, write: Callable[[BinaryIO], None]) -> None:
        """Puts a file at a path below it once `write` has written all of it: at any moment it is there whole, or not at all.

        Raises OSError, or LandingUnavailable.
        """

    def sweep(self, folder: str, beginning: str) -> None:
        """Removes what a killed `publish` left of files in a subfolder whose names begin so.

        Raises OSError, or LandingUnavailable.
        """

    @property
    def uri(self) -> str:
        """Its address, without a slash at its end."""

    def __str__(self) -> str:
        """Returns what people call it."""


def is_ignored(name: str) -> bool:
    """Returns whether a file or folder is hidden, temporary, a lock or a partial download."""
    folded = name.casefold()
    return (
        folded.startswith(_IGNORED_PREFIXES) or folded.endswith(_IGNORED_SUFFIXES) or folded in _IGNORED_NAMES
    )


def fingerprint(content: Content) -> str:
    """Returns the SHA-256 of a content, in hexadecimal: the name of the content, wherever it is."""
    with content.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_larger(content: Content, size: int) -> bool:
    """Returns whether a content has more bytes than this; reads no more of a packed one than that takes."""
    with content.open("rb") as file:
        file.seek(size)
        return bool(file.read(1))


def moment(nanoseconds: int) -> datetime:
    """Returns nanoseconds since 1970 as a time in UTC, to the microsecond."""
    seconds, rest = divmod(nanoseconds, 1_000_000_000)
    return datetime.fromtimestamp(seconds, UTC).replace(microsecond=rest // 1000)
