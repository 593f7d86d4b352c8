"""Restores of the CRM in each documented way end clean: catalog, rows, seals, positions, erasures."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

import psycopg
import pytest
from click.testing import CliRunner
from psycopg.conninfo import make_conninfo

from crm_analytics.cli.crm import crm as commands
from crm_analytics.core.embedded_postgres import EmbeddedPostgres
from crm_analytics.core.settings import SQL_DIR
from crm_analytics.crm import CrmClient
from crm_analytics.crm.migrating.migrate import migrate_crm
from crm_analytics.crm.proof import audit_seals, restored
from crm_analytics.demo.crm_activity import play
from crm_analytics_tests.conftest import PG_VERSION
from crm_analytics_tests.crm.conftest import add_user, lent, new_server, value

OWNER = "shop_owner"
#: From which version to which: the same one, and the upgrade.
VERSIONS = [(PG_VERSION, PG_VERSION), *([(16, 18)] if PG_VERSION == 18 else [])]


@dataclass
class Backup:
    """Dumps of a database with a history, what was published then, and what was published after an erasure."""

    folder: Path
    target: EmbeddedPostgres
    then: restored.Published
    later: restored.Published
    customer: UUID
    databases: int = 0

    def file(self, name: str) -> Path:
        return self.folder / name

    def run(self, *command: str | Path, options: str = "") -> None:
        environment = {**os.environ, "LC_ALL": "C.UTF-8", "PGOPTIONS": options}
        done = subprocess.run(
            [self.target.bin / command[0], *command[1:]],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr

    def new_database(self) -> str:
        """Creates a database of the owner on the target; returns its URL as the superuser."""
        self.databases += 1
        name = f"restored_{self.databases}"
        with psycopg.connect(self.target.url("postgres"), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name} OWNER {OWNER}")
        return self.target.url(name)


def as_owner(url: str) -> str:
    return make_conninfo(url, user=OWNER, password="test")


@pytest.fixture(scope="module")
def target_server() -> Iterator[EmbeddedPostgres]:
    """Starts a server to restore into: younger than the others, so its transactions have smaller numbers."""
    with new_server() as server:
        yield server


@pytest.fixture(scope="module", params=VERSIONS, ids=lambda versions: "{}_to_{}".format(*versions))
def backup(
    request: pytest.FixtureRequest, second_server: EmbeddedPostgres, target_server: EmbeddedPostgres
) -> Iterator[Backup]:
    """Plays a business whose owner is no superuser, dumps it in each way, and erases a customer afterwards."""
    old, _ = request.param
    with (
        tempfile.TemporaryDirectory(prefix="crm_restores_") as name,
        lent(second_server) if old == PG_VERSION else new_server(old) as source,
        lent(target_server) as target,
    ):
        folder = Path(name)
        with psycopg.connect(source.url("postgres"), autocommit=True) as connection:
            connection.execute(f"CREATE ROLE {OWNER} LOGIN CREATEROLE PASSWORD 'test'")
            connection.execute(f"ALTER DATABASE crm OWNER TO {OWNER}")
        url = as_owner(source.url("crm"))
        migrate_crm(url)
        play(url, months=1)
        with psycopg.connect(url, autocommit=True) as connection:
            admin = add_user(connection, "Ada", "admin")
            client = CrmClient(connection)
            first, second = (
                UUID(
                    client.create_lead_safe(source="site", full_name=name, contact=f"@{name}").data[
                        "customer_id"
                    ]
                )
                for name in ("olga", "ivan")
            )
            client.erase_customer_safe(customer_id=first, user_id=admin, reason="asked")
            audit_seals.seal(connection)
            then = restored.published(connection)
            # neither numbered nor sealed when the dump is made
            client.create_lead_safe(source="site", full_name="late", contact="@late")
        backup = Backup(folder, target, then, then, second)
        backup.run("pg_dump", "-Fc", "-f", backup.file("full"), source.url("crm"))
        backup.run("pg_dump", "--data-only", "-f", backup.file("data.sql"), url)
        backup.run(
            "pg_dumpall",
            "--roles-only",
            "--no-role-passwords",
            "-f",
            backup.file("roles.sql"),
            "-d",
            source.url("postgres"),
        )
        backup.run("psql", "-q", "-f", backup.file("roles.sql"), target.url("postgres"))
        with psycopg.connect(target.url("postgres"), autocommit=True) as connection:
            connection.execute(f"ALTER ROLE {OWNER} PASSWORD 'test'")
        with psycopg.connect(url, autocommit=True) as connection:
            CrmClient(connection).erase_customer_safe(customer_id=second, user_id=admin, reason="asked")
            audit_seals.seal(connection)
            backup.later = restored.published(connection)
        yield backup


@pytest.fixture(autouse=True)
def owner_is_expected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CRM_EXPECTED_LOGINS", OWNER)


def problems(url: str, elsewhere: restored.Published) -> list[str]:
    with psycopg.connect(url, autocommit=True) as connection:
        return [problem for finding in restored.verify(connection, elsewhere) for problem in finding.problems]


def works_on(url: str) -> None:
    """Writes, numbers and seals in the restored database."""
    with psycopg.connect(url, autocommit=True) as connection:
        CrmClient(connection).create_lead_safe(source="site", full_name="after", contact="@after")
        sealed = audit_seals.seal(connection)
        assert sealed["row_count"] > 0
        assert value(connection, "SELECT max(position) = count(*) FROM public.audit_positions")


def _full(backup: Backup, url: str) -> None:
    backup.run("pg_restore", "--exit-on-error", "-d", url, backup.file("full"))


def _data_as_superuser(backup: Backup, url: str) -> None:
    migrate_crm(as_owner(url))
    backup.run("pg_restore", "--data-only", "-f", backup.file("of_full.sql"), backup.file("full"))
    _psql(backup, url, "of_full.sql", "-c session_replication_role=replica")


def _data_as_owner(backup: Backup, url: str) -> None:
    migrate_crm(as_owner(url))
    _psql(backup, as_owner(url), "data.sql")


def _psql(backup: Backup, url: str, data: str, options: str = "") -> None:
    files = (SQL_DIR / "restore" / "before.sql", backup.file(data), SQL_DIR / "restore" / "after.sql")
    arguments = [argument for file in files for argument in ("-f", file)]
    backup.run("psql", "-q", "-1", "-v", "ON_ERROR_STOP=1", *arguments, url, options=options)


WAYS = {
    "full": _full,
    "data_as_superuser_in_replica_role": _data_as_superuser,
    "data_as_owner": _data_as_owner,
}


@pytest.mark.parametrize("way", WAYS)
def test_a_restore_ends_clean_and_works_on(backup: Backup, way: str) -> None:
    """A restored database has every guard, row, seal, position and erasure, and goes on from where it was."""
    url = backup.new_database()
    WAYS[way](backup, url)
    assert problems(as_owner(url), backup.then) == []
    works_on(as_owner(url))
    assert problems(as_owner(url), backup.then) == []


def test_origins_of_audit_rows_survive_a_restore_of_data(backup: Backup) -> None:
    """Restored audit rows keep the login and application that wrote them, not those of the restore."""
    url = backup.new_database()
    _data_as_superuser(backup, url)
    with psycopg.connect(url, autocommit=True) as connection:
        assert value(connection, 'SELECT array_agg(DISTINCT "session_user") FROM public.audit_log') == [OWNER]
        assert value(connection, "SELECT count(*) FROM public.audit_log WHERE application_name = 'psql'") == 0


def test_data_is_not_restored_over_rows(backup: Backup) -> None:
    """A database with business rows is refused, with its guards as they were."""
    url = backup.new_database()
    migrate_crm(as_owner(url))
    with psycopg.connect(as_owner(url), autocommit=True) as connection:
        add_user(connection, "Max")
        connection.execute("INSERT INTO public.customers (full_name) VALUES ('here already')")
        with pytest.raises(AssertionError, match="has rows, which a restore would replace"):
            _data_as_owner(backup, url)
    published = restored.Published(None, 0, ())
    assert problems(as_owner(url), published) == []


def test_erasures_since_the_backup_run_again(
    backup: Backup, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """An older backup brings erased data back: verify-restore says so, repeats the erasure, and names the lost seals."""
    url = backup.new_database()
    _full(backup, url)
    monkeypatch.setenv("CRM_DATABASE_URL", as_owner(url))
    file = tmp_path / "published.json"
    file.write_text(backup.later.to_json())
    found = CliRunner().invoke(commands, ["verify-restore", "--published", str(file)])
    assert found.exit_code == 1
    assert f"customer {backup.customer}, erased" in found.output
    assert "is not in the chain" in found.output
    found = CliRunner().invoke(commands, ["verify-restore", "--published", str(file), "--repeat-erasures"])
    assert f"customer {backup.customer} is erased again" in found.output
    assert found.output.count("AMISS") == 1
    with psycopg.connect(as_owner(url), autocommit=True) as connection:
        assert (
            value(connection, "SELECT full_name FROM public.customers WHERE id = %s", backup.customer)
            == "[erased]"
        )
    sealed = CliRunner().invoke(commands, ["seal"])
    file.write_text(sealed.output)
    found = CliRunner().invoke(commands, ["verify-restore", "--published", str(file)])
    assert (found.exit_code, found.output.count("ok    ")) == (0, 5)


def test_a_damaged_restore_is_found(backup: Backup) -> None:
    """A restore that lost a guard, an audit row and a position is amiss in each part that has to notice it."""
    url = backup.new_database()
    _full(backup, url)
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(
            "ALTER TABLE public.audit_log DISABLE TRIGGER USER; ALTER TABLE public.audit_positions DISABLE TRIGGER USER;"
            "DELETE FROM public.audit_positions WHERE position = 7; DELETE FROM public.audit_log WHERE id = 7"
        )
        amiss = {f.what for f in restored.verify(connection, backup.then) if f.problems}
    assert amiss == {"drift", "invariants", "seals and positions"}
