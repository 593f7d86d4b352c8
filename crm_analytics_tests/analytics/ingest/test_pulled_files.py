"""Pulled files: what their first line says is checked, tells where they came from, and what may have vanished."""

from __future__ import annotations

import gzip
import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from crm_analytics.analytics.ingest.sources.registry import SOURCES
from crm_analytics.analytics.warehouse.check_queries import vanished_sql
from crm_analytics.cli.check import check_files
from crm_analytics.core.wording import counted
from crm_analytics_tests.analytics.ingest.landing_folder import JOBS, NEW_YORK, Landing, job, text
from crm_analytics_tests.analytics.ingest.samples import read_text
from crm_analytics_tests.analytics.ingest.test_json_lines import API_JOB, changed, lines_of, why_refused

#: Times of the appointments of jobs 1 to 6, all of them created on one day, as the API has them.
APPOINTMENTS = (
    "2025-11-01 00:00:00",
    "2025-11-10 12:00:00",
    "2025-11-20 23:59:59",
    "2025-11-21 00:00:00",
    "2025-10-31 23:59:59",
    None,
)


def head(records: int, covers: Any = None, more: Any = None) -> dict[str, Any]:
    """Returns the first line of a pulled file; `more` replaces what it says."""
    told = {
        "connector": "workiz_jobs",
        "covers": covers,
        "pulled_at": "2025-11-27T14:00:00Z",
        "records": records,
    }
    return {"crm_analytics_pull": told | (more or {})}


def pulled(*records: dict[str, Any] | str, covers: Any = None) -> bytes:
    """Returns a pulled file with these records."""
    return gzip.compress(lines_of(head(len(records), covers), *records).encode())


def api_job(number: int, **values: Any) -> dict[str, Any]:
    """Returns one of six jobs."""
    appointment = APPOINTMENTS[number - 1]
    return changed(UUID=f"JOB{number}", SerialId=number, JobDateTime=appointment, **values)


def window(
    by: str = "scheduled_at", first: str | None = "2025-11-01", last: str | None = "2025-11-20"
) -> Any:
    """Returns what a file covers."""
    return {"by": by, "from": first, "to": last}


def vanished(landing: Landing) -> list[str]:
    """Returns the keys of the jobs that are reported as vanished."""
    return [key for key, *_ in landing.rows(vanished_sql(SOURCES["jobs"]))]


def test_the_line_is_no_record(tmp_path: Path) -> None:
    """Records count from 1 after it, and lines from 1 with it."""
    whole = read_text(tmp_path, "jobs", pulled(api_job(1), changed(JobTotalPrice="?"), covers=window()))
    assert [row["record_no"] for row in whole.rows] == [1]
    (rejected,) = whole.rejected
    assert (rejected.as_found.record_no, rejected.as_found.line_no) == (2, 3)
    assert whole.file.pull is not None
    assert (whole.file.pull.connector, whole.file.pull.records) == ("workiz_jobs", 2)


@pytest.mark.parametrize("source", SOURCES)
def test_nothing_pulled_is_a_file_without_records(source: str, tmp_path: Path) -> None:
    """A service without a record tells no field names either, which must not refuse the file."""
    whole = read_text(tmp_path, source, lines_of(head(0)))
    assert (whole.rows, whole.file.warnings) == ([], ["the service had no records to return"])


@pytest.mark.parametrize("told", [3, 1])
def test_other_records_than_were_pulled(told: int, tmp_path: Path) -> None:
    """A file that was cut off between two lines, or put together from two, is noticed by its first line."""
    content = lines_of(head(told), api_job(1), api_job(2))
    assert why_refused(tmp_path, content) == (
        f'"2 records": not the records that were pulled; accepted: {counted(told, "record")}, as the first line says; the'
        " file was cut off or changed: remove the file, and pull again"
    )


def test_only_the_first_line_is_one(tmp_path: Path) -> None:
    """Two pulled files put together are refused, and so is a line like it further down."""
    assert "not the records that were pulled" in why_refused(
        tmp_path, lines_of(head(1), api_job(1), head(1), api_job(2))
    )
    whole = read_text(tmp_path, "jobs", lines_of(api_job(1), head(1)))
    assert (len(whole.rows), len(whole.rejected), whole.file.pull) == (1, 1, None)


