"""The role grafana_reader: what it can read and do, its settings, and how it is set up."""

from __future__ import annotations

import os
import threading
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import make_conninfo
from psycopg.types.json import Jsonb

from crm_analytics.core import migrations
from crm_analytics.core.settings import Settings
from crm_analytics.dashboards import reader_role
from crm_analytics_tests.dashboards.conftest import as_reader

READABLE_ANALYTICS = {
    "analytics.business", "analytics.daily_metrics", "analytics.monthly_metrics", "analytics.daily_by_source",
    "analytics.monthly_by_source", "analytics.targets", "analytics.lead_channels", "analytics.channel_aliases",
    "analytics.source_names", "analytics.spellings", "analytics.target_names",
    "analytics.stale_months", "analytics.refresh_log", "analytics.revisions", "analytics.revision_changes",
    "reporting.deployment", "reporting.sources", "reporting.revisions",
    "reporting.months", "reporting.files", "reporting.freshness", "reporting.quarantine",
    "reporting.quarantined_records", "reporting.month_status", "reporting.sources_without_rule",
    "reporting.workiz_leads",
}  # fmt: skip
READABLE_CRM = {
    "reporting.leads_by_month", "reporting.orders_by_month", "reporting.age_in_status",
    "reporting.money_by_month", "reporting.funnel_by_month_and_source", "reporting.client_money_by_month",
    "reporting.audit_entries",
}  # fmt: skip

RELATIONS = """
    SELECT format('%I.%I', n.nspname, c.relname), has_table_privilege('grafana_reader', c.oid, 'SELECT')
            AND has_schema_privilege('grafana_reader', n.oid, 'USAGE'),
        has_table_privilege('grafana_reader', c.oid, 'INSERT, UPDATE, DELETE, TRUNCATE, REFERENCES, TRIGGER')
            OR has_any_column_privilege('grafana_reader', c.oid, 'INSERT, UPDATE, REFERENCES')
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE c.relkind IN ('r', 'v', 'm', 'p', 'f') AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'pg_toast')
"""


@pytest.mark.parametrize(("database", "readable"), [("analytics", READABLE_ANALYTICS), ("crm", READABLE_CRM)])
def test_reads_reporting_and_nothing_else(new_database, database, readable):
    """It reads exactly the tables listed here, and can write nothing."""
    with psycopg.connect(new_database(database), autocommit=True) as connection:
        found = connection.execute(RELATIONS).fetchall()
        assert {name for name, may_read, _ in found if may_read} == readable
        assert [name for name, _, may_write in found if may_write] == []
        assert connection.execute(
            "SELECT nspname FROM pg_namespace WHERE has_schema_privilege('grafana_reader', oid, 'CREATE')"
        ).fetchall() == []  # fmt: skip


def test_runs_no_security_definer_function_except_three(new_database):
    """Only the reconciliation, the newest days and Explain run with the owner's rights; any other such function would bypass the grants."""
    query = (
        "SELECT p.oid::regprocedure::text FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace"
        " WHERE p.prosecdef AND has_function_privilege('grafana_reader', p.oid, 'EXECUTE')"
        " AND n.nspname NOT IN ('pg_catalog', 'information_schema') AND has_schema_privilege('grafana_reader', n.oid, 'USAGE')"
    )
    found = {}
    for database in ("analytics", "crm"):
        with psycopg.connect(new_database(database)) as connection:
            found[database] = [name for (name,) in connection.execute(query)]
    explain = "reporting.explain(date[],text,text[],text[])"
    assert {name: sorted(functions) for name, functions in found.items()} == {
        "analytics": [explain, "reporting.newest_days()", "reporting.reconciliation(date)"],
        "crm": [],
    }


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT * FROM raw.jobs",
        "SELECT * FROM raw.rejected_rows",
        "SELECT * FROM analytics.job_facts",
        "SELECT * FROM analytics.job_facts_between('2024-01-01', '2024-02-01')",
        "SELECT * FROM analytics.explain_between('2024-01-01', '2024-02-01', 'jobs', NULL, NULL)",
        "SET transaction_read_only = off; DELETE FROM analytics.targets",
        "SET transaction_read_only = off; CREATE TABLE public.mine (a int)",
        "SET transaction_read_only = off; SELECT pg_read_file('/etc/passwd')",
        "SET ROLE postgres",
    ],
)
def test_statements_typed_by_a_viewer_do_no_harm(analytics_url, statement):
    """Grants hold even if a viewer switches off the settings, which Grafana lets a viewer do."""
    with (
        as_reader(analytics_url, "analytics") as connection,
        pytest.raises(psycopg.errors.InsufficientPrivilege),
    ):
        connection.execute(statement.encode())


