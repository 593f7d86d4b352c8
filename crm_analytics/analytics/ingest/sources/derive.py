"""What a batch stages beyond its cleaned cells: dates, references, months, coverage. One function per source."""

from __future__ import annotations

import calendar
from dataclasses import dataclass, field
from datetime import date

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from crm_analytics.analytics.ingest.errors import Reason, RefusedFile
from crm_analytics.analytics.ingest.values.column_types import Context, without_padding
from crm_analytics.analytics.ingest.values.dates import read_range

Columns = dict[str, pa.Array]


@dataclass(frozen=True)
class FileFacts:
    """What a derivation may know of the file: its name, mapped columns, the rows above its header."""

    file: str
    mapping: dict[str, str]
    preamble: list[list[str]]
    context: Context
    unknown: dict[str, str]  # folded header -> header, those that no column claims


@dataclass
class Derived:
    """Staged columns and, by row, reasons to refuse the record."""

    columns: Columns
    reasons: dict[int, tuple[str, Reason]] = field(
        default_factory=dict
    )  #: row -> column, and what is wrong with it


def _nulls(length: int, kind: pa.DataType) -> pa.Array:
    return pa.nulls(length, kind)


def _rows(mask: pa.Array) -> list[int]:
    return [int(row) for row in np.flatnonzero(mask.to_numpy(zero_copy_only=False))]


def jobs(columns: Columns, length: int, facts: FileFacts) -> Derived:
    """Jobs: one of id and number is needed."""
    absent = _nulls(length, pa.string())
    without = pc.and_(
        pc.is_null(columns.get("job_id", absent)), pc.is_null(columns.get("job_number", absent))
    )
    if "job_id" in columns:  # a file of UUIDs: the number alone is no key beside them
        without = pc.is_null(columns["job_id"])
    column = "job_id" if "job_id" in facts.mapping else "job_number"
    reason = Reason("blank", accepted="the job's id")
    return Derived(columns, dict.fromkeys(_rows(without), (column, reason)))


def payments(columns: Columns, length: int, facts: FileFacts) -> Derived:
    """Payments: Job UUID is a UUID, Job # a number, Job ID a UUID if there is one such, else a number."""
    absent = _nulls(length, pa.string())
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
    """`without_padding` for a column."""
    padded = pc.fill_null(pc.match_substring_regex(numbers, "^0[0-9]*$"), False)
    if not pc.any(padded).as_py():
        return numbers
    cleaned = pa.array([without_padding(text) for text in numbers.filter(padded).to_pylist()], pa.string())
    return pc.replace_with_mask(numbers, padded, cleaned)


_NOT_ANSWERED = {"no", "false", "missed", "voicemail"}
_ANSWERED = {"yes", "true", "answered"}


def calls(columns: Columns, length: int, facts: FileFacts) -> Derived:
    """Calls: Answered is a person's name or blank (or yes and no)."""
    answered = columns.pop("answered", _nulls(length, pa.string()))
    folded = pc.utf8_lower(answered)
    no = pc.is_in(folded, value_set=pa.array(sorted(_NOT_ANSWERED)))
    nameless = pc.or_(no, pc.is_in(folded, value_set=pa.array(sorted(_ANSWERED))))
    columns["answered"] = pc.and_(pc.is_valid(answered), pc.invert(no))
    columns["answered_by"] = pc.if_else(nameless, pa.scalar(None, pa.string()), answered)
    return Derived(columns)


def leads(columns: Columns, length: int, facts: FileFacts) -> Derived:
    """Leads: as cleaned."""
    return Derived(columns)


SEGMENTS = ("ALL", "COD", "INS", "OTHER")


def targets(columns: Columns, length: int, facts: FileFacts) -> Derived:
    """Targets: blank source and segment mean the whole business."""
    absent = _nulls(length, pa.string())
    source = pc.fill_null(columns.get("source", absent), "ALL")
    columns["source"] = pc.if_else(pc.equal(pc.utf8_upper(source), "ALL"), "ALL", source)
    columns["segment"] = pc.utf8_upper(pc.fill_null(columns.get("segment", absent), "ALL"))
    unknown = pc.invert(pc.is_in(columns["segment"], value_set=pa.array(SEGMENTS)))
    reason = Reason("not_a_segment", accepted=f"{', '.join(SEGMENTS)} or blank")
    return Derived(columns, dict.fromkeys(_rows(unknown), ("segment", reason)))


def report_range(facts: FileFacts) -> tuple[date, date] | None:
    """The first and last day of the report, from the date range line above the header."""
    for row in facts.preamble:
        text = ", ".join(cell.strip() for cell in row if cell.strip())
        found = read_range(text, facts.context.date_order)
        if found:
            return found
    return None


def google_spend(columns: Columns, length: int, facts: FileFacts) -> Derived:
    """Google spend by record: its month, its day where it has one, its campaign."""
    reasons: dict[int, tuple[str, Reason]] = {}
    dated = "day" if "day" in columns else "month" if "month" in columns else None
    if dated:
        reason = Reason("blank", accepted=f"the {dated} of the spend")
        reasons = dict.fromkeys(_rows(pc.is_null(columns[dated])), (dated, reason))
    if dated == "day":
        days = columns["day"]
        columns["month"] = pc.cast(pc.floor_temporal(days, unit="month"), pa.date32())
    elif dated is None:
        columns["month"] = pa.array([google_month(facts)] * length, pa.date32())
    columns.setdefault("day", _nulls(length, pa.date32()))
    columns["campaign"] = pc.fill_null(columns.get("campaign", _nulls(length, pa.string())), "all")
    columns["covered_to"] = _nulls(length, pa.date32())
    return Derived(columns, reasons)


