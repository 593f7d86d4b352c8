"""Backup and restore as docs/operations.md describes them: dump, a new server, restore, migrate, proofs."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from crm_analytics.core.embedded_postgres import EmbeddedPostgres
from crm_analytics.core.migrations import MigrationError
from crm_analytics.core.settings import PROJECT_DIR
from crm_analytics.crm.migrating.migrate import migrate_crm
from crm_analytics_tests.deploy.compose import (
    SECRETS,
    LocalStack,
    assert_readers_cannot_write_or_lock,
    init_databases,
    start_postgres,
)

IN_POSTGRES = "docker compose exec -T postgres "
IN_MIGRATE = "docker compose run --rm migrate "


def printed_commands() -> tuple[list[str], list[str]]:
    """Reads the page's commands: those of the backup, and those of the restore."""
    page = (PROJECT_DIR / "docs" / "operations.md").read_text()
    section = page.split("## Backup and restore\n")[1].split("\n## ")[0]
    blocks, block = [], list[str]()
    for line in [*section.splitlines(), ""]:
        if line.startswith("    "):
            block.append(line.strip())
        elif block:
            blocks.append(block)
            block = []
    backup, restore = blocks
    return backup, restore


def in_postgres(server: EmbeddedPostgres, line: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Runs a line of the page on the test's server instead of the postgres container."""
    known = conninfo_to_dict(server.url("postgres"))
    environment = {
        **os.environ, "PATH": f"{server.bin}:{os.environ['PATH']}", "PGHOST": str(known["host"]),
        "PGPORT": str(known["port"]), "PGPASSWORD": str(known["password"]),
    }  # fmt: skip
    command = line.removeprefix(IN_POSTGRES)
    return subprocess.run(
        ["sh", "-c", command], env=environment, cwd=folder, capture_output=True, text=True, check=False
    )


def stack_on(server: EmbeddedPostgres, folder: Path, secrets: dict[str, str]) -> LocalStack:
    # the demo calls the RPCs as the owner
    environment = {**secrets, "CRM_EXPECTED_LOGINS": "crm_owner"}
    return LocalStack(folder, environment, int(str(conninfo_to_dict(server.url("postgres"))["port"])))


def login(server: EmbeddedPostgres, role: str, password: str, database: str) -> psycopg.Connection:
    url = make_conninfo(server.url(database), user=role, password=password)
    return psycopg.connect(url, autocommit=True)


def test_restored_databases_are_as_guarded_and_readable_as_before(folder):
    """The page's commands restore everything: a lost role or setting would disable guards or break every dashboard."""
    backup, restore = printed_commands()
    old = start_postgres(folder / "old", SECRETS)
    try:
        init_databases(old, SECRETS)
        stack = stack_on(old, folder / "old", SECRETS)
        stack.run("migrate")
        stack.run("migrate", ["crm-analytics", "crm", "play", "--months", "1"])
        with psycopg.connect(old.url("analytics"), autocommit=True) as connection:
            connection.execute(
                "INSERT INTO raw.jobs (job_id, created_at, job_date) VALUES ('J1', now(), now())"
            )
            connection.execute("CREATE ROLE ann LOGIN PASSWORD 'of-the-old-server' IN ROLE pg_read_all_data")
            connection.execute("GRANT CONNECT ON DATABASE analytics TO ann")
            connection.execute("GRANT SELECT ON raw.jobs TO ann")
        for line in backup:
            assert line.startswith(IN_POSTGRES)
            assert (done := in_postgres(old, line, folder)).returncode == 0, done.stderr
        audited = _audit_entries(old)
        assert audited > 100
    finally:
        old.release()

    secrets = {name: f"new{value}" for name, value in SECRETS.items()}
    new = start_postgres(folder / "new", secrets)
    try:
        in_postgres(new, "pg_restore -U postgres -d crm < crm.dump", folder)
        with pytest.raises(
            MigrationError, match=r"restored on a server without crm_app, crm_rpc, grafana_reader"
        ):
            migrate_crm(new.url("crm"))

        stack = stack_on(new, folder / "new", secrets)
        for line in restore:
            if line == "docker compose up -d --wait postgres":
                init_databases(new, secrets)
            elif line == "docker compose up -d":
                stack.run("migrate")
            elif line.startswith(IN_MIGRATE):
                printed = stack.run("migrate", line.removeprefix(IN_MIGRATE).split())
                if line.endswith("--check"):
                    lines = printed.splitlines()
                    assert lines[0] == "analytics: up to date"
                    assert lines[-1] == "crm: the catalog equals the manifest"
            else:
                done = in_postgres(new, line, folder)
                unexpected = [error for error in done.stderr.splitlines() if " already " not in error]
                assert (done.returncode, unexpected) == (0, [])
        assert _audit_entries(new, secrets) == audited
        stack.run("migrate", ["crm-analytics", "crm", "play", "--months", "1", "--seed", "2"])
        assert _audit_entries(new, secrets) > audited, "the RPCs must still write"
        with login(new, "analytics_owner", secrets["ANALYTICS_DB_PASSWORD"], "analytics") as connection:
            assert connection.execute("SELECT job_id FROM jobs").fetchall() == [("J1",)], "the search_path"
        with login(new, "grafana_reader", secrets["GRAFANA_READER_PASSWORD"], "analytics") as connection:
            assert connection.execute("SHOW statement_timeout").fetchone() == ("15s",)
            connection.execute("SELECT * FROM freshness")
        assert_readers_cannot_write_or_lock(new.url("postgres"), secrets["GRAFANA_READER_PASSWORD"])
        with pytest.raises(psycopg.OperationalError, match="password"):
            login(new, "ann", "of-the-old-server", "analytics")
    finally:
        new.release()


def _audit_entries(server: EmbeddedPostgres, secrets: dict[str, str] = SECRETS) -> int:
    with login(server, "grafana_reader", secrets["GRAFANA_READER_PASSWORD"], "crm") as connection:
        row = connection.execute("SELECT count(*) FROM audit_entries").fetchone()
    assert row
    return int(row[0])
