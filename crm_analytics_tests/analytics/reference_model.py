"""The reference model: raw tables and metrics once more, in plain Python, to hold the SQL against.

It was written from the definitions alone, never from the SQL: no database, no pandas, nothing clever. Money is Decimal,
ratios are exact Fractions, dates are local dates of the business timezone.
"""

from __future__ import annotations

import calendar
import re
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from datetime import date, datetime
from decimal import Decimal
from fractions import Fraction
from typing import Generic, TypeVar

# -- raw rows, as far as metrics depend on them -----------------------------------------------------------


@dataclass(frozen=True)
class Job:
    job_id: str
    job_number: str | None
    type: str | None
    source: str | None
    status: str | None
    job_date: date


@dataclass(frozen=True)
class Payment:
    """A payment; `job_id` is the resolved job, None while the job is unknown."""

    payment_id: str
    job_id: str | None
    paid_date: date
    amount: Decimal
    status: str | None


@dataclass(frozen=True)
class Call:
    call_date: date
    flow: str | None


@dataclass(frozen=True)
class ElocalsLead:
    lead_id: str
    lead_date: date
    cost: Decimal | None


@dataclass(frozen=True)
class ProrefLead:
    lead_id: str
    lead_date: date
    current_status: str | None


@dataclass(frozen=True)
class WorkizLead:
    lead_id: str
    lead_date: date
    status: str | None
    source: str | None


@dataclass(frozen=True)
class Spend:
    month: date
    campaign: str
    amount: Decimal
    covered_to: date


@dataclass(frozen=True)
class ChannelRule:
    source: str
    valid_from: date
    lead_rule: str
    cost_rule: str
    cost_per_lead: Decimal | None = None
    lead_segment: str = "OTHER"


@dataclass(frozen=True)
class Warehouse:
    """Everything that metrics are made of."""

    jobs: Sequence[Job] = ()
    payments: Sequence[Payment] = ()
    calls: Sequence[Call] = ()
    elocals_leads: Sequence[ElocalsLead] = ()
    proref_leads: Sequence[ProrefLead] = ()
    workiz_leads: Sequence[WorkizLead] = ()
    google_spend: Sequence[Spend] = ()
    channels: Sequence[ChannelRule] = ()
    aliases: Mapping[str, str] = field(default_factory=dict)


#: The seven channels of the seed, in force since ever.
SEED_CHANNELS = (
    ChannelRule("eLocals", date(2000, 1, 1), "elocals_paid", "sum_cost"),
    ChannelRule("Pro Referral", date(2000, 1, 1), "proref_not_passed", "per_lead", Decimal("20.00")),
    ChannelRule("Google", date(2000, 1, 1), "jobs", "google_spend"),
    ChannelRule("Rely", date(2000, 1, 1), "units", "none"),
    ChannelRule("NSA", date(2000, 1, 1), "units", "none"),
    ChannelRule("Liberty", date(2000, 1, 1), "units", "none"),
    ChannelRule("Retention", date(2000, 1, 1), "jobs", "none"),
)
SEED_ALIASES = {channel.source.casefold(): channel.source for channel in SEED_CHANNELS} | {
    "googleads": "Google"
}


# -- rules ------------------------------------------------------------------------------------------------


def folded(text: str | None) -> str:
    """Trims, collapses inner white space and casefolds; None becomes the empty text."""
    return " ".join((text or "").split()).casefold()


def shown_names(warehouse: Warehouse) -> dict[str, str]:
    """Returns how each name is spelled: as people typed it, else as in the first row that has it.

    The database knows which row came first and this model does not, so comparisons fold names.
    """
    typed = [*(channel.source for channel in warehouse.channels), *warehouse.aliases.values()]
    given = [
        *(job.source for job in warehouse.jobs),
        *(call.flow for call in warehouse.calls),
        *(lead.source for lead in warehouse.workiz_leads),
    ]
    names = {"": "Unattributed", "unattributed": "Unattributed"}
    for name in [*typed, *given]:
        names.setdefault(folded(name), " ".join((name or "").split()))
    return names


