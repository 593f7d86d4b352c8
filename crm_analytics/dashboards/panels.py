"""Panels, variables and links in this project's manner, on top of Grafana's foundation SDK."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from grafana_foundation_sdk.builders import barchart, common, dashboard, stat, table, timeseries, trend
from grafana_foundation_sdk.cog import builder as cog
from grafana_foundation_sdk.cog import variants
from grafana_foundation_sdk.models import common as common_models
from grafana_foundation_sdk.models import dashboard as models

from crm_analytics.dashboards.column_formats import COLUMNS, MISSING
from crm_analytics.dashboards.queries import query

DATASOURCE_TYPE = "grafana-postgresql-datasource"
ANALYTICS = common_models.DataSourceRef(type_val=DATASOURCE_TYPE, uid="crm-analytics-warehouse")
CRM = common_models.DataSourceRef(type_val=DATASOURCE_TYPE, uid="crm-analytics-crm")
TAG = "crm-analytics"
RUN_LINK = "${dagster_url:raw}/runs/${__value.raw}"

GREEN, AMBER, RED, GREY = "green", "#EAB839", "red", "gray"
Panel = Any  # the SDK has one builder class a panel type, without a common base
PropertyValue = tuple[str, object]


class PostgresQuery(variants.Dataquery):
    """A target of Grafana's PostgreSQL data source; the SDK has no model of it."""

    def __init__(self, sql: str, source: common_models.DataSourceRef, shape: str, ref: str) -> None:
        self.sql, self.source, self.shape, self.ref = sql, source, shape, ref

    def to_json(self) -> dict[str, object]:
        """The target as the Classic schema writes it."""
        return {
            "refId": self.ref,
            "datasource": self.source,
            "editorMode": "code",
            "format": self.shape,
            "rawQuery": True,
            "rawSql": self.sql,
        }


@dataclass
class Target(cog.Builder[variants.Dataquery]):
    """Builds a `PostgresQuery`; `shape` is `table` or `time_series`."""

    sql: str
    source: common_models.DataSourceRef = field(default_factory=lambda: ANALYTICS)
    shape: str = "table"
    ref: str = "A"

    def build(self) -> variants.Dataquery:
        """The target."""
        return PostgresQuery(self.sql, self.source, self.shape, self.ref)


class _Link(dashboard.DashboardLink):
    """A link in the dashboard's head; the SDK would hide it in a menu."""

    def __init__(self, title: str) -> None:
        super().__init__(title)
        self._internal.placement = None  # type: ignore[assignment]


class _Annotation(dashboard.AnnotationQuery):
    """An annotation with its switch in the dashboard's head; the SDK would hide it in a menu."""

    def __init__(self) -> None:
        super().__init__()
        self._internal.placement = None  # type: ignore[assignment]


class Layout:
    """Places panels left to right in Grafana's 24 columns, and numbers them from 1."""

    def __init__(self, board: dashboard.Dashboard) -> None:
        self.board = board
        self._next_id = 1
        self._x = self._y = self._row_height = 0

    def add(self, panel: Panel, width: int, height: int) -> None:
        """Put `panel` at the next free place of `width` columns; a new line where it does not fit."""
        if self._x + width > 24:
            self._x, self._y, self._row_height = 0, self._y + self._row_height, 0
        position = models.GridPos(h=height, w=width, x=self._x, y=self._y)
        self.board.with_panel(panel.id(self._next_id).grid_pos(position))
        self._next_id += 1
        self._x += width
        self._row_height = max(self._row_height, height)


def table_panel(
    title: str,
    description: str,
    sql: str,
    columns: Sequence[str],
    source: Any = ANALYTICS,
) -> Panel:
    """A table with these columns of the query, headed and formatted as `COLUMNS` says."""
    panel = table.Panel().title(title).description(description).datasource(source)
    panel.with_target(Target(sql, source)).no_value("none").filterable(True).mappings([_missing(MISSING)])
    _name_columns(panel, columns)
    for name in columns:
        if name.endswith("_change"):
            panel.override_by_name(name, _properties(("color", {"mode": "thresholds"}), (
                "thresholds", _steps((None, RED), (0, GREEN)) if name not in ("cost_change", "cpl_change")
                else _steps((None, GREEN), (0, RED)),
            ), ("custom.cellOptions", {"type": "color-text"}), ("custom.width", 130)))  # fmt: skip
    return panel


