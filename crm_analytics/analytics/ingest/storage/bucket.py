"""A landing folder in object storage: the objects below a prefix of a bucket, of Amazon's S3 or a server with its API.

An object appears whole or not at all, so nothing has to settle. It is copied into a temporary file before it is read,
because a reader goes over a file several times and workbooks need any place in it: so there is one request for a reading,
memory doesn't grow with the object, and the network can't fail in the middle of a table. The request is pinned to the
etag of the listing: an object that was replaced meanwhile is not read at all. See
docs/decisions/landing-on-object-storage.md.
"""

from __future__ import annotations

import errno
import io
import os
import posixpath
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cached_property
from operator import attrgetter
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, BinaryIO, ClassVar, Literal

from crm_analytics.analytics.ingest.storage.landing import (
    LandingFile,
    LandingUnavailable,
    LandingUnreachable,
    Listing,
    is_ignored,
)

if TYPE_CHECKING:
    from obstore import ObjectMeta
    from obstore.store import S3Store

#: Objects that a listing asks for at once; servers give no more.
PAGE = 1000
#: Bytes that are written to the temporary file at once.
BLOCK = 4 << 20
#: Seconds to wait for a connection, and for the next bytes of an answer. An answer as a whole may take as long as a large
#: object needs.
CONNECT_TIMEOUT, READ_TIMEOUT, ANSWER_TIMEOUT = 5, 10, 24 * 3600
#: Seconds before the first and the last repetition of a request that failed.
FIRST_PAUSE, LONGEST_PAUSE, REPETITIONS = 0.1, 5, 10

_NOT_INSTALLED = (
    "object storage needs a library that is not installed: in the checkout, run"
    " pip install --constraint constraints.txt --editable '.[s3]'"
)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_STATUS = re.compile(r"status code: (\d{3})")
_CODE = re.compile(r"<Code>(\w{1,60})</Code>")
_BAD_PATH = re.compile(r'Path "([^"]*)"')
#: What the library asks for credentials where none are set: the machine that it runs on.
_MACHINE = ("169.254.169.254", "169.254.170.2", "/latest/api/token")


@dataclass(slots=True)
class BucketFile(LandingFile):
    """An object, as the listing describes it."""

    bucket: Bucket
    #: Its etag.
    version: str | None

    @property
    def etag(self) -> str | None:
        """See `LandingFile`."""
        return self.version

    @property
    def content(self) -> ObjectContent:
        """See `LandingFile`."""
        return ObjectContent(self)

    @property
    def state(self) -> tuple[object, ...]:
        """See `LandingFile`."""
        return self.size, self.modified_ns, self.version

    def is_unchanged(self) -> bool:
        """See `LandingFile`."""
        now = self.bucket.find(self.name)
        if now is None or self.version is None:
            return now is not None and now.state == self.state
        # a listing may tell the time to the millisecond, and the object itself only to the second
        return (now.size, now.version) == (self.size, self.version)


class ObjectContent:
    """The content of an object, of the version that was listed; it is fetched when it is first read."""

    def __init__(self, file: BucketFile) -> None:
        self._file = file
        self._copy: io.BufferedRandom | None = None

    @property
    def name(self) -> str:
        """See `Content`."""
        return posixpath.basename(self._file.name)

    def open(self, mode: Literal["rb"], /) -> io.BufferedReader:
        """See `Content`. Raises FileNotFoundError if the object is gone, and OSError if it was replaced."""
        assert mode == "rb"
        if self._copy is None:
            self._copy = self._file.bucket.copy(self._file)
        return io.BufferedReader(_CopyReader(self._copy))


class _CopyReader(io.RawIOBase):
    """Reads a copy from a place of its own. The copy has no name, so that it goes with the process, however that ends."""

    def __init__(self, copy: io.BufferedRandom) -> None:
        self._copy = copy
        self._place = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._place

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._place}.get(whence)
        if start is None:
            start = os.fstat(self._copy.fileno()).st_size
        if start + offset < 0:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        self._place = start + offset
        return self._place

    def readinto(self, buffer: Any, /) -> int:
        data = os.pread(self._copy.fileno(), len(buffer), self._place)
        buffer[: len(data)] = data
        self._place += len(data)
        return len(data)


