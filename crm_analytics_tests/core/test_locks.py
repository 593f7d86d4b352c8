"""Advisory locks: one page names all of them."""

from __future__ import annotations

import re
from datetime import date

from crm_analytics.core import locks
from crm_analytics.core.settings import SQL_DIR


def test_every_lock_of_the_migrations_is_listed() -> None:
    """Each lock that SQL takes is listed in core/locks.py, and nothing else: a name that means two things would block.

    A lock that isn't taken by such a name can't be listed, so there is none. Functions may share one.
    """
    text = "\n".join(path.read_text(encoding="utf-8") for path in sorted(SQL_DIR.glob("*/*.sql")))
    taken = re.findall(r"advisory_xact_lock\(hashtextextended\('([^']+)'", text)
    listed = {name.partition("<")[0] for name in re.findall(r"`([a-z_]+:[^`]+)`", locks.__doc__ or "")}
    assert set(taken) == listed
    assert len(re.findall(r"advisory\w*lock\w*\(", text)) == len(taken)


def test_lock_names_differ() -> None:
    """Python's locks do not share names with each other."""
    names = [
        locks.MIGRATION, locks.DEMO_ACTIVITY, locks.load("jobs"), locks.load("calls"), locks.pull("jobs"),
        locks.month(date(2024, 1, 1)), locks.month(date(2024, 11, 1)), locks.month(date(2023, 11, 1)),
    ]  # fmt: skip
    assert len(set(names)) == len(names)
