"""Reads the wording of a business rule: the comment of its SQL function, which is the only place that has it."""

from __future__ import annotations

import re

from crm_analytics.core.migrations import migration_files


def rule_text(function: str) -> str:
    """Returns the comment of an analytics function, as the newest migration that comments it has it.

    Read from the files, because dashboards and definitions are made without a database.
    """
    comment = rf"COMMENT ON FUNCTION analytics\.{function} IS\s+((?:'(?:[^']|'')*'\s*)+);"
    found = [text for file in migration_files("analytics") for text in re.findall(comment, file.text())]
    if not found:
        raise ValueError(f"no migration comments the function analytics.{function}")
    return "".join(re.findall(r"'((?:[^']|'')*)'", found[-1].replace("''", "\0"))).replace("\0", "'")
