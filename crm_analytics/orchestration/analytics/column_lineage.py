"""Holds the columns of the facts and channel tables, and which columns every analytics column comes from.

No run materializes a view, so nothing reads its columns from the catalog for the UI: they are written down here, with
the meanings that the migrations give them, and a test compares both with the catalog.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import dagster as dg

from crm_analytics.analytics.warehouse.explain import RATIOS
from crm_analytics.core.migrations import migration_files
from crm_analytics.orchestration.analytics.franchise import Franchise

#: Relation -> its columns, each with its type and the columns that it comes from, `asset.column`; constants have none.
_COLUMNS = {
    "job_facts": """
        job_id: text <- raw/jobs.job_id
        job_number: text <- raw/jobs.job_number
        job_date: date <- raw/jobs.job_date
        month: date <- raw/jobs.job_date
        source: text <- raw/jobs.source_folded analytics/channel_aliases.alias_folded analytics/channel_aliases.source
            analytics/source_names.folded analytics/source_names.shown
        segment: text <- raw/jobs.type_folded
        type: text <- raw/jobs.type
        status: text <- raw/jobs.status
        is_unit: boolean <- raw/jobs.type_folded
        is_repair: boolean <- raw/jobs.type_folded raw/payments.amount raw/payments.counts
        repair_rule: text <- raw/jobs.type_folded raw/payments.amount raw/payments.counts
        is_lead: boolean <- raw/jobs.source_folded raw/jobs.type_folded raw/jobs.job_date
            analytics/channel_aliases.source analytics/lead_channels.lead_rule analytics/lead_channels.valid_from
        lead_rule: text <- raw/jobs.source_folded raw/jobs.type_folded raw/jobs.job_date
            analytics/channel_aliases.source analytics/lead_channels.lead_rule analytics/lead_channels.valid_from
        cost_rule: text <- raw/jobs.source_folded raw/jobs.type_folded raw/jobs.job_date
            analytics/channel_aliases.source analytics/lead_channels.cost_rule analytics/lead_channels.valid_from
        lead_cost: numeric <- raw/jobs.source_folded raw/jobs.job_date analytics/channel_aliases.source
            analytics/lead_channels.cost_per_lead analytics/lead_channels.valid_from
        paid_total: numeric <- raw/payments.amount raw/payments.counts raw/payments.job_id
        technician: text <- raw/jobs.technician
        zip: text <- raw/jobs.zip
        file_id: bigint <- raw/jobs.file_id
        record_no: integer <- raw/jobs.record_no
    """,
    "lead_facts": """
        lead_id: text <- raw/elocals_leads.lead_id raw/proref_leads.lead_id raw/workiz_leads.lead_id
            analytics/job_facts.job_id
        origin: text
        lead_date: date <- raw/elocals_leads.lead_date raw/proref_leads.lead_date raw/workiz_leads.lead_date
            analytics/job_facts.job_date
        month: date <- raw/elocals_leads.lead_date raw/proref_leads.lead_date raw/workiz_leads.lead_date
            analytics/job_facts.month
        source: text <- analytics/lead_channels.source raw/workiz_leads.source_folded analytics/job_facts.source
        segment: text <- analytics/lead_channels.lead_segment analytics/job_facts.segment
        status: text <- raw/elocals_leads.status raw/proref_leads.current_status raw/workiz_leads.status
            analytics/job_facts.status
        price: numeric <- raw/elocals_leads.cost
        lead_rule: text <- analytics/lead_channels.lead_rule analytics/job_facts.lead_rule
        cost_rule: text <- analytics/lead_channels.cost_rule analytics/job_facts.cost_rule
        cost: numeric <- raw/elocals_leads.cost analytics/lead_channels.cost_rule
            analytics/lead_channels.cost_per_lead analytics/job_facts.lead_cost
        file_id: bigint <- raw/elocals_leads.file_id raw/proref_leads.file_id raw/workiz_leads.file_id
            analytics/job_facts.file_id
        record_no: integer <- raw/elocals_leads.record_no raw/proref_leads.record_no raw/workiz_leads.record_no
            analytics/job_facts.record_no
    """,
    "daily_spend": """
        date: date <- raw/google_spend.month raw/google_spend.covered_to
        month: date <- raw/google_spend.month
        source: text <- analytics/lead_channels.source
        segment: text <- analytics/lead_channels.lead_segment
        cost: numeric <- raw/google_spend.amount raw/google_spend.month raw/google_spend.covered_to
            analytics/lead_channels.cost_rule
        days: integer <- raw/google_spend.month raw/google_spend.covered_to
        month_total: numeric <- raw/google_spend.amount
        file_ids: bigint[] <- raw/google_spend.file_id
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
            analytics/source_names.folded analytics/source_names.shown
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
    "source_names": """
        folded: text
        shown: character varying
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
    **RATIOS,
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
    meanings = _meanings(f"analytics.{relation}")
    return dg.TableSchema(
        columns=[
            dg.TableColumn(name=name, type=type_, description=meanings[name])
            for name, (type_, _) in _columns(relation).items()
        ]
    )


def _meanings(relation: str) -> dict[str, str]:
    """Returns what the relation's columns mean, as the migrations tell the database by `analytics.describe`."""
    return {
        name: " ".join(meaning.split())
        for file in migration_files("analytics")
        for relations, meanings in re.findall(
            r"describe\(\s*'{(.+?)}', \$\$(.+?)\$\$", file.text(), re.DOTALL
        )
        if relation in re.split(r",\s*", relations)
        for name, meaning in re.findall(r"^ {4}(\w+): (.+(?:\n {8}.+)*)$", meanings, re.MULTILINE)
    }


def column_lineage(franchise: Franchise, relation: str) -> dg.TableColumnLineage:
    """Returns the columns that each column of a relation of schema `analytics` comes from; constants have none."""
    return dg.TableColumnLineage(
        deps_by_column={
            column: [_dependency(franchise, origin) for origin in origins]
            for column, origins in _LINEAGE[relation].items()
        }
    )


def _dependency(franchise: Franchise, origin: str) -> dg.TableColumnDep:
    asset, column = origin.rsplit(".", 1)
    return dg.TableColumnDep(franchise.key(dg.AssetKey.from_user_string(asset)), column)
