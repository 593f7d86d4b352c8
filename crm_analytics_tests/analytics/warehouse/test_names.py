"""Names of sources: how they are shown, where they come from, and that targets mean the same sources as jobs."""

from __future__ import annotations

import threading
from datetime import date
from pathlib import Path
from typing import Any

import psycopg
import pytest

from crm_analytics.analytics.warehouse.check_queries import QUERIES
from crm_analytics.analytics.warehouse.refresh import refresh, stale_months
from crm_analytics_tests.analytics.ingest.landing_folder import JOBS, Landing, job, text
from crm_analytics_tests.conftest import PATIENCE, wait_until_blocked

Connection = psycopg.Connection[Any]
NOVEMBER, DECEMBER = date(2026, 11, 1), date(2026, 12, 1)
TARGETS = ("month", "source", "segment", "target_repairs")


@pytest.fixture
def landing(analytics: Connection, tmp_path: Path) -> Landing:
    return Landing(tmp_path, analytics)


def put_jobs(connection: Connection, *sources: str | None, day: str = "2026-11-02") -> None:
    """Inserts one job per source, in one statement and in this order."""
    connection.execute(
        "INSERT INTO raw.jobs (job_id, type, source, created_at, job_date, record_no)"
        " SELECT concat(s, n, %(day)s::date), 'COD Repair', s, %(day)s::date, %(day)s::date, n"
        " FROM unnest(%(sources)s::text[]) WITH ORDINALITY AS rows (s, n)",
        {"sources": list(sources), "day": day},
    )


def put_call(connection: Connection, flow: str) -> None:
    connection.execute(
        "INSERT INTO raw.calls (call_id, started_at, call_date, flow) VALUES (%(flow)s, '2026-11-02', '2026-11-02', %(flow)s)",
        {"flow": flow},
    )


def names(connection: Connection) -> list[str]:
    return [
        name for (name,) in connection.execute("SELECT DISTINCT source FROM analytics.job_facts ORDER BY 1")
    ]


def target(connection: Connection, *sources: str) -> list[int]:
    """Returns November's target of repairs for this selection of sources: none, or one."""
    found = connection.execute(
        "SELECT target_repairs FROM reporting.target_of('2026-11-01', %s, '{COD,INS,OTHER}')", [list(sources)]
    )
    return [repairs for (repairs,) in found]


def problems(connection: Connection, check: str) -> list[tuple[Any, ...]]:
    (query,) = [query for query in QUERIES if query.name == check]
    return connection.execute(query.sql.encode(), {"start": NOVEMBER, "end": DECEMBER}).fetchall()


# -- how a source is shown ------------------------------------------------------------------------------------


def test_usual_names_are_shown_as_people_write_them(analytics: Connection) -> None:
    """Known names have their own capitals, however an export writes them; the first letter of each word is not enough."""
    put_jobs(analytics, "HOMEADVISOR", "bbb", "angie's  list", "YELP", "NextDoor")
    assert names(analytics) == ["Angie's List", "BBB", "HomeAdvisor", "Nextdoor", "Yelp"]


def test_a_new_source_is_shown_as_it_first_came(analytics: Connection) -> None:
    """The first record's spelling is the name, and it stays, whatever spelling comes later."""
    put_jobs(analytics, "Service direct", "SERVICE DIRECT", "o'Hara & Sons-2nd", "service direct")
    assert names(analytics) == ["Service direct", "o'Hara & Sons-2nd"]
    put_jobs(analytics, "SERVICE Direct", "O'HARA & SONS-2ND", day="2026-11-03")
    put_call(analytics, "service DIRECT")
    analytics.execute("UPDATE raw.jobs SET source = upper(source)")
    assert names(analytics) == ["Service direct", "o'Hara & Sons-2nd"]
    assert analytics.execute("SELECT source FROM analytics.call_facts").fetchall() == [("Service direct",)]


