"""A rebuilt table equals that of a fresh database loaded from the same folder, plus the rows written by hand."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import psycopg
import pytest

from crm_analytics.analytics.ingest.dry_run import examine
from crm_analytics.analytics.ingest.loading import landing as landing_folder
from crm_analytics.analytics.ingest.loading.landing import pending
from crm_analytics.analytics.ingest.loading.rebuild import CannotRebuild, Month, Rebuilt, rebuilt
from crm_analytics.analytics.ingest.sources.registry import SOURCES
from crm_analytics_tests.analytics.ingest.landing_folder import (
    CALLS,
    ELOCALS,
    JOBS,
    NEW_YORK,
    PAYMENTS,
    PROREF,
    Landing,
    job,
    text,
)


def rebuild(
    landing: Landing, source: str, *, without: Sequence[str] = (), restored: Sequence[str] = ()
) -> Rebuilt:
    """Rebuilds a source and makes the changes."""
    with rebuilt(
        landing.connection,
        landing.folder,
        source,
        timezone=NEW_YORK,
        without=[Path(name) for name in without],
        restored=[Path(name) for name in restored],
    ) as result:
        pass
    return result


def lead(lead_id: str, cost: str, day: int = 5) -> tuple[str, ...]:
    return (lead_id, f"2025-01-{day:02} 10:21:17 -0500", "01:10", cost, "ok", "")


def spend(*rows: tuple[str, str, str]) -> str:
    return text(("Month", "Campaign", "Amount"), rows)


def payment(payment_id: str, number: str, amount: str) -> tuple[str, ...]:
    return (payment_id, number, "11/16/2024", amount, "Cash", "Paid", "")


def call(caller: str, minute: int) -> tuple[str, ...]:
    return ("", caller, "", "(718) 555-0100", f"2025-01-06 15:{minute:02}:00", "eLocals", "Ann", "01:00")


WORKIZ = ("Lead #", "UUID", "Created", "Status", "Source")
#: By source: three files in order. The second has new rows, changed rows, and lacks rows; the third changes some again.
FILES: dict[str, list[str]] = {
    "jobs": [
        text(JOBS, [job(1, "AAAAAA"), job(2, "BBBBBB"), job(4, "DDDDDD")]),
        text(JOBS, [job(1, "AAAAAA", Source="NSA"), job(3, "CCCCCC", Created="Mon Dec 16 2024"), job("x", "")]),
        text(JOBS, [job(3, "CCCCCC", Total="99"), job(2, "BBBBBB", Job_Type="INS Repair")]),
    ],
    "payments": [
        text(PAYMENTS, [payment("P1", "1", "10"), payment("P2", "2", "20"), payment("P4", "9", "5")]),
        text(PAYMENTS, [payment("P1", "2", "11"), payment("P3", "3", "30"), payment("P9", "1", "1.234,50")]),
        text(PAYMENTS, [payment("P3", "3", "33"), payment("P9", "4", "90")]),
    ],
    "calls": [
        text(CALLS, [call("(212) 555-0101", 1), call("(212) 555-0102", 2), call("(212) 555-0102", 2)]),
        text(CALLS, [call("(212) 555-0101", 1), call("(212) 555-0103", 3)]),
        text(CALLS, [call("(212) 555-0104", 4)]),
    ],
    "elocals_leads": [
        text(ELOCALS, [lead("A", "10"), lead("B", "20"), lead("D", "5", 9)]),
        text(ELOCALS, [lead("A", "0"), lead("C", "30"), lead("E", "NaN")]),
        text(ELOCALS, [lead("C", "33"), lead("B", "20", 7)]),
    ],
    "proref_leads": [
        text(PROREF, [("L1", "12/05/2025", "", "Oven", "10001", "Open"), ("L2", "12/06/2025", "", "", "", "")]),
        text(PROREF, [("L1", "12/05/2025", "", "Oven", "10001", "Passed"), ("L3", "11/06/2025", "", "", "", "")]),
        text(PROREF, [("L3", "11/07/2025", "", "", "", "Passed")]),
    ],
    "workiz_leads": [
        text(WORKIZ, [("1", "A", "12/05/2025", "Open", "Rely"), ("2", "B", "12/06/2025", "Open", "Pro Referral")]),
        text(WORKIZ, [("1", "A", "12/05/2025", "Passed", "Rely"), ("3", "C", "11/06/2025", "Open", ""),
                      ("4", "D", "11/31/2025", "Open", "")]),
        text(WORKIZ, [("3", "C", "11/07/2025", "Canceled", "")]),
    ],
    "google_spend": [
        spend(("2025-08", "A", "1"), ("2025-08", "B", "2"), ("2025-07", "A", "9")),
        spend(("2025-08", "A", "10"), ("2025-09", "A", "3"), ("2025-07", "A", "1.234,50")),
        spend(("2025-09", "A", "33"), ("2025-09", "C", "4")),
    ],
    "targets": [
        "month,source,segment,target_repairs\n2025-01,,,10\n2025-02,Google,cod,20\n",
        "month,source,segment,target_repairs\n2025-01,,,11\n2025-03,,,30\n",
        "month,source,segment,target_repairs\n2025-03,,,33\n",
    ],
}  # fmt: skip


def write(landing: Landing, source: str, *leave_out: int) -> None:
    for day, content in enumerate(FILES[source], start=1):
        if day not in leave_out:
            landing.write(f"{source}/{day}.csv", content, day=day)


def contents(landing: Landing, source: str) -> dict[str, Any]:
    """Returns all that a load leaves of a source, without numbers of ledger entries and times."""
    payments = "SELECT payment_id, job_id FROM raw.payments ORDER BY 1"
    return {
        "table": landing.table(SOURCES[source].table),
        "links": landing.rows(payments),
        "provenance": landing.rows(
            f"SELECT f.path, t.record_no, count(*) FROM {SOURCES[source].table} t JOIN raw.source_files f USING (file_id)"
            " GROUP BY 1, 2 ORDER BY 1, 2"
        ),
        "quarantine": landing.rows(
            "SELECT f.path, r.record_no, r.row_key, r.status FROM raw.rejected_rows r JOIN raw.source_files f USING (file_id)"
            " WHERE f.status = 'loaded' AND r.source = %s ORDER BY 1, 2",
            [source],
        ),
        "vanished": landing.rows(
            "SELECT v.row_key, f.path FROM raw.vanished_rows v JOIN raw.source_files f USING (file_id)"
            " WHERE v.source = %s ORDER BY 1",
            [source],
        ),
        "ledger": landing.rows(
            "SELECT path, records_read, inserted, updated, unchanged, duplicates, superseded, quarantined, first_date,"
            " last_date FROM raw.source_files WHERE source = %s AND status = 'loaded' ORDER BY 1",
            [source],
        ),
    }


@pytest.fixture
def fresh(tmp_path: Path, new_database: Callable[..., str]) -> Any:
    """Another landing folder with a fresh database."""
    folder = tmp_path / "fresh"
    folder.mkdir()
    with psycopg.connect(new_database("analytics"), autocommit=True) as connection:
        yield Landing(folder, connection)


@pytest.mark.parametrize("left_out", [1, 2, 3])
@pytest.mark.parametrize("source", SOURCES)
def test_table_without_a_file_is_that_of_a_folder_without_it(
    source: str, left_out: int, landing: Landing, fresh: Landing
) -> None:
    """Taking back the first, middle or last file gives the tables, links, quarantine and ledger of a fresh database."""
    linked = {"jobs": "payments", "payments": "jobs"}.get(source)
    for place in (landing, fresh):
        if linked:
            write(place, linked)
            place.load(linked)
    write(landing, source)
    landing.load(source)
    write(fresh, source, left_out)
    fresh.load(source)
    assert landing.table(SOURCES[source].table) != fresh.table(SOURCES[source].table)
    result = rebuild(landing, source, without=[f"{source}/{left_out}.csv"])
    assert contents(landing, source) == contents(fresh, source)
    statuses = {file.path: file.status for file in result.files}
    assert statuses == {
        f"{source}/{number}.csv": "withdrawn" if number == left_out else "loaded" for number in (1, 2, 3)
    }
    assert (landing.folder / source / f"{left_out}.csv").exists()


@pytest.mark.parametrize("source", SOURCES)
def test_restored_file_is_as_if_it_had_never_been_taken_back(source: str, landing: Landing) -> None:
    """Restoring a file that was taken back gives every table as it was."""
    write(landing, source)
    landing.load(source)
    before = contents(landing, source)
    rebuild(landing, source, without=[f"{source}/2.csv"])
    assert contents(landing, source) != before
    rebuild(landing, source, restored=[f"{source}/2.csv"])
    assert contents(landing, source) == before


@pytest.mark.parametrize("source", SOURCES)
def test_rebuild_of_what_is_right_changes_nothing(source: str, landing: Landing) -> None:
    """A rebuild that changes nothing leaves the rows' times of change, and no month becomes stale."""
    write(landing, source)
    landing.load(source)
    before = contents(landing, source)
    table = SOURCES[source].table
    times = landing.rows(f"SELECT updated_at, file_id, record_no FROM {table} ORDER BY 1, 2, 3")
    landing.connection.execute("DELETE FROM analytics.stale_months")
    result = rebuild(landing, source)
    assert (result.months, result.losses) == ([], [])
    assert contents(landing, source) == before
    assert landing.rows(f"SELECT updated_at, file_id, record_no FROM {table} ORDER BY 1, 2, 3") == times
    assert landing.rows("SELECT month FROM analytics.stale_months") == []


