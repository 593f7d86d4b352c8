"""Builders for this project's panels, variables and links, on top of Grafana's foundation SDK."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from grafana_foundation_sdk.builders import barchart, common, dashboard, stat, table, timeseries, trend
from grafana_foundation_sdk.cog import builder as cog
from grafana_foundation_sdk.cog import variants
from grafana_foundation_sdk.models import common as common_models
from grafana_foundation_sdk.models import dashboard as models

from crm_analytics.analytics.warehouse.explain import METRICS
from crm_analytics.dashboards.column_formats import COLUMNS, MISSING
from crm_analytics.dashboards.queries import query

DataSource = common_models.DataSourceRef
DATASOURCE_TYPE = "grafana-postgresql-datasource"
ANALYTICS = DataSource(type_val=DATASOURCE_TYPE, uid="crm-analytics-warehouse")
CRM = DataSource(type_val=DATASOURCE_TYPE, uid="crm-analytics-crm")
TAG = "crm-analytics"
RUN_LINK = "${dagster_url:raw}/runs/${__value.raw}"
EXPLAIN = "crm-analytics-explain"
#: Where a metric is explained: for what a row of a table stands for, and for what the viewer has chosen.
_EXPLAIN_ROW = f"/d/{EXPLAIN}?${{__data.fields.explain_link:raw}}&var-metric="
_EXPLAIN_CHOICE = (
    f"/d/{EXPLAIN}?${{month:queryparam}}&${{source:queryparam}}&${{segment:queryparam}}&var-metric="
)

GREEN, AMBER, RED, GRAY = "green", "#EAB839", "red", "gray"
#: The SDK has one builder class per panel type, without a common base.
Panel = Any
PropertyValue = tuple[str, object]
#: Colors from a value on; the first step has None.
Steps = Sequence[tuple[float | None, str]]


class PostgresQuery(variants.Dataquery):
    """A query of Grafana's PostgreSQL data source, for which the SDK has no model."""

    def __init__(self, sql: str, source: DataSource, shape: str, ref: str) -> None:
        self.sql, self.source, self.shape, self.ref = sql, source, shape, ref

    def to_json(self) -> dict[str, object]:
        """Returns the target in the form of the Classic schema."""
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
    source: DataSource = field(default_factory=lambda: ANALYTICS)
    shape: str = "table"
    ref: str = "A"

    def build(self) -> variants.Dataquery:
        """Returns the query."""
        return PostgresQuery(self.sql, self.source, self.shape, self.ref)


class _Link(dashboard.DashboardLink):
    """A link in the dashboard's header; the SDK would hide it in a menu."""

    def __init__(self, title: str) -> None:
        super().__init__(title)
        self._internal.placement = None  # type: ignore[assignment]


class _Annotation(dashboard.AnnotationQuery):
    """An annotation with its switch in the dashboard's header; the SDK would hide it in a menu."""

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
        """Puts `panel` into the next `width` free columns, on a new line if it doesn't fit."""
        if self._x + width > 24:
            self._x, self._y, self._row_height = 0, self._y + self._row_height, 0
        position = models.GridPos(h=height, w=width, x=self._x, y=self._y)
        self.board.with_panel(panel.id(self._next_id).grid_pos(position))
        self._next_id += 1
        self._x += width
        self._row_height = max(self._row_height, height)


def table_panel(
    title: str, description: str, sql: str, columns: Sequence[str], source: DataSource = ANALYTICS
) -> Panel:
    """Builds a table of these columns of the query, with the headings and formats of `COLUMNS`.

    Metrics link to their explanation: the query's column `explain_link` says for which months, sources and segments.
    """
    panel = _started(table.Panel(), title, description, sql, source).no_value("none").filterable(True)
    explained = [name for name in columns if name in METRICS and source == ANALYTICS]
    _name_columns(panel.mappings([_missing(MISSING)]), columns, links=dict.fromkeys(explained, _EXPLAIN_ROW))
    if explained:
        # Grafana calls it by the first name up to 12, by the second later, and ignores the one that it doesn't know
        hidden = _properties(("custom.hidden", True), ("custom.hideFrom.viz", True))
        panel.override_by_name("explain_link", hidden)
    for name in columns:
        if name.endswith("_change"):
            below, above = (GREEN, RED) if name in ("cost_change", "cpl_change") else (RED, GREEN)
            properties = _properties(
                ("color", {"mode": "thresholds"}),
                ("thresholds", _thresholds(((None, below), (0, above))).build()),
                ("custom.cellOptions", {"type": "color-text"}),
                ("custom.width", 130),
            )
            panel.override_by_name(name, properties)
    return panel


