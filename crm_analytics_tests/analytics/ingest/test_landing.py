"""Which files of the landing folder are new, changed, still growing, or of no known source."""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path
from typing import Any

import pytest

from crm_analytics.analytics.ingest.loading import landing as landing_folder
from crm_analytics.analytics.ingest.loading.landing import not_loaded, pending, scan, unreadable
from crm_analytics.analytics.ingest.sources.registry import SOURCES
from crm_analytics.analytics.ingest.storage.landing import is_ignored
from crm_analytics_tests.analytics.ingest.landing_folder import (
    ELOCALS,
    JOBS,
    Landing,
    job,
    record_calls,
    record_statements,
    text,
)

LEADS = text(ELOCALS, [("A", "2025-01-05 10:21:17 -0500", "01:10", "10", "ok", "")])


def _pending(landing: Landing, **options: object) -> dict[str, str | None]:
    found = pending(landing.connection, landing.folder, **options)  # type: ignore[arg-type]
    return {file.name: file.source for file in found}


@pytest.mark.parametrize(
    "name",
    [
        ".hidden.csv",
        ".~lock.jobs.csv#",
        "~$jobs.xlsx",
        "a.csv.part",
        "a.csv.filepart",
        "a.csv.crdownload",
        "a.tmp",
        "Thumbs.db",
    ],
)
def test_ignored_names(name: str) -> None:
    """Lock files, hidden and partial files are ignored."""
    assert is_ignored(name)
    assert not is_ignored("export_export (23).csv")


def test_scan_finds_folders_and_loose_files(landing: Landing) -> None:
    """Files in subfolders and beside them are found."""
    for name in ("jobs/2024/a.csv", "b.csv", "jobs/.hidden/c.csv", "jobs/d.csv.part", "notes/e.txt"):
        landing.write(name, "x")
    assert [file.name for file in scan(landing.folder).files] == ["b.csv", "jobs/2024/a.csv", "notes/e.txt"]


def test_missing_folder_is_an_error(landing: Landing) -> None:
    """A missing folder is an error, not a day without exports."""
    with pytest.raises(FileNotFoundError, match="LANDING_DIR"):
        scan(landing.folder / "nowhere")


def test_loose_files_are_recognized(landing: Landing) -> None:
    """A file in the landing folder itself is recognized by its name or header."""
    landing.write("leads cost Elocals October.csv", LEADS)
    landing.write("whatever.csv", text(JOBS, [job(1, "AAAAAA")]))
    assert _pending(landing) == {"leads cost Elocals October.csv": "elocals_leads", "whatever.csv": "jobs"}
    assert _pending(landing, only="jobs") == {"whatever.csv": "jobs"}
    assert landing.load("elocals_leads").totals.inserted == 1
    assert landing.load("jobs").totals.inserted == 1
    assert _pending(landing) == {}


def test_unrecognized_files_are_recorded_once(landing: Landing) -> None:
    """An unrecognized file is recorded once per content, not with every look at the folder."""
    landing.write("minutes.csv", "who,what\nAnn,talked\n")
    landing.write("old stuff/a.csv", LEADS)
    assert _pending(landing) == {"minutes.csv": None, "old stuff/a.csv": None}
    assert landing.load("jobs").files == []
    assert _pending(landing) == {}
    assert landing.load("jobs").files == []
    rows = landing.rows("SELECT path, source, status, message FROM raw.source_files ORDER BY path")
    assert [row[:3] for row in rows] == [
        ("minutes.csv", None, "unrecognized"),
        ("old stuff/a.csv", None, "unrecognized"),
    ]
    assert "old stuff" in rows[1][3]
    assert [entry.path for entry in unreadable(landing.connection, scan(landing.folder))] == [
        "minutes.csv",
        "old stuff/a.csv",
    ]


def test_any_load_records_unrecognized_files(landing: Landing) -> None:
    """A load of any source records unrecognized files."""
    landing.write("minutes.csv", "who,what\nAnn,talked\n")
    landing.load("jobs")
    landing.load("calls")
    assert landing.rows("SELECT path, status FROM raw.source_files") == [("minutes.csv", "unrecognized")]


def test_unrecognized_file_that_changes_becomes_a_source(landing: Landing) -> None:
    """A corrected file is recognized again."""
    landing.write("data.csv", "who,what\nAnn,talked\n", day=1)
    landing.load("jobs")
    landing.write("data.csv", LEADS, day=2)
    assert _pending(landing) == {"data.csv": "elocals_leads"}
    landing.load("elocals_leads")
    assert unreadable(landing.connection, scan(landing.folder)) == []


