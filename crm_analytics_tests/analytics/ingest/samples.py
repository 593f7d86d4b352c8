"""Small invented export files in the real shapes, and helpers that read a whole file."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

from openpyxl import Workbook

from crm_analytics.analytics.ingest.reading.batches import Rejected
from crm_analytics.analytics.ingest.reading.open_file import OpenFile, open_file
from crm_analytics.analytics.ingest.sources.declaration import Source
from crm_analytics.analytics.ingest.sources.registry import SOURCES

NEW_YORK = ZoneInfo("America/New_York")
EXPORTED_AT = datetime(2025, 12, 20, 17, 0, tzinfo=UTC)

JOBS_HEADER = (  # noqa: SIM905  (as the export writes it)
    "Job #,Client,Tags,Job Type,Job Date,Job End,Primary Phone,Email Address,Status,Tech,Address,City,Zip Code,"
    "Service Area,UUID,Sub-Status,Conversion Date,Total,Converted,Invoiced,Created,Payment Due Date,Created By,"
    "Amount Due,Amount Paid,Cost,Profit,Profit Margin,Company,Tax,Credit Card Service Fee,Taxable Amount,Tax Rate,"
    "Hours,Source,First Name,Last Name,State,Payment Methods,Brand,Appliance,Model,Notes,Warranty until"
).split(",")


def jobs_row(**cells: str) -> list[str]:
    """Returns a row under `JOBS_HEADER`; cells by header in lower case (`number`, `uuid` and `type` are short forms)."""
    values = {
        "Job #": "3504",
        "Client": "Ann Example",
        "Job Type": "COD Service",
        "Job Date": "Fri Dec 19 2025",
        "Primary Phone": "(555) 010-0100",
        "Email Address": "ann@example.com",
        "Status": "Done",
        "Tech": "Tess Example",
        "Zip Code": "01234",
        "UUID": "AB12CD",
        "Total": "244.6",
        "Created": "Thu Dec 18 2025",
        "Cost": "12",
        "Source": "Google",
        "Notes": "rings twice,\nthen waits",
    } | {
        {"number": "Job #", "uuid": "UUID", "type": "Job Type"}.get(k, k.title()): v for k, v in cells.items()
    }
    return [values.get(header, "") for header in JOBS_HEADER]


def csv_text(rows: Sequence[Sequence[str]], **options: Any) -> str:
    """Writes rows as CSV text."""
    text = io.StringIO()
    csv.writer(text, **options).writerows(rows)
    return text.getvalue()


SAMPLES: dict[str, str] = {
    "jobs": csv_text(
        [
            JOBS_HEADER,
            jobs_row(),
            jobs_row(number="003505", uuid="12E345", type="INS  Service", total="-95", created="2024-11-15 10:30:00"),
            jobs_row(number="3506", uuid="123456", type="Warranty", source="", total="", notes='a 36" fridge'),
        ]
    ),
    "payments": csv_text(
        [
            ["Payment ID", "Job #", "Client", "Status", "Payment Methods", "Amount", "Date", "Confirmation code"],
            ["P1", "003504", "Ann Example", "paid", "Cash", "100.00", "Fri Dec 19 2025", "C1"],
            ["P2", "3504", "Ann Example", "refunded", "Card", "($20.00)", "12/19/2025 3:05 PM", ""],
            ["P3", "9999", "Bob, Example", "pending", "Check", "$1,234.50", "2025-12-19 15:05:00", "C3"],
        ]
    ),
    "calls": csv_text(
        [
            ["From", "From number", "To", "To number", "Time", "Flow", "Ad group", "Answered", "Job", "Job ID", "Duration"],
            ["Ann", "(555) 010-0100", "Us", "(555) 010-0199", "Wed Dec 17th, 03:21PM", "eLocals", "", "Tess", "", "AB12CD", "3 Min 25 Sec"],
            ["", "(555) 010-0101", "Us", "(555) 010-0199", "Thu Dec 18th, 12:05AM", "", "", "", "", "", "45 Sec"],
        ]
    ),
    "elocals_leads": csv_text(
        [
            ["Unique ID", "Time", "Duration", "Cost", "Status", "Lead Type", "Current Status", "Forwarding Number", "Caller ID", "Caller Name", "Profile"],
            ["E1", "2025-12-05 10:21:17 -0500", "03:25", "65.25", "Billable", "Call", "", "(555) 010-0199", "(555) 010-0100", "Ann", "x"],
            ["E2", "2025-12-05 23:30:00 -0800", "00:25", "$0.00", "Credited", "Call", "", "(555) 010-0199", "(555) 010-0101", "Bob", "x"],
        ]
    ),
    "proref_leads": csv_text(
        [
            ["Lead ID", "Date", "Customer", "Category", "ZIP", "Current Status"],
            ["L1", "12/05/2025", "Ann Example", "Refrigerator", "01234", "Passed"],
            ["L2", "12/06/2025", "Bob Example", "Oven", "01235", ""],
        ]
    ),
    "workiz_leads": csv_text(
        [
            ["Lead #", "Status", "Tags", "Source", "Client", "City", "Job Type", "Created", "Assigned", "Scheduled", "Zip Code", "Service Area", "Converted", "Conversion Date", "UUID"],
            ["0807", "in progress", "", "Pro  Referral", "Ann", "Boston", "COD Service", "Tue Dec 16 2025", "", "", "2420", "North", "0", "", "LAAAA1"],
            ["803", "Passed", "", "", "Bob", "Boston", "Repair", "Sun Dec 14 2025", "Tess", "Mon Dec 15 2025 10:00 AM", "1867", "", "1", "Tue Dec 16 2025", "LAAAA2"],
        ]
    ),
    "google_spend": csv_text(
        [
            ["Campaign report"],
            ["October 1, 2025 - October 31, 2025"],
            ["Campaign", "Campaign status", "Currency code", "Cost", "Impr."],
            ["Fridges", "Enabled", "USD", "2,520.00", "10"],
            ["Ovens", "Paused", "USD", "0.50", "2"],
            ["Total: Campaigns", " --", "USD", "2,520.50", "12"],
            ["Total: Account", " --", "USD", "2,520.50", "12"],
        ]
    ),
    "targets": csv_text(
        [
            ["month", "source", "segment", "target_repairs", "target_revenue40", "target_conv_l_to_r", "target_cpl_max"],
            ["2025-12", "", "", "120", "40000.00", "0.35", "55"],
            ["2025-12", "Google", "cod", "30", "", "", ""],
        ]
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Whole:
    """Everything that reading a file gives."""

    file: OpenFile
    rows: list[dict[str, Any]]
    rejected: list[Rejected]

    @property
    def adds_up(self) -> bool:
        """Returns whether every record read was accepted, rejected, a repeat or a summary line."""
        records = self.file.records
        return (
            records.read == len(self.rows) + len(self.rejected) + records.duplicates + records.summary_lines
        )

    @property
    def reasons(self) -> str:
        """Returns all reasons as text, each with the line of its record."""
        return "\n".join(
            f"line {rejected.as_found.line_no}: {reason}"
            for rejected in self.rejected
            for reason in rejected.reasons
        )


def read(
    path: Path,
    source: str | Source,
    *,
    exported_at: datetime = EXPORTED_AT,
    timezone: ZoneInfo = NEW_YORK,
    export_named: bool = False,
) -> Whole:
    """Opens a file and reads all of it."""
    declared = SOURCES[source] if isinstance(source, str) else source
    file = open_file(path, declared, exported_at=exported_at, timezone=timezone, export_named=export_named)
    batches = file.all_batches()
    whole = Whole(
        file,
        [row for batch in batches for row in batch.rows.to_pylist()],
        [rejected for batch in batches for rejected in batch.rejected],
    )
    assert whole.adds_up
    return whole


def read_text(folder: Path, source: str | Source, content: str | bytes, **options: Any) -> Whole:
    """Writes a file and reads all of it."""
    path = folder / "export.csv"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return read(path, source, **options)


def workbook_bytes(*sheets: Sequence[Sequence[Any]], hidden: Sequence[int] = ()) -> bytes:
    """Writes sheets of cells as an XLSX workbook."""
    workbook = Workbook()
    for number, cells in enumerate(sheets):
        sheet = workbook.create_sheet(f"Sheet {number + 1}")
        for row in cells:
            sheet.append(list(row))
        if number in hidden:
            sheet.sheet_state = "hidden"
    del workbook["Sheet"]
    content = io.BytesIO()
    workbook.save(content)
    return content.getvalue()


def utc(year: int, month: int, day: int, hour: int = 0, minute: int = 0, second: int = 0) -> datetime:
    """Returns a time in UTC."""
    return datetime(year, month, day, hour, minute, second, tzinfo=UTC)


def day(text: str) -> date:
    """Reads a date in ISO form."""
    return date.fromisoformat(text)
