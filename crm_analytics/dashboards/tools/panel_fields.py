"""What Grafana makes of a panel's overrides: each column's properties, heading, and the columns a stat panel shows."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

Json = Mapping[str, Any]


def properties_of(panel: Json) -> dict[str, dict[str, Any]]:
    """The properties of each column that the panel names, its overrides put together."""
    found: dict[str, dict[str, Any]] = {}
    for override in panel["fieldConfig"].get("overrides", []):
        own = found.setdefault(override["matcher"]["options"], {})
        own.update({one["id"]: one.get("value") for one in override["properties"]})
    return found


def headings(panel: Json, columns: Iterable[str]) -> dict[str, str]:
    """The display name of each column of the query."""
    look = properties_of(panel)
    return {name: look.get(name, {}).get("displayName", name) for name in columns}


def text_of_null(panel: Json, column: str) -> str | None:
    """What the panel shows in the place of a NULL of this column; None where it says nothing of NULL."""
    mappings = [
        *properties_of(panel).get(column, {}).get("mappings", []),
        *panel["fieldConfig"]["defaults"].get("mappings", []),
    ]
    for mapping in mappings:
        if mapping["type"] == "special" and mapping["options"]["match"] == "null":
            return str(mapping["options"]["result"]["text"])
    return None


def stat_columns(panel: Json, columns: Iterable[str]) -> list[str]:
    """The columns that a stat panel shows: Grafana compares `reduceOptions.fields` with display names only."""
    pattern = re.compile(panel["options"]["reduceOptions"]["fields"].removeprefix("/").removesuffix("/"))
    return [name for name, heading in headings(panel, columns).items() if pattern.search(heading)]
