"""Files of another kind than a source's: refused in its folder, unrecognized elsewhere, never loaded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from crm_analytics.analytics.ingest.dry_run import examine
from crm_analytics.analytics.ingest.errors import RefusedFile, UnrecognizedFile
from crm_analytics.analytics.ingest.reading.file_kind import weigh
from crm_analytics.analytics.ingest.reading.source_detection import detect_source
from crm_analytics.analytics.ingest.sources.declaration import Source
from crm_analytics.analytics.ingest.sources.registry import SOURCES
from crm_analytics_tests.analytics.ingest.landing_folder import NEW_YORK, Landing, local_file
from crm_analytics_tests.analytics.ingest.samples import (
    JOBS_HEADER,
    SAMPLES,
    csv_text,
    jobs_row,
    read,
    read_text,
    workbook_bytes,
)


@dataclass(frozen=True)
class Other:
    """An invented file of another kind that has every column that a source needs."""

    id: str
    #: The source for which it could be taken.
    source: str
    #: A name that people would give it.
    name: str
    header: str
    record: str
    #: Its headers by which it is told.
    foreign: str
    #: The source that it is really of; None: of no source.
    really: str | None = None

    @property
    def text(self) -> str:
        return f"{self.header}\n{self.record}\n"


LEADS_HEADER = (
    "Lead #,Status,Tags,Source,Client,Street,City,Job Type,Phone,Created,Assigned,Estimates,Scheduled,Email Address,"
    "Zip Code,Service Area,Converted,Converted Lead total,Conversion Date,Created By,Company,UUID,First Name,Last Name,"
    "State"
)
LEADS_RECORD = (
    "807,in progress,,Pro Referral,Client A,1 Main St,Springfield,COD Service,5550100001,Tue Dec 16 2025,,0,,"
    "a@example.org,2420,North,0,0,,Agent,,LAAAA1,Client,A,Massachusetts"
)
CREATED = "Tue Dec 16 2025"

OTHERS = [
    Other(
        "leads",
        "jobs",
        "Import jobs 2025-12-16T18_06_04.452Z.csv",
        LEADS_HEADER,
        LEADS_RECORD,
        "Lead #, Street, Assigned, Estimates, Converted Lead total",
        really="workiz_leads",
    ),
    Other(
        "leads with a converted job's columns",
        "jobs",
        "jobs and leads.csv",
        f"{LEADS_HEADER},Job #,Job Date,Tech,Total",
        f"{LEADS_RECORD},3504,,Tess,85",
        "Lead #, Street, Assigned, Estimates, Converted Lead total",
        really="workiz_leads",
    ),
    Other(
        "leads with chosen columns",
        "jobs",
        "jobs.csv",
        "Created,Job Type,Source,Status,Assigned,UUID",
        f"{CREATED},COD Service,Google,Open,Tess,LAAAA1",
        "Assigned",
        really="workiz_leads",
    ),
    Other(
        "leads of the API",
        "jobs",
        "all jobs.csv",
        "UUID,LeadDateTime,LeadEndDateTime,CreatedDate,Status,Phone,JobType,JobSource",
        "LAAAA1,2025-12-16 10:00:00,2025-12-16 12:00:00,2025-12-15 09:00:00,Open,5550100001,COD Service,Google",
        "LeadDateTime, LeadEndDateTime",
        really="workiz_leads",
    ),
    Other(
        "invoices",
        "jobs",
        "jobs invoiced.csv",
        "Invoice #,Job #,Client,Status,Job Type,Source,Created,Due Date,Amount Due,Amount Paid,Total,UUID",
        f"I-17,3504,Ann,Paid,COD Repair,Google,{CREATED},{CREATED},0,85,85,IAAAA1",
        "Invoice #, Due Date",
    ),
    Other(
        "estimates",
        "jobs",
        "estimates of jobs.csv",
        "Estimate #,Job #,Client,Primary Phone,Status,Job Type,Source,Created,Total,Tech,UUID",
        f"E-9,3504,Ann,5550100001,Sent,COD Repair,Google,{CREATED},300,Tess,EAAAA1",
        "Estimate #",
    ),
    Other(
        "clients",
        "jobs",
        "job clients.csv",
        "Client ID,Client,Type,Source,Created,Billing Address,Secondary Phone,Last Job,UUID",
        f"C1,Ann,Residential,Google,{CREATED},1 Main St,5550100002,3504,CAAAA1",
        "Client ID, Billing Address, Secondary Phone, Last Job",
    ),
    Other(
        "invoices as payments",
        "payments",
        "payments due.csv",
        "Invoice #,Job #,Client,Status,Date,Due Date,Amount,Balance",
        "I-17,3504,Ann,Overdue,12/16/2025,12/30/2025,85,85",
        "Invoice #, Due Date, Balance",
    ),
    Other(
        "expenses of jobs",
        "payments",
        "payments to suppliers.csv",
        "Date,Job #,Vendor,Expense Category,Amount",
        "12/16/2025,3504,Parts Inc,Parts,40",
        "Vendor, Expense Category",
    ),
    Other(
        "commissions of technicians",
        "payments",
        "payments to technicians.csv",
        "Job #,Tech,Date,Commission,Amount",
        "3504,Tess,12/16/2025,30%,25.50",
        "Commission",
    ),
    Other(
        "phone provider's log",
        "calls",
        "calls.csv",
        "Call ID,Direction,Caller Number,Called Number,Time,Duration,Disposition",
        "1,Inbound,5550100001,5550100199,2025-12-16 10:00:00,00:35,ANSWERED",
        "Call ID, Direction, Disposition",
    ),
    Other(
        "call tracker's log",
        "calls",
        "calls tracked.csv",
        "Call Status,Tracking Number,From number,To number,Call Time,Duration,Keywords,First-Time Caller",
        "Answered,5550100111,5550100001,5550100199,2025-12-16 10:00:00,00:35,fridge repair,Yes",
        "Call Status, Tracking Number, Keywords, First-Time Caller",
    ),
    Other(
        "disputes with the seller of leads",
        "elocals_leads",
        "Elocals credits.csv",
        "Unique ID,Date,Cost,Dispute Date,Dispute Reason",
        "E1,12/05/2025,65.25,12/07/2025,Wrong number",
        "Dispute Date, Dispute Reason",
    ),
    Other(
        "phone bill",
        "elocals_leads",
        "Elocals line.csv",
        "Unique ID,Time,Duration,Cost,Caller ID,Destination,Extension",
        "1,2025-12-05 10:21:17,00:35,0.02,5550100001,5550100199,101",
        "Destination, Extension",
    ),
    Other(
        "another seller's leads",
        "proref_leads",
        "ProReferral and others.csv",
        "Lead ID,Date,Customer,Lead Fee,Current Status",
        "L1,12/05/2025,Ann,25,Open",
        "Lead Fee",
    ),
    Other(
        "search terms report",
        "google_spend",
        "Google Ads search terms.csv",
        "Search terms report\n\"October 1, 2025 - October 31, 2025\"\nSearch term,Match type,Added/Excluded,Campaign,"
        "Ad group,Currency code,Impr.,Cost",
        "fridge repair,Broad,None,Fridges,Repair,USD,10,5.00",
        "Search terms report, Search term, Added/Excluded",
    ),
    Other(
        "other platform's report",
        "google_spend",
        "Google ads and others.csv",
        "Reporting starts,Campaign name,Ad set name,Day,Spend,Reach",
        "2025-10-01,Fridges,Boston,2025-10-01,5.00,100",
        "Reporting starts, Ad set name, Reach",
    ),
    Other(
        "marketing by channel",
        "google_spend",
        "google spend and other channels.csv",
        "Month,Channel,Amount",
        "2025-10,Radio,500",
        "Channel",
    ),
]  # fmt: skip
BY_ID = pytest.mark.parametrize("other", OTHERS, ids=[other.id for other in OTHERS])


def reason(source: Source, foreign: str, own: str = "") -> str:
    """Returns the message, as a person reads it."""
    here = f"; this file has {own}" if own else ""
    examples = ", ".join(source.own_headers[:6])
    return (
        f'"{foreign}": headers of another kind of file; accepted: {source.title}, with more headers that only these'
        f" have ({examples}, …) than of other kinds{here}; if it is another kind of file, take it out of the landing"
        f" folder; otherwise export it with more of its own columns, or without {foreign}"
    )


def own_headers(other: Other) -> str:
    """Returns the headers of the file that only its supposed source has."""
    own = SOURCES[other.source].own_headers
    return ", ".join(cell for line in other.header.split("\n") for cell in line.split(",") if cell in own)


@BY_ID
def test_other_kind_in_the_folder_is_refused(other: Other, landing: Landing) -> None:
    """A person's folder doesn't make one kind of file another; nothing of it is loaded."""
    landing.write(f"{other.source}/export.csv", other.text)
    refused = landing.load_one(other.source)
    assert refused.status == "refused"
    assert refused.message == reason(SOURCES[other.source], other.foreign, own_headers(other))
    source = SOURCES[other.source]
    assert landing.table(source.table) == []


@BY_ID
@pytest.mark.parametrize("named", [True, False], ids=["telling name", "no telling name"])
def test_other_kind_elsewhere_is_not_of_the_source(other: Other, named: bool, landing: Landing) -> None:
    """Neither a telling name nor the columns that it shares with a source make a file one of the source."""
    landing.write(other.name if named else "export_export (23).csv", other.text)
    loaded = {source: [file.status for file in landing.load(source).files] for source in SOURCES}
    assert {source: files for source, files in loaded.items() if files} == (
        {other.really: ["loaded"]} if other.really else {}
    )
    if other.really:
        return
    ((status, message),) = landing.rows("SELECT status, message FROM raw.source_files")
    assert status == "unrecognized"
    assert f'"{other.foreign}": headers of another kind of file' in message


@BY_ID
def test_check_says_the_same(other: Other, tmp_path: Path) -> None:
    """`crm-analytics check` gives the reason before a load does, for a file in the folder and for one anywhere."""
    for folder in (other.source, *(() if other.really else ("Downloads",))):
        path = tmp_path / folder / other.name
        path.parent.mkdir()
        path.write_text(other.text)
        refusal = examine(path, timezone=NEW_YORK).refusal or ""
        assert f'"{other.foreign}": headers of another kind of file' in refusal, folder


#: Lists that have the columns of a source, and nothing that tells that they are an export of it.
NO_EXPORTS = {
    "bank statement.csv": ("Date,Description,Amount", "10/04/2025,COFFEE SHOP,-797.50"),
    "transactions.csv": ("Posting Date,Date,Description,Amount,Balance", "10/04/2025,10/04/2025,RENT,-900,100"),
    "card.csv": ("Transaction Date,Date,Merchant,Category,Amount", "10/04/2025,10/04/2025,Parts Inc,Parts,40"),
    "budget.csv": ("Month,Amount", "2025-10,1350.40"),
    "campaign report.csv": ("Month,Campaign,Amount", "2025-10,Radio,500"),
    "mileage.csv": ("Date,Cost,Vehicle", "10/04/2025,12.50,Van 2"),
    "purchases.csv": ("Lead ID,Date,Cost", "L-7,10/04/2025,65"),
    "inventory.csv": ("Unique ID,Created,Cost,Item", "A1,10/04/2025,19.90,Valve"),
    "applicants.csv": ("Lead ID,Date,Name,Current Status", "L-7,10/04/2025,Ann,Hired"),
    "phones.csv": ("Caller number,Called number,Time,Duration", "5550100001,5550100199,2025-10-04 10:00:00,00:35"),
    "work orders.csv": ("UUID,Type,Source,Created", "AB12CD,Inspection,Web,10/04/2025"),
    "refunds.csv": ("Job ID,Date,Amount", "3504,10/04/2025,20"),
    "facebook spend.csv": ("Day,Campaign name,Spend", "2025-10-04,Fridges,5.00"),
}  # fmt: skip


@pytest.mark.parametrize("name", NO_EXPORTS)
def test_lists_that_tell_nothing_are_unrecognized(name: str, landing: Landing) -> None:
    """Columns that any list may have don't make a file an export: it is loaded nowhere, and the message says why."""
    header, record = NO_EXPORTS[name]
    landing.write(name, f"{header}\n{record}\n")
    for source in SOURCES:
        assert landing.load(source).files == []
        assert landing.table(SOURCES[source].table) == []
    ((status, message),) = landing.rows("SELECT status, message FROM raw.source_files")
    assert status == "unrecognized"
    first_row = header.replace(",", " | ")
    unknown = (
        f'"{first_row}": neither name nor header tells the source; accepted: a name that tells the source'
    )
    folders = f"; move it into the folder of its source ({', '.join(SOURCES)})"
    assert (message.startswith(unknown) and message.endswith(folders)) or (
        ": headers of another kind of file; accepted: " in message
    )