def google_month(facts: FileFacts) -> date:
    """The month of a report that has no date column. Raises RefusedFile where there is not exactly one."""
    found = report_range(facts)
    remedy = "export it with the segment Day or Month, or one file per month"
    if found is None:
        accepted = (
            "a column Month, Day or Date, or a line above the header with the report's dates, like "
            "October 1, 2024 - October 31, 2024"
        )
        raise RefusedFile(facts.file, Reason("no_month", accepted=accepted, remedy=remedy))
    first, last = found
    if (first.year, first.month) != (last.year, last.month):
        accepted = "a report of one month, or a column Month, Day or Date"
        reason = Reason("several_months_and_no_date_column", None, f"{first} to {last}", accepted, remedy)
        raise RefusedFile(facts.file, reason)
    return first.replace(day=1)


def google_check(facts: FileFacts) -> None:
    """Refuse a report whose month cannot be told."""
    if not {"month", "day"} & facts.mapping.keys():
        google_month(facts)


#: folded headers (the API's begin with `segments`) by which a report can split a campaign's spend further
_PARTS = frozenset({
    "account", "accountname", "customerid", "customerdescriptivename", "adgroup", "adgroupname", "adgroupid",
    "assetgroup", "assetgroupname", "assetgroupid", "ad", "adname", "adid", "adgroupadadid", "keyword", "keywordid",
    "keywordinfotext", "searchkeyword", "searchterm", "device", "devices", "network", "networkwithsearchpartners",
    "adnetworktype", "clicktype", "slot", "topvsother", "hour", "houroftheday", "hourofday", "dayofweek",
    "dayoftheweek", "age", "agerange", "gender", "location", "userlocation", "matchedlocation", "country",
    "countryterritory", "region", "city", "conversionaction", "conversionactionname", "conversionactioncategory",
    "conversioncategory", "conversionsource",
})  # fmt: skip


def google_refuse_parts(campaigns: pa.Table, facts: FileFacts) -> None:
    """Refuse a report that has several records of a campaign's day or month because it splits them further.

    Two of them may be equal (two ad groups that cost the same), which a repeated record would be as well.
    """
    splitting = [
        header for folded, header in facts.unknown.items() if folded.removeprefix("segments") in _PARTS
    ]
    if not splitting:
        return
    counted = campaigns.group_by(["month", "day", "campaign"]).aggregate([("record_no", "count")])
    most = counted.sort_by([("record_no_count", "descending")]).slice(0, 1).to_pylist()[0]
    if most["record_no_count"] == 1:
        return
    when = most["day"] or f"{most['month']:%Y-%m}"
    reason = Reason(
        "several_records_of_one_campaign_and_date",
        found=f"{most['record_no_count']} records of campaign {most['campaign']} on {when}",
        accepted="one record per campaign and day or month",
        remedy=f"export the report without the columns that split it: {', '.join(splitting)}",
    )
    raise RefusedFile(facts.file, reason)


def google_coverage(tables: list[pa.Table], facts: FileFacts) -> tuple[list[pa.Table], list[str]]:
    """Fill `covered_to`: per month, the last day that the file's figure covers (`metrics.md`, Google spend).

    The report's last day (its date range line, else the last day of a file by day), else the export's date
    where that lies inside the month, else the month's last day. A date column of nothing but firsts of
    months is a column of months.
    """
    whole = pa.concat_tables(tables) if tables else None
    if whole is None or not whole.num_rows:
        return tables, []
    google_refuse_parts(whole, facts)
    by_day = whole["day"].null_count == 0 and pc.any(pc.not_equal(pc.day(whole["day"]), 1)).as_py()
    found = report_range(facts)
    last_day: date | None = found[1] if found else pc.max(whole["day"]).as_py() if by_day else None
    exported_on = facts.context.exported_on
    covered: dict[date, date] = {}
    for month in pc.unique(whole["month"]).to_pylist():
        end = month.replace(day=calendar.monthrange(month.year, month.month)[1])
        limit = min(last_day or exported_on, exported_on)  # no export covers the days after it
        covered[month] = limit if month <= limit <= end else end
    result = []
    for table in tables:
        encoded = table["month"].combine_chunks().dictionary_encode()
        ends = pa.array([covered[month] for month in encoded.dictionary.to_pylist()], pa.date32())
        column = table.schema.get_field_index("covered_to")
        table = table.set_column(column, "covered_to", ends.take(encoded.indices))
        if not by_day:
            table = table.set_column(
                table.schema.get_field_index("day"), "day", pa.nulls(table.num_rows, pa.date32())
            )
        result.append(table)
    first_day: date | None = found[0] if found else pc.min(whole["day"]).as_py() if by_day else None
    if first_day is None or first_day.day == 1:
        return result, []
    return result, [
        f"the report begins on {first_day}, so its figure for {first_day:%Y-%m} lacks the days before; "
        "export whole months"
    ]
