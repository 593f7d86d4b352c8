"""Payments and refunds, each with a reference to its job."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

from crm_analytics.analytics.ingest.sources.declaration import (
    Column,
    Columns,
    Derived,
    FileFacts,
    Key,
    Lookup,
    Reference,
    Source,
)
from crm_analytics.analytics.ingest.sources.other_kinds import (
    BANK_STATEMENTS,
    ESTIMATES,
    EXPENSES,
    INVOICES,
    LEADS,
)
from crm_analytics.analytics.ingest.values.column_types import (
    Dollars,
    Identifier,
    Money,
    Text,
    When,
    without_padding,
)


def _job_references(columns: Columns, length: int, facts: FileFacts) -> Derived:
    """Stages what may be a job's id and what may be its number.

    `Job UUID` is an id, `Job #` a number, and `Job ID` an id if a job has it, otherwise a number.
    """
    absent = pa.nulls(length, pa.string())
    uuid, number, either = (columns.get(name, absent) for name in ("job_uuid", "job_number", "job_id"))
    digits = pc.match_substring_regex(either, "^[0-9]+$")
    as_number = pc.replace_substring_regex(
        pc.if_else(pc.fill_null(digits, False), either, None), "^0+([0-9])", r"\1"
    )
    return Derived(
        columns
        | {
            "job_ref": pc.coalesce(uuid, either, number),
            "job_id_ref": pc.coalesce(uuid, either),
            "job_number_ref": pc.coalesce(_unpadded(number), as_number),
        }
    )


def _unpadded(numbers: pa.Array) -> pa.Array:
    """Applies `without_padding` to a column."""
    padded = pc.fill_null(pc.match_substring_regex(numbers, "^0[0-9]*$"), False)
    if not pc.any(padded).as_py():
        return numbers
    cleaned = pa.array([without_padding(text) for text in numbers.filter(padded).to_pylist()], pa.string())
    return pc.replace_with_mask(numbers, padded, cleaned)


PAYMENTS = Source(
    name="payments",
    version=1,
    table="raw.payments",
    title="payments of jobs",
    description="Payments and refunds, linked to their job as soon as it is known.",
    columns=(
        Column("payment_id", Identifier(), ("Payment ID", "Transaction ID"), not_null=True, replaceable=True),
        Column("job_uuid", Identifier(), ("Job UUID",), staged=False),
        Column("job_number", Identifier(), ("Job #", "Job Number"), staged=False),
        Column("job_id", Identifier(), ("Job ID",), staged=False),
        Column(
            "paid_at",
            When(),
            ("Date", "Payment Date", "Payment Received Date", "Paid At"),
            required=True,
            not_null=True,
            date_as="paid_date",
        ),
        Column("amount", Money(), ("Amount", "Amount Paid", "Payment Amount"), required=True, not_null=True),
        Column("method", Text(), ("Payment Methods", "Payment Method", "Method", "Payment Type")),
        Column("status", Text(), ("Status", "Payment Status")),
        Column("currency", Dollars(), ("Currency", "Currency code"), staged=False),
        Column("confirmation_code", Text(), ("Confirmation code",)),
    ),
    key=Key(
        "payment",
        ("payment_id",),
        hashed=(
            "coalesce(job_number_ref, job_id_ref)",
            # dates as text depend on the session's settings; days since a fixed date do not
            "(paid_date - date '2000-01-01')::text",
            "amount::text",
            "method",
            "confirmation_code",
        ),
    ),
    date_column="paid_date",
    # a file of transactions may be a bank's
    filename_patterns=(r"\bpayments?\b",),
    derive=_job_references,
    derived_columns={"job_ref": "text", "job_id_ref": "text", "job_number_ref": "text"},
    needs_one_of=(("job_uuid", "job_number", "job_id"),),
    own_headers=(
        *("Payment ID", "Transaction ID", "Payment Date", "Payment Methods", "Payment Method"),
        "Confirmation code",
        *("Payment Amount", "Payment Type", "Payment Status", "Payment Received Date", "Paid At", "Method"),
        "Tip",
    ),
    foreign_headers=(
        *("Created", "CreatedDate", "Created At", "Job Date", "Job End", "Sub-Status", "Invoiced", "Profit"),
        *(*LEADS, "Lead ID", "Unique ID", "Call ID", "Campaign"),
        *(*INVOICES, *ESTIMATES, *EXPENSES, *BANK_STATEMENTS),
    ),
    summed="amount",
    # the same lookups as in raw.relink_payments
    reference=Reference(
        "job_id",
        (
            Lookup("job_id_ref", "raw.jobs", "job_id"),
            Lookup("job_number_ref", "raw.jobs_by_number", "job_number"),
        ),
        kept_by="raw.relink_payments",
    ),
    lock="SELECT raw.lock_links()",
)
