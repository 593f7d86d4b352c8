"""The lake in Dagster: there only when it is configured, written when something is pending, red until it is."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from click.testing import CliRunner
from rich.console import Console

from crm_analytics.analytics.lake import errors
from crm_analytics.analytics.lake import write as lake_write
from crm_analytics.cli.lake import write_lake
from crm_analytics.cli.main import main
from crm_analytics.definitions import build_defs
from crm_analytics.orchestration.analytics.lake import KEYS, NOTHING_WAITS, SAME
from crm_analytics_tests.orchestration.conftest import JOBS_HEADER, Platform, job_row

OCTOBER = date(2024, 10, 1)


@pytest.fixture
def with_lake(platform: Platform, new_database: Callable[..., str], tmp_path: Path) -> Platform:
    """The platform with a lake, and October refreshed."""
    platform.change(lake_url=(tmp_path / "lake").as_uri(), lake_catalog_url=new_database())
    platform.drop("jobs/october.csv", JOBS_HEADER, job_row("A", "2024-10-05"), job_row("B", "2024-10-06"))
    assert platform.run(OCTOBER, OCTOBER).success
    return platform


def requests(platform: Platform) -> list[dg.RunRequest]:
    sensor = platform.defs.resolve_sensor_def("write_lake")
    context = dg.build_sensor_context(
        instance=platform.instance, resources=platform.resources, definitions=platform.defs
    )
    return list(sensor.evaluate_tick(context).run_requests or [])


def run(platform: Platform, job: str, tags: dict[str, str] | None = None) -> dg.ExecuteInProcessResult:
    return platform.defs.resolve_job_def(job).execute_in_process(
        instance=platform.instance,
        tags=tags or {},
        run_config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}},
        raise_on_error=False,
    )


def checks(result: dg.ExecuteInProcessResult) -> dict[str, tuple[bool, str | None]]:
    return {
        f"{check.asset_key.path[-1]} {check.check_name}": (check.passed, check.description)
        for check in result.get_asset_check_evaluations()
    }


def test_without_a_lake_there_is_nothing_of_it(platform: Platform) -> None:
    """No asset, check, job, schedule or sensor, and nothing of pyiceberg in the process."""
    defs = platform.defs
    names = [
        *(key.to_user_string() for key in defs.resolve_asset_graph().get_all_asset_keys()),
        *(f"{key.asset_key} {key.name}" for key in defs.resolve_asset_graph().asset_check_keys),
        *(item.name for item in (*(defs.jobs or []), *(defs.schedules or []), *(defs.sensors or []))),
    ]
    assert len(names) > 30
    assert [name for name in names if "lake" in name] == []


def test_the_sensor_writes_what_a_refresh_changed_and_then_rests(with_lake: Platform) -> None:
    """One request for everything pending; none when it is written, and another one when a month is restated."""
    (asked,) = requests(with_lake)
    assert asked.run_key == requests(with_lake)[0].run_key, "nothing changed, so the same key"
    result = run(with_lake, "lake", dict(asked.tags))
    assert result.success
    assert all(passed for passed, _ in checks(result).values()) and len(checks(result)) == 4
    assert requests(with_lake) == []
    with_lake.drop("jobs/late.csv", JOBS_HEADER, job_row("C", "2024-10-07"))
    assert with_lake.run(OCTOBER, OCTOBER).success
    (again,) = requests(with_lake)
    assert again.run_key != asked.run_key
    result = run(with_lake, "lake", dict(again.tags))
    event = result.asset_materializations_for_node("lake")[0]
    assert event.metadata["months"].value == "2024-10 to 2024-10"
    assert event.metadata["rows_in_run"].value == 3


def test_a_stale_month_does_not_start_the_lake(with_lake: Platform) -> None:
    """It gets there after its refresh, which makes it pending again."""
    with_lake.execute("UPDATE raw.jobs SET job_date = '2024-10-09' WHERE job_id = 'A'")
    assert requests(with_lake) == []


def test_the_check_is_red_while_something_waits_for_over_an_hour(
    with_lake: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A write that dies after the commit of PostgreSQL leaves a check that tells, until a write succeeds."""

    def fail(*_: Any) -> None:
        raise OSError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(lake_write, "_note", fail)
        assert not run(with_lake, "lake").success
    name = f"monthly_metrics {NOTHING_WAITS}"
    passed, told = checks(run(with_lake, "check_lake_queue"))[name]
    assert passed and told is not None and "1 month waiting for the lake since" in told
    with_lake.execute("UPDATE analytics.refresh_log SET finished_at = finished_at - interval '61 minutes'")
    passed, told = checks(run(with_lake, "check_lake_queue"))[name]
    assert not passed and told is not None and "crm-analytics lake" in told
    assert run(with_lake, "lake").success
    assert checks(run(with_lake, "check_lake_queue"))[name] == (True, "nothing waits for the lake")


def test_a_difference_turns_the_check_of_its_table_red(with_lake: Platform) -> None:
    """The nightly comparison names the month, the measure, and both values."""
    assert run(with_lake, "lake").success
    with_lake.execute("UPDATE analytics.daily_metrics SET repairs = 5 WHERE date = '2024-10-05'")
    found = checks(run(with_lake, "check_lake"))
    assert found[f"daily_metrics {SAME}"] == (False, "2024-10 repairs: 0, PostgreSQL has 5")
    assert found[f"job_facts {SAME}"][0] and found[f"monthly_metrics {SAME}"][0]


def test_a_missing_extra_is_one_sentence(with_lake: Platform, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything else goes on; the run and the command name the remedy."""
    monkeypatch.setattr(errors, "find_spec", lambda name: None)
    result = run(with_lake, "lake")
    failure = result.get_step_failure_events()[0].step_failure_data.error
    assert failure is not None and "pip install 'crm-analytics[lake]'" in failure.message
    with pytest.raises(errors.LakeError, match="pip install"):
        write_lake(with_lake.settings, rewrite=False, console=Console(quiet=True))


def test_definitions_load_without_the_extra(with_lake: Platform, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the step of the lake needs its libraries."""
    for name in [name for name in sys.modules if name.split(".")[0] == "pyiceberg"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "pyiceberg", None)
    assert set(KEYS.values()) <= build_defs(with_lake.settings).resolve_asset_graph().get_all_asset_keys()


def test_the_command_writes_and_tells_how_to_read(with_lake: Platform) -> None:
    """It is one run in the UI, and prints addresses that DuckDB takes."""
    console = Console(record=True, width=300, file=io.StringIO())
    assert write_lake(with_lake.settings, rewrite=False, console=console)
    text = console.export_text()
    assert "iceberg_scan('file://" in text and ".metadata.json" in text
    assert requests(with_lake) == []


def test_the_command_without_a_lake_says_how_to_have_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """The two variables, in one sentence."""
    monkeypatch.delenv("LAKE_URL", raising=False)
    done = CliRunner().invoke(main, ["lake"])
    assert done.exit_code == 1
    assert "set LAKE_URL" in done.output and "LAKE_CATALOG_URL" in done.output
