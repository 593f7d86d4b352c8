"""Random rows and corrections by hand in SQL, with refreshes between them: always as the reference model has it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import date
from decimal import Decimal
from typing import Any

import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crm_analytics.analytics.warehouse.refresh import refresh, stale_months
from crm_analytics.core.months import next_month
from crm_analytics_tests.analytics import reference_model
from crm_analytics_tests.analytics.model_comparison import (
    assert_every_way_agrees,
    assert_metrics,
    refresh_stale,
)
from crm_analytics_tests.analytics.reference_model import (
    SEED_ALIASES,
    SEED_CHANNELS,
    Call,
    ChannelRule,
    ElocalsLead,
    Job,
    Payment,
    ProrefLead,
    Spend,
    Warehouse,
    WorkizLead,
)
from crm_analytics_tests.chance import examples

Connection = psycopg.Connection[Any]

FIRST, LAST = date(2024, 10, 1), date(2025, 1, 1)
DAYS = [date(2024, 10, 1), date(2024, 10, 31), date(2024, 11, 1), date(2024, 11, 30), date(2024, 12, 15),
        date(2025, 1, 1), date(2025, 1, 31)]  # fmt: skip
TYPES = ["COD Service", " cod  SERVICE ", "INS Service", "COD Repair", "ins repair", "Repair", "COD Installation",
         "Installation", "INS/COD inspection", "Warranty", None, "COD Service call"]  # fmt: skip
SOURCES = ["Google", "google ", "eLocals", "Pro  Referral", "Rely", "NSA", "Retention", "Service direct",
           "service Direct", "", None, "Thumbtack", "googleads", "o'hara & sons-2nd"]  # fmt: skip
STATUSES = ["Paid", "FAILED", " declined", "pending", "Voided", None, "Settled offline", "failed twice"]
AMOUNTS = [
    Decimal(text) for text in ("100.00", "0.01", "100.01", "-60.00", "-100.00", "75.00", "0.00", "333.33")
]


# -- the model: what the raw tables must hold ---------------------------------------------------------------


@dataclass(frozen=True)
class PaymentRow:
    """A payment as exported: it names its job, and the job may be unknown or change."""

    payment_id: str
    uuid: str | None
    number: str | None
    paid_date: date
    amount: Decimal
    status: str | None


@dataclass
class Model:
    """The raw tables and channel tables in Python."""

    jobs: dict[str, Job] = field(default_factory=dict)
    payments: dict[str, PaymentRow] = field(default_factory=dict)
    calls: dict[str, Call] = field(default_factory=dict)
    elocals: dict[str, ElocalsLead] = field(default_factory=dict)
    proref: dict[str, ProrefLead] = field(default_factory=dict)
    workiz: dict[str, WorkizLead] = field(default_factory=dict)
    spend: dict[tuple[date, str], Spend] = field(default_factory=dict)
    channels: dict[tuple[str, date], ChannelRule] = field(
        default_factory=lambda: {(rule.source, rule.valid_from): rule for rule in SEED_CHANNELS}
    )
    aliases: dict[str, str] = field(default_factory=lambda: dict(SEED_ALIASES))

    def warehouse(self) -> Warehouse:
        jobs = list(self.jobs.values())
        return Warehouse(
            jobs=jobs,
            payments=[
                Payment(
                    p.payment_id,
                    reference_model.resolve(p.uuid, p.number, jobs),
                    p.paid_date,
                    p.amount,
                    p.status,
                )
                for p in self.payments.values()
            ],
            calls=list(self.calls.values()),
            elocals_leads=list(self.elocals.values()),
            proref_leads=list(self.proref.values()),
            workiz_leads=list(self.workiz.values()),
            google_spend=list(self.spend.values()),
            channels=list(self.channels.values()),
            aliases=self.aliases,
        )


# -- steps: each changes the database and the model alike -----------------------------------------------------

Step = Callable[[Connection, Model], None]
uuids = st.sampled_from([f"JOB{n}" for n in range(5)])
numbers = st.sampled_from(["1", "2", "3"])
days = st.sampled_from(DAYS)
jobs = st.builds(
    Job, uuids, st.none() | numbers, st.sampled_from(TYPES), st.sampled_from(SOURCES), st.just("Done"), days
)
payments = st.builds(
    lambda name, job, *rest: PaymentRow(name, *job, *rest), st.sampled_from([f"P{n}" for n in range(8)]),
    st.tuples(uuids, st.none()) | st.tuples(st.none(), numbers) | st.tuples(uuids, numbers), days,
    st.sampled_from(AMOUNTS), st.sampled_from(STATUSES),
)  # fmt: skip
costs = st.sampled_from([None, Decimal("0.00"), Decimal("65.25"), Decimal("-5.00"), Decimal("0.01")])
spends = st.builds(
    lambda month, campaign, amount, day: Spend(month, campaign, amount, min(month.replace(day=day), reference_model.last_of_month(month)))
    if day <= 28 else Spend(month, campaign, amount, reference_model.last_of_month(month)),
    st.sampled_from([FIRST, date(2024, 11, 1), LAST]), st.sampled_from(["all", "Brand"]),
    st.sampled_from([Decimal("310.00"), Decimal("0.01"), Decimal("100.00"), Decimal("-3.10"), Decimal("0.00")]),
    st.integers(1, 29),
)  # fmt: skip


def put_jobs(rows: list[Job]) -> Step:
    def step(connection: Connection, model: Model) -> None:
        chosen = {row.job_id: row for row in rows}
        connection.execute(
            "INSERT INTO raw.jobs (job_id, job_number, type, source, status, created_at, job_date)"
            " SELECT i, n, t, s, 'Done', d, d FROM unnest(%s::text[], %s::text[], %s::text[], %s::text[], %s::date[])"
            " AS rows (i, n, t, s, d) ON CONFLICT (job_id) DO UPDATE SET job_number = excluded.job_number,"
            " type = excluded.type, source = excluded.source, created_at = excluded.created_at,"
            " job_date = excluded.job_date",
            _columns(chosen.values(), "job_id", "job_number", "type", "source", "job_date"),
        )
        model.jobs.update(chosen)

    return step


def put_payments(rows: list[PaymentRow]) -> Step:
    def step(connection: Connection, model: Model) -> None:
        chosen = {row.payment_id: row for row in rows}
        connection.execute(
            "INSERT INTO raw.payments (payment_id, job_id_ref, job_number_ref, paid_date, amount, status)"
            " SELECT * FROM unnest(%s::text[], %s::text[], %s::text[], %s::date[], %s::numeric[], %s::text[])"
            " ON CONFLICT (payment_id) DO UPDATE SET job_id_ref = excluded.job_id_ref,"
            " job_number_ref = excluded.job_number_ref, paid_date = excluded.paid_date, amount = excluded.amount,"
            " status = excluded.status",
            _columns(chosen.values(), "payment_id", "uuid", "number", "paid_date", "amount", "status"),
        )
        model.payments.update(chosen)

    return step


def put_leads(table: str, lead_id: str, day: date, cost: Decimal | None, text: str | None) -> Step:
    def step(connection: Connection, model: Model) -> None:
        if table == "elocals_leads":
            column, value = "cost", cost
            model.elocals[lead_id] = ElocalsLead(lead_id, day, cost)
        else:
            column, value = "current_status", text  # type: ignore[assignment]
            model.proref[lead_id] = ProrefLead(lead_id, day, text)
        connection.execute(
            f"INSERT INTO raw.{table} (lead_id, lead_at, lead_date, {column}) VALUES (%s, %s, %s, %s)"
            f" ON CONFLICT (lead_id) DO UPDATE SET lead_date = excluded.lead_date, {column} = excluded.{column}",
            [lead_id, day, day, value],
        )

    return step


def put_workiz_lead(lead_id: str, day: date, status: str | None, source: str | None) -> Step:
    def step(connection: Connection, model: Model) -> None:
        model.workiz[lead_id] = WorkizLead(lead_id, day, status, source)
        connection.execute(
            "INSERT INTO raw.workiz_leads (lead_id, created_at, lead_date, status, source) VALUES (%s, %s, %s, %s, %s)"
            " ON CONFLICT (lead_id) DO UPDATE SET lead_date = excluded.lead_date, status = excluded.status,"
            " source = excluded.source",
            [lead_id, day, day, status, source],
        )

    return step


def put_call(call_id: str, day: date, flow: str | None) -> Step:
    def step(connection: Connection, model: Model) -> None:
        connection.execute(
            "INSERT INTO raw.calls (call_id, started_at, call_date, flow) VALUES (%s, %s, %s, %s)"
            " ON CONFLICT (call_id) DO UPDATE SET call_date = excluded.call_date, flow = excluded.flow",
            [call_id, day, day, flow],
        )
        model.calls[call_id] = Call(day, flow)

    return step


def put_spend(row: Spend) -> Step:
    def step(connection: Connection, model: Model) -> None:
        connection.execute(
            "INSERT INTO raw.google_spend (month, campaign, amount, covered_to) VALUES (%s, %s, %s, %s)"
            " ON CONFLICT (month, campaign_id, campaign) DO UPDATE SET amount = excluded.amount, covered_to = excluded.covered_to",
            [row.month, row.campaign, row.amount, row.covered_to],
        )
        model.spend[row.month, row.campaign] = row

    return step


def delete(table: str, key: str, attribute: str, name: str) -> Step:
    def step(connection: Connection, model: Model) -> None:
        connection.execute(f"DELETE FROM raw.{table} WHERE {key} = %s", [name])
        getattr(model, attribute).pop(name, None)

    return step


def change_all_jobs(source: str, day: date) -> Step:
    """Changes many rows, dates and sources in one statement."""

    def step(connection: Connection, model: Model) -> None:
        connection.execute(
            "UPDATE raw.jobs SET source = %s, job_date = %s WHERE job_date >= '2024-11-01'", [source, day]
        )
        model.jobs = {
            name: replace(job, source=source, job_date=day) if job.job_date >= date(2024, 11, 1) else job
            for name, job in model.jobs.items()
        }

    return step


def swap_numbers() -> Step:
    """Renumbers every job in one statement, so that payments change hands."""

    def step(connection: Connection, model: Model) -> None:
        connection.execute("UPDATE raw.jobs SET job_number = translate(job_number, '123', '231')")
        turn = str.maketrans("123", "231")
        model.jobs = {
            name: replace(job, job_number=job.job_number and job.job_number.translate(turn))
            for name, job in model.jobs.items()
        }

    return step


def truncate(tables: str, attributes: tuple[str, ...]) -> Step:
    def step(connection: Connection, model: Model) -> None:
        connection.execute(f"TRUNCATE {tables}")
        for attribute in attributes:
            getattr(model, attribute).clear()

    return step


def put_rule(source: str, valid_from: date, rule: tuple[str, str, Decimal | None], segment: str) -> Step:
    def step(connection: Connection, model: Model) -> None:
        wanted = ChannelRule(source, valid_from, *rule, lead_segment=segment)
        connection.execute(
            "INSERT INTO analytics.lead_channels (source, valid_from, lead_rule, cost_rule, cost_per_lead, lead_segment)"
            " VALUES (%s, %s, %s, %s, %s, %s) ON CONFLICT (source, valid_from) DO UPDATE SET"
            " lead_rule = excluded.lead_rule, cost_rule = excluded.cost_rule,"
            " cost_per_lead = excluded.cost_per_lead, lead_segment = excluded.lead_segment",
            [source, valid_from, *rule, segment],
        )
        model.channels[source, valid_from] = wanted

    return step


def drop_rules(source: str) -> Step:
    def step(connection: Connection, model: Model) -> None:
        connection.execute("DELETE FROM analytics.lead_channels WHERE source = %s", [source])
        model.channels = {key: rule for key, rule in model.channels.items() if rule.source != source}

    return step


def put_alias(alias: str, source: str | None) -> Step:
    def step(connection: Connection, model: Model) -> None:
        model.aliases.pop(alias, None)
        connection.execute("DELETE FROM analytics.channel_aliases WHERE alias_folded = %s", [alias])
        if source is not None:
            connection.execute("INSERT INTO analytics.channel_aliases VALUES (%s, %s)", [alias, source])
            model.aliases[alias] = source

    return step


def refresh_one(position: int) -> Step:
    """Refreshes one of the stale months, as a sensor does now and then."""

    def step(connection: Connection, model: Model) -> None:
        waiting = stale_months(connection)
        if waiting:
            month = waiting[position % len(waiting)].month
            refresh(connection, month, next_month(month))

    return step


def _columns(rows: Any, *names: str) -> list[list[Any]]:
    return [[getattr(row, name) for row in rows] for name in names]


#: Pairs of rules that any channel may have, and those that belong to the one channel that owns the table.
COMMON_RULES: list[tuple[str, str, Decimal | None]] = [
    ("jobs", "none", None),
    ("units", "none", None),
    ("none", "none", None),
    ("jobs", "per_lead", Decimal("12.50")),
    ("units", "per_lead", Decimal("0.00")),
    ("workiz_leads", "none", None),
    ("workiz_leads", "per_lead", Decimal("7.25")),
]
OWN_RULES: dict[str, list[tuple[str, str, Decimal | None]]] = {
    "Google": [("jobs", "google_spend", None), ("units", "google_spend", None), ("none", "google_spend", None),
               ("workiz_leads", "google_spend", None)],
    "eLocals": [("elocals_paid", "sum_cost", None), ("elocals_paid", "per_lead", Decimal("9.99")),
                ("elocals_paid", "none", None)],
    "Pro Referral": [("proref_not_passed", "per_lead", Decimal("20.00")), ("proref_not_passed", "none", None)],
}  # fmt: skip
valid_froms = st.sampled_from([date(2000, 1, 1), date(2024, 11, 1), date(2024, 12, 1)])
segments = st.sampled_from(["OTHER", "COD", "INS"])
channel_names = st.sampled_from(["Google", "eLocals", "Pro Referral", "Rely", "Thumbtack", "Service Direct"])
rule_steps = channel_names.flatmap(
    lambda source: st.builds(
        put_rule,
        st.just(source),
        valid_froms,
        st.sampled_from(COMMON_RULES + 2 * OWN_RULES.get(source, [])),
        segments,
    )
)
ids = st.sampled_from(["a", "b", "c"])
workiz_ids = st.sampled_from("abcdefgh")
lead_statuses = st.sampled_from(["Accepted", " PASSED", "passed", None, "Not passed"])

#: Changes that affect some months only; the others affect every month, and would hide what these forget.
local_steps = st.one_of(
    st.builds(delete, st.just("jobs"), st.just("job_id"), st.just("jobs"), uuids),
    st.builds(swap_numbers),
    st.builds(change_all_jobs, st.sampled_from(["Rely", "Thumbtack", "Google"]), days),
    st.builds(put_jobs, st.lists(jobs, min_size=1, max_size=4)),
    st.builds(put_payments, st.lists(payments, min_size=1, max_size=6)),
    st.builds(put_leads, st.sampled_from(["elocals_leads", "proref_leads"]), ids, days, costs, lead_statuses),
    st.builds(put_workiz_lead, workiz_ids, days, lead_statuses, st.sampled_from(SOURCES)),
    st.builds(put_call, ids, days, st.sampled_from(["eLocals", "GoogleAds", "Forward to Dispatch", None])),
    st.builds(put_spend, spends),
    st.builds(delete, st.just("payments"), st.just("payment_id"), st.just("payments"), st.sampled_from(["P0", "P1"])),
    st.builds(delete, st.just("calls"), st.just("call_id"), st.just("calls"), ids),
    st.builds(delete, st.just("elocals_leads"), st.just("lead_id"), st.just("elocals"), ids),
    st.builds(delete, st.just("proref_leads"), st.just("lead_id"), st.just("proref"), ids),
    st.builds(delete, st.just("workiz_leads"), st.just("lead_id"), st.just("workiz"), workiz_ids),
    st.builds(refresh_one, st.integers(0, 3)),
)  # fmt: skip
global_steps = st.one_of(
    rule_steps,
    st.builds(drop_rules, channel_names),
    st.builds(put_alias, st.sampled_from(["thumbtack", "google", "rely", "forward to dispatch", "service direct"]),
              st.sampled_from([None, "Rely", "Google", "Thumbtack", "eLocals"])),
    st.sampled_from([
        truncate("raw.jobs, raw.payments", ("jobs", "payments")), truncate("raw.payments", ("payments",)),
        truncate("raw.google_spend", ("spend",)), truncate("raw.elocals_leads, raw.calls", ("elocals", "calls")),
        truncate("raw.workiz_leads", ("workiz",)),
        truncate("analytics.channel_aliases", ("aliases",)),
    ]),
)  # fmt: skip
#: Several changes between two refreshes, of one kind or of both.
bursts = st.one_of(
    st.lists(local_steps, min_size=1, max_size=3),
    st.lists(local_steps, min_size=1, max_size=3),
    st.lists(global_steps, min_size=1, max_size=2),
    st.lists(st.one_of(local_steps, global_steps), min_size=2, max_size=4),
)
filling = st.tuples(
    st.builds(put_jobs, st.lists(jobs, min_size=3, max_size=8)),
    st.builds(put_payments, st.lists(payments, min_size=4, max_size=10)),
    st.builds(put_leads, st.just("elocals_leads"), ids, days, costs, st.none()),
    st.builds(
        put_leads, st.just("proref_leads"), ids, days, st.none(), st.sampled_from(["Accepted", "passed"])
    ),
    st.builds(put_spend, spends),
    st.builds(put_workiz_lead, workiz_ids, days, lead_statuses, st.sampled_from(SOURCES)),
)


@pytest.fixture(scope="module")
def connection(new_database: Callable[..., str]) -> Iterator[Connection]:
    with psycopg.connect(new_database("analytics"), autocommit=True) as opened:
        yield opened


def empty(connection: Connection) -> None:
    """Empties the database: no rows, the first migration's channels."""
    connection.execute(
        "TRUNCATE raw.jobs, raw.payments, raw.calls, raw.elocals_leads, raw.proref_leads, raw.workiz_leads,"
        " raw.google_spend,"
        " analytics.lead_channels, analytics.channel_aliases, analytics.daily_metrics, analytics.monthly_metrics"
    )
    for rule in SEED_CHANNELS:
        put_rule(
            rule.source,
            rule.valid_from,
            (rule.lead_rule, rule.cost_rule, rule.cost_per_lead),
            rule.lead_segment,
        )(connection, Model())
    for alias, source in SEED_ALIASES.items():
        put_alias(alias, source)(connection, Model())
    connection.execute("TRUNCATE analytics.stale_months")


@examples(25, shrink=False)
@given(fill=filling, work=st.lists(bursts, min_size=10, max_size=14))
def test_stale_months_correct_whatever_is_changed_by_hand(
    connection: Connection, fill: tuple[Step, ...], work: list[list[Step]]
) -> None:
    """After any change of any column, refreshing the stale months gives the right numbers."""
    empty(connection)
    model = Model()
    for burst in (fill, *work):
        for step in burst:
            step(connection, model)
        refresh_stale(connection)
        assert_metrics(connection, model.warehouse())
    assert_every_way_agrees(connection, model.warehouse(), FIRST, LAST)
