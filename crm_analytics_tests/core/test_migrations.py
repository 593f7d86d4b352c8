"""Migrations: repeatable, serialized, immutable; the data model page and the embedded server."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import psycopg
import pytest

from crm_analytics.analytics.warehouse.catalog import relations
from crm_analytics.analytics.warehouse.data_model_doc import SCHEMAS, data_model
from crm_analytics.core import locks, migrations
from crm_analytics.core.database import sqlalchemy_url
from crm_analytics.core.embedded_postgres import EmbeddedPostgres
from crm_analytics.core.settings import PROJECT_DIR, Settings
from crm_analytics_tests.conftest import PATIENCE, PG_VERSION


def test_migrating_twice_and_twice_at_once_is_harmless(new_database: Callable[..., str]) -> None:
    """Migrating twice, and concurrently, succeeds: two containers may start at the same time."""
    url = new_database()
    failures: list[Exception] = []

    def work() -> None:
        try:
            migrations.migrate("analytics", url=url)
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert failures == []
    again = migrations.migrate("analytics", url=url)
    assert again.pending == ()
    assert again.version == migrations.migration_files("analytics")[-1].version


def test_a_waiting_migration_names_the_lock_holder_and_gives_up(
    new_database: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A forgotten session that holds the lock is named, and the wait ends; else every deployment would hang silently."""
    url = new_database("analytics")
    monkeypatch.setattr(migrations, "LOCK_PATIENCE", 1)
    lines = list[str]()
    with psycopg.connect(url, autocommit=True) as other:
        other.execute("SELECT pg_advisory_lock(hashtextextended(%s, 0))", [locks.MIGRATION])
        holder = f"process {other.info.backend_pid}, role {other.info.user}"
        with pytest.raises(migrations.MigrationError, match=f"{holder} holds it"):
            migrations.migrate("analytics", url=url, report=lines.append)
    assert lines == [f"waiting for another migration: {holder}"]
    assert migrations.migrate("analytics", url=url).pending == ()


def test_every_migration_restores_the_server_part(new_database: Callable[..., str]) -> None:
    """Migrating restores the settings that a restored database has lost: the search_path, and the limits of Grafana's role."""
    url = new_database("analytics")
    with psycopg.connect(url, autocommit=True) as connection:
        for target in ("DATABASE {0}", "ROLE grafana_reader IN DATABASE {0}"):
            connection.execute(f"ALTER {target.format(connection.info.dbname)} RESET ALL".encode())
    migrations.migrate("analytics", url=url)
    with psycopg.connect(url) as connection:
        connection.execute("SELECT job_id FROM jobs")
        assert connection.execute(
            "SELECT s.setconfig FROM pg_db_role_setting s JOIN pg_database d ON d.oid = s.setdatabase"
            " WHERE d.datname = current_database() AND s.setrole = 'grafana_reader'::regrole"
        ).fetchone() == (
            ["default_transaction_read_only=on", "statement_timeout=15s", "TimeZone=UTC", "search_path=analytics, reporting"],
        )  # fmt: skip


def test_changed_migration_is_refused(new_database: Callable[..., str]) -> None:
    """A file that changed after it ran is refused; else databases would silently differ."""
    url = new_database("analytics")
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("UPDATE analytics.migration_files SET sha256 = 'x' WHERE version = '0002'")
    with pytest.raises(
        migrations.MigrationError, match=r"0002_channels\.sql was changed after it was applied"
    ):
        migrations.migrate("analytics", url=url)


def test_database_of_a_newer_release_is_refused(new_database: Callable[..., str]) -> None:
    """An old release refuses a database that a newer one has migrated, because it does not know its schema."""
    url = new_database("analytics")
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("INSERT INTO analytics.migration_files VALUES ('9999', '9999_future.sql', 'x')")
    with pytest.raises(migrations.MigrationError, match="newer release"):
        migrations.migrate("analytics", url=url)


def test_other_timezone_is_refused(new_database: Callable[..., str]) -> None:
    """Another business timezone is refused; dates of two timezones in one table would be silently wrong."""
    url = new_database("analytics")
    with pytest.raises(
        migrations.MigrationError, match="America/New_York, but BUSINESS_TIMEZONE is Europe/Berlin"
    ):
        migrations.migrate("analytics", url=url, config=Settings(business_timezone="Europe/Berlin"))


@pytest.mark.parametrize(("database", "schema"), [("crm", "crm_private"), ("analytics", "analytics")])
def test_schema_that_another_role_made_beforehand_is_refused(
    new_database: Callable[..., str], database: str, schema: str
) -> None:
    """Whoever owns the migrations' schema could replace what is in it, so its maker must be the migrating login."""
    url = new_database()
    with psycopg.connect(url, autocommit=True) as connection:
        role = f"squatter_{connection.info.dbname}"
        connection.execute(f"CREATE ROLE {role}; CREATE SCHEMA {schema} AUTHORIZATION {role}")
        try:
            with pytest.raises(migrations.MigrationError, match=f"{schema} belongs to {role}"):
                migrations.migrate(database, url=url)
            connection.execute(f"ALTER SCHEMA {schema} OWNER TO CURRENT_USER")
            migrations.migrate(database, url=url)
        finally:
            connection.execute(f"DROP OWNED BY {role}; DROP ROLE {role}")


