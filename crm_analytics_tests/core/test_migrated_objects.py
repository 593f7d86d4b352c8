"""The record of applied migrations is compared with the catalog: what was dropped or half restored is refused by name."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import dagster as dg
import psycopg
import pytest
from click.testing import CliRunner, Result

from crm_analytics.cli.main import main
from crm_analytics.core import migrations
from crm_analytics.core.embedded_postgres import EmbeddedPostgres
from crm_analytics.core.list_objects import observed
from crm_analytics.core.migrated_objects import SHOWN, MigratedObjects, found
from crm_analytics.core.settings import SQL_DIR, Settings
from crm_analytics.crm.migrating.migrate import migrate_crm
from crm_analytics.orchestration.analytics.resources import AnalyticsDatabase
from crm_analytics.orchestration.migrated import migrated_url

DATABASES = ("analytics", "crm")
LOST = "record of its migrations (crm_private.migration_files) is gone or empty"


def execute(url: str, *statements: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        for statement in statements:
            connection.execute(statement.encode())


def objects(url: str) -> list[tuple[object, ...]]:
    """Everything in the database's catalog that a migration could have changed."""
    with psycopg.connect(url) as connection:
        return connection.execute(
            "SELECT oid::bigint, relname FROM pg_class UNION ALL SELECT oid::bigint, proname FROM pg_proc ORDER BY 1, 2"
        ).fetchall()


def check(database: str, url: str) -> Result:
    """Runs `crm-analytics migrate DATABASE --check`."""
    return CliRunner().invoke(
        main, ["migrate", database, "--check"], env={f"{database.upper()}_DATABASE_URL": url}
    )


def refusal(database: str, url: str) -> str:
    """Migrates, asserts that this is refused like every other way to ask, and changes nothing; returns the message."""
    with pytest.raises(migrations.MigrationError):
        _migrate(database, url)  # makes the record's table, if that is missing
    before = objects(url)
    with pytest.raises(migrations.MigrationError) as refused:
        _migrate(database, url)
    assert objects(url) == before
    checked = check(database, url)
    assert checked.exit_code == 1
    assert "up to date" not in checked.output and "equals" not in checked.output
    with pytest.raises(migrations.MigrationError):
        migrations.require_migrated(database, url=url)
    return str(refused.value)


def unguarded(schema: str) -> list[str]:
    """Returns statements after which the record may be changed by hand; the CRM's guards refuse that."""
    return [
        f"ALTER TABLE {schema}.{table} DISABLE TRIGGER USER"
        for table in ("migration_files", "alembic_version")
    ]


def _migrate(database: str, url: str) -> None:
    migrations.migrate("analytics", url=url) if database == "analytics" else migrate_crm(url)


@pytest.mark.parametrize("database", DATABASES)
def test_committed_list_is_what_the_migrations_make(database: str, new_database: Callable[..., str]) -> None:
    """The list is current, and the same on every version of PostgreSQL; `make generate` writes it."""
    with psycopg.connect(new_database(), autocommit=True) as connection:
        assert observed(connection, database) == MigratedObjects.read(SQL_DIR / database)


LOSSES = {
    "DROP SCHEMA raw CASCADE": "schema raw (0001_raw.sql)",
    "DROP SCHEMA reporting CASCADE": "schema reporting (0006_reporting.sql), with",
    "DROP TABLE raw.payments CASCADE": "table raw.payments (0001_raw.sql)",
    "ALTER TABLE raw.jobs DROP COLUMN zip CASCADE": "column raw.jobs.zip (0001_raw.sql)",
}
#: These lose no rows, so the statement that creates them brings them back.
REPAIRABLE = {
    "DROP TRIGGER b_stale_delete ON raw.calls": "trigger b_stale_delete on raw.calls (0005_stale_months.sql)",
    "DROP FUNCTION reporting.reconciliation": "function reporting.reconciliation(date) (0006_reporting.sql)",
    "DROP VIEW reporting.quarantine": "view reporting.quarantine (0006_reporting.sql)",
    "DROP INDEX raw.payments_job": "index payments_job on raw.payments (0001_raw.sql)",
    "ALTER TABLE raw.calls DROP CONSTRAINT calls_pkey": "constraint calls_pkey on raw.calls (0001_raw.sql)",
}


