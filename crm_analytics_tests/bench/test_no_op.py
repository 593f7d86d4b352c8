"""The run that does nothing: it has the shape of the real one."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import dagster as dg

from bench.environment import Environment
from bench.no_op import record
from bench.platform import Platform, new_platform, write_sample
from crm_analytics.orchestration.instance import open_instance

REPORTED = (dg.DagsterEventType.ASSET_MATERIALIZATION, dg.DagsterEventType.ASSET_CHECK_EVALUATION)
SHAPE = (*REPORTED, dg.DagsterEventType.STEP_START, dg.DagsterEventType.STEP_SUCCESS)


def events(platform: Platform) -> Counter[Any]:
    """Returns what the last run did, and how often: steps by name, and each report's asset, month and metadata's names."""
    found: Counter[Any] = Counter()
    with open_instance(platform.config) as instance:
        (run,) = instance.get_runs(limit=1)
        for entry in instance.all_logs(run.run_id, of_type=set(SHAPE)):
            event = entry.asset_materialization or entry.asset_check_evaluation
            if event is None:
                assert entry.dagster_event is not None
                found[entry.dagster_event.event_type_value, entry.step_key] += 1
            else:
                found[
                    event.asset_key,
                    event.partition,
                    getattr(event, "check_name", ""),
                    *sorted(event.metadata),
                ] += 1
    return found


def test_the_same_steps_report_the_same(environment: Environment, tmp_path: Path):
    """Fewer steps, months or metadata would be a faster run, and our overhead would look bigger or smaller than it is."""
    sample, shape = write_sample(environment, 2), tmp_path / "shape.json"
    with new_platform(environment, sample) as platform:
        platform.refresh()
        record(platform.config, shape, with_metadata=True)
        real = events(platform)
        platform.python("-m", "bench.no_op_child", str(shape))
        nothing = events(platform)
    assert len(real) > 50
    assert nothing == real