@pytest.mark.parametrize("database", ["crm", "analytics"])
def test_nobody_gives_the_migrations_names_another_meaning(
    new_database: Callable[..., str], database: str
) -> None:
    """Functions of a schema that comes first in the database's search_path are not called while migrations run."""
    url = new_database()
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("CREATE SCHEMA trap")
        for name, arguments in (("lower", "text"), ("format", "text, VARIADIC text[]"), ("now", "")):
            connection.execute(
                f"CREATE FUNCTION trap.{name}({arguments}) RETURNS text LANGUAGE plpgsql IMMUTABLE"
                " AS $$ BEGIN RAISE EXCEPTION 'the trap ran'; END $$"
            )
        connection.execute(
            f"ALTER DATABASE {connection.info.dbname} SET search_path = trap, pg_catalog, public"
        )
    assert migrations.migrate(database, url=url).pending == ()


def test_failed_file_leaves_nothing_and_names_itself(
    new_database: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A failed file is rolled back whole and named in the error; half a file could not be repeated."""
    folder = tmp_path / "analytics"
    folder.mkdir()
    (folder / "server.sql").write_text("")
    (folder / "0001_good.sql").write_text("CREATE TABLE analytics.business (timezone text, franchise text);")
    (folder / "0002_bad.sql").write_text("CREATE TABLE analytics.half (x int); SELECT 1/0;")
    monkeypatch.setattr(migrations, "SQL_DIR", tmp_path)
    url = new_database()
    with pytest.raises(migrations.MigrationError, match=r"0002_bad.sql: division by zero"):
        migrations.migrate("analytics", url=url)
    with psycopg.connect(url) as connection:
        found = connection.execute(
            "SELECT to_regclass('analytics.business'), to_regclass('analytics.half')"
        ).fetchone()
    assert found == ("analytics.business", None)
    assert migrations.status("analytics", url=url).pending == ("0002_bad.sql",)


def test_script_creates_the_same_schema(new_database: Callable[..., str], server: EmbeddedPostgres) -> None:
    """psql runs the output of `migrate analytics --sql` as it is, because people review it and run it by hand."""
    url = new_database()
    script = migrations.script("analytics")
    assert script.index("CREATE TABLE raw.jobs") < script.index("CREATE TABLE analytics.daily_metrics")
    subprocess.run(
        [server.bin / "psql", url, "-q", "-v", "ON_ERROR_STOP=1"],
        input=script,
        text=True,
        check=True,
        capture_output=True,
    )
    with psycopg.connect(url) as by_hand, psycopg.connect(new_database("analytics")) as migrated:
        assert relations(by_hand, *SCHEMAS) == relations(migrated, *SCHEMAS)


def test_data_model_page_is_the_catalog(analytics: psycopg.Connection[Any]) -> None:
    """docs/data-model.md is current; it is generated, and a schema change must regenerate it."""
    page = (PROJECT_DIR / "docs" / "data-model.md").read_text()
    assert page == data_model(analytics), (
        "run: python -m crm_analytics.analytics.warehouse.data_model_doc > docs/data-model.md"
    )


def test_everything_has_a_comment(analytics: psycopg.Connection[Any]) -> None:
    """Every table and every column has a comment, since the generated pages consist of them."""
    silent = [
        f"{relation.schema}.{relation.name}.{column.name}"
        for relation in relations(analytics, *SCHEMAS)
        for column in relation.columns
        if not column.comment
    ] + [f"{r.schema}.{r.name}" for r in relations(analytics, *SCHEMAS) if not r.comment]
    assert silent == []


def test_common_queries_use_indexes(analytics: psycopg.Connection[Any]) -> None:
    """Metrics by month, source and segment, and daily metrics of one month, are read through indexes."""
    analytics.execute(
        "INSERT INTO daily_metrics (date, source, segment, jobs) SELECT d, 'S' || s, 'COD', 1"
        " FROM generate_series('2015-01-01'::date, '2024-12-31', '1 day') d, generate_series(1, 20) s"
    )
    analytics.execute(
        "INSERT INTO monthly_metrics (month, source, segment, jobs) SELECT date_trunc('month', date), source, segment,"
        " sum(jobs) FROM daily_metrics GROUP BY 1, 2, 3"
    )
    analytics.execute("ANALYZE")
    for query in (
        "SELECT * FROM daily_metrics WHERE date >= '2024-12-01' AND date < '2025-01-01'",
        "SELECT * FROM monthly_metrics WHERE month = '2024-10-01' AND source = 'S3' AND segment = 'COD'",
        "SELECT * FROM monthly_metrics WHERE source = 'S3' AND segment = 'COD' AND month > '2024-01-01'",
    ):
        plan = "\n".join(line for (line,) in analytics.execute(f"EXPLAIN {query}".encode()))
        assert "Index" in plan and "Seq Scan" not in plan, plan


def _postmaster(server: EmbeddedPostgres) -> int:
    return int((server.data / "postmaster.pid").read_text().splitlines()[0])


def test_killed_embedded_server_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next start repairs the state that kill -9 leaves, at any moment."""
    first = EmbeddedPostgres(tmp_path, PG_VERSION).start()
    with psycopg.connect(first.url("analytics"), autocommit=True) as connection:
        connection.execute("CREATE TABLE kept AS SELECT 1 AS x")
    url = first.url("analytics")
    pid = _postmaster(first)
    children = subprocess.run(
        ["pgrep", "-P", str(pid)], capture_output=True, text=True, check=False
    ).stdout.split()
    for victim in [pid, *map(int, children)]:
        os.kill(victim, signal.SIGKILL)
    # as a busy machine shows by chance: no server answers, but the killed process still looks alive
    truth = EmbeddedPostgres.running
    answers = iter([True])
    monkeypatch.setattr(EmbeddedPostgres, "running", lambda self: next(answers, None) or truth(self))
    second = EmbeddedPostgres(tmp_path, PG_VERSION).start()
    assert second.url("analytics") == url, "the port is kept, so that saved connections go on working"
    with psycopg.connect(second.url("analytics")) as connection:
        assert connection.execute("SELECT x FROM kept").fetchone() == (1,)
    second.release()
    first.release()
    assert not first.running()


def test_start_waits_for_what_is_left_of_a_killed_server(tmp_path: Path) -> None:
    """A start waits for the backends of a killed postmaster: one in the middle of a query still holds the shared memory."""
    first = EmbeddedPostgres(tmp_path, PG_VERSION).start()
    busy = psycopg.connect(first.url("analytics"), autocommit=True)
    backend = busy.info.backend_pid
    busy.pgconn.send_query(b"SELECT count(*) FROM (SELECT generate_series(1, 5000000)) AS streamed")
    with psycopg.connect(first.url("analytics"), autocommit=True) as watcher:
        active = "SELECT FROM pg_stat_activity WHERE pid = %s AND state = 'active'"
        while not watcher.execute(active, [backend]).fetchall():
            time.sleep(0.01)  # until the query has begun; before, the backend would end at once
    os.kill(_postmaster(first), signal.SIGKILL)
    second = EmbeddedPostgres(tmp_path, PG_VERSION).start()
    with suppress(psutil.NoSuchProcess):
        assert psutil.Process(backend).status() == psutil.STATUS_ZOMBIE, "it ended before the second started"
    with psycopg.connect(second.url("analytics")) as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)
    busy.close()
    second.release()
    first.release()


