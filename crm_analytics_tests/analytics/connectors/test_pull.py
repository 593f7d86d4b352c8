"""Pulls: one complete file or none, whoever is killed, and however many there are at once."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest

from crm_analytics.analytics.connectors.connector import Window
from crm_analytics.analytics.connectors.errors import ConnectorError
from crm_analytics.analytics.connectors.registry import CONNECTORS
from crm_analytics.analytics.connectors.workiz import ASKED, WORKIZ_JOBS
from crm_analytics.analytics.ingest.sources.registry import SOURCES
from crm_analytics.analytics.ingest.storage.landing import LandingUnavailable
from crm_analytics.analytics.ingest.storage.local_folder import LocalFolder
from crm_analytics.core import locks
from crm_analytics.core.settings import Settings
from crm_analytics_tests.analytics.connectors.conftest import NOW, Pulling, identities, once, read
from crm_analytics_tests.analytics.connectors.workiz_server import Workiz, job, serving
from crm_analytics_tests.chance import generator
from crm_analytics_tests.conftest import PATIENCE, wait_until_blocked
from crm_analytics_tests.object_storage import Prefix

JULY = Window(date(2024, 7, 1), None)


@pytest.fixture
def workiz(pulling: Pulling) -> Iterator[Workiz]:
    """A service with 345 jobs, which the pulls ask."""
    with serving([job(number) for number in range(345)]) as service:
        pulling.config = pulling.config.model_copy(update={"workiz_url": service.url})
        yield service


def test_file_of_a_pull(pulling: Pulling, workiz: Workiz) -> None:
    """The name has the connector, the days and the moment; the first line the same, what it covers, and the count."""
    result = pulling(WORKIZ_JOBS, JULY)
    (file,) = pulling.files
    assert result.files == ("jobs/workiz_jobs_2024-07-01_open_2024-07-31T18_00_05Z.jsonl.gz",)
    header, records = read(file)
    assert len(header.pop("sha256")) == 64
    assert header == {
        "connector": "workiz_jobs",
        "covers": {"by": "scheduled_at", "from": "2024-07-01", "to": None},
        "pulled_at": "2024-07-31T18:00:05Z",
        "records": 345,
    }
    assert records == workiz.jobs
    assert pulling.reports[-1] == "workiz_jobs: 345 records in 5 pages"


def test_equal_pull_writes_no_file(pulling: Pulling, workiz: Workiz) -> None:
    """An hour later the same records are no news, in whatever order they come; a changed one is."""
    pulling(WORKIZ_JOBS)
    pulling.clock.now += timedelta(hours=1)
    workiz.jobs.reverse()
    result = pulling(WORKIZ_JOBS)
    assert (result.files, result.records) == ((), 345) and len(pulling.files) == 1
    pulling.clock.now += timedelta(days=1)
    assert pulling(WORKIZ_JOBS).files == (), "the window has moved, but tells nothing new"
    workiz.jobs[7]["Status"] = "Canceled"
    assert len(pulling(WORKIZ_JOBS).files) == 1
    assert pulling(WORKIZ_JOBS).files == () and len(pulling.files) == 2 and pulling.spools == []


def test_equal_records_of_more_days_are_news(pulling: Pulling, workiz: Workiz) -> None:
    """The same records prove more about vanished rows when more days were asked for, but not when fewer were."""
    pulling(WORKIZ_JOBS, JULY)
    assert len(pulling(WORKIZ_JOBS, Window(date(2024, 6, 1), None)).files) == 1
    assert pulling(WORKIZ_JOBS, JULY).files == ()


def test_equal_records_are_news_after_another_export(
    pulling: Pulling, workiz: Workiz, analytics: psycopg.Connection[Any]
) -> None:
    """If a person's export was loaded after the last pull, the same records have to be told again, or it would stand."""
    pulling(WORKIZ_JOBS)
    for hours, status, written in ((-1, "loaded", 0), (1, "refused", 0), (1, "loaded", 1)):
        analytics.execute(
            "INSERT INTO raw.source_files (source, path, sha256, size_bytes, modified_at, exported_at, exported_at_from,"
            " status, message) VALUES ('jobs', %s, 'x', 1, now(), %s, 'mtime', %s, 'x')",
            [f"jobs/{hours}{status}.csv", NOW + timedelta(hours=hours), status],
        )
        pulling.clock.now += timedelta(hours=2)
        assert len(pulling(WORKIZ_JOBS).files) == written, (hours, status)
    assert pulling(WORKIZ_JOBS).files == ()


