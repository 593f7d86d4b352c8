"""Only the declarations name a source: the code that reads and loads files must serve any of them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from crm_analytics.analytics import ingest
from crm_analytics.analytics.ingest.sources.registry import SOURCES

INGEST = Path(ingest.__path__[0])
MODULES = [path.relative_to(INGEST) for path in sorted(INGEST.rglob("*.py")) if path.parent.name != "sources"]
#: Words that the loader needs for itself, though keys of sources have them too.
GENERAL = {"month", "source", "segment"}
#: Names, tables, dates and keys of the sources; none may occur in code, SQL, messages or comments.
NAMES = {
    name
    for source in SOURCES.values()
    for name in (source.name, source.table, source.date_column, *source.key.columns, source.key.alternate)
    if name and name not in GENERAL
}


def names_in(text: str) -> set[str]:
    """Returns the names that occur in the text as words of their own."""
    return {name for name in NAMES if re.search(rf"(?<![\w.]){re.escape(name)}(?!\w)", text)}


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_no_module_names_a_source(module: Path) -> None:
    """A rule for one source in the loader would be missing where the source is declared, and in the next source."""
    assert names_in((INGEST / module).read_text()) == set()


def test_names_would_be_found() -> None:
    """The search finds a name in an identifier, a string, SQL and prose."""
    assert names_in('if source.name == "jobs":') == {"jobs"}
    assert names_in("SELECT FROM raw.google_spend t") == {"raw.google_spend"}
    assert names_in("the calls of a day, by call_id") == {"calls", "call_id"}
    assert names_in("calls_per_day = recalls") == set()