def test_changes_are_counted_by_month_and_only_these_months_become_stale(landing: Landing) -> None:
    """What is shown before the question is what happens: worked out by hand for three files of leads."""
    landing.write(
        "elocals_leads/1.csv",
        text(ELOCALS, [("A", "2025-01-05", "", "10", "", ""), ("B", "2025-02-05", "", "20", "", "")]),
        day=1,
    )
    wrong = [
        ("A", "2025-01-05", "", "99", "", ""),
        ("B", "2025-03-05", "", "20", "", ""),
        ("C", "2025-04-05", "", "7", "", ""),
    ]
    landing.write("elocals_leads/2.csv", text(ELOCALS, wrong), day=2)
    landing.write("elocals_leads/3.csv", text(ELOCALS, [("D", "2025-05-05", "", "5", "", "")]), day=3)
    landing.load("elocals_leads")
    landing.connection.execute("DELETE FROM analytics.stale_months")
    result = rebuild(landing, "elocals_leads", without=["elocals_leads/2.csv"])
    assert result.months == [
        Month(date(2025, 1, 1), before=1, after=1, added=0, removed=0, changed=1),
        Month(date(2025, 2, 1), before=0, after=1, added=0, removed=0, changed=1),
        Month(date(2025, 3, 1), before=1, after=0, added=0, removed=0, changed=1),
        Month(date(2025, 4, 1), before=1, after=0, added=0, removed=1, changed=0),
    ]
    assert [(loss.path, loss.status, loss.rows) for loss in result.losses] == [
        ("elocals_leads/2.csv", "withdrawn", 1)
    ]
    stale = landing.rows("SELECT DISTINCT month FROM analytics.stale_months ORDER BY 1")
    assert stale == [(month.month,) for month in result.months]


