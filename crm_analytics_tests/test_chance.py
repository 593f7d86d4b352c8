"""The suite itself: nothing in it is drawn anew in every run, except in `make fuzz`."""

from __future__ import annotations

import re
from pathlib import Path

from hypothesis import settings

from crm_analytics.core.settings import PROJECT_DIR
from crm_analytics_tests import chance

UNSEEDED = re.compile(
    r"(?<![\w.])random\.(?!Random\b)[a-z]\w*\(|\bRandom\(\)|\bSystemRandom\b|\bnp\.random\b"
)
#: Draws the seed that it prints.
ALLOWED = ("chaos/__main__.py",)


def test_no_test_draws_from_a_generator_without_a_seed() -> None:
    """A failure that the next run doesn't show is not believed, and its cause stays."""
    folder = PROJECT_DIR / "crm_analytics_tests"
    found = [
        f"{path.relative_to(folder)}: {line.strip()}"
        for path in sorted(folder.rglob("*.py"))
        if path != Path(__file__) and path.relative_to(folder).as_posix() not in ALLOWED
        for line in path.read_text().splitlines()
        if UNSEEDED.search(line)
    ]
    assert found == []
    assert UNSEEDED.search("random.choice(x)") and not UNSEEDED.search("random.Random(7)")


def test_equal_names_draw_equally() -> None:
    """A test's cases depend on the seed and its own name only, not on the tests before it."""
    one, other, third = (chance.generator(name) for name in ("a", "a", "b"))
    assert [one.random() for _ in range(3)] == [other.random() for _ in range(3)]
    assert chance.generator("a").random() != third.random()


def test_hypothesis_draws_the_same_examples_in_every_run() -> None:
    """Also for a test that says nothing about its settings; and no example fails for taking long on a busy machine."""
    assert settings().derandomize == (not chance.SEED)
    assert settings().deadline is None and settings().database is None
