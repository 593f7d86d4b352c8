"""Targets by month, for the whole business or for one source or segment of it."""

from __future__ import annotations

from decimal import Decimal
from typing import LiteralString

import pyarrow as pa
import pyarrow.compute as pc

from crm_analytics.analytics.ingest.errors import Reason
from crm_analytics.analytics.ingest.sources.declaration import (
    Column,
    Columns,
    Derived,
    Expectation,
    FileFacts,
    Key,
    Source,
    rows_where,
)
from crm_analytics.analytics.ingest.values.column_types import CalendarDay, Label, Money, Ratio, WholeNumber

SEGMENTS = ("ALL", "COD", "INS", "OTHER")


def _whole_business(columns: Columns, length: int, facts: FileFacts) -> Derived:
    """Stages ALL where source or segment is blank, and refuses unknown segments."""
    absent = pa.nulls(length, pa.string())
    source = pc.fill_null(columns.get("source", absent), "ALL")
    columns["source"] = pc.if_else(pc.equal(pc.utf8_upper(source), "ALL"), "ALL", source)
    columns["segment"] = pc.utf8_upper(pc.fill_null(columns.get("segment", absent), "ALL"))
    unknown = pc.invert(pc.is_in(columns["segment"], value_set=pa.array(SEGMENTS)))
    reason = Reason("not_a_segment", accepted=f"{', '.join(SEGMENTS)} or blank")
    return Derived(columns, dict.fromkeys(rows_where(unknown), ("segment", reason)))


#: Targets that will be compared with nothing, or that contradict each other.
_REVIEW: LiteralString = """
    SELECT format(
        'Source "%s": no month has numbers for it, so its targets are compared with nothing; spell it as the dashboards'
        ' do, or add this spelling to analytics.channel_aliases', min(s.source)
    )
    FROM analytics.targets_without_source t
    JOIN pg_temp.staged s USING (month, source_folded, segment)
    GROUP BY t.name
    UNION ALL
    SELECT format(
        'Source "%s": %s has targets under several spellings (%s), and none of them counts; delete the wrong ones from'
        ' analytics.targets', t.name, to_char(t.month, 'YYYY-MM'), t.spellings
    )
    FROM analytics.conflicting_targets t
    WHERE EXISTS (
        SELECT
        FROM pg_temp.staged s
        JOIN analytics.target_names n USING (month, source_folded, segment)
        WHERE (n.month, n.name, n.segment) = (t.month, t.name, t.segment)
    )
    ORDER BY 1
"""

TARGETS = Source(
    name="targets",
    version=1,
    table="analytics.targets",
    title="targets by month",
    description="Monthly targets for repairs, revenue40, conversion and cost per lead.",
    columns=(
        Column("month", CalendarDay(month=True), ("Month",), required=True, not_null=True),
        Column("source", Label(), ("Source",)),
        Column("segment", Label(), ("Segment",)),
        Column("target_repairs", WholeNumber()),
        Column("target_revenue40", Money(limit=Decimal(10) ** 12, negative=False), sql_type="numeric(14,2)"),
        Column("target_conv_l_to_r", Ratio(), sql_type="numeric(6,4)"),
        Column("target_cpl_max", Money(negative=False), sql_type="numeric(10,2)"),
    ),
    # as it is spelled now: a corrected spelling is the same target
    key=Key("target", ("month", "source_folded", "segment"), folded={"source_folded": "source"}),
    date_column="month",
    filename_patterns=(r"\btargets?\b",),
    own_headers=("target_repairs", "target_revenue40", "target_conv_l_to_r", "target_cpl_max"),
    derive=_whole_business,
    needs_one_of=(("target_repairs", "target_revenue40", "target_conv_l_to_r", "target_cpl_max"),),
    review=_REVIEW,
    migration="0004_metrics.sql",
    # A target is of the first day of its month: one that is over 30 days old is last month's.
    expectation=Expectation(30, None),
)
