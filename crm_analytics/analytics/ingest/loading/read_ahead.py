"""Reads small files ahead: while the database takes one file, a thread reads and encodes the next.

What is read depends only on the file and its place in the order, and both are settled before the first file is applied.
A file that changes after it was read is noticed in its turn, as one that changes while it is read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import zip_longest

from crm_analytics.analytics.ingest.loading.file_identity import IdentifiedFile
from crm_analytics.analytics.ingest.loading.staging import Encoded
from crm_analytics.analytics.ingest.reading.open_file import OpenFile


@dataclass(frozen=True)
class ReadFile:
    """A small file that was read to its end."""

    opened: OpenFile
    batches: list[Encoded]


#: Returns the file, or None if it is not small. Raises what `open_file` and `OpenFile.batches` raise.
Read = Callable[[], ReadFile | None]


@contextmanager
def read_ahead(
    items: Sequence[IdentifiedFile], read: Callable[[IdentifiedFile], ReadFile | None]
) -> Iterator[Iterator[tuple[IdentifiedFile, Read]]]:
    """Gives the files in turn, each with what gives its content; the next one is read meanwhile.

    When the context ends, at most one file is still read to its end.
    """
    with ThreadPoolExecutor(1, "reader") as pool:

        def in_turn() -> Iterator[tuple[IdentifiedFile, Read]]:
            ahead: Read | None = None
            for item, following in zip_longest(items, items[1:]):
                here = ahead or partial(read, item)
                ahead = pool.submit(read, following).result if following else None
                yield item, here

        yield in_turn()
