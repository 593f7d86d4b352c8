"""Jobs of the field-service CRM: the export of its job list, or what its API returns."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

from crm_analytics.analytics.ingest.errors import Reason
from crm_analytics.analytics.ingest.sources.declaration import (
    Column,
    Columns,
    Derived,
    FileFacts,
    Key,
    Source,
    rows_where,
)
from crm_analytics.analytics.ingest.sources.other_kinds import CLIENTS, ESTIMATES, EXPENSES, INVOICES, LEADS
from crm_analytics.analytics.ingest.values.column_types import Identifier, JobNumber, Label, Money, Text, When


def _require_key(columns: Columns, length: int, facts: FileFacts) -> Derived:
    """Refuses records without a key: the id where the file has ids, otherwise the number."""
    key = "job_id" if "job_id" in columns else "job_number"
    missing = pc.is_null(columns.get(key, pa.nulls(length, pa.string())))
    reason = Reason("blank", accepted="the job's id")
    return Derived(columns, dict.fromkeys(rows_where(missing), (key, reason)))


JOBS = Source(
    name="jobs",
    version=1,
    table="raw.jobs",
    title="jobs of the field-service CRM",
    description=(
        "Jobs of the field-service system. Segment, unit and repair follow from the type; the date is the day of creation."
    ),
    columns=(
        Column("job_id", Identifier(), ("UUID", "Job UUID"), replaceable=True),
        Column("job_number", JobNumber(), ("Job #", "Job Number", "SerialId"), replaceable=True),
        Column("type", Label(), ("Job Type", "JobType", "Type"), required=True),
        Column("source", Label(), ("Source", "JobSource", "Lead Source", "Ad Source"), required=True),
        Column("status", Text(), ("Status", "Job Status")),
        Column(
            "created_at",
            When(),
            ("Created", "CreatedDate", "Created At"),
            required=True,
            not_null=True,
            date_as="job_date",
        ),
        Column("scheduled_at", When(), ("Job Date", "JobDateTime", "Scheduled")),
        Column("ended_at", When(), ("Job End", "JobEndDateTime")),
        # the API has a list of people
        Column("technician", Text(), ("Tech", "Technician", "Team"), personal=True),
        Column("zip", Text(), ("Zip Code", "ZIP", "Postal Code")),
        Column("total", Money(), ("Total", "JobTotalPrice")),
    ),
    key=Key("job", ("job_id",), alternate="job_number"),
    date_column="job_date",
    filename_patterns=(r"\bjobs?\b",),
    derive=_require_key,
    needs_one_of=(("job_id", "job_number"),),
    # leads of the API have a SerialId and a SubStatus, too
    own_headers=(
        *("Job #", "Job Date", "Job End", "Invoiced", "Profit", "Profit Margin", "Job Status", "Job Number"),
        *("JobDateTime", "JobEndDateTime", "JobTotalPrice", "JobAmountDue"),
    ),
    # the same tool's other exports have a UUID, type, source, status and date, too, and often the number of the job
    foreign_headers=(
        *(*LEADS, "Lead ID", "Street", "Assigned"),
        *(*INVOICES, *ESTIMATES, *CLIENTS, *EXPENSES),
        *("Payment ID", "Payment Date", "Transaction ID", "Confirmation code", "Unique ID", "Call ID"),
    ),
    second_choice={"jobid": "job_number"},
    summed="total",
    lock="SELECT raw.lock_links()",
)
