"""A changed rule: the migrator makes all of history stale, and what changes behind its back turns checks red."""

from __future__ import annotations

import re
import shutil
import subprocess
import threading
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import psycopg
import pytest

from crm_analytics.analytics.warehouse.check_queries import QUERIES
from crm_analytics.analytics.warehouse.refresh import MEASURES, refresh, stale_months
from crm_analytics.core import migrations
from crm_analytics.core.rule_texts import rule_text
from crm_analytics.core.settings import PROJECT_DIR, SQL_DIR
from crm_analytics_tests.conftest import PATIENCE, wait_until_blocked

Connection = psycopg.Connection[Any]
FIRST, LAST, END = date(2024, 1, 1), date(2024, 3, 1), date(2024, 4, 1)
MONTHS = [date(2024, 1, 1), date(2024, 2, 1), date(2024, 3, 1)]

THRESHOLD = """
    CREATE OR REPLACE FUNCTION analytics.repair_rule(type_folded text, paid numeric) RETURNS text
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN CASE
        WHEN type_folded IN ('cod repair', 'ins repair') THEN 'repair_type'
        WHEN type_folded = 'cod service' AND paid > 150 THEN 'paid_service'
    END
"""
SEGMENT = r"""
    CREATE OR REPLACE FUNCTION analytics.segment_of(type_folded text) RETURNS text LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN CASE WHEN type_folded ~ '\mins\M' THEN 'INS' ELSE 'OTHER' END
"""
CHANNEL = """
    CREATE OR REPLACE FUNCTION analytics.is_elocals_lead(cost numeric) RETURNS boolean
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN cost > 20
"""
#: Changes of data that a rule is made of; the triggers that note them are off.
PRICE = "UPDATE analytics.lead_channels SET lead_rule = 'none' WHERE source = 'Rely'"
NAME = "UPDATE analytics.source_names SET shown = 'Yelp Ads' WHERE folded = 'yelp'"

#: Each change, and the measures that it makes wrong in every month.
CHANGES = {
    "threshold": (THRESHOLD, {"repairs"}),
    "segment": (SEGMENT, {"jobs", "units", "repairs", "leads", "revenue_gross"}),
    "channel": (CHANNEL, {"leads", "cost"}),
    "price": (PRICE, {"leads"}),
    "name": (NAME, {"jobs"}),
}
#: What the reconciliation calls the measures.
TITLES = {name: name.capitalize() for name in MEASURES} | {
    "cost": "Cost in dollars",
    "revenue_gross": "Gross revenue in dollars",
}


def fill(connection: Connection) -> None:
    """Fills three months, each with every kind of row that the changes concern, and computes them."""
    for month in MONTHS:
        day = {"day": month.replace(day=5)}
        connection.execute(
            "INSERT INTO raw.jobs (job_id, type, source, created_at, job_date) SELECT %(day)s || t || s, t, s, %(day)s, %(day)s"
            " FROM (VALUES ('COD Service', 'Google'), ('INS Service', 'Rely'), ('Warranty', 'Yelp')) AS rows (t, s)",
            day,
        )
        connection.execute(
            "INSERT INTO raw.payments (payment_id, job_ref, paid_date, amount)"
            " SELECT 'P' || job_id, job_id, job_date, 120 FROM raw.jobs WHERE job_date = %(day)s AND source = 'Google'",
            day,
        )
        connection.execute(
            "INSERT INTO raw.elocals_leads (lead_id, lead_at, lead_date, cost) VALUES (%(day)s || 'L', %(day)s, %(day)s, 15)",
            day,
        )
        connection.execute(
            "INSERT INTO raw.calls (call_id, started_at, call_date, flow) VALUES (%(day)s || 'C', %(day)s, %(day)s, 'eLocals')",
            day,
        )
    refresh(connection, FIRST, END)
    assert stale_months(connection) == []
    assert wrong(connection) == {}


def wrong(connection: Connection) -> dict[date, set[str]]:
    """Returns what the check finds: months, and the measures that differ in them."""
    (query,) = [query for query in QUERIES if query.name == "metrics_equal_facts"]
    with connection.cursor(row_factory=psycopg.rows.dict_row) as cursor:
        rows = cursor.execute(
            query.sql.encode(), {"start": date(2000, 1, 1), "end": date(2101, 1, 1)}
        ).fetchall()
    return {date.fromisoformat(row["month"]): {name for name in MEASURES if float(row[name])} for row in rows}


def unreconciled(connection: Connection, month: date) -> set[str]:
    """Returns the lines of the month's reconciliation that differ."""
    rows = connection.execute(
        "SELECT measure FROM reporting.reconciliation(%s) WHERE difference <> 0", [month]
    )
    return {measure for (measure,) in rows}


