"""One declaration per source: columns, aliases, kinds, key, date column, what is staged. Nowhere else."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from decimal import Decimal
from functools import cached_property

import pyarrow as pa

from crm_analytics.analytics.ingest.sources import derive
from crm_analytics.analytics.ingest.values.column_types import (
    CalendarDay,
    Duration,
    Identifier,
    JobNumber,
    Kind,
    Label,
    Micros,
    Money,
    Ratio,
    Text,
    When,
    WholeNumber,
)
from crm_analytics.analytics.ingest.values.dates import DateOrder

_FOLDED_AWAY = re.compile(r"[\W_]+")


def fold_header(text: str) -> str:
    """A header as it is compared: no BOM or spaces, casefolded, `#` as `number`, only letters and digits."""
    return _FOLDED_AWAY.sub("", text.casefold().replace("#", "number"))


@dataclass(frozen=True)
class Column:
    """A column of the file: its canonical name, kind and other accepted headers."""

    name: str
    kind: Kind
    aliases: tuple[str, ...] = ()
    present: bool = False  # the header must have it
    filled: bool = False  # where the header has it, no cell may be blank
    date_as: str | None = None  # the staged column of a moment's local date
    personal: bool = False  #: names, telephone numbers: reasons leave out what was found
    kind_by_header: dict[str, Kind] = field(default_factory=dict)  # folded header -> kind

    @property
    def headers(self) -> tuple[str, ...]:
        """Every accepted header, the canonical name last."""
        return tuple(dict.fromkeys((*self.aliases, self.name)))

    def kind_under(self, header: str) -> Kind:
        """The kind of the column under the header that the file has."""
        return self.kind_by_header.get(fold_header(header), self.kind)


Derivation = Callable[[derive.Columns, int, derive.FileFacts], derive.Derived]
Check = Callable[[derive.FileFacts], None]
Completion = Callable[[list[pa.Table], derive.FileFacts], tuple[list[pa.Table], list[str]]]


@dataclass(frozen=True)
class Source:
    """How the export files of one source are read. Raise `version` when the meaning of a file changes."""

    name: str
    version: int
    table: str
    title: str
    columns: tuple[Column, ...]
    key: tuple[str, ...]  # the table's key
    record_key: tuple[str, ...]  # the first of these columns that the file has is the key of its records
    date_column: str
    staged_columns: tuple[tuple[str, str], ...]  # what a batch carries after record_no, in order
    derive: Derivation
    filename_patterns: tuple[str, ...]
    needs_one_of: tuple[tuple[str, ...], ...] = ()  # of each group the header must have one
    foreign_headers: frozenset[str] = frozenset()  # folded headers of other sources' files
    second_choice: dict[str, str] = field(
        default_factory=dict
    )  # folded header -> column, if its own is taken
    check: Check | None = None  # refuses a file whose columns do not suffice
    complete: Completion | None = None  # what can only be told at the end of the file; it may warn
    summed: str | None = None  # the staged amount that a total line adds up
    suspicious_record_count: int | None = None
    date_order: DateOrder = "mdy"
    decimal_comma: bool = False

    @cached_property
    def owners(self) -> dict[str, str]:
        """Every accepted header, folded -> canonical name."""
        return {fold_header(header): column.name for column in self.columns for header in column.headers}

    def column(self, name: str) -> Column:
        """The column of a canonical name."""
        return next(column for column in self.columns if column.name == name)


_MONEY = "numeric(12,2)"

JOBS = Source(
    name="jobs",
    version=1,
    table="raw.jobs",
    title="jobs of the field-service CRM",
    columns=(
        Column("job_id", Identifier(), ("UUID", "Job UUID")),
        Column("job_number", JobNumber(), ("Job #", "Job Number", "SerialId")),
        Column("type", Label(), ("Job Type", "JobType", "Type"), present=True),
        Column("source", Label(), ("Source", "JobSource", "Lead Source", "Ad Source"), present=True),
        Column("status", Text(), ("Status", "Job Status")),
        Column(
            "created_at",
            When(),
            ("Created", "CreatedDate", "Created At"),
            present=True,
            filled=True,
            date_as="job_date",
        ),
        Column("scheduled_at", When(), ("Job Date", "JobDateTime", "Scheduled")),
        Column("ended_at", When(), ("Job End", "JobEndDateTime")),
        Column("technician", Text(), ("Tech", "Technician"), personal=True),
        Column("zip", Text(), ("Zip Code", "ZIP", "Postal Code")),
        Column("total", Money(), ("Total",)),
    ),
    key=("job_id",),
    record_key=("job_id", "job_number"),
    date_column="job_date",
    staged_columns=(
        ("job_id", "text"),
        ("job_number", "text"),
        ("type", "text"),
        ("source", "text"),
        ("status", "text"),
        ("created_at", "timestamptz"),
        ("scheduled_at", "timestamptz"),
        ("ended_at", "timestamptz"),
        ("job_date", "date"),
        ("technician", "text"),
        ("zip", "text"),
        ("total", _MONEY),
    ),
    derive=derive.jobs,
    filename_patterns=(r"\bjobs?\b",),
    needs_one_of=(("job_id", "job_number"),),
    second_choice={"jobid": "job_number"},
    summed="total",
)

PAYMENTS = Source(
    name="payments",
    version=1,
    table="raw.payments",
    title="payments of jobs",
    columns=(
        Column("payment_id", Identifier(), ("Payment ID", "Transaction ID"), filled=True),
        Column("job_uuid", Identifier(), ("Job UUID",)),
        Column("job_number", Identifier(), ("Job #", "Job Number")),
        Column("job_id", Identifier(), ("Job ID",)),
        Column(
            "paid_at",
            When(),
            ("Date", "Payment Date", "Payment Received Date", "Paid At"),
            present=True,
            filled=True,
            date_as="paid_date",
        ),
        Column("amount", Money(), ("Amount", "Amount Paid", "Payment Amount"), present=True, filled=True),
        Column("method", Text(), ("Payment Methods", "Payment Method", "Method", "Payment Type")),
        Column("status", Text(), ("Status", "Payment Status")),
        Column("confirmation_code", Text(), ("Confirmation code",)),
    ),
    key=("payment_id",),
    record_key=("payment_id",),
    date_column="paid_date",
    staged_columns=(
        ("payment_id", "text"),
        ("job_ref", "text"),
        ("job_id_ref", "text"),
        ("job_number_ref", "text"),
        ("paid_at", "timestamptz"),
        ("paid_date", "date"),
        ("amount", _MONEY),
        ("method", "text"),
        ("status", "text"),
        ("confirmation_code", "text"),
    ),
    derive=derive.payments,
    filename_patterns=(r"\bpayments?\b", r"\btransactions?\b"),
    needs_one_of=(("job_uuid", "job_number", "job_id"),),
    foreign_headers=frozenset({"created", "createddate", "leadid", "uniqueid", "callid", "campaign"}),
    summed="amount",
)

CALLS = Source(
    name="calls",
    version=1,
    table="raw.calls",
    title="phone calls",
    columns=(
        Column(
            "started_at",
            When(without_year=True),
            ("Time", "Call Time", "Started"),
            present=True,
            filled=True,
            date_as="call_date",
        ),
        Column("from_number", Text(), ("From number", "Caller number"), present=True, personal=True),
        Column("to_number", Text(), ("To number", "Called number"), present=True, personal=True),
        Column("flow", Label(), ("Flow", "Call Flow")),
        Column("answered", Text(), ("Answered", "Answered By"), personal=True),
        Column("duration_seconds", Duration(), ("Duration",), present=True),
        Column("job_ref", Identifier(), ("Job ID", "Job #", "Job UUID")),
    ),
    key=("call_id",),
    record_key=(),
    date_column="call_date",
    staged_columns=(
        ("started_at", "timestamptz"),
        ("call_date", "date"),
        ("from_number", "text"),
        ("to_number", "text"),
        ("flow", "text"),
        ("answered", "boolean"),
        ("answered_by", "text"),
        ("duration_seconds", "int"),
        ("job_ref", "text"),
    ),
    derive=derive.calls,
    filename_patterns=(r"\bcalls?\b",),
    suspicious_record_count=5000,
)

ELOCALS = Source(
    name="elocals_leads",
    version=1,
    table="raw.elocals_leads",
    title="leads bought from eLocals",
    columns=(
        Column("lead_id", Identifier(), ("Unique ID", "Call ID", "Lead ID"), present=True, filled=True),
        Column(
            "lead_at",
            When(),
            ("Time", "Call Date Time", "Date", "Created"),
            present=True,
            filled=True,
            date_as="lead_date",
        ),
        Column("cost", Money(), ("Cost", "Call Cost", "Lead Price"), present=True),
        Column("status", Text(), ("Status",)),
        Column("caller_number", Text(), ("Caller ID", "Caller Number", "Caller Phone"), personal=True),
    ),
    key=("lead_id",),
    record_key=("lead_id",),
    date_column="lead_date",
    staged_columns=(
        ("lead_id", "text"),
        ("lead_at", "timestamptz"),
        ("lead_date", "date"),
        ("cost", _MONEY),
        ("status", "text"),
        ("caller_number", "text"),
    ),
    derive=derive.leads,
    filename_patterns=(r"elocals?",),
    summed="cost",
)

PROREF = Source(
    name="proref_leads",
    version=1,
    table="raw.proref_leads",
    title="leads of Pro Referral",
    columns=(
        Column("lead_id", Identifier(), ("Lead ID", "Unique ID", "Call ID"), present=True, filled=True),
        Column(
            "lead_at",
            When(),
            ("Date", "Time", "Call Date Time", "Created"),
            present=True,
            filled=True,
            date_as="lead_date",
        ),
        Column("current_status", Text(), ("Current Status",), present=True),
        Column("category", Text(), ("Category",)),
        Column("zip", Text(), ("ZIP", "Zip Code", "Postal Code")),
    ),
    key=("lead_id",),
    record_key=("lead_id",),
    date_column="lead_date",
    staged_columns=(
        ("lead_id", "text"),
        ("lead_at", "timestamptz"),
        ("lead_date", "date"),
        ("current_status", "text"),
        ("category", "text"),
        ("zip", "text"),
    ),
    derive=derive.leads,
    filename_patterns=(r"pro[ -]?ref(erral)?\b",),
    foreign_headers=frozenset({"cost", "callcost", "leadprice"}),
)

GOOGLE = Source(
    name="google_spend",
    version=1,
    table="raw.google_spend",
    title="Google Ads spend",
    columns=(
        Column("month", CalendarDay(month=True), ("Month", "segments.month")),
        Column("day", CalendarDay(), ("Day", "Date", "segments.date")),
        Column("campaign", Label(), ("Campaign", "Campaign name")),
        Column(
            "amount",
            Money(),
            ("Amount", "Cost", "Spend", "cost_micros", "metrics.cost_micros"),
            present=True,
            filled=True,
            kind_by_header={"costmicros": Micros(), "metricscostmicros": Micros()},
        ),
    ),
    key=("month", "campaign"),
    record_key=(),
    date_column="month",
    staged_columns=(
        ("month", "date"),
        ("day", "date"),
        ("campaign", "text"),
        ("amount", "numeric"),
        ("covered_to", "date"),
    ),
    derive=derive.google_spend,
    check=derive.google_check,
    complete=derive.google_coverage,
    filename_patterns=(r"google ?(ads?|spend)", r"\bspend\b", r"\bcampaign report\b"),
    foreign_headers=frozenset(
        {
            "jobid",
            "jobnumber",
            "jobuuid",
            "uuid",
            "leadid",
            "uniqueid",
            "callid",
            "paymentid",
            "transactionid",
        }
    ),
    summed="amount",
)

TARGETS = Source(
    name="targets",
    version=1,
    table="analytics.targets",
    title="targets by month",
    columns=(
        Column("month", CalendarDay(month=True), ("Month",), present=True, filled=True),
        Column("source", Label(), ("Source",)),
        Column("segment", Label(), ("Segment",)),
        Column("target_repairs", WholeNumber()),
        Column("target_revenue40", Money(limit=Decimal(10) ** 12)),
        Column("target_conv_l_to_r", Ratio()),
        Column("target_cpl_max", Money()),
    ),
    key=("month", "source", "segment"),
    record_key=(),
    date_column="month",
    staged_columns=(
        ("month", "date"),
        ("source", "text"),
        ("segment", "text"),
        ("target_repairs", "int"),
        ("target_revenue40", "numeric(14,2)"),
        ("target_conv_l_to_r", "numeric(6,4)"),
        ("target_cpl_max", "numeric(10,2)"),
    ),
    derive=derive.targets,
    filename_patterns=(r"\btargets?\b",),
    needs_one_of=(("target_repairs", "target_revenue40", "target_conv_l_to_r", "target_cpl_max"),),
)

SOURCES: dict[str, Source] = {
    source.name: source for source in (JOBS, PAYMENTS, CALLS, ELOCALS, PROREF, GOOGLE, TARGETS)
}
