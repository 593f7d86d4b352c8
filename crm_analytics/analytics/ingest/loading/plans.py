"""How a source's staged records meet its table: key, columns compared, date. The loader's half of a declaration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import LiteralString

from psycopg import sql

from crm_analytics.analytics.ingest.sources.sources import SOURCES, Source


@dataclass(frozen=True)
class Plan:
    """SQL fragments over the alias `s` of the temporary table `staged`."""

    source: Source
    key_name: str  #: what messages call the key
    key: LiteralString  #: the record's key as text: rejected_rows.row_key
    identity: tuple[
        tuple[LiteralString, LiteralString], ...
    ]  #: the table's key columns, and what they are in `s`
    row_key: LiteralString | None = (
        None  #: `key` of a row `t` of the table; None where a file replaces whole months
    )
    hashed_key: LiteralString | None = None  #: makes `row_key` where the export may have no id
    given_key: LiteralString | None = None  #: the column that, where it is not NULL, is the key itself

    @property
    def table(self) -> sql.Composed:
        """The source's table."""
        return sql.SQL(".").join(map(sql.Identifier, self.source.table.split(".")))

    @property
    def numbered(self) -> LiteralString:
        """Which records have a hashed key, and so an occurrence number."""
        return f"s.{self.given_key} IS NULL" if self.given_key else "true"

    @property
    def values(self) -> tuple[str, ...]:
        """The table's columns that a record says, key columns left out."""
        keys = {name for name, _ in self.identity}
        return tuple(name for name, _ in self.source.staged_columns if name not in keys)

    @property
    def match(self) -> LiteralString:
        """Join of the table (alias `t`) with the staged records."""
        return " AND ".join(f"t.{column} = {staged}" for column, staged in self.identity)


def _hash(*fields: LiteralString) -> LiteralString:
    """Immutable SQL: the MD5 of the fields (SQL texts over `staged`), set apart so that they cannot run together."""
    return "md5(" + " || E'\\x1f' || ".join(f"coalesce({field}, '')" for field in fields) + ")"


_NO_DATE: LiteralString = (
    "date '2000-01-01'"  # dates as text depend on settings; days since a fixed one do not
)

#: A call has no id; other fields get filled in later, so they are no part of the hash.
_CALL_KEY = (
    _hash(
        "from_number",
        "to_number",
        "extract(epoch FROM started_at AT TIME ZONE 'UTC')::bigint::text",
        "duration_seconds::text",
    )
    + " || '-' || occurrence"
)
_PAYMENT_KEY = (
    "coalesce(payment_id, "
    + _hash(
        "coalesce(job_number_ref, job_id_ref)",
        f"(paid_date - {_NO_DATE})::text",
        "amount::text",
        "method",
        "confirmation_code",
    )
    + " || '-' || occurrence)"
)

PLANS: dict[str, Plan] = {
    plan.source.name: plan
    for plan in (
        Plan(SOURCES["jobs"], "job", "s.job_id", (("job_id", "s.job_id"),), "t.job_id"),
        Plan(
            SOURCES["payments"],
            "payment",
            "s.row_key",
            (("payment_id", "s.row_key"),),
            "t.payment_id",
            hashed_key=_PAYMENT_KEY,
            given_key="payment_id",
        ),
        Plan(
            SOURCES["calls"],
            "call",
            "s.row_key",
            (("call_id", "s.row_key"),),
            "t.call_id",
            hashed_key=_CALL_KEY,
        ),
        Plan(SOURCES["elocals_leads"], "lead", "s.lead_id", (("lead_id", "s.lead_id"),), "t.lead_id"),
        Plan(SOURCES["proref_leads"], "lead", "s.lead_id", (("lead_id", "s.lead_id"),), "t.lead_id"),
        Plan(
            SOURCES["google_spend"],
            "spend of",
            "concat_ws(', ', to_char(s.day, 'YYYY-MM-DD'), to_char(s.month, 'YYYY-MM'), s.campaign)",
            (("month", "s.month"), ("campaign", "s.campaign")),
        ),
        Plan(
            SOURCES["targets"],
            "target",
            "concat_ws(', ', to_char(s.month, 'YYYY-MM'), s.source, s.segment)",
            (("month", "s.month"), ("source", "s.source"), ("segment", "s.segment")),
            "concat_ws(', ', to_char(t.month, 'YYYY-MM'), t.source, t.segment)",
        ),
    )
}