def test_damaged_last_file_is_written_again(pulling: Pulling, workiz: Workiz) -> None:
    """What can't be read can't be compared with, and may not be what was pulled."""
    pulling(WORKIZ_JOBS)
    pulling.files[0].write_bytes(b"\x1f\x8b")
    assert len(pulling(WORKIZ_JOBS).files) == 1


def test_file_is_never_replaced(pulling: Pulling, workiz: Workiz) -> None:
    """Two pulls in one second, and one after the clock was set back, have names of their own, in their order."""
    for status in "abc":
        workiz.jobs[0]["Status"] = status
        pulling.clock.now = NOW if status != "c" else NOW - timedelta(days=1)
        pulling(WORKIZ_JOBS, JULY)
    assert [file.name[-15:-9] for file in pulling.files] == ["00_05Z", "00_06Z", "00_07Z"]
    assert [read(file)[1][0]["Status"] for file in pulling.files] == ["a", "b", "c"]


def test_a_pull_goes_on_from_a_kill_in_another_reading(pulling: Pulling, workiz: Workiz) -> None:
    """A pull that breaks off goes on where it was, and notices what moved meanwhile."""
    workiz.before = once((4, lambda: setattr(workiz, "token", "x")))
    with pytest.raises(ConnectorError):
        pulling(WORKIZ_JOBS)
    del workiz.jobs[5]
    workiz.token, workiz.before = "api_k3y with/odd+signs", lambda number: None
    pulling.clock.now += timedelta(minutes=10)
    result = pulling(WORKIZ_JOBS)
    assert pulling.reports[3] == "workiz_jobs: going on after page 3 of a pull that was interrupted"
    assert len(identities(pulling.files[0])) == 345 and result.covers is not None
    # the file is as old as its oldest page
    assert pulling.files[0].name.endswith("18_00_05Z.jsonl.gz")
    assert pulling.spools == []


def test_spool_of_long_ago_is_not_gone_on_from(pulling: Pulling, workiz: Workiz) -> None:
    """After a quarter of an hour too much may have moved; other windows' spools are swept away."""
    workiz.before = once((4, lambda: setattr(workiz, "token", "x")))
    for window in (None, JULY):
        with pytest.raises(ConnectorError):
            pulling(WORKIZ_JOBS, window)
    old = (pulling.clock.now - timedelta(days=1)).timestamp()
    for spool in pulling.spools:
        os.utime(spool, (old, old))
    workiz.token, workiz.before = "api_k3y with/odd+signs", lambda number: None
    pulling.clock.now += timedelta(minutes=16)
    pulling(WORKIZ_JOBS)
    assert pulling.spools == [] and len(pulling.files) == 1
    assert not any("going on" in report for report in pulling.reports)


@pytest.mark.parametrize("damage", [b"", b"SQLite format 3\0" + b"x" * 5000, b"nothing"])
def test_damaged_spool_costs_time_only(pulling: Pulling, workiz: Workiz, damage: bytes) -> None:
    """After a power cut the spool may be anything."""
    folder = pulling.config.crm_analytics_home / "pulls"
    folder.mkdir(parents=True)
    (folder / "workiz_jobs_2024-07-01_open.spool").write_bytes(damage)
    pulling(WORKIZ_JOBS, JULY)
    assert len(identities(pulling.files[0])) == 345 and pulling.spools == []


def test_spool_is_for_its_owner_only(pulling: Pulling, workiz: Workiz) -> None:
    """Its records have customers' names and phone numbers."""
    workiz.before = once((4, lambda: setattr(workiz, "token", "x")))
    with pytest.raises(ConnectorError):
        pulling(WORKIZ_JOBS)
    assert [spool.stat().st_mode & 0o077 for spool in pulling.spools] == [0]