def test_the_first_record_decides_in_a_file(landing: Landing) -> None:
    """The order of the records decides, not that in which the database happens to write them."""
    landing.write(
        "jobs/a.csv",
        text(JOBS, [job(n, f"J{n}", Source="Big BOX" if n == 1 else "big box") for n in range(1, 3000)]),
    )
    landing.load("jobs")
    assert names(landing.connection) == ["Big BOX"]


def test_an_alias_wins_and_a_channel_needs_none(analytics: Connection) -> None:
    """An alias decides which source is meant; a channel's rule applies to its own name in any spelling."""
    put_jobs(analytics, "TAKL", "angi leads")
    analytics.execute(
        "INSERT INTO analytics.lead_channels (source, lead_rule, cost_rule) VALUES ('Takl', 'jobs', 'none')"
    )
    assert names(analytics) == ["Takl", "angi leads"]
    analytics.execute("INSERT INTO analytics.channel_aliases VALUES ('angi leads', 'Takl')")
    assert names(analytics) == ["Takl"]
    assert analytics.execute("SELECT count(*) FROM analytics.lead_facts").fetchone() == (2,)


def test_blank_sources_and_the_word_for_them_are_one(analytics: Connection) -> None:
    """Jobs without a source are under Unattributed, and so are those that an export already calls so."""
    put_jobs(analytics, None, "", "unattributed", "UNATTRIBUTED")
    assert names(analytics) == ["Unattributed"]


def test_a_changed_name_makes_every_month_stale(analytics: Connection) -> None:
    """A person may change a name, and all of history follows; writing it as it is changes nothing."""
    put_jobs(analytics, "bbb of ny")
    put_jobs(analytics, "Google", day="2026-12-05")
    refresh(analytics, NOVEMBER, date(2027, 1, 1))
    rename = "UPDATE analytics.source_names SET shown = %s WHERE folded = 'bbb of ny'"
    analytics.execute(rename, ["bbb of ny"])
    assert stale_months(analytics) == []
    analytics.execute(rename, ["BBB of NY"])
    assert [entry.month for entry in stale_months(analytics)] == [NOVEMBER, DECEMBER]
    refresh(analytics, NOVEMBER, date(2027, 1, 1))
    assert analytics.execute("SELECT source FROM analytics.monthly_metrics ORDER BY 1").fetchall() == [
        ("BBB of NY",),
        ("Google",),
    ]


def test_a_new_name_makes_only_its_own_months_stale(analytics: Connection) -> None:
    """A load that brings a source for the first time does not restate all of history."""
    put_jobs(analytics, "Google")
    refresh(analytics, NOVEMBER, DECEMBER)
    put_jobs(analytics, "Brand new", day="2026-12-05")
    assert [entry.month for entry in stale_months(analytics)] == [DECEMBER]


@pytest.mark.parametrize(
    "statement", ["DELETE FROM analytics.source_names", "TRUNCATE analytics.source_names"]
)
def test_names_are_not_deleted(analytics: Connection, statement: str) -> None:
    """A deleted name would come back as a later file spells it, and change by itself."""
    with pytest.raises(psycopg.errors.RestrictViolation, match="names of sources are not deleted"):
        analytics.execute(statement.encode())


@pytest.mark.parametrize(
    "statement",
    [
        "INSERT INTO analytics.lead_channels (source, valid_from, lead_rule, cost_rule)"
        " VALUES ('GOOGLE', '2026-01-01', 'jobs', 'none')",
        "INSERT INTO analytics.channel_aliases VALUES ('adwords', 'google')",
        "UPDATE analytics.source_names SET shown = 'google' WHERE folded = 'google ads'",
        "UPDATE analytics.channel_aliases SET source = 'Pro referral' WHERE alias_folded = 'googleads'",
    ],
)
def test_one_name_in_two_spellings_is_refused(analytics: Connection, statement: str) -> None:
    """`Google` and `google` would be two sources side by side, one of them without the channel's rule."""
    with pytest.raises(psycopg.errors.CheckViolation, match="one name is spelled in two ways"):
        analytics.execute(statement.encode())


