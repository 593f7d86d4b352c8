"""Spend reports that split a campaign's month: parts add up, repeats count once, and doubt refuses the file."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from decimal import Decimal
from pathlib import Path

import pytest

from crm_analytics.analytics.ingest.dry_run import examine
from crm_analytics.analytics.ingest.errors import RefusedFile
from crm_analytics_tests.analytics import reference_model
from crm_analytics_tests.analytics.ingest.landing_folder import NEW_YORK, Landing, text
from crm_analytics_tests.analytics.ingest.samples import read_text
from crm_analytics_tests.chance import TIMES, generator

RANGE = '"October 1, 2025 - October 31, 2025"\n'
WEEKS = ("Sep 29, 2025", "Oct 6, 2025", "Oct 13, 2025", "Oct 20, 2025", "Oct 27, 2025")
#: As Google Ads exports it: equal costs in every week, the first of which begins in September.
WEEKLY = (
    "Campaign report\n"
    + RANGE
    + text(
        ("Week", "Campaign", "Currency code", "Cost"),
        [*((week, "Brand", "USD", "140.00") for week in WEEKS), ("Total: Account", "--", "USD", "700.00")],
    )
)
#: Two campaigns of one name, which only their ids tell apart.
SAME_NAME = (
    "Campaign report\n"
    '"September 1, 2025 - September 30, 2025"\n'
    "Campaign status,Campaign,Campaign ID,Currency code,Cost\n"
    "Removed,Brand,111,USD,310.00\n"
    "Enabled,Brand,222,USD,690.00\n"
    "Enabled,Search,333,USD,500.00\n"
    'Total: Account,--,--,USD,"1,500.00"\n'
)


def spend(landing: Landing) -> list[tuple[date, str, str, Decimal]]:
    """Returns what is stored."""
    return landing.rows("SELECT month, campaign_id, campaign, amount FROM raw.google_spend ORDER BY 1, 2, 3")


def split(header: Sequence[str], *rows: Sequence[str], total: str = "") -> str:
    """Returns a report on October with these columns, and with a total if there is one."""
    lines = [*rows, ("Total: Account", *[""] * (len(header) - 2), total)] if total else rows
    return RANGE + text(header, lines)


def amounts(folder: Path, content: str) -> list[Decimal]:
    """Returns the amounts of the records that count."""
    return [Decimal(row["amount"]) for row in read_text(folder, "google_spend", content).rows]


def refusal(folder: Path, content: str) -> str:
    """Returns why a report is refused."""
    with pytest.raises(RefusedFile) as refused:
        read_text(folder, "google_spend", content)
    return refused.value.why


def test_weeks_add_up_to_the_month_of_the_report(landing: Landing) -> None:
    """Weeks that cost the same aren't repeats, and a week that begins before the range belongs to the range's month."""
    landing.write("google_spend/good_oct.csv", "Month,Campaign,Amount\n2025-10,Brand,650.00\n", day=1)
    landing.load("google_spend")
    landing.write("google_spend/google_ads_oct_weekly.csv", WEEKLY, day=2)
    counts = landing.load_one("google_spend").counts
    assert (counts.records_read, counts.updated, counts.duplicates, counts.summary_lines) == (6, 5, 0, 1)
    assert spend(landing) == [(date(2025, 10, 1), "", "Brand", Decimal("700.00"))]


def test_weeks_need_no_total(tmp_path: Path) -> None:
    """Records that a known column tells apart add up without the file's total."""
    assert amounts(tmp_path, WEEKLY.rsplit("Total", 1)[0]) == [Decimal(140)] * 5


def test_weeks_without_a_month_are_refused(tmp_path: Path) -> None:
    """A week can lie in two months, so weeks don't tell the month where the lines above the header don't."""
    why = refusal(tmp_path, WEEKLY.split("\n", 2)[2])
    assert (
        why.startswith("no month") and "a week can lie in two months; export it with the segment Day" in why
    )
    assert "several months and no date column" in refusal(
        tmp_path, WEEKLY.replace("October 31", "November 30")
    )


