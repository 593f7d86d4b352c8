"""When the sensors ask again for work whose run failed, tick by tick on a real instance."""

from __future__ import annotations

import re

import dagster as dg
import psycopg
import pytest

from crm_analytics.orchestration.failures import RunFailure, run_failure
from crm_analytics.orchestration.retries import DELAYS, GOES_ON, WORK_TAG, outlook
from crm_analytics_tests.orchestration.conftest import JOBS_HEADER, Platform, job_row


def tick(platform: Platform, sensor: str) -> tuple[list[dg.RunRequest], str]:
    """Evaluates a sensor once; returns what it requests, or why it doesn't."""
    context = dg.build_sensor_context(
        instance=platform.instance, definitions=platform.defs, resources=platform.resources
    )
    answer = platform.sensor(sensor).evaluate_tick(context)
    return list(answer.run_requests or []), answer.skip_message or ""


def launch(platform: Platform, requests: list[dg.RunRequest]) -> dg.ExecuteInProcessResult:
    """Runs the one request as the daemon does, with its run key as a tag."""
    (request,) = requests
    return platform.launch(
        {**request.tags, "dagster/run_key": request.run_key or ""}, request.asset_selection
    )


def later(platform: Platform, seconds: int) -> None:
    """Lets that much time pass since every run's end."""
    with psycopg.connect(platform.settings.dagster_postgres_url or "", autocommit=True) as storage:
        storage.execute("UPDATE runs SET end_time = end_time - %s", [seconds])


def fail_writes(platform: Platform, table: str, sqlstate: str, message: str = "not today") -> None:
    """Makes the database fail every write of a table, as a full disk or a deadlock would."""
    platform.execute(
        f"""
        CREATE OR REPLACE FUNCTION public.fail() RETURNS trigger LANGUAGE plpgsql AS
        $$ BEGIN RAISE EXCEPTION '{message}' USING ERRCODE = '{sqlstate}'; END $$;
        CREATE OR REPLACE TRIGGER fail BEFORE INSERT OR UPDATE ON {table} EXECUTE FUNCTION public.fail()
        """
    )


def test_full_disk_is_tried_three_times_and_then_given_up(platform: Platform) -> None:
    """A load that finds the disk full follows after 30 s, 2 min and 10 min; the sensor says when, and how to go on."""
    path = platform.drop("jobs/a.csv", JOBS_HEADER, job_row("AAAAAA", "2024-10-31"))
    fail_writes(platform, "raw.jobs", "53100", "could not extend file: No space left on device")
    requests, _ = tick(platform, "load_landing_files")
    base = (requests[0].run_key or "").removesuffix(":1")
    for number, delay in enumerate((30, 120, 600), 1):
        assert not launch(platform, requests).success
        later(platform, delay - 15)
        requests, why = tick(platform, "load_landing_files")
        assert requests == []
        assert re.fullmatch(
            rf"retry {number} of 3 of jobs/a\.csv at \d\d:\d\d:\d\d after: raw__jobs: "
            r"psycopg\.errors\.DiskFull: could not extend file: No space left on device(?s:.*)",
            why,
        )
        later(platform, 15)
        requests, _ = tick(platform, "load_landing_files")
        assert [request.run_key for request in requests] == [f"{base}:{number + 1}"]
    assert not launch(platform, requests).success
    later(platform, 86_400)
    requests, why = tick(platform, "load_landing_files")
    assert requests == []
    assert why.startswith(f"gave up on jobs/a.csv after 3 retries; {GOES_ON}. Run ")
    platform.execute("DROP TRIGGER fail ON raw.jobs")
    path.write_text(path.read_text() + job_row("BBBBBB", "2024-10-30") + "\n")
    requests, _ = tick(platform, "load_landing_files")
    assert launch(platform, requests).success
    assert platform.query("SELECT count(*) FROM raw.jobs") == [(2,)]
    assert tick(platform, "load_landing_files") == ([], "no new or changed files")