def test_settings_limit_accidents(analytics_url):
    """Statements are read-only and time out, and queries with unqualified names work."""
    with as_reader(analytics_url, "analytics") as connection:
        values = [
            connection.execute(f"SHOW {name}".encode()).fetchone()
            for name in ("default_transaction_read_only", "statement_timeout", "search_path", "timezone")
        ]
        assert values == [("on",), ("15s",), ("analytics, reporting",), ("UTC",)]
        with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
            connection.execute("CREATE TEMP TABLE mine (a int)")
        connection.execute("SELECT count(*) FROM monthly_metrics")


def test_quarantine_leaves_out_what_was_found(analytics, analytics_url):
    """A reason quotes the cell, and the cell may be a customer's telephone number."""
    analytics.execute(
        "INSERT INTO raw.source_files (source, path, sha256, size_bytes, modified_at, exported_at, exported_at_from,"
        " status, records_read, quarantined) VALUES ('calls', 'calls/1.csv', 'x', 1, now(), now(), 'mtime', 'loaded', 4, 4)"
    )
    number = {"code": "not_a_number", "column": "From", "found": "(555) 555-0100", "accepted": "digits"}
    for record, reasons in (
        (1, [number, {"code": "not_a_valid_date", "column": "Date", "found": "31/02/2024"}]),
        (2, [number | {"found": "(555) 555-0199"}, number | {"found": "(555) 555-0100"}]),
        (3, [{"code": "blank", "column": 'Client\'s "name"', "found": "", "remedy": "ask Ann"}]),
        (4, [{"code": "wrong_number_of_cells", "found": "Ann | Bob"}]),
    ):
        analytics.execute(
            "INSERT INTO raw.rejected_rows (file_id, source, record_no, line_no, reasons, record)"
            " VALUES (1, 'calls', %s, 2, %s, '{}')",
            [record, Jsonb(reasons)],
        )
    with as_reader(analytics_url, "analytics") as connection:
        found = connection.execute(
            "SELECT reason, records, files FROM quarantine ORDER BY records DESC, reason"
        ).fetchall()
        assert found == [
            ("From: not a number", 2, 1),
            ('Client\'s "name": blank', 1, 1),
            ("Date: not a valid date", 1, 1),
            ("wrong number of cells", 1, 1),
        ]
        assert connection.execute("SELECT * FROM quarantined_records").fetchall() == [("calls", 4)]


def test_role_has_no_password_until_the_operator_gives_one(analytics_url, monkeypatch, new_database):
    """The operator's command sets the password, the settings and the link; there is no default password."""
    crm_url = new_database("crm")
    monkeypatch.setenv("ANALYTICS_DATABASE_URL", analytics_url)
    monkeypatch.setenv("CRM_DATABASE_URL", crm_url)
    monkeypatch.setenv("DAGSTER_URL", "https://dagster.example.com/")
    # sets the test session's password, which must survive
    as_reader(analytics_url, "analytics").close()
    reader_role.apply(Settings(_env_file=None))
    paths = {"analytics": "analytics, reporting", "crm": "reporting"}
    for url, database in ((analytics_url, "analytics"), (crm_url, "crm")):
        with as_reader(url, database) as connection:
            assert connection.execute("SHOW search_path").fetchone() == (paths[database],)
    with as_reader(analytics_url, "analytics") as connection:
        assert connection.execute("SELECT dagster_url FROM deployment").fetchone() == (
            "https://dagster.example.com",
        )
    with pytest.raises(psycopg.OperationalError, match="password"):
        psycopg.connect(make_conninfo(analytics_url, user="grafana_reader", password="not the password"))


def test_short_password_is_refused(analytics):
    """A short password is refused, because anyone who reaches the port could guess it and read all numbers."""
    with pytest.raises(ValueError, match="12 or more"):
        reader_role.set_up(analytics, "analytics", "short")


def test_databases_migrated_at_once_share_the_role(server):
    """Migrations of several databases at once share the server's role without failing."""
    names = [f"t_at_once_{os.getpid()}_{number}" for number in range(3)]
    with psycopg.connect(server.url("postgres"), autocommit=True) as connection:
        for name in names:
            connection.execute(f'CREATE DATABASE "{name}"'.encode())
    failures: list[Any] = []

    def migrate(name: str) -> None:
        try:
            migrations.migrate("analytics", url=server.url(name))
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=migrate, args=[name]) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