def test_restart_never_leaves_half_a_file_with_the_port(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until the port is written anew, other processes read the old one; half a file would end them with a traceback."""
    server = EmbeddedPostgres(tmp_path, PG_VERSION).start()
    url = server.url("crm")
    server.release()

    def killed(*arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            EmbeddedPostgres(tmp_path, PG_VERSION).start()
    assert server.url("crm") == url
    second = EmbeddedPostgres(tmp_path, PG_VERSION).start()
    assert second.url("crm") == url
    second.release()


def test_two_processes_share_one_server_and_the_last_one_stops_it(tmp_path: Path) -> None:
    """Two commands at once share one server, and the one that ends last stops it."""
    mine = EmbeddedPostgres(tmp_path, PG_VERSION).start()
    code = (
        "import sys; from pathlib import Path; from crm_analytics.core.embedded_postgres import EmbeddedPostgres;"
        "print(EmbeddedPostgres(Path(sys.argv[1]), int(sys.argv[2])).start().url('crm'))"
    )
    other = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path), str(PG_VERSION)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert other.stdout.strip() == mine.url("crm")
    assert mine.running(), "the other process ended and must have left the server to us"
    assert (tmp_path / f"postgres-{PG_VERSION}" / "password").stat().st_mode & 0o777 == 0o600
    with pytest.raises(psycopg.OperationalError, match="password"):
        psycopg.connect(mine.url("crm").replace(":", ":wrong", 2).replace(":wrong//", "://"))
    mine.release()
    assert not mine.running()


@pytest.mark.parametrize(
    ("conninfo", "expected"),
    [
        ("postgresql://u:p%40w@db:5433/x", "postgresql://u:p%40w@db:5433/x"),
        ("host=/run/pg port=5433 user=u dbname=x", "postgresql://u@/x?host=%2Frun%2Fpg&port=5433"),
        ("postgresql:///x?host=/run/pg&user=u", "postgresql://u@/x?host=%2Frun%2Fpg"),
        ("postgres://u@h/x?sslmode=require", "postgresql://u@h/x?sslmode=require"),
    ],
)
def test_every_libpq_form_becomes_a_url(conninfo: str, expected: str) -> None:
    """Every address that libpq accepts becomes a URL, because dagster-postgres accepts only URLs."""
    assert sqlalchemy_url(conninfo) == expected
