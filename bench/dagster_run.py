"""What Dagster adds to its data work: one run of all assets over 120 months against the same calls without it."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg

from bench.environment import Ground, child, timed
from bench.table import BenchRow
from crm_analytics.analytics.ingest.loading.load import load_source
from crm_analytics.analytics.warehouse.refresh import refresh
from crm_analytics.core.months import next_month
from crm_analytics.core.settings import settings
from crm_analytics.demo.sample_exports import write_landing

SECTION = "dagster"
MONTHS = 120
SOURCES = ("jobs", "payments", "calls", "elocals_leads", "proref_leads", "google_spend", "targets")


def rows(ground: Ground) -> Iterator[BenchRow]:
    """The Dagster line of the table."""
    config = settings()
    landing = ground.folder / "sample"
    months = max(2, round(MONTHS * min(1.0, ground.scale * 4)))
    ground.say(f"the sample's exports of {months} months, without Dagster")
    summary = write_landing(landing, months=months)

    def data_work() -> None:
        with ground.connect("without_dagster") as connection:
            for source in SOURCES:
                load_source(connection, landing, source, timezone=config.timezone)
            refresh(connection, summary.first_month, next_month(summary.last_month))

    ground.analytics("without_dagster")
    work = timed(data_work)
    ground.say(f"the same through Dagster: one run, all assets, {months} months")
    home = ground.folder / "home"
    home.mkdir(exist_ok=True)
    with psycopg.connect(ground.server.url("postgres"), autocommit=True) as connection:
        for name in ("with_dagster", "with_dagster_crm", "with_dagster_storage"):
            connection.execute(f'CREATE DATABASE "{name}"')
    report = child(
        "bench.refresh_child",
        environment=config.environment()
        | {
            "ANALYTICS_DATABASE_URL": ground.server.url("with_dagster"),
            "CRM_DATABASE_URL": ground.server.url("with_dagster_crm"),
            "DAGSTER_POSTGRES_URL": ground.server.url("with_dagster_storage"),
            "LANDING_DIR": str(landing),
            "CRM_ANALYTICS_HOME": str(home),
            "START_MONTH": f"{summary.first_month:%Y-%m}",
        },
    )
    yield BenchRow(
        SECTION, f"one run of all assets over {months} months: what it takes beyond its data work", report["seconds"] - work, "s",
        limit=20, note=f"run {report['seconds']:.1f} s, data work {work:.1f} s",
    )  # fmt: skip