def stat_panel(
    title: str, description: str, sql: str, columns: Sequence[str], *, thresholds: Steps = ()
) -> Panel:
    """Builds a panel with one number, or a few below each other, from a query of one row.

    Metrics link to their explanation for the dashboard's month, sources and segments.
    """
    headings = "|".join(re.escape(COLUMNS[name].title) for name in columns)
    reduce = common.ReduceDataOptions().calcs(["lastNotNull"]).fields(f"/^({headings})$/")
    panel = (
        _started(stat.Panel(), title, description, sql).mappings([_missing(MISSING)]).reduce_options(reduce)
    )
    mode = common_models.BigValueTextMode
    panel.text_mode(mode.VALUE if len(columns) == 1 else mode.VALUE_AND_NAME)
    panel.graph_mode(common_models.BigValueGraphMode.NONE)
    if thresholds:
        panel.thresholds(_thresholds(thresholds)).color_mode(common_models.BigValueColorMode.BACKGROUND)
    else:
        panel.color_mode(common_models.BigValueColorMode.NONE)
    explained = [name for name in columns if name in METRICS]
    _name_columns(panel, columns, links=dict.fromkeys(explained, _EXPLAIN_CHOICE))
    return panel


def lines_panel(
    title: str,
    description: str,
    sql: str,
    *,
    unit: str,
    decimals: int = 0,
    bars: bool = False,
    columns: Sequence[str] = (),
) -> Panel:
    """Builds series over the dashboard's time range; `bars` stacks them as bars."""
    panel = _chart(_started(timeseries.Panel(), title, description, sql, shape="time_series"))
    panel.unit(unit).decimals(decimals)
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
    """Builds lines over the day of the month (1–31), whatever the time range: (column, color, dashed)."""
    panel = _chart(_started(trend.Panel(), title, description, sql)).unit(unit).decimals(0).x_field("day")
    panel.show_points(common_models.VisibilityMode.NEVER)
    panel.with_transformation(
        models.DataTransformerConfig(id_val="organize", options={"excludeByName": {"date": True}})
    )
    _name_columns(panel, ("day",))
    # On the first day of a month there is one point, which a line alone doesn't show.
    panel.override_by_name("actual", _properties(("custom.showPoints", "auto")))
    for name, color, dashed in columns:
        properties = _properties(
            ("displayName", COLUMNS[name].title),
            ("color", {"mode": "fixed", "fixedColor": color}),
            ("custom.lineStyle", {"fill": "dash", "dash": [8, 6]} if dashed else {"fill": "solid"}),
            ("custom.lineWidth", 3 if name == "actual" else 1),
        )
        panel.override_by_name(name, properties)
    return panel


def bars_panel(
    title: str,
    description: str,
    sql: str,
    x: str,
    columns: Sequence[str],
    source: DataSource = ANALYTICS,
    *,
    stacked: bool = False,
) -> Panel:
    """Builds bars over the values of column `x`."""
    panel = _chart(_started(barchart.Panel(), title, description, sql, source)).x_field(x)
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
    revisions: bool = False,
) -> dashboard.Dashboard:
    """Builds an empty dashboard: variables, links to the other dashboards and to Dagster, annotations.

    `refreshes` annotates when months were refreshed; `revisions`, for charts over months, which closed months changed.
    """
    result = dashboard.Dashboard(title).uid(uid).description(description).tags([TAG]).timezone("utc")
    result.readonly().refresh("").time("now-12M/M", "now+1d")
    for name in variables:
        result.with_variable(_VARIABLES[name]())
    others = _Link("Dashboards").type(models.DashboardLinkType.DASHBOARDS).tags([TAG]).as_dropdown(True)
    result.link(others.include_vars(True).keep_time(True))
    if "dagster_url" in variables:
        link = _Link("Dagster").type(models.DashboardLinkType.LINK).url("${dagster_url:raw}")
        result.link(link.icon("external link").tooltip("Runs, assets and checks").target_blank(True))
    if refreshes:
        _annotate(result, "Refreshes", "refresh_annotations", "blue", shown=False)
    if revisions:
        _annotate(result, "Revisions", "revision_annotations", "orange", shown=True)
    return result