def test_stale_months_are_tried_again(platform: Platform) -> None:
    """A refresh that meets a deadlock follows after 30 s, and repairs its months."""
    platform.drop("jobs/a.csv", JOBS_HEADER, job_row("AAAAAA", "2024-10-31"))
    launch(platform, tick(platform, "load_landing_files")[0])
    fail_writes(platform, "analytics.daily_metrics", "40P01", "deadlock detected")
    assert not launch(platform, tick(platform, "refresh_stale_months")[0]).success
    requests, why = tick(platform, "refresh_stale_months")
    assert requests == [] and why.startswith("retry 1 of 3 of 2024-10 at ") and "deadlock detected" in why
    later(platform, 31)
    platform.execute("DROP TRIGGER fail ON analytics.daily_metrics")
    requests, _ = tick(platform, "refresh_stale_months")
    assert launch(platform, requests).success
    assert tick(platform, "refresh_stale_months") == ([], "no month is stale")


def test_permanent_failure_waits_for_news(platform: Platform) -> None:
    """A missing permission fails once: trying again would fail again, and alert again."""
    platform.drop("jobs/a.csv", JOBS_HEADER, job_row("AAAAAA", "2024-10-31"))
    fail_writes(platform, "raw.jobs", "42501", "permission denied for table jobs")
    assert not launch(platform, tick(platform, "load_landing_files")[0]).success
    later(platform, 86_400)
    requests, why = tick(platform, "load_landing_files")
    assert requests == []
    assert why.startswith(f"gave up on jobs/a.csv; {GOES_ON}. Run ")
    assert "permission denied for table jobs" in why
    platform.drop("jobs/b.csv", JOBS_HEADER, job_row("BBBBBB", "2024-10-31"))
    assert tick(platform, "load_landing_files")[0] != [], "another file is news"


def begun(platform: Platform, request: dg.RunRequest, status: dg.DagsterRunStatus) -> dg.DagsterRun:
    """Returns a run for the request that some process has brought this far."""
    run = platform.instance.create_run_for_job(
        platform.defs.resolve_job_def("refresh"),
        tags={**request.tags, "dagster/run_key": request.run_key or ""},
        status=status,
    )
    return run


def test_work_of_a_dead_worker_is_asked_for_at_once(platform: Platform) -> None:
    """A worker's death says nothing about the work: no delay, but not more than three retries either."""
    platform.drop("jobs/a.csv", JOBS_HEADER, job_row("AAAAAA", "2024-10-31"))
    for attempt in range(1, 5):
        ((request,), _) = tick(platform, "load_landing_files")
        assert (request.run_key or "").endswith(f":{attempt}")
        run = begun(platform, request, dg.DagsterRunStatus.STARTED)
        assert tick(platform, "load_landing_files") == ([], f"jobs/a.csv: run {run.run_id} is started")
        platform.instance.report_run_failed(run, "no process holds its lock")
        failure = run_failure(platform.instance, run.run_id)
        assert failure.worker_gone and failure.reason.endswith("no process holds its lock")
        told = outlook(run, failure)
        assert told == (
            f"Retry {attempt} of 3 follows at once."
            if attempt <= len(DELAYS)
            else f"No retry follows: {GOES_ON}."
        )
    assert tick(platform, "load_landing_files")[1].startswith("gave up on jobs/a.csv after 3 retries; ")


def test_canceled_run_is_not_asked_for_again(platform: Platform) -> None:
    """A canceled load is not asked for again, because someone wanted that; the sensor says how to go on."""
    platform.drop("jobs/a.csv", JOBS_HEADER, job_row("AAAAAA", "2024-10-31"))
    ((request,), _) = tick(platform, "load_landing_files")
    run = begun(platform, request, dg.DagsterRunStatus.STARTED)
    platform.instance.report_run_canceled(run)
    assert tick(platform, "load_landing_files") == (
        [],
        f"jobs/a.csv: run {run.run_id} has ended (canceled); {GOES_ON}",
    )


def test_other_runs_have_no_outlook(platform: Platform) -> None:
    """A run that a schedule or a person started is not tried again, and its alert doesn't promise it."""
    run = platform.instance.create_run_for_job(
        platform.defs.resolve_job_def("refresh"), tags={"dagster/run_key": "nightly:2024-10-31"}
    )
    platform.instance.report_run_failed(run)
    assert outlook(run, run_failure(platform.instance, run.run_id)) == ""
    assert WORK_TAG not in run.tags