def test_nothing_is_asked_where_nothing_can_be_written(pulling: Pulling, workiz: Workiz) -> None:
    """Without a landing folder the service is left alone; a folder that can't be written to is named."""
    with pytest.raises(ConnectorError, match="does not exist: create it, or set LANDING_DIR"):
        pulling(WORKIZ_JOBS, landing_dir=pulling.config.landing_dir / "none")
    assert workiz.asked == []
    (pulling.config.landing_dir / "jobs").write_text("a file")
    with pytest.raises(
        ConnectorError,
        match=r"jobs/workiz_jobs.* can't be written \(File exists\): give this user permission",
    ):
        pulling(WORKIZ_JOBS)


def test_days_that_the_service_does_not_take(pulling: Pulling, workiz: Workiz) -> None:
    """A last day that Workiz would ignore is refused, instead of being promised."""
    with pytest.raises(ConnectorError, match="takes no last day; leave out --to"):
        pulling(WORKIZ_JOBS, Window(date(2024, 7, 1), date(2024, 7, 2)))
    assert workiz.asked == []


def test_connector_that_is_off(pulling: Pulling) -> None:
    """Every connector is off without its settings, and says what to set."""
    for connector in CONNECTORS.values():
        bare = Settings(crm_analytics_home=pulling.config.crm_analytics_home)
        missing = connector.missing(bare)
        assert missing and set(missing) <= {name.upper() for name in Settings.model_fields}
        with pytest.raises(ConnectorError, match=f"{connector.name} is off: set {' and '.join(missing)}"):
            pulling.config = bare
            pulling(connector)
        assert set(connector.sources) <= set(SOURCES) | {"workiz_leads"}


def start(pulling: Pulling, workiz: Workiz, first: str = "2024-07-01") -> subprocess.Popen[str]:
    """Starts a pull in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "crm_analytics_tests.analytics.connectors.child", pulling.database, workiz.url, first],
        env={
            **os.environ,
            "LANDING_DIR": str(pulling.config.landing_dir),
            "CRM_ANALYTICS_HOME": str(pulling.config.crm_analytics_home),
        },
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def finished(process: subprocess.Popen[str]) -> dict[str, Any]:
    """Returns what a pull printed, which must have succeeded."""
    out, error = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, error
    found: dict[str, Any] = json.loads(out)
    return found


def test_two_pulls_at_once_write_one_file(
    pulling: Pulling, workiz: Workiz, analytics: psycopg.Connection[Any]
) -> None:
    """Two processes that pull at the same time ask one after the other, and the second finds nothing new."""
    locks.take(analytics, locks.pull("workiz_jobs"), 1, lambda who: None)
    processes = [start(pulling, workiz) for _ in range(2)]
    wait_until_blocked(analytics, "advisory")
    assert workiz.asked == []
    analytics.execute("SELECT pg_advisory_unlock_all()")
    done = [finished(process) for process in processes]
    assert sorted(len(result["files"]) for result in done) == [0, 1]
    assert [result["records"] for result in done] == [345, 345]
    assert len(pulling.files) == 1 and pulling.spools == []
    # one after the other: each began at the beginning of the list
    assert [query["offset"] for query in workiz.asked] == ["0", "1", "100", "199", "298"] * 2


@pytest.mark.random
def test_killed_at_any_moment_the_next_pull_repairs(pulling: Pulling, workiz: Workiz) -> None:
    """Kills at random moments, while pages come and after the last one, leave no file or a whole one, and nothing behind."""
    chance = generator("kills of pulls")
    kills = 6
    for number in range(kills):
        workiz.jobs[number]["Status"] = f"changed {number}"
        files = len(pulling.files)
        asked = len(workiz.asked) + chance.randint(1, 6)
        process = start(pulling, workiz)
        deadline = time.monotonic() + PATIENCE
        while len(workiz.asked) < asked and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.0005)
        time.sleep(chance.uniform(0, 0.03))
        process.kill()
        process.communicate()
        # what scans see is whole
        for file in LocalFolder(pulling.config.landing_dir).scan().files:
            assert len(set(identities(pulling.config.landing_dir / file.name))) == 345
        finished(start(pulling, workiz))
        assert len(pulling.spools) == 0
        assert [path for path in pulling.files if not path.name.endswith("Z.jsonl.gz")] == []
        assert files < len(pulling.files) <= files + 2
        newest = read(pulling.files[-1])[1]
        assert len(newest) == 345 and newest[number]["Status"] == f"changed {number}"
    assert len(workiz.asked) < kills * 2 * 5, "pages that a killed pull had are not asked for again"


def test_what_a_kill_left_in_the_landing_folder_is_swept(pulling: Pulling, workiz: Workiz) -> None:
    """A file that was being written is ignored by scans, and removed by the next pull; others' files are left alone."""
    folder = pulling.config.landing_dir / "jobs"
    folder.mkdir()
    for name in (
        ".publishing-workiz_jobs_2024-07-01_open.part",
        ".publishing-callrail_calls_x.part",
        "jobs.csv.part",
    ):
        (folder / name).write_text("half")
    assert LocalFolder(pulling.config.landing_dir).scan().files == []
    pulling(WORKIZ_JOBS)
    assert [path.name for path in pulling.files][:1] == [".publishing-callrail_calls_x.part"]
    assert len(pulling.files) == 3