def test_two_loads_with_the_same_new_names(analytics_url: str) -> None:
    """Loads that bring the same names in opposite order wait for each other instead of ending in a deadlock."""
    with (
        psycopg.connect(analytics_url) as first,
        psycopg.connect(analytics_url, autocommit=True) as second,
        psycopg.connect(analytics_url, autocommit=True) as watcher,
    ):

        def load_calls() -> None:
            with second.transaction():
                put_call(second, "Alpha")
                put_call(second, "Beta")

        put_jobs(first, "beta")
        thread = threading.Thread(target=load_calls)
        thread.start()
        wait_until_blocked(watcher, "advisory")
        put_jobs(first, "alpha", day="2026-11-03")
        first.commit()
        thread.join(PATIENCE)
        assert not thread.is_alive()
        assert names(watcher) == ["alpha", "beta"]
        assert watcher.execute("SELECT DISTINCT source FROM call_facts ORDER BY 1").fetchall() == [
            ("alpha",),
            ("beta",),
        ]


def test_a_refresh_waits_for_an_open_rename_and_not_for_loads(analytics_url: str) -> None:
    """A month that appears during a rename gets the new name; a load that is still running holds no refresh up."""
    with (
        psycopg.connect(analytics_url, autocommit=True) as editor,
        psycopg.connect(analytics_url, autocommit=True) as loader,
        psycopg.connect(analytics_url, autocommit=True) as refresher,
    ):
        put_jobs(loader, "bbb of ny")
        with loader.transaction():
            put_jobs(loader, "Not committed yet", day="2026-12-05")
            refresh(refresher, NOVEMBER, DECEMBER)
        thread = threading.Thread(target=refresh, args=(refresher, NOVEMBER, date(2027, 2, 1)))
        with editor.transaction():
            editor.execute("UPDATE analytics.source_names SET shown = 'BBB of NY' WHERE folded = 'bbb of ny'")
            put_jobs(loader, "bbb of ny", day="2027-01-05")
            thread.start()
            wait_until_blocked(loader, "relation")
        thread.join(PATIENCE)
        assert not thread.is_alive()
        refresh(refresher, NOVEMBER, date(2027, 2, 1))
        found = loader.execute("SELECT DISTINCT source FROM analytics.monthly_metrics ORDER BY 1").fetchall()
        assert found == [("BBB of NY",), ("Not committed yet",)]


# -- targets --------------------------------------------------------------------------------------------------


def load_both(landing: Landing, jobs: list[str], *targets: tuple[str, int]) -> list[str]:
    """Loads jobs of these sources, computes November, loads its targets; returns the warnings about the targets."""
    rows = [job(n, f"GS{n:04}", Source=source, Created="2026-11-02") for n, source in enumerate(jobs, 1)]
    landing.write("jobs/jobs.csv", text(JOBS, rows))
    landing.load("jobs")
    refresh(landing.connection, NOVEMBER, DECEMBER)
    return load_targets(landing, "targets/a.csv", *targets)


def load_targets(landing: Landing, path: str, *targets: tuple[str, int]) -> list[str]:
    landing.write(path, text(TARGETS, [("2026-11", source, "ALL", repairs) for source, repairs in targets]))
    return landing.load_one("targets").warnings


def test_targets_mean_the_sources_of_jobs(landing: Landing) -> None:
    """A target's source is the one that a job's source in this spelling is, so it is compared with its numbers."""
    jobs = ["Service direct", "google ads", "Google"]
    assert load_both(landing, jobs, ("Service direct", 10), ("google", 11), ("GOOGLE  ADS", 12)) == []
    assert target(landing.connection, "Service direct") == [10]
    assert target(landing.connection, "Google") == [11]
    assert target(landing.connection, "Google Ads") == [12]
    assert target(landing.connection, "Google", "Google Ads") == []
    for check in ("targets_without_source", "conflicting_targets"):
        assert problems(landing.connection, check) == []
    offered = [name for (name,) in landing.rows("SELECT source FROM reporting.sources")]
    assert sorted({name for name in offered if "oogle" in name.casefold()}) == ["Google", "Google Ads"]