@pytest.mark.parametrize(
    ("sqlstate", "passes"),
    [
        ("53100", True),
        ("53200", True),
        ("53300", True),
        ("08006", True),
        ("57P01", True),
        ("40P01", True),
        ("40001", True),
        ("55P03", True),
        ("58030", True),
        ("XX000", False),
        ("42501", False),
        ("57014", False),
        ("23505", False),
        ("P0001", False),
    ],
)
def test_sqlstate_decides(analytics: psycopg.Connection, sqlstate: str, passes: bool) -> None:
    """What the database raises passes or does not by its SQLSTATE, also when another exception wraps it."""

    @dg.asset
    def bare() -> None:
        analytics.execute(f"DO $$ BEGIN RAISE EXCEPTION 'x' USING ERRCODE = '{sqlstate}'; END $$".encode())

    @dg.asset
    def wrapped() -> None:
        try:
            analytics.execute(
                f"DO $$ BEGIN RAISE EXCEPTION 'x' USING ERRCODE = '{sqlstate}'; END $$".encode()
            )
        except psycopg.Error as error:
            raise RuntimeError("could not load") from error

    assert failure_of(bare).transient is failure_of(wrapped).transient is passes


@pytest.mark.parametrize(
    ("error", "passes"),
    [
        (OSError(28, "No space left on device"), True),
        (OSError(5, "Input/output error"), True),
        (ConnectionResetError(104, "Connection reset by peer"), True),
        (MemoryError(), True),
        (PermissionError(13, "Permission denied"), False),
        (FileNotFoundError(2, "No such file or directory"), False),
        (ValueError("a defect"), False),
        (dg.Failure("the database is not migrated"), False),
    ],
)
def test_exception_decides(error: Exception, passes: bool) -> None:
    """A full or failing disk and a broken connection pass; a missing file, a defect and a refusal of ours don't."""

    @dg.asset
    def table() -> None:
        raise error

    assert failure_of(table).transient is passes


def test_lost_connection_passes(analytics: psycopg.Connection) -> None:
    """A session that the server ended has no SQLSTATE left to tell."""

    @dg.asset
    def table() -> None:
        analytics.execute("SELECT pg_terminate_backend(pg_backend_pid())")

    failure = failure_of(table)
    assert failure.transient and not failure.worker_gone


@pytest.mark.parametrize(
    "statement",
    [
        "COPY people FROM STDIN",
        "DO $$ BEGIN PERFORM name::int FROM (VALUES ('twelve')) p (name); END $$",
    ],
)
def test_reason_has_no_context(statement: str, analytics: psycopg.Connection) -> None:
    """PostgreSQL quotes the record or statement that it was at: that isn't for alerts, which leave the house."""
    analytics.execute("CREATE TEMP TABLE people (name text, paid int)")

    @dg.asset
    def table() -> None:
        with analytics.cursor() as cursor:
            if statement.startswith("COPY"):
                with cursor.copy(statement) as copy:
                    copy.write("Ann Lee, 12 Elm St\tnothing\n")
            else:
                cursor.execute(statement)

    reason = failure_of(table).reason
    assert "invalid input syntax for type integer" in reason
    assert "CONTEXT" not in reason and "Ann Lee" not in reason and "\n" not in reason


def test_interrupted_run_has_lost_its_worker() -> None:
    """A run that its process was told to end is done again at once: nothing is wrong with its work."""

    @dg.asset
    def table() -> None:
        raise KeyboardInterrupt

    failure = failure_of(table)
    assert failure.worker_gone and failure.transient


def failure_of(asset: dg.AssetsDefinition) -> RunFailure:
    with dg.DagsterInstance.ephemeral() as instance:
        result = dg.materialize([asset], instance=instance, raise_on_error=False)
        assert not result.success
        return run_failure(instance, result.run_id)


def test_months_of_a_request_are_those_of_the_work(platform: Platform) -> None:
    """Stretches of stale months are separate work: one of them may wait while the other is asked for."""
    platform.drop("jobs/a.csv", JOBS_HEADER, job_row("AAAAAA", "2024-03-02"), job_row("BBBBBB", "2024-10-31"))
    launch(platform, tick(platform, "load_landing_files")[0])
    first, second = tick(platform, "refresh_stale_months")[0]
    run = begun(platform, first, dg.DagsterRunStatus.STARTED)
    assert [request.run_key for request in tick(platform, "refresh_stale_months")[0]] == [second.run_key]
    begun(platform, second, dg.DagsterRunStatus.STARTING)
    requests, why = tick(platform, "refresh_stale_months")
    assert requests == [] and why.split("\n")[0] == f"2024-03: run {run.run_id} is started"
    assert "2024-10: run" in why