@pytest.mark.parametrize("change", CHANGES)
def test_a_rule_changed_behind_the_migrator_turns_checks_red(analytics: Connection, change: str) -> None:
    """A rule that changes without a queue entry leaves history wrong: the nightly check and the reconciliation see it.

    Also where totals agree, because rows only moved to another segment or source.
    """
    statement, measures = CHANGES[change]
    fill(analytics)
    analytics.execute("SET session_replication_role = replica")
    analytics.execute(statement.encode())
    analytics.execute("RESET session_replication_role")
    assert stale_months(analytics) == []
    assert wrong(analytics) == dict.fromkeys(MONTHS, measures)
    expected = {f"{TITLES[name]}: facts against daily metrics" for name in measures}
    assert [unreconciled(analytics, month) for month in MONTHS] == [expected] * 3
    analytics.execute("SELECT analytics.queue_every_month('rule changed by hand')")
    assert wrong(analytics) == {}, "a stale month is known to be wrong"
    refresh(analytics, FIRST, END)
    assert wrong(analytics) == {}
    assert [unreconciled(analytics, month) for month in MONTHS] == [set()] * 3


@pytest.mark.parametrize("measure", MEASURES)
def test_every_stored_measure_is_compared(analytics: Connection, measure: str) -> None:
    """A number changed by hand is found, whichever it is, on the day's level and on the month's."""
    fill(analytics)
    analytics.execute(
        f"UPDATE analytics.daily_metrics SET {measure} = {measure} + 1 WHERE date = '2024-02-05'"
    )
    assert wrong(analytics) == {MONTHS[1]: {measure}}
    assert {
        f"{TITLES[measure]}: facts against daily metrics",
        f"{TITLES[measure]}: daily against monthly metrics",
    } <= unreconciled(analytics, MONTHS[1])
    assert unreconciled(analytics, MONTHS[0]) == set()


@pytest.fixture
def migration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """Adds a migration after the existing ones, and returns its name."""
    shutil.copytree(SQL_DIR, tmp_path / "sql")
    monkeypatch.setattr(migrations, "SQL_DIR", tmp_path / "sql")
    number = int(migrations.migration_files("analytics")[-1].version) + 1

    def add(text: str) -> str:
        path = tmp_path / "sql" / "analytics" / f"{number:04}_changed_rule.sql"
        path.write_text(text.strip() + ";\n")
        return path.name

    return add


@pytest.mark.parametrize("change", ["threshold", "segment", "channel"])
def test_a_migration_makes_every_month_stale(
    analytics_url: str, migration: Callable[[str], str], change: str
) -> None:
    """A migration that changes a rule queues all of history in its own transaction, and a refresh sets it right."""
    statement, _ = CHANGES[change]
    lines = list[str]()
    with psycopg.connect(analytics_url, autocommit=True) as connection:
        fill(connection)
        before = connection.execute("SELECT * FROM analytics.job_facts ORDER BY 1").fetchall()
        name = migration(statement)
        migrations.migrate("analytics", url=analytics_url, report=lines.append)
        assert [entry.month for entry in stale_months(connection)] == MONTHS
        assert connection.execute("SELECT DISTINCT cause FROM analytics.stale_months").fetchall() == [
            (f"migration {name}",)
        ]
        assert lines == [
            f"applied {name}",
            f"3 months will be computed again, because {name} may have changed a rule",
        ]
        refresh(connection, FIRST, END)
        assert wrong(connection) == {}
        if change == "threshold":
            repairs = connection.execute("SELECT sum(repairs) FROM analytics.monthly_metrics").fetchone()
            assert repairs == (0,), "120.00 is not more than 150.00"
            after = connection.execute("SELECT * FROM analytics.job_facts ORDER BY 1").fetchall()
            assert before != after
        migrations.migrate("analytics", url=analytics_url)
        assert stale_months(connection) == [], "nothing was applied, so nothing is stale"


def test_a_migration_that_fails_queues_nothing(analytics_url: str, migration: Callable[[str], str]) -> None:
    """The queue's entries belong to the migration's transaction: a kill loses both or neither."""
    with psycopg.connect(analytics_url, autocommit=True) as connection:
        fill(connection)
        migration(f"{THRESHOLD}; SELECT 1 / 0")
        with pytest.raises(migrations.MigrationError, match="division by zero"):
            migrations.migrate("analytics", url=analytics_url)
        assert stale_months(connection) == []
        assert wrong(connection) == {}


