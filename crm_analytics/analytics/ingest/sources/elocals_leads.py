"""Leads bought from eLocals, with what each one cost."""

from __future__ import annotations

from crm_analytics.analytics.ingest.sources.declaration import Column, Expectation, Key, Source
from crm_analytics.analytics.ingest.sources.other_kinds import (
    ESTIMATES,
    EXPENSES,
    INVOICES,
    LEADS,
    PHONE_LOGS,
)
from crm_analytics.analytics.ingest.values.column_types import Dollars, Identifier, Money, Text, When

ELOCALS_LEADS = Source(
    name="elocals_leads",
    version=1,
    table="raw.elocals_leads",
    title="leads bought from eLocals",
    description="Leads bought from eLocals, with their cost; credits come in later exports.",
    columns=(
        Column("lead_id", Identifier(), ("Unique ID", "Call ID", "Lead ID"), required=True, not_null=True),
        Column(
            "lead_at",
            When(),
            ("Time", "Call Date Time", "Date", "Created"),
            required=True,
            not_null=True,
            date_as="lead_date",
        ),
        Column("cost", Money(), ("Cost", "Call Cost", "Lead Price"), required=True),
        Column("status", Text(), ("Status",)),
        Column("currency", Dollars(), ("Currency", "Currency code"), staged=False),
        Column("caller_number", Text(), ("Caller ID", "Caller Number", "Caller Phone"), personal=True),
    ),
    key=Key("lead", ("lead_id",)),
    date_column="lead_date",
    filename_patterns=(r"elocals?",),
    own_headers=("Caller ID", "Caller Name", "Forwarding Number", "Lead Type", "Profile"),
    foreign_headers=(
        *(*LEADS, "Lead Source", "Job #", "Job Type", "Converted", "Conversion Date"),
        *("Dispute ID", "Dispute Date", "Dispute Reason", "Dispute Status", "Credit Date", "Credit Reason"),
        *("Flow", "From number", "To number", "Campaign", "Ad group", "Keyword", *PHONE_LOGS),
        *(*INVOICES, *ESTIMATES, *EXPENSES),
    ),
    summed="cost",
    # some weeks bring few leads
    expectation=Expectation(7, 14),
)