def test_only_what_looks_changed_is_hashed(landing: Landing, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only files whose size or time changed are hashed; the sensor looks every ten seconds."""
    path = landing.write("elocals_leads/a.csv", LEADS, day=1)
    landing.load("elocals_leads")
    hashed = record_calls(monkeypatch, landing_folder, "fingerprint")
    assert _pending(landing) == {}
    assert hashed == []
    os.utime(path, (1.9e9, 1.9e9))
    assert _pending(landing) == {}
    assert _pending(landing) == {}
    assert hashed == [(path,)]  # once: the ledger has the new time


def test_many_loaded_files_are_only_listed(landing: Landing, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sensor looks every ten seconds, so old files must cost no more than their place in the folder.

    Each is looked at once, and the ledger is asked once for what it saw last; only a file that is not settled by that
    costs more. Anything read per file would keep the daemon busy with a folder that nobody cleans up.
    """
    count = 3000
    for number in range(count):
        landing.write(f"elocals_leads/{number % 3}/{number}.csv", LEADS, day=1)
    files = scan(landing.folder).files
    landing.rows(
        """
        INSERT INTO raw.source_files (source, path, sha256, size_bytes, modified_at, declaration_version, exported_at,
            exported_at_from, status)
        SELECT 'elocals_leads', path, %s, %s, %s, %s, %s, 'mtime', 'loaded' FROM unnest(%s::text[]) AS path RETURNING 1
        """,
        [
            landing_folder.fingerprint(files[0].content),
            files[0].size,
            files[0].modified_at,
            SOURCES["elocals_leads"].version,
            files[0].modified_at,
            [file.name for file in files],
        ],
    )
    looked_at = record_calls(monkeypatch, os, "stat")
    hashed = record_calls(monkeypatch, landing_folder, "fingerprint")
    statements = record_statements(landing.connection)
    assert _pending(landing) == {}
    # the state of the ledger, and what it saw last
    assert (len(statements), hashed) == (2, [])
    assert len(looked_at) < 1.01 * count

    landing.write("elocals_leads/new.csv", LEADS, day=2)
    touched = landing.folder / "elocals_leads/1/1.csv"
    os.utime(touched, (1.7e9, 1.7e9))
    statements.clear()
    assert _pending(landing) == {"elocals_leads/new.csv": "elocals_leads"}
    # the state of the ledger, its entries of these two paths, and the new time of the one
    assert (len(statements), hashed) == (3, [(touched,)])


def test_every_change_of_the_ledger_is_noticed(landing: Landing) -> None:
    """What the ledger saw last is kept in memory: only until an entry is added, changed or deleted, by whomever."""
    for name in ("a", "b"):
        landing.write(f"elocals_leads/{name}.csv", LEADS, day=1)
    landing.load("elocals_leads")
    assert _pending(landing) == {}
    statements = record_statements(landing.connection)
    assert _pending(landing) == {} and len(statements) == 1
    deleted = landing.rows(
        "DELETE FROM raw.source_files WHERE path = 'elocals_leads/b.csv' RETURNING file_id"
    )
    assert deleted and _pending(landing) == {"elocals_leads/b.csv": "elocals_leads"}
    landing.load("elocals_leads")
    assert _pending(landing) == {}
    landing.rows(
        "UPDATE raw.source_files SET declaration_version = 0 WHERE path = 'elocals_leads/a.csv' RETURNING 1"
    )
    assert _pending(landing) == {"elocals_leads/a.csv": "elocals_leads"}
    # as many entries as before, one of them another
    landing.load("elocals_leads")
    landing.rows(
        """
        WITH gone AS (DELETE FROM raw.source_files WHERE path = 'elocals_leads/b.csv' RETURNING *)
        INSERT INTO raw.source_files (source, path, sha256, size_bytes, modified_at, declaration_version, exported_at,
            exported_at_from, status)
        SELECT source, 'elocals_leads/c.csv', sha256, size_bytes, modified_at, declaration_version, exported_at,
            exported_at_from, 'loaded'
        FROM gone RETURNING 1
        """
    )
    assert _pending(landing) == {"elocals_leads/b.csv": "elocals_leads"}


def test_growing_files_wait(landing: Landing) -> None:
    """A file touched just now is not pending yet."""
    path = landing.write("elocals_leads/a.csv", LEADS, day=1)  # an old time: a copy that keeps times
    assert _pending(landing, quiet_seconds=60) == {}
    assert _pending(landing) == {"elocals_leads/a.csv": "elocals_leads"}
    time.sleep(0.2)
    assert _pending(landing, quiet_seconds=0.1) == {"elocals_leads/a.csv": "elocals_leads"}
    path.write_text(LEADS)
    assert _pending(landing, quiet_seconds=60) == {}


def test_refused_file_waits_for_a_change(landing: Landing) -> None:
    """A refused file is not pending again until it changes."""
    landing.write("elocals_leads/a.csv", "Unique ID,Cost\nA,1\n", day=1)
    assert landing.load_one("elocals_leads").status == "refused"
    assert _pending(landing) == {}
    assert [entry.path for entry in unreadable(landing.connection, scan(landing.folder))] == [
        "elocals_leads/a.csv"
    ]
    landing.write("elocals_leads/a.csv", LEADS, day=2)
    assert _pending(landing) == {"elocals_leads/a.csv": "elocals_leads"}
    landing.load("elocals_leads")
    assert unreadable(landing.connection, scan(landing.folder)) == []


def test_file_names_that_are_not_utf8(landing: Landing) -> None:
    """A file name that is not UTF-8 loads like any other."""
    raw = os.fsencode(landing.folder / "elocals_leads") + b"/caf\xe9.csv"
    (landing.folder / "elocals_leads").mkdir()
    with open(raw, "wb") as file:  # noqa: PTH123 - a path that is not text
        file.write(LEADS.encode())
    assert landing.load_one("elocals_leads").status == "loaded"
    assert _pending(landing) == {}


def test_two_file_names_that_are_not_utf8(landing: Landing) -> None:
    """Two such names stay two names in the ledger."""
    (landing.folder / "elocals_leads").mkdir()
    for name, content in ((b"a\xff.csv", LEADS), (b"a\xfe.csv", LEADS.replace("A", "B"))):
        with open(os.fsencode(landing.folder / "elocals_leads") + b"/" + name, "wb") as file:  # noqa: PTH123
            file.write(content.encode())
    assert landing.load("elocals_leads").totals.inserted == 2
    assert landing.load("elocals_leads").files == []


def test_link_to_a_folder_above(landing: Landing) -> None:
    """A link to a folder above is followed once, not forever."""
    landing.write("jobs/a.csv", "x")
    (landing.folder / "jobs" / "up").symlink_to(landing.folder)
    assert [file.name for file in scan(landing.folder).files] == ["jobs/a.csv"]


def test_unreadable_entries_are_named(landing: Landing) -> None:
    """Broken links, pipes and unreadable files are named with the reason."""
    landing.write("jobs/a.csv", text(JOBS, [job(1, "AAAAAA")]))
    (landing.folder / "jobs" / "moved.csv").symlink_to("/nowhere/moved.csv")
    os.mkfifo(landing.folder / "jobs" / "pipe.csv")
    (landing.folder / "loose.csv").symlink_to("loose.csv")
    loaded, *refused = sorted(landing.load("jobs").files, key=lambda file: file.path)
    assert loaded.status == "loaded"
    assert [(file.path, file.status, file.file_id) for file in refused] == [
        ("jobs/moved.csv", "refused", 0),
        ("jobs/pipe.csv", "refused", 0),
    ]
    assert refused[0].message == (
        '"/nowhere/moved.csv": broken link; put back what it links to, or remove the link'
    )
    assert "accepted: files" in (refused[1].message or "")
    assert [line.split(":")[0] for line in not_loaded(landing.connection, landing.folder)] == [
        "jobs/moved.csv",
        "jobs/pipe.csv",
        "loose.csv",
    ]


def _forbid(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Makes listing this folder fail as it does without permission (tests may run as root)."""
    original = os.scandir

    def scandir(path: str | Path) -> Any:
        if Path(path) == folder:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return original(path)

    monkeypatch.setattr(os, "scandir", scandir)


def test_folder_that_cannot_be_listed_is_named(landing: Landing, monkeypatch: pytest.MonkeyPatch) -> None:
    """A subfolder without permission is reported; it must not look like one without news."""
    landing.write("jobs/a.csv", text(JOBS, [job(1, "AAAAAA")]))
    landing.write("jobs/2024/b.csv", text(JOBS, [job(2, "BBBBBB")]))
    _forbid(monkeypatch, landing.folder / "jobs" / "2024")
    refused, loaded = landing.load("jobs").files
    assert (loaded.path, loaded.status) == ("jobs/a.csv", "loaded")
    assert (refused.path, refused.status) == ("jobs/2024", "refused")
    assert (refused.message or "").startswith(
        '"Permission denied": folder cannot be listed; its files are not'
    )
    assert "permission to read the folder" in (refused.message or "")


def test_landing_folder_that_cannot_be_listed(landing: Landing, monkeypatch: pytest.MonkeyPatch) -> None:
    """A landing folder without permission is an error, not a day without exports."""
    _forbid(monkeypatch, landing.folder)
    with pytest.raises(OSError, match=r"landing folder .* cannot be listed .*: give this user permission"):
        landing.load("jobs")


@pytest.mark.parametrize(
    "first",
    ["who,what\nAnn,talked\n", "Unique ID,Time,Cost\n" + '"never closed'],
    ids=["unrecognized", "refused"],
)
def test_unreadable_content_that_comes_back_is_settled(first: str, landing: Landing) -> None:
    """Refused content that returns to its path is concluded once, not found new forever."""
    for day, content in ((1, first), (2, LEADS), (1, first), (3, first)):
        landing.write("data.csv", content, day=day)
        landing.load("elocals_leads")
        assert _pending(landing) == {}