def test_a_refresh_waits_for_a_migration(analytics_url: str, migration: Callable[[str], str]) -> None:
    """A month that appears while a migration runs is computed by the new rules, although it was not queued."""
    with (
        psycopg.connect(analytics_url, autocommit=True) as holder,
        psycopg.connect(analytics_url, autocommit=True) as loader,
        psycopg.connect(analytics_url, autocommit=True) as refresher,
    ):
        fill(loader)
        migration(f"{THRESHOLD}; SELECT pg_advisory_xact_lock(1)")
        migrating = threading.Thread(
            target=migrations.migrate, args=("analytics",), kwargs={"url": analytics_url}
        )
        refreshing = threading.Thread(target=refresh, args=(refresher, END, date(2024, 5, 1)))
        with holder.transaction():
            holder.execute("SELECT pg_advisory_xact_lock(1)")
            migrating.start()
            wait_until_blocked(holder, "advisory")
            loader.execute(
                "INSERT INTO raw.jobs (job_id, type, source, created_at, job_date)"
                " VALUES ('new', 'COD Service', 'Google', '2024-04-05', '2024-04-05')"
            )
            loader.execute(
                "INSERT INTO raw.payments (payment_id, job_ref, paid_date, amount)"
                " VALUES ('new', 'new', '2024-04-05', 120)"
            )
            refreshing.start()
            wait_until_blocked(holder, "relation")
        for thread in (migrating, refreshing):
            thread.join(PATIENCE)
            assert not thread.is_alive()
        refresh(refresher, FIRST, date(2024, 5, 1))
        assert wrong(loader) == {}


# -- wording ----------------------------------------------------------------------------------------------------


def lines_with(pattern: str, *paths: str) -> list[str]:
    """Returns where a pattern occurs in files that people edit, as `path`.

    Generated pages are left out, and blocks of the guide, which its own test compares with what commands print.
    """
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--", *paths], cwd=PROJECT_DIR, capture_output=True, text=True, check=True
    )
    found = []
    for name in listed.stdout.split("\0"):
        path = PROJECT_DIR / name
        if (
            not name
            or not path.exists()
            or path.suffix not in {".py", ".sql", ".md"}
            or name == "docs/data-model.md"
        ):
            continue
        page = path.read_text(encoding="utf-8")
        if name == "docs/guide.md":
            page, blocks = re.subn(r"^```.*?^```$", "", page, flags=re.MULTILINE | re.DOTALL)
            assert blocks > 10
        found += [name for _ in re.findall(pattern, page)]
    return found


FACTS = "sql/analytics/0003_facts.sql"
#: Where rules are worded, or would be if they were repeated; tests, benchmarks and samples have versions of their own.
WORDED = ("sql", "crm_analytics/analytics", "crm_analytics/cli", "crm_analytics/core", "crm_analytics/dashboards",
          "crm_analytics/orchestration", "docs", "README.md", "CONTRIBUTING.md")  # fmt: skip


@pytest.mark.parametrize(
    ("pattern", "times"),
    [
        (r"more than \$?100\b", 1),
        (r"(?:[<>]=?|RETURN) 100\b", 1),
        (r"[Uu]nits?\W+(?:a )?jobs? of type", 1),
        (r"[Rr]epairs?\W+(?:a )?jobs? of type", 1),
        (r"paid, more than", 1),
        (r"', above 0'", 1),
        (r"status than Passed", 1),
        (r"\b40%", 1),
        (r"\* 0\.40?\b", 1),
        (r"'(?:cod|ins) (?:service|repair)'", 5),
    ],
)
def test_each_rule_is_worded_in_one_place(pattern: str, times: int) -> None:
    """A rule and its wording are in one file, so a change of the rule leaves no sentence behind that is wrong."""
    found = [
        name for name in lines_with(pattern, *WORDED) if name != "docs/decisions/pooled-dagster-storage.md"
    ]
    assert found == [FACTS] * times


@pytest.mark.parametrize("literal", [r"\b100\b", r"(?i)\b(?:cod|ins) (?:service|repair)\b"])
def test_amounts_and_types_of_rules_are_in_one_sql_file(literal: str) -> None:
    """The facts and the grouped metrics ask the same functions, so a rule cannot change in one of them only."""
    assert set(lines_with(literal, "sql/analytics")) == {FACTS}


def test_texts_take_a_rules_wording_from_its_newest_comment(migration: Callable[[str], str]) -> None:
    """Dashboards and the UI show the new wording after a migration that comments the rule anew."""
    assert rule_text("is_repair").startswith("Repair: a job of type COD Repair")
    migration(
        "COMMENT ON FUNCTION analytics.is_repair IS 'Repair: the owner''s word, and '\n    'more than 150'"
    )
    assert rule_text("is_repair") == "Repair: the owner's word, and more than 150"
    with pytest.raises(ValueError, match=r"no migration comments the function analytics\.nothing"):
        rule_text("nothing")
