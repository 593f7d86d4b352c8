"""Small files are read ahead, while the database takes the file before: nothing that depends on the order may change."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from crm_analytics.analytics.ingest.loading import load_file
from crm_analytics.analytics.ingest.loading.staging import Encoded, encode_whole
from crm_analytics.analytics.ingest.reading.open_file import OpenFile
from crm_analytics_tests.analytics.ingest.landing_folder import ELOCALS, Landing, text
from crm_analytics_tests.conftest import PATIENCE

Write = Callable[[int, str], Path]


@pytest.fixture
def write(landing: Landing) -> Write:
    """Writes an export of one lead, which every day gives another cost."""

    def write(day: int, cost: str) -> Path:
        rows = [("L1", "2025-01-05 10:21:17 -0500", "01:10", cost, "ok", "")]
        return landing.write(f"elocals_leads/{day}.csv", text(ELOCALS, rows), day=day)

    return write


@pytest.fixture
def was_read(monkeypatch: pytest.MonkeyPatch) -> dict[str, threading.Event]:
    """Returns events that are set once the files of these names were read to their ends."""
    events = {f"{day}.csv": threading.Event() for day in range(1, 5)}

    def recorded(opened: OpenFile) -> list[Encoded]:
        batches = encode_whole(opened)
        events[opened.content.name].set()
        return batches

    monkeypatch.setattr(load_file, "encode_whole", recorded)
    return events


def _costs(landing: Landing) -> list[int]:
    return [int(cost) for (cost,) in landing.rows("SELECT cost FROM raw.elocals_leads")]


def _readers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("reader")]


@pytest.mark.parametrize("change", ["rewritten", "removed"])
def test_what_changes_after_it_was_read_is_not_loaded(
    change: str, landing: Landing, write: Write, was_read: dict[str, threading.Event]
) -> None:
    """What was read ahead of a file that is another one in its turn is thrown away; the next run loads what is there."""
    for day in (1, 2, 3):
        write(day, str(day))

    def report(message: str) -> None:
        if message.startswith("elocals_leads/1.csv"):
            assert was_read["2.csv"].wait(PATIENCE)
            path = landing.folder / "elocals_leads" / "2.csv"
            if change == "removed":
                path.unlink()
            else:
                write(2, "20")

    files = landing.load("elocals_leads", report=report).files
    assert [file.status for file in files] == ["loaded", "waiting", "loaded"]
    assert landing.rows("SELECT path FROM raw.source_files ORDER BY path") == [
        ("elocals_leads/1.csv",),
        ("elocals_leads/3.csv",),
    ]
    assert _costs(landing) == [3]
    later = landing.load("elocals_leads").files
    assert [file.path for file in later] == (["elocals_leads/2.csv"] if change == "rewritten" else [])
    # a late file changes nothing
    assert _costs(landing) == [3]


def test_a_refused_file_does_not_stop_the_next(landing: Landing, write: Write) -> None:
    """Faults of a file show in its turn, whether its header or its end has them, and only this file is refused."""
    write(1, "1")
    landing.write("elocals_leads/2.csv", "no,header\n1,2\n", day=2)
    write(3, "3")
    landing.write("elocals_leads/4.csv", write(4, "4").read_text() + '"never closed', day=4)
    files = landing.load("elocals_leads").files
    assert [(file.path[-5], file.status) for file in files] == [
        ("1", "loaded"), ("2", "refused"), ("3", "loaded"), ("4", "refused")
    ]  # fmt: skip
    assert _costs(landing) == [3]


def test_a_copy_of_the_file_before_is_not_applied(landing: Landing, write: Write) -> None:
    """That a file is a copy shows only once the file before is loaded; what was read of it is not used."""
    write(1, "1")
    landing.write("elocals_leads/2.csv", write(1, "1").read_bytes(), day=2)
    write(3, "3")
    first, copy, last = landing.load("elocals_leads").files
    assert (first.status, copy.status, last.status) == ("loaded", "same_content", "loaded")
    assert landing.rows("SELECT same_as FROM raw.source_files WHERE path = 'elocals_leads/2.csv'") == [
        (first.file_id,)
    ]
    assert (copy.counts.records_read, last.counts.updated) == (0, 1)


def test_an_interrupt_ends_the_reader(
    landing: Landing, write: Write, was_read: dict[str, threading.Event]
) -> None:
    """Whoever interrupts a load gets neither files that were only read, nor a thread that goes on reading."""
    for day in (1, 2, 3, 4):
        write(day, str(day))

    def report(message: str) -> None:
        assert _readers()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        landing.load("elocals_leads", report=report)
    assert not _readers()
    assert was_read["2.csv"].is_set()
    assert not was_read["3.csv"].is_set()
    assert _costs(landing) == [1]
    assert [file.status for file in landing.load("elocals_leads").files] == ["loaded"] * 3
    assert _costs(landing) == [4]


def test_a_large_file_is_not_read_ahead(
    landing: Landing, write: Write, was_read: dict[str, threading.Event], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A large file is read in its turn, batch after batch, since all of it might not fit into the memory."""
    monkeypatch.setattr(load_file, "SMALL", write(1, "1").stat().st_size)
    landing.write("elocals_leads/2.csv", write(2, "2").read_text() + "\n\n", day=2)
    write(3, "3")
    assert [file.status for file in landing.load("elocals_leads").files] == ["loaded"] * 3
    assert [name for name, event in was_read.items() if event.is_set()] == ["1.csv", "3.csv"]
    assert _costs(landing) == [3]
