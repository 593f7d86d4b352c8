"""What the ledger says about each file, and that nothing is loaded twice or lost."""

from __future__ import annotations

import itertools
from decimal import Decimal

import psycopg
import pytest

from crm_analytics.analytics.ingest.loading import ledger
from crm_analytics.analytics.ingest.loading.results import describe
from crm_analytics_tests.analytics.ingest.landing_folder import ELOCALS, Landing, text


def _leads(*costs: str) -> str:
    rows = [
        (chr(65 + n), "2025-01-05 10:21:17 -0500", "01:10", cost, "ok", "") for n, cost in enumerate(costs)
    ]
    return text(ELOCALS, rows)


def _ledger(landing: Landing) -> list[tuple[object, ...]]:
    return landing.rows("SELECT path, status, records_read FROM raw.source_files ORDER BY file_id")


def test_loaded_files_are_skipped(landing: Landing) -> None:
    """A loaded file is not read again."""
    landing.write("elocals_leads/a.csv", _leads("10"))
    assert len(landing.load("elocals_leads").files) == 1
    assert landing.load("elocals_leads").files == []


def test_same_content_elsewhere(landing: Landing) -> None:
    """`export (1).csv`, the same download again, is noted and not read."""
    landing.write("elocals_leads/a.csv", _leads("10"), day=1)
    landing.load("elocals_leads")
    landing.write("elocals_leads/a (1).csv", _leads("10"), day=3)
    copy = landing.load_one("elocals_leads")
    assert (copy.status, copy.counts.records_read) == ("same_content", 0)
    assert "elocals_leads/a.csv" in (copy.message or "")
    assert landing.rows(
        "SELECT s.path FROM raw.source_files f JOIN raw.source_files s ON s.file_id = f.same_as"
    ) == [("elocals_leads/a.csv",)]
    assert landing.load("elocals_leads").files == []


@pytest.mark.parametrize("arrival", list(itertools.permutations((1, 2, 3))))
def test_correction_that_is_taken_back(arrival: tuple[int, ...], landing: Landing) -> None:
    """A correction that was taken back is taken back in the table, too."""
    for day in arrival:
        landing.write(f"elocals_leads/{day}.csv", _leads("11" if day == 2 else "10"), day=day)
        landing.load_one("elocals_leads")
    assert landing.rows("SELECT cost FROM raw.elocals_leads") == [(Decimal("10.00"),)]
    assert landing.load("elocals_leads").files == []


@pytest.mark.parametrize("name", ["a.csv", "a 2025-01-05T10_00_00.csv"])
def test_content_that_comes_back_to_its_path(name: str, landing: Landing) -> None:
    """A file that is edited and edited back counts as its last content."""
    for day, cost in enumerate(("10", "11", "10", "11", "12"), start=1):
        landing.write(f"elocals_leads/{name}", _leads(cost), day=day)
        assert landing.load_one("elocals_leads").counts.records_read == 1
        assert landing.rows("SELECT cost FROM raw.elocals_leads") == [(Decimal(cost),)]
        assert landing.load("elocals_leads").files == []
    assert len(_ledger(landing)) == 3


@pytest.mark.parametrize("known", [False, True], ids=["new content", "content that was there before"])
def test_content_that_replaces_another_counts_after_it(known: bool, landing: Landing) -> None:
    """What replaces a file counts after it, even with an older modification time."""
    if known:
        landing.write("elocals_leads/a.csv", _leads("1234.50", "7"), day=1)
        landing.load("elocals_leads")
    landing.write("elocals_leads/a.csv", _leads("1234"), day=5)  # cut off where it still reads well
    landing.load("elocals_leads")
    landing.write("elocals_leads/b.csv", _leads("11"), day=3)
    landing.load("elocals_leads")
    landing.write("elocals_leads/a.csv", _leads("1234.50", "7"), day=1)
    whole = landing.load_one("elocals_leads")
    assert whole.status == "loaded" and whole.counts.superseded == 0
    assert "counts as the newer one" in whole.warnings[0]
    assert landing.rows("SELECT cost FROM raw.elocals_leads ORDER BY lead_id") == [
        (Decimal("1234.50"),),
        (Decimal("7.00"),),
    ]
    assert landing.load("elocals_leads").files == []
    assert landing.load("elocals_leads", force=True).months == set()


