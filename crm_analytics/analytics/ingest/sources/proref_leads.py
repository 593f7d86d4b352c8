"""Leads from Pro Referral, which have a status but no cost."""

from __future__ import annotations

from crm_analytics.analytics.ingest.sources.declaration import Column, Expectation, Key, Source
from crm_analytics.analytics.ingest.sources.other_kinds import ESTIMATES, EXPENSES, INVOICES, LEADS
from crm_analytics.analytics.ingest.values.column_types import Identifier, Text, When

PROREF_LEADS = Source(
    name="proref_leads",
    version=1,
    table="raw.proref_leads",
    title="leads of Pro Referral",
    description="Leads from Pro Referral, with their status.",
    columns=(
        Column("lead_id", Identifier(), ("Lead ID", "Unique ID", "Call ID"), required=True, not_null=True),
        Column(
            "lead_at",
            When(),
            ("Date", "Time", "Call Date Time", "Created"),
            required=True,
            not_null=True,
            date_as="lead_date",
        ),
        Column("current_status", Text(), ("Current Status",), required=True),
        Column("category", Text(), ("Category",)),
        Column("zip", Text(), ("ZIP", "Zip Code", "Postal Code")),
    ),
    key=Key("lead", ("lead_id",)),
    date_column="lead_date",
    filename_patterns=(r"pro[ -]?ref(erral)?\b",),
    own_headers=("Category",),
    foreign_headers=(
        *("Cost", "Call Cost", "Lead Price", "Price", "Lead Fee", "Caller ID", "Forwarding Number"),
        "Profile",
        *(*LEADS, "Lead Source", "Job #", "Job Type", "Converted", "Campaign"),
        *(*INVOICES, *ESTIMATES, *EXPENSES),
    ),
    # some weeks bring few leads
    expectation=Expectation(7, 14),
)
