"""Declares the lake's tables, and reads their months from PostgreSQL: columns, rows, and sums to compare.

A table's columns are those of the relation of the same name in schema analytics, as the database's catalog has them, so
that a new column comes into the lake by its migration. What is left out is named here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date
from decimal import Decimal
from typing import Any, LiteralString

import psycopg
import pyarrow as pa
from psycopg import sql
from pyarrow import csv

from crm_analytics.analytics.lake.errors import LakeError
from crm_analytics.analytics.warehouse import catalog
from crm_analytics.core.months import next_month

#: Digits of amounts whose PostgreSQL type limits none.
PRECISION = 18
TYPES = {
    "smallint": pa.int32(),
    "integer": pa.int32(),
    "bigint": pa.int64(),
    "text": pa.string(),
    "character varying": pa.string(),
    "boolean": pa.bool_(),
    "date": pa.date32(),
    "timestamp with time zone": pa.timestamp("us", tz="UTC"),
}
#: Ratios are of sums, never averages: whoever adds up months or franchises divides afterwards.
RATIOS = frozenset({"conv_l_to_u", "conv_l_to_r", "conv_u_to_r", "cpl"})
DOLLARS = {"revenue40": 4, "profit": 4}
#: By month: how many rows, and the sum of each measure.
Sums = dict[date, dict[str, int | Decimal]]


@dataclass(frozen=True)
class Dataset:
    """A table of the lake, and where its rows come from."""

    #: here and in schema analytics
    name: str
    #: what follows FROM, with the alias r, for the days [start, end)
    rows: LiteralString
    #: the first day of a row's month
    month: LiteralString
    left_out: frozenset[str]
    #: decimal places of columns of type numeric that declare none; a value with more is refused, never rounded
    scales: Mapping[str, int] = field(default_factory=dict)

    def schema(self, connection: psycopg.Connection[Any]) -> pa.Schema:
        """Returns the columns with their types and comments: franchise and month, then those of the catalog.

        Raises:
            LakeError: if a column has a type that has no place in the lake.
        """
        fields = [
            _field("franchise", pa.string(), "The franchise whose database the row comes from."),
            _field("month", pa.date32(), "First day of the month."),
        ]
        fields += [
            _field(column.name, self._type(column), column.comment or "")
            for column in catalog.columns(connection, "analytics", self.name)
            if column.name not in self.left_out and column.name != "month"
        ]
        return pa.schema(fields)

    def read(
        self, connection: psycopg.Connection[Any], franchise: str, month: date, schema: pa.Schema
    ) -> pa.Table:
        """Returns a month's rows."""
        names = schema.names[1:]
        columns = [self._text(schema.field(name)) for name in names]
        query = sql.SQL("COPY (SELECT {} FROM {}) TO STDOUT (FORMAT csv)").format(
            sql.SQL(", ").join(columns), sql.SQL(self.rows)
        )
        with connection.cursor() as cursor:
            cursor.execute("SET LOCAL datestyle = ISO")
            with cursor.copy(query, {"start": month, "end": next_month(month)}) as copy:
                text = b"".join(bytes(part) for part in copy)
        if not text:
            return schema.empty_table()
        table = csv.read_csv(
            pa.BufferReader(text),
            read_options=csv.ReadOptions(column_names=names),
            parse_options=csv.ParseOptions(newlines_in_values=True),
            convert_options=csv.ConvertOptions(
                column_types={name: schema.field(name).type for name in names},
                null_values=[""],
                true_values=["t"],
                false_values=["f"],
                strings_can_be_null=True,
                quoted_strings_can_be_null=False,
            ),
        )
        return table.add_column(0, "franchise", pa.repeat(franchise, table.num_rows)).cast(schema)

    def sums(self, connection: psycopg.Connection[Any], start: date, end: date, schema: pa.Schema) -> Sums:
        """Returns, for each month of [start, end) that has rows, their number and the sum of each measure."""
        names = measures(schema)
        added = [
            sql.SQL("count(*) FILTER (WHERE r.{})" if pa.types.is_boolean(schema.field(name).type) else "sum(r.{})")
            .format(sql.Identifier(name))
            for name in names
        ]  # fmt: skip
        query = sql.SQL("SELECT {}, {} FROM {} GROUP BY 1").format(
            sql.SQL(self.month), sql.SQL(", ").join([sql.SQL("count(*)"), *added]), sql.SQL(self.rows)
        )
        found = connection.execute(query, {"start": start, "end": end}, prepare=False).fetchall()
        return {month: dict(zip(("rows", *names), values, strict=True)) for month, *values in found}

    def _type(self, column: catalog.Column) -> pa.DataType:
        numeric = re.fullmatch(r"numeric\((\d+),(\d+)\)", column.type)
        if numeric:
            return pa.decimal128(int(numeric[1]), int(numeric[2]))
        if column.type == "numeric" and column.name in self.scales:
            return pa.decimal128(PRECISION, self.scales[column.name])
        known = TYPES.get(re.sub(r"\(\d+\)$", "", column.type))
        if known is None:
            raise LakeError(
                f"analytics.{self.name}.{column.name} is of type {column.type}, which has no place in the lake: give it"
                " its decimal places, or leave it out, in crm_analytics/analytics/lake/datasets.py"
            )
        return known

    def _text(self, column: pa.Field) -> sql.Composable:
        if column.name == "month":
            return sql.SQL(self.month)
        name = sql.SQL("r.{}").format(sql.Identifier(column.name))
        if pa.types.is_timestamp(column.type):
            # doubled percent signs aside, as Arrow reads moments
            return sql.SQL("to_char({} AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')").format(name)
        return name


def measures(schema: pa.Schema) -> list[str]:
    """Returns the columns that add up: counts, amounts, and yes or no."""
    return [
        column.name
        for column in schema
        if pa.types.is_integer(column.type)
        or pa.types.is_decimal(column.type)
        or pa.types.is_boolean(column.type)
    ]


def _field(name: str, kind: pa.DataType, comment: str) -> pa.Field:
    return pa.field(name, kind, metadata={"doc": comment})


DATASETS = (
    Dataset(
        "job_facts",
        "analytics.job_facts_between(%(start)s::date, %(end)s::date) r",
        "r.month",
        # No name and no address leaves the database; nor does what may change without a refresh, such as a job's status:
        # nothing would restate it in the lake.
        frozenset({"job_number", "type", "status", "technician", "zip", "file_id", "record_no"}),
        {"lead_cost": 2, "paid_total": 2},
    ),
    Dataset(
        "daily_metrics",
        "analytics.daily_metrics r WHERE r.date >= %(start)s AND r.date < %(end)s",
        "analytics.month_of(r.date)",
        RATIOS,
        DOLLARS,
    ),
    Dataset(
        "monthly_metrics",
        "analytics.monthly_metrics r WHERE r.month >= %(start)s AND r.month < %(end)s",
        "r.month",
        RATIOS,
        DOLLARS,
    ),
)
