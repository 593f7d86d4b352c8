"""Leads of the field-service CRM: the export of its lead list, or what its API returns."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

from crm_analytics.analytics.ingest.sources.declaration import (
    Column,
    Columns,
    Derived,
    Expectation,
    FileFacts,
    Key,
    Source,
)
from crm_analytics.analytics.ingest.sources.other_kinds import CLIENTS, ESTIMATES, EXPENSES, INVOICES
from crm_analytics.analytics.ingest.values.column_types import Identifier, JobNumber, Label, Text, When

_NOT_CONVERTED = pa.array(["0", "no", "false"])


def _tell_converted(columns: Columns, length: int, facts: FileFacts) -> Derived:
    """Stages whether a lead became a job: the cell has a number, yes, no or nothing. Without the column it is unknown."""
    if "converted" in columns:
        given = columns["converted"]
        no = pc.is_in(pc.utf8_lower(given), value_set=_NOT_CONVERTED)
        columns["converted"] = pc.and_(pc.is_valid(given), pc.invert(no))
    return Derived(columns)


WORKIZ_LEADS = Source(
    name="workiz_leads",
    version=1,
    table="raw.workiz_leads",
    title="leads of the field-service CRM",
    description=(
        "Leads of the field-service system. They change no metric, unless a channel has the rule workiz_leads."
    ),
    columns=(
        Column("lead_id", Identifier(), ("UUID", "Lead UUID"), required=True, not_null=True),
        Column("lead_number", JobNumber(), ("Lead #", "Lead Number", "SerialId"), replaceable=True),
        Column(
            "created_at",
            When(),
            ("Created", "CreatedDate", "Created At"),
            required=True,
            not_null=True,
            date_as="lead_date",
        ),
        Column("status", Text(), ("Status", "Lead Status"), required=True),
        Column("source", Label(), ("Source", "JobSource", "Lead Source", "Ad Source"), required=True),
        Column("job_type", Label(), ("Job Type", "JobType", "Lead Type", "Type")),
        Column("scheduled_at", When(), ("Scheduled", "LeadDateTime", "Lead Date")),
        # the API has a list of people
        Column("assigned", Text(), ("Assigned", "Assigned To", "Team"), personal=True),
        # the API has neither of the two
        Column("converted", Text(), ("Converted",), sql_type="boolean", replaceable=True),
        Column("converted_at", When(), ("Conversion Date",), replaceable=True),
        Column("zip", Text(), ("Zip Code", "ZIP", "Postal Code")),
        Column("service_area", Text(), ("Service Area",)),
    ),
    key=Key("lead", ("lead_id",)),
    date_column="lead_date",
    filename_patterns=(r"workiz leads?\b", r"\bimport leads?\b"),
    derive=_tell_converted,
    own_headers=(
        *("Lead #", "Lead Number", "LeadDateTime", "LeadEndDateTime", "Assigned", "Estimates"),
        "Converted Lead total",
    ),
    # the same tool's other exports have a UUID, type, source, status and date, too
    foreign_headers=(
        *("Job #", "Job Number", "Job Date", "Job End", "Job Status", "JobDateTime", "JobEndDateTime"),
        *("JobTotalPrice", "JobAmountDue", "Invoiced", "Profit", "Profit Margin"),
        *("Cost", "Call Cost", "Lead Price", "Lead Fee", "Current Status", "Caller ID", "Lead Score"),
        *("Payment ID", "Payment Date", "Transaction ID", "Unique ID", "Call ID"),
        *(*INVOICES, *ESTIMATES, *CLIENTS, *EXPENSES),
    ),
    # some weeks bring few leads
    expectation=Expectation(7, 14),
)