def source_name(given: str | None, aliases: Mapping[str, str], names: Mapping[str, str]) -> str:
    """Returns the name of a source or flow: by its alias if it has one, spelled as in `names`."""
    text = folded(given)
    return names[folded(aliases.get(text, text))]


def segment(job_type: str | None) -> str:
    """Returns COD before INS, as words, else OTHER."""
    words = re.findall(r"\w+", folded(job_type))
    return "COD" if "cod" in words else "INS" if "ins" in words else "OTHER"


def is_unit(job: Job) -> bool:
    return folded(job.type) in ("cod service", "ins service")


def is_repair(job: Job, paid_total: Decimal) -> bool:
    """Returns whether the job is a repair by type, or a COD service paid with strictly more than 100."""
    kind = folded(job.type)
    return kind in ("cod repair", "ins repair") or (kind == "cod service" and paid_total > 100)


def counts(payment: Payment) -> bool:
    return folded(payment.status) not in ("failed", "pending", "voided", "declined")


def first_of_month(day: date) -> date:
    return day.replace(day=1)


def last_of_month(day: date) -> date:
    return day.replace(day=calendar.monthrange(day.year, day.month)[1])


def rule_in_force(source: str, month: date, channels: Iterable[ChannelRule]) -> ChannelRule | None:
    """Returns the rule of `source` with the latest `valid_from` not after `month` (its first day)."""
    candidates = [rule for rule in channels if rule.source == source and rule.valid_from <= month]
    return max(candidates, key=lambda rule: rule.valid_from, default=None)


def round_cents(amount: Fraction) -> Decimal:
    """Rounds to cents, halves away from zero, as PostgreSQL rounds numeric."""
    return rounded(amount, 2)


def rounded(value: Fraction, places: int) -> Decimal:
    """Rounds `value` to `places` decimals, halves away from zero."""
    scaled = abs(value) * 10**places
    whole = (2 * scaled.numerator + scaled.denominator) // (2 * scaled.denominator)
    return Decimal(whole if value >= 0 else -whole).scaleb(-places)


def daily_spend(rows: Iterable[Spend]) -> dict[date, Decimal]:
    """Spreads each month's total over the days covered, so that the days add up to it to the cent."""
    by_month: defaultdict[date, list[Spend]] = defaultdict(list)
    for row in rows:
        by_month[row.month].append(row)
    result: dict[date, Decimal] = {}
    for month, spends in by_month.items():
        total = Fraction(sum((spend.amount for spend in spends), Decimal(0)))
        days = max(spend.covered_to for spend in spends).day
        for k in range(1, days + 1):
            result[month.replace(day=k)] = round_cents(total * k / days) - round_cents(total * (k - 1) / days)
    return result


# -- metrics ----------------------------------------------------------------------------------------------


@dataclass
class Measures:
    """The seven measures of one key, and what the tables generate from them."""

    jobs: int = 0
    units: int = 0
    repairs: int = 0
    leads: int = 0
    calls: int = 0
    cost: Decimal = Decimal(0)
    revenue_gross: Decimal = Decimal(0)

    def add(self, other: Measures) -> None:
        for measure in fields(self):
            setattr(self, measure.name, getattr(self, measure.name) + getattr(other, measure.name))

    def __bool__(self) -> bool:
        return any(getattr(self, measure.name) != 0 for measure in fields(self))

    @property
    def revenue40(self) -> Decimal:
        return self.revenue_gross * Decimal("0.40")

    @property
    def profit(self) -> Decimal:
        return self.revenue40 - self.cost

    @property
    def conv_l_to_u(self) -> Fraction | None:
        return _ratio(self.units, self.leads)

    @property
    def conv_l_to_r(self) -> Fraction | None:
        return _ratio(self.repairs, self.leads)

    @property
    def conv_u_to_r(self) -> Fraction | None:
        return _ratio(self.repairs, self.units)

    @property
    def cpl(self) -> Fraction | None:
        return _ratio(self.cost, self.leads)


