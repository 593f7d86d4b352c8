"""The Definitions as Dagster sees them: order of steps, backfills, metadata, automation."""

from __future__ import annotations

import re
import subprocess
import sys
from typing import Any

import dagster as dg
import psycopg

from crm_analytics.analytics.warehouse import catalog
from crm_analytics.analytics.warehouse.refresh import MEASURES
from crm_analytics.core.settings import Settings
from crm_analytics.definitions import defs
from crm_analytics.orchestration.analytics.column_lineage import GENERATED
from crm_analytics.orchestration.analytics.fact_assets import fact_specs
from crm_analytics.orchestration.analytics.franchise import Franchise
from crm_analytics.orchestration.analytics.metric_assets import DAILY, MONTHLY
from crm_analytics.orchestration.analytics.raw_assets import RAW_KEYS

GRAPH = defs.resolve_asset_graph()
ANALYTICS = [key for key in GRAPH.get_all_asset_keys() if key.path[0] in ("raw", "analytics")]


def test_definitions_load_in_a_fresh_interpreter() -> None:
    """Importing the Definitions needs no database and no landing folder, and prints no warning."""
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


def test_step_order_raw_before_metrics() -> None:
    """Every load runs before the metrics. Facts are views, so without direct dependencies metrics once ran first."""
    job = defs.resolve_job_def("refresh")
    steps = [node.name for node in job.graph.nodes_in_topological_order]
    raw = {"__".join(key.path) for key in RAW_KEYS if key.path[0] == "raw"}
    assert len(raw) == 7
    assert max(steps.index(step) for step in raw) < steps.index("metrics")
    upstream = GRAPH.get(DAILY).parent_keys
    assert {key for key in RAW_KEYS if key.path[0] == "raw"} <= upstream
    assert dg.AssetKey(["analytics", "targets"]) not in upstream, (
        "metrics are compared with targets, not made of them"
    )


def test_every_executable_analytics_asset_shares_the_months_and_backfills_in_one_run() -> None:
    """Executable analytics assets share the months and backfill in one run; ten years would otherwise be 120 runs."""
    executable = [key for key in ANALYTICS if GRAPH.get(key).is_executable]
    assert set(executable) == {*RAW_KEYS, DAILY, MONTHLY}
    for key in executable:
        assert GRAPH.get(key).partitions_def == Franchise(Settings()).months, key
        assert GRAPH.get(key).backfill_policy == dg.BackfillPolicy.single_run(), key


def test_every_asset_explains_itself() -> None:
    """Every asset has a description, owners, kinds and a group, because people meet assets in the UI first."""
    for spec in defs.resolve_all_asset_specs():
        assert spec.description and spec.owners and spec.kinds and spec.group_name != "default", spec.key


def test_columns_in_the_ui_are_those_of_the_catalog(analytics: psycopg.Connection[Any]) -> None:
    """The columns of facts, which the code lists because no run materializes them, equal the catalog's."""
    for spec in fact_specs(Franchise(Settings())):
        schema = spec.metadata["dagster/column_schema"]
        found = catalog.columns(analytics, *spec.key.path)
        assert [(c.name, c.type, c.description) for c in schema.columns] == [
            (c.name, c.type, c.comment) for c in found
        ], spec.key


def test_every_column_is_traced_to_columns_of_its_parents(analytics: psycopg.Connection[Any]) -> None:
    """Every column leads to existing columns of its parents, from a ratio in Grafana back to the export's columns."""
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
    """The lineage of a generated column names the measures that PostgreSQL computes it from."""
    for table in ("daily_metrics", "monthly_metrics"):
        generated = {
            column.name: {
                measure for measure in MEASURES if re.search(rf"\b{measure}\b", column.default or "")
            }
            for column in catalog.columns(analytics, "analytics", table)
            if column.generated
        }
        assert generated == {name: set(measures) for name, measures in GENERATED.items()}


def test_facts_and_channel_tables_are_between_raw_and_metrics() -> None:
    """The lineage has the facts and channel tables, which hold the rules."""
    assert {key.to_user_string() for key in GRAPH.get(DAILY).parent_keys} >= {
        "analytics/job_facts", "analytics/lead_facts", "analytics/daily_spend", "analytics/orphan_payments",
    }  # fmt: skip
    assert (
        dg.AssetKey(["analytics", "lead_channels"])
        in GRAPH.get(dg.AssetKey(["analytics", "lead_facts"])).parent_keys
    )
    assert GRAPH.get(MONTHLY).parent_keys == {DAILY}


def test_automation_runs_by_default() -> None:
    """Every sensor and schedule runs by default; Dagster's own default is STOPPED."""
    repository = defs.get_repository_def()
    for sensor in repository.sensor_defs:
        assert sensor.default_status == dg.DefaultSensorStatus.RUNNING, sensor.name
    for schedule in repository.schedule_defs:
        assert schedule.default_status == dg.DefaultScheduleStatus.RUNNING, schedule.name


def test_checks_that_mean_wrong_numbers_block() -> None:
    """Checks that mean wrong numbers block, so that they stop what is downstream in the same run."""
    blocking = {
        key.name for key in GRAPH.asset_check_keys if GRAPH.get(key).blocking and key.asset_key in ANALYTICS
    }
    assert blocking == {
        "payments_linked", "revenue_adds_up", "metrics_equal_facts", "daily_values_sane", "daily_adds_up_to_monthly",
    }  # fmt: skip


def test_no_check_has_partitions() -> None:
    """Each check has one result for all months of a run: BatchedEventStorage plans it once, without a month."""
    checks = {key: GRAPH.get(key).partitions_def for key in GRAPH.asset_check_keys}
    assert len(checks) > 20 and set(checks.values()) == {None}, checks
