"""A warehouse filled through its raw tables, and connections as grafana_reader."""

from __future__ import annotations

import fcntl
import os
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from crm_analytics.analytics.warehouse.refresh import refresh
from crm_analytics.dashboards import reader_role
from crm_analytics_tests.analytics import reference_model as model
from crm_analytics_tests.conftest import STATE_VARIABLE
from crm_analytics_tests.databases import set_today

PASSWORD = "a-test-password"
SOURCES = ("Google", "google", "Rely", "Retention", "eLocals", "O'Brien Appliance", "")
TYPES = ("COD Service", "COD Service", "INS Service", "COD Repair", "INS Repair", "Installation")
LEAP = date(2024, 2, 1)


def as_reader(url: str, database: str) -> psycopg.Connection[Any]:
    """Logs in to the database as grafana_reader, with the settings that the operator's command sets."""
    with (
        (Path(os.environ[STATE_VARIABLE]) / "grafana_reader.lock").open("a") as lock,
        psycopg.connect(url, autocommit=True) as connection,
    ):
        # two workers that alter one role at once would fail
        fcntl.flock(lock, fcntl.LOCK_EX)
        reader_role.set_up(connection, database, PASSWORD)
    return psycopg.connect(make_conninfo(url, user="grafana_reader", password=PASSWORD), autocommit=True)


