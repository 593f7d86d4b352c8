"""The spool of a pull: a file outside of the landing folder that keeps its pages until the last one has come.

SQLite gives all that is needed: a page and the place after it are kept together or not at all, a record that comes
twice counts once, and a year of records needs no more memory than a page.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import simplejson

from crm_analytics.analytics.connectors.connector import (
    Added,
    Page,
    Record,
)

SUFFIX = ".spool"
#: A pull whose last page is older begins anew: too much may have moved for going on in the middle of a list.
OLDEST = timedelta(minutes=15)

_TABLES = """
CREATE TABLE IF NOT EXISTS pull (one INTEGER PRIMARY KEY CHECK (one = 1), began TEXT NOT NULL, kept TEXT NOT NULL,
    pages INTEGER NOT NULL, resume TEXT);
CREATE TABLE IF NOT EXISTS records (identity TEXT PRIMARY KEY, body TEXT NOT NULL, pass_no INTEGER NOT NULL)
    WITHOUT ROWID;
"""


class Spool:
    """The pages of one pull that have come so far; the pull holds its lock, so nobody else writes here."""

    def __init__(self, path: Path, now: datetime) -> None:
        """Opens what a killed pull left, or begins anew.

        Args:
            path: of the spool; its folder is made if need be.
            now: UTC.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        try:
            self._open(now)
            if now - self._kept > OLDEST:
                self.discard()
                self._open(now)
        except sqlite3.DatabaseError:
            # after a power cut it may be damaged, and nothing is lost with it but time
            self.discard()
            self._open(now)

    def _open(self, now: datetime) -> None:
        # records are personal data
        os.close(os.open(self._path, os.O_CREAT | os.O_RDWR, 0o600))
        self._database = sqlite3.connect(self._path, isolation_level=None)
        # a page is written once a second; a power cut may cost the whole spool
        self._database.execute("PRAGMA synchronous = OFF")
        self._database.executescript(_TABLES)
        self._database.execute(
            "INSERT INTO pull VALUES (1, ?1, ?1, 0, NULL) ON CONFLICT DO NOTHING", [now.isoformat()]
        )
        began, kept, self.pages, resume = self._database.execute(
            "SELECT began, kept, pages, resume FROM pull"
        ).fetchone()
        #: When the first page was asked for, UTC.
        self.began = datetime.fromisoformat(began)
        self._kept = datetime.fromisoformat(kept)
        #: Where to go on; None at the beginning.
        self.resume: Mapping[str, Any] | None = json.loads(resume) if resume else None
        if self.resume is None:
            # pages that can't be gone on from come again
            self._database.execute("DELETE FROM records")
            self._database.execute("UPDATE pull SET pages = 0, began = ?", [now.isoformat()])
            self.pages, self.began = 0, now
        #: Different records by the pass that brought them last.
        self._counts = Counter(
            dict(self._database.execute("SELECT pass_no, count(*) FROM records GROUP BY pass_no"))
        )

    def add(self, page: Page, identity: Callable[[Record], str], now: datetime) -> Added:
        """Keeps a page that came now (UTC); of a record that was there before, what came later counts."""
        rows = [(identity(record), _text(record), page.pass_no) for record in page.records]
        new = repeated = 0
        counts = Counter(self._counts)
        with self._database as database:
            database.execute("BEGIN IMMEDIATE")
            for row in rows:
                before = database.execute(
                    "SELECT pass_no FROM records WHERE identity = ?", row[:1]
                ).fetchone()
                new += before is None or before[0] < page.pass_no - 1
                repeated += before == (page.pass_no,)
                if before is not None:
                    counts[before[0]] -= 1
                counts[page.pass_no] += 1
                database.execute("INSERT OR REPLACE INTO records VALUES (?, ?, ?)", row)
            database.execute("UPDATE pull SET pages = pages + 1, kept = ?", [now.isoformat()])
            if page.resume is not None:
                database.execute("UPDATE pull SET resume = ?", [json.dumps(page.resume)])
        self._counts = counts
        self.pages += 1
        return Added(new, repeated, counts[page.pass_no - 1])

    @property
    def records(self) -> int:
        """How many different records there are."""
        return self._counts.total()

    def lines(self) -> Iterator[bytes]:
        """Yields the records as lines of JSON, in the order of what tells them apart."""
        for (body,) in self._database.execute("SELECT body FROM records ORDER BY identity"):
            yield body.encode() + b"\n"

    def sha256(self) -> str:
        """Returns the hash of all lines, by which a pull knows that nothing has changed."""
        digest = hashlib.sha256()
        for line in self.lines():
            digest.update(line)
        return digest.hexdigest()

    def close(self) -> None:
        """Closes the file and leaves it for the pull that goes on."""
        self._database.close()

    def discard(self) -> None:
        """Removes the spool."""
        self.close()
        remove(self._path)


def remove(path: Path) -> None:
    """Removes a spool's files."""
    for suffix in ("", "-journal", "-wal", "-shm"):
        Path(f"{path}{suffix}").unlink(missing_ok=True)


def _text(record: Record) -> str:
    """Returns a record as JSON with its numbers as the service wrote them: a price stays what it is, to the last zero."""
    return simplejson.dumps(record, use_decimal=True, separators=(",", ":"))
