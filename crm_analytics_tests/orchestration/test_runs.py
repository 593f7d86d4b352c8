"""Runs on a real instance: ranges, touched months, checks, refusals, pruning."""

from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from click.testing import CliRunner

from crm_analytics.cli.main import main
from crm_analytics.demo.sample_exports import write_landing
from crm_analytics.orchestration.analytics.raw_assets import RAW_KEYS
from crm_analytics_tests.orchestration.conftest import JOBS_HEADER, PAYMENTS_HEADER, Platform, job_row

OCTOBER, NOVEMBER = date(2024, 10, 1), date(2024, 11, 1)
TABLES = [
    "raw.jobs", "raw.payments", "raw.calls", "raw.elocals_leads", "raw.proref_leads", "raw.workiz_leads",
    "raw.google_spend",
    "analytics.targets", "analytics.daily_metrics", "analytics.monthly_metrics",
]  # fmt: skip


def contents(platform: Platform) -> dict[str, list[tuple[Any, ...]]]:
    """Returns every table without the columns for time and ledger entry."""
    found = {}
    for table in TABLES:
        found[table] = platform.query(
            f"SELECT (to_jsonb(t) - 'updated_at' - 'file_id')::text FROM {table} t ORDER BY 1"
        )
    return found


def checks(result: dg.ExecuteInProcessResult) -> dict[str, bool]:
    return {f"{c.asset_key.path[-1]}.{c.check_name}": c.passed for c in result.get_asset_check_evaluations()}


def test_ranged_run_equals_one_run_per_month(platform: Platform) -> None:
    """A ranged run gives the same tables as one run per month; one that used only its first month would not."""
    write_landing(platform.landing, months=4, until=date(2024, 11, 20))
    assert platform.run(date(2024, 8, 1), NOVEMBER).success
    ranged = contents(platform)
    filled = {table for table, rows in ranged.items() if rows}
    assert filled == {*TABLES} - {"raw.workiz_leads"}, (
        "every table of the sample has rows, else this compares nothing"
    )
    platform.execute(
        f"TRUNCATE {', '.join(TABLES)}, raw.source_files, raw.rejected_rows, raw.vanished_rows, analytics.stale_months"
    )
    for month in (8, 9, 10, 11):
        assert platform.run(date(2024, month, 1), date(2024, month, 1)).success
    assert contents(platform) == ranged
    materialized = platform.instance.get_materialized_partitions(
        dg.AssetKey(["analytics", "monthly_metrics"])
    )
    assert materialized == {"2024-08", "2024-09", "2024-10", "2024-11"}


def test_months_touched_outside_the_range_get_their_events(platform: Platform) -> None:
    """A month that a file touches outside the run's range gets its materialization event too."""
    platform.drop("jobs/a.csv", JOBS_HEADER, job_row("AAAAAA", "2024-10-31"), job_row("BBBBBB", "2024-03-02"))
    key = dg.AssetKey(["raw", "jobs"])
    assert platform.run(OCTOBER, OCTOBER, [key]).success
    assert platform.instance.get_materialized_partitions(key) == {"2024-10", "2024-03"}
    records = platform.instance.fetch_materializations(key, limit=10).records
    rows = {}
    for record in records:
        assert record.asset_materialization is not None
        rows[record.partition_key] = record.asset_materialization.metadata[
            "dagster/partition_row_count"
        ].value
    assert rows == {"2024-10": 1, "2024-03": 1}


def test_every_month_names_the_command_that_explains_its_numbers(platform: Platform) -> None:
    """The events of both metric tables have the command for their month, and it is one that works."""
    platform.drop("jobs/a.csv", JOBS_HEADER, job_row("AAAAAA", "2024-10-31"), job_row("BBBBBB", "2024-11-02"))
    assert platform.run(OCTOBER, NOVEMBER).success
    for table in ("daily_metrics", "monthly_metrics"):
        commands = {}
        for record in platform.instance.fetch_materializations(
            dg.AssetKey(["analytics", table]), limit=10
        ).records:
            assert record.asset_materialization is not None
            text = str(record.asset_materialization.metadata["explain"].value)
            commands[record.partition_key] = text.split("`")[1]
        assert commands == {
            month: f"crm-analytics explain {month} repairs" for month in ("2024-10", "2024-11")
        }
    arguments = commands["2024-11"].split()[1:]
    done = CliRunner().invoke(main, arguments, env={"ANALYTICS_DATABASE_URL": platform.url})
    assert done.exit_code == 0 and "repairs: 0 rows, 0; as stored: 0, equal" in done.output


