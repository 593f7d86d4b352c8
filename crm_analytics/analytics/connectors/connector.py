"""What a connector is: its name, the settings it needs, the window it asks for, and the pages that it reads.

To add a service, write a module beside this one with a subclass of `RecordConnector` (records become one file of JSON
Lines; `pull.py` does the rest) or of `FileConnector` (finished files, such as the attachments of mails), and a line in
`registry.py`. Add its settings to `core/settings.py`: a secret is a `SecretStr`, and the address of the service a setting
with a default, so that tests can put a server of their own in its place. All requests go through `client.Client`, which
waits, tries again, and keeps secrets out of every text. Its asset, its hourly pulls and `crm-analytics pull` then follow
by themselves.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, timedelta
from typing import TYPE_CHECKING, Any

from pydantic import SecretStr

from crm_analytics.analytics.connectors.errors import ConnectorError
from crm_analytics.core.settings import Settings

if TYPE_CHECKING:
    from crm_analytics.analytics.connectors.client import Client, Clock

Record = Mapping[str, Any]


@dataclass(frozen=True)
class Window:
    """Days that a pull asks for, local dates in the business timezone; None is an open end."""

    first: date | None
    last: date | None

    def __str__(self) -> str:
        """Names the days as the file's name does."""
        return f"{self.first or 'open'}_{self.last or 'open'}"

    @property
    def words(self) -> str:
        """The days as people read them."""
        if self.first is None and self.last is None:
            return "everything"
        if self.last is None:
            return f"{self.first} and later"
        return f"{self.first} to {self.last}" if self.first else f"until {self.last}"


@dataclass(frozen=True)
class Covers:
    """Which rows a file may prove vanished: those whose column `by` has a local date in the window."""

    by: str
    window: Window

    def as_dict(self) -> dict[str, str | None]:
        """Returns it as the first line of a pulled file has it."""
        first, last = self.window.first, self.window.last
        return {
            "by": self.by,
            "from": None if first is None else first.isoformat(),
            "to": None if last is None else last.isoformat(),
        }


@dataclass(frozen=True)
class Page:
    """Records that came together, and from where a pull goes on that ends after them.

    `resume` is whatever JSON the connector needs; it gets it back. None: this page can't be gone on from, so that a
    killed pull begins at the one before. `pass_no` counts the readings of the same list from the start.
    """

    records: Sequence[Record]
    resume: Mapping[str, Any] | None = None
    pass_no: int = 1


@dataclass(frozen=True)
class Added:
    """What a page brought."""

    #: Records that neither this pass nor the one before had.
    new: int
    #: Records that this pass had already.
    repeated: int
    #: Records of the pass before that this one hasn't had yet.
    left: int


@dataclass(frozen=True)
class Reading:
    """How a reading of all pages ended: what it covers (None proves nothing), and what people should know about it."""

    covers: Covers | None
    note: str | None = None


#: Yields pages, is sent what each of them brought, and returns how it ended.
Pages = Generator[Page, Added, Reading]


@dataclass(frozen=True, kw_only=True)
class Connector(ABC):
    """A service that is asked for data, off until its settings are there."""

    #: Also the name of its asset, `landing/<name>`, and the beginning of its files' names.
    name: str
    #: What people call it.
    title: str
    #: What is pulled, in a sentence or two, for the UI.
    description: str
    #: The sources whose folders it fills.
    sources: tuple[str, ...]
    #: Fields of Settings; all of them must be set.
    needs: tuple[str, ...]

    def missing(self, config: Settings) -> list[str]:
        """Returns the variables that still have to be set; none if the connector is on."""
        return [name.upper() for name in self.needs if not getattr(config, name)]

    def require_on(self, config: Settings) -> None:
        """Raises ConnectorError if a variable is not set."""
        if missing := self.missing(config):
            raise ConnectorError(
                f"{self.name} is off: set {' and '.join(missing)} (docs/connectors.md says where to find it)"
            )


@dataclass(frozen=True, kw_only=True)
class RecordConnector(Connector):
    """A service that answers with records: a pull is one file of JSON Lines with exactly these records."""

    #: Days before today from which on a pull asks by default.
    days_back: int
    #: Whether the service takes a last day. If not, a window is open at its end.
    takes_last_day: bool = True
    #: What tells a record from the others, as a key of the record.
    key: str

    @property
    def source(self) -> str:
        """The source that its files are of."""
        return self.sources[0]

    def recent(self, today: date) -> Window:
        """Returns the window of the hourly pulls."""
        return Window(today - timedelta(days=self.days_back), today if self.takes_last_day else None)

    def everything(self, config: Settings, today: date) -> Window:
        """Returns the window of the weekly pulls: from the first month that is computed."""
        return Window(config.start_month, today if self.takes_last_day else None)

    def identity(self, record: Record) -> str:
        """Returns what tells a record from the others. Raises ConnectorError for a record without it."""
        value = record.get(self.key)
        if value is None or value == "":
            raise ConnectorError(
                f"{self.name}: a record has no {self.key}; found the fields {', '.join(sorted(record))[:200]}; nothing was"
                " written. The service may have changed its answer"
            )
        return str(value)

    @abstractmethod
    def client(self, config: Settings, clock: Clock) -> Client:
        """Returns the client of the service, with its address, credentials and pace."""

    @abstractmethod
    def pages(self, client: Client, window: Window, resume: Mapping[str, Any] | None) -> Pages:
        """Reads all pages of a window.

        Args:
            client: what `client` returned.
            window: the days asked for.
            resume: of the last page that a killed pull has kept; None at the beginning.

        Raises:
            ConnectorError: if the service refuses, or answers with something else.
            TransientError: if it does so after all attempts, or cannot be reached.
        """


@dataclass(frozen=True)
class FetchedFile:
    """A finished file: its name, from which alone it is known as fetched, and how its bytes are read."""

    #: Of `Connector.sources`: its folder.
    source: str
    name: str
    content: Callable[[], bytes] = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class FileConnector(Connector):
    """A service that has finished files, each of which is fetched once."""

    @abstractmethod
    def files(
        self, config: Settings, known: Callable[[str, str], bool], clock: Clock
    ) -> Iterator[FetchedFile]:
        """Yields the files that are not known yet.

        Args:
            config: the settings.
            known: says whether a source's folder has a file of this name.
            clock: of all waiting.
        """


def secret(config: Settings, name: str) -> str:
    """Returns a secret setting's text, without the white space that comes along when people paste it."""
    value = getattr(config, name)
    assert isinstance(value, SecretStr)
    return value.get_secret_value().strip()
