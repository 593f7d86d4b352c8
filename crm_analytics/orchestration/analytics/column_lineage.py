"""Holds the columns of the facts and channel tables, and which columns every analytics column comes from.

No run materializes a view, so nothing reads its columns from the catalog for the UI: they are written down here, and a
test compares them with the catalog.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import dagster as dg

MEANINGS = {
    "job_id": "The job.",
    "job_number": "The number that people use.",
    "job_date": "Local date of the job's creation.",
    "month": "First day of its month.",
    "source": "Channel name, after channel_aliases.",
    "segment": "COD, INS or OTHER.",
    "type": "The job's type as given.",
    "status": "The job's status as given.",
    "is_unit": "Type is COD Service or INS Service.",
    "is_repair": "Type is COD Repair or INS Repair, or COD Service with more than 100.00 paid.",
    "is_lead": "Whether the job is a lead: its channel's rule in force is jobs, or units and it is a unit.",
    "lead_cost": "Dollars that the lead costs, if the channel pays per lead; else 0.",
    "paid_total": "Dollars: sum of the job's counted payments, 0 if none.",
    "technician": "Technician as given.",
    "zip": "Postal code as given.",
    "file_id": "raw.source_files entry that the row came from.",
    "record_no": "Record in that file.",
    "lead_id": "Id in the table that origin names.",
    "origin": "The raw table that has the lead: elocals_leads, proref_leads or jobs.",
    "lead_date": "Local date of the lead.",
    "cost": "Dollars.",
    "date": "The day.",
    "payment_id": "The payment.",
    "job_ref": "The job as named by the payment.",
    "paid_date": "Local date of the payment.",
    "amount": "Dollars; refunds are negative.",
    "call_id": "The call.",
    "call_date": "Local date of the call.",
    "answered": "Whether the call was answered.",
    "duration_seconds": "Duration in seconds.",
    "lead_channels.source": "The channel's name, as metrics show it.",
    "valid_from": "First day on which the rule is in force, always the first of a month.",
    "lead_rule": "elocals_paid: rows of raw.elocals_leads with cost > 0; proref_not_passed: rows of raw.proref_leads"
    " that are not Passed; jobs: jobs of this source; units: units of this source; none.",
    "cost_rule": "sum_cost: the leads' own cost; per_lead: cost_per_lead each; google_spend: the month's Google spend;"
    " none: free.",
    "cost_per_lead": "Dollars per lead, for per_lead; else NULL.",
    "lead_segment": "Segment of leads and cost that do not come with a job.",
    "alias_folded": "The spelling: trimmed, white space collapsed, lower case.",
    "channel_aliases.source": "The channel's name.",
}

#: Relation -> its columns, each with its type and the columns that it comes from, `asset.column`; constants have none.
_COLUMNS = {
    "job_facts": """
        job_id: text <- raw/jobs.job_id
        job_number: text <- raw/jobs.job_number
        job_date: date <- raw/jobs.job_date
        month: date <- raw/jobs.job_date
        source: text <- raw/jobs.source_folded analytics/channel_aliases.alias_folded analytics/channel_aliases.source
        segment: text <- raw/jobs.type_folded
        type: text <- raw/jobs.type
        status: text <- raw/jobs.status
        is_unit: boolean <- raw/jobs.type_folded
        is_repair: boolean <- raw/jobs.type_folded raw/payments.amount raw/payments.counts
        is_lead: boolean <- raw/jobs.source_folded raw/jobs.type_folded raw/jobs.job_date
            analytics/channel_aliases.source analytics/lead_channels.lead_rule analytics/lead_channels.valid_from
        lead_cost: numeric <- raw/jobs.source_folded raw/jobs.job_date analytics/channel_aliases.source
            analytics/lead_channels.cost_per_lead analytics/lead_channels.valid_from
        paid_total: numeric <- raw/payments.amount raw/payments.counts raw/payments.job_id
        technician: text <- raw/jobs.technician
        zip: text <- raw/jobs.zip
        file_id: bigint <- raw/jobs.file_id
        record_no: integer <- raw/jobs.record_no
    """,
    "lead_facts": """
        lead_id: text <- raw/elocals_leads.lead_id raw/proref_leads.lead_id analytics/job_facts.job_id
        origin: text
        lead_date: date <- raw/elocals_leads.lead_date raw/proref_leads.lead_date analytics/job_facts.job_date
        month: date <- raw/elocals_leads.lead_date raw/proref_leads.lead_date analytics/job_facts.month
        source: text <- analytics/lead_channels.source analytics/job_facts.source
        segment: text <- analytics/lead_channels.lead_segment analytics/job_facts.segment
        cost: numeric <- raw/elocals_leads.cost analytics/lead_channels.cost_rule
            analytics/lead_channels.cost_per_lead analytics/job_facts.lead_cost
        file_id: bigint <- raw/elocals_leads.file_id raw/proref_leads.file_id analytics/job_facts.file_id
        record_no: integer <- raw/elocals_leads.record_no raw/proref_leads.record_no analytics/job_facts.record_no
    """,
    "daily_spend": """
        date: date <- raw/google_spend.month raw/google_spend.covered_to
        month: date <- raw/google_spend.month
        source: text <- analytics/lead_channels.source
        segment: text <- analytics/lead_channels.lead_segment
        cost: numeric <- raw/google_spend.amount raw/google_spend.month raw/google_spend.covered_to
            analytics/lead_channels.cost_rule
    """,
    "orphan_payments": """
        payment_id: text <- raw/payments.payment_id
        job_ref: text <- raw/payments.job_ref
        paid_date: date <- raw/payments.paid_date
        month: date <- raw/payments.paid_date
        source: text
        segment: text
        amount: numeric <- raw/payments.amount
        file_id: bigint <- raw/payments.file_id
        record_no: integer <- raw/payments.record_no
    """,
    "call_facts": """
        call_id: text <- raw/calls.call_id
        call_date: date <- raw/calls.call_date
        month: date <- raw/calls.call_date
        source: text <- raw/calls.flow_folded analytics/channel_aliases.alias_folded analytics/channel_aliases.source
        segment: text
        answered: boolean <- raw/calls.answered
        duration_seconds: integer <- raw/calls.duration_seconds
        file_id: bigint <- raw/calls.file_id
        record_no: integer <- raw/calls.record_no
    """,
    "lead_channels": """
        source: character varying
        valid_from: date
        lead_rule: text
        cost_rule: text
        cost_per_lead: numeric(10,2)
        lead_segment: character varying
    """,
    "channel_aliases": """
        alias_folded: text
        source: character varying
    """,
}

_FACTS = ("job_facts", "lead_facts", "daily_spend", "orphan_payments", "call_facts")
_KEYS = ("source", "segment")
_MEASURES = {
    "jobs": ("analytics/job_facts.job_id",),
    "units": ("analytics/job_facts.is_unit",),
    "repairs": ("analytics/job_facts.is_repair",),
    "leads": ("analytics/job_facts.is_lead", "analytics/lead_facts.lead_id"),
    "calls": ("analytics/call_facts.call_id",),
    "cost": ("analytics/job_facts.lead_cost", "analytics/lead_facts.cost", "analytics/daily_spend.cost"),
    "revenue_gross": ("analytics/job_facts.paid_total", "analytics/orphan_payments.amount"),
}
#: Generated column of the metrics tables -> the measures that it is computed from.
GENERATED = {
    "revenue40": ("revenue_gross",),
    "profit": ("revenue_gross", "cost"),
    "conv_l_to_u": ("units", "leads"),
    "conv_l_to_r": ("repairs", "leads"),
    "conv_u_to_r": ("repairs", "units"),
    "cpl": ("cost", "leads"),
}


def _columns(relation: str) -> dict[str, tuple[str, list[str]]]:
    """Returns the relation's columns as (type, origins) by name."""
    found = {}
    for line in _COLUMNS[relation].replace("\n            ", " ").strip().splitlines():
        name, meaning = line.strip().split(": ")
        type_, _, origins = meaning.partition(" <- ")
        found[name] = type_, origins.split()
    return found


