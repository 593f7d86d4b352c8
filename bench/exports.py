"""The big exports: ten years of jobs with 44 columns, and their payments, in the vendors' formats."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, timedelta
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

FIRST, LAST = date(2016, 1, 1), date(2025, 12, 31)
DAYS = [FIRST + timedelta(days=n) for n in range((LAST - FIRST).days + 1)]
WRITTEN = [f"{day:%a %b %d %Y}" for day in DAYS]
SEED = 11


@dataclass(frozen=True)
class Exports:
    """The paths of the two files."""

    jobs: Path
    payments: Path


def write_exports(landing: Path, jobs: int, payments: int) -> Exports:
    """Writes both files. Jobs are spread evenly over the years, newest first; equal counts give equal bytes."""
    rng = random.Random(SEED)  # noqa: S311 sample data
    kinds = _kinds(rng, jobs)
    exports = Exports(
        landing / "jobs" / "export_export_2026-01-01T05_04_11.706Z.csv",
        landing / "payments" / "payments_2026-01-01T05_05_11.706Z.csv",
    )
    for path in (exports.jobs, exports.payments):
        path.parent.mkdir(parents=True, exist_ok=True)
    with exports.jobs.open("w", newline="", encoding="utf-8") as file:
        file.write(",".join(JOB_HEADER) + "\r\n")
        file.writelines(_job_line(n, jobs, kinds[n]) for n in range(jobs - 1, -1, -1))
    with exports.payments.open("w", newline="", encoding="utf-8") as file:
        file.write(",".join(PAYMENT_HEADER) + "\r\n")
        file.writelines(_payment_lines(rng, jobs, payments))
    return exports


def write_reexport(landing: Path, jobs: int, changed: int) -> tuple[Path, set[date]]:
    """Writes the same jobs a week later, `changed` of them with another source; returns the path and the changed months."""
    rng = random.Random(SEED)  # noqa: S311 sample data
    kinds = _kinds(rng, jobs)
    months: set[date] = set()
    for k in range(changed):
        n = jobs * (1 + k % 3) // 4 + k // 3
        kinds[n] = (kinds[n][0], "Angi")
        months.add(DAYS[_day(n, jobs)].replace(day=1))
    path = landing / "jobs" / "export_export_2026-01-08T05_04_11.706Z.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        file.write(",".join(JOB_HEADER) + "\r\n")
        file.writelines(_job_line(n, jobs, kinds[n]) for n in range(jobs - 1, -1, -1))
    return path, months


def _kinds(rng: random.Random, jobs: int) -> list[tuple[str, str]]:
    """Draws the type and source of every job."""
    sources = rng.choices(list(SOURCES), list(SOURCES.values()), k=jobs)
    cash = rng.choices(list(CASH_TYPES), list(CASH_TYPES.values()), k=jobs)
    insured = rng.choices(list(INSURED_TYPES), list(INSURED_TYPES.values()), k=jobs)
    return [(insured[n] if source in INSURERS else cash[n], source) for n, source in enumerate(sources)]


def _day(n: int, jobs: int) -> int:
    return n * len(DAYS) // jobs


def _job_line(n: int, jobs: int, kind: tuple[str, str]) -> str:
    day = WRITTEN[_day(n, jobs)]
    job_type, source = kind
    return (
        f"{n + 1},Ann Adler {n % 977},,{job_type},{day},{day},(718) 555-{n % 10000:04},client{n}@example.com,Done,"
        f'{TECHNICIANS[n % 6]},"{n % 900} Sample Street\nApt {n % 40}",New York,{ZIPS[n % 9]},Metro,{uuid_of(n, SEED)},'
        f",,{n % 700 + 85}.5,,,{day},,Olga,0,{n % 700 + 85}.5,0,,,,0,0,{n % 700},8.875,1.5,{source},Ann,Adler,NY,"
        f"Credit card,Washer,,,,\r\n"
    )


def _payment_lines(rng: random.Random, jobs: int, payments: int) -> Iterator[str]:
    """Yields the payments: one in 200 failed, one in 1,000 names an unknown job."""
    for n in range(payments):
        job = n if n < jobs else rng.randrange(jobs)
        number = job + 1 if n % 1000 else 90_000_000 + n
        day = WRITTEN[min(_day(job, jobs) + n % 9, len(WRITTEN) - 1)]
        status = "Paid" if n % 200 else "Failed"
        amount = f"{n % 400 + 20}.{n % 90 + 10}" if n % 50 else f"-{n % 60 + 10}.00"
        yield (
            f"PAY-{n:08},{number},Ann Adler,COD Service,{status},Credit card,{amount},{day},,{TECHNICIANS[n % 6]},"
            f"C{n % 99991},0\r\n"
        )
