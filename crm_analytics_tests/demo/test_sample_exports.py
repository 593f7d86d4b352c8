"""The sample landing folder: reproducible, in the real formats, with every promised oddity, apart from real files."""

from __future__ import annotations

import csv
import hashlib
import io
import os
import re
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import openpyxl
import psycopg
import pytest
from rich.console import Console

from crm_analytics.analytics.ingest.loading.load import load_source
from crm_analytics.cli.demo import run_demo
from crm_analytics.core.settings import settings
from crm_analytics.demo.repair_business import uuid_of
from crm_analytics.demo.sample_exports import JOB_HEADER, ForeignFiles, LandingSummary, write_landing

UNTIL = date(2025, 12, 16)


def test_demo_stays_out_of_the_users_landing_folder(new_database, tmp_path, monkeypatch):
    """The demo writes into its own folder: in the folder that Compose mounts, the real warehouse would load the sample."""
    theirs, state = tmp_path / "landing", tmp_path / "state"
    theirs.mkdir()
    (state / "sample_landing").mkdir(parents=True)
    (state / "sample_landing" / "own export.csv").write_text("a,b\n")
    for name, value in {
        "ANALYTICS_DATABASE_URL": new_database("analytics"), "CRM_DATABASE_URL": new_database("crm"),
        "LANDING_DIR": str(theirs), "CRM_ANALYTICS_HOME": str(state),
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    output = io.StringIO()
    code = run_demo(settings(), serve=False, port=0, months=1, console=Console(file=output, width=500))
    assert code == 1 and "own export.csv" in output.getvalue(), "it must look at its own folder, and say so"
    assert list(theirs.iterdir()) == []


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> LandingSummary:
    """The whole sample of `make demo`, on a fixed day."""
    return write_landing(tmp_path_factory.mktemp("landing"), until=UNTIL)


def contents(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def records(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_same_day_and_seed_give_the_same_bytes(sample: LandingSummary, tmp_path: Path) -> None:
    """Equal day and seed give equal bytes, so that pictures, documents and tests don't differ from run to run."""
    again = write_landing(tmp_path, until=UNTIL)
    assert contents(tmp_path) == contents(sample.folder)
    assert (again.records, again.planted) == (sample.records, sample.planted)
    times = [{path.name: path.stat().st_mtime for path in summary.files if "T0" not in path.name}
             for summary in (sample, again)]  # fmt: skip
    assert times[0] == times[1]


def test_the_next_day_leaves_closed_months_alone(tmp_path: Path) -> None:
    """The next day only the current month changes, so that the demo doesn't load two years again every morning."""
    before = write_landing(tmp_path, months=4, until=UNTIL)
    first = contents(tmp_path)
    after = write_landing(tmp_path, months=4, until=UNTIL + timedelta(days=1))
    closed = {str(path.relative_to(tmp_path)) for path in before.files if "2025-12-16" not in path.name}
    assert len(closed) > 10
    second = contents(tmp_path)
    assert {name: second[name] for name in closed} == {name: first[name] for name in closed}
    assert {path.name for path in after.files} - {path.name for path in before.files}


def test_refuses_a_folder_with_other_files(tmp_path: Path) -> None:
    """A folder with other files is refused: invented jobs must not mix with real ones."""
    own = tmp_path / "jobs" / "my export.csv"
    own.parent.mkdir()
    own.write_text("Job #\n1\n")
    with pytest.raises(ForeignFiles, match=r"my export\.csv"):
        write_landing(tmp_path, months=1, until=UNTIL)
    assert set(contents(tmp_path)) == {"jobs/my export.csv"}


def test_refuses_a_changed_sample_and_another_seed(tmp_path: Path) -> None:
    """A changed sample or another seed is refused, so that no edit is overwritten and no two samples mix."""
    summary = write_landing(tmp_path, months=1, until=UNTIL)
    with pytest.raises(ForeignFiles, match="seed 7"):
        write_landing(tmp_path, months=1, until=UNTIL, seed=8)
    summary.files[0].write_text("edited")
    with pytest.raises(ForeignFiles, match=re.escape(summary.files[0].name)):
        write_landing(tmp_path, months=1, until=UNTIL)


@pytest.mark.parametrize("until", [date(2024, 3, 1), date(2024, 2, 29), date(2025, 1, 1)])
def test_any_day_will_do(tmp_path: Path, until: date) -> None:
    """The sample can be written on any day, including the first and last of a month."""
    summary = write_landing(tmp_path, months=2, until=until)
    assert summary.last_month == until.replace(day=1)
    assert summary.records["jobs"] > 200


def test_exports_are_never_from_the_future(sample: LandingSummary) -> None:
    """No export is from the future: a file dropped into the running demo would count as older than the sample."""
    latest = datetime(UNTIL.year, UNTIL.month, UNTIL.day, 6, tzinfo=UTC)
    for path in sample.files:
        named = re.search(r"(\d{4}-\d\d-\d\d)T(\d\d)_(\d\d)_(\d\d)\.\d+Z", path.name)
        if named:
            at = datetime.fromisoformat(f"{named[1]}T{named[2]}:{named[3]}:{named[4]}+00:00")
        else:
            at = datetime.fromtimestamp(path.stat().st_mtime, UTC)
        assert at < latest, path


def test_jobs_look_like_the_field_service_export(sample: LandingSummary) -> None:
    """Jobs have the format of the field-service export, so that the demo resembles real exports."""
    path = max((sample.folder / "jobs").iterdir())
    rows = records(path)
    assert len(JOB_HEADER) == 44
    assert list(rows[0]) == JOB_HEADER
    assert all("\n" in row["Address"] for row in rows)
    assert {row["Created"] for row in rows} >= {"Tue Dec 16 2025", "Sat Nov 01 2025"}
    assert all(re.fullmatch("[A-Z0-9]{6}", row["UUID"]) for row in rows if row["Job #"])
    assert rows[0]["Created"] == "Tue Dec 16 2025", "newest first"
    # every job is exported twice
    per_month = sample.records["jobs"] / 2 / 24
    assert 200 < per_month < 300


def test_a_moved_job_changes_its_date_in_a_later_export(sample: LandingSummary) -> None:
    """A later export moves some jobs to another date, which the demo must show."""
    dates: dict[str, set[str]] = {}
    for path in (sample.folder / "jobs").iterdir():
        for row in records(path):
            if row["UUID"] not in ("", "BAD001"):
                dates.setdefault(row["UUID"], set()).add(row["Created"])
    moved = [uuid for uuid, seen in dates.items() if len(seen) == 2]
    assert 3 < len(moved) < 40
    assert max(len(seen) for seen in dates.values()) == 2


def test_everything_promised_is_planted(sample: LandingSummary) -> None:
    """Every oddity that `make demo` announces is in the files."""
    assert set(sample.planted) == {
        "moved job", "job listed twice", "job without id", "impossible date", "late payment", "refund",
        "payment without known job", "unknown payment status", "payment listed twice", "ambiguous amount",
        "amount that isn't a number", "conflicting payment", "call without a time",
        "lead credited in a later export", "id damaged by a spreadsheet",
    }  # fmt: skip
    statuses = {row["Status"] for path in (sample.folder / "payments").glob("*.csv") for row in records(path)}
    assert statuses == {"Paid", "Failed", "Declined", "Pending", "Voided", "Settled offline"}
    sources = {row["Source"] for path in (sample.folder / "jobs").iterdir() for row in records(path)}
    assert {"Thumbtack", "Service direct", "service Direct", "", "Retention"} <= sources
    (refused,) = sample.refused
    assert refused.read_text().startswith("<!DOCTYPE html>")


def test_the_loader_finds_exactly_what_was_planted(
    tmp_path: Path, analytics: psycopg.Connection[Any]
) -> None:
    """The loader reads every file and quarantines exactly the planted oddities."""
    summary = write_landing(tmp_path, months=8, until=UNTIL)
    planted = summary.planted
    loaded = {
        source: load_source(analytics, tmp_path, source, timezone=ZoneInfo("America/New_York"))
        for source in summary.records
    }
    refused = {tmp_path / file.path for result in loaded.values() for file in result.refused}
    assert refused == set(summary.refused)
    quarantined = {source: result.totals.quarantined for source, result in loaded.items()}
    assert quarantined == {
        "jobs": planted["job without id"] + planted["impossible date"],
        "payments": planted["ambiguous amount"]
        + planted["amount that isn't a number"]
        + 2 * planted["conflicting payment"],
        "calls": planted["call without a time"],
        "elocals_leads": planted["id damaged by a spreadsheet"],
        "proref_leads": 0,
        "google_spend": 0,
        "targets": 0,
    }
    assert loaded["jobs"].totals.duplicates == planted["job listed twice"]
    assert loaded["payments"].totals.duplicates == planted["payment listed twice"]
    assert loaded["elocals_leads"].totals.updated == planted["lead credited in a later export"]
    assert loaded["google_spend"].totals.summary_lines == 2 * 6
    unknown = analytics.execute("SELECT count(*) FROM raw.payments WHERE job_id IS NULL").fetchone()
    assert unknown == (planted["payment without known job"],)
    assert [file.warnings for file in loaded["google_spend"].files if file.warnings] == []


def test_the_current_payments_come_as_a_workbook(sample: LandingSummary) -> None:
    """The current month's payments are a workbook, so that the demo reads a spreadsheet, too."""
    (path,) = (sample.folder / "payments").glob("*.xlsx")
    sheet = openpyxl.load_workbook(path).active
    assert sheet is not None
    rows = list(sheet.iter_rows(values_only=True))
    assert rows[0][:2] == ("Payment ID", "Job #")
    assert len(rows) > 100
    assert all(isinstance(row[6], int | float) and isinstance(row[7], datetime) for row in rows[1:])


def test_uuids_never_collide() -> None:
    """UUIDs never collide: two jobs would become one."""
    assert len({uuid_of(number, 7) for number in range(100_000, 140_000)}) == 40_000


def test_quick_enough(tmp_path: Path) -> None:
    """Writing the sample takes few CPU seconds, so that `make demo` starts soon."""
    before = os.times()
    write_landing(tmp_path, months=24, until=UNTIL)
    after = os.times()
    assert after.user + after.system - before.user - before.system < 5
