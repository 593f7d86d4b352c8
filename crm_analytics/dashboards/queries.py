"""The dashboards' SQL: every query of every dashboard is a file in sql/grafana/."""

from __future__ import annotations

from crm_analytics.core.settings import SQL_DIR

FOLDER = SQL_DIR / "grafana"


def query(name: str, **words: str) -> str:
    """Returns the text of sql/grafana/<name>.sql with each `{word}` replaced by its value, a column name.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if a word doesn't occur in the file, or its value isn't a plain name.
    """
    text = (FOLDER / f"{name}.sql").read_text(encoding="utf-8").rstrip()
    for word, value in words.items():
        if f"{{{word}}}" not in text or not value.isidentifier():
            raise ValueError(f"{name}.sql: cannot replace {{{word}}} by {value!r}")
        text = text.replace(f"{{{word}}}", value)
    return text