def stat_panel(
    title: str,
    description: str,
    sql: str,
    columns: Sequence[str],
    *,
    thresholds: Sequence[tuple[float | None, str]] = (),
    source: Any = ANALYTICS,
) -> Panel:
    """One number, or a few under each other, from a query of one row."""
    headings = "|".join(re.escape(COLUMNS[name].title) for name in columns)
    reduce = common.ReduceDataOptions().calcs(["lastNotNull"]).fields(f"/^({headings})$/")
    panel = stat.Panel().title(title).description(description).datasource(source)
    panel.with_target(Target(sql, source)).mappings([_missing(MISSING)]).reduce_options(reduce)
    panel.text_mode(
        common_models.BigValueTextMode.VALUE
        if len(columns) == 1
        else common_models.BigValueTextMode.VALUE_AND_NAME
    )
    panel.graph_mode(common_models.BigValueGraphMode.NONE)
    if thresholds:
        panel.thresholds(_thresholds(thresholds)).color_mode(common_models.BigValueColorMode.BACKGROUND)
    else:
        panel.color_mode(common_models.BigValueColorMode.NONE)
    _name_columns(panel, columns)
    return panel


def lines_panel(
    title: str,
    description: str,
    sql: str,
    *,
    unit: str,
    decimals: int = 0,
    bars: bool = False,
    shape: str = "time_series",
    columns: Sequence[str] = (),
    source: Any = ANALYTICS,
) -> Panel:
    """Series over the dashboard's time range; `bars` stacks them."""
    panel = timeseries.Panel().title(title).description(description).datasource(source)
    panel.with_target(Target(sql, source, shape)).unit(unit).decimals(decimals).no_value("none").legend(
        _legend()
    )
    panel.tooltip(_tooltip())
    if bars:
        panel.draw_style(common_models.GraphDrawStyle.BARS).fill_opacity(80)
        panel.stacking(common.StackingConfig().mode(common_models.StackingMode.NORMAL))
    else:
        panel.show_points(common_models.VisibilityMode.ALWAYS)
    _name_columns(panel, columns, units=False)
    return panel


def cumulative_panel(
    title: str, description: str, sql: str, *, unit: str, columns: Iterable[tuple[str, str, bool]]
) -> Panel:
    """Lines over the day of the month (1–31): (column, color, dashed). Independent of the time range."""
    panel = trend.Panel().title(title).description(description).datasource(ANALYTICS)
    panel.with_target(Target(sql)).unit(unit).decimals(0).x_field("day").legend(_legend()).tooltip(_tooltip())
    panel.no_value("none").show_points(common_models.VisibilityMode.NEVER)
    panel.with_transformation(
        models.DataTransformerConfig(id_val="organize", options={"excludeByName": {"date": True}})
    )
    _name_columns(panel, ("day",))
    # a month's first day is one point, which a line alone does not show
    panel.override_by_name("actual", _properties(("custom.showPoints", "auto")))
    for name, color, dashed in columns:
        panel.override_by_name(
            name,
            _properties(
                ("displayName", COLUMNS[name].title),
                ("color", {"mode": "fixed", "fixedColor": color}),
                ("custom.lineStyle", {"fill": "dash", "dash": [8, 6]} if dashed else {"fill": "solid"}),
                ("custom.lineWidth", 3 if name == "actual" else 1),
            ),
        )
    return panel


def bars_panel(
    title: str,
    description: str,
    sql: str,
    x: str,
    columns: Sequence[str],
    source: Any = ANALYTICS,
    *,
    stacked: bool = False,
) -> Panel:
    """Bars over the values of column `x`."""
    panel = barchart.Panel().title(title).description(description).datasource(source)
    panel.with_target(Target(sql, source)).x_field(x).legend(_legend()).tooltip(_tooltip()).no_value("none")
    panel.show_value(common_models.VisibilityMode.AUTO)
    if stacked:
        panel.stacking(common_models.StackingMode.NORMAL)
    _name_columns(panel, columns)
    return panel