def test_reasons_of_the_three_lists(landing: Landing) -> None:
    """The whole messages: of a bank statement, of leads that could be anyone's, and of amounts by month."""
    for name in ("bank statement.csv", "purchases.csv", "budget.csv"):
        landing.write(name, "\n".join(NO_EXPORTS[name]) + "\n")
    landing.load("jobs")
    messages = dict(landing.rows("SELECT path, message FROM raw.source_files"))
    folders = ", ".join(SOURCES)
    assert messages == {
        "bank statement.csv": reason(SOURCES["google_spend"], "Description"),
        "purchases.csv": '"Lead ID | Date | Cost": neither name nor header tells the source; accepted: a name that tells'
        " the source, or headers that only leads bought from eLocals have; the columns alone could be any list's; move it into"
        f" the folder of its source ({folders})",
        "budget.csv": '"Month | Amount": neither name nor header tells the source; accepted: a name that tells the'
        " source, or headers that only Google Ads spend have; the columns alone could be any list's; move it into the folder of"
        f" its source ({folders})",
    }


@pytest.mark.parametrize(
    ("path", "header", "record"),
    [
        ("elocals_leads/purchases.csv", "Lead ID,Date,Cost", "L-7,10/04/2025,65"),
        ("Elocals October.csv", "Lead ID,Date,Cost", "L-7,10/04/2025,65"),
        ("google_spend/2025.csv", "Month,Amount", "2025-10,1350.40"),
        ("Google spend 2025.csv", "Month,Amount", "2025-10,1350.40"),
        ("proref_leads/l.csv", "Lead ID,Date,Current Status", "L-7,10/04/2025,Open"),
        ("calls/c.csv", "Caller number,Called number,Time,Duration", "1,2,2025-10-04 10:00:00,00:35"),
        ("jobs/j.csv", "UUID,Type,Source,Created", "AB12CD,COD Service,Google,10/04/2025"),
        ("payments/p.csv", "Job ID,Date,Amount", "3504,10/04/2025,20"),
    ],
)
def test_bare_columns_are_enough_where_a_person_says_what_they_are(
    path: str, header: str, record: str, landing: Landing
) -> None:
    """A file without any own or foreign header is loaded if its folder or name identifies it."""
    landing.write(path, f"{header}\n{record}\n")
    results = [landing.load(source) for source in SOURCES]
    assert [file.status for result in results for file in result.files] == ["loaded"]
    assert sum(result.totals.inserted for result in results) == 1


