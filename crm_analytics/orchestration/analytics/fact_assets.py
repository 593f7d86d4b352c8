"""Defines the facts and the channel tables, which no run materializes: the lineage has them because they hold the rules.

They are views and tables that are kept by hand, so they are never stale. Dagster orders a run by executable
dependencies only; hence the metrics depend on every raw asset as well.
"""

from __future__ import annotations

import dagster as dg

from crm_analytics.core.rule_texts import rule_text
from crm_analytics.orchestration.analytics.column_lineage import column_lineage, column_schema
from crm_analytics.orchestration.analytics.franchise import Franchise
from crm_analytics.orchestration.asset_metadata import OWNERS, definition_metadata


def _spec(franchise: Franchise, name: str, description: str, parents: list[str]) -> dg.AssetSpec:
    """Describes a fact view, or a channel table if it has no parents."""
    group, kind, code = (
        ("facts", "view", "0003_facts.sql") if parents else ("channels", "table", "0002_channels.sql")
    )
    return dg.AssetSpec(
        key=franchise.key(dg.AssetKey(["analytics", name])),
        deps=[franchise.key(dg.AssetKey.from_user_string(parent)) for parent in parents],
        description=description,
        group_name=franchise.name(group),
        kinds={"postgres", kind},
        owners=OWNERS,
        metadata={
            **definition_metadata("analytics", name, f"sql/analytics/{code}"),
            "dagster/column_schema": column_schema(name),
            **({"dagster/column_lineage": column_lineage(franchise, name)} if parents else {}),
        },
    )


#: Name, description and parents of each; channel tables have no parents.
_FACTS: list[tuple[str, ...]] = [
    (
        "job_facts",
        "One row per job: source, segment, whether it is a unit, a repair and (by its channel's rule) a lead, and what"
        f" was paid for it.\n\n- {rule_text('is_unit')}\n- {rule_text('is_repair')}\n- Segment: {rule_text('segment_of')}",
        "raw/jobs",
        "raw/payments",
        "analytics/channel_aliases",
        "analytics/source_names",
        "analytics/lead_channels",
    ),
    (
        "lead_facts",
        "One row per lead with its cost, by the channel rule in force for its month.",
        "raw/elocals_leads",
        "raw/proref_leads",
        "raw/workiz_leads",
        "analytics/job_facts",
        "analytics/lead_channels",
    ),
    (
        "daily_spend",
        "Google's cost by day: the month's spend divided among the days that it covers, adding up exactly.",
        "raw/google_spend",
        "analytics/lead_channels",
    ),
    (
        "orphan_payments",
        "Counted payments whose job is unknown: revenue under Unattributed on the day paid, until the job arrives.",
        "raw/payments",
        "raw/jobs",
    ),
    (
        "call_facts",
        "One row per call, under its flow's source.",
        "raw/calls",
        "analytics/channel_aliases",
        "analytics/source_names",
    ),
    (
        "lead_channels",
        "What counts as a lead and as cost, by channel and month. Kept by hand in SQL: adding a channel is one row.",
    ),
    (
        "channel_aliases",
        "Spellings of sources and call flows, and the channel that each means. Kept by hand in SQL.",
    ),
    (
        "source_names",
        "How sources are shown. A new one gets the spelling in which it first came; change it in SQL.",
    ),
]


def fact_specs(franchise: Franchise) -> list[dg.AssetSpec]:
    """Returns the facts and the channel tables."""
    return [_spec(franchise, name, description, parents) for name, description, *parents in _FACTS]
