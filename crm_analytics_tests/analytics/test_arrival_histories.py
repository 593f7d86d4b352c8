"""Random exports as real files, arriving in any order: tables and metrics are what the files say in export order."""

from __future__ import annotations

import csv
import io
import itertools
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crm_analytics.analytics.ingest.loading.load import load_source
from crm_analytics.analytics.ingest.storage.places import Place
from crm_analytics_tests.analytics import reference_model
from crm_analytics_tests.analytics import test_correction_histories as corrections
from crm_analytics_tests.analytics.model_comparison import (
    assert_every_way_agrees,
    assert_metrics,
    refresh_stale,
)
from crm_analytics_tests.analytics.reference_model import (
    Call,
    ElocalsLead,
    ExportFile,
    Job,
    ProrefLead,
    Spend,
    WorkizLead,
    table_after,
)
from crm_analytics_tests.analytics.test_correction_histories import FIRST, LAST, Model, PaymentRow, Step
from crm_analytics_tests.chance import examples
from crm_analytics_tests.object_storage import Prefix

NEW_YORK = ZoneInfo("America/New_York")
EXPORTED = [datetime(2025, 2, day, 13, 58, 55, 706000, tzinfo=UTC) for day in (3, 9, 16)]
EXPORTED.append(datetime(2025, 1, 20, 4, 30, tzinfo=UTC))  # inside January: its spend is month to date


# -- records: what a file says, how it says it, and what the reference model takes ---------------------------


@dataclass(frozen=True)
class Line:
    """One record as written, and what the reference model takes from it: None where it must be quarantined."""

    cells: tuple[tuple[str, str], ...]
    says: Any


@dataclass(frozen=True)
class Written:
    """One file: its place, the time of its export, its lines."""

    source: str
    name: str
    exported_at: datetime
    lines: tuple[Line, ...]

    @property
    def path(self) -> str:
        return f"{self.source}/{self.name}_{self.exported_at:%Y-%m-%dT%H_%M_%S}.706Z.csv"

    def text(self) -> str:
        buffer = io.StringIO()
        writer = csv.DictWriter(buffer, [name for name, _ in self.lines[0].cells])
        writer.writeheader()
        writer.writerows(dict(line.cells) for line in self.lines)
        return buffer.getvalue()

    def export(self) -> ExportFile[Any]:
        return ExportFile(
            self.exported_at, self.path, tuple(line.says for line in self.lines if line.says is not None)
        )


def tidy(text: str | None) -> str | None:
    """Returns a label as the raw tables have it."""
    return " ".join(text.split()) or None if text else None


def weekday_date(day: date) -> str:
    return f"{day:%a %b %d %Y}"


def job_line(job: Job, padded: bool, bad: bool) -> Line:
    number = job.job_number or ""
    cells = {
        "Job #": f"{number:0>6}" if padded and number else number,
        "UUID": job.job_id,
        "Job Type": job.type or "",
        "Source": job.source or "",
        "Status": job.status or "",
        "Created": "Mon Feb 30 2024" if bad else weekday_date(job.job_date),
    }
    kept = Job(job.job_id, job.job_number, tidy(job.type), tidy(job.source), job.status, job.job_date)
    return Line(tuple(cells.items()), None if bad else kept)


def payment_line(row: PaymentRow, style: int, bad: bool) -> Line:
    amount = [f"{row.amount}", f"${abs(row.amount):,}", f"{abs(row.amount)}"][style]
    if style and row.amount < 0:
        amount = f"({amount})" if style == 1 else f"{amount}-"
    cells = {
        "Payment ID": row.payment_id,
        "Job #": f"{row.number:0>5}" if style and row.number else row.number or "",
        "Job UUID": row.uuid or "",
        "Status": row.status or "",
        "Amount": "1.234,50" if bad else amount,
        "Date": weekday_date(row.paid_date),
    }
    status = (row.status or "").strip() or None
    kept = PaymentRow(row.payment_id, row.uuid, row.number, row.paid_date, row.amount, status)
    return Line(tuple(cells.items()), None if bad else kept)


