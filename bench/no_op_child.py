"""A process that makes one Dagster run of a recorded shape (argument: its file) whose steps do nothing.

It imports what Dagster and its storage need, and nothing of the platform's own steps.
"""

import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg

from crm_analytics.core.settings import settings
from crm_analytics.orchestration.instance import open_instance


def main(path: str) -> None:
    """Makes the run on the Dagster storage that the environment names."""
    shape = dg.deserialize_value(Path(path).read_text(), dict)
    months = dg.MonthlyPartitionsDefinition(
        shape["first_month"], fmt="%Y-%m", timezone=shape["timezone"], end_offset=1
    )
    steps = [_assets(step, months) if step["assets"] else _checks(step) for step in shape["steps"]]
    defs = dg.Definitions(
        assets=[step for step in steps if not isinstance(step, dg.AssetChecksDefinition)],
        asset_checks=[step for step in steps if isinstance(step, dg.AssetChecksDefinition)],
        jobs=[dg.define_asset_job("refresh")],
        loggers={"console": _quiet},
        executor=dg.in_process_executor,
    )
    with open_instance(settings()) as instance:
        result = defs.resolve_job_def("refresh").execute_in_process(
            instance=instance, tags=shape["tags"], run_config={"loggers": {"console": {}}}
        )
    assert result.success


def _assets(step: dict[str, Any], months: dg.PartitionsDefinition[str]) -> dg.AssetsDefinition:
    """Returns a step that reports the same for its assets' months."""

    @dg.multi_asset(
        name=step["name"],
        specs=[dg.AssetSpec(_key(asset["key"]), deps=map(_key, asset["deps"])) for asset in step["assets"]],
        partitions_def=months,
        backfill_policy=dg.BackfillPolicy.single_run(),
        pool=step["pool"],
    )
    def body(context: dg.AssetExecutionContext) -> Iterator[dg.MaterializeResult[None]]:
        for report in step["reports"]:
            if report["metadata"]:
                context.add_asset_metadata(report["metadata"], _key(report["asset"]), report["month"])
        for asset in step["assets"]:
            yield dg.MaterializeResult(asset_key=_key(asset["key"]))

    return body


def _checks(step: dict[str, Any]) -> dg.AssetChecksDefinition:
    """Returns a step whose checks pass."""

    @dg.multi_asset_check(
        name=step["name"],
        specs=[
            dg.AssetCheckSpec(
                check["name"],
                asset=_key(check["asset"]),
                blocking=check["blocking"],
                additional_deps=map(_key, check["deps"]),
            )
            for check in step["checks"]
        ],
        can_subset=True,
        pool=step["pool"],
    )
    def body() -> Iterator[dg.AssetCheckResult]:
        for check in step["checks"]:
            yield dg.AssetCheckResult(
                passed=True,
                asset_key=_key(check["asset"]),
                check_name=check["name"],
                metadata=check["metadata"],
            )

    return body


def _key(text: str) -> dg.AssetKey:
    return dg.AssetKey.from_user_string(text)


@dg.logger(config_schema={})
def _quiet(_: Any) -> logging.Logger:
    return logging.Logger("quiet", logging.CRITICAL)


if __name__ == "__main__":
    main(sys.argv[1])