def test_refused_file_fails_its_check_and_stops_nothing_else(platform: Platform) -> None:
    """A refused file fails the check that names it, while other files load and metrics are computed."""
    platform.drop("jobs/good.csv", JOBS_HEADER, job_row("AAAAAA", "2024-10-31"))
    platform.drop("jobs/login.csv", "<!DOCTYPE html><html><body>Sign in</body></html>")
    platform.drop("mystery.csv", "color,shape", "red,round")
    result = platform.run(OCTOBER, OCTOBER)
    assert result.success
    assert platform.query("SELECT jobs FROM analytics.monthly_metrics") == [(1,)]
    found = checks(result)
    assert not found["jobs.files_read"] and not found["jobs.unrecognized_files"]
    assert found["payments.files_read"]
    evaluation = next(
        c for c in result.get_asset_check_evaluations() if c.check_name == "files_read" and not c.passed
    )
    assert evaluation.severity == dg.AssetCheckSeverity.ERROR and not evaluation.blocking
    assert "login.csv" in str(evaluation.metadata["sample"].value)
    (platform.landing / "jobs" / "login.csv").unlink()
    (platform.landing / "mystery.csv").unlink()
    found = checks(platform.run(OCTOBER, OCTOBER))
    assert found["jobs.files_read"] and found["jobs.unrecognized_files"], "the remedy turns them green"


def test_total_that_disagrees_fails_its_check(platform: Platform) -> None:
    """A file whose own total isn't what is accepted of it fails a check as an error, until it has new content."""
    row = "p1,AAAAAA,10.00,2024-10-01,paid"
    platform.drop("payments/p.csv", PAYMENTS_HEADER, row, "Total,,12.00,,")
    result = platform.run(OCTOBER, OCTOBER)
    assert result.success and platform.query("SELECT count(*) FROM raw.payments") == [(1,)]
    evaluation = next(c for c in result.get_asset_check_evaluations() if not c.passed)
    assert (evaluation.asset_key.path[-1], evaluation.check_name) == ("payments", "file_totals")
    assert evaluation.severity == dg.AssetCheckSeverity.ERROR and not evaluation.blocking
    assert "payments/p.csv | 12.00 | 10.00 | -2.00" in str(evaluation.metadata["sample"].value)
    platform.drop("payments/p.csv", PAYMENTS_HEADER, row, "Total,,10.00,,")
    assert checks(platform.run(OCTOBER, OCTOBER))["payments.file_totals"]


def test_checks_find_what_they_are_for(platform: Platform) -> None:
    """Each warning fails on data that provokes it; a check that never fails proves nothing."""
    platform.set_today("2024-11-05")
    platform.drop(
        "jobs/a.csv",
        JOBS_HEADER,
        job_row("AAAAAA", "2024-10-31", source="Puls", number="7"),
        job_row("BBBBBB", "2024-10-30", number="7"),
        job_row("CCCCCC", "not a date"),
        job_row("DDDDDD", "2019-05-05"),
    )
    platform.drop("payments/p.csv", PAYMENTS_HEADER, "p1,AAAAAA,10.00,2024-11-01,On the moon")
    platform.drop("google_spend/g.csv", "Month,Amount", "2024-08,310.00", "2024-10,100.00")
    result = platform.run(OCTOBER, NOVEMBER)
    assert result.success
    failed = {name for name, passed in checks(result).items() if not passed}
    assert failed == {
        "jobs.quarantine", "jobs.sources_without_rule", "jobs.shared_job_numbers", "payments.unknown_statuses",
        "google_spend.closed_months_covered", "daily_metrics.months_outside_partitions", "jobs.fresh", "payments.fresh",
    }  # fmt: skip
    for evaluation in result.get_asset_check_evaluations():
        if not evaluation.passed:
            assert evaluation.severity == dg.AssetCheckSeverity.WARN