def call_line(caller: str, day: date, flow: str | None, minute: int, seconds: int, bad: bool) -> Line:
    suffix = {1: "st", 2: "nd", 3: "rd"}.get(day.day % 10, "th") if day.day not in (11, 12, 13) else "th"
    at = f"{day:%a %b} {day.day}{suffix}, 03:{minute:02}PM"
    cells = {
        "From": "", "From number": caller, "To": "", "To number": "(718) 555-0100", "Time": "noon" if bad else at,
        "Flow": flow or "", "Answered": "Rita", "Job": "", "Duration": f"{seconds} Sec",
    }  # fmt: skip
    says = ((caller, day, minute), seconds, Call(day, tidy(flow)))
    return Line(tuple(cells.items()), None if bad else says)


def elocals_line(lead_id: str, day: date, cost: Decimal | None, bad: bool) -> Line:
    at = datetime(day.year, day.month, day.day, 21, 30, tzinfo=NEW_YORK)  # next day in UTC
    shown = "" if cost is None else f"${cost}" if cost >= 0 else f"-${-cost}"
    cells = {"Unique ID": lead_id, "Time": f"{at:%Y-%m-%d %H:%M:%S %z}", "Duration": "02:10",
             "Cost": "NaN" if bad else shown, "Status": "", "Caller ID": "(212) 555-0101"}  # fmt: skip
    return Line(tuple(cells.items()), None if bad else ElocalsLead(lead_id, day, cost))


def proref_line(lead_id: str, day: date, status: str | None, bad: bool) -> Line:
    cells = {
        "Lead ID": lead_id,
        "Date": "13/45/2024" if bad else f"{day:%m/%d/%Y}",
        "Current Status": status or "",
    }
    kept = ProrefLead(lead_id, day, (status or "").strip() or None)
    return Line(tuple(cells.items()), None if bad else kept)


def workiz_line(lead_id: str, day: date, status: str | None, source: str | None, bad: bool) -> Line:
    cells = {
        "Lead #": f"00{ord(lead_id)}",
        "Status": status or "",
        "Source": source or "",
        "Created": "Someday" if bad else f"{day:%a %b %d %Y}",
        "Converted": "0",
        "UUID": lead_id,
    }
    return Line(tuple(cells.items()), None if bad else WorkizLead(lead_id, day, tidy(status), tidy(source)))


rarely = st.sampled_from([False] * 7 + [True])
job_lines = st.builds(job_line, corrections.jobs, st.booleans(), rarely)
payment_lines = st.builds(payment_line, corrections.payments, st.integers(0, 2), rarely)
call_lines = st.builds(
    call_line, st.sampled_from(["(212) 555-0101", "(212) 555-0102"]), corrections.days,
    st.sampled_from(["eLocals", "GoogleAds", "Forward to Dispatch", None]), st.sampled_from([5, 6]),
    st.sampled_from([205, 45]), rarely,
)  # fmt: skip
elocals_lines = st.builds(elocals_line, st.sampled_from("abcd"), corrections.days, corrections.costs, rarely)
proref_lines = st.builds(
    proref_line,
    st.sampled_from("abcd"),
    corrections.days,
    st.sampled_from(["Accepted", "PASSED", None]),
    rarely,
)


workiz_lines = st.builds(
    workiz_line,
    st.sampled_from("abcd"),
    corrections.days,
    st.sampled_from(["Open", "PASSED", None]),
    st.sampled_from(corrections.SOURCES),
    rarely,
)


@st.composite
def spend_files(draw: st.DrawFn) -> Written:
    exported_at = draw(st.sampled_from(EXPORTED))
    keys = draw(
        st.sets(
            st.tuples(
                st.sampled_from([FIRST, date(2024, 11, 1), LAST]), st.sampled_from(["Brand", "Search"])
            ),
            min_size=1,
        )
    )
    lines = []
    for month, campaign in sorted(keys):
        amount = draw(st.sampled_from([Decimal("310.00"), Decimal("0.01"), Decimal("1234.56")]))
        covered = reference_model.covered_to(month, exported_at.astimezone(NEW_YORK).date())
        cells = {"Month": f"{month:%Y-%m}", "Amount": f"{amount:,}", "Campaign": campaign}
        lines.append(Line(tuple(cells.items()), Spend(month, campaign, amount, covered)))
    return Written("google_spend", draw(st.sampled_from("abc")), exported_at, tuple(lines))