def test_refused_content_moves_nothing_in_the_order(landing: Landing) -> None:
    """A file that was broken for a while returns to its own place in the order."""
    landing.write("elocals_leads/a.csv", _leads("10"), day=1)
    landing.write("elocals_leads/b.csv", _leads("11"), day=3)
    landing.load("elocals_leads")
    for broken in ("<html>log in</html>", "Unique ID,Cost\n"):
        landing.write("elocals_leads/a.csv", broken, day=5)
        assert landing.load_one("elocals_leads").status == "refused"
        landing.write("elocals_leads/a.csv", _leads("10"), day=6)
        assert landing.load_one("elocals_leads").counts.superseded == 1
        assert landing.load("elocals_leads").files == []
    assert landing.rows("SELECT cost FROM raw.elocals_leads") == [(Decimal("11.00"),)]
    assert landing.rows("SELECT path, status FROM reporting.files WHERE is_current ORDER BY path") == [
        ("elocals_leads/a.csv", "loaded"),
        ("elocals_leads/b.csv", "loaded"),
    ]


def test_refused_file_stops_no_other(landing: Landing) -> None:
    """A refused file stops none of the others."""
    landing.write("elocals_leads/1.csv", _leads("10"), day=1)
    landing.write("elocals_leads/2.csv", "<html><body>log in</body></html>", day=2)
    landing.write("elocals_leads/3.csv", _leads("10", "20") + '"D,2025-01-05 10:21:17', day=3)
    landing.write("elocals_leads/4.csv", _leads("10", "20"), day=4)
    result = landing.load("elocals_leads")
    assert [file.status for file in result.files] == ["loaded", "refused", "refused", "loaded"]
    assert [file.path for file in result.refused] == ["elocals_leads/2.csv", "elocals_leads/3.csv"]
    assert _ledger(landing) == [
        ("elocals_leads/1.csv", "loaded", 1),
        ("elocals_leads/2.csv", "refused", 0),
        ("elocals_leads/3.csv", "refused", 0),
        ("elocals_leads/4.csv", "loaded", 2),
    ]
    web_page, truncated = map(describe, result.refused)
    assert web_page.startswith('refused: elocals_leads/2.csv: "HTML or XML": web page; accepted: CSV text')
    assert truncated.startswith("refused: elocals_leads/3.csv: line 4, record 3: quote never closes")
    kept = landing.rows("SELECT path, message FROM raw.source_files WHERE message <> '' ORDER BY path")
    assert kept == [(file.path, file.message) for file in result.refused]
    assert landing.rows("SELECT lead_id, record_no FROM raw.elocals_leads ORDER BY 1") == [("A", 1), ("B", 2)]


def test_counts_that_do_not_add_up_are_refused_by_the_table(landing: Landing) -> None:
    """The table refuses counts that do not add up."""
    landing.write("elocals_leads/a.csv", _leads("10"))
    file_id = landing.load_one("elocals_leads").file_id
    reading = ledger.Reading("loaded", 1, counts=ledger.Counts(records_read=2, inserted=1))
    with pytest.raises(psycopg.errors.CheckViolation):
        ledger.conclude(landing.connection, file_id, reading)


def test_value_that_only_the_database_refuses(landing: Landing) -> None:
    """A value that only the database rejects refuses its file, and the run goes on."""
    landing.write("elocals_leads/1.csv", _leads("10"), day=1)
    landing.write("elocals_leads/2.csv", _leads("20"), day=2)
    landing.connection.execute("ALTER TABLE raw.elocals_leads ADD CHECK (cost < 15)")
    first, second = landing.load("elocals_leads").files
    assert (first.status, second.status) == ("loaded", "refused")
    assert "rejected by the database; correct the value" in (second.message or "")


def test_value_that_is_too_long_for_an_index(landing: Landing) -> None:
    """A value too long for an index refuses its file, and later files load."""
    status = "".join(map(chr, range(0x4E00, 0x4E00 + 1000)))  # does not compress
    landing.write(
        "elocals_leads/1.csv",
        text(ELOCALS, [("L1", "2025-01-05 10:21:17 -0500", "01:10", "10", status, "")]),
        day=1,
    )
    landing.write("elocals_leads/2.csv", _leads("20"), day=2)
    landing.connection.execute("CREATE INDEX ON raw.elocals_leads (status)")
    first, second = landing.load("elocals_leads").files
    assert (first.status, second.status) == ("refused", "loaded")
    assert (first.message or "").startswith('"index row')
    assert "rejected by the database" in (first.message or "")


def test_progress_is_reported(landing: Landing) -> None:
    """Each file is reported in one line."""
    landing.write("elocals_leads/a.csv", _leads("10", "NaN"))
    lines: list[str] = []
    landing.load("elocals_leads", report=lines.append)
    assert lines == ["elocals_leads/a.csv: records read 2, inserted 1, quarantined 1"]
