"""The committed dashboard files: equal to the code and clean by the lint, which itself finds every mistake."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from crm_analytics.core.settings import PROJECT_DIR
from crm_analytics.dashboards.generate import FOLDER, generated
from crm_analytics.dashboards.tools.lint import DATASOURCES, panels_of, problems
from crm_analytics.dashboards.tools.panel_fields import properties_of, text_of_null


@pytest.fixture(scope="module")
def boards() -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted(FOLDER.glob("*.json"))]


def test_committed_files_are_what_the_code_generates():
    """The committed files equal what the code generates."""
    committed = {path: path.read_text(encoding="utf-8") for path in FOLDER.glob("*.json")}
    assert committed == generated(), "run make generate and commit"


def test_dashboards_pass_the_lint(boards):
    """All dashboards pass the lint: no overlapping panels, missing definitions or dead links."""
    assert len(boards) == 7
    assert problems(boards) == []


def test_a_missing_value_says_why_it_is_missing(boards):
    """Missing values say why: a source without leads has no cost per lead, which isn't a missing target."""
    ask_targets = re.compile(r"target|_pace$|_attainment$|_needed_per_day$|^cpl_maximum$")
    tried = set()
    for board in boards:
        for panel in panels_of(board):
            if panel["type"] in ("stat", "table"):
                for column in properties_of(panel):
                    text = text_of_null(panel, column)
                    assert ("target" in str(text)) == bool(ask_targets.search(column)), (
                        panel["title"],
                        column,
                    )
                    tried.add(text)
    assert tried == {
        "–", "", "never", "by hand", "a person", "no data yet", "no target set", "no target above 0", "no target, or month over",
    }  # fmt: skip


def test_the_first_day_of_a_month_shows(boards):
    """On the first day of a month the actual is one point, which a line alone wouldn't show."""
    panels = [panel for board in boards for panel in panels_of(board) if panel["type"] == "trend"]
    assert [properties_of(panel)["actual"]["custom.showPoints"] for panel in panels] == ["auto", "auto"]


def _set(path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    """Returns a change that puts `value` at a dotted path; digits are list positions."""

    def change(board: dict[str, Any]) -> None:
        *way, last = [int(part) if part.isdigit() else part for part in path.split(".")]
        for part in way:
            board = board[part]  # type: ignore[index]
        board[last] = value  # type: ignore[index]

    return change


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (_set("panels.1.id", 1), "panel id 1 is used 2 times"),
        (_set("panels.1.type", "graph"), "type 'graph'"),
        (_set("panels.1.description", " "), "has no description"),
        (_set("panels.1.datasource", {}), "no explicit data source"),
        (_set("panels.1.gridPos", {"x": 0, "y": 0, "w": 6, "h": 6}), "overlap"),
        (_set("panels.1.gridPos", {"x": 20, "y": 90, "w": 6, "h": 6}), "outside the grid"),
        (_set("panels.1.options.reduceOptions.calcs", []), "reduceOptions.calcs"),
        (
            _set("panels.2.options.reduceOptions.fields", "/^(repairs|repairs_before)$/"),
            "must match the display names",
        ),
        (_set("panels.2.options.reduceOptions.fields", "/^(Repairs)$/"), "must match the display names"),
        (_set("panels.2.fieldConfig.overrides.1.properties.0.value", "Repairs"), "'Repairs' is used 2 times"),
        (_set("panels.1.fieldConfig.defaults.mappings", []), "column units has no text for NULL"),
        (_set("panels.1.fieldConfig.defaults.unit", "currencyUSD"), "unit 'currencyUSD'"),
        (_set("panels.1.type", "trend"), "give xField its own unit"),
        (_set("panels.1.targets.0.rawSql", "SELECT 1 WHERE 'a' IN ($source)"), "bare $variable"),
        (_set("panels.1.targets.0.rawSql", "SELECT ${source:singlequote}"), "${source:sqlstring}"),
        (_set("panels.1.targets.0.rawSql", "SELECT 1 WHERE $__timeFilter(lower(a))"), "nests parentheses"),
        (_set("panels.1.targets.0.rawSql", "SELECT $__timeGroup(a, '1M')"), "$__timeGroup"),
        (_set("panels.1.targets.0.rawSql", "SELECT 1 WHERE a IN (${source:sqlstring})"), "nothing is chosen"),
        (_set("panels.1.targets.0.rawSql", "SELECT ${other:sqlstring}"), "used but not defined"),
        (_set("panels.1.targets.0.datasource", {"type": "postgres", "uid": "x"}), "data source"),
        (_set("templating.list.0.name", "unused"), "variable unused isn't used"),
        (_set("templating.list.3.skipUrlSync", False), "dagster_url takes its value from the URL"),
        (_set("links.0.tags", ["nobody"]), "no dashboard has the tags"),
        (_set("timezone", "browser"), "timezone 'browser'"),
        (
            _set("panels.1.fieldConfig.overrides.0.properties.3.value", []),
            "column units doesn't link to its explanation",
        ),
        (
            _set(
                "panels.1.fieldConfig.overrides.0.properties.3.value.0.url",
                "/d/crm-analytics-explain?var-metric=leads",
            ),
            "column units doesn't link to its explanation",
        ),
        (
            _set("panels.1.fieldConfig.overrides.0.properties.3.value.0.url", "/d/nowhere"),
            "the dashboard nowhere",
        ),
    ],
)
def test_lint_finds(boards, change, complaint):
    """Every rule of the lint finds its mistake."""
    broken = copy.deepcopy(next(board for board in boards if board["title"] == "Executive"))
    change(broken)
    found = problems([broken])
    assert any(complaint in line for line in found), found


def test_lint_finds_a_repeated_uid(boards):
    """A repeated uid is found: Grafana would silently keep one of the two dashboards."""
    assert any("uid" in line for line in problems([boards[0], boards[0]]))


def test_provisioning_files_name_the_same_data_sources_and_the_folder_of_the_dashboards():
    """Provisioning, compose file, guide and dashboards agree, so that dashboards appear and have data."""
    folder = PROJECT_DIR / "grafana" / "provisioning"
    sources = yaml.safe_load((folder / "datasources" / "databases.yaml").read_text())
    assert sources["apiVersion"] == 1
    assert {(one["type"], one["uid"]) for one in sources["datasources"]} == DATASOURCES
    for one in sources["datasources"]:
        assert one["editable"] is False
        assert one["user"] == "grafana_reader"
        assert one["secureJsonData"] == {"password": "$GRAFANA_READER_PASSWORD"}
        assert one["jsonData"]["database"] and one["jsonData"]["sslmode"]
        assert 5 <= one["jsonData"]["maxOpenConns"] <= 10
        assert "://" not in one["url"]
    providers = yaml.safe_load((folder / "dashboards" / "dashboards.yaml").read_text())
    assert providers["apiVersion"] == 1
    (provider,) = providers["providers"]
    assert provider["type"] == "file"
    guide = (PROJECT_DIR / "docs" / "dashboards.md").read_text(encoding="utf-8")
    assert f"`{provider['options']['path']}`" in guide.split("## Without Docker")[1]
    compose = yaml.safe_load((PROJECT_DIR / "docker-compose.yml").read_text())
    mounts = {
        volume.split(":")[1]: Path(volume.split(":")[0])
        for volume in compose["services"]["grafana"]["volumes"]
    }
    assert (PROJECT_DIR / mounts[provider["options"]["path"]]).resolve() == FOLDER
