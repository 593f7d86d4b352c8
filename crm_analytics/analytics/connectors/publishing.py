"""Where pulled files go: the landing place, which has a file completely or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, Protocol

from crm_analytics.analytics.connectors.errors import ConnectorError
from crm_analytics.core.settings import Settings

#: Between the dot and the ending, of files that are being written; the landing folder's scan ignores both.
_WRITING = ".pull-"


class LandingPlace(Protocol):
    """A place for files, in a folder for each source."""

    def names(self, source: str) -> list[str]:
        """Returns the names of the files in a source's folder; none if there is no such folder.

        Raises ConnectorError if it can't be listed.
        """

    def open(self, source: str, name: str) -> BinaryIO:
        """Opens a file for reading. Raises OSError if it is gone."""

    def publish(self, source: str, name: str, write: Callable[[BinaryIO], None]) -> None:
        """Puts a file there, in place of one of the same name, once `write` has written all of it.

        Raises ConnectorError if it can't be written.
        """

    def sweep(self, source: str, owner: str) -> None:
        """Removes what a killed `publish` left whose file's name begins with `owner`."""


class LocalFolder:
    """The landing folder of this machine."""

    def __init__(self, path: Path) -> None:
        """Takes the folder, which must be there.

        Raises:
            ConnectorError: if it isn't.
        """
        if not path.is_dir():
            raise ConnectorError(f"the landing folder {path} does not exist: create it, or set LANDING_DIR")
        self._path = path

    def names(self, source: str) -> list[str]:
        """Returns the names of the files in a source's folder; none if there is no such folder."""
        folder = self._path / source
        try:
            return sorted(entry.name for entry in os.scandir(folder))
        except FileNotFoundError:
            return []
        except OSError as error:
            raise ConnectorError(
                f"{folder} can't be listed ({error.strerror}): it must be a folder that this user may read and write"
            ) from error

    def open(self, source: str, name: str) -> BinaryIO:
        """Opens a file for reading. Raises OSError if it is gone."""
        return (self._path / source / name).open("rb")

    def publish(self, source: str, name: str, write: Callable[[BinaryIO], None]) -> None:
        """Writes under a name that scans ignore, then renames: a kill at any moment leaves no half file."""
        folder = self._path / source
        writing = folder / f"{_WRITING}{name}.part"
        try:
            folder.mkdir(exist_ok=True)
            with writing.open("wb") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
            writing.replace(folder / name)
            _sync(folder)
        except OSError as error:
            writing.unlink(missing_ok=True)
            raise ConnectorError(
                f"{folder / name} can't be written ({error.strerror}): give this user permission to write there, or free"
                " some space"
            ) from error

    def sweep(self, source: str, owner: str) -> None:
        """Removes what a killed `publish` left whose file's name begins with `owner`."""
        for name in self.names(source):
            if name.startswith(f"{_WRITING}{owner}"):
                (self._path / source / name).unlink(missing_ok=True)


def landing_place(config: Settings) -> LandingPlace:
    """Returns the landing place of the settings.

    Raises:
        ConnectorError: if it does not exist.
    """
    return LocalFolder(config.landing_dir)


def copy(content: BinaryIO) -> Callable[[BinaryIO], None]:
    """Returns a writer of what a file has."""
    return lambda file: shutil.copyfileobj(content, file)


def _sync(folder: Path) -> None:
    """Makes the names of a folder last through a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
