"""Dagster's overhead: one run of all assets over 120 months, compared with the same calls without Dagster."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg

from bench.environment import Environment, child, timed
from bench.table import BenchRow
from crm_analytics.analytics.ingest.loading.load import load_source
from crm_analytics.analytics.warehouse.refresh import refresh
from crm_analytics.core.months import next_month
from crm_analytics.core.settings import settings
from crm_analytics.demo.sample_exports import write_landing

SECTION = "dagster"
MONTHS = 120
SOURCES = ("jobs", "payments", "calls", "elocals_leads", "proref_leads", "google_spend", "targets")


def rows(environment: Environment) -> Iterator[BenchRow]:
    """Yields the Dagster line."""
    config = settings()
    landing = environment.folder / "sample"
    months = max(2, round(MONTHS * min(1.0, environment.scale * 4)))
    environment.say(f"loading and computing {months} months of sample exports without Dagster")
    summary = write_landing(landing, months=months)

    def data_work() -> None:
        with environment.connect("without_dagster") as connection:
            for source in SOURCES:
                load_source(connection, landing, source, timezone=config.timezone)
            refresh(connection, summary.first_month, next_month(summary.last_month))

    environment.analytics("without_dagster")
    work = timed(data_work)
    environment.say("the same as one Dagster run")
    home = environment.folder / "home"
    home.mkdir(exist_ok=True)
    with psycopg.connect(environment.server.url("postgres"), autocommit=True) as connection:
        for name in ("with_dagster", "with_dagster_crm", "with_dagster_storage"):
            connection.execute(f'CREATE DATABASE "{name}"')
    report = child(
        "bench.refresh_child",
        environment=config.environment()
        | {
            "ANALYTICS_DATABASE_URL": environment.server.url("with_dagster"),
            "CRM_DATABASE_URL": environment.server.url("with_dagster_crm"),
            "DAGSTER_POSTGRES_URL": environment.server.url("with_dagster_storage"),
            "LANDING_DIR": str(landing),
            "CRM_ANALYTICS_HOME": str(home),
            "START_MONTH": f"{summary.first_month:%Y-%m}",
        },
    )
    yield BenchRow(
        SECTION, f"one run of all assets over {months} months: time beyond its data work", report["seconds"] - work, "s",
        limit=20, note=f"run {report['seconds']:.1f} s, data work {work:.1f} s",
    )  # fmt: skip
