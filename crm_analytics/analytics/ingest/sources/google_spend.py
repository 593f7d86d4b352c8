"""Google Ads spend: a list of months and amounts, or a report of Google Ads in any of its forms."""

from __future__ import annotations

from datetime import date

import pyarrow as pa
import pyarrow.compute as pc

from crm_analytics.analytics.ingest.errors import Reason, RefusedFile, quotable
from crm_analytics.analytics.ingest.sources.declaration import (
    Column,
    Columns,
    Derived,
    Expectation,
    FileFacts,
    Key,
    MonthTotals,
    Source,
    rows_where,
)
from crm_analytics.analytics.ingest.sources.other_kinds import (
    BANK_STATEMENTS,
    CLIENTS,
    ESTIMATES,
    EXPENSES,
    INVOICES,
)
from crm_analytics.analytics.ingest.values.column_types import (
    FIRST_YEAR,
    LAST_YEAR,
    CalendarDay,
    Dollars,
    Label,
    Micros,
    Money,
)
from crm_analytics.analytics.ingest.values.date_ranges import ConflictingRanges, read_range
from crm_analytics.analytics.ingest.values.dates import accepted_days
from crm_analytics.core.months import end_of_month

#: What splits a campaign's spend into parts that add up. Left out are conversions and assets, for each of which Google
#: repeats a cost, and search terms, of which it hides some.
_SPLITS = (
    "Week", "Device", "Ad group", "Landing page", "Keyword", "Network", "Network (with search partners)",
    "Day", "Month", "Quarter", "Year", "Hour", "Hour of day", "Hour of the day", "Day of week", "Day of the week",
    "Month of year", "Month of the year", "Devices", "Click type", "Slot", "Top vs. other",
    "Account", "Account name", "Account ID", "Customer ID", "customer.descriptive_name",
    "Campaign status", "Campaign state", "Campaign type", "Campaign subtype", "campaign.advertising_channel_type",
    "campaign.advertising_channel_sub_type", "Ad group name", "Ad group ID", "Asset group", "Asset group name",
    "Asset group ID", "Ad", "Ad name", "Ad ID", "ad_group_ad.ad.id", "Keyword ID", "Keyword text", "Search keyword",
    "ad_group_criterion.keyword.text", "Match type", "Keyword match type", "Search term match type",
    "Landing page URL", "Expanded landing page", "Final URL",
    "landing_page_view.unexpanded_final_url", "expanded_landing_page_view.expanded_final_url", "Age", "Age range",
    "Gender", "Household income", "Parental status", "Location", "User location", "Matched location", "Country",
    "Country/Territory", "Region", "Metro area", "City", "Postal code",
    *(f"segments.{name}" for name in (
        "week", "date", "month", "quarter", "year", "hour", "day_of_week", "month_of_year", "device", "ad_network_type",
        "click_type", "slot", "keyword.info.text", "keyword.info.match_type", "search_term_match_type",
        "geo_target_country", "geo_target_state", "geo_target_region", "geo_target_metro", "geo_target_city",
        "geo_target_postal_code",
    )),
)  # fmt: skip
_REMEDY = "export it with the segment Day or Month, or one file per month"


def _lines_above(facts: FileFacts) -> list[str]:
    """Returns the lines above the header that are not blank."""
    lines = (", ".join(cell.strip() for cell in row if cell.strip()) for row in facts.preamble)
    return [line for line in lines if line]


def _report_range(facts: FileFacts) -> tuple[date, date] | None:
    """Returns the first and last day of the report, from the lines above the header.

    Where the file has a date column, a month in the title says nothing that the dates don't say better. Raises RefusedFile
    if two lines differ, or a year cannot be right.
    """
    order = facts.context.date_order
    try:
        found = read_range(_lines_above(facts), order, months=not {"month", "day"} & facts.mapping.keys())
    except ConflictingRanges as error:
        accepted = "one date range above the header"
        remedy = "remove the line that is wrong, or export the report without a comparison"
        raise RefusedFile(
            facts.file, Reason("different_date_ranges", None, str(error), accepted, remedy)
        ) from error
    if found and not FIRST_YEAR <= found[0].year <= found[1].year <= LAST_YEAR:
        days = f"{found[0]} to {found[1]}"
        raise RefusedFile(facts.file, Reason("year_out_of_range", None, days, accepted_days(order)))
    return found


def _only_month(facts: FileFacts) -> date:
    """Returns the month of a report without a date column. Raises RefusedFile unless there is exactly one."""
    found = _report_range(facts)
    if found is None:
        accepted = (
            "a column Month, Day or Date, or a line above the header with the report's dates, like "
            "October 1, 2024 - October 31, 2024 or October 2024"
        )
        if "week" in facts.unknown or "segmentsweek" in facts.unknown:
            accepted += "; a week can lie in two months"
        lines = quotable(" | ".join(_lines_above(facts)), 200) or None
        raise RefusedFile(facts.file, Reason("no_month", None, lines, accepted, _REMEDY))
    first, last = found
    if (first.year, first.month) != (last.year, last.month):
        accepted = "a report of one month, or a column Month, Day or Date"
        reason = Reason("several_months_and_no_date_column", None, f"{first} to {last}", accepted, _REMEDY)
        raise RefusedFile(facts.file, reason)
    return first.replace(day=1)


def _check_month(facts: FileFacts) -> None:
    """Refuses a report whose month cannot be told."""
    if not {"month", "day"} & facts.mapping.keys():
        _only_month(facts)