def test_an_alias_regroups_targets_that_are_loaded(landing: Landing) -> None:
    """An alias that is added later counts for targets at once, as it does for jobs."""
    load_both(landing, ["Rely"], ("Rely Home Warranty", 7))
    assert target(landing.connection, "Rely") == []
    landing.connection.execute("INSERT INTO channel_aliases VALUES ('rely home warranty', 'Rely')")
    assert target(landing.connection, "Rely") == [7]
    assert problems(landing.connection, "targets_without_source") == []


@pytest.mark.parametrize("wrong", ["Servce direct", "Googel", "Retention"])
def test_a_target_whose_source_has_no_numbers_is_reported(landing: Landing, wrong: str) -> None:
    """A misspelled source would leave its target compared with nothing, in silence: the load warns, and a check."""
    warnings = load_both(landing, ["Service direct", "Google"], ("Service direct", 10), (wrong, 20))
    assert warnings == [
        f'Source "{wrong}": no month has numbers for it, so its targets are compared with nothing; spell it as the'
        " dashboards do, or add this spelling to analytics.channel_aliases"
    ]
    assert problems(landing.connection, "targets_without_source") == [(wrong, "2026-11")]


def test_targets_before_any_data_are_not_reported(landing: Landing) -> None:
    """In a first run, targets may load before jobs; then there is nothing yet to compare a source with."""
    assert load_targets(landing, "targets/a.csv", ("Service direct", 10)) == []
    assert problems(landing.connection, "targets_without_source") == []
    put_jobs(landing.connection, "SERVICE DIRECT")
    assert problems(landing.connection, "targets_without_source") == []


def test_a_corrected_spelling_is_the_same_target(landing: Landing) -> None:
    """A file that spells the source in another way updates its target, and the text as given is kept."""
    load_both(landing, ["Google"], ("google", 10))
    load_targets(landing, "targets/b.csv", ("Google", 12))
    assert landing.rows("SELECT source, source_folded, target_repairs FROM analytics.targets") == [
        ("Google", "google", 12)
    ]


def test_two_spellings_in_one_file_are_quarantined(landing: Landing) -> None:
    """Two targets for one month, source and segment contradict each other, and neither is loaded."""
    load_both(landing, ["Google"], ("google", 10), ("Google", 20), ("ALL", 50), ("Rely", 5))
    assert landing.rows("SELECT source FROM analytics.targets ORDER BY 1") == [("ALL",), ("Rely",)]
    assert landing.rows("SELECT row_key, status FROM raw.rejected_rows") == [
        ("2026-11, google, ALL", "open")
    ] * 2  # fmt: skip


def test_targets_under_an_alias_and_its_name_conflict(landing: Landing) -> None:
    """Two targets that an alias makes one are reported, and the dashboards show neither instead of any one."""
    warnings = load_both(landing, ["Google"], ("googleads", 10), ("Google", 20))
    assert warnings == [
        'Source "Google": 2026-11 has targets under several spellings (google, googleads), and none of them counts;'
        " delete the wrong ones from analytics.targets"
    ]
    assert problems(landing.connection, "conflicting_targets") == [
        ("2026-11-01", "Google", "ALL", "google, googleads")
    ]
    assert target(landing.connection, "Google") == []
    landing.connection.execute("DELETE FROM analytics.targets WHERE source = 'googleads'")
    assert target(landing.connection, "Google") == [20]
    assert problems(landing.connection, "conflicting_targets") == []


def test_a_source_called_all_is_not_the_whole_business(analytics: Connection) -> None:
    """The target of the whole business isn't shown for a single source, whatever an export calls it."""
    put_jobs(analytics, "ALL", "Google")
    refresh(analytics, NOVEMBER, DECEMBER)
    analytics.execute(
        "INSERT INTO analytics.targets (month, source, target_repairs) VALUES ('2026-11-01', 'all', 90)"
    )
    everything = [name for (name,) in analytics.execute("SELECT source FROM reporting.sources")]
    assert target(analytics, *everything) == [90]
    assert target(analytics, "ALL") == []
