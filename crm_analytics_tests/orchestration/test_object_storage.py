"""The platform with its landing folder in object storage: sensor, run, status and commands, also when it fails."""

from __future__ import annotations

import subprocess
import sys
from datetime import date
from pathlib import Path

import dagster as dg
import pytest
from pydantic import SecretStr

from crm_analytics.analytics.ingest.storage.landing import LandingUnavailable
from crm_analytics_tests.conftest import PATIENCE
from crm_analytics_tests.object_storage import KEY, SECRET, Prefix
from crm_analytics_tests.orchestration.conftest import JOBS_HEADER, Platform, job_row
from crm_analytics_tests.orchestration.test_automation import launch, tick
from crm_analytics_tests.orchestration.test_status import look

OCTOBER = date(2024, 10, 1)


@pytest.fixture
def in_bucket(platform: Platform, prefix: Prefix) -> Platform:
    """The platform, whose landing folder is a prefix of a bucket."""
    platform.change(
        landing_url=prefix.url,
        landing_patience=1,
        aws_access_key_id=KEY,
        aws_secret_access_key=SecretStr(SECRET),
        aws_region="us-east-1",
        aws_endpoint_url=prefix.endpoint,
    )
    return platform


def command(platform: Platform, *arguments: str, **changes: str) -> tuple[int, str]:
    """Runs `crm-analytics` in a process of its own; returns its exit code and all that it printed."""
    done = subprocess.run(
        [Path(sys.executable).parent / "crm-analytics", *arguments],
        env={**platform.settings.environment(), **changes}, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        timeout=PATIENCE, check=False,
    )  # fmt: skip
    assert "Traceback" not in done.stdout and SECRET not in done.stdout, done.stdout
    return done.returncode, " ".join(done.stdout.split())


def test_the_sensor_loads_objects(in_bucket: Platform, prefix: Prefix) -> None:
    """New objects start one run, replaced ones another, and the runs say where the files are."""
    prefix.write("jobs/a.csv", "\n".join([JOBS_HEADER, job_row("AAAAAA", "2024-10-31")]))
    launch(in_bucket, tick(in_bucket, "load_landing_files"))
    assert tick(in_bucket, "load_landing_files") == []
    event = in_bucket.instance.get_latest_materialization_event(dg.AssetKey(["raw", "jobs"]))
    assert event is not None and event.asset_materialization is not None
    assert event.asset_materialization.metadata["dagster/uri"].value == f"{prefix.url}/jobs"
    prefix.write("jobs/a.csv", "\n".join([JOBS_HEADER, job_row("AAAAAA", "2024-10-30")]))
    launch(in_bucket, tick(in_bucket, "load_landing_files"))
    assert tick(in_bucket, "load_landing_files") == []
    assert in_bucket.query("SELECT job_date FROM raw.jobs") == [(date(2024, 10, 30),)]
    assert look(in_bucket).waiting == []


def test_storage_that_refuses_is_told_everywhere(in_bucket: Platform, prefix: Prefix) -> None:
    """Tick, run, status and commands have the sentence, and none of them has the secret."""
    in_bucket.change(aws_secret_access_key=SecretStr("wrong-secret"))
    sentence = f"{prefix.url} at {prefix.endpoint} refuses these credentials (SignatureDoesNotMatch)"
    with pytest.raises(LandingUnavailable) as raised:
        tick(in_bucket, "load_landing_files")
    assert str(raised.value).startswith(sentence)
    result = in_bucket.run(OCTOBER, OCTOBER, [dg.AssetKey(["raw", "jobs"])])
    (failed,) = [event for event in result.get_step_failure_events() if event.step_key == "raw__jobs"]
    assert sentence in str(failed.step_failure_data.error) and "wrong-secret" not in str(failed)
    assert [text for text in look(in_bucket).to_do if text.startswith(sentence)]
    for arguments in (["rebuild", "jobs", "--yes"], ["check", "jobs/a.csv"], ["diff", "jobs/a.csv"]):
        code, told = command(in_bucket, *arguments)
        # the answer to a question about one object has no body
        assert (
            code == 1 and "refuses these credentials" in told and told.startswith("the landing folder: ")
        ), told
        assert "wrong-secret" not in told


def test_an_unreachable_server_is_tried_again(in_bucket: Platform) -> None:
    """A run that fails because the server is away is one that a sensor repeats."""
    from crm_analytics.orchestration.failures import run_failure

    in_bucket.change(aws_endpoint_url="http://127.0.0.1:1")
    result = in_bucket.run(OCTOBER, OCTOBER, [dg.AssetKey(["raw", "jobs"])])
    failure = run_failure(in_bucket.instance, result.run_id)
    assert failure.transient and "cannot be reached (no answer)" in failure.reason
    (told,) = [
        text for text in look(in_bucket).to_do if text.startswith(in_bucket.settings.landing_url or "")
    ]
    assert "\n" not in told


def test_two_landing_folders_are_refused_without_their_secrets(in_bucket: Platform) -> None:
    """What is wrong with several settings together is told without all of their values."""
    code, told = command(in_bucket, "check", "jobs/a.csv", LANDING_DIR="/exports")
    assert (code, told) == (
        1,
        "settings: LANDING_DIR and LANDING_URL are both set, and there is one landing folder: unset one of them",
    )


def test_commands_take_objects(in_bucket: Platform, prefix: Prefix) -> None:
    """check, diff, refresh and rebuild work on the bucket, and a file that is nowhere is a usage error."""
    prefix.write("jobs/a.csv", "\n".join([JOBS_HEADER, job_row("AAAAAA", "2024-10-31")]))
    code, told = command(in_bucket, "check", "jobs/a.csv")
    assert code == 0 and "source jobs" in told and "1 inserted" in told
    assert command(in_bucket, "diff", f"{prefix.url}/jobs/a.csv")[0] == 3
    code, told = command(in_bucket, "check", "jobs/z.csv")
    assert code == 2 and f"no file jobs/z.csv, neither here nor in the landing folder {prefix.url}" in told
    code, told = command(in_bucket, "refresh", "--from", "2024-10", "--to", "2024-10")
    assert code == 0 and "│ jobs │ loaded │ 1 │ 1 │ 1 │" in told, told
    code, told = command(in_bucket, "rebuild", "jobs", "--without", "a.csv", "--yes")
    assert code == 0 and "jobs is rebuilt" in told
    assert in_bucket.query("SELECT count(*) FROM raw.jobs") == [(0,)]
    # another landing folder than that of the settings
    folder = in_bucket.landing
    (folder / "jobs").mkdir()
    (folder / "jobs" / "b.csv").write_text("\n".join([JOBS_HEADER, job_row("BBBBBB", "2024-10-31")]))
    code, told = command(in_bucket, "diff", "--landing", str(folder), "jobs/b.csv")
    # one job instead of the one that was taken back
    assert code == 0 and "records read 1, inserted 1" in told, told
    code, told = command(in_bucket, "diff", "--landing", "s3://", "jobs/b.csv")
    assert code == 2 and "write s3://bucket or s3://bucket/prefix" in told