def _month_and_campaign(columns: Columns, length: int, facts: FileFacts) -> Derived:
    """Stages each record's month, its day where it has one, and its campaign.

    An id that a spreadsheet turned into a number like 2.01E+10 is the same for several campaigns, so it counts as none.
    """
    reasons: dict[int, tuple[str, Reason]] = {}
    dated = "day" if "day" in columns else "month" if "month" in columns else None
    if dated:
        reason = Reason("blank", accepted=f"the {dated} of the spend")
        reasons = dict.fromkeys(rows_where(pc.is_null(columns[dated])), (dated, reason))
    if dated == "day":
        columns["month"] = pc.cast(pc.floor_temporal(columns["day"], unit="month"), pa.date32())
    elif dated is None:
        columns["month"] = pa.array([_only_month(facts)] * length, pa.date32())
    columns.setdefault("day", pa.nulls(length, pa.date32()))
    absent = pa.nulls(length, pa.string())
    columns["campaign"] = pc.fill_null(columns.get("campaign", absent), "all")
    ids = columns.get("campaign_id", absent)
    is_id = pc.match_substring_regex(ids, r"^[\w-]*\d[\w-]*$")
    columns["campaign_id"] = pc.if_else(pc.fill_null(is_id, False), ids, "")
    columns["covered_to"] = pa.nulls(length, pa.date32())
    return Derived(columns, reasons)


def _add_coverage(records: pa.Table, facts: FileFacts) -> tuple[pa.Table, list[str]]:
    """Fills `covered_to`: per month, the last day that the file's figure covers.

    That is the report's last day (from its date range line, else the last day of a file by day), else the day of the
    export where that is inside the month, else the month's last day. A date column that has nothing but firsts of
    months is a column of months.
    """
    if not records.num_rows:
        return records, []
    by_day = records["day"].null_count == 0 and pc.any(pc.not_equal(pc.day(records["day"]), 1)).as_py()
    found = _report_range(facts)
    last_day: date | None = found[1] if found else pc.max(records["day"]).as_py() if by_day else None
    exported_on = facts.context.exported_on
    covered: dict[date, date] = {}
    for month in pc.unique(records["month"]).to_pylist():
        end = end_of_month(month)
        # no export covers the days after it
        limit = min(last_day or exported_on, exported_on)
        covered[month] = limit if month <= limit <= end else end
    first_day: date | None = found[0] if found else pc.min(records["day"]).as_py() if by_day else None
    months = records["month"].combine_chunks().dictionary_encode()
    ends = pa.array([covered[month] for month in months.dictionary.to_pylist()], pa.date32())
    position = records.schema.get_field_index("covered_to")
    records = records.set_column(position, "covered_to", ends.take(months.indices))
    if not by_day:
        position = records.schema.get_field_index("day")
        records = records.set_column(position, "day", pa.nulls(records.num_rows, pa.date32()))
    if first_day is None or first_day.day == 1:
        return records, []
    return records, [
        f"the report begins on {first_day}, so its figure for {first_day:%Y-%m} lacks the days before; "
        "export whole months"
    ]


GOOGLE_SPEND = Source(
    name="google_spend",
    version=2,
    table="raw.google_spend",
    title="Google Ads spend",
    description="Google Ads spend by month and campaign; the newest file that covers a month replaces it.",
    columns=(
        Column("month", CalendarDay(month=True), ("Month", "segments.month"), replaceable=True),
        Column("day", CalendarDay(), ("Day", "Date", "segments.date"), replaceable=True),
        Column("campaign_id", Label(), ("Campaign ID",), replaceable=True),
        Column("campaign", Label(), ("Campaign", "Campaign name")),
        Column("currency", Dollars(), ("Currency", "Currency code", "customer.currency_code"), staged=False),
        Column(
            "amount",
            Money(),
            ("Amount", "Cost", "Spend", "cost_micros", "metrics.cost_micros"),
            required=True,
            not_null=True,
            kind_by_header={"costmicros": Micros(), "metricscostmicros": Micros()},
            sql_type="numeric",
        ),
    ),
    key=Key(
        "spend",
        ("month", "campaign_id", "campaign"),
        record_columns=("day", "month", "campaign_id", "campaign"),
    ),
    date_column="month",
    # `spend` and `campaign report` alone may be those of another platform
    filename_patterns=(r"google ?(ads?|spend)",),
    # titles count, too; headers that other platforms' reports share are left out
    own_headers=(
        *("Campaign status", "Campaign state", "Budget", "Budget name", "Budget type", "Bid strategy type"),
        *("Optimization score", "Campaign report", "Campaign performance report", "Campaign performance"),
    ),
    foreign_headers=(
        *("Search term", "Search terms", "Search terms report", "Added/Excluded"),
        "search_term_view.search_term",
        *("Description", "Merchant", "Debit", "Credit", "Memo", "Check Number", "Transaction Date"),
        "Category",
        *("Ad set name", "Reporting starts", "Amount spent (USD)", "Reach", "Gregorian date", "Time period"),
        *("Channel", "Platform", "Medium", "Source", "Client", "Customer", "Job Type", "Payment Methods"),
        *("Job ID", "Job #", "Job UUID", "UUID", "Lead ID", "Unique ID", "Call ID", "Payment ID"),
        "Transaction ID",
        *("target_repairs", "target_revenue40", "target_conv_l_to_r", "target_cpl_max"),
        *(*INVOICES, *ESTIMATES, *EXPENSES, *BANK_STATEMENTS, *CLIENTS),
    ),
    derive=_month_and_campaign,
    derived_columns={"covered_to": "date"},
    check=_check_month,
    complete=_add_coverage,
    summed="amount",
    month_totals=MonthTotals("amount", "covered_to", _SPLITS),
    # exported once a month, when the month has ended
    expectation=Expectation(35, 45),
)