CUSTOM = [
    "Lead #",
    "Street",
    "Phone",
    "Assigned",
    "Estimates",
    "Estimate #",
    "Invoice #",
    "Due Date",
    "Client ID",
]


@pytest.mark.parametrize("custom", CUSTOM)
def test_custom_column_refuses_no_jobs(custom: str, tmp_path: Path) -> None:
    """Accounts add columns of their own; one that another kind of file has too refuses no real export."""
    wide = csv_text([[*JOBS_HEADER, custom], [*jobs_row(), "x"]])
    assert len(read_text(tmp_path, "jobs", wide).rows) == 1
    assert detect_source(local_file(tmp_path / "export.csv", tmp_path)).name == "jobs"
    narrow = f"Job #,Job Type,Source,Created,{custom}\n3504,COD Service,Google,{CREATED},x\n"
    assert len(read_text(tmp_path, "jobs", narrow).rows) == 1


def test_all_these_custom_columns_refuse_no_jobs(tmp_path: Path) -> None:
    """Seven such columns at once are still outweighed by what only an export of jobs has."""
    text = csv_text([[*JOBS_HEADER, *CUSTOM[:7]], [*jobs_row(), *CUSTOM[:7]]])
    assert len(read_text(tmp_path, "jobs", text).rows) == 1


