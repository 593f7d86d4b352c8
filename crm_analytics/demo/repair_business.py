"""An invented appliance-repair business, month by month, before it is exported.

Every month is drawn from its own random stream, so history stays the same from day to day and only the current month
grows.
"""

from __future__ import annotations

import calendar
import math
import random
import string
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from zoneinfo import ZoneInfo

JOBS_PER_MONTH = 250
SEASON = (0.92, 0.88, 0.95, 0.97, 1.02, 1.10, 1.16, 1.14, 1.03, 1.00, 0.95, 0.90)
WEEKDAY = (1.35, 1.15, 1.05, 1.05, 1.1, 0.8, 0.45)
#: Per year.
GROWTH = 0.08
TECHNICIANS = ("Alex M", "Boris K", "Chris P", "Dana R", "Ed S", "Farid T")
APPLIANCES = ("Refrigerator", "Washer", "Dryer", "Dishwasher", "Oven", "Ice maker")
FIRST_NAMES = ("Ann", "Bill", "Cara", "Dov", "Ella", "Finn", "Gia", "Hugo", "Ivy", "Jon", "Kim", "Lou")
LAST_NAMES = ("Adler", "Brown", "Cruz", "Diaz", "Evans", "Ford", "Green", "Hill", "Irwin", "Jones")
AREA_CODES = (212, 332, 347, 516, 646, 718, 914, 917, 929)
ZIPS = ("10001", "10025", "10463", "11201", "11215", "11375", "11561", "07030", "07302")

#: Share of the jobs by source, as exports spell it. Three sources have no channel rule.
SOURCES = {
    "Google": 0.24,
    "eLocals": 0.17,
    "Pro Referral": 0.13,
    "Rely": 0.13,
    "NSA": 0.12,
    "Liberty": 0.08,
    "Retention": 0.08,
    "Thumbtack": 0.02,
    "Service direct": 0.01,
    "service Direct": 0.01,
    "": 0.01,
}
INSURERS = frozenset({"Rely", "NSA", "Liberty"})
CASH_TYPES = {
    "COD Service": 0.80,
    "COD Repair": 0.11,
    "Service call": 0.03,
    "Repair": 0.03,
    "COD Installation": 0.03,
}
INSURED_TYPES = {"INS Service": 0.66, "INS Repair": 0.27, "Warranty": 0.07}


@dataclass(frozen=True)
class Job:
    """A job with its whole life. On the day `moved_on`, the office gave it the new date `moved_to`."""

    number: int
    uuid: str
    type: str
    source: str
    created: date
    done: date
    canceled: bool
    client: tuple[str, str]
    phone: str
    technician: str
    zip: str
    appliance: str
    total: Decimal
    moved_to: date | None = None
    moved_on: date | None = None

    def created_as_of(self, day: date) -> date:
        """Returns the job's date in an export of `day`."""
        return self.moved_to if self.moved_to and self.moved_on and day >= self.moved_on else self.created

    def status_as_of(self, day: date) -> str:
        """Returns the status in an export of `day`."""
        if day <= self.created:
            return "Submitted"
        if day < self.done:
            return "In Progress"
        return "Canceled" if self.canceled else "Done"


@dataclass(frozen=True)
class Payment:
    """A payment. `job_number` may be one that no jobs export has."""

    id: str
    job_number: int
    job: Job | None
    paid: date
    amount: Decimal
    method: str
    status: str


@dataclass(frozen=True)
class Call:
    """A phone call in local time; about half of them belong to a job."""

    at: datetime
    phone: str
    flow: str
    answered_by: str
    seconds: int
    job: Job | None


@dataclass(frozen=True)
class PaidLead:
    """An eLocals lead. `credited` is its cost after a credit, if one came within days."""

    id: str
    at: datetime
    seconds: int
    cost: Decimal
    credited: Decimal | None
    phone: str
    name: str

    def cost_as_of(self, day: date) -> Decimal:
        """Returns the cost in an export of `day` (credits come within 96 hours)."""
        if self.credited is not None and day >= self.at.date() + timedelta(days=5):
            return self.credited
        return self.cost


@dataclass(frozen=True)
class Referral:
    """A Pro Referral lead."""

    id: str
    day: date
    customer: str
    category: str
    zip: str
    status: str


