"""The shape of a refresh, recorded from a real run, so that `bench.no_op_child` can run the same and do nothing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import dagster as dg

from crm_analytics.core.settings import Settings
from crm_analytics.definitions import build_defs
from crm_analytics.orchestration.instance import open_instance


def record(config: Settings, path: Path, *, with_metadata: bool) -> dict[str, Any]:
    """Writes the shape of a platform's last run to a file, and returns it.

    The shape has the run's months, and its steps with their assets, dependencies and checks; `with_metadata`, also what
    each asset reported for each month, and each check.
    """
    with open_instance(config) as instance:
        (run,) = instance.get_runs(limit=1)
        assets = _events(instance, run.run_id, dg.DagsterEventType.ASSET_MATERIALIZATION)
        checks = _events(instance, run.run_id, dg.DagsterEventType.ASSET_CHECK_EVALUATION)
    reported = [
        {
            "asset": event.asset_key.to_user_string(),
            "month": event.partition,
            "metadata": event.metadata if with_metadata else {},
        }
        for event in (entry.asset_materialization for entry in assets)
    ]
    found = {
        (event.asset_key.to_user_string(), event.check_name): event.metadata if with_metadata else {}
        for event in (entry.asset_check_evaluation for entry in checks)
    }
    defs = build_defs(config)
    shape: dict[str, Any] = {
        "first_month": f"{config.start_month:%Y-%m}",
        "timezone": config.business_timezone,
        "tags": {name: value for name, value in run.tags.items() if "asset_partition_range" in name},
        "steps": list(_steps([*(defs.assets or []), *(defs.asset_checks or [])], reported, found)),
    }
    path.write_text(dg.serialize_value(shape))
    return shape


def _events(instance: dg.DagsterInstance, run_id: str, kind: dg.DagsterEventType) -> list[Any]:
    return list(instance.all_logs(run_id, of_type=kind))


def _steps(
    definitions: Iterable[Any], reported: list[dict[str, Any]], found: dict[tuple[str, str], Any]
) -> Iterator[dict[str, Any]]:
    """Yields the steps among the definitions that materialized an asset or evaluated a check."""
    for definition in definitions:
        if not isinstance(definition, dg.AssetsDefinition):
            continue
        assets = [
            {"key": spec.key.to_user_string(), "deps": [dep.asset_key.to_user_string() for dep in spec.deps]}
            for spec in definition.specs
        ]
        checks = [
            {
                "name": spec.name,
                "asset": spec.asset_key.to_user_string(),
                "blocking": spec.blocking,
                "deps": [dep.asset_key.to_user_string() for dep in spec.additional_deps],
                "metadata": found.get((spec.asset_key.to_user_string(), spec.name)),
            }
            for spec in definition.check_specs
        ]
        checks = [check for check in checks if check["metadata"] is not None]
        keys = {asset["key"] for asset in assets}
        reports = [report for report in reported if report["asset"] in keys]
        if reports or checks:
            yield {
                "name": definition.op.name,
                "pool": definition.op.pool,
                "assets": assets,
                "checks": checks,
                "reports": reports,
            }
