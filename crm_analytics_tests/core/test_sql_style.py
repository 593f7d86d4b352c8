"""Layout of the SQL files inside `$$` bodies and literals, which are plain text to sqlfluff."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from crm_analytics.core.settings import SQL_DIR

FILES = sorted(SQL_DIR.glob("*/*.sql"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_layout(path: Path) -> None:
    """Lines have at most 120 characters and are indented by fours; functions are lower case."""
    wrong = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        indent = len(line) - len(line.lstrip(" "))
        if len(line) > 120:
            wrong.append(f"line {number} has {len(line)} characters")
        if indent % 4 or "\t" in line or line != line.rstrip():
            wrong.append(f"line {number} is indented by {indent} spaces, or has tabs or blanks at its end")
        if re.search(r"\b(COALESCE|NULLIF|GREATEST|LEAST|NOW|COUNT|SUM|MIN|MAX)\(", line):
            wrong.append(f"line {number} has a function in upper case")
    assert wrong == []