@pytest.mark.parametrize(
    "header",
    [
        "Device", "Network (with search partners)", "segments.device", "segments.week", "Ad group", "ad_group.name",
        "Landing page", "Keyword", "ad_group_criterion.keyword.text", "Account", "Campaign type", "Hour of the day",
    ],
)  # fmt: skip
@pytest.mark.parametrize("cost", ["2.00", "3.00"])
def test_known_splits_add_up(header: str, cost: str, tmp_path: Path) -> None:
    """Parts of a split by a column that is known to split add up, whether they cost the same or not."""
    rows = [
        ("2025-10-02", "A", "x", "1.00"),
        ("2025-10-02", "B", "x", "2.00"),
        ("2025-10-02", "B", "y", cost),
    ]
    content = text(("Day", "Campaign", header, "Cost"), rows)
    assert amounts(tmp_path, content) == [Decimal("1.00"), Decimal("2.00"), Decimal(cost)]


UNKNOWN_SPLITS = [
    (("Campaign", "Variant", "Cost"), [("A", "x", "1"), ("B", "x", "140"), ("B", "y", "140")]),
    (("Campaign", "Clicks", "Cost"), [("A", "7", "1"), ("B", "7", "140"), ("B", "8", "140")]),
    (("Campaign", "", "Cost"), [("A", "7", "1"), ("B", "7", "140"), ("B", "", "140")]),
    # known columns that are the same, and a control character that separates nothing
    (
        ("Campaign", "Device", "Clicks", "Cost"),
        [("A", "m", "7", "1"), ("B", "m", "7", "140"), ("B", "m", "\x1f8", "140")],
    ),
    (("Campaign", "Conversion action", "Cost"), [("A", "x", "1"), ("B", "x", "140"), ("B", "y", "140")]),
]


@pytest.mark.parametrize(("header", "rows"), UNKNOWN_SPLITS)
def test_unknown_splits_need_a_total(
    header: tuple[str, ...], rows: list[tuple[str, ...]], tmp_path: Path
) -> None:
    """A split by an unknown column adds up only to the file's own total; without it, both readings are shown."""
    assert sum(amounts(tmp_path, split(header, *rows, total="281.00"))) == 281
    why = refusal(tmp_path, split(header, *rows))
    assert (
        "2 records of 2025-10, B (records 2, 3)" in why
        and "the file's sum is 281.00 if such records are parts, 141.00 if they repeat one another" in why
    )
    assert "export the file with its total line" in why
    # the cost may also be repeated in every part, which is no split
    why = refusal(tmp_path, split(header, *rows, total="141.00"))
    assert "Total: Account: 141.00; sum of the accepted records: 281.00, 140.00 more" in why
    assert "141.00 if they repeat one another" in why


def test_costs_that_differ_are_no_conflict_but_a_split(landing: Landing) -> None:
    """Records that differ only in their costs are parts of a split that the file does not show: the total decides."""
    landing.write("google_spend/1.csv", "Month,Campaign,Amount\n2025-10,B,7.00\n", day=1)
    landing.load("google_spend")
    rows = "Month,Campaign,Amount\n2025-10,B,1.00\n2025-10,B,2.00\n"
    landing.write("google_spend/2.csv", rows, day=2)
    refused = landing.load_one("google_spend")
    assert refused.status == "refused" and refused.message is not None
    assert "differ in Amount" in refused.message
    assert "3.00 if such records are parts, from 1.00 to 2.00 if they repeat one another" in refused.message
    assert spend(landing) == [(date(2025, 10, 1), "", "B", Decimal("7.00"))]
    landing.write("google_spend/2.csv", rows + "Total,,3.00\n", day=3)
    assert landing.load_one("google_spend").status == "loaded"
    assert spend(landing) == [(date(2025, 10, 1), "", "B", Decimal("3.00"))]


@pytest.mark.parametrize(
    ("total", "counted", "duplicates"), [("", 1, 1), ("140.00", 1, 1), ("280.00", 2, 0), ("150.00", None, 0)]
)
def test_repeats(total: str, counted: int | None, duplicates: int, tmp_path: Path) -> None:
    """Records that are identical in every cell count once, unless the file's total includes them."""
    content = split(
        ("Campaign", "Device", "Clicks", "Cost"),
        ("B", "Mobile", "7", "140.00"),
        ("B", "Mobile", "7", " 140 "),
        total=total,
    )
    if counted is None:
        why = refusal(tmp_path, content)
        assert "150.00; sum of the accepted records: 140.00, 10.00 less" in why
        assert "1 repeat counted once" in why and "280.00 if such records are parts" in why
        return
    whole = read_text(tmp_path, "google_spend", content)
    assert (len(whole.rows), whole.file.records.duplicates) == (counted, duplicates)