@pytest.mark.parametrize("source", SOURCES)
def test_custom_columns_refuse_no_export(source: str) -> None:
    """Each source's export identifies itself in spite of any one header of another kind."""
    lines = SAMPLES[source].splitlines()
    number = next(n for n, line in enumerate(lines) if line.count(",") >= 4)
    for foreign in SOURCES[source].foreign_headers:
        lines_with = [*lines[:number], f"{lines[number]},{foreign}"]
        evidence = weigh(SOURCES[source], [line.split(",") for line in lines_with])
        assert evidence.identifies, foreign


@pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES)
def test_lists_of_headers_do_not_contradict(source: Source) -> None:
    """A header that the source accepts isn't foreign, and none is both own and foreign."""
    assert not source.folded_foreign & source.owners.keys()
    assert not source.folded_foreign & source.folded_own
    assert source.own_headers


def test_header_that_comes_first_decides_between_equals(tmp_path: Path) -> None:
    """Exports begin with what their rows are: estimates of jobs are told from jobs with an estimate."""
    rest = "Job Type,Source,Created,UUID\n1,2,COD Service,Google,Tue Dec 16 2025,AB12CD\n"
    assert len(read_text(tmp_path, "jobs", f"Job #,Estimate #,{rest}").rows) == 1
    with pytest.raises(
        RefusedFile, match=r'"Estimate #": headers of another kind of file; .*; this file has Job #'
    ):
        read_text(tmp_path, "jobs", f"Estimate #,Job #,{rest}")


