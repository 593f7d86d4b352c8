"""Pictures of the dashboards without Grafana: runs every panel's query as grafana_reader and draws its rows.

`python -m crm_analytics.dashboards.tools.preview` writes docs/img/dashboard-*.png from the configured (or demo)
databases. The pictures show the panels' contents, not Grafana's drawing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import psycopg
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from crm_analytics.core.database import database_url
from crm_analytics.core.settings import PROJECT_DIR, settings
from crm_analytics.dashboards.column_formats import DOLLARS
from crm_analytics.dashboards.generate import generated
from crm_analytics.dashboards.tools.expand_macros import Value, expand
from crm_analytics.dashboards.tools.panel_fields import properties_of, stat_columns, text_of_null

FOLDER = PROJECT_DIR / "docs" / "img"
#: Size of a grid cell in inches.
ROW, COLUMN = 0.36, 0.72
SEARCH_PATH = {"crm-analytics-warehouse": "analytics, reporting", "crm-analytics-crm": "reporting"}
COLORS = {"green": "#56a64b", "red": "#e02f44", "blue": "#3274d9", "orange": "#ff780a", "gray": "#8e8e8e"}

Rows = list[tuple[Any, ...]]


def draw(board: Mapping[str, Any], readers: Mapping[str, psycopg.Connection[Any]], path: Path) -> None:
    """Draws one dashboard with its variables' first options: all sources and segments, the current month."""
    choice = _first_options(board, readers)
    height = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in board["panels"])
    figure = Figure(figsize=(24 * COLUMN, height * ROW + 0.5), dpi=60, facecolor="#f4f5f5")
    FigureCanvasAgg(figure)
    scale = (height * ROW) / (height * ROW + 0.5)
    chosen = f" – month {choice['month']}" if "month" in choice else ""
    figure.text(0.01, 1 - 0.3 * (1 - scale), f"{board['title']}{chosen}", va="top", size=14, weight="bold")
    for panel in board["panels"]:
        place = panel["gridPos"]
        # room for the labels of an axis
        axis = 0.024 if panel["type"] in ("timeseries", "trend", "barchart") else 0.0
        left, width = place["x"] / 24 + 0.01, place["w"] / 24 - 0.016
        bottom = (1 - (place["y"] + place["h"]) / height) * scale + 0.6 / height * scale
        axes = figure.add_axes((left + axis, bottom, width - axis, (place["h"] - 1.8) / height * scale))
        axes.set_prop_cycle(color=colormaps["tab20"].colors)  # type: ignore[attr-defined]
        axes.set_title(panel["title"], loc="left", size=9, weight="bold")
        names, rows = _run(panel["targets"][0]["rawSql"], readers[panel["datasource"]["uid"]], choice)
        _DRAWERS[panel["type"]](axes, panel, names, rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Software": None})


def _first_options(
    board: Mapping[str, Any], readers: Mapping[str, psycopg.Connection[Any]]
) -> dict[str, Value]:
    choice: dict[str, Value] = {"source": [], "segment": []}
    for variable in board["templating"]["list"]:
        if variable["type"] == "query":
            found = [
                row[0] for row in readers[variable["datasource"]["uid"]].execute(variable["query"].encode())
            ]
        else:
            # "heading : value", or the value alone
            found = [option.split(" : ")[-1] for option in variable["query"].split(",")]
        choice[variable["name"]] = found if variable["includeAll"] else _first(variable, found)
    return choice


def _first(variable: Mapping[str, Any], options: Sequence[str]) -> str:
    current = (variable.get("current") or {}).get("value")
    return next((option for option in options if option == current), options[0])


def _run(sql: str, reader: psycopg.Connection[Any], choice: Mapping[str, Value]) -> tuple[list[str], Rows]:
    now = datetime.now(UTC)
    start = (now.replace(day=1) - timedelta(360)).replace(day=1)
    cursor = reader.execute(expand(sql, start, now + timedelta(1), choice).encode())
    return [column.name for column in cursor.description or ()], cursor.fetchall()


def text_of(value: Any, unit: str | None = None, decimals: int | None = None) -> str:
    """Formats a value as Grafana's unit does."""
    if isinstance(value, date | datetime):
        if (unit or "").startswith("time:"):
            pattern = str(unit)[5:]
            for token, code in (("YYYY", "%Y"), ("MM", "%m"), ("DD", "%d"), ("HH", "%H"), ("mm", "%M")):
                pattern = pattern.replace(token, code)
            return value.strftime(pattern)
        return str(value)
    if isinstance(value, int | float | Decimal) and not isinstance(value, bool):
        places = decimals if decimals is not None else 0
        if unit == "percentunit":
            return f"{100 * value:,.{places}f}%"
        if unit == "dtdhms":
            days, seconds = divmod(int(value), 86400)
            clock = f"{timedelta(seconds=seconds)}".zfill(8)
            return f"{days} d {clock}" if days else clock
        if unit == "locale" and places:
            return f"{value:,.{places}f}".rstrip("0").rstrip(".")
        return f"{'$' if unit == DOLLARS else ''}{value:,.{places}f}"
    return str(value)


def _cell(panel: Mapping[str, Any], column: str, value: Any) -> str:
    if value is None:
        return text_of_null(panel, column) or ""
    look = properties_of(panel)[column]
    return text_of(value, look.get("unit"), look.get("decimals"))


def _draw_stat(axes: Axes, panel: Mapping[str, Any], names: Sequence[str], rows: Rows) -> None:
    _bare(axes)
    wanted = stat_columns(panel, names)
    look = properties_of(panel)
    steps = panel["fieldConfig"]["defaults"].get("thresholds", {}).get("steps", [])
    for number, name in enumerate(wanted):
        value = rows[0][names.index(name)]
        one = look[name]
        if steps and panel["options"]["colorMode"] == "background" and value is not None:
            color = [step["color"] for step in steps if step["value"] is None or value >= step["value"]][-1]
            axes.set_facecolor(COLORS.get(color, color))
        shown = _cell(panel, name, value)
        label = "" if len(wanted) == 1 else f"{one['displayName']}: "
        axes.text(
            0.04, 0.86 - number * 0.24 if len(wanted) > 1 else 0.5, f"{label}{shown}",
            va="center", size=15 if number == 0 else 10, weight="bold" if number == 0 else "normal",
        )  # fmt: skip


def _draw_table(axes: Axes, panel: Mapping[str, Any], names: Sequence[str], rows: Rows) -> None:
    _bare(axes)
    look = properties_of(panel)
    shown = [name for name in names if name in look and not look[name].get("custom.hidden")]
    # room in lines of 0.17 inches, space in characters
    room = int((panel["gridPos"]["h"] - 1.8) * ROW / 0.17) - 1
    space = panel["gridPos"]["w"] * 9
    cells = [[_cell(panel, name, row[names.index(name)]) for name in shown] for row in rows[:room]]
    if not cells:
        text = panel["fieldConfig"]["defaults"].get("noValue", "none")
        axes.text(0.5, 0.5, text, ha="center", color="gray")
        return
    lines = [[look[name]["displayName"] for name in shown], *cells]
    widths = [min(60, max(len(line[k]) for line in lines)) + 2 for k in range(len(shown))]
    while sum(widths) > space:
        widths[widths.index(max(widths))] -= 1
    for number, line in enumerate(lines):
        x = 1
        for text, width in zip(line, widths, strict=True):
            shown_text = text if len(text) < width else text[: width - 2] + "…"
            axes.text(
                x / max(space, sum(widths)), 1 - (number + 0.5) / (room + 1), shown_text, size=7, va="center",
                family="monospace", weight="bold" if number == 0 else "normal",
            )  # fmt: skip
            x += width
    if len(rows) > room:
        axes.set_xlabel(f"… {len(rows)} rows", size=7, labelpad=1)


def _draw_series(axes: Axes, panel: Mapping[str, Any], names: Sequence[str], rows: Rows) -> None:
    series: dict[str, dict[Any, float]] = {}
    look = properties_of(panel)
    for row in rows:
        values = dict(zip(names, row, strict=True))
        time, metric = values.pop("time"), values.pop("metric", None)
        for name, value in values.items():
            label = metric or look.get(name, {}).get("displayName", name)
            if value is not None:
                series.setdefault(label, {})[time] = float(value)
    times = sorted({time for points in series.values() for time in points})
    below = dict.fromkeys(times, 0.0)
    stacked = panel["fieldConfig"]["defaults"]["custom"].get("drawStyle") == "bars"
    for label, points in series.items():
        if stacked:
            heights = [points.get(time, 0.0) for time in times]
            axes.bar(times, heights, width=22, bottom=[below[time] for time in times], label=label)
            for time, height in zip(times, heights, strict=True):
                below[time] += height
        else:
            axes.plot(list(points), list(points.values()), marker="o", markersize=3, label=label)
    _finish(axes, panel)


def _draw_trend(axes: Axes, panel: Mapping[str, Any], names: Sequence[str], rows: Rows) -> None:
    days = [row[names.index("day")] for row in rows]
    for name, one in properties_of(panel).items():
        if name == panel["options"]["xField"]:
            continue
        values = [row[names.index(name)] for row in rows]
        points = [(day, float(value)) for day, value in zip(days, values, strict=True) if value is not None]
        axes.plot(
            [day for day, _ in points], [value for _, value in points], label=one["displayName"],
            color=COLORS[one["color"]["fixedColor"]], linewidth=one["custom.lineWidth"],
            linestyle="--" if one["custom.lineStyle"]["fill"] == "dash" else "-",
        )  # fmt: skip
    _finish(axes, panel)


def _draw_bars(axes: Axes, panel: Mapping[str, Any], names: Sequence[str], rows: Rows) -> None:
    x = [str(row[names.index(panel["options"]["xField"])]) for row in rows]
    below = [0.0] * len(x)
    for name, one in properties_of(panel).items():
        heights = [float(row[names.index(name)]) for row in rows]
        axes.bar(x, heights, bottom=below, label=one["displayName"])
        below = [a + b for a, b in zip(below, heights, strict=True)]
    _finish(axes, panel)


def _finish(axes: Axes, panel: Mapping[str, Any]) -> None:
    unit = panel["fieldConfig"]["defaults"].get("unit")
    decimals = panel["fieldConfig"]["defaults"].get("decimals")
    axes.yaxis.set_major_formatter(lambda value, _: text_of(value, unit, decimals))
    axes.tick_params(labelsize=7)
    axes.grid(alpha=0.3)
    axes.margins(x=0.01)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=6, ncols=4, loc="upper left", framealpha=0.6)


def _bare(axes: Axes) -> None:
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_color("#dddddd")


_DRAWERS = {
    "stat": _draw_stat,
    "table": _draw_table,
    "timeseries": _draw_series,
    "trend": _draw_trend,
    "barchart": _draw_bars,
}


def main() -> None:
    """Draws every dashboard from the configured databases."""
    config = settings()
    readers: dict[str, psycopg.Connection[Any]] = {}
    for uid, database in (("crm-analytics-warehouse", "analytics"), ("crm-analytics-crm", "crm")):
        readers[uid] = psycopg.connect(database_url(database, config), autocommit=True)
        readers[uid].execute("SET ROLE grafana_reader")
        readers[uid].execute(f"SET search_path = {SEARCH_PATH[uid]}".encode())
        readers[uid].execute("SET timezone = 'UTC'")
    for file, text in generated().items():
        path = FOLDER / f"dashboard-{file.stem}.png"
        draw(json.loads(text), readers, path)
        print(f"wrote {path.relative_to(PROJECT_DIR)}")


if __name__ == "__main__":
    main()
