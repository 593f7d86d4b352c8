"""The sample landing folder: the invented business exported in the real formats, with planted oddities."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import zipfile
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

from openpyxl import Workbook

from crm_analytics.core.months import next_month
from crm_analytics.core.settings import settings
from crm_analytics.demo import repair_business as business
from crm_analytics.demo.repair_business import Job, Month, Payment, invent_month, month_before

#: Lists the sample's own files in a folder, with their checksums.
MARKER = ".sample-landing.json"
#: A login page saved as an export: the one file that must be refused.
REFUSED = "calls/sample login page saved as calls export.csv"


def _header(line: str) -> list[str]:
    return line.split(",")


JOB_HEADER = _header(
    "Job #,Client,Tags,Job Type,Job Date,Job End,Primary Phone,Email Address,Status,Tech,Address,City,"
    "Zip Code,Service Area,UUID,Sub-Status,Conversion Date,Total,Converted,Invoiced,Created,"
    "Payment Due Date,Created By,Amount Due,Amount Paid,Cost,Profit,Profit Margin,Company,Tax,"
    "Credit Card Service Fee,Taxable Amount,Tax Rate,Hours,Source,First Name,Last Name,State,"
    "Payment Methods,Appliance,Brand,Model number,Gate code,Notes"
)
PAYMENT_HEADER = _header(
    "Payment ID,Job #,Client,Job Type,Status,Payment Methods,Amount,Date,Source,Tech,Confirmation code,Tip"
)
CALL_HEADER = _header("From,From number,To,To number,Time,Flow,Ad group,Answered,Job,Job ID,Duration")
ELOCALS_HEADER = _header(
    "Unique ID,Time,Duration,Cost,Status,Lead Type,Current Status,Forwarding Number,Caller ID,Caller Name,Profile"
)
PROREF_HEADER = _header("Lead ID,Date,Customer,Category,ZIP,Current Status")
TARGET_HEADER = _header(
    "month,source,segment,target_repairs,target_revenue40,target_conv_l_to_r,target_cpl_max"
)
OFFICE = "(718) 555-0100"


class ForeignFiles(Exception):
    """The folder has files that the sample didn't write. Nothing was changed."""


@dataclass
class LandingSummary:
    """The written files and records by source, the planted oddities, and the files that must be refused."""

    folder: Path
    first_month: date
    last_month: date
    until: date
    files: list[Path] = field(default_factory=list)
    records: Counter[str] = field(default_factory=Counter)
    planted: Counter[str] = field(default_factory=Counter)
    refused: tuple[Path, ...] = ()


def write_landing(folder: Path, months: int = 24, until: date | None = None, seed: int = 7) -> LandingSummary:
    """Writes a sample landing folder and returns what is in it.

    The last of the `months` is the current one, up to the day `until` (business timezone; today by default). Equal
    `until` and `seed` give equal bytes; a later `until` adds files and leaves closed months as they are.

    Raises:
        ForeignFiles: if the folder has files that aren't an unchanged sample with the same seed.
        ValueError: if `months` is less than 1.
    """
    if months < 1:
        raise ValueError(f"months is {months}; it must be at least 1")
    config = settings()
    until = until or datetime.now(config.timezone).date()
    known = _own_files(folder, seed)
    writer = _Writer(folder, months, until, seed, config.timezone)
    writer.write_all()
    known.update({str(path.relative_to(folder)): _checksum(path) for path in writer.summary.files})
    (folder / MARKER).write_text(json.dumps({"seed": seed, "files": known}, indent=1, sort_keys=True))
    return writer.summary


def _own_files(folder: Path, seed: int) -> dict[str, str]:
    """Returns the sample's own files in the folder with their checksums; refuses if there are others."""
    marker = folder / MARKER
    known: dict[str, str] = {}
    if marker.exists():
        stored = json.loads(marker.read_text())
        if stored["seed"] != seed:
            raise ForeignFiles(
                f"{folder} has a sample with seed {stored['seed']}, not {seed}. Two samples in one folder would "
                "contradict each other: choose another folder."
            )
        known = stored["files"]
    present = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()} - {MARKER}
    foreign = sorted(name for name in present if known.get(name) != _checksum(folder / name))
    if foreign:
        more = f" and {len(foreign) - 3} more" if len(foreign) > 3 else ""
        raise ForeignFiles(
            f"{folder} has files that the sample didn't write, or that were changed since: "
            f"{', '.join(foreign[:3])}{more}. Sample and real exports must not mix: choose an empty folder."
        )
    return {name: known[name] for name in present}