def test_declined_rebuild_changes_nothing(landing: Landing) -> None:
    """An error in the block, such as a declined question, leaves table, ledger, quarantine and queue as they were."""
    write(landing, "elocals_leads")
    landing.load("elocals_leads")
    before = contents(landing, "elocals_leads")
    entries = landing.rows("SELECT * FROM raw.source_files ORDER BY 1")
    stale = landing.rows("SELECT * FROM analytics.stale_months ORDER BY 1")
    without = [Path("elocals_leads/2.csv")]
    with rebuilt(
        landing.connection, landing.folder, "elocals_leads", timezone=NEW_YORK, without=without
    ) as result:
        assert result.months
        raise psycopg.Rollback
    assert contents(landing, "elocals_leads") == before
    assert landing.rows("SELECT * FROM raw.source_files ORDER BY 1") == entries
    assert landing.rows("SELECT * FROM analytics.stale_months ORDER BY 1") == stale


def test_rows_by_hand_stay_and_corrections_of_file_rows_do_not(landing: Landing) -> None:
    """A row that no file brought stays as it is; a row of a file becomes what the files say."""
    write(landing, "elocals_leads")
    landing.load("elocals_leads")
    landing.connection.execute(
        "INSERT INTO raw.elocals_leads (lead_id, lead_at, lead_date, cost)"
        " VALUES ('BY HAND', '2025-01-07 12:00Z', '2025-01-07', 12)"
    )
    landing.connection.execute("UPDATE raw.elocals_leads SET cost = 77 WHERE lead_id = 'C'")
    result = rebuild(landing, "elocals_leads")
    assert result.by_hand == 1
    assert landing.rows(
        "SELECT lead_id, cost, file_id IS NULL FROM raw.elocals_leads WHERE lead_id IN ('BY HAND', 'C') ORDER BY 1"
    ) == [("BY HAND", 12, True), ("C", 33, False)]


