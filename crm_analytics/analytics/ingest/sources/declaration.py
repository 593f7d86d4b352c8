"""The form of a source's declaration: its columns, its key, and how its files meet its table."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import LiteralString

import numpy as np
import pyarrow as pa
from psycopg import sql

from crm_analytics.analytics.ingest.errors import Reason
from crm_analytics.analytics.ingest.values.column_types import (
    CalendarDay,
    Context,
    Duration,
    Kind,
    Money,
    When,
    WholeNumber,
)
from crm_analytics.analytics.ingest.values.dates import DateOrder

Columns = dict[str, pa.Array]

#: SQL types of the kinds; others are text.
_SQL_TYPES: dict[type[Kind], LiteralString] = {
    CalendarDay: "date",
    Duration: "int",
    Money: "numeric(12,2)",
    When: "timestamptz",
    WholeNumber: "int",
}
_FOLDED_AWAY = re.compile(r"[\W_]+")


@lru_cache(maxsize=4096)
def fold_header(text: str) -> str:
    """Returns a header as it is compared: casefolded, `#` as `number`, nothing but letters and digits."""
    return _FOLDED_AWAY.sub("", text.casefold().replace("#", "number"))


@dataclass(frozen=True)
class Column:
    """A column of the file: its canonical name, its kind, and the other headers that are accepted for it."""

    name: str
    kind: Kind
    aliases: tuple[str, ...] = ()
    #: The header must have it.
    required: bool = False
    #: Where the header has it, no cell may be blank.
    not_null: bool = False
    #: It holds names or telephone numbers, so reasons leave out what was found.
    personal: bool = False
    #: A file may lack it without loss, because other columns or the lines above the header replace it.
    replaceable: bool = False
    #: The staged column that takes the local date of this moment.
    date_as: str | None = None
    #: Kinds under particular headers (folded).
    kind_by_header: dict[str, Kind] = field(default_factory=dict)
    #: SQL type of the staged column, where it isn't that of the kind.
    sql_type: LiteralString | None = None
    #: Whether the column is staged; otherwise it only serves the derivation.
    staged: bool = True

    @property
    def headers(self) -> tuple[str, ...]:
        """Every accepted header, the canonical name last."""
        return tuple(dict.fromkeys((*self.aliases, self.name)))

    def kind_under(self, header: str) -> Kind:
        """Returns the column's kind under the header that the file has."""
        return self.kind_by_header.get(fold_header(header), self.kind)


@dataclass(frozen=True)
class FileFacts:
    """What a derivation may know of the file."""

    file: str
    #: Canonical column name -> header as found.
    mapping: dict[str, str]
    #: The rows above the header.
    preamble: list[list[str]]
    context: Context
    #: Headers that no column claims, folded -> as found.
    unknown: dict[str, str]


@dataclass
class Derived:
    """Staged columns and, by row, a column of the file and the reason why the record is refused for it."""

    columns: Columns
    reasons: dict[int, tuple[str, Reason]] = field(default_factory=dict)


Derivation = Callable[[Columns, int, FileFacts], Derived]
HeaderCheck = Callable[[FileFacts], None]
Completion = Callable[[pa.Table, FileFacts], tuple[pa.Table, list[str]]]


def as_cleaned(columns: Columns, length: int, facts: FileFacts) -> Derived:
    """Stages the cleaned columns as they are."""
    return Derived(columns)


def rows_where(mask: pa.Array) -> list[int]:
    """Returns the numbers of the rows for which the mask is true."""
    return [int(row) for row in np.flatnonzero(mask.to_numpy(zero_copy_only=False))]


def column_list(names: Iterable[str], *alias: str) -> sql.Composed:
    """Returns the columns for SQL, separated by commas."""
    return sql.SQL(", ").join(sql.Identifier(*alias, name) for name in names)


@dataclass(frozen=True)
class Key:
    """What identifies a row of the table, and with it the records of the files."""

    #: What messages call the thing that the key names, e.g. `payment`.
    label: str
    #: The table's key columns; staged columns of the same names, unless `hashed` makes the key.
    columns: tuple[str, ...]
    #: SQL texts over the staged columns. Where an export gives no id, their hash and the number of the record's
    #: occurrence in its file are the key.
    hashed: tuple[LiteralString, ...] = ()
    #: Columns by which the occurrences of one hash are numbered, so that a sorted export gives the same keys; records that
    #: are equal in them count in the order of the file.
    occurrence_order: tuple[str, ...] = ()
    #: Key columns that the table generates as the folded text of a staged column, which they name: compared, but never
    #: written.
    folded: dict[str, str] = field(default_factory=dict)
    #: The staged columns that identify a record within its file, where a row of the table sums up several.
    record_columns: tuple[str, ...] = ()
    #: A column that names the same thing in exports which lack the key. It takes the key's place until another
    #: export brings the key.
    alternate: str | None = None

    @property
    def written(self) -> tuple[str, ...]:
        """The key columns that a load writes."""
        return tuple(name for name in self.columns if name not in self.folded)

    @property
    def given_in_files(self) -> tuple[str, ...]:
        """The columns of which the first that a file has gives the key of a record, even of one that is refused."""
        alternates = (self.alternate,) if self.alternate else ()
        return (*self.columns, *alternates) if len(self.columns) == 1 else ()


