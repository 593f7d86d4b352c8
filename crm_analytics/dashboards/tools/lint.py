"""Rules for every dashboard, against what Grafana would show wrong or not at all without an error."""

from __future__ import annotations

import itertools
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from crm_analytics.analytics.warehouse.explain import METRICS
from crm_analytics.dashboards.column_formats import DOLLARS
from crm_analytics.dashboards.panels import ANALYTICS, EXPLAIN
from crm_analytics.dashboards.tools.panel_fields import headings, properties_of, stat_columns, text_of_null

Json = Mapping[str, Any]

PANEL_TYPES = {"barchart", "stat", "table", "timeseries", "trend"}
#: Only units that Grafana doesn't scale. It would show 3884.71 currencyUSD as $4K, and 12.3 d as 1.8 weeks.
UNITS = {DOLLARS, "dtdhms", "locale", "percentunit"}
DATASOURCES = {
    ("grafana-postgresql-datasource", "crm-analytics-warehouse"),
    ("grafana-postgresql-datasource", "crm-analytics-crm"),
}
HIDDEN = 2
BUILT_IN = {"__value"}
_USED = re.compile(r"\$\{(\w+)(?::(\w+)|\.\w+)?\}")


def problems(boards: Sequence[Json]) -> list[str]:
    """Returns everything wrong with these dashboards, one line each."""
    found = [
        f"uid {uid} is used {count} times" for uid, count in _counts(board["uid"] for board in boards).items()
    ]
    tags = {tag for board in boards for tag in board["tags"]}
    uids = {board["uid"] for board in boards}
    for board in boards:
        found += [f"{board['title']}: {problem}" for problem in _board(board, tags, uids)]
    return found


def panels_of(board: Json) -> list[Json]:
    """Returns all panels, including those inside rows."""
    return [inner for panel in board["panels"] for inner in (panel, *panel.get("panels", []))]


def queries_of(board: Json) -> Iterator[tuple[str, Json, str]]:
    """Yields every query of a dashboard: its place, data source and SQL."""
    for panel in panels_of(board):
        for target in panel.get("targets", []):
            yield f"panel {panel['title']} {target['refId']}", target.get("datasource", {}), target["rawSql"]
    for variable in board["templating"]["list"]:
        if variable["type"] == "query":
            yield f"variable {variable['name']}", variable.get("datasource", {}), variable["query"]
    for annotation in board["annotations"].get("list", []):
        where, target = f"annotation {annotation['name']}", annotation["target"]
        yield where, annotation.get("datasource", {}), target["rawSql"]


def _board(board: Json, tags: set[str], uids: set[str]) -> Iterator[str]:
    if board["timezone"] != "utc":
        yield f"timezone {board['timezone']!r}: must be utc, or dates would shift"
    panels = panels_of(board)
    for number, count in _counts(panel.get("id") for panel in panels).items():
        yield f"panel id {number} is used {count} times"
    for title, count in _counts(panel["title"] for panel in panels).items():
        yield f"panel title {title!r} is used {count} times"
    for panel in panels:
        problems = itertools.chain(_panel(panel), _data_links(panel, uids))
        yield from (f"panel {panel['title']!r}: {problem}" for problem in problems)
    yield from _grid(panels)
    yield from _variables(board)
    for where, datasource, sql in queries_of(board):
        if (datasource.get("type"), datasource.get("uid")) not in DATASOURCES:
            yield f"{where}: data source {datasource} isn't one of the two that are provisioned"
        yield from (f"{where}: {problem}" for problem in _sql(sql))
    for link in board["links"]:
        if link["type"] == "dashboards" and not set(link["tags"]) <= tags:
            yield f"link {link['title']!r}: no dashboard has the tags {link['tags']}"
        if link["type"] == "link" and not link.get("url"):
            yield f"link {link['title']!r} has no address"


