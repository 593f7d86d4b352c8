"""How counts are worded."""

import pytest

from crm_analytics.core.wording import counted


@pytest.mark.parametrize(
    ("number", "text"), [(0, "0 files"), (1, "1 file"), (2, "2 files"), (1200, "1,200 files")]
)
def test_noun_agrees_with_the_count(number: int, text: str) -> None:
    """Only 1 takes the singular; thousands are grouped."""
    assert counted(number, "file") == text