class _Year(list[dict[str, Any]]):
    """Jobs that are made when a page asks for them, so that the test itself needs no memory either."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, part: Any) -> Any:
        return [job(number, Comments=f"{number} " * 250) for number in range(*part.indices(self._count))]


def test_a_year_pulls_in_constant_memory(pulling: Pulling) -> None:
    """A year of 20,000 jobs, 40 MB, takes no more memory than a month of them, and about 200 requests."""
    peaks = []
    for count, first in ((1_000, "2024-07-01"), (20_000, "2023-08-01")):
        with serving(_Year(count)) as workiz:
            done = finished(start(pulling, workiz, first))
            assert len(workiz.asked) <= count / (ASKED - 1) + 2
        assert done["records"] == count
        peaks.append(done["megabytes"])
    assert peaks[1] - peaks[0] < 10, peaks
    assert len(identities(pulling.files[0])) == 20_000


def test_pace_of_a_year(pulling: Pulling) -> None:
    """At a request a second, a year of 20,000 jobs takes about 200 seconds, and each page reports how far it is."""
    with serving(_Year(20_000)) as workiz:
        pulling(WORKIZ_JOBS, Window(date(2023, 8, 1), None), workiz_url=workiz.url)
    assert 195 < pulling.clock.seconds < 210
    assert len(pulling.reports) == len(workiz.asked) == 203
    assert pulling.reports[99] == "workiz_jobs: 9,803 records in 100 pages"
    assert Path(pulling.files[0]).stat().st_size < 2_000_000


def test_pull_into_a_bucket(pulling: Pulling, workiz: Workiz, prefix: Prefix) -> None:
    """In object storage a file is one object, which is there whole; the last one there tells that nothing is new."""
    bucket = prefix.landing()
    home, token = pulling.config.crm_analytics_home, pulling.config.workiz_token
    values: dict[str, Any] = {**prefix.access, "crm_analytics_home": home, "workiz_token": token}
    pulling.config = Settings(landing_url=prefix.url, workiz_url=workiz.url, **values)
    (name,) = pulling(WORKIZ_JOBS).files
    (file,) = bucket.scan().files
    assert file.name == name
    with file.content.open("rb") as content, gzip.open(content) as lines:
        assert len(lines.readlines()) == 346
    assert pulling(WORKIZ_JOBS).files == ()
    workiz.jobs[0]["Status"] = "Canceled"
    assert len(pulling(WORKIZ_JOBS).files) == 1 and len(bucket.scan().files) == 2
    pulling.config = pulling.config.model_copy(update={"landing_url": "s3://nowhere"})
    with pytest.raises(LandingUnavailable, match="nowhere"):
        pulling(WORKIZ_JOBS)