def test_sheet_of_another_kind_is_passed_over(tmp_path: Path) -> None:
    """A workbook's sheet of invoices doesn't hide its sheet of jobs."""
    (invoices,) = [other for other in OTHERS if other.id == "invoices"]
    sheet = [invoices.header.split(","), invoices.record.split(",")]
    both, only_invoices = tmp_path / "Book1.xlsx", tmp_path / "Book2.xlsx"
    both.write_bytes(workbook_bytes(sheet, [JOBS_HEADER, jobs_row()]))
    only_invoices.write_bytes(workbook_bytes(sheet))
    assert [row["job_id"] for row in read(both, "jobs").rows] == ["AB12CD"]
    assert detect_source(local_file(both, tmp_path)).name == "jobs"
    with pytest.raises(UnrecognizedFile, match="headers of another kind of file"):
        detect_source(local_file(only_invoices, tmp_path))


def test_sheets_of_two_sources_need_a_folder(tmp_path: Path) -> None:
    """A workbook with leads and jobs is both; the folder tells which of them is meant."""
    book = tmp_path / "Book1.xlsx"
    leads = [LEADS_HEADER.split(","), LEADS_RECORD.split(",")]
    book.write_bytes(workbook_bytes(leads, [JOBS_HEADER, jobs_row()]))
    with pytest.raises(UnrecognizedFile, match='"jobs, workiz_leads": header fits several sources'):
        detect_source(local_file(book, tmp_path))
    assert [row["job_id"] for row in read(book, "jobs").rows] == ["AB12CD"]
    assert [row["lead_id"] for row in read(book, "workiz_leads").rows] == ["LAAAA1"]