def test_wrong_numbers_are_blocking_errors(platform: Platform) -> None:
    """Tampered metrics fail the matching blocking check, which names the month, until a refresh repairs them."""
    platform.drop("jobs/a.csv", JOBS_HEADER, job_row("AAAAAA", "2024-10-31"))
    platform.drop("payments/p.csv", PAYMENTS_HEADER, "p1,AAAAAA,500.00,2024-11-01,paid")
    assert platform.run(OCTOBER, NOVEMBER).success
    checks_of = {
        "revenue_adds_up": "UPDATE analytics.daily_metrics SET revenue_gross = 1",
        "daily_adds_up_to_monthly": "UPDATE analytics.monthly_metrics SET leads = 7",
        "daily_values_sane": "UPDATE analytics.daily_metrics SET units = 9",
    }
    from crm_analytics.orchestration.analytics.checks import analytics_checks
    from crm_analytics.orchestration.analytics.franchise import Franchise

    for name, tampering in checks_of.items():
        platform.execute(tampering)
        found = []
        for definition in analytics_checks(Franchise(platform.settings)):
            if any(key.name == name for key in definition.check_keys):
                result = dg.materialize(  # checks alone, as "Execute" in the UI does
                    [definition],
                    resources=platform.resources,
                    selection=dg.AssetSelection.checks(definition),
                    raise_on_error=False,
                )
                found = [c for c in result.get_asset_check_evaluations() if c.check_name == name]
        assert [c.passed for c in found] == [False], name
        assert found[0].severity == dg.AssetCheckSeverity.ERROR and found[0].blocking
        assert "2024-10" in str(found[0].metadata["sample"].value)
        assert platform.run(OCTOBER, NOVEMBER).success, "a refresh repairs it"
        assert platform.query(
            "SELECT sum(revenue_gross), sum(leads), max(units) FROM analytics.daily_metrics"
        ) == [(500, 1, 1)]


def test_a_revision_of_a_closed_month_is_shown(platform: Platform) -> None:
    """A late file for closed months shows in the run's metadata and, for seven days, in a check that names it."""
    platform.drop("jobs/a.csv", JOBS_HEADER, job_row("AAAAAA", "2024-10-31"), job_row("BBBBBB", "2024-11-02"))
    first = platform.run(OCTOBER, NOVEMBER)
    assert checks(first)["monthly_metrics.closed_months"], "first numbers are no revision"
    assert revision_metadata(first) == (0, None)
    rows = ["p1,AAAAAA,30.00,2024-11-01,paid", "p2,BBBBBB,500.00,2024-11-03,paid"]
    platform.drop("payments/late.csv", PAYMENTS_HEADER, *rows)
    late = platform.run(OCTOBER, NOVEMBER)
    assert late.success
    cause = "payments insert from payments/late.csv (1 row)"
    assert revision_metadata(late) == (2, f"2024-11: repairs +1, revenue_gross +500.00 ({cause})")
    evaluation = closed_months(late)
    assert not evaluation.passed
    assert (evaluation.severity, evaluation.blocking) == (dg.AssetCheckSeverity.WARN, False)
    shown = str(evaluation.metadata["sample"].value).splitlines()
    assert [line.split(" | ")[0] for line in shown[2:]] == ["| 2024-11", "| 2024-10"]
    assert f"| revenue_gross +30.00 | {cause} |" in shown[3]
    platform.execute("UPDATE analytics.revisions SET revised_at = now() - interval '6 days 23 hours'")
    assert not closed_months(platform.run(OCTOBER, OCTOBER)).passed
    platform.execute("UPDATE analytics.revisions SET revised_at = now() - interval '7 days'")
    again = platform.run(OCTOBER, OCTOBER)
    assert closed_months(again).passed
    assert revision_metadata(again) == (0, None)


def closed_months(result: dg.ExecuteInProcessResult) -> dg.AssetCheckEvaluation:
    return next(c for c in result.get_asset_check_evaluations() if c.check_name == "closed_months")


def revision_metadata(result: dg.ExecuteInProcessResult) -> tuple[Any, Any]:
    """Returns how many revisions the run made, and the largest, as the events of monthly_metrics say."""
    key = dg.AssetKey(["analytics", "monthly_metrics"])
    found = [
        event.materialization.metadata
        for event in result.get_asset_materialization_events()
        if event.asset_key == key
    ]
    said = {
        (
            m["revisions_in_run"].value,
            m["largest_revision_in_run"].value if "largest_revision_in_run" in m else None,
        )
        for m in found
    }
    assert len(said) == 1
    return said.pop()