@dataclass(frozen=True)
class MonthTotals:
    """Says that the newest file which covers a month replaces all rows of the month.

    The table has a row per month and other key columns, with the sum of the records' amounts, the last day that the
    sum covers, and `complete_month`: whether the file has no quarantined record of the month. The last key column
    names the parts of the month.
    """

    amount: str
    covered_to: str
    #: Headers of columns by which an export may split an amount into several records, which then add up.
    splits: tuple[str, ...] = ()


@dataclass(frozen=True)
class Expectation:
    """How many days old the newest row of a table may be before its silence is told; None is no limit."""

    warn_days: int | None = 3
    error_days: int | None = 7


@dataclass(frozen=True)
class Reference:
    """A column that refers to another table; new rows get it by the first lookup that finds something."""

    column: str
    lookups: tuple[Lookup, ...]
    #: The trigger function that keeps the column. A bulk load, which has looked up all of its rows, does without it.
    kept_by: str


@dataclass(frozen=True)
class Lookup:
    """Where a staged column finds what a row refers to: `relation` has the staged value in `by`."""

    staged: str
    relation: str
    by: str


@dataclass(frozen=True)
class Source:
    """How one source's export files are read and how their records meet its table.

    Raise `version` when the meaning of a file changes: files loaded under an older version are then read again.
    """

    name: str
    version: int
    #: `schema.table`
    table: str
    #: What messages call the files' content.
    title: str
    #: What the asset's page says about the table.
    description: str
    columns: tuple[Column, ...]
    key: Key
    #: The staged column with the day to which a record belongs.
    date_column: str
    filename_patterns: tuple[str, ...]
    derive: Derivation = as_cleaned
    #: Name and SQL type of the staged columns that the derivation adds.
    derived_columns: dict[str, LiteralString] = field(default_factory=dict)
    #: Of each group the header must have one.
    needs_one_of: tuple[tuple[str, ...], ...] = ()
    #: Headers (or titles above them) that no other kind of file has. They identify a file without a telling name.
    own_headers: tuple[str, ...] = ()
    #: Headers (or titles above them) that only other kinds of file have. A file with more of these than of its own is of
    #: another kind, and not loaded; with as many of both, the first of them in the file decides.
    foreign_headers: tuple[str, ...] = ()
    #: Folded header -> column that it means where its own column has another header already.
    second_choice: dict[str, str] = field(default_factory=dict)
    #: Refuses a file whose columns do not suffice.
    check: HeaderCheck | None = None
    #: Where a file replaces whole months: adds what can only be told at the end of the file; may warn.
    complete: Completion | None = None
    #: The staged amount that a total line adds up.
    summed: str | None = None
    #: A file with exactly so many records was probably cut off at the tool's limit.
    suspicious_record_count: int | None = None
    date_order: DateOrder = "mdy"
    decimal_comma: bool = False
    #: Set where a file replaces whole months; otherwise each record replaces its row.
    month_totals: MonthTotals | None = None
    reference: Reference | None = None
    #: SQL that a load executes before it changes the table, to take the locks that the table's links need.
    lock: LiteralString | None = None
    #: SQL over the accepted records, `pg_temp.staged`, once they are loaded: a warning per row.
    review: LiteralString | None = None
    #: How old the newest row may be; a row of analytics.source_expectations replaces it.
    expectation: Expectation = Expectation()
    #: The file of sql/analytics/ that makes the table.
    migration: str = "0001_raw.sql"

    @cached_property
    def owners(self) -> dict[str, str]:
        """Every accepted header, folded -> canonical name."""
        return {fold_header(header): column.name for column in self.columns for header in column.headers}

    @cached_property
    def folded_own(self) -> frozenset[str]:
        """The own headers as they are compared."""
        return frozenset(map(fold_header, self.own_headers))

    @cached_property
    def folded_foreign(self) -> frozenset[str]:
        """The foreign headers as they are compared."""
        return frozenset(map(fold_header, self.foreign_headers))

    @cached_property
    def splitting_headers(self) -> frozenset[str]:
        """Folded headers of columns that split an amount into records which add up."""
        return frozenset(map(fold_header, self.month_totals.splits)) if self.month_totals else frozenset()

    def column(self, name: str) -> Column:
        """Returns the column of a canonical name."""
        return self._columns[name]

    @cached_property
    def _columns(self) -> dict[str, Column]:
        return {column.name: column for column in self.columns}

    @cached_property
    def staged_columns(self) -> dict[str, LiteralString]:
        """Name and SQL type of what a batch carries behind the record number, in order."""
        staged: dict[str, LiteralString] = {}
        for column in self.columns:
            if column.staged:
                staged[column.name] = column.sql_type or _SQL_TYPES.get(type(column.kind), "text")
            if column.date_as:
                staged[column.date_as] = "date"
        return staged | self.derived_columns

    @property
    def date_givers(self) -> frozenset[str]:
        """The columns that can give a record its date."""
        return frozenset(c.name for c in self.columns if c.date_as or isinstance(c.kind, CalendarDay))

    @property
    def table_path(self) -> tuple[str, str]:
        """The schema and the name of the table."""
        schema, name = self.table.split(".")
        return schema, name

    @property
    def value_columns(self) -> tuple[str, ...]:
        """The table's columns that a record fills, key columns left out."""
        return tuple(name for name in self.staged_columns if name not in self.key.columns)

    @property
    def staged_key(self) -> tuple[str, ...]:
        """The staged columns that hold the table's key, in the order of `key.columns`."""
        return ("row_key",) if self.key.hashed else self.key.columns

    @property
    def records_are_rows(self) -> bool:
        """Whether a record is a row of the table as it is, if its key is new and the file has keys."""
        return not (self.key.hashed or self.key.folded or self.reference or self.month_totals)

    @property
    def given_id(self) -> str | None:
        """The staged column that is the key where it is not NULL, of a source whose exports may lack it."""
        (column, *_) = self.key.columns
        return column if self.key.hashed and column in self.staged_columns else None

    @cached_property
    def fragments(self) -> dict[str, sql.Composable]:
        """SQL by the name that statements use for it; `s` is a staged record, `t` a row of the table."""
        values, keys = self.value_columns, self.key.columns
        totals = self.month_totals
        return {
            "amount": sql.Identifier(totals.amount if totals else ""),
            "covered_to": sql.Identifier(totals.covered_to if totals else ""),
            "part": sql.Identifier(keys[-1]),
            "summed": sql.Identifier(self.summed or ""),
            "source": sql.Literal(self.name),
            "table": sql.Identifier(*self.table_path),
            "day": sql.Identifier(self.date_column),
            "keys": column_list(keys),
            "key_column": sql.Identifier(keys[0]),
            "alternate": sql.Identifier(self.key.alternate or ""),
            # the key as text, as raw.rejected_rows and raw.vanished_rows have it
            "record_key": self._as_text("s", self.staged_key),
            "row_key": self._as_text("t", keys),
            "same_key": sql.SQL("({}) = ({})").format(
                column_list(keys, "t"), column_list(self.staged_key, "s")
            ),
            "values": column_list(values),
            "row_values": column_list(values, "t"),
            "record_values": column_list(values, "s"),
            "staged_definition": self._staged_definition,
            "staged_columns": column_list(("record_no", *self.staged_columns)),
            # what a load writes of a new record, without what it looks up, and where it has that from
            "row_columns": column_list((*self.key.written, *values)),
            "new_row": column_list((*(("row_key",) if self.key.hashed else self.key.written), *values), "s"),
            "occurrence_order": column_list((*self.key.occurrence_order, "record_no"), "s"),
        }

    @cached_property
    def fragment_texts(self) -> dict[str, str]:
        """The fragments as text, because every statement of every file has some."""
        return {name: part.as_string(None) for name, part in self.fragments.items()}

    @property
    def _staged_definition(self) -> sql.Composed:
        """The columns of the temporary table `staged`, with their types."""
        columns: list[sql.Composable] = [sql.SQL("record_no int NOT NULL")]
        columns += [
            sql.SQL("{} {}").format(sql.Identifier(name), sql.SQL(sql_type))
            for name, sql_type in self.staged_columns.items()
        ]
        columns += [
            sql.SQL("{} text GENERATED ALWAYS AS (raw.fold({})) STORED").format(*map(sql.Identifier, names))
            for names in self.key.folded.items()
        ]
        if self.key.hashed:
            columns.append(sql.SQL("occurrence int NOT NULL DEFAULT 1"))
            columns.append(sql.SQL("row_key text GENERATED ALWAYS AS (" + self._hashed_key + ") STORED"))
        return sql.SQL(", ").join(columns)

    @property
    def _hashed_key(self) -> LiteralString:
        """Immutable SQL for the key: the given id, else a hash and the number of the occurrence.

        A separator keeps the hashed fields from running together.
        """
        fields = " || E'\\x1f' || ".join(f"coalesce({field}, '')" for field in self.key.hashed)
        key: LiteralString = f"md5({fields}) || '-' || occurrence"
        return f"coalesce({self.given_id}, {key})" if self.given_id else key

    def _as_text(self, alias: str, columns: tuple[str, ...]) -> sql.Composable:
        texts = [self._column_as_text(alias, column) for column in columns]
        return (
            texts[0] if len(texts) == 1 else sql.SQL("concat_ws(', ', {})").format(sql.SQL(", ").join(texts))
        )

    def _column_as_text(self, alias: str, column: str) -> sql.Composable:
        value = sql.Identifier(alias, column)
        if self.staged_columns.get(column) != "date":
            return value
        is_month = any(c.name == column and c.kind == CalendarDay(month=True) for c in self.columns)
        return sql.SQL("to_char({}, {})").format(value, sql.Literal("YYYY-MM" if is_month else "YYYY-MM-DD"))