@pytest.mark.parametrize(
    ("rows", "total"),
    [
        ([("Brand", "5", "0.00"), ("Brand", "6", "0.00"), ("Other", "1", "5")], 5),
        ([("Brand", "5", "0.00"), ("Brand", "6", "7"), ("Brand", "0", "0")], 7),
        ([("Brand", "5", "0.00"), ("Brand", "5", "0.00"), ("Brand Total", "10", "0")], 0),
    ],
)
def test_records_without_cost_leave_no_doubt(rows: list[tuple[str, ...]], total: int, tmp_path: Path) -> None:
    """Removed campaigns of one name cost nothing, whatever else their records have: the sum is the same."""
    assert sum(amounts(tmp_path, split(("Campaign", "Impr.", "Cost"), *rows))) == total


def test_repeats_are_counted_in_the_ledger(landing: Landing) -> None:
    """A repeated day counts once and is a duplicate in the ledger, which adds up."""
    rows = [("2024-10-01", "Ovens", "10"), ("2024-10-01", "Ovens", "10.00"), ("2024-10-02", "Ovens", "20")]
    path = landing.write("google_spend/1.csv", text(("Day", "Campaign", "Amount"), rows), day=1)
    report = examine(path, timezone=NEW_YORK, landing=landing.folder)
    assert (report.duplicates, report.months) == (1, {date(2024, 10, 1): 2})
    counts = landing.load_one("google_spend").counts
    assert (counts.records_read, counts.inserted, counts.duplicates) == (3, 2, 1)
    assert landing.rows("SELECT amount FROM raw.google_spend") == [(Decimal("30.00"),)]


def test_campaigns_of_one_name_add_up(landing: Landing) -> None:
    """Two campaigns of one name have a row each, and the month's cost includes both."""
    landing.write("google_spend/google_ads_sep.csv", SAME_NAME, day=1)
    assert landing.load_one("google_spend").counts.inserted == 3
    september = date(2025, 9, 1)
    assert spend(landing) == [
        (september, "111", "Brand", Decimal("310.00")),
        (september, "222", "Brand", Decimal("690.00")),
        (september, "333", "Search", Decimal("500.00")),
    ]
    ((cost,),) = landing.rows(
        "SELECT sum(cost) FROM analytics.daily_spend_between('2025-09-01', '2025-10-01')"
    )
    assert cost == Decimal("1500.00")


def test_campaigns_of_one_name_and_one_cost_are_no_repeats(tmp_path: Path) -> None:
    """Two ids with the same cost, and everything else the same, are two campaigns."""
    content = text(
        ("Month", "Campaign", "Campaign ID", "Cost"),
        [("2025-10", "Brand", "111", "5"), ("2025-10", "Brand", "222", "5")],
    )
    assert amounts(tmp_path, content) == [Decimal(5), Decimal(5)]
    api = (
        "campaign.id,campaign.name,segments.month,metrics.cost_micros\n"
        "1,B,2025-10-01,5000000\n2,B,2025-10-01,5000000\n"
    )
    assert amounts(tmp_path, api) == [Decimal(5), Decimal(5)]


def test_ids_that_a_spreadsheet_rounded_count_as_none(tmp_path: Path) -> None:
    """A rounded id is that of several campaigns: their names tell them apart, and if these are the same, a total must."""
    header = ("Campaign", "Campaign ID", "Cost")
    rounded = "2.01E+10"
    whole = read_text(
        tmp_path, "google_spend", split(header, ("Brand", rounded, "310"), ("Generic", rounded, "690"))
    )
    assert [(row["campaign_id"], row["campaign"]) for row in whole.rows] == [("", "Brand"), ("", "Generic")]
    same = [("Brand", rounded, "310"), ("Brand", rounded, "310.01")]
    assert "620.01 if such records are parts" in refusal(tmp_path, split(header, *same))
    assert amounts(tmp_path, split(header, *same, total="620.01")) == [Decimal(310), Decimal("310.01")]


