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
from crm_analytics.analytics.ingest.loading.staging import Encoded, encode_whole
from crm_analytics.analytics.ingest.reading.csv_records import PIECE
from crm_analytics.analytics.ingest.reading.open_file import OpenFile

#: Bytes of the largest file that is read ahead; two such files are in memory at once.
SMALL = PIECE


@dataclass(frozen=True)
class ReadFile:
    """A small file that was read to its end."""

    opened: OpenFile
    batches: list[Encoded]


#: Returns the file, or None if it is not small. Raises what `open_file` and `OpenFile.batches` raise.
Read = Callable[[], ReadFile | None]


def read_small(item: IdentifiedFile, open_it: Callable[[IdentifiedFile], OpenFile]) -> ReadFile | None:
    """Reads a file if it is small."""
    if item.file.path.stat().st_size > SMALL:
        return None
    opened = open_it(item)
    return ReadFile(opened, encode_whole(opened))


@contextmanager
def read_ahead(
    items: Sequence[IdentifiedFile], open_it: Callable[[IdentifiedFile], OpenFile]
) -> Iterator[Iterator[tuple[IdentifiedFile, Read]]]:
    """Gives the files in turn, each with its reading; the next one is read meanwhile.

    Nothing is read any more after the end of the context.
    """
    with ThreadPoolExecutor(1, "reader") as pool:

        def in_turn() -> Iterator[tuple[IdentifiedFile, Read]]:
            read: Read | None = None
            for item, following in zip_longest(items, items[1:]):
                here = read or partial(read_small, item, open_it)
                read = pool.submit(read_small, following, open_it).result if following else None
                yield item, here

        yield in_turn()
