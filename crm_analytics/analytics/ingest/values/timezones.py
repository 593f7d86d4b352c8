"""Converts whole arrays between local times of one time zone and UTC."""

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
#: Seconds between looks at a zone's offset, which no zone changes twice within less: the shortest while between two
#: changes of these years is a week (Boa Vista in October 2000).
_STEP = 6 * 86_400

Int64 = npt.NDArray[np.int64]


class Zone:
    """A time zone's offsets from 1999-12-01 to 2101-02-01, as arrays. Times are microseconds since 1970."""

    def __init__(self, timezone: ZoneInfo) -> None:
        def offset(second: int) -> int:
            shift = datetime.fromtimestamp(second, timezone).utcoffset()
            assert shift is not None
            return int(shift.total_seconds())

        changes, offsets = [], [offset(_FIRST)]
        for end in range(_FIRST + _STEP, _LAST + _STEP, _STEP):
            before, after = offsets[-1], offset(end)
            if before == after:
                continue
            # The offset changes in (low, high].
            low, high = end - _STEP, end
            while high - low > 1:
                middle = (low + high) // 2
                low, high = (middle, high) if offset(middle) == before else (low, middle)
            changes.append(high)
            offsets.append(after)
        self.timezone = timezone
        self._changes = np.array(changes, dtype=np.int64) * MICROSECONDS
        self._offsets = np.array(offsets, dtype=np.int64) * MICROSECONDS
        earlier, later = self._offsets[:-1], self._offsets[1:]
        self._ambiguous_from = self._changes + np.minimum(earlier, later)
        self._ambiguous_to = self._changes + np.maximum(earlier, later)

    def to_utc(self, local: Int64) -> tuple[Int64, npt.NDArray[np.bool_]]:
        """Returns local wall times as UTC, and which of them the clock shows twice or skips.

        The offset before a change holds until the change is over, as in Python with `fold=0`: a time shown twice is
        the first of the two, and a skipped time moves forward by the gap (docs/decisions/business-timezone.md).
        """
        index = np.searchsorted(self._ambiguous_to, local, side="right")
        ambiguous = np.zeros(len(local), dtype=np.bool_)
        inside = index < len(self._ambiguous_from)
        ambiguous[inside] = local[inside] >= self._ambiguous_from[index[inside]]
        return local - self._offsets[index], ambiguous

    def local_days(self, utc: Int64) -> Int64:
        """Returns the local dates of UTC times, as days since 1970-01-01."""
        index = np.searchsorted(self._changes, utc, side="right")
        return (utc + self._offsets[index]) // DAY


@lru_cache(maxsize=8)
def zone(timezone: ZoneInfo) -> Zone:
    """Returns a time zone's table, kept once it is made."""
    return Zone(timezone)