@pytest.mark.parametrize("loss", [*LOSSES, *REPAIRABLE])
def test_what_analytics_lacks_is_named_with_its_file(loss: str, analytics_url: str) -> None:
    """A database that was migrated once, but isn't whole any more, is never "up to date"."""
    execute(analytics_url, loss)
    message = refusal("analytics", analytics_url)
    assert "migrations of the analytics database are recorded as applied" in message
    assert {**LOSSES, **REPAIRABLE}[loss] in message
    assert ("run the statements that create them again" in message) is (loss in REPAIRABLE)
    assert "restore the whole backup" in message and "crm-analytics refresh" in message


def test_names_are_printed_as_they_are(analytics_url: str) -> None:
    """Brackets in a function's name are not taken for markup of the terminal."""
    execute(analytics_url, "DROP FUNCTION analytics.describe")
    assert "function analytics.describe(regclass[],text)" in " ".join(
        check("analytics", analytics_url).output.split()
    )


def test_a_message_stays_short(analytics_url: str) -> None:
    """Five names and a count; what went with a lost table isn't named."""
    execute(analytics_url, "DROP TABLE raw.jobs CASCADE")
    with psycopg.connect(analytics_url, autocommit=True) as connection:
        columns = [
            name
            for (name,) in connection.execute(
                "SELECT attname FROM pg_attribute WHERE attrelid = 'raw.proref_leads'::regclass AND attnum > 0"
                " ORDER BY attname"
            )
        ]
        for name in columns:
            connection.execute(f"ALTER TABLE raw.proref_leads DROP COLUMN {name} CASCADE".encode())
    message = refusal("analytics", analytics_url)
    assert "table raw.jobs (0001_raw.sql)" in message and "column raw.jobs." not in message
    assert message.count(".sql)") == SHOWN and " more, with " in message
    assert len(message) < 1100


DROPS = {
    "schema": "DROP SCHEMA {0} CASCADE",
    "table": "DROP TABLE {0} CASCADE",
    "view": "DROP VIEW {0} CASCADE",
    "function": "DROP FUNCTION {0} CASCADE",
    "index": "DROP INDEX {schema}.{0}",
    "trigger": "DROP TRIGGER {0} ON {table}",
    "constraint": "ALTER TABLE {table} DROP CONSTRAINT {0} CASCADE",
    "column": "ALTER TABLE {home} DROP COLUMN {last} CASCADE",
}


@pytest.mark.parametrize("database", DATABASES)
def test_every_object_of_the_list_is_missed(database: str, new_database: Callable[..., str]) -> None:
    """Whichever object is dropped, it is missed: the list has no entry that the comparison doesn't look at."""
    listed = MigratedObjects.read(SQL_DIR / database)
    names = {file.version: file.name for file in migrations.migration_files(database)}
    with psycopg.connect(new_database(database), autocommit=True) as connection:
        assert listed.contradiction(names, found(connection, database), names) is None
        for name in listed.after(names):
            kind, rest = name.split(" ", 1)
            what, _, table = rest.partition(" on ")
            home, _, last = what.rpartition(".")
            drop = DROPS[kind].format(what, table=table, schema=table.partition(".")[0], home=home, last=last)
            with connection.transaction(force_rollback=True):
                connection.execute(drop.encode())
                assert name not in found(connection, database), name
                assert listed.contradiction(names, found(connection, database), names), name


def test_lost_record_of_analytics_is_refused(analytics_url: str) -> None:
    """With the schema of the record dropped, migrating would run into "already exists", or make half of it anew."""
    execute(analytics_url, "DROP SCHEMA analytics CASCADE")
    message = refusal("analytics", analytics_url)
    assert "has objects of migrations that aren't recorded as applied: schema raw (0001_raw.sql)" in message
    assert "restore the whole backup" in message


@pytest.mark.parametrize("database", DATABASES)
def test_emptied_record_is_refused(database: str, new_database: Callable[..., str]) -> None:
    """A record that was emptied or cut back does not make a whole database look new."""
    url, schema = new_database(database), migrations.VERSION_SCHEMA[database]
    last = migrations.migration_files(database)[-1]
    execute(url, *unguarded(schema))
    execute(
        url,
        f"DELETE FROM {schema}.migration_files WHERE version = '{last.version}'",
        f"UPDATE {schema}.alembic_version SET version_num = '0001'",
    )
    message = refusal(database, url)
    assert "has objects of migrations that aren't recorded as applied: " in message and last.name in message
    execute(url, f"DELETE FROM {schema}.migration_files")
    refusal(database, url)
    execute(url, f"DELETE FROM {schema}.alembic_version")
    assert "the record" in refusal(database, url).lower()


