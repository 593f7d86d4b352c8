"""The big exports: ten years of jobs with 44 columns, and their payments, in the vendors' formats."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from functools import cached_property
from pathlib import Path

from crm_analytics.demo.repair_business import (
    CASH_TYPES,
    INSURED_TYPES,
    INSURERS,
    SOURCES,
    TECHNICIANS,
    ZIPS,
    uuid_of,
)
from crm_analytics.demo.sample_exports import JOB_HEADER, PAYMENT_HEADER

SEED = 11


@dataclass(frozen=True)
class Exports:
    """The paths of the two files."""

    jobs: Path
    payments: Path


@dataclass(frozen=True)
class Business:
    """`jobs` jobs, spread evenly over ten years, and their payments. Numbers start after the first `skipped` ones."""

    jobs: int
    payments: int
    first: date = date(2016, 1, 1)
    last: date = date(2025, 12, 31)
    skipped: int = 0
    #: The day in the files' names.
    exported: date = date(2026, 1, 1)

    @cached_property
    def days(self) -> list[date]:
        """All days of the ten years."""
        return [self.first + timedelta(days=n) for n in range((self.last - self.first).days + 1)]

    @cached_property
    def written(self) -> list[str]:
        """The same, as the exports have them."""
        return [f"{day:%a %b %d %Y}" for day in self.days]

    def decade_before(self) -> Business:
        """Returns as many other jobs and payments, of the ten years before, exported a day later."""
        return Business(
            self.jobs,
            self.payments,
            date(self.first.year - 10, 1, 1),
            date(self.first.year - 1, 12, 31),
            self.skipped + self.jobs,
            self.exported + timedelta(days=1),
        )

    def day(self, n: int) -> int:
        """Returns the position in `days` of the day of job `n`, counted from 0."""
        return n * len(self.days) // self.jobs


def write_exports(landing: Path, business: Business) -> Exports:
    """Writes both files, jobs newest first; equal businesses give equal bytes."""
    rng = random.Random(SEED)  # noqa: S311 sample data
    kinds = _kinds(rng, business.jobs)
    jobs = _write_jobs(landing, business, range(business.jobs - 1, -1, -1), kinds, business.exported)
    payments = landing / "payments" / f"payments_{business.exported}T05_05_11.706Z.csv"
    payments.parent.mkdir(parents=True, exist_ok=True)
    with payments.open("w", newline="", encoding="utf-8") as file:
        file.write(",".join(PAYMENT_HEADER) + "\r\n")
        file.writelines(_payment_lines(rng, business))
    return Exports(jobs, payments)


def write_reexport(landing: Path, business: Business, changed: int) -> tuple[Path, set[date]]:
    """Writes the same jobs a week later, `changed` of them with another source; returns the path and the changed months."""
    kinds = _kinds(random.Random(SEED), business.jobs)  # noqa: S311 sample data
    months: set[date] = set()
    for k in range(changed):
        n = business.jobs * (1 + k % 3) // 4 + k // 3
        kinds[n] = (kinds[n][0], "Angi")
        months.add(business.days[business.day(n)].replace(day=1))
    later = business.exported + timedelta(days=7)
    return _write_jobs(landing, business, range(business.jobs - 1, -1, -1), kinds, later), months


def write_small_exports(landing: Path, business: Business, numbers: Sequence[int]) -> list[Path]:
    """Writes the jobs day after day, as many to a file as files have `numbers`; each is exported on a day of its own."""
    kinds = _kinds(random.Random(SEED), business.jobs)  # noqa: S311 sample data
    size = business.jobs // len(numbers)
    return [
        _write_jobs(
            landing,
            business,
            range(k * size, (k + 1) * size),
            kinds,
            business.exported + timedelta(days=number),
        )
        for k, number in enumerate(numbers)
    ]


def _write_jobs(
    landing: Path, business: Business, jobs: Sequence[int], kinds: list[tuple[str, str]], exported: date
) -> Path:
    path = landing / "jobs" / f"export_export_{exported}T05_04_11.706Z.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        file.write(",".join(JOB_HEADER) + "\r\n")
        file.writelines(_job_line(business, n, kinds[n]) for n in jobs)
    return path


def _kinds(rng: random.Random, jobs: int) -> list[tuple[str, str]]:
    """Draws the type and source of every job."""
    sources = rng.choices(list(SOURCES), list(SOURCES.values()), k=jobs)
    cash = rng.choices(list(CASH_TYPES), list(CASH_TYPES.values()), k=jobs)
    insured = rng.choices(list(INSURED_TYPES), list(INSURED_TYPES.values()), k=jobs)
    return [(insured[n] if source in INSURERS else cash[n], source) for n, source in enumerate(sources)]


def _job_line(business: Business, n: int, kind: tuple[str, str]) -> str:
    day = business.written[business.day(n)]
    job_type, source = kind
    number = business.skipped + n
    return (
        f"{number + 1},Ann Adler {n % 977},,{job_type},{day},{day},(718) 555-{n % 10000:04},client{n}@example.com,Done,"
        f'{TECHNICIANS[n % 6]},"{n % 900} Sample Street\nApt {n % 40}",New York,{ZIPS[n % 9]},Metro,{uuid_of(number, SEED)},'
        f",,{n % 700 + 85}.5,,,{day},,Olga,0,{n % 700 + 85}.5,0,,,,0,0,{n % 700},8.875,1.5,{source},Ann,Adler,NY,"
        f"Credit card,Washer,,,,\r\n"
    )


def _payment_lines(rng: random.Random, business: Business) -> Iterator[str]:
    """Yields the payments: one in 200 failed, one in 1,000 names an unknown job."""
    jobs, days = business.jobs, len(business.written)
    for n in range(business.payments):
        job = n if n < jobs else rng.randrange(jobs)
        number = business.skipped + job + 1 if n % 1000 else 90_000_000 + n
        day = business.written[min(business.day(job) + n % 9, days - 1)]
        status = "Paid" if n % 200 else "Failed"
        amount = f"{n % 400 + 20}.{n % 90 + 10}" if n % 50 else f"-{n % 60 + 10}.00"
        yield (
            f"PAY-{business.skipped * 2 + n:08},{number},Ann Adler,COD Service,{status},Credit card,{amount},{day},,"
            f"{TECHNICIANS[n % 6]},C{n % 99991},0\r\n"
        )