def plus_months(month: date, count: int) -> date:
    """Returns the first day of the month `count` months later."""
    number = month.year * 12 + month.month - 1 + count
    return date(number // 12, number % 12 + 1, 1)


@dataclass(frozen=True)
class Sample:
    """The contents of the raw tables, and the metrics that the reference model computes from them."""

    url: str
    today: date
    daily: model.Metrics
    targets: dict[tuple[date, str, str], tuple[int | None, Decimal | None, Decimal | None, Decimal | None]]

    @property
    def month(self) -> date:
        """The current month."""
        return self.today.replace(day=1)

    @property
    def last_loaded(self) -> date:
        """The last day with jobs."""
        return max(day for (day, _, _), row in self.daily.items() if row.jobs)

    @property
    def sources(self) -> list[str]:
        """Every source that dashboards offer, in order."""
        known = {source for _, source, _ in self.daily} | {rule.source for rule in model.SEED_CHANNELS}
        return sorted(known | {source for _, source, _ in self.targets if source != "ALL"})


#: What the sample's database takes for today: any day, and a month's first and last one.
TODAYS = (date(2025, 3, 17), date(2025, 3, 1), date(2025, 2, 28))


@pytest.fixture(scope="session", params=TODAYS, ids=str)
def sample(new_database: Callable[..., str], request: pytest.FixtureRequest) -> Sample:
    """Four months up to yesterday, February 2024, and targets for some of them, refreshed."""
    url = new_database("analytics")
    today: date = request.param
    with psycopg.connect(url, autocommit=True) as connection:
        set_today(connection, today)
        month = today.replace(day=1)
        warehouse = _warehouse(today)
        _insert(connection, warehouse)
        targets: dict[tuple[date, str, str], Any] = {
            (month, "ALL", "ALL"): (90, Decimal("20000.00"), Decimal("0.3500"), Decimal("60.00")),
            (month, "Google", "ALL"): (30, None, None, Decimal("25.50")),
            (month, "Google", "COD"): (12, Decimal("3000.00"), None, None),
            (month, "ALL", "INS"): (20, None, None, None),
            (plus_months(month, -1), "ALL", "ALL"): (100, None, None, None),
        }
        for (first, source, segment), values in targets.items():
            connection.execute(
                "INSERT INTO analytics.targets (month, source, segment, target_repairs, target_revenue40,"
                " target_conv_l_to_r, target_cpl_max) VALUES (%s, %s, %s, %s, %s, %s, %s)",
                [first, source, segment, *values],
            )
        refresh(connection, LEAP, plus_months(LEAP, 1), "run-of-february")
        refresh(connection, plus_months(month, -3), plus_months(month, 1), "run-of-today")
    return Sample(url, today, model.daily_metrics(warehouse), targets)


@pytest.fixture
def grafana(sample: Sample) -> Iterator[psycopg.Connection[Any]]:
    """A connection to the sample's database as grafana_reader."""
    with as_reader(sample.url, "analytics") as connection:
        yield connection


def moment(day: date) -> datetime:
    """Returns midnight UTC, where time ranges begin and end in these tests."""
    return datetime(day.year, day.month, day.day, tzinfo=UTC)


def _days(today: date) -> list[date]:
    start = plus_months(today.replace(day=1), -3)
    until_yesterday = [start + timedelta(n) for n in range((today - start).days)]
    return [date(2024, 2, n) for n in range(1, 30)] + until_yesterday


def _warehouse(today: date) -> model.Warehouse:
    dice = random.Random(20240229)
    jobs: list[model.Job] = []
    payments: list[model.Payment] = []
    calls: list[model.Call] = []
    elocals: list[model.ElocalsLead] = []
    proref: list[model.ProrefLead] = []
    for day in _days(today):
        for _ in range(dice.randint(2, 6)):
            number = len(jobs)
            jobs.append(
                model.Job(f"job-{number}", None, dice.choice(TYPES), dice.choice(SOURCES), "Done", day)
            )
            for _ in range(dice.randint(0, 2)):
                amount = Decimal(dice.randint(-2000, 40000)) / 100
                payments.append(model.Payment(f"paid-{len(payments)}", f"job-{number}", day, amount, dice.choice(("", "failed"))))  # fmt: skip
        for _ in range(dice.randint(0, 3)):
            calls.append(model.Call(day, dice.choice(("GoogleAds", "Rely", None))))
            elocals.append(
                model.ElocalsLead(f"e-{len(elocals)}", day, Decimal(dice.randint(0, 3) * 2175) / 100)
            )
            proref.append(model.ProrefLead(f"p-{len(proref)}", day, dice.choice(("Passed", "Booked", None))))
    payments.append(model.Payment("waiting", None, jobs[-1].job_date, Decimal("75.00"), None))
    first = today.replace(day=1)
    spend = [
        model.Spend(
            plus_months(first, n), "all", Decimal("1234.57"), plus_months(first, n + 1) - timedelta(1)
        )
        for n in (-3, -2, -1)
    ]
    if today.day > 1:
        spend.append(model.Spend(first, "all", Decimal("500.01"), today - timedelta(1)))
    # no channel counts them
    workiz = [
        model.WorkizLead(f"w-{n}", day, dice.choice(("Passed", "Open", None)), dice.choice(SOURCES))
        for n, day in enumerate(_days(today))
    ]
    return model.Warehouse(
        jobs, payments, calls, elocals, proref, workiz, spend, model.SEED_CHANNELS, model.SEED_ALIASES
    )


def _insert(connection: psycopg.Connection[Any], warehouse: model.Warehouse) -> None:
    noon = "{}T12:00:00-05:00".format
    with connection.transaction(), connection.cursor() as cursor:
        cursor.executemany(
            "INSERT INTO raw.jobs (job_id, type, source, status, created_at, job_date) VALUES (%s, %s, %s, %s, %s, %s)",
            [(j.job_id, j.type, j.source, j.status, noon(j.job_date), j.job_date) for j in warehouse.jobs],
        )
        cursor.executemany(
            "INSERT INTO raw.payments (payment_id, job_id_ref, paid_date, amount, status) VALUES (%s, %s, %s, %s, %s)",
            [(p.payment_id, p.job_id, p.paid_date, p.amount, p.status) for p in warehouse.payments],
        )
        cursor.executemany(
            "INSERT INTO raw.calls (call_id, started_at, call_date, flow) VALUES (%s, %s, %s, %s)",
            [(f"c-{n}", noon(c.call_date), c.call_date, c.flow) for n, c in enumerate(warehouse.calls)],
        )
        cursor.executemany(
            "INSERT INTO raw.elocals_leads (lead_id, lead_at, lead_date, cost) VALUES (%s, %s, %s, %s)",
            [(e.lead_id, noon(e.lead_date), e.lead_date, e.cost) for e in warehouse.elocals_leads],
        )
        cursor.executemany(
            "INSERT INTO raw.proref_leads (lead_id, lead_at, lead_date, current_status) VALUES (%s, %s, %s, %s)",
            [(p.lead_id, noon(p.lead_date), p.lead_date, p.current_status) for p in warehouse.proref_leads],
        )
        cursor.executemany(
            "INSERT INTO raw.workiz_leads (lead_id, created_at, lead_date, status, source) VALUES (%s, %s, %s, %s, %s)",
            [(w.lead_id, noon(w.lead_date), w.lead_date, w.status, w.source) for w in warehouse.workiz_leads],
        )
        cursor.executemany(
            "INSERT INTO raw.google_spend (month, campaign, amount, covered_to) VALUES (%s, %s, %s, %s)",
            [(s.month, s.campaign, s.amount, s.covered_to) for s in warehouse.google_spend],
        )