_LINEAGE: dict[str, Mapping[str, Sequence[str]]] = {
    **{
        relation: {name: origins for name, (_, origins) in _columns(relation).items() if origins}
        for relation in _COLUMNS
    },
    "daily_metrics": {
        "date": [
            "analytics/job_facts.job_date",
            "analytics/lead_facts.lead_date",
            "analytics/daily_spend.date",
            "analytics/orphan_payments.paid_date",
            "analytics/call_facts.call_date",
        ],
        **{key: [f"analytics/{fact}.{key}" for fact in _FACTS] for key in _KEYS},
        **_MEASURES,
        **{
            name: [origin for measure in measures for origin in _MEASURES[measure]]
            for name, measures in GENERATED.items()
        },
    },
    "monthly_metrics": {
        "month": ["analytics/daily_metrics.date"],
        **{name: [f"analytics/daily_metrics.{name}"] for name in (*_KEYS, *_MEASURES)},
        **{
            name: [f"analytics/daily_metrics.{measure}" for measure in measures]
            for name, measures in GENERATED.items()
        },
    },
}


def column_schema(relation: str) -> dg.TableSchema:
    """Returns the columns of a fact view or channel table, with their meanings."""
    return dg.TableSchema(
        columns=[
            dg.TableColumn(
                name=name, type=type_, description=MEANINGS.get(f"{relation}.{name}") or MEANINGS[name]
            )
            for name, (type_, _) in _columns(relation).items()
        ]
    )


def column_lineage(relation: str) -> dg.TableColumnLineage:
    """Returns the columns that each column of a relation of schema `analytics` comes from; constants have none."""
    return dg.TableColumnLineage(
        deps_by_column={
            column: [_dependency(origin) for origin in origins]
            for column, origins in _LINEAGE[relation].items()
        }
    )


def _dependency(origin: str) -> dg.TableColumnDep:
    asset, column = origin.rsplit(".", 1)
    return dg.TableColumnDep(dg.AssetKey(asset.split("/")), column)