MEASURES = tuple(measure.name for measure in fields(Measures))
EXACT_GENERATED = ("revenue40", "profit")
RATIOS = ("conv_l_to_u", "conv_l_to_r", "conv_u_to_r", "cpl")
Key = tuple[date, str, str]
Metrics = dict[Key, Measures]


def _ratio(part: int | Decimal, whole: int) -> Fraction | None:
    return Fraction(part) / whole if whole else None


def daily_metrics(warehouse: Warehouse) -> Metrics:
    """Returns `analytics.daily_metrics` by (date, source, segment): rows exactly where a measure is not zero."""
    table: defaultdict[Key, Measures] = defaultdict(Measures)
    channels, aliases, names = warehouse.channels, warehouse.aliases, shown_names(warehouse)

    paid: defaultdict[str | None, Decimal] = defaultdict(Decimal)
    known = {job.job_id for job in warehouse.jobs}
    for payment in filter(counts, warehouse.payments):
        if payment.job_id in known:
            paid[payment.job_id] += payment.amount
        else:
            table[payment.paid_date, "Unattributed", "OTHER"].revenue_gross += payment.amount

    for job in warehouse.jobs:
        source = source_name(job.source, aliases, names)
        row = table[job.job_date, source, segment(job.type)]
        row.jobs += 1
        row.units += is_unit(job)
        row.repairs += is_repair(job, paid[job.job_id])
        row.revenue_gross += paid[job.job_id]
        rule = rule_in_force(source, first_of_month(job.job_date), channels)
        if rule and (rule.lead_rule == "jobs" or (rule.lead_rule == "units" and is_unit(job))):
            row.leads += 1
            if rule.cost_rule == "per_lead":
                row.cost += rule.cost_per_lead or 0

    for call in warehouse.calls:
        table[call.call_date, source_name(call.flow, aliases, names), "OTHER"].calls += 1

    for lead in warehouse.elocals_leads:
        if lead.cost is not None and lead.cost > 0:
            for rule in _rules_with("elocals_paid", lead.lead_date, channels):
                _count_lead(table, lead.lead_date, rule, lead.cost)
    for referral in warehouse.proref_leads:
        if folded(referral.current_status) != "passed":
            for rule in _rules_with("proref_not_passed", referral.lead_date, channels):
                _count_lead(table, referral.lead_date, rule, Decimal(0))

    for entered in warehouse.workiz_leads:
        own = source_name(entered.source, aliases, names)
        for rule in _rules_with("workiz_leads", entered.lead_date, channels):
            if rule.source == own and folded(entered.status) != "passed":
                _count_lead(table, entered.lead_date, rule, Decimal(0))

    for day, cost in daily_spend(warehouse.google_spend).items():
        for source in {rule.source for rule in channels}:
            rule = rule_in_force(source, first_of_month(day), channels)
            if rule and rule.cost_rule == "google_spend":
                table[day, source, rule.lead_segment].cost += cost

    return {key: measures for key, measures in table.items() if measures}


def _rules_with(lead_rule: str, day: date, channels: Sequence[ChannelRule]) -> list[ChannelRule]:
    month = first_of_month(day)
    in_force = (rule_in_force(source, month, channels) for source in {rule.source for rule in channels})
    return [rule for rule in in_force if rule and rule.lead_rule == lead_rule]


def _count_lead(table: Mapping[Key, Measures], day: date, rule: ChannelRule, own_cost: Decimal) -> None:
    row = table[day, rule.source, rule.lead_segment]
    row.leads += 1
    if rule.cost_rule == "sum_cost":
        row.cost += own_cost
    elif rule.cost_rule == "per_lead":
        row.cost += rule.cost_per_lead or 0


def monthly_metrics(daily: Metrics) -> Metrics:
    """Returns `analytics.monthly_metrics` by (month, source, segment): sums of the daily rows."""
    table: defaultdict[Key, Measures] = defaultdict(Measures)
    for (day, source, part), measures in daily.items():
        table[first_of_month(day), source, part].add(measures)
    return dict(table)