@dataclass(frozen=True)
class Month:
    """Everything that began in one month. Payments are those of the month's jobs, whenever they were paid."""

    first: date
    jobs: tuple[Job, ...]
    payments: tuple[Payment, ...]
    calls: tuple[Call, ...]
    leads: tuple[PaidLead, ...]
    referrals: tuple[Referral, ...]
    #: Cost by day and campaign.
    spend: dict[date, dict[str, Decimal]]


def month_before(first: date) -> date:
    """Returns the month before."""
    return (first - timedelta(days=1)).replace(day=1)


def month_days(first: date) -> list[date]:
    """Returns all days of the month."""
    return [first.replace(day=n + 1) for n in range(calendar.monthrange(first.year, first.month)[1])]


def volume(first: date) -> float:
    """Returns how busy the month is; 1.0 is an average month of 2024."""
    years: float = first.year - 2024 + (first.month - 7) / 12
    return SEASON[first.month - 1] * math.pow(1 + GROWTH, years)


def invent_month(first: date, seed: int, timezone: ZoneInfo) -> Month:
    """Invents everything that begins in the month of `first`; equal arguments give equal months."""
    rng = random.Random(f"{seed}/{first:%Y-%m}")  # noqa: S311 sample data
    days = month_days(first)
    weights = [WEEKDAY[day.weekday()] for day in days]
    busy = volume(first)

    def count(mean: float) -> int:
        return max(1, round(rng.gauss(mean * busy, (mean * busy) ** 0.5 / 2)))

    def some_days(mean: float) -> list[date]:
        return sorted(rng.choices(days, weights, k=count(mean)))

    base = (first.year * 12 + first.month - 1999 * 12) * 400
    jobs = tuple(_job(rng, seed, base + n, day) for n, day in enumerate(some_days(JOBS_PER_MONTH)))
    payments = tuple(_payments(rng, jobs, base))
    calls = tuple(_call(rng, day, jobs, timezone) for day in some_days(330))
    leads = tuple(_lead(rng, day, timezone) for day in some_days(78))
    referrals = tuple(_referral(rng, day) for day in some_days(52))
    return Month(first, jobs, payments, calls, leads, referrals, _spend(rng, days, busy))


def _pick(rng: random.Random, shares: dict[str, float]) -> str:
    return rng.choices(list(shares), list(shares.values()))[0]


def _money(rng: random.Random, low: float, high: float, step: str = "0.01") -> Decimal:
    """Draws an amount between the bounds; low ones are more frequent."""
    return Decimal(rng.triangular(low, high, low + (high - low) / 3)).quantize(Decimal(step))


def _phone(rng: random.Random) -> str:
    return f"({rng.choice(AREA_CODES)}) 555-{rng.randrange(10000):04}"


