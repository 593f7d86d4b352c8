"""Words counts for people: the noun agrees with the number."""


def counted(number: int, noun: str) -> str:
    """Returns a count with its noun, e.g. `0 files`, `1 file`, `1,200 files`; the plural must be regular."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
