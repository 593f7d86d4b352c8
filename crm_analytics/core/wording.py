"""Words counts and lists for people."""

from __future__ import annotations

from collections.abc import Sequence


def counted(number: int, noun: str) -> str:
    """Returns a count with its noun, e.g. `0 files`, `1 file`, `1,200 files`; the plural must be regular."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def listed(items: Sequence[object], most: int = 5) -> str:
    """Returns the first items with commas, and an ellipsis if there are more."""
    return ", ".join(map(str, items[:most])) + (", …" if len(items) > most else "")