def files_of(source: str, lines: st.SearchStrategy[Line], size: int) -> st.SearchStrategy[Written]:
    repeated = st.lists(lines, min_size=2, max_size=size).map(lambda found: (*found, found[0]))
    several = st.one_of(st.lists(lines, min_size=2, max_size=size).map(tuple), repeated)
    times = EXPORTED[:3] if source == "calls" else EXPORTED  # calls have no year: none is after its export
    return st.builds(Written, st.just(source), st.sampled_from("abc"), st.sampled_from(times), several)


@st.composite
def arrivals(draw: st.DrawFn) -> list[Written]:
    """Draws files of all sources in any order; some contents are exported again, byte for byte."""
    files = [
        *draw(st.lists(files_of("jobs", job_lines, 5), min_size=2, max_size=4)),
        *draw(st.lists(files_of("payments", payment_lines, 7), min_size=2, max_size=4)),
        *draw(st.lists(files_of("calls", call_lines, 4), max_size=2)),
        *draw(st.lists(files_of("elocals_leads", elocals_lines, 4), min_size=1, max_size=3)),
        *draw(st.lists(files_of("proref_leads", proref_lines, 4), max_size=2)),
        *draw(st.lists(files_of("workiz_leads", workiz_lines, 4), max_size=2)),
        *draw(st.lists(spend_files(), min_size=1, max_size=3)),
    ]
    for copied in draw(st.lists(st.sampled_from(files), max_size=3)):
        if copied.source not in ("calls", "google_spend"):  # whose meaning depends on the export's date
            files.append(replace(copied, name="d", exported_at=draw(st.sampled_from(EXPORTED))))
    return draw(st.permutations(list({file.path: file for file in files}.values())))


# -- what the reference model makes of the files ---------------------------------------------------------------------


def with_occurrence(file: ExportFile[Any]) -> ExportFile[Any]:
    """Gives calls a key, since they have no id: numbers and minute, and their place among the calls of that minute.

    Those count by duration, and then in the order of the file.
    """
    seen: Counter[Any] = Counter()
    rows = []
    for basis, _, call in sorted(file.rows, key=lambda row: row[1]):
        seen[basis] += 1
        rows.append(((basis, seen[basis]), call))
    return ExportFile(file.exported_at, file.path, tuple(rows))


def model_of(files: list[Written]) -> Model:
    exports = {
        source: [file.export() for file in files if file.source == source]
        for source in (
            "jobs",
            "payments",
            "calls",
            "elocals_leads",
            "proref_leads",
            "workiz_leads",
            "google_spend",
        )
    }
    calls = table_after(map(with_occurrence, exports["calls"]), lambda row: row[0])
    tables: dict[str, Any] = {
        "jobs": table_after(exports["jobs"], lambda row: row.job_id),
        "payments": table_after(exports["payments"], lambda row: row.payment_id),
        "calls": {str(key): row[1] for key, row in calls.items()},
        "elocals": table_after(exports["elocals_leads"], lambda row: row.lead_id),
        "proref": table_after(exports["proref_leads"], lambda row: row.lead_id),
        "workiz": table_after(exports["workiz_leads"], lambda row: row.lead_id),
        "spend": reference_model.spend_after(exports["google_spend"]),
    }
    return Model(**tables)