def test_history_is_checked_without_a_window(platform: Platform) -> None:
    """The nightly check finds an old month that was changed by hand, which runs for other months don't look at."""
    platform.set_today("2024-11-02")
    platform.drop("jobs/a.csv", JOBS_HEADER, job_row("AAAAAA", "2024-03-02"), job_row("BBBBBB", "2024-10-31"))
    platform.drop("payments/p.csv", PAYMENTS_HEADER, "p1,AAAAAA,500.00,2024-11-01,paid")
    assert platform.run(date(2024, 3, 1), NOVEMBER).success
    platform.execute(
        "UPDATE analytics.daily_metrics SET revenue_gross = revenue_gross + 1 WHERE date < '2024-04-01'"
    )
    assert all(checks(platform.run(OCTOBER, OCTOBER)).values())
    before = contents(platform)
    job = platform.defs.resolve_job_def("check_history")
    result = job.execute_in_process(instance=platform.instance, raise_on_error=False)
    assert not result.success
    assert checks(result) == {
        "jobs.sources_without_rule": True,
        "daily_metrics.daily_values_sane": True,
        "daily_metrics.revenue_adds_up": False,
        "daily_metrics.metrics_equal_facts": False,
        "monthly_metrics.daily_adds_up_to_monthly": False,
    }
    assert contents(platform) == before


def test_quarantine_check_lists_the_most_frequent_reasons(platform: Platform) -> None:
    """Reasons are grouped, limited in number, and shown without the values, which may be personal data."""
    platform.drop(
        "payments/p.csv",
        PAYMENTS_HEADER,
        "p1,AAAAAA,12 bucks,2024-10-31,paid",
        "p2,AAAAAA,ten,2024-10-31,paid",
        "p3,AAAAAA,10.00,yesterday,paid",
    )
    result = platform.run(OCTOBER, OCTOBER, [dg.AssetKey(["raw", "payments"])])
    reasons = quarantine_metadata(result)["reasons"].value
    assert reasons == {"Amount: not a number": 2, "Date: not a valid date": 1}
    platform.execute(
        "INSERT INTO raw.rejected_rows (file_id, source, record_no, line_no, reasons, record)"
        " SELECT file_id, 'payments', 100 + n, 101 + n,"
        " jsonb_build_array(jsonb_build_object('code', 'reason_' || chr(64 + n))), '{}'"
        " FROM raw.source_files, generate_series(1, 12) n"
    )
    result = platform.run(OCTOBER, OCTOBER, [dg.AssetKey(["raw", "payments"])])
    metadata = quarantine_metadata(result)
    assert metadata["found"].value == 15 and len(metadata["reasons"].value) == 10
    assert next(iter(metadata["reasons"].value.values())) == 2, "the most frequent first"


def quarantine_metadata(result: dg.ExecuteInProcessResult) -> Any:
    """Returns the metadata of the check `quarantine` of the run's only raw asset."""
    (found,) = [c for c in result.get_asset_check_evaluations() if c.check_name == "quarantine"]
    return found.metadata


def test_months_after_the_end_of_google_need_no_spend(platform: Platform) -> None:
    """A rule that ends Google's spend ends the warning for later months; a hole before that remains one."""
    platform.drop("google_spend/g.csv", "Month,Amount", "2024-08,310.00", "2024-10,310.00")

    def missing() -> str:
        result = platform.run(OCTOBER, OCTOBER, [dg.AssetKey(["raw", "google_spend"])])
        (found,) = [
            c for c in result.get_asset_check_evaluations() if c.check_name == "closed_months_covered"
        ]
        return str(found.metadata["sample"].value)

    assert "2024-09-01" in missing() and "2024-11-01" in missing()
    platform.execute(
        "INSERT INTO analytics.lead_channels (source, valid_from, lead_rule, cost_rule)"
        " VALUES ('Google', '2024-11-01', 'jobs', 'none')"
    )
    assert "2024-09-01" in missing() and "2024-11-01" not in missing()