def board(
    uid: str,
    title: str,
    description: str,
    *,
    variables: Sequence[str],
    refreshes: bool = True,
) -> dashboard.Dashboard:
    """An empty dashboard with its variables, links to the others and to Dagster, and refreshes as annotations."""
    result = dashboard.Dashboard(title).uid(uid).description(description).tags([TAG]).timezone("utc")
    result.readonly().refresh("").time("now-12M/M", "now+1d")
    for name in variables:
        result.with_variable(_VARIABLES[name]())
    result.link(
        _Link("Dashboards")
        .type(models.DashboardLinkType.DASHBOARDS)
        .tags([TAG])
        .as_dropdown(True)
        .include_vars(True)
        .keep_time(True)
    )
    if "dagster_url" in variables:
        result.link(
            _Link("Dagster")
            .type(models.DashboardLinkType.LINK)
            .url("${dagster_url:raw}")
            .icon("external link")
            .tooltip("Runs, assets and checks")
            .target_blank(True)
        )
    if refreshes:
        result.annotation(
            _Annotation()
            .name("Refreshes")
            .datasource(ANALYTICS)
            .enable(False)
            .icon_color("blue")
            .target(Target(query("refresh_annotations"), ref="Refreshes"))
        )
    return result


def _source() -> dashboard.QueryVariable:
    return _query_variable("source", "Source", "variable_source").multi(True).include_all(True).current(_ALL)


def _month() -> dashboard.QueryVariable:
    return _query_variable("month", "Month", "variable_month")


def _dagster() -> dashboard.QueryVariable:
    variable = _query_variable("dagster_url", "Dagster", "variable_dagster")
    variable.hide(models.VariableHide.HIDE_VARIABLE)
    variable._internal.skip_url_sync = (
        True  # else a forged address of the dashboard leads its run links elsewhere
    )
    return variable


def _segment() -> dashboard.CustomVariable:
    variable = dashboard.CustomVariable("segment").label("Segment").values("COD,INS,OTHER").multi(True)
    return variable.include_all(True).allow_custom_value(False).current(_ALL)


def _query_variable(name: str, label: str, file: str) -> dashboard.QueryVariable:
    variable = (
        dashboard.QueryVariable(name)
        .label(label)
        .datasource(ANALYTICS)
        .query(query(file))
        .definition(query(file))
    )
    variable.refresh(models.VariableRefresh.ON_DASHBOARD_LOAD).sort(models.VariableSort.DISABLED)
    return variable.allow_custom_value(False)


_ALL = models.VariableOption(selected=True, text=["All"], value=["$__all"])
_VARIABLES: dict[str, Callable[[], Any]] = {
    "source": _source,
    "month": _month,
    "segment": _segment,
    "dagster_url": _dagster,
}


def _name_columns(panel: Panel, columns: Sequence[str], *, units: bool = True) -> None:
    for name in columns:
        column = COLUMNS[name]
        properties: list[PropertyValue] = [("displayName", column.title)]
        if units and column.unit:
            properties.append(("unit", column.unit))
        if units and column.decimals is not None:
            properties.append(("decimals", column.decimals))
        if units and column.missing != MISSING:
            properties.append(("mappings", [_missing(column.missing)]))
        if name == "run_id":
            link = {"title": "Open the run in Dagster", "url": RUN_LINK, "targetBlank": True}
            properties.append(("links", [link]))
        panel.override_by_name(name, _properties(*properties))


def _properties(*pairs: PropertyValue) -> list[models.DynamicConfigValue]:
    return [models.DynamicConfigValue(id_val=name, value=value) for name, value in pairs]


def _missing(text: str) -> models.SpecialValueMap:
    """What stands in the place of NULL; in its own color, because Grafana gives NULL the lowest threshold's."""
    result = models.ValueMappingResult(text=text, color=GREY, index=0)
    return models.SpecialValueMap(
        models.DashboardSpecialValueMapOptions(models.SpecialValueMatch.NULL, result)
    )


def _steps(*steps: tuple[float | None, str]) -> dict[str, object]:
    return {"mode": "absolute", "steps": [{"value": value, "color": color} for value, color in steps]}


def _thresholds(steps: Sequence[tuple[float | None, str]]) -> dashboard.ThresholdsConfig:
    config = dashboard.ThresholdsConfig().mode(models.ThresholdsMode.ABSOLUTE)
    return config.steps([models.Threshold(value=value, color=color) for value, color in steps])


def _legend() -> common.VizLegendOptions:
    legend = common.VizLegendOptions().show_legend(True).placement(common_models.LegendPlacement.BOTTOM)
    return legend.display_mode(common_models.LegendDisplayMode.LIST).calcs([])


def _tooltip() -> common.VizTooltipOptions:
    return common.VizTooltipOptions().mode(common_models.TooltipDisplayMode.MULTI).sort(common_models.SortOrder.DESCENDING)  # fmt: skip
