"""Adding a source takes a declaration and a migration: everything else follows, as README says.

The source `reviews` exists only here. Its declaration (reviews.py) and migration (reviews.sql) are all there is of it.
"""

from __future__ import annotations

from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import dagster as dg
import psycopg
import pytest

from crm_analytics.analytics.ingest.dry_run import examine
from crm_analytics.analytics.ingest.sources.registry import SOURCES
from crm_analytics.analytics.ingest.storage.local_folder import LocalFolder
from crm_analytics.analytics.warehouse.data_model_doc import data_model
from crm_analytics.core.settings import Settings
from crm_analytics.orchestration.analytics.checks import build_checks
from crm_analytics.orchestration.analytics.franchise import Franchise
from crm_analytics.orchestration.analytics.freshness_checks import build_freshness_checks
from crm_analytics.orchestration.analytics.raw_assets import build_raw_asset
from crm_analytics_tests.adding_a_source.reviews import REVIEWS
from crm_analytics_tests.analytics.ingest.landing_folder import NEW_YORK, Landing, text
from crm_analytics_tests.databases import set_today

HEADER = ("Review ID", "Date", "Stars", "Site", "Comment")
KEY = dg.AssetKey(["raw", "reviews"])


@pytest.fixture
def landing(tmp_path: Path, analytics: psycopg.Connection[Any], monkeypatch: pytest.MonkeyPatch) -> Landing:
    """A landing folder and a database of a platform that has the source: registered, and its migration executed."""
    monkeypatch.setitem(SOURCES, REVIEWS.name, REVIEWS)
    analytics.execute(Path(__file__).with_name("reviews.sql").read_bytes())
    return Landing(tmp_path, analytics)


def review(number: int, stars: str = "5", day: str = "10/15/2024") -> tuple[str, ...]:
    return (f"R{number}", day, stars, "Maps", "Fine")


def run(landing: Landing, url: str) -> dg.ExecuteInProcessResult:
    """Materializes the source's asset for October and runs its checks."""
    franchise = Franchise(Settings(analytics_database_url=url, landing_dir=landing.folder))
    definitions = dg.Definitions(
        assets=[build_raw_asset(franchise, REVIEWS)],
        asset_checks=[
            build_checks(franchise, "raw/reviews"),
            build_freshness_checks(franchise, [REVIEWS]),
        ],
        resources=franchise.resources,
    )
    job = definitions.resolve_implicit_global_asset_job_def()
    return job.execute_in_process(partition_key="2024-10")


def test_files_are_recognized_and_loaded(landing: Landing) -> None:
    """Its folder, a name or a header tells the source; records are typed, dated, counted and updated by key."""
    landing.write("reviews/1.csv", text(HEADER, [review(1), review(2)]), day=1)
    landing.write("all reviews.csv", text(HEADER, [review(2, "4"), review(3)]), day=2)
    landing.write("export.csv", text(HEADER, [review(4), review(4)]), day=3)
    landing.write("other.csv", text((*HEADER, "Lead ID", "Job #"), [(*review(5), "L1", "7")]), day=4)
    result = landing.load("reviews")
    assert [(file.path, file.counts.inserted, file.counts.updated) for file in result.files] == [
        ("reviews/1.csv", 2, 0),
        ("all reviews.csv", 1, 1),
        ("export.csv", 1, 0),
    ]
    assert result.totals.duplicates == 1
    assert result.months == {date(2024, 10, 1)}
    assert landing.rows("SELECT * FROM raw.reviews WHERE review_id = 'R2'")[0][:6] == (
        "R2", datetime(2024, 10, 15, 4, tzinfo=UTC), date(2024, 10, 15), 4, "Maps", "Fine",
    )  # fmt: skip
    assert landing.rows("SELECT path, status FROM raw.source_files WHERE source IS NULL") == [
        ("other.csv", "unrecognized")
    ]


def test_late_files_change_only_what_newer_ones_left_open(landing: Landing) -> None:
    """The order of export counts for it, too, not the order of arrival."""
    landing.write("reviews/2.csv", text(HEADER, [review(1, "2")]), day=2)
    landing.load("reviews")
    landing.write("reviews/1.csv", text(HEADER, [review(1, "5"), review(2)]), day=1)
    late = landing.load_one("reviews")
    assert (late.counts.superseded, late.counts.inserted) == (1, 1)
    assert landing.rows("SELECT review_id, stars FROM raw.reviews ORDER BY 1") == [("R1", 2), ("R2", 5)]