def assert_raw(connection: psycopg.Connection[Any], model: Model) -> None:
    """Asserts that every raw table holds exactly what the files say, with payments linked to the jobs they mean."""

    def rows(statement: str) -> Counter[Any]:
        return Counter(connection.execute(statement).fetchall())

    warehouse = model.warehouse()
    assert rows("SELECT job_id, job_number, type, source, status, job_date FROM raw.jobs") == Counter(
        (j.job_id, j.job_number, j.type, j.source, j.status, j.job_date) for j in warehouse.jobs
    )
    assert rows("SELECT payment_id, job_id, paid_date, amount, status FROM raw.payments") == Counter(
        (p.payment_id, p.job_id, p.paid_date, p.amount, p.status) for p in warehouse.payments
    )
    assert rows("SELECT call_date, flow FROM raw.calls") == Counter(
        (c.call_date, c.flow) for c in warehouse.calls
    )
    assert rows("SELECT lead_id, lead_date, cost FROM raw.elocals_leads") == Counter(
        (lead.lead_id, lead.lead_date, lead.cost) for lead in warehouse.elocals_leads
    )
    assert rows("SELECT lead_id, lead_date, current_status FROM raw.proref_leads") == Counter(
        (lead.lead_id, lead.lead_date, lead.current_status) for lead in warehouse.proref_leads
    )
    assert rows("SELECT lead_id, lead_date, status, source FROM raw.workiz_leads") == Counter(
        (lead.lead_id, lead.lead_date, lead.status, lead.source) for lead in warehouse.workiz_leads
    )
    assert rows("SELECT month, campaign, amount, covered_to FROM raw.google_spend") == Counter(
        (s.month, s.campaign, s.amount, s.covered_to) for s in warehouse.google_spend
    )


numbers = itertools.count(1)


@pytest.fixture(scope="module")
def connection(new_database: Callable[..., str]) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(new_database("analytics"), autocommit=True) as opened:
        yield opened


#: Puts a file into a landing folder: its path below it, and its text.
Put = Callable[[str, str], None]


def into(folder: Path) -> Put:
    def put(name: str, content: str) -> None:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, newline="")

    return put


def load(connection: psycopg.Connection[Any], landing: Place, put: Put, file: Written) -> None:
    put(file.path, file.text())
    result = load_source(connection, landing, file.source, timezone=NEW_YORK)
    ((found, status),) = [(done.path, done.status) for done in result.files]
    assert found == file.path
    assert status in ("loaded", "same_content"), result.files


def assert_history(
    connection: psycopg.Connection[Any],
    landing: Place,
    put: Put,
    files: list[Written],
    pauses: list[bool],
    by_hand: list[Step],
) -> None:
    """Loads the files as they come, makes the corrections, and compares tables and metrics with the reference model."""
    corrections.empty(connection)
    connection.execute("TRUNCATE raw.source_files, raw.rejected_rows, raw.vanished_rows")
    for file, pause in zip(files, pauses, strict=False):
        load(connection, landing, put, file)
        if pause:
            refresh_stale(connection)
    model = model_of(files)
    assert_raw(connection, model)
    refresh_stale(connection)
    assert_metrics(connection, model.warehouse())
    for step in by_hand:
        step(connection, model)
    assert_every_way_agrees(connection, model.warehouse(), FIRST, LAST)


histories = given(
    files=arrivals(),
    pauses=st.lists(st.booleans(), min_size=20, max_size=20),
    by_hand=st.lists(st.one_of(corrections.local_steps, corrections.global_steps), max_size=4),
)


@examples(14, shrink=False)
@histories
def test_files_in_any_order_and_corrections_give_the_reference_tables(
    connection: psycopg.Connection[Any],
    tmp_path_factory: pytest.TempPathFactory,
    files: list[Written],
    pauses: list[bool],
    by_hand: list[Step],
) -> None:
    """Late, repeated, conflicting and damaged exports give the same tables as if all had come in their turn."""
    landing = tmp_path_factory.mktemp("landing")
    assert_history(connection, landing, into(landing), files, pauses, by_hand)


@examples(6, shrink=False)
@histories
def test_the_same_histories_in_object_storage(
    connection: psycopg.Connection[Any],
    object_storage: str,
    files: list[Written],
    pauses: list[bool],
    by_hand: list[Step],
) -> None:
    """Where the files are changes nothing: late ones are placed, and newer ones read again, from a bucket, too."""
    prefix = Prefix(object_storage, f"history {next(numbers)}")
    assert_history(connection, prefix.landing(), prefix.write, files, pauses, by_hand)