@pytest.mark.parametrize("database", DATABASES)
def test_two_records_that_disagree_are_refused(database: str, new_database: Callable[..., str]) -> None:
    """Alembic has a record of its own, by which it would run a file again that ran already."""
    url, schema = new_database(database), migrations.VERSION_SCHEMA[database]
    last = migrations.migration_files(database)[-1].version
    execute(url, *unguarded(schema), f"UPDATE {schema}.alembic_version SET version_num = '0002'")
    assert f"migration_files says {last}, {schema}.alembic_version says 0002" in refusal(database, url)
    execute(url, f"DROP TABLE {schema}.alembic_version")
    assert f"{schema}.alembic_version says nothing" in refusal(database, url)


def test_crm_without_its_tables_is_refused(new_database: Callable[..., str]) -> None:
    """Tables that are gone can't be repaired, so neither a migration nor a check goes on."""
    url = new_database("crm")
    execute(url, "DROP SCHEMA public CASCADE", "CREATE SCHEMA public")
    message = refusal("crm", url)
    assert (
        "missing: table public.audit_log (0003_expand.sql), table public.audit_positions (0003_expand.sql),"
        in message
    )
    assert re.search(r"\d+ more", message) and "restore the whole backup" in message
    url = new_database("crm")
    execute(url, "DROP TABLE public.shipments CASCADE")
    assert "missing: table public.shipments (0001_baseline.sql)" in refusal("crm", url)


def test_crm_without_its_record_is_not_adopted(new_database: Callable[..., str]) -> None:
    """Adoption would ask to rename the migrations' own tables, audit log and seals among them."""
    url = new_database("crm")
    execute(url, "DROP SCHEMA crm_private CASCADE")
    message = refusal("crm", url)
    assert LOST in message and "objects with it: " in message
    assert "table public.audit_log, table public.audit_positions" in message
    assert "rename" not in message.lower()


def test_crm_that_only_drifted_is_left_to_its_own_check(new_database: Callable[..., str]) -> None:
    """A lost trigger, function or index has a repair, which `crm guards` prints; refusing to start would hide it."""
    url = new_database("crm")
    execute(url, "DROP INDEX public.users_email_folded_key", "DROP TRIGGER guard_rows ON public.orders")
    migrations.require_migrated("crm", url=url)
    done = check("crm", url)
    assert done.exit_code == 1
    assert "CREATE UNIQUE INDEX users_email_folded_key" in done.output


@pytest.mark.parametrize(
    ("part", "named"),
    [
        ("raw", "aren't recorded as applied: schema raw (0001_raw.sql)"),
        ("analytics", "missing: schema raw (0001_raw.sql)"),
        ("reporting", "aren't recorded as applied: schema reporting (0006_reporting.sql)"),
        ("public", LOST),
        (
            "crm_private",
            "missing: schema reporting (0090_grafana.sql), table public.audit_log (0003_expand.sql)",
        ),
    ],
)
def test_half_a_backup_is_refused(
    part: str, named: str, new_database: Callable[..., str], server: EmbeddedPostgres, tmp_path: Path
) -> None:
    """A restore of a single schema is refused, whichever of them holds the record, and an object is named."""
    database = "crm" if part in ("public", "crm_private") else "analytics"
    dump, url = tmp_path / "dump", new_database()
    subprocess.run([server.bin / "pg_dump", "-Fc", "-f", dump, new_database(database)], check=True)
    execute(url, f"CREATE SCHEMA IF NOT EXISTS {part}")
    subprocess.run(
        [server.bin / "pg_restore", "-d", url, "-n", part, dump], check=False, capture_output=True
    )  # it reports what it cannot create without the other schemas
    message = refusal(database, url)
    assert named in message and "restore the whole backup" in message, message


