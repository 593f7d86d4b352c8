"""The assembly as Dagster sees it: what it needs to order, backfill and show things right."""

from __future__ import annotations

import re
import subprocess
import sys
from typing import Any

import dagster as dg
import psycopg
import pytest

from crm_analytics.analytics.warehouse import catalog
from crm_analytics.analytics.warehouse.refresh import MEASURES
from crm_analytics.definitions import defs
from crm_analytics.orchestration.analytics.column_lineage import GENERATED
from crm_analytics.orchestration.analytics.fact_assets import fact_specs
from crm_analytics.orchestration.analytics.metric_assets import DAILY, MONTHLY
from crm_analytics.orchestration.analytics.raw_assets import RAW_KEYS
from crm_analytics.orchestration.partitions import months

GRAPH = defs.resolve_asset_graph()
ANALYTICS = [key for key in GRAPH.get_all_asset_keys() if key.path[0] in ("raw", "analytics")]


def test_definitions_load_in_a_fresh_interpreter() -> None:
    """The code server imports them first thing: no database, no landing folder, no warning may be needed for it."""
    code = (
        "import dagster as dg, crm_analytics.definitions as d; dg.Definitions.validate_loadable(d.defs);"
        " print(len(d.defs.resolve_asset_graph().get_all_asset_keys()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={"PATH": "", "ANALYTICS_DATABASE_URL": "postgresql://nobody@127.0.0.1:1/none"},
    )
    assert int(done.stdout) >= 16
    assert done.stderr == ""


@pytest.mark.parametrize(
    "module",
    [
        "analytics.ingest.loading.load",
        "analytics.ingest.dry_run",
        "analytics.warehouse.refresh",
        "analytics.warehouse.catalog",
        "core.migrations",
        "crm",
        "crm.proof.invariants",
    ],
)
def test_work_is_free_of_dagster(module: str) -> None:
    """Parsing, loading, SQL and migrations are used and tested without Dagster (decision 12)."""
    code = f"import sys, crm_analytics.{module}; assert 'dagster' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_step_order_raw_before_metrics() -> None:
    """Facts are views that nobody executes, so without direct dependencies metrics ran before the loads (seen)."""
    job = defs.resolve_job_def("refresh")
    steps = [node.name for node in job.graph.nodes_in_topological_order]
    raw = {"__".join(key.path) for key in RAW_KEYS if key.path[0] == "raw"}
    assert len(raw) == 6
    assert max(steps.index(step) for step in raw) < steps.index("metrics")
    upstream = GRAPH.get(DAILY).parent_keys
    assert {key for key in RAW_KEYS if key.path[0] == "raw"} <= upstream
    assert dg.AssetKey(["analytics", "targets"]) not in upstream, (
        "metrics are compared with targets, not made of them"
    )


def test_every_executable_analytics_asset_shares_the_months_and_backfills_in_one_run() -> None:
    """One run for a range: else a backfill of ten years is 120 runs."""
    executable = [key for key in ANALYTICS if GRAPH.get(key).is_executable]
    assert set(executable) == {*RAW_KEYS, DAILY, MONTHLY}
    for key in executable:
        assert GRAPH.get(key).partitions_def == months, key
        assert GRAPH.get(key).backfill_policy == dg.BackfillPolicy.single_run(), key


def test_every_asset_explains_itself() -> None:
    """People meet the assets in the UI first."""
    for spec in defs.resolve_all_asset_specs():
        assert spec.description and spec.owners and spec.kinds and spec.group_name != "default", spec.key


def test_columns_in_the_ui_are_those_of_the_catalog(analytics: psycopg.Connection[Any]) -> None:
    """Nobody materializes the facts, so their columns stand in the code: names, types and meanings must be true."""
    for spec in fact_specs:
        schema = spec.metadata["dagster/column_schema"]
        found = catalog.columns(analytics, *spec.key.path)
        assert [(c.name, c.type, c.description) for c in schema.columns] == [
            (c.name, c.type, c.comment) for c in found
        ], spec.key


def test_every_column_is_traced_to_columns_of_its_parents(analytics: psycopg.Connection[Any]) -> None:
    """From a ratio in Grafana back to the export's columns, without a gap and without a column that is not there."""
    constants = {
        "lead_facts.origin", "orphan_payments.source", "orphan_payments.segment", "call_facts.segment",
        "daily_metrics.updated_at", "monthly_metrics.updated_at",
    }  # fmt: skip
    untraced = set()
    for node in (GRAPH.get(key) for key in ANALYTICS if GRAPH.get(key).parent_keys):
        lineage = node.metadata["dagster/column_lineage"].deps_by_column
        columns = [column.name for column in catalog.columns(analytics, *node.key.path)]
        assert set(lineage) <= set(columns), node.key
        untraced |= {f"{node.key.path[-1]}.{name}" for name in columns if not lineage.get(name)}
        for origin in (origin for origins in lineage.values() for origin in origins):
            assert origin.asset_key in node.parent_keys, (node.key, origin)
            parents = {column.name for column in catalog.columns(analytics, *origin.asset_key.path)}
            assert origin.column_name in parents, (node.key, origin)
    assert untraced == constants


def test_generated_columns_name_their_measures(analytics: psycopg.Connection[Any]) -> None:
    """What the lineage says a ratio is made of is what PostgreSQL computes it from."""
    for table in ("daily_metrics", "monthly_metrics"):
        generated = {
            column.name: {
                measure for measure in MEASURES if re.search(rf"\b{measure}\b", column.default or "")
            }
            for column in catalog.columns(analytics, "analytics", table)
            if column.generated
        }
        assert generated == {name: set(measures) for name, measures in GENERATED.items()}


def test_facts_and_channel_tables_stand_between_raw_and_metrics() -> None:
    """The lineage shows where the rules are, not only who feeds whom."""
    assert {key.to_user_string() for key in GRAPH.get(DAILY).parent_keys} >= {
        "analytics/job_facts", "analytics/lead_facts", "analytics/daily_spend", "analytics/orphan_payments",
    }  # fmt: skip
    assert (
        dg.AssetKey(["analytics", "lead_channels"])
        in GRAPH.get(dg.AssetKey(["analytics", "lead_facts"])).parent_keys
    )
    assert GRAPH.get(MONTHLY).parent_keys == {DAILY}


def test_automation_runs_by_default() -> None:
    """Sensors and schedules start STOPPED unless told otherwise: nothing would ever load."""
    repository = defs.get_repository_def()
    for sensor in repository.sensor_defs:
        assert sensor.default_status == dg.DefaultSensorStatus.RUNNING, sensor.name
    for schedule in repository.schedule_defs:
        assert schedule.default_status == dg.DefaultScheduleStatus.RUNNING, schedule.name


def test_checks_that_mean_wrong_numbers_block() -> None:
    """A blocking check stops what is downstream in the same run."""
    blocking = {
        key.name for key in GRAPH.asset_check_keys if GRAPH.get(key).blocking and key.asset_key in ANALYTICS
    }
    assert blocking == {"payments_linked", "revenue_adds_up", "daily_values_sane", "daily_adds_up_to_monthly"}