def test_files_with_and_without_ids_replace_each_other(landing: Landing) -> None:
    """Whether files have ids makes no difference to which of them counts, nor a warning of removed campaigns."""
    named = text(("Month", "Campaign", "Amount"), [("2025-09", "Brand", "900"), ("2025-09", "Old", "1")])
    landing.write("google_spend/1.csv", named, day=1)
    landing.load("google_spend")
    landing.write("google_spend/2.csv", SAME_NAME, day=2)
    result = landing.load_one("google_spend")
    assert result.warnings == ["2025-09: removed 1 campaign of an older file, not in this one"]
    assert [row[1:] for row in spend(landing)] == [
        ("111", "Brand", 310), ("222", "Brand", 690), ("333", "Search", 500),
    ]  # fmt: skip
    landing.write("google_spend/3.csv", named, day=3)
    landing.load("google_spend", force=True)
    assert [row[1:] for row in spend(landing)] == [("", "Brand", 900), ("", "Old", 1)]


@pytest.mark.parametrize("arrival", [(1, 2, 3), (3, 2, 1), (2, 3, 1), (2, 1, 3), (1, 3, 2), (3, 1, 2)])
def test_incomplete_months_with_and_without_ids(arrival: tuple[int, ...], landing: Landing) -> None:
    """Of incomplete months the newest file that names a campaign counts for it, so that none counts twice."""
    header = ("Month", "Campaign ID", "Campaign", "Amount")
    files = {
        1: text(header[:1] + header[2:], [("2025-09", "Brand", "900"), ("2025-09", "Bad", "x")]),
        2: text(
            header,
            [("2025-09", "1", "Brand", "10"), ("2025-09", "2", "Brand", "20"), ("2025-09", "3", "Bad", "x")],
        ),
        3: text(header[:1] + header[2:], [("2025-09", "Other", "5"), ("2025-09", "Bad", "x")]),
    }
    for day in arrival:
        landing.write(f"google_spend/{day}.csv", files[day], day=day)
        landing.load_one("google_spend")
    assert [row[1:] for row in spend(landing)] == [("", "Other", 5), ("1", "Brand", 10), ("2", "Brand", 20)]


def test_every_change_of_a_campaign_of_a_name_makes_its_month_stale(landing: Landing) -> None:
    """Two campaigns of one name whose amounts change make the month stale, even if the set of amounts is the same."""
    landing.connection.execute(
        """
        INSERT INTO raw.google_spend (month, campaign_id, campaign, amount, covered_to)
        SELECT '2025-09-01', id, 'Brand', amount, '2025-09-30'
        FROM (VALUES ('1', 5), ('2', 5), ('3', 6)) AS c (id, amount)
        """
    )
    landing.connection.execute("TRUNCATE analytics.stale_months")
    landing.connection.execute(
        "UPDATE raw.google_spend SET amount = CASE campaign_id WHEN '1' THEN 5 ELSE 6 END"
    )
    assert landing.rows("SELECT DISTINCT month FROM analytics.stale_months") == [(date(2025, 9, 1),)]


@pytest.mark.random
def test_random_reports_against_the_reference_model(tmp_path: Path) -> None:
    """Whatever is repeated and split, a report has the sum that the definitions give, or is refused where they do."""
    rng = generator("reports")
    outcomes = set()
    for _ in range(400 * TIMES):
        rows = [
            (rng.choice("AB"), rng.choice("12"), rng.choice("mt"), rng.choice("xy"), amount)
            for amount in rng.choices(["100.00", "250.00", "0.00"], k=rng.randint(1, 4))
        ]
        records = [reference_model.SpendRecord(row[:2], row[2], row[3], Decimal(row[4])) for row in rows]
        everything = sum((record.amount for record in records), Decimal(0))
        once = sum((record.amount for record in set(records)), Decimal(0))
        total = rng.choice([None, everything, once, everything + 1])
        header = ("Campaign", "Campaign ID", "Device", "Variant", "Cost")
        content = split(header, *rows, total="" if total is None else str(total))
        expected = reference_model.spend_of_report(records, total)
        outcomes.add((total is None, expected is None, expected == everything))
        try:
            found: Decimal | None = sum(amounts(tmp_path, content), Decimal(0))
        except RefusedFile:
            found = None
        assert found == expected, content
    assert len(outcomes) >= 5, "all kinds of outcomes occur"
