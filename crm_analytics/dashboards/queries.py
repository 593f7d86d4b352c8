"""The dashboards' SQL, read from sql/grafana/. Every query of every dashboard stands there as a file of its own."""

from __future__ import annotations

from crm_analytics.core.settings import SQL_DIR

FOLDER = SQL_DIR / "grafana"


def query(name: str, **words: str) -> str:
    """The text of sql/grafana/<name>.sql, with `{word}` replaced where words are given (column names only).

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if a word does not occur in the file, or is not a plain name.
    """
    text = (FOLDER / f"{name}.sql").read_text(encoding="utf-8").rstrip()
    for word, value in words.items():
        if f"{{{word}}}" not in text or not value.isidentifier():
            raise ValueError(f"{name}.sql: cannot put {value!r} in the place of {{{word}}}")
        text = text.replace(f"{{{word}}}", value)
    return text
