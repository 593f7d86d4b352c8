"""Unpacks gzip while it is read: all that comes after it reads the file that is inside."""

from __future__ import annotations

import gzip
import io
import os
import zlib
from dataclasses import dataclass
from typing import Any, Literal

from crm_analytics.analytics.ingest.errors import Reason, RefusedFile
from crm_analytics.analytics.ingest.storage.landing import Content

_MAGIC = b"\x1f\x8b"
#: Bytes that are read ahead: asking for smaller pieces would take longer than unpacking them.
_AHEAD = 1 << 18


def unpacked(content: Content) -> Content:
    """Returns what is in a gzip archive, and any other content as it is. Raises OSError where it cannot be read."""
    with content.open("rb") as file:
        return Unpacked(content) if file.read(len(_MAGIC)) == _MAGIC else content


def beginning(content: Content, size: int) -> bytes:
    """Returns at most so many first bytes of what is in a content, as far as they can be unpacked. Raises OSError."""
    with content.open("rb") as file:
        start = file.read(size)
    if not start.startswith(_MAGIC):
        return start
    try:
        return zlib.decompressobj(zlib.MAX_WBITS | 16).decompress(start, size)
    except zlib.error:
        return b""


@dataclass(frozen=True)
class Unpacked:
    """The content of a gzip archive, unpacked anew whenever it is opened: it needs no room, however large it is."""

    packed: Content

    @property
    def name(self) -> str:
        """See `Content`."""
        return self.packed.name

    def open(self, mode: Literal["rb"], /) -> io.BufferedReader:
        """See `Content`. Reading raises RefusedFile where the archive is cut off or damaged."""
        assert mode == "rb"
        return io.BufferedReader(_Unpacking(self.packed), _AHEAD)


class _Unpacking(io.RawIOBase):
    """Reads an archive; going back in it begins anew."""

    def __init__(self, packed: Content) -> None:
        self._name = packed.name
        self._packed = packed.open("rb")
        self._file = gzip.GzipFile(fileobj=self._packed)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._file.tell()

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        try:
            return self._file.seek(offset, whence)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise self._damaged(error) from error

    def readinto(self, buffer: Any, /) -> int:
        try:
            return self._file.readinto(buffer)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise self._damaged(error) from error

    def close(self) -> None:
        if not self.closed:
            self._file.close()
            self._packed.close()
        super().close()

    def _damaged(self, error: Exception) -> RefusedFile:
        cut_off = isinstance(error, EOFError)
        reason = Reason(
            "gzip_archive_cut_off" if cut_off else "damaged_gzip_archive",
            found=None if cut_off else str(error)[:200],
            accepted="a complete gzip archive",
            remedy="copy, export or pull the file again",
        )
        return RefusedFile(self._name, reason)