@pytest.mark.parametrize(
    "more",
    [
        {"records": -1},
        {"records": "many"},
        {"records": None},
        {"connector": None},
        {"connector": "Workiz; DROP"},
        {"covers": "everything"},
        {"covers": window(first="11/01/2025")},
        {"covers": window(first="2025-11-21")},
        {"covers": {"by": "scheduled_at"}},
    ],
    ids=str,
)
def test_damaged_first_lines(more: dict[str, Any], tmp_path: Path) -> None:
    """A line that can't be understood refuses the file: guessed coverage would report rows that are there."""
    why = why_refused(tmp_path, lines_of(head(1, more=more), api_job(1)))
    assert why.startswith("line 1: damaged line of a pulled file; accepted: {")


def test_coverage_that_makes_no_sense_for_the_source(tmp_path: Path) -> None:
    """It names a day of the table; and where a file replaces whole months, it must have them from their first day."""
    assert why_refused(tmp_path, pulled(API_JOB, covers=window("status"))) == (
        'line 1: "status": unknown column of coverage; accepted: a date or time of raw.jobs: created_at, job_date,'
        " scheduled_at, ended_at; the connector must name one of these; this version of it may not fit the declaration"
    )
    spend = {"segments.date": "2025-11-03", "metrics.cost_micros": "10000000"}
    for first, refused in (("2025-11-03", True), ("2025-11-01", False), (None, False)):
        content = pulled(spend, covers=window("month", first))
        if refused:
            assert why_refused(tmp_path, content, "google_spend") == (
                'line 1: "from 2025-11-03": part of a month; accepted: whole months, because the file replaces them; pull from'
                " 2025-11-01 on"
            )
        else:
            assert len(read_text(tmp_path, "google_spend", content).rows) == 1


@pytest.mark.parametrize(
    ("covers", "gone"),
    [
        (window(), ["JOB1", "JOB2", "JOB3"]),
        (window(first=None), ["JOB1", "JOB2", "JOB3", "JOB5"]),
        (window(last=None), ["JOB1", "JOB2", "JOB3", "JOB4"]),
        (window(first=None, last=None), ["JOB1", "JOB2", "JOB3", "JOB4", "JOB5"]),
        (window("job_date", "2025-11-19", "2025-11-19"), ["JOB1", "JOB2", "JOB3", "JOB4", "JOB5", "JOB6"]),
        (window("created_at", "2025-11-19", "2025-11-19"), ["JOB1", "JOB2", "JOB3", "JOB4", "JOB5", "JOB6"]),
        (window("created_at", "2025-11-20", None), []),
        (None, []),
    ],
)
def test_only_rows_that_a_pull_covers_may_vanish(covers: Any, gone: list[str], landing: Landing) -> None:
    """The window's days are local and both included; rows without that time, and all others, are proven by nothing."""
    landing.write("jobs/1.jsonl.gz", pulled(*map(api_job, range(1, 7))), day=1)
    landing.write("jobs/2.jsonl.gz", pulled(changed(UUID="NEW", SerialId=9), covers=covers), day=2)
    _, second = landing.load("jobs").files
    assert sorted(vanished(landing)) == gone
    if covers == window():
        assert second.warnings == [
            "3 rows of older exports with scheduled_at from 2025-11-01 to 2025-11-20 are not in this one; kept, and listed"
            " in raw.vanished_rows"
        ]
    assert landing.rows("SELECT count(*) FROM raw.jobs") == [(7,)]


def test_an_empty_pull_proves_what_it_covers(landing: Landing) -> None:
    """Nothing at all in the window is an answer, too; rows that come back are forgotten."""
    landing.write("jobs/1.jsonl.gz", pulled(*map(api_job, range(1, 7))), day=1)
    landing.write("jobs/2.jsonl.gz", pulled(covers=window()), day=2)
    landing.load("jobs")
    assert vanished(landing) == ["JOB1", "JOB2", "JOB3"]
    landing.write("jobs/3.jsonl.gz", pulled(api_job(2), covers=window(first="2025-11-10")), day=3)
    landing.load("jobs")
    assert vanished(landing) == ["JOB1", "JOB3"]