def _annotate(board: dashboard.Dashboard, name: str, file: str, color: str, *, shown: bool) -> None:
    annotation = _Annotation().name(name).datasource(ANALYTICS).enable(shown).icon_color(color)
    board.annotation(annotation.target(Target(query(file), ref=name)))


def _started(
    panel: Panel, title: str, description: str, sql: str, source: DataSource = ANALYTICS, shape: str = "table"
) -> Panel:
    panel.title(title).description(description).datasource(source)
    return panel.with_target(Target(sql, source, shape))


def _chart(panel: Panel) -> Panel:
    legend = common.VizLegendOptions().show_legend(True).placement(common_models.LegendPlacement.BOTTOM)
    legend.display_mode(common_models.LegendDisplayMode.LIST).calcs([])
    tooltip = common.VizTooltipOptions().mode(common_models.TooltipDisplayMode.MULTI)
    tooltip.sort(common_models.SortOrder.DESCENDING)
    return panel.no_value("none").legend(legend).tooltip(tooltip)


def _source() -> dashboard.QueryVariable:
    return _query_variable("source", "Source", "variable_source").multi(True).include_all(True).current(_ALL)


def _month() -> dashboard.QueryVariable:
    return _query_variable("month", "Month", "variable_month")


def _months() -> dashboard.QueryVariable:
    return _query_variable("month", "Months", "variable_month").multi(True)


def _metric() -> dashboard.CustomVariable:
    options = ",".join(f"{COLUMNS[name].title} : {name}" for name in METRICS)
    variable = dashboard.CustomVariable("metric").label("Metric").values(options).allow_custom_value(False)
    first = models.VariableOption(selected=True, text=COLUMNS["repairs"].title, value="repairs")
    return variable.current(first)


def _dagster() -> dashboard.QueryVariable:
    variable = _query_variable("dagster_url", "Dagster", "variable_dagster")
    variable.hide(models.VariableHide.HIDE_VARIABLE)
    # otherwise a forged address of the dashboard could point its run links elsewhere
    variable._internal.skip_url_sync = True
    return variable


def _segment() -> dashboard.CustomVariable:
    variable = dashboard.CustomVariable("segment").label("Segment").values("COD,INS,OTHER").multi(True)
    return variable.include_all(True).allow_custom_value(False).current(_ALL)


def _query_variable(name: str, label: str, file: str) -> dashboard.QueryVariable:
    variable = dashboard.QueryVariable(name).label(label).datasource(ANALYTICS)
    variable.query(query(file)).definition(query(file))
    variable.refresh(models.VariableRefresh.ON_DASHBOARD_LOAD).sort(models.VariableSort.DISABLED)
    return variable.allow_custom_value(False)


_ALL = models.VariableOption(selected=True, text=["All"], value=["$__all"])
_VARIABLES: dict[str, Callable[[], Any]] = {
    "source": _source,
    "month": _month,
    "months": _months,
    "metric": _metric,
    "segment": _segment,
    "dagster_url": _dagster,
}


def _name_columns(
    panel: Panel, columns: Sequence[str], *, units: bool = True, links: Mapping[str, str] | None = None
) -> None:
    """Gives columns their headings and formats; those in `links` lead to the explanation of the metric at this address."""
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
        if links and name in links:
            properties.append(("links", [{"title": "Explain this number", "url": f"{links[name]}{name}"}]))
        panel.override_by_name(name, _properties(*properties))


def _properties(*pairs: PropertyValue) -> list[models.DynamicConfigValue]:
    return [models.DynamicConfigValue(id_val=name, value=value) for name, value in pairs]


def _missing(text: str) -> models.SpecialValueMap:
    """Shows `text` for NULL, in gray, because Grafana would give NULL the color of the lowest threshold."""
    result = models.ValueMappingResult(text=text, color=GRAY, index=0)
    return models.SpecialValueMap(
        models.DashboardSpecialValueMapOptions(models.SpecialValueMatch.NULL, result)
    )


def _thresholds(steps: Steps) -> dashboard.ThresholdsConfig:
    config = dashboard.ThresholdsConfig().mode(models.ThresholdsMode.ABSOLUTE)
    return config.steps([models.Threshold(value=value, color=color) for value, color in steps])