def uuid_of(number: int, seed: int) -> str:
    """Returns six characters of A-Z0-9, different for every number."""
    alphabet = string.digits + string.ascii_uppercase
    value = (number * 1_103_515_249 + seed * 7_919) % 36**6
    return "".join(alphabet[value // 36**place % 36] for place in range(6))


def _job(rng: random.Random, seed: int, number: int, created: date) -> Job:
    source = _pick(rng, SOURCES)
    kind = _pick(rng, INSURED_TYPES if source in INSURERS else CASH_TYPES)
    moved = rng.random() < 0.004
    return Job(
        number=number,
        uuid=uuid_of(number, seed),
        type=kind,
        source=source,
        created=created,
        done=created + timedelta(days=rng.choice((1, 1, 2, 3, 4, 7))),
        canceled=rng.random() < 0.12,
        client=(rng.choice(FIRST_NAMES), rng.choice(LAST_NAMES)),
        phone=_phone(rng),
        technician=rng.choice(TECHNICIANS),
        zip=rng.choice(ZIPS),
        appliance=rng.choice(APPLIANCES),
        total=_money(rng, 85, 640),
        moved_to=created + timedelta(days=rng.randint(5, 9)) if moved else None,
        moved_on=created + timedelta(days=rng.randint(10, 16)) if moved else None,
    )


def _payments(rng: random.Random, jobs: tuple[Job, ...], base: int) -> Iterator[Payment]:
    number = base * 3

    def payment(job: Job, paid: date, amount: Decimal, status: str = "Paid") -> Payment:
        nonlocal number
        number += 1
        method = rng.choice(("Credit card", "Credit card", "Cash", "Check", "Zelle"))
        return Payment(f"PAY-{number:07}", job.number, job, paid, amount, method, status)

    for job in jobs:
        if job.canceled:
            continue
        if job.type in ("COD Service", "Service call", "Repair"):
            yield payment(job, job.created, Decimal(rng.choice((79, 85, 89, 95, 100))))
            # the customer agrees to the repair
            if rng.random() < 0.62:
                late = rng.random() < 0.06
                paid = job.done + timedelta(days=rng.randint(30, 70) if late else rng.randint(0, 4))
                yield payment(job, paid, _money(rng, 110, 560))
        elif job.type == "Warranty":
            continue
        else:
            low, high = (220, 690) if job.type.startswith("COD") else (75, 330)
            yield payment(job, job.done + timedelta(days=rng.randint(0, 20)), _money(rng, low, high))
        if rng.random() < 0.02:
            yield payment(job, job.done + timedelta(days=rng.randint(5, 25)), -_money(rng, 20, 120, "1"))
        if rng.random() < 0.02:
            yield payment(
                job, job.done, _money(rng, 90, 300), rng.choice(("Failed", "Declined", "Pending", "Voided"))
            )
        if rng.random() < 0.003:
            yield payment(job, job.done, _money(rng, 90, 300), "Settled offline")
    # payments with a mistyped job number
    for _ in range(rng.choice((0, 1, 1, 2))):
        number += 1
        paid = rng.choice(jobs).done
        wrong = 900_000 + rng.randrange(90_000)
        yield Payment(f"PAY-{number:07}", wrong, None, paid, _money(rng, 85, 240), "Cash", "Paid")


def _call(rng: random.Random, day: date, jobs: tuple[Job, ...], timezone: ZoneInfo) -> Call:
    flow = _pick(rng, {"GoogleAds": 0.36, "eLocals": 0.24, "Forward to Dispatch": 0.3, "": 0.1})
    same_day = [job for job in jobs if job.created == day]
    job = rng.choice(same_day) if same_day and rng.random() < 0.5 else None
    answered = rng.random() < 0.86
    return Call(
        at=_office_hours(rng, day, timezone),
        phone=job.phone if job else _phone(rng),
        flow=flow,
        answered_by=rng.choice(("Olga", "Pete", "Rita")) if answered else "",
        seconds=round(rng.lognormvariate(4.6, 0.8)) if answered else rng.randint(3, 40),
        job=job,
    )


def _office_hours(rng: random.Random, day: date, timezone: ZoneInfo) -> datetime:
    return datetime.combine(day, time(rng.randint(8, 19), rng.randrange(60), rng.randrange(60)), timezone)


def _lead(rng: random.Random, day: date, timezone: ZoneInfo) -> PaidLead:
    seconds = round(rng.lognormvariate(4.4, 0.9))
    cost = _money(rng, 42, 78, "0.25") if seconds > 40 else Decimal("0.00")
    return PaidLead(
        id=f"EL{rng.randrange(10**9):09}",
        at=_office_hours(rng, day, timezone),
        seconds=seconds,
        cost=cost,
        credited=Decimal("0.00") if cost and rng.random() < 0.04 else None,
        phone=_phone(rng),
        name=f"{rng.choice(FIRST_NAMES)} {rng.choice(LAST_NAMES)}",
    )


def _referral(rng: random.Random, day: date) -> Referral:
    return Referral(
        id=f"PR-{rng.randrange(10**8):08}",
        day=day,
        customer=f"{rng.choice(FIRST_NAMES)} {rng.choice(LAST_NAMES)}",
        category=f"{rng.choice(APPLIANCES)} Repair",
        zip=rng.choice(ZIPS),
        status=_pick(rng, {"Accepted": 0.5, "Booked": 0.25, "Passed": 0.2, "": 0.05}),
    )


def _spend(rng: random.Random, days: list[date], busy: float) -> dict[date, dict[str, Decimal]]:
    mean = {"Search - Appliance repair": 92 * busy, "Brand": 17.0, "Remarketing": 9.0}
    return {day: {name: _money(rng, 0.6 * cost, 1.5 * cost) for name, cost in mean.items()} for day in days}