def _checksum(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


class _Writer:
    """Exports the business as of the days on which its people exported it."""

    def __init__(self, folder: Path, months: int, until: date, seed: int, timezone: ZoneInfo) -> None:
        last = until.replace(day=1)
        firsts = [last]
        while len(firsts) < months:
            firsts.insert(0, month_before(firsts[0]))
        self.months = [invent_month(first, seed, timezone) for first in firsts]
        self.payments = [payment for month in self.months for payment in month.payments]
        self.until = until
        self.timezone = timezone
        self.summary = LandingSummary(folder, firsts[0], last, until)

    def write_all(self) -> None:
        """Writes every source. Closed months were exported on the day after their end, the current one on `until`."""
        for index, month in enumerate(self.months):
            exported = min(next_month(month.first), self.until)
            self.jobs(self.months[max(0, index - 2) : index + 1], exported)
            self.payments_of(month, exported)
            self.calls(month, exported)
            self.elocals(month, exported)
            self.proref(month, exported)
        self.google_spend()
        self.targets()
        self.refused()

    # -- sources ----------------------------------------------------------------------------------------

    def jobs(self, months: list[Month], exported: date) -> None:
        """Writes the last month and the one before it, newest first, so that every job is exported at least twice."""
        month = months[-1]
        first = months[-2:][0].first
        # `months` has one more month before, because its jobs may have moved
        jobs = [
            job
            for part in months
            for job in part.jobs
            if job.created <= exported and job.created_as_of(exported) >= first
        ]
        jobs.sort(key=lambda job: (job.created_as_of(exported), job.number), reverse=True)
        rows = [_job_row(job, exported) for job in jobs]
        self._plant("moved job", sum(bool(job.moved_on and job.moved_on <= exported) for job in month.jobs))
        if month.first.month % 3 == 1:
            rows.insert(5, rows[4])
            self._plant("job listed twice")
        if month.first.month % 6 == 0:
            rows.insert(7, {**rows[6], "Job #": "", "UUID": ""})
            self._plant("job without id")
        if month.first.month % 6 == 3:
            rows.insert(9, {**rows[8], "Job #": "1", "UUID": "BAD001", "Created": "Tue Feb 30 2024"})
            self._plant("impossible date")
        name = self._timed("jobs/export_export", exported, ".csv")
        self._csv("jobs", name, JOB_HEADER, rows)

    def payments_of(self, month: Month, exported: date) -> None:
        """Writes what was paid in the month for jobs of any month; the current month is a spreadsheet."""
        paid = [
            payment
            for payment in self.payments
            if payment.paid.replace(day=1) == month.first and payment.paid <= exported
        ]
        paid.sort(key=lambda payment: (payment.paid, payment.id))
        rows = [_payment_row(payment) for payment in paid]
        for payment in paid:
            if payment.job and payment.job.created.replace(day=1) < month_before(payment.paid.replace(day=1)):
                self._plant("late payment")
            self._plant("refund", payment.amount < 0)
            self._plant("payment without known job", payment.job is None)
            self._plant("unknown payment status", payment.status == "Settled offline")
        if month is self.months[-1]:
            name = self._timed("payments/payments", exported, ".xlsx")
            self._xlsx("payments", name, PAYMENT_HEADER, [_spreadsheet_row(row) for row in rows])
            return
        bad = {"Payment ID": f"PAY-BAD-{month.first:%Y%m}", "Job #": rows[0]["Job #"], "Status": "Paid"}
        odd: list[tuple[str, list[dict[str, str]]]] = [
            ("payment listed twice", [rows[2]]),
            ("ambiguous amount", [{**bad, "Amount": "1.234,50", "Date": rows[0]["Date"]}]),
            ("amount that isn't a number", [{**bad, "Amount": "NaN", "Date": rows[0]["Date"]}]),
            (
                "conflicting payment",
                [{**bad, "Amount": amount, "Date": rows[0]["Date"]} for amount in ("120.00", "210.00")],
            ),
        ]
        kind, extra = odd[month.first.month % 4]
        rows[3:3] = extra
        self._plant(kind)
        self._csv("payments", self._timed("payments/payments", exported, ".csv"), PAYMENT_HEADER, rows)

    def calls(self, month: Month, exported: date) -> None:
        """Writes the phone system's log, whose times have no year."""
        rows = [
            {
                "From": " ".join(call.job.client) if call.job else "",
                "From number": call.phone,
                "To": "Main line",
                "To number": OFFICE,
                "Time": f"{call.at:%a %b} {_ordinal(call.at.day)}, {call.at:%I:%M%p}",
                "Flow": call.flow,
                "Ad group": "",
                "Answered": call.answered_by,
                "Job": call.job.type if call.job else "",
                "Job ID": call.job.uuid if call.job else "",
                "Duration": f"{call.seconds // 60} Min {call.seconds % 60} Sec",
            }
            for call in sorted(month.calls, key=lambda call: call.at, reverse=True)
            if call.at.date() < exported
        ]
        if month.first.month % 6 == 2 and rows:
            rows.append({**rows[-1], "Time": "sometime in the morning"})
            self._plant("call without a time")
        self._csv("calls", self._timed("calls/calls", exported, ".csv"), CALL_HEADER, rows)

    def elocals(self, month: Month, exported: date) -> None:
        """Writes one file per month, and every third month another one a week later with credits."""
        name = f"leads cost Elocals {month.first:%B %Y}"
        # people also drop files directly into the landing folder
        if month is self.months[-1]:
            self._elocals_file(self._timed(name, exported, ".csv"), month, exported)
            return
        self._elocals_file(f"elocals_leads/{name}.csv", month, exported)
        revised = exported + timedelta(days=6)
        if month.first.month % 3 == 1 and revised <= self.until:
            self._elocals_file(f"elocals_leads/{name} (1).csv", month, revised)
            changed = [lead for lead in month.leads if lead.cost_as_of(revised) != lead.cost_as_of(exported)]
            self._plant("lead credited in a later export", len(changed))

    def _elocals_file(self, name: str, month: Month, exported: date) -> None:
        rows = [
            {
                "Unique ID": lead.id,
                "Time": f"{lead.at:%Y-%m-%d %H:%M:%S %z}",
                "Duration": f"{lead.seconds // 60:02}:{lead.seconds % 60:02}",
                "Cost": f"${lead.cost_as_of(exported)}",
                "Status": "Billed" if lead.cost_as_of(exported) else "Not billed",
                "Lead Type": "Call",
                "Current Status": "",
                "Forwarding Number": OFFICE,
                "Caller ID": lead.phone,
                "Caller Name": lead.name,
                "Profile": "Appliance Repair",
            }
            for lead in sorted(month.leads, key=lambda lead: lead.at)
            if lead.at.date() < exported
        ]
        if month.first.month % 6 == 5 and rows:
            rows.append({**rows[-1], "Unique ID": "1.2E+08"})
            self._plant("id damaged by a spreadsheet")
        self._csv("elocals_leads", name, ELOCALS_HEADER, rows, exported)

    def proref(self, month: Month, exported: date) -> None:
        """Writes one file per month."""
        rows = [
            {
                "Lead ID": referral.id,
                "Date": f"{referral.day:%m/%d/%Y}",
                "Customer": referral.customer,
                "Category": referral.category,
                "ZIP": referral.zip,
                "Current Status": referral.status,
            }
            for referral in month.referrals
            if referral.day <= exported
        ]
        name = f"proref_leads/Pro Referral leads {month.first:%Y-%m}"
        name = self._timed(name, exported, ".csv") if month is self.months[-1] else f"{name}.csv"
        self._csv("proref_leads", name, PROREF_HEADER, rows, exported)

    def google_spend(self) -> None:
        """Writes older months as plain tables by year, and the last six as Google Ads reports."""
        plain, reports = self.months[:-6], self.months[-6:]
        for year in sorted({month.first.year for month in plain}):
            rows = [
                {"Month": f"{month.first:%Y-%m}", "Amount": str(_total(month.spend.values()))}
                for month in plain
                if month.first.year == year
            ]
            exported = next_month(max(month.first for month in plain if month.first.year == year))
            self._csv(
                "google_spend", f"google_spend/google spend {year}.csv", ["Month", "Amount"], rows, exported
            )
        for month in reports:
            current = month is self.months[-1]
            exported = min(next_month(month.first), self.until)
            days = {day: costs for day, costs in month.spend.items() if day <= exported}
            name = f"google_spend/Google Ads campaign report {month.first:%Y-%m}"
            name = self._timed(name, exported, ".csv") if current else f"{name}.csv"
            self._report(name, days, exported, by_day=current)

    def _report(self, name: str, days: dict[date, dict[str, Decimal]], exported: date, by_day: bool) -> None:
        """Writes a Google Ads report: title, date range, header, campaigns (by day in the current month), totals."""
        first, last = min(days), max(days)
        header = ["Campaign", "Campaign status", "Currency code", "Cost", "Impr.", "Clicks"]
        rows: list[dict[str, str]] = []
        campaigns = list(next(iter(days.values())))
        for campaign in campaigns:
            parts = [(day, costs[campaign]) for day, costs in days.items()]
            for day, cost in parts if by_day else [(first, sum((c for _, c in parts), Decimal(0)))]:
                rows.append(_report_row(campaign, cost) | ({"Day": f"{day:%Y-%m-%d}"} if by_day else {}))
        records = len(rows)
        for label in ("Total: Campaigns", "Total: Account"):
            total = _report_row(label, _total(days.values())) | {"Campaign status": "--"}
            rows.append(total | ({"Day": label, "Campaign": "--"} if by_day else {}))
        text = f'Campaign performance report\n"{_long(first)} - {_long(last)}"\n'
        header = ["Day", *header] if by_day else header
        self._file(name, (text + _csv_text(header, rows)).encode(), exported)
        self.summary.records["google_spend"] += records

    def targets(self) -> None:
        """Writes monthly targets for the whole business, and the highest acceptable cost per lead of two channels."""
        rows = []
        first = self.months[0].first
        while first <= self.months[-1].first.replace(month=12):
            repairs = 122 * business.volume(first)
            month = f"{first:%Y-%m}"
            rows.append([month, "ALL", "ALL", f"{repairs:.0f}", f"{repairs * 200:.2f}", "0.4800", "34.00"])
            for source, limit in (("eLocals", "62.00"), ("Google", "60.00")):
                rows.append([month, source, "ALL", "", "", "", limit])
            first = next_month(first)
        named = [dict(zip(TARGET_HEADER, row, strict=True)) for row in rows]
        self._csv("targets", "targets/targets.csv", TARGET_HEADER, named, self.until)

    def refused(self) -> None:
        """Writes what a browser saves when the session has expired."""
        page = (
            "<!DOCTYPE html>\n<html><head><title>Sign in</title></head>\n"
            '<body><form action="/login"><input name="email"></form></body></html>\n'
        )
        self._file(REFUSED, page.encode(), self.until)
        self.summary.refused = (self.summary.folder / REFUSED,)

    # -- files ------------------------------------------------------------------------------------------

    def _plant(self, kind: str, count: int | bool = 1) -> None:
        if count:
            self.summary.planted[kind] += int(count)

    def _timed(self, stem: str, exported: date, suffix: str) -> str:
        """Returns a name with the export's time (UTC), like those of the vendors' export buttons."""
        at = self._export_time(exported)
        return f"{stem}_{at:%Y-%m-%dT%H_%M_%S}.{at.microsecond // 1000:03}Z{suffix}"

    def _export_time(self, exported: date) -> datetime:
        """Returns a time just after midnight of the export's day, so that it is never in the future."""
        local = datetime.combine(exported, time(0, 4, 11, 706000), self.timezone)
        return local.astimezone(UTC)

    def _csv(
        self,
        source: str,
        name: str,
        header: Sequence[str],
        rows: Sequence[dict[str, str]],
        exported: date | None = None,
    ) -> None:
        if rows:
            self._file(name, _csv_text(header, rows).encode(), exported)
            self.summary.records[source] += len(rows)

    def _xlsx(self, source: str, name: str, header: Sequence[str], rows: list[list[Any]]) -> None:
        if rows:
            self._file(name, _workbook([list(header), *rows]), None)
            self.summary.records[source] += len(rows)

    def _file(self, name: str, content: bytes, exported: date | None) -> None:
        """Writes a file. If its name doesn't have the export's time, its modification time does."""
        path = self.summary.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        if exported is not None:
            stamp = self._export_time(exported).timestamp()
            os.utime(path, (stamp, stamp))
        self.summary.files.append(path)


def _csv_text(header: Sequence[str], rows: Iterable[dict[str, str]]) -> str:
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, header, restval="", lineterminator="\r\n")
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()