def test_bad_records_are_quarantined_and_bad_files_refused(landing: Landing) -> None:
    """Reasons name the column; conflicts are found by the key; what is wrong closes when it is corrected."""
    bad = [review(1, "five"), review(2, day=""), review(3, "1"), review(3, "2"), review(4)]
    landing.write("reviews/1.csv", text(HEADER, bad), day=1)
    landing.write("reviews/2.csv", text(("Review ID", "Stars"), [("R9", "5")]), day=2)
    first, second = landing.load("reviews").files
    assert (first.counts.inserted, first.counts.quarantined) == (1, 4)
    assert landing.rows("SELECT row_key, count(*) FROM raw.rejected_rows GROUP BY 1 ORDER BY 1") == [
        ("R1", 1),
        ("R2", 1),
        ("R3", 2),
    ]
    assert second.status == "refused"
    assert "reviewed_at" in (second.message or "")
    landing.write("reviews/3.csv", text(HEADER, [review(1)]), day=3)
    landing.load("reviews")
    assert landing.rows("SELECT row_key FROM raw.rejected_rows WHERE status = 'closed'") == [("R1",)]


def test_dry_run(landing: Landing) -> None:
    """`crm-analytics check` says what a load would do."""
    path = landing.write("reviews/1.csv", text(HEADER, [review(1), review(1), review(2, "five")]))
    report = examine(path, timezone=NEW_YORK, landing=landing.folder, connection=landing.connection)
    assert report.file and report.file.source.name == "reviews"
    assert (report.duplicates, len(report.quarantined)) == (1, 1)
    assert report.database is not None and report.database.inserted == 1
    assert landing.rows("SELECT count(*) FROM raw.reviews") == [(0,)]


def test_asset_and_its_checks(landing: Landing, analytics_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The asset loads the files and describes the table; its checks find quarantine, refused files, vanished rows, silence."""
    monkeypatch.setattr(LocalFolder, "quiet_seconds", 0)
    set_today(landing.connection, date(2024, 10, 22))
    landing.write("reviews/1.csv", text(HEADER, [review(number) for number in range(1, 6)]), day=1)
    good = run(landing, analytics_url)
    assert good.success
    assert {check.check_name: check.passed for check in good.get_asset_check_evaluations()} == {
        "quarantine": True, "files_read": True, "vanished_rows": True, "fresh": True,
    }  # fmt: skip
    (materialization,) = good.asset_materializations_for_node("raw__reviews")
    assert materialization.metadata["files_loaded"].value == 1
    schema: Any = materialization.metadata["dagster/column_schema"].value
    assert {column.name: column.description for column in schema.columns}["stars"] == "One to five."

    # two weeks later R4 is missing, R2 cannot be read, and the third file is no export
    set_today(landing.connection, date(2024, 11, 5))
    later = [review(1), review(2, "five"), review(3), review(5, day="10/20/2024")]
    landing.write("reviews/2.csv", text(HEADER, later), day=2)
    landing.write("reviews/3.csv", "<!DOCTYPE html><html><body>Sign in</body></html>", day=3)
    bad = run(landing, analytics_url)
    assert bad.success
    assert {check.check_name: check.passed for check in bad.get_asset_check_evaluations()} == {
        "quarantine": False,
        "files_read": False,
        "vanished_rows": False,
        "fresh": False,
    }


def test_asset_says_when_it_is_late_and_what_it_is() -> None:
    """What is expected of its newest row, and its description, come from the declaration."""
    franchise = Franchise(Settings())
    (spec,) = build_raw_asset(franchise, REVIEWS).specs
    assert spec.key == KEY
    (fresh,) = build_freshness_checks(franchise, [REVIEWS]).check_specs
    assert fresh.asset_key == KEY
    assert "warns when it is older than 7 days and fails when it is older than 14 days" in (
        fresh.description or ""
    )
    assert (spec.description or "").startswith("Reviews by customers, with their stars.")
    assert spec.tags["source"] == "reviews"


def test_dashboards_show_how_fresh_it_is(landing: Landing) -> None:
    """Grafana's table of the newest files has a row for it, before its first file and after."""
    freshness = "SELECT last_file, last_row FROM reporting.freshness WHERE source = 'reviews'"
    assert landing.rows(freshness) == [(None, None)]
    landing.write("reviews/1.csv", text(HEADER, [review(1)]))
    landing.load("reviews")
    assert landing.rows(freshness) == [("reviews/1.csv", date(2024, 10, 15))]


def test_data_model_page_shows_the_table(landing: Landing) -> None:
    """The page is made from the catalog, so the migration's comments are its documentation."""
    page = data_model(landing.connection)
    assert "## raw.reviews (table)" in page
    assert "| stars | integer | no |  | One to five. |" in page