@dataclass(frozen=True)
class Bucket:
    """The objects below a prefix of a bucket; see `Landing`."""

    #: s3://bucket/prefix, without a slash at its end.
    url: str
    #: Credentials, region and endpoint, as in `Settings.object_storage`. What isn't here may come from the environment.
    access: Mapping[str, str] = field(repr=False)
    #: Seconds for which a request that fails is repeated.
    patience: float

    #: An object appears whole.
    quiet_seconds: ClassVar[float] = 0.0

    def exists(self) -> bool:
        """See `Landing`."""
        return True

    def missing(self) -> str:
        """See `Landing`."""
        return f"the bucket of {self} does not exist{self._where}: create it, or set LANDING_URL"

    def prepare(self) -> None:
        """See `Landing`."""

    def scan(self) -> Listing:
        """See `Landing`. An empty prefix is an empty folder: a bucket has no folders."""
        files: list[BucketFile] = []
        ignored: dict[str, bool] = {}
        with self._asking() as obstore:
            for page in obstore.list(self._store, chunk_size=PAGE):
                for found in page:
                    folder, _, last = found["path"].rpartition("/")
                    if folder not in ignored:
                        ignored[folder] = any(map(is_ignored, folder.split("/")))
                    if last and not ignored[folder] and not is_ignored(last):
                        files.append(self._file(found["path"], found))
        if not all(file.size for file in files):
            files = _without_markers(files)
        files.sort(key=attrgetter("name"))
        return Listing(files)

    def find(self, name: str) -> BucketFile | None:
        """See `Landing`."""
        with self._asking() as obstore:
            try:
                return self._file(name, obstore.head(self._store, name))
            # no object may have such a name
            except (FileNotFoundError, ValueError):
                return None

    def names(self, file: str | Path, source: str = "") -> list[str]:
        """See `Landing`."""
        text = str(file)
        if "://" in text:
            return [text.removeprefix(f"{self.url}/")] if text.startswith(f"{self.url}/") else []
        name = posixpath.normpath(text)
        if name.startswith(("/", "..")):
            return []
        return [name, f"{source}/{name}"] if source else [name]

    def below(self, folder: str) -> Bucket:
        """See `Landing`."""
        return Bucket(f"{self.url}/{folder}", self.access, self.patience)

    def publish(self, name: str, write: Callable[[BinaryIO], None]) -> None:
        """See `Landing`. It is written into a temporary file, because a request that fails is sent again."""
        with tempfile.TemporaryFile() as file:
            write(file)
            file.seek(0)
            with self._asking() as obstore:
                try:
                    obstore.put(self._store, name, file)
                except FileNotFoundError:
                    raise LandingUnavailable(self.missing()) from None

    def sweep(self, folder: str, beginning: str) -> None:
        """See `Landing`. Of an object that didn't become whole there is nothing."""

    @property
    def uri(self) -> str:
        """See `Landing`."""
        return self.url

    def __str__(self) -> str:
        return self.url

    def copy(self, file: BucketFile) -> io.BufferedRandom:
        """Returns a copy of the object in a temporary file without a name.

        Raises:
            FileNotFoundError: if the object is gone.
            OSError: if it is not the version that was listed, or must not be read, or there is no room for a copy.
            LandingUnavailable: if it cannot be asked for.
        """
        copy = tempfile.TemporaryFile()  # noqa: SIM115 whoever reads it last closes it
        try:
            with self._asking() as obstore:
                errors = obstore.exceptions
                try:
                    answer = obstore.get(
                        self._store, file.name, options={"if_match": file.version} if file.version else None
                    )
                    for block in answer.stream(min_chunk_size=BLOCK):
                        copy.write(block)
                except errors.PreconditionError:
                    raise OSError(errno.ESTALE, "it was replaced") from None
                except (errors.PermissionDeniedError, errors.UnauthenticatedError):
                    raise PermissionError(errno.EACCES, os.strerror(errno.EACCES)) from None
                except FileNotFoundError:
                    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), file.name) from None
            copy.flush()
            if copy.tell() != file.size:
                raise OSError(errno.ESTALE, "it was replaced")
        except BaseException:
            copy.close()
            raise
        return copy

    def _file(self, name: str, found: ObjectMeta) -> BucketFile:
        modified = (found["last_modified"] - _EPOCH) // _MICROSECOND * 1000
        return BucketFile(name, found["size"], modified, self, found["e_tag"])

    @cached_property
    def _store(self) -> S3Store:
        from obstore.store import S3Store

        bucket, _, prefix = self.url.removeprefix("s3://").partition("/")
        endpoint = self.access.get("aws_endpoint_url", "")
        config: Any = dict(self.access)
        return S3Store(
            bucket,
            prefix=prefix or None,
            config=config,
            client_options={
                "connect_timeout": timedelta(seconds=CONNECT_TIMEOUT),
                "read_timeout": timedelta(seconds=READ_TIMEOUT),
                "timeout": timedelta(seconds=ANSWER_TIMEOUT),
                # never without saying so: the requests carry signatures, the answers the exports
                **({"allow_http": True} if endpoint.startswith("http://") else {}),
            },
            retry_config={
                "max_retries": REPETITIONS,
                "retry_timeout": timedelta(seconds=self.patience),
                "backoff": {
                    "init_backoff": timedelta(seconds=FIRST_PAUSE),
                    "max_backoff": timedelta(seconds=LONGEST_PAUSE),
                },
            },
        )

    @property
    def _where(self) -> str:
        endpoint = self.access.get("aws_endpoint_url")
        return f" at {endpoint}" if endpoint else ""

    @contextmanager
    def _asking(self) -> Iterator[ModuleType]:
        """Gives the library, and turns its errors into a sentence each: theirs have a page of details of the request."""
        try:
            import obstore
            import obstore.exceptions
        except ImportError:
            raise LandingUnavailable(_NOT_INSTALLED) from None
        try:
            yield obstore
        except obstore.exceptions.BaseError as error:
            # without the cause, which would be printed with it
            raise self._explained(str(error)) from None

    def _explained(self, told: str) -> LandingUnavailable:
        status, code, path = (
            found[1] if found else "" for found in (p.search(told) for p in (_STATUS, _CODE, _BAD_PATH))
        )
        cause = code or (f"HTTP status {status}" if status else "no answer")
        if any(place in told for place in _MACHINE):
            return LandingUnavailable(
                f"no credentials for {self}: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or give this machine a role"
            )
        if code == "NoSuchBucket" or (status == "404" and not code):
            return LandingUnavailable(self.missing())
        if status in ("301", "307") or "redirect" in told or code == "AuthorizationHeaderMalformed":
            return LandingUnavailable(
                f"the bucket of {self} is in another region{self._where}: set AWS_REGION"
            )
        if status in ("401", "403"):
            return LandingUnavailable(
                f"{self}{self._where} refuses these credentials ({cause}): set AWS_ACCESS_KEY_ID and"
                " AWS_SECRET_ACCESS_KEY to those of a user who may list this bucket and read its objects"
                " (with connectors, write them, too)"
            )
        if "invalid path" in told:
            return LandingUnavailable(
                f"{self} has an object whose name is no path ({path!r}: an empty or dotted part, or a control"
                " character), so its objects cannot be listed: rename or remove that one"
            )
        return LandingUnreachable(
            f"{self}{self._where} cannot be reached ({cause}): check the network, AWS_ENDPOINT_URL and the server"
        )


def _without_markers(files: list[BucketFile]) -> list[BucketFile]:
    """Leaves out the empty objects that programs make for folders, such as `may/`; the library cuts off their slash.

    That is every empty object that others lie below, or whose name has no suffix, as an export's has.
    """
    with_content = {file.name for file in files if file.size}
    folders = {folder for file in files for folder in _folders(file.name)}

    def is_marker(file: BucketFile) -> bool:
        is_suffixless = "." not in posixpath.basename(file.name)
        return not file.size and (is_suffixless or file.name in folders or file.name in with_content)

    return [file for file in files if not is_marker(file)]


def _folders(name: str) -> Iterator[str]:
    while "/" in name:
        name = name.rpartition("/")[0]
        yield name