def _workbook(rows: list[list[Any]]) -> bytes:
    """Returns a workbook with one sheet, whose bytes depend on its cells only."""
    book = Workbook(write_only=True)
    sheet = book.create_sheet("Payments")
    for row in rows:
        sheet.append(row)
    raw, fixed = io.BytesIO(), io.BytesIO()
    book.save(raw)
    with zipfile.ZipFile(raw) as source, zipfile.ZipFile(fixed, "w", zipfile.ZIP_DEFLATED) as target:
        for name in source.namelist():
            # has the time of writing, which no reader needs
            if name != "docProps/core.xml":
                target.writestr(zipfile.ZipInfo(name), _without_core(name, source.read(name)))
    return fixed.getvalue()


def _without_core(name: str, content: bytes) -> bytes:
    """Removes the references to docProps/core.xml from the package's lists."""
    if name not in ("[Content_Types].xml", "_rels/.rels"):
        return content
    text = content.decode()
    start = text.index("docProps/core.xml")
    return (text[: text.rindex("<", 0, start)] + text[text.index("/>", start) + 2 :]).encode()


def _total(days: Iterable[dict[str, Decimal]]) -> Decimal:
    return sum((cost for costs in days for cost in costs.values()), Decimal(0))


def _report_row(campaign: str, cost: Decimal) -> dict[str, str]:
    return {
        "Campaign": campaign,
        "Campaign status": "Enabled",
        "Currency code": "USD",
        "Cost": f"{cost:,.2f}",
        "Impr.": f"{int(cost * 31):,}",
        "Clicks": f"{int(cost / 3):,}",
    }


