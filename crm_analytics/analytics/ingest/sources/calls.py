"""Phone calls from the call log of the field-service CRM; they have no id."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

from crm_analytics.analytics.ingest.sources.declaration import (
    Column,
    Columns,
    Derived,
    FileFacts,
    Key,
    Source,
)
from crm_analytics.analytics.ingest.sources.other_kinds import PHONE_LOGS
from crm_analytics.analytics.ingest.values.column_types import Duration, Identifier, Label, Text, When

_NOT_ANSWERED = {"no", "false", "missed", "voicemail"}
_ANSWERED = {"yes", "true", "answered"}


def _split_answered(columns: Columns, length: int, facts: FileFacts) -> Derived:
    """Stages whether the call was answered, and by whom: the cell has a name, yes, no, or nothing."""
    answered = columns.pop("answered", pa.nulls(length, pa.string()))
    folded = pc.utf8_lower(answered)
    no = pc.is_in(folded, value_set=pa.array(sorted(_NOT_ANSWERED)))
    nameless = pc.or_(no, pc.is_in(folded, value_set=pa.array(sorted(_ANSWERED))))
    columns["answered"] = pc.and_(pc.is_valid(answered), pc.invert(no))
    columns["answered_by"] = pc.if_else(nameless, pa.scalar(None, pa.string()), answered)
    return Derived(columns)


CALLS = Source(
    name="calls",
    version=2,
    table="raw.calls",
    title="phone calls",
    description="Phone calls by flow.",
    columns=(
        Column(
            "started_at",
            When(without_year=True),
            ("Time", "Call Time", "Started"),
            required=True,
            not_null=True,
            date_as="call_date",
        ),
        Column("from_number", Text(), ("From number", "Caller number"), required=True, personal=True),
        Column("to_number", Text(), ("To number", "Called number"), required=True, personal=True),
        Column("flow", Label(), ("Flow", "Call Flow")),
        Column("answered", Text(), ("Answered", "Answered By"), personal=True, sql_type="boolean"),
        Column("duration_seconds", Duration(), ("Duration",), required=True),
        Column("job_ref", Identifier(), ("Job ID", "Job #", "Job UUID")),
    ),
    # Other fields are filled in later, and spreadsheets change durations and drop seconds and the + of a number, so the
    # hash has the minute and the last ten digits alone. Durations and seconds only tell which of one minute's calls comes
    # first.
    key=Key(
        "call",
        ("call_id",),
        hashed=(
            "right(translate(from_number, ' ().+-', ''), 10)",
            "right(translate(to_number, ' ().+-', ''), 10)",
            "floor(extract(epoch FROM started_at AT TIME ZONE 'UTC') / 60)::bigint::text",
        ),
        occurrence_order=("duration_seconds", "started_at"),
    ),
    date_column="call_date",
    filename_patterns=(r"\bcalls?\b",),
    own_headers=("Flow", "Call Flow", "Ad group", "Answered", "Answered By"),
    foreign_headers=(
        *(*PHONE_LOGS, "Call ID", "Unique ID", "Lead ID", "Caller ID", "Cost", "Call Cost", "Lead Price"),
        "Price",
        *("Campaign", "Keyword", "Keywords", "Landing Page"),
    ),
    derive=_split_answered,
    derived_columns={"answered_by": "text"},
    suspicious_record_count=5000,
)