def test_blocking_check_keeps_metrics_from_being_computed(platform: Platform) -> None:
    """A failed blocking check keeps metrics from being computed from payments that are not linked."""
    platform.drop("jobs/a.csv", JOBS_HEADER, job_row("AAAAAA", "2024-10-31"))
    platform.drop("payments/p.csv", PAYMENTS_HEADER, "p1,AAAAAA,500.00,2024-11-01,paid")
    assert platform.run(OCTOBER, OCTOBER, RAW_KEYS).success
    platform.execute(
        "ALTER TABLE raw.payments DISABLE TRIGGER a_relink_update, DISABLE TRIGGER resolve_updated"
    )
    platform.execute("UPDATE raw.payments SET job_id = NULL")
    result = platform.run(OCTOBER, OCTOBER)
    assert not result.success
    assert platform.query("SELECT count(*) FROM analytics.daily_metrics") == [(0,)]


def test_force_reads_everything_again(platform: Platform) -> None:
    """`force` reads unchanged files again and repairs what was changed by hand."""
    platform.drop("jobs/a.csv", JOBS_HEADER, job_row("AAAAAA", "2024-10-31"))
    assert platform.run(OCTOBER, OCTOBER).success
    platform.execute("ALTER TABLE raw.jobs DISABLE TRIGGER b_stale_update")
    platform.execute("UPDATE raw.jobs SET type = 'INS Service'")
    platform.execute("ALTER TABLE raw.jobs ENABLE TRIGGER b_stale_update")
    config = {"ops": {"__".join(key.path): {"config": {"force": True}} for key in RAW_KEYS}}
    assert platform.run(OCTOBER, OCTOBER, config=config).success
    assert platform.query("SELECT type FROM raw.jobs") == [("COD Service",)]
    assert platform.query("SELECT segment, jobs FROM analytics.monthly_metrics") == [("COD", 1)]


def test_wrong_timezone_and_missing_folder_fail_once_with_the_remedy(
    platform: Platform,
) -> None:
    """Permanent failures are not retried, and name the remedy."""
    platform.change(landing_dir=Path("/nowhere/landing"))
    result = platform.run(OCTOBER, OCTOBER, [dg.AssetKey(["raw", "jobs"])])
    messages = [str(event.step_failure_data.error.message) for event in result.get_step_failure_events()]  # type: ignore[union-attr]
    assert not result.success and "does not exist: create it, or set LANDING_DIR" in messages[0]
    platform.change(business_timezone="Europe/Berlin")
    result = platform.run(
        OCTOBER,
        OCTOBER,
        [dg.AssetKey(["analytics", "daily_metrics"]), dg.AssetKey(["analytics", "monthly_metrics"])],
    )
    messages = [str(event.step_failure_data.error.message) for event in result.get_step_failure_events()]  # type: ignore[union-attr]
    assert "BUSINESS_TIMEZONE is Europe/Berlin" in messages[0]
    assert not any(event.is_step_up_for_retry for event in result.all_events)


def test_events_of_a_step_are_stored_together(platform: Platform, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step of 22 months writes its events in one batch; one by one they take most of Dagster's bookkeeping."""
    storage, sizes = platform.instance.event_log_storage, []
    store = storage.store_event_batch

    def counted(events: Any) -> None:
        sizes.append(len(events))
        store(events)

    monkeypatch.setattr(storage, "store_event_batch", counted)
    assert platform.run(date(2023, 1, 1), OCTOBER, [dg.AssetKey(["raw", "jobs"])]).success
    assert max(sizes) >= 22


def test_each_month_reports_its_rows_and_the_last_one_the_table(platform: Platform) -> None:
    """The UI shows rows per month; columns, rows of the table and the plot are with the last month only."""
    platform.drop("jobs/a.csv", JOBS_HEADER, job_row("AAAAAA", "2024-10-31"), job_row("BBBBBB", "2024-10-30"))
    assert platform.run(OCTOBER, NOVEMBER).success
    table = {"dagster/column_schema", "dagster/row_count"}
    for key, rows, more in (
        (RAW_KEYS[0], 2, table),
        (dg.AssetKey(["analytics", "daily_metrics"]), 2, table),
        (dg.AssetKey(["analytics", "monthly_metrics"]), 1, table | {"plot"}),
    ):
        found = {}
        for record in platform.instance.fetch_materializations(key, limit=2).records:
            assert record.asset_materialization is not None
            found[record.partition_key] = record.asset_materialization.metadata
        assert found["2024-10"]["dagster/partition_row_count"].value == rows
        assert found["2024-11"]["dagster/partition_row_count"].value == 0
        assert found["2024-11"].keys() - found["2024-10"].keys() == more
