"""Tells which texts of a column match a pattern, be they a hundred or a million."""

from __future__ import annotations

import re

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

#: pyarrow compiles a pattern for each column, in the time in which Python, which keeps it, matches so many texts.
FEW = 300


def are_whole(texts: pa.Array, pattern: str) -> npt.NDArray[np.bool_]:
    """Returns which of the texts, none of them NULL, match a pattern from beginning to end.

    The pattern must mean the same to pyarrow (RE2) and Python: `^...$`, with nothing but ASCII in it, and neither `\\d`,
    `\\w` nor `.`.
    """
    if len(texts) > FEW:
        matched = pc.match_substring_regex(texts, pattern)
        return np.array(matched.to_numpy(zero_copy_only=False))
    whole = re.compile(pattern).fullmatch
    return np.fromiter((whole(text) is not None for text in texts.to_pylist()), np.bool_, len(texts))


def have_only(texts: pa.Array, first: str, last: str) -> bool:
    """Returns whether every text has characters, and all of them are in a range of ASCII; much quicker than a pattern."""
    _, places, data = texts.buffers()
    if not len(texts) or data is None:
        return False
    ends = np.frombuffer(places, np.int32)[texts.offset : texts.offset + len(texts) + 1]
    characters = np.frombuffer(data, np.uint8)[ends[0] : ends[-1]]
    return bool(
        (ends[1:] > ends[:-1]).all() and characters.min() >= ord(first) and characters.max() <= ord(last)
    )
