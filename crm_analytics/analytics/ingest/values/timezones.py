"""Local times of one time zone to UTC and back, for whole arrays at once."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import lru_cache
from zoneinfo import ZoneInfo

import numpy as np
import numpy.typing as npt

MICROSECONDS = 1_000_000
DAY = 86_400 * MICROSECONDS
_FIRST = int(datetime(1999, 12, 1, tzinfo=UTC).timestamp())
_LAST = int(datetime(2101, 2, 1, tzinfo=UTC).timestamp())

Int64 = npt.NDArray[np.int64]


class Zone:
    """A time zone's offsets between 1999-12-01 and 2101-02-01 as arrays (moments are microseconds)."""

    def __init__(self, timezone: ZoneInfo) -> None:
        def offset(second: int) -> int:
            shift = datetime.fromtimestamp(second, timezone).utcoffset()
            assert shift is not None
            return int(shift.total_seconds())

        moments, offsets = [], [offset(_FIRST)]
        for day in range(_FIRST, _LAST, 86_400):
            before, after = offset(day), offset(day + 86_400)
            if before == after:
                continue
            low, high = day, day + 86_400  # the offset changes in (low, high]
            while high - low > 1:
                middle = (low + high) // 2
                low, high = (middle, high) if offset(middle) == before else (low, middle)
            moments.append(high)
            offsets.append(after)
        self.timezone = timezone
        self._moments = np.array(moments, dtype=np.int64) * MICROSECONDS
        self._offsets = np.array(offsets, dtype=np.int64) * MICROSECONDS
        earlier, later = self._offsets[:-1], self._offsets[1:]
        self._odd_from = self._moments + np.minimum(earlier, later)
        self._odd_to = self._moments + np.maximum(earlier, later)

    def to_utc(self, local: Int64) -> tuple[Int64, npt.NDArray[np.bool_]]:
        """Local wall times as UTC, and which of them the clock shows twice or never.

        Until a transition is over the offset before it counts: a time shown twice is the first of the two,
        a time that is skipped moves forward by the length of the gap (`inputs.md`, DST row; this is
        Python's own reading with `fold=0`).
        """
        index = np.searchsorted(self._odd_to, local, side="right")
        odd = np.zeros(len(local), dtype=np.bool_)
        inside = index < len(self._odd_from)
        odd[inside] = local[inside] >= self._odd_from[index[inside]]
        return local - self._offsets[index], odd

    def local_days(self, utc: Int64) -> Int64:
        """The local date of UTC moments, as days since 1970-01-01."""
        index = np.searchsorted(self._moments, utc, side="right")
        return (utc + self._offsets[index]) // DAY


@lru_cache(maxsize=8)
def zone(timezone: ZoneInfo) -> Zone:
    """The (kept) table of a time zone."""
    return Zone(timezone)