def months_of(metrics: Metrics) -> set[date]:
    return {first_of_month(day) for day, _, _ in metrics}


def orphan_months(warehouse: Warehouse) -> set[date]:
    """Returns the paid months of counted payments whose job is unknown."""
    known = {job.job_id for job in warehouse.jobs}
    return {
        first_of_month(payment.paid_date)
        for payment in warehouse.payments
        if counts(payment) and payment.job_id not in known
    }


# -- raw tables after files, in whatever order they arrived ------------------------------------------------

Row = TypeVar("Row", bound=Hashable)


@dataclass(frozen=True)
class ExportFile(Generic[Row]):
    """The acceptable records of one file, without those that are quarantined when read."""

    exported_at: datetime
    path: str
    rows: tuple[Row, ...]


def in_export_order(files: Iterable[ExportFile[Row]]) -> list[ExportFile[Row]]:
    """Sorts files into the order that counts, whatever the order of arrival."""
    return sorted(files, key=lambda file: (file.exported_at, file.path))


def table_after(files: Iterable[ExportFile[Row]], key: Callable[[Row], Hashable]) -> dict[Hashable, Row]:
    """Returns what the files say, by key: the newest version counts, rows that vanish stay.

    Identical rows of one file are one. Different rows with one key in one file are a conflict: none of them counts, and
    the older version keeps counting.
    """
    table: dict[Hashable, Row] = {}
    for file in in_export_order(files):
        versions: defaultdict[Hashable, set[Row]] = defaultdict(set)
        for row in file.rows:
            versions[key(row)].add(row)
        table.update({name: found.pop() for name, found in versions.items() if len(found) == 1})
    return table


def spend_after(files: Iterable[ExportFile[Spend]]) -> dict[tuple[date, str], Spend]:
    """Returns the spend: the newest file that covers a month replaces all rows of that month."""
    months: dict[date, dict[tuple[date, str], Spend]] = {}
    for file in in_export_order(files):
        own: defaultdict[date, dict[tuple[date, str], Spend]] = defaultdict(dict)
        for row in file.rows:
            own[row.month][row.month, row.campaign] = row
        months.update(own)
    return {key: row for rows in months.values() for key, row in rows.items()}


@dataclass(frozen=True)
class SpendRecord:
    """A record of a spend report on one month."""

    #: What the table's key has of it.
    campaign: tuple[str, ...]
    #: A cell by which a report is known to split spend.
    known_split: str
    #: Any other cell.
    other: str
    amount: Decimal


def spend_of_report(records: Sequence[SpendRecord], total: Decimal | None) -> Decimal | None:
    """Returns the sum of a spend report, or None if the report is refused.

    Its own total decides whether identical records count. Without a total they count once, and other records of one
    campaign that cost something must differ in a known split.
    """
    everything = sum((record.amount for record in records), Decimal(0))
    once = sum((record.amount for record in set(records)), Decimal(0))
    if total is not None:
        return total if total in (everything, once) else None
    parts = [(record.campaign, record.known_split) for record in set(records) if record.amount]
    return once if len(parts) == len(set(parts)) else None


def covered_to(month: date, exported_on: date) -> date:
    """Returns the last day of a monthly figure without dates of its own: the export's day if inside the month."""
    return exported_on if first_of_month(exported_on) == month else last_of_month(month)


def resolve(job_uuid: str | None, job_number: str | None, jobs: Iterable[Job]) -> str | None:
    """Returns the job that a payment means: by UUID verbatim, else by a number that names exactly one job."""
    jobs = list(jobs)
    if job_uuid in {job.job_id for job in jobs}:
        return job_uuid
    named = [job.job_id for job in jobs if job_number and plain(job.job_number or "") == plain(job_number)]
    return named[0] if len(named) == 1 else None


def plain(number: str) -> str:
    """Returns a job number without zero padding."""
    return (number.lstrip("0") or "0") if number.isdigit() else number