def test_payments_by_hand_keep_their_jobs(landing: Landing) -> None:
    """A payment entered by hand stays linked when its job is written again, and when it comes back."""
    write(landing, "jobs")
    landing.load("jobs")
    landing.connection.execute(
        "INSERT INTO raw.payments (payment_id, paid_date, amount, job_id) VALUES ('H', '2024-11-16', 5, 'DDDDDD')"
    )
    payments = "SELECT payment_id, job_id FROM raw.payments"
    rebuild(landing, "payments")
    assert landing.rows(payments) == [("H", "DDDDDD")]
    rebuild(landing, "jobs", without=["jobs/1.csv"])
    assert landing.rows(payments) == [("H", None)], "only the first file has that job"
    rebuild(landing, "jobs", restored=["jobs/1.csv"])
    assert landing.rows(payments) == [("H", "DDDDDD")]


def test_dismissals_are_kept(landing: Landing) -> None:
    """What a person dismissed stays dismissed: quarantined records, also of a file taken back, and vanished rows."""
    landing.write("elocals_leads/1.csv", text(ELOCALS, [lead(key, "1") for key in "ABCDGH"]), day=1)
    landing.write(
        "elocals_leads/2.csv",
        text(ELOCALS, [lead("A", "2"), lead("B", "NaN"), lead("C", "3"), lead("F", "x")]),
        day=2,
    )
    rest = [lead("A", "2"), lead("C", "3"), lead("G", "1"), lead("H", "1"), lead("E", "NaN")]
    landing.write("elocals_leads/3.csv", text(ELOCALS, rest), day=3)
    landing.load("elocals_leads")
    vanished = "SELECT row_key, dismissed_at IS NOT NULL FROM raw.vanished_rows ORDER BY 1"
    assert landing.rows(vanished) == [("B", False), ("D", False)]
    dismissed = (
        "UPDATE raw.rejected_rows SET status = 'dismissed', note = 'known' WHERE row_key IN ('F', 'E')"
    )
    landing.connection.execute(dismissed)
    landing.connection.execute("UPDATE raw.vanished_rows SET dismissed_at = now() WHERE row_key = 'D'")
    quarantine = "SELECT row_key, status, note FROM raw.rejected_rows ORDER BY 1"
    before = landing.rows(quarantine)
    rebuild(landing, "elocals_leads")
    assert landing.rows(quarantine) == before == [
        ("B", "open", None), ("E", "dismissed", "known"), ("F", "dismissed", "known")
    ]  # fmt: skip
    assert landing.rows(vanished) == [("B", False), ("D", True)]
    rebuild(landing, "elocals_leads", without=["elocals_leads/2.csv"])
    assert [row[:2] for row in landing.rows(quarantine)] == [
        ("B", "closed"),
        ("E", "dismissed"),
        ("F", "dismissed"),
    ]
    rebuild(landing, "elocals_leads", restored=["elocals_leads/2.csv"])
    assert landing.rows(quarantine) == before


def test_dry_run_of_content_taken_back(landing: Landing) -> None:
    """The dry run says that a load would not take it, and how to load it after all."""
    write(landing, "elocals_leads")
    landing.load("elocals_leads")
    rebuild(landing, "elocals_leads", without=["elocals_leads/2.csv"])
    copy = landing.write("elocals_leads/copy.csv", FILES["elocals_leads"][1], day=9)
    report = examine(copy, timezone=NEW_YORK, landing=landing.folder, connection=landing.connection)
    assert report.refusal == (
        "taken back by a person; to load it after all: crm-analytics rebuild elocals_leads --with elocals_leads/2.csv"
    )


def test_content_taken_back_is_not_loaded_again(landing: Landing) -> None:
    """A file taken back isn't loaded again: not in place, as a renamed copy, by force, or by a rebuild; its status says so."""
    write(landing, "elocals_leads")
    landing.load("elocals_leads")
    rebuild(landing, "elocals_leads", without=["elocals_leads/2.csv"])
    table = landing.table("raw.elocals_leads")
    assert pending(landing.connection, landing.folder) == []
    landing.write("elocals_leads/copy.csv", FILES["elocals_leads"][1], day=9)
    assert [file.name for file in pending(landing.connection, landing.folder)] == ["elocals_leads/copy.csv"]
    assert landing.load_one("elocals_leads").status == "withdrawn"
    assert pending(landing.connection, landing.folder) == []
    landing.load("elocals_leads", force=True)
    rebuild(landing, "elocals_leads")
    assert landing.table("raw.elocals_leads") == table
    assert landing.rows(
        "SELECT path, message, inserted FROM raw.source_files WHERE status = 'withdrawn' ORDER BY 1"
    ) == [
        (
            path,
            "taken back by a person; to load it after all: crm-analytics rebuild elocals_leads --with"
            " elocals_leads/2.csv",
            0,
        )
        for path in ("elocals_leads/2.csv", "elocals_leads/copy.csv")
    ]
    # other content at the same place is another matter
    landing.write("elocals_leads/2.csv", text(ELOCALS, [lead("Z", "1")]), day=10)
    assert landing.load_one("elocals_leads").status == "loaded"