@pytest.mark.parametrize("database", DATABASES)
def test_whole_backup_is_accepted(
    database: str, new_database: Callable[..., str], server: EmbeddedPostgres, tmp_path: Path
) -> None:
    """What the refusals advise works: a whole restore into an empty database is complete."""
    dump, url = tmp_path / "dump", new_database()
    subprocess.run([server.bin / "pg_dump", "-Fc", "-f", dump, new_database(database)], check=True)
    subprocess.run([server.bin / "pg_restore", "-e", "-d", url, dump], check=True)
    migrations.require_migrated(database, url=url)
    _migrate(database, url)


def test_an_empty_database_is_the_other_way_out(analytics_url: str, new_database: Callable[..., str]) -> None:
    """A new database is accepted, also one in which an administrator has made the schemas already."""
    url = new_database()
    execute(url, "CREATE SCHEMA analytics", "CREATE SCHEMA mine", "CREATE TABLE mine.jobs (x int)")
    assert migrations.migrate("analytics", url=url).pending == ()


@pytest.mark.parametrize("database", DATABASES)
def test_objects_of_other_people_are_tolerated(database: str, new_database: Callable[..., str]) -> None:
    """Tables, views, columns, indexes and functions that people add for themselves are ignored."""
    url = new_database(database)
    table, schema = ("raw.jobs", "raw") if database == "analytics" else ("public.tasks", "public")
    execute(
        url,
        "CREATE SCHEMA theirs",
        f"CREATE TABLE {schema}.mine (x int)",
        # a view over the CRM's rows is for its drift check to judge
        f"CREATE VIEW theirs.mine AS SELECT * FROM {table if database == 'analytics' else f'{schema}.mine'}",
        f"ALTER TABLE {table} ADD COLUMN mine text",
        f"CREATE INDEX mine_too ON {table} (mine)",
        f"CREATE FUNCTION {schema}.mine() RETURNS int LANGUAGE sql AS 'SELECT 1'",
    )
    migrations.require_migrated(database, url=url)
    _migrate(database, url)


@pytest.mark.parametrize("database", DATABASES)
def test_database_of_an_older_release_is_migrated(
    database: str, new_database: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A database that has only the first files is compared with what these made, then gets the others."""
    files = migrations.migration_files(database)
    for count in range(1, len(files)):
        url = new_database()
        with monkeypatch.context() as older:
            older.setattr(migrations, "migration_files", lambda _, count=count: files[:count])
            migrations.migrate(database, url=url)  # the CRM's manifest is that of all files
        assert len(migrations.status(database, url=url).pending) == len(files) - count
        _migrate(database, url)
        migrations.require_migrated(database, url=url)


def test_drops_of_later_migrations_are_known() -> None:
    """What a later migration drops is expected before it, and not after it."""
    listed = MigratedObjects("analytics", (("0001", True, "table raw.a"), ("0002", False, "table raw.a")))
    files = {"0001": "0001_a.sql", "0002": "0002_b.sql"}
    assert listed.contradiction(["0001"], {"table raw.a"}, files) is None
    assert listed.contradiction(["0001", "0002"], set(), files) is None
    assert "table raw.a (0001_a.sql)" in str(listed.contradiction(["0001"], set(), files))


def test_runs_are_refused_too(analytics_url: str) -> None:
    """A run into a database that isn't whole fails at once with the message."""
    execute(analytics_url, "DROP TABLE raw.jobs CASCADE")
    with pytest.raises(dg.Failure, match=r"missing: table raw\.jobs \(0001_raw\.sql\)"):
        migrated_url("analytics", Settings(analytics_database_url=analytics_url), lambda url: None)


def test_object_dropped_while_a_process_runs(analytics_url: str) -> None:
    """A sensor that opened the whole database an hour ago tells what is missing now, not which statement failed."""
    database = AnalyticsDatabase(Settings(analytics_database_url=analytics_url))
    with database.connect() as connection:
        connection.execute("SELECT FROM raw.jobs")
    with pytest.raises(psycopg.errors.UndefinedTable), database.connect() as connection:
        connection.execute("SELECT FROM raw.no_table_of_ours")
    execute(analytics_url, "DROP SCHEMA raw CASCADE")
    for _ in range(2):
        with pytest.raises(dg.Failure, match=r"missing: schema raw"), database.connect() as connection:
            connection.execute("SELECT FROM raw.jobs")