def _panel(panel: Json) -> Iterator[str]:
    if panel["type"] not in PANEL_TYPES:
        yield f"type {panel['type']!r} isn't one of {sorted(PANEL_TYPES)}"
    if not panel.get("id"):
        yield "has no id"
    if not panel.get("description", "").strip():
        yield "has no description"
    if (panel.get("datasource", {}).get("type"), panel.get("datasource", {}).get("uid")) not in DATASOURCES:
        yield "has no explicit data source"
    if not panel.get("targets"):
        yield "has no query"
    if panel["type"] == "stat" and not panel["options"]["reduceOptions"].get("calcs"):
        yield "has no reduceOptions.calcs"
    named = properties_of(panel)
    for heading, count in _counts(headings(panel, named).values()).items():
        yield f"display name {heading!r} is used {count} times: a table would show the last one's cells in all of them"
    if panel["type"] == "stat" and stat_columns(panel, named) != list(named):
        yield f"reduceOptions.fields must match the display names of {sorted(named)}"
    if panel["type"] in ("stat", "table"):
        for name in named:
            if text_of_null(panel, name) is None:
                yield f"column {name} has no text for NULL, which would get the lowest threshold's color"
    if panel["type"] == "trend" and "unit" not in named.get(panel["options"].get("xField"), {}):
        yield "the x axis would take the unit of the values: give xField its own unit"
    for unit in (panel["fieldConfig"]["defaults"].get("unit"), *(one.get("unit") for one in named.values())):
        if unit is not None and unit not in UNITS and not unit.startswith("time:YYYY-MM"):
            yield f"unit {unit!r} isn't one of {sorted(UNITS)} or a time:YYYY-MM format"


def _data_links(panel: Json, uids: set[str]) -> Iterator[str]:
    explained = panel["type"] in ("stat", "table") and panel.get("datasource", {}).get("uid") == ANALYTICS.uid
    for name, own in properties_of(panel).items():
        addresses = [link["url"] for link in own.get("links", [])]
        for address in addresses:
            target = re.match(r"/d/([\w-]+)", address)
            if target and target[1] not in uids:
                yield f"column {name} links to the dashboard {target[1]}, which doesn't exist"
        if explained and name in METRICS and not any(_explains(name, address) for address in addresses):
            yield f"column {name} doesn't link to its explanation"


def _explains(metric: str, address: str) -> bool:
    return address.startswith(f"/d/{EXPLAIN}?") and address.endswith(f"&var-metric={metric}")


def _grid(panels: Sequence[Json]) -> Iterator[str]:
    for panel in panels:
        place = panel["gridPos"]
        if place["x"] < 0 or place["x"] + place["w"] > 24 or place["w"] < 1 or place["h"] < 1:
            yield f"panel {panel['title']!r} is outside the grid"
    for one, other in itertools.combinations(panels, 2):
        a, b = one["gridPos"], other["gridPos"]
        if all(a[x] < b[x] + b[size] and b[x] < a[x] + a[size] for x, size in (("x", "w"), ("y", "h"))):
            yield f"panels {one['title']!r} and {other['title']!r} overlap"


def _variables(board: Json) -> Iterator[str]:
    defined = [variable["name"] for variable in board["templating"]["list"]]
    for name, count in _counts(defined).items():
        yield f"variable {name} is defined {count} times"
    for variable in board["templating"]["list"]:
        if variable.get("hide") == HIDDEN and not variable.get("skipUrlSync"):
            yield f"hidden variable {variable['name']} takes its value from the URL: set skipUrlSync"
    text = json.dumps({key: value for key, value in board.items() if key != "templating"})
    used = {name for name, _ in _USED.findall(text)}
    for name in sorted(set(defined) - used):
        yield f"variable {name} isn't used"
    for name in sorted(used - set(defined) - BUILT_IN):
        yield f"variable {name} is used but not defined"


def _sql(sql: str) -> Iterator[str]:
    for name, form in _USED.findall(sql):
        if form != "sqlstring":
            yield f"${{{name}}} must be written ${{{name}:sqlstring}}"
    if re.search(r"\$(?!__|\{)\w+", sql):
        yield "has a bare $variable: write ${variable:sqlstring}"
    if re.search(r"IN\s*\(\s*\$", sql):
        yield "IN ($variable) fails when nothing is chosen: write = ANY(ARRAY[${variable:sqlstring}]::text[])"
    if "$__timeGroup" in sql:
        yield "uses $__timeGroup, which can't group by month: use date_trunc"
    if re.search(r"\$__timeFilter\([^)]*\(", sql):
        yield "nests parentheses in $__timeFilter"
    if not re.match(r"--|WITH\b|SELECT\b", sql):
        yield "isn't a SELECT"


def _counts(values: Iterable[Any]) -> dict[Any, int]:
    return {value: count for value, count in Counter(values).items() if count > 1}
