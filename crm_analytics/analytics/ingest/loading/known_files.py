"""The ledger's entries of one source while a run loads its files: by path, by content, and in their order."""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Collection
from operator import attrgetter

from crm_analytics.analytics.ingest.loading import ledger
from crm_analytics.analytics.ingest.loading.ledger import Connection, Entry, Order, Shape

_order = attrgetter("order")


class KnownFiles:
    """What the ledger knows of a source's files, and of files that no source recognizes.

    It is read once per run, so that a file costs the same however many were loaded before. The run holds the lock of its
    source, so nothing but the run itself changes these entries, and tells `remember`.
    """

    def __init__(self, connection: Connection, source: str) -> None:
        self._connection, self._source = connection, source
        self._by_id: dict[int, Entry] = {}
        self._at: dict[str, dict[int, Entry]] = {}
        self._with: dict[str, dict[int, Entry]] = {}
        self._shapes: dict[Shape, set[int]] | None = None
        for entry in ledger.entries_of(connection, source):
            self._index(entry)
        self._placed = sorted((entry for entry in self.all() if entry.counts_in_order), key=_order)

    def _index(self, entry: Entry) -> None:
        self._by_id[entry.file_id] = entry
        self._at.setdefault(entry.path, {})[entry.file_id] = entry
        self._with.setdefault(entry.sha256, {})[entry.file_id] = entry

    def remember(self, entry: Entry, shape: Shape | None = None) -> None:
        """Takes note of an entry that was written; `shape` is that of a loaded file."""
        if entry.file_id in self._by_id:
            self._placed = [other for other in self._placed if other.file_id != entry.file_id]
        self._index(entry)
        if entry.counts_in_order:
            insort(self._placed, entry, key=_order)
        if self._shapes is not None:
            for files in self._shapes.values():
                files.discard(entry.file_id)
            if shape is not None:
                self._shapes.setdefault(shape, set()).add(entry.file_id)

    def all(self) -> Collection[Entry]:
        """Returns all entries: those of the ledger, oldest first, then those that were remembered."""
        return self._by_id.values()

    def at(self, path: str) -> Collection[Entry]:
        """Returns the entries of a path."""
        return self._at.get(path, {}).values()

    def with_content(self, sha256: str) -> Collection[Entry]:
        """Returns the entries of a content."""
        return self._with.get(sha256, {}).values()

    def is_before(self, file_id: int, order: Order) -> bool:
        """Returns whether an entry counts in the order and comes before this place."""
        entry = self._by_id.get(file_id)
        return entry is not None and entry.counts_in_order and entry.order < order

    def after(self, order: Order) -> list[Entry]:
        """Returns the entries that count in the order and come after this place, in order."""
        return self._placed[bisect_right(self._placed, order, key=_order) :]

    def between(self, first: Order, last: Order) -> list[Entry]:
        """Returns the entries that count in the order and come after the first place and before the last, in order."""
        start = bisect_right(self._placed, first, key=_order)
        return self._placed[start : bisect_left(self._placed, last, key=_order)]

    def shapes_without(self, file_id: int) -> list[Shape]:
        """Returns the different shapes of loaded files other than this one."""
        if self._shapes is None:
            self._shapes = ledger.shapes(self._connection, self._source)
        return [shape for shape, files in self._shapes.items() if len(files) > (file_id in files)]