def test_late_file_after_one_taken_back(landing: Landing) -> None:
    """A file taken back no longer counts as newer: what it superseded counts again."""
    landing.write("elocals_leads/2.csv", text(ELOCALS, [lead("A", "99")]), day=2)
    landing.load("elocals_leads")
    rebuild(landing, "elocals_leads", without=["elocals_leads/2.csv"])
    landing.write("elocals_leads/1.csv", text(ELOCALS, [lead("A", "10")]), day=1)
    assert landing.load_one("elocals_leads").counts.inserted == 1
    assert landing.rows("SELECT cost FROM raw.elocals_leads") == [(10,)]


def test_rows_of_missing_files_are_named_before_they_are_lost(landing: Landing) -> None:
    """Files that are gone from the folder are named with their rows; put back, they load by themselves."""
    write(landing, "elocals_leads")
    landing.load("elocals_leads")
    gone = landing.folder / "elocals_leads/1.csv"
    content = gone.read_text()
    gone.unlink()
    result = rebuild(landing, "elocals_leads")
    assert [(loss.path, loss.status, loss.rows) for loss in result.losses] == [
        ("elocals_leads/1.csv", "missing", 1)
    ]
    assert landing.rows("SELECT lead_id FROM raw.elocals_leads ORDER BY 1") == [("A",), ("B",), ("C",)]
    landing.write("elocals_leads/1.csv", content, day=1)
    assert landing.load_one("elocals_leads").counts.inserted == 1
    assert landing.rows("SELECT lead_id FROM raw.elocals_leads ORDER BY 1") == [
        ("A",),
        ("B",),
        ("C",),
        ("D",),
    ]


def test_file_that_is_gone_can_be_taken_back_for_good(landing: Landing) -> None:
    """A wrong file that was deleted first can still be named; when it comes back, it isn't loaded."""
    write(landing, "elocals_leads")
    landing.load("elocals_leads")
    (landing.folder / "elocals_leads/2.csv").unlink()
    rebuild(landing, "elocals_leads", without=["2.csv"])
    write(landing, "elocals_leads")
    landing.load("elocals_leads")
    assert landing.rows("SELECT path, status FROM raw.source_files ORDER BY 1") == [
        ("elocals_leads/1.csv", "loaded"),
        ("elocals_leads/2.csv", "withdrawn"),
        ("elocals_leads/3.csv", "loaded"),
    ]


