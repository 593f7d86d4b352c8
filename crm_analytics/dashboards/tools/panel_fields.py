"""The effect of a panel's overrides in Grafana: each column's properties and heading, and a stat panel's columns."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

Json = Mapping[str, Any]


def properties_of(panel: Json) -> dict[str, dict[str, Any]]:
    """Merges the panel's overrides into the properties of each column."""
    found: dict[str, dict[str, Any]] = {}
    for override in panel["fieldConfig"].get("overrides", []):
        own = found.setdefault(override["matcher"]["options"], {})
        own.update({one["id"]: one.get("value") for one in override["properties"]})
    return found


def headings(panel: Json, columns: Iterable[str]) -> dict[str, str]:
    """Returns the display name of each column of the query."""
    look = properties_of(panel)
    return {name: look.get(name, {}).get("displayName", name) for name in columns}


def text_of_null(panel: Json, column: str) -> str | None:
    """Returns the text that the panel shows for a NULL in this column; None if it has no text for NULL."""
    mappings = [
        *properties_of(panel).get(column, {}).get("mappings", []),
        *panel["fieldConfig"]["defaults"].get("mappings", []),
    ]
    for mapping in mappings:
        if mapping["type"] == "special" and mapping["options"]["match"] == "null":
            return str(mapping["options"]["result"]["text"])
    return None


def stat_columns(panel: Json, columns: Iterable[str]) -> list[str]:
    """Returns the columns that a stat panel shows: Grafana compares `reduceOptions.fields` with display names only."""
    pattern = re.compile(panel["options"]["reduceOptions"]["fields"].removeprefix("/").removesuffix("/"))
    return [name for name, heading in headings(panel, columns).items() if pattern.search(heading)]