def test_quarantined_records_of_a_pull_have_not_vanished(landing: Landing) -> None:
    """A job whose price can't be read is in the file, and the older version counts."""
    landing.write("jobs/1.jsonl.gz", pulled(*map(api_job, range(1, 4))), day=1)
    landing.write(
        "jobs/2.jsonl.gz", pulled(api_job(1, JobTotalPrice="?"), api_job(2), covers=window()), day=2
    )
    landing.load("jobs")
    assert vanished(landing) == ["JOB3"]


def test_a_person_s_export_keeps_its_rule(landing: Landing) -> None:
    """An export in between is judged by its own dates, whatever the pulls cover."""
    landing.write("jobs/1.jsonl.gz", pulled(*map(api_job, range(1, 7)), covers=window()), day=1)
    rows = [job(number, f"JOB{number}", Created="11/19/2025") for number in range(1, 6)]
    landing.write("jobs/2.csv", text(JOBS, rows), day=2)
    landing.load("jobs")
    assert vanished(landing) == ["JOB6"]


def test_ledger_knows_who_brought_a_file(landing: Landing) -> None:
    """Of loaded files, of copies, and of refused ones as far as their first line can be read."""
    landing.write("jobs/1.jsonl.gz", pulled(api_job(1)), day=1)
    landing.write("jobs/2.jsonl.gz", pulled(api_job(1)), day=2)
    landing.write("jobs/3.jsonl", lines_of(head(5), api_job(1)), day=3)
    landing.write("jobs/4.jsonl.gz", pulled(api_job(2))[:-10], day=4)
    landing.write("jobs/5.csv", text(JOBS, [job(7, "AAAAA7")]), day=5)
    landing.write("jobs/6.jsonl", lines_of(api_job(3)), day=6)
    landing.load("jobs")
    assert landing.rows("SELECT path, status, connector FROM reporting.files ORDER BY path") == [
        ("jobs/1.jsonl.gz", "loaded", "workiz_jobs"),
        ("jobs/2.jsonl.gz", "same_content", "workiz_jobs"),
        ("jobs/3.jsonl", "refused", "workiz_jobs"),
        ("jobs/4.jsonl.gz", "refused", "workiz_jobs"),
        ("jobs/5.csv", "loaded", None),
        ("jobs/6.jsonl", "loaded", None),
    ]


def test_check_tells_where_a_file_came_from(tmp_path: Path) -> None:
    """A person who looks at a file sees who wrote it, what it covers, and its form."""
    files = {
        "workiz_jobs.jsonl.gz": pulled(api_job(1), covers=window()),
        "jobs with nothing proven.jsonl": lines_of(head(1), api_job(1)).encode(),
        "jobs cut off.jsonl": lines_of(head(2), api_job(1)).encode(),
        "jobs.csv": text(JOBS, [job(7, "AAAAA7")]).encode(),
    }
    (tmp_path / "jobs").mkdir()
    for name, content in files.items():
        (tmp_path / "jobs" / name).write_bytes(content)
    target = io.StringIO()
    paths = [tmp_path / "jobs" / name for name in files]
    check_files(paths, console=Console(file=target, width=200), timezone=NEW_YORK)
    first, second, third, fourth = _by_file(target.getvalue())
    assert "pulled by workiz_jobs, all rows with scheduled_at from 2025-11-01 to 2025-11-20" in first
    assert "utf-8, JSON Lines" in first
    assert "pulled by workiz_jobs, proves nothing about rows that it lacks" in second
    assert "pulled by workiz_jobs\n" in third and "would be refused: " in third
    assert "exported by a person" in fourth and "delimiter ','" in fourth


def _by_file(printed: str) -> list[str]:
    """Splits what was printed at the rules with the files' names."""
    parts: list[str] = []
    for line in printed.splitlines(keepends=True):
        if "───" in line and "." in line:
            parts.append("")
        if parts:
            parts[-1] += line
    return parts