def test_file_that_is_refused_now_is_named_with_its_rows(
    landing: Landing, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file loaded under an older rule loses its rows in a rebuild, and the reason is given."""
    leads = text(("Lead #", *JOBS[1:6]), [job(7, "LLLLLL")[:6], job(8, "MMMMMM")[:6]])
    with monkeypatch.context() as older:
        older.setitem(SOURCES, "jobs", replace(SOURCES["jobs"], foreign_headers=()))
        landing.write("jobs/leads.csv", leads, day=1)
        landing.load("jobs")
    assert landing.rows("SELECT count(*) FROM raw.jobs") == [(2,)]
    result = rebuild(landing, "jobs")
    (loss,) = result.losses
    assert (loss.path, loss.status, loss.rows) == ("jobs/leads.csv", "refused", 2)
    assert '"Lead #": headers of another kind of file' in (loss.message or "")
    assert [file.path for file in result.refused] == ["jobs/leads.csv"]
    assert landing.rows("SELECT count(*) FROM raw.jobs") == [(0,)]


@pytest.mark.parametrize(
    ("without", "message"),
    [
        (
            "nowhere.csv",
            "no file nowhere.csv in the landing folder .*, and none of that name was ever loaded",
        ),
        ("jobs/1.csv", "jobs/1.csv is not a file of elocals_leads"),
    ],
)
def test_unknown_files_are_refused(without: str, message: str, landing: Landing) -> None:
    """A name that isn't a file of the source is refused, and changes nothing."""
    write(landing, "jobs")
    with pytest.raises(CannotRebuild, match=message):
        rebuild(landing, "elocals_leads", without=[without])


def test_names_begin_where_people_are(landing: Landing, monkeypatch: pytest.MonkeyPatch) -> None:
    """An absolute path, one from the working directory, and one inside the landing or the source's folder are the same."""
    write(landing, "elocals_leads")
    landing.load("elocals_leads")
    monkeypatch.chdir(landing.folder.parent)
    for name in (
        str(landing.folder / "elocals_leads/2.csv"),
        "landing/elocals_leads/../elocals_leads/2.csv",
        "elocals_leads/2.csv",
        "2.csv",
    ):
        rebuild(landing, "elocals_leads", without=[name])
        rebuild(landing, "elocals_leads", restored=[name])
    assert len(landing.rows("SELECT FROM raw.elocals_leads")) == 4


def test_growing_file_stops_the_rebuild(landing: Landing) -> None:
    """A rebuild is refused while a file is being copied: a table without that file would be wrong."""
    write(landing, "elocals_leads")
    changes = rebuilt(
        landing.connection, landing.folder, "elocals_leads", timezone=NEW_YORK, quiet_seconds=0.4
    )
    original = landing_folder.pending

    def touch_and_list(*arguments: Any, **options: Any) -> Any:
        landing.write("elocals_leads/4.csv", FILES["elocals_leads"][0])
        return original(*arguments, **options)

    with (
        pytest.MonkeyPatch.context() as patch,
        pytest.raises(CannotRebuild, match=r"4\.csv is still growing: try again"),
    ):
        patch.setattr(landing_folder, "pending", touch_and_list)
        with changes:
            pass
    assert landing.rows("SELECT FROM raw.source_files") == []


def test_many_files(landing: Landing) -> None:
    """One transaction holds any number of files: its locks don't grow with them and fill the server's table."""
    for number in range(60):
        row = [lead(f"L{number}", "10"), lead("SAME", str(number)), lead("SAME", str(number))]
        landing.write(f"elocals_leads/{number:04}.csv", text(ELOCALS, row), day=1 + number % 28)
    with rebuilt(
        landing.connection, landing.folder, "elocals_leads", timezone=NEW_YORK, without=[Path("0007.csv")]
    ) as result:
        held = landing.rows("SELECT count(*) FROM pg_locks WHERE pid = pg_backend_pid()")[0][0]
    assert landing.rows("SELECT count(*) FROM raw.elocals_leads") == [(60,)]
    assert len(result.files) == 60
    assert held < 100


def test_readers_and_other_sources_go_on_while_a_person_thinks(landing: Landing, analytics_url: str) -> None:
    """Until the question is answered, readers see the old table, and other sources load, even payments that link to jobs."""
    write(landing, "jobs")
    landing.load("jobs")
    write(landing, "payments")
    before = landing.table("raw.jobs")
    with psycopg.connect(analytics_url, autocommit=True) as other:
        other.execute("SET statement_timeout = '20s'")
        here = Landing.__new__(Landing)
        here.folder, here.connection = landing.folder, other
        with rebuilt(
            landing.connection, landing.folder, "jobs", timezone=NEW_YORK, without=[Path("jobs/1.csv")]
        ):
            assert here.table("raw.jobs") == before
            assert here.load("payments").totals.inserted > 0
            free = "SELECT pg_try_advisory_xact_lock(hashtextextended('analytics:load:jobs', 0))"
            assert here.rows(free) == [(False,)]
    assert landing.table("raw.jobs") != before


CHILD = """
import sys, time
from pathlib import Path
from zoneinfo import ZoneInfo
from crm_analytics.analytics.ingest.loading.rebuild import rebuilt

url, landing, moment = sys.argv[1:]

def report(message):
    if moment == "loading" and "/3.csv" in message:
        print("now", flush=True)
        time.sleep(60)

with rebuilt(url, Path(landing), "elocals_leads", timezone=ZoneInfo("America/New_York"),
             without=[Path("elocals_leads/2.csv")], report=report):
    print("now", flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("moment", ["loading", "asking"])
def test_killed_rebuild_changes_nothing(moment: str, landing: Landing, analytics_url: str) -> None:
    """A kill leaves everything as before, and doesn't block the next rebuild."""
    write(landing, "elocals_leads")
    landing.load("elocals_leads")
    before = contents(landing, "elocals_leads")
    command = [sys.executable, "-c", CHILD, analytics_url, str(landing.folder), moment]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "now\n"
        child.kill()
    assert contents(landing, "elocals_leads") == before
    rebuild(landing, "elocals_leads", without=["2.csv"])
    assert contents(landing, "elocals_leads") != before