def _long(day: date) -> str:
    return f"{day:%B} {day.day}, {day.year}"


def _ordinal(number: int) -> str:
    suffix = "th" if 11 <= number <= 13 else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{suffix}"


def _weekday_date(day: date) -> str:
    return f"{day:%a %b %d %Y}"


def _bare(amount: Decimal) -> str:
    """Formats money as the field-service CRM does: 85, 244.6, -95."""
    return format(amount.normalize(), "f")


def _job_row(job: Job, exported: date) -> dict[str, str]:
    created, status = job.created_as_of(exported), job.status_as_of(exported)
    first, last = job.client
    total = job.total if status == "Done" else Decimal(0)
    return {
        "Job #": str(job.number),
        "Client": f"{first} {last}",
        "Job Type": job.type,
        "Job Date": "" if status == "Submitted" else _weekday_date(created + timedelta(days=1)),
        "Job End": "" if status == "Submitted" else _weekday_date(created + timedelta(days=1)),
        "Primary Phone": job.phone,
        "Email Address": f"{first}.{last}.{job.number}@example.com".lower(),
        "Status": status,
        "Tech": job.technician,
        "Address": f"{job.number % 900 + 1} Sample Street\nApt {job.number % 40 + 1}",
        "City": "New York",
        "Zip Code": job.zip,
        "Service Area": "Metro",
        "UUID": job.uuid,
        "Total": _bare(total),
        "Created": _weekday_date(created),
        "Created By": "Olga",
        "Amount Due": "0",
        "Amount Paid": _bare(total),
        "Cost": "0",
        "Tax Rate": "8.875",
        "Source": job.source,
        "First Name": first,
        "Last Name": last,
        "State": "NY",
        "Appliance": job.appliance,
        "Notes": f'{job.appliance} "not working",\ncustomer home after 10' if job.number % 7 == 0 else "",
    }


def _payment_row(payment: Payment) -> dict[str, str]:
    job = payment.job
    # some payment terminals pad the number with zeros
    padded = payment.id.endswith("7")
    return {
        "Payment ID": payment.id,
        "Job #": f"{payment.job_number:08}" if padded else str(payment.job_number),
        "Client": " ".join(job.client) if job else "",
        "Job Type": job.type if job else "",
        "Status": payment.status,
        "Payment Methods": payment.method,
        "Amount": f"{payment.amount:.2f}",
        "Date": _weekday_date(payment.paid),
        "Source": job.source if job else "",
        "Tech": job.technician if job else "",
        "Confirmation code": "",
        "Tip": "",
    }


def _spreadsheet_row(row: dict[str, str]) -> list[Any]:
    """Returns the same row with numbers and dates as a spreadsheet stores them."""
    typed: dict[str, Any] = {
        **row,
        "Job #": int(row["Job #"]),
        "Amount": float(row["Amount"]),
        "Date": datetime.strptime(row["Date"], "%a %b %d %Y"),
    }
    return [typed[name] or None for name in PAYMENT_HEADER]
