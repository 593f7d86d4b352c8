"""A file's own totals: which lines state them, and what a total that disagrees does to the file."""

from __future__ import annotations

import itertools
from decimal import Decimal
from pathlib import Path

import pytest

from crm_analytics.analytics.ingest.dry_run import examine
from crm_analytics.analytics.ingest.errors import RefusedFile
from crm_analytics.analytics.warehouse.check_queries import totals_sql
from crm_analytics_tests.analytics.ingest.landing_folder import NEW_YORK, PAYMENTS, Landing, text
from crm_analytics_tests.analytics.ingest.samples import read_text
from crm_analytics_tests.chance import TIMES, generator

RANGE = '"October 1, 2025 - October 31, 2025"\n'
GROUPED = (
    "Spend by campaign\n" + RANGE + "Group,Campaign,Cost\n"
    "Search,Brand,300.00\nSearch,Generic,200.00\nSearch Total,,500.00\n"
    "Display,Remarketing,100.00\nDisplay Total,,100.00\nGrand Total,,600.00\n"
)


def campaigns(folder: Path, content: str) -> dict[str, Decimal]:
    """Returns the campaigns that are records, with their amounts."""
    whole = read_text(folder, "google_spend", content)
    return {row["campaign"]: Decimal(row["amount"]) for row in whole.rows}


def refusal(folder: Path, content: str) -> str:
    """Returns why a report is refused."""
    with pytest.raises(RefusedFile) as refused:
        read_text(folder, "google_spend", content)
    return refused.value.why


# which lines are totals


def test_totals_of_groups_are_no_records(landing: Landing) -> None:
    """Lines that add up the group above them are summary lines: 600.00, not 1,200.00."""
    landing.write("google_spend/google_spend_rollup.csv", GROUPED, day=1)
    counts = landing.load_one("google_spend").counts
    assert (counts.records_read, counts.inserted, counts.summary_lines) == (6, 3, 3)
    assert landing.rows("SELECT campaign, amount FROM raw.google_spend ORDER BY 1") == [
        ("Brand", Decimal(300)), ("Generic", Decimal(200)), ("Remarketing", Decimal(100)),
    ]  # fmt: skip
    assert landing.rows("SELECT stated_total, accepted_total, total_agrees FROM raw.source_files") == [
        (Decimal("600.00"), Decimal("600.00"), True)
    ]


@pytest.mark.parametrize(
    "content",
    [
        # without a grand total; without a column of groups; with the label among the campaigns; subtotals of subtotals
        GROUPED.replace("Grand Total,,600.00\n", ""),
        RANGE + "Campaign,Cost\nBrand,300\nGeneric,200\nSearch Total,500\nRemarketing,100\nRemarketing Total,100\n",
        RANGE + "Group,Campaign,Cost\nS,Brand,300\nS,Generic,200\nS,Total,500\nD,Remarketing,100\nD,Total,100\n",
        RANGE + "Type,Group,Campaign,Cost\nS,A,Brand,300\nS,A Total,,300\nS,B,Generic,200\nS,B total:,,200\n"
        "S Total,,,500\nD,C,Remarketing,100\nD,C Total,,100\nD Total,,,100\n",
        RANGE + "Campaign,Cost\nBrand,300\nGeneric,200\nSubtotal,500\nRemarketing,100\nSub-total,100\nTotal,600\n",
        # a pivot table by month, in which the line of the total has the month in its label
        "Month,Campaign,Cost\n2025-10,Brand,300\n2025-10,Generic,200\n2025-10,Remarketing,100\n2025-10 Total,,600\n",
    ],
)  # fmt: skip
def test_other_forms_of_groups(content: str, tmp_path: Path) -> None:
    """Totals of groups are recognized by what they add up, wherever their label is."""
    assert campaigns(tmp_path, content) == {"Brand": 300, "Generic": 200, "Remarketing": 100}


def test_parts_of_a_campaign_can_have_a_total(tmp_path: Path) -> None:
    """A total of ad groups in the column of ad groups is no further ad group."""
    content = RANGE + "Campaign,Ad group,Cost\nBrand,x,300\nBrand,y,200\nBrand,Total,500\nOther,z,7\n"
    rows = read_text(tmp_path, "google_spend", content).rows
    assert [row["amount"] for row in rows] == ["300", "200", "7"]


def test_names_that_look_like_totals(tmp_path: Path) -> None:
    """A campaign whose name looks like a total's, and which adds up nothing, is a campaign."""
    content = (
        RANGE + "Campaign,Cost\nBrand US,300\nBrand CA,200\nBrand Total,501\nTotal Comfort,5\nTotality,1\n"
    )
    assert campaigns(tmp_path, content) == {
        "Brand US": 300, "Brand CA": 200, "Brand Total": 501, "Total Comfort": 5, "Totality": 1,
    }  # fmt: skip
    dated = (
        "Month,Campaign,Cost\n2025-10,Total,5\n2025-10,Brand Total,0.00\n2025-10,Total Comfort,6\n,Total,11\n"
    )
    assert campaigns(tmp_path, dated) == {"Total": 5, "Brand Total": 0, "Total Comfort": 6}


@pytest.mark.parametrize(
    ("line", "rows_above"),
    [
        ("Total Comfort", "Brand US,300\nBrand CA,200\n"),
        ("Family Total", "Generic,500\n"),
        ("Total", "2025-10,Brand US,300\n2025-10,Brand CA,200\n"),
    ],
)
def test_the_total_of_the_file_tells_a_campaign_from_a_total(
    line: str, rows_above: str, tmp_path: Path
) -> None:
    """A line that may be a campaign and equals the sum above it by chance is what the file's total makes it."""
    dated = rows_above.startswith("2025")
    month = "2025-10," if dated else ""
    header = "Month,Campaign,Cost\n" if dated else RANGE + "Campaign,Cost\n"
    content = f"{header}{rows_above}{month}{line},500\n{month}Other,5\n"
    total = "Total: Account," + ("," if dated else "")
    why = refusal(tmp_path, content)
    assert (
        f"{line}: 500.00, which is also the sum of {rows_above.count('00')} record" in why
        and "the file's sum is 505.00 if the line is a total and 1,005.00 if it is a record" in why
    )
    assert line not in campaigns(tmp_path, content + f"{total}505\n")
    assert campaigns(tmp_path, content + f"{total}1005\n")[line] == 500
    assert "1,006.00; sum of the accepted records: 505.00" in refusal(tmp_path, content + f"{total}1006\n")


@pytest.mark.parametrize("name", ["", "--", "Sum", "All campaigns", "overall:"])
def test_a_sum_without_a_name_is_a_total_or_a_record(name: str, tmp_path: Path) -> None:
    """A line without a name of its own that adds up the campaigns above it is not spent once more in silence."""
    content = RANGE + f"Campaign,Cost\nBrand,100\nGeneric,200\n{name},300\n"
    why = refusal(tmp_path, content)
    assert f"line 5, {name or 'no Campaign'}: 300.00" in why
    assert "300.00 if the line is a total and 600.00 if it is a record" in why
    assert campaigns(tmp_path, content + "Total,300\n") == {"Brand": 100, "Generic": 200}
    assert sum(campaigns(tmp_path, content + "Total,600\n").values()) == 600


@pytest.mark.parametrize(
    "content",
    [
        # a pivot table whose months end with their sums; a campaign ID in which only the total has none
        "Month,Campaign,Cost\n2025-10,Brand,100\n2025-10,Other,200\n2025-10,,300\n2025-11,Brand,50\n2025-11,,50\n",
        # a blank row above the line; a total of devices, of ad groups, of weeks, of ids without names
        RANGE + "Campaign,Cost\nBrand,100\nGeneric,200\n,\n,300\n",
        RANGE + "Campaign,Device,Cost\nBrand,Mobile,100\nBrand,Desktop,200\nBrand,All devices,300\n",
        RANGE + "Campaign,Ad group,Cost\nBrand,x,100\nBrand,y,200\nBrand,--,300\nOther,z,5\n",
        RANGE + "Week,Cost\n2025-10-06,100\n2025-10-13,200\n,300\n",
        RANGE + "Campaign ID,Cost\n1,100\n2,200\n,300\n",
        RANGE + "Campaign ID,Campaign,Cost\n1,Brand,100\n2,Brand,200\n--,--,300\n",
    ],
)
def test_relatives_of_a_sum_without_a_name(content: str, tmp_path: Path) -> None:
    """Neither a date nor other columns make such a line certainly a record."""
    assert "which is also the sum of 2 records above it" in refusal(tmp_path, content)


@pytest.mark.parametrize(
    ("content", "total"),
    [
        # lists that stop naming campaigns, or never did; another amount; parts of a campaign without a name
        ("Month,Campaign,Amount\n2025-08,Brand,100\n2025-09,,100\n2025-10,,200\n2025-11,all,400\n", 800),
        ("Month,Campaign,Amount\n2025-09,,100\n2025-10,,100\n2025-11,,200\n", 400),
        (RANGE + "Campaign,Cost\nBrand,100\n--,120\n", 220),
        (RANGE + "Device,Campaign,Cost\nMobile,,100\nDesktop,,100\nTablet,,200\n", 400),
        ("Day,Campaign,Cost\n2025-10-01,Brand,10\n2025-10-01,--,5\n2025-10-02,Brand,10\n2025-10-02,--,5\n", 30),
    ],
)  # fmt: skip
def test_spend_without_a_name(content: str, total: int, tmp_path: Path) -> None:
    """Spend that belongs to no campaign counts, and needs no total."""
    rows = read_text(tmp_path, "google_spend", content).rows
    assert sum(Decimal(row["amount"]) for row in rows) == total


def test_odd_lines_do_no_harm(tmp_path: Path) -> None:
    """A total may be anywhere and lack an amount, and other cells of its line don't matter."""
    content = (
        RANGE + "Campaign,CTR,Cost\nTotal,,\nA,5%,3\nTotal: x,5%,--\n,,\nTotal,5%,abc\nTotal,7%,3.00\nTotal\n"
    )
    whole = read_text(tmp_path, "google_spend", content)
    assert (len(whole.rows), whole.file.records.summary_lines) == (1, 5)
    assert campaigns(tmp_path, RANGE + "Campaign,Cost\nTotal: Account,0.00\n") == {}


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (["A,3.00", "B,2.00", "Average,2.50"], {"A": "3.00", "B": "2.00"}),
        (["A,3.00", "B,2.01", "Avg.:,2.51", "Total,5.01"], {"A": "3.00", "B": "2.01"}),
        (["A,3.00", "B,2.00", "Total,5.00", "Mean,2.50"], {"A": "3.00", "B": "2.00"}),
        # a campaign may be called like that
        (["A,3.00", "B,2.00", "Average,2.70"], {"A": "3.00", "B": "2.00", "Average": "2.70"}),
        (["Average,2.50", "B,2.00", "Total,4.50"], {"Average": "2.50", "B": "2.00"}),
    ],
)
def test_average_of_the_records_is_no_record(
    lines: list[str], expected: dict[str, str], tmp_path: Path
) -> None:
    """A line with the average of the records above it is a summary line; with any other amount it is a campaign."""
    content = '"October 1, 2025 - October 31, 2025"\n' + "\n".join(["Campaign,Cost", *lines]) + "\n"
    assert campaigns(tmp_path, content) == {name: Decimal(amount) for name, amount in expected.items()}


@pytest.mark.parametrize("amount", ["USD 90.00", "€90", "90.1234567", '"90,5"'])
def test_a_total_that_cannot_be_read_is_a_warning(amount: str, landing: Landing) -> None:
    """A file whose total says nothing is not taken for one that has none."""
    landing.write("google_spend/a.csv", RANGE + f"Campaign,Cost\nBrand,50\nGeneric,30\nTotal,{amount}\n")
    landing.write("google_spend/b.csv", RANGE + "Campaign,Cost\nBrand,50\nGeneric,30\nTotal,--\n")
    unread, blank = landing.load("google_spend").files
    found = amount.strip('"')
    assert unread.warnings == [
        f"line 5, Total: {found}: this total cannot be read, so the sum of the records was not compared with it"
    ]
    assert blank.warnings == []


def test_groups_in_files_of_single_records(tmp_path: Path) -> None:
    """A total of a group is no record that lacks its date: otherwise it would be quarantined."""
    rows = [("P1", "1", "2024-11-02", "30"), ("P2", "2", "2024-11-02", "12.50")]
    content = text(PAYMENTS[:4], [*rows, ("Cash Total", "", "", "42.50"), ("Card Total", "", "", "9")])
    whole = read_text(tmp_path, "payments", content)
    assert [row["payment_id"] for row in whole.rows] == ["P1", "P2"]
    assert (whole.file.records.summary_lines, len(whole.rejected)) == (1, 1)


@pytest.mark.parametrize(
    ("source", "header", "records", "total"),
    [
        ("payments", "Payment ID,Job #,Amount,Date", ["D1,1,120,2025-11-05", "D2,2,80,2025-11-06"], "Total,,200,2025-11-30"),
        ("payments", "Job #,Amount,Date", ["1,120,2025-11-05", "2,80,2025-11-06"], "Total for November,200,2025-11-30"),
        ("elocals_leads", "Lead ID,Date,Cost", ["1,2025-11-05,20", "2,2025-11-06,30"], "Grand total,2025-11-30,50"),
        ("elocals_leads", "Lead ID,Date,Cost", ["1,2025-11-05,20", "2,2025-11-06,30"], "Total,2025-11-30,60"),
    ],
)  # fmt: skip
def test_a_total_with_a_date_is_no_record(
    source: str, header: str, records: list[str], total: str, tmp_path: Path
) -> None:
    """Where an id belongs, a total's label is none: a list's last line is no further payment or lead."""
    content = "\n".join([header, *records, total]) + "\n"
    whole = read_text(tmp_path, source, content)
    assert (len(whole.rows), whole.rejected) == (2, [])
    # a client may be called like that
    named = "\n".join([f"Client,{header}", *(f"A,{line}" for line in records), f"Total,Z{records[0]}"]) + "\n"
    assert len(read_text(tmp_path, source, named).rows) == 3


def test_groups_in_a_long_file(tmp_path: Path) -> None:
    """The records that a total adds up may be in several blocks of the file."""
    amounts = [Decimal(number % 977) / 100 for number in range(90_000)]
    lines, start = [], 0
    for end in (1, 25_000, 25_001, 70_000, 90_000):
        lines += [(f"P{number}", "1", "2024-11-02", str(amounts[number])) for number in range(start, end)]
        lines.append(("Cash Total", "", "", str(sum(amounts[start:end]))))
        start = end
    content = text(PAYMENTS[:4], [*lines, ("Total", "", "", str(sum(amounts)))]).replace(
        "Cash", '"Cash, ""x"""'
    )
    whole = read_text(tmp_path, "payments", content)
    assert (whole.file.records.summary_lines, len(whole.rows), whole.rejected) == (6, 90_000, [])


@pytest.mark.random
def test_random_groups(tmp_path: Path) -> None:
    """Reports with groups in groups, in three layouts, have the sum of their campaigns."""
    rng = generator("groups")
    for number in range(150 * TIMES):
        layout, dated = rng.choice(["column", "name"]), rng.random() < 0.3
        lines: list[tuple[str, str, str]] = []
        leaves: dict[str, Decimal] = {}
        for group in range(rng.randint(1, 4)):
            inside = Decimal(0)
            for _ in range(rng.randint(1, 4)):
                amount = Decimal(rng.randint(1, 10**6)) / 100
                name = f"G{group} c{len(leaves)}"
                leaves[name] = amount
                inside += amount
                lines.append((f"G{group}", name, str(amount)))
            label = f"G{group} {rng.choice(['Total', 'total:', 'Totals'])}"
            lines.append((label, "", str(inside)) if layout == "column" else ("", label, str(inside)))
        if rng.random() < 0.5:
            lines.append(("Grand Total", "", str(sum(leaves.values()))))
        if dated:
            rows = [("" if "otal" in line[0] + line[1] else "2025-10", *line) for line in lines]
            content = text(("Month", "Group", "Campaign", "Cost"), rows)
        else:
            content = RANGE + text(("Group", "Campaign", "Cost"), lines)
        assert campaigns(tmp_path, content) == leaves, (number, content)


# totals that disagree


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        # a record that isn't accepted
        (
            'Campaign,Cost\nA,100.00\nB,"1.234,50"\nTotal: Account,1334.50\n',
            "line 5, Total: Account: 1,334.50; sum of the accepted records: 100.00, 1,234.50 less; 1 record not accepted"
            " (line 4: Cost '1.234,50': ambiguous decimal separator)",
        ),
        # records missing, records too many, no record at all, a total above records that have none
        ("Campaign,Cost\nA,100.00\nTotal,300\n", "line 4, Total: 300.00; sum of the accepted records: 100.00"),
        ("Campaign,Cost\nA,100.00\nTotal,30\n", "100.00, 70.00 more; 0 records not accepted"),
        ("Campaign,Cost\nTotal: Account,30\n", "sum of the accepted records: 0.00, 30.00 less"),
        ("Campaign,Cost\nA,1\nTotal,1\nB,5\n", "line 4, Total: 1.00; sum of the accepted records: 6.00"),
        # the wider total has to agree, because the narrower one may leave out the record that isn't accepted
        (
            "Campaign,Cost\nA,100.00\nB,x\nTotal: Search,100.00\nTotal: Account,200.00\n",
            "line 6, Total: Account: 200.00; sum of the accepted records: 100.00, 100.00 less",
        ),
        # the total of a group
        (
            "Group,Campaign,Cost\nS,A,300\nS,B,200\nS Total,,510\nGrand Total,,500\n",
            "line 5, S Total: 510.00; sum of the 2 records above it: 500.00, 10.00 less",
        ),
        # micros: the total is in micros, too
        ("Campaign,cost_micros\nA,1000000\nTotal,2000000\n", "2.00; sum of the accepted records: 1.00, 1.00 less"),
    ],
)  # fmt: skip
def test_spend_whose_total_disagrees_is_refused(content: str, expected: str, landing: Landing) -> None:
    """Such a file replaces no month: it names the total, the sum, the difference, what is missing, and the remedy."""
    landing.write("google_spend/1.csv", "Month,Campaign,Amount\n2025-10,A,7.00\n", day=1)
    landing.load("google_spend")
    path = landing.write("google_spend/2.csv", RANGE + content, day=2)
    report = examine(path, timezone=NEW_YORK, landing=landing.folder)
    refused = landing.load_one("google_spend")
    assert refused.status == "refused" and refused.message == report.refusal
    assert expected in (refused.message or "") and "export the file again" in (refused.message or "")
    assert landing.rows("SELECT campaign, amount FROM raw.google_spend") == [("A", Decimal("7.00"))]
    assert landing.rows("SELECT count(*) FROM raw.rejected_rows") == [(0,)]


def test_wider_totals_are_warnings(landing: Landing) -> None:
    """The narrowest total that covers the records decides; what a wider one has more is a warning with the difference."""
    content = "Campaign,Cost\nA,100.00\nB,50.00\nTotal: Search,100.00\nTotal: Campaigns,150.00\nTotal: Account,200.00\n"
    landing.write("google_spend/1.csv", RANGE + content, day=1)
    result = landing.load_one("google_spend")
    assert result.warnings == [
        "line 7, Total: Account: 200.00, 50.00 more than the records of this file: it adds up something that the file does"
        " not have"
    ]
    assert landing.rows("SELECT stated_total, accepted_total FROM raw.source_files") == [(150, 150)]


@pytest.mark.parametrize(
    ("total", "agrees"), [("2.01", True), ("1.99", True), ("2.02", False), ("1.98", False)]
)
def test_half_a_cent_for_each_record(total: str, agrees: bool, tmp_path: Path) -> None:
    """Records and total are rounded one by one: two records may be off by a cent, not by two."""
    content = RANGE + f"Campaign,Cost\nA,1.00\nB,1.00\nTotal,{total}\n"
    if agrees:
        assert sum(campaigns(tmp_path, content).values()) == 2
    else:
        assert "total disagrees" in refusal(tmp_path, content)


def test_days_in_micros_agree_with_a_total_in_micros(landing: Landing) -> None:
    """The sum is compared before it is rounded to what is stored."""
    rows = [(f"2024-10-{day:02}", "Ovens", "5000") for day in range(1, 4)]
    content = text(("Day", "Campaign", "cost_micros"), [*rows, ("Total", "", "15000")])
    landing.write("google_spend/a.csv", content, day=1)
    assert landing.load_one("google_spend").warnings == []
    assert landing.rows("SELECT amount FROM raw.google_spend") == [(Decimal("0.02"),)]


ROWS = [
    ("P1", "1", "2024-11-02", "30", "", "", ""),
    ("P1", "1", "2024-11-02", "30", "", "", ""),
    ("P2", "2", "2024-11-02", "12.50", "", "", ""),
]  # fmt: skip


def failing(landing: Landing) -> list[tuple[str, str, str]]:
    """Returns path, stated and accepted total of the files with which the check fails."""
    return [row[:3] for row in landing.rows(totals_sql(), {"source": "payments"})]


def test_other_sources_warn_and_fail_their_check(landing: Landing) -> None:
    """Files of single records load, but a total that isn't the sum of the accepted records, without repeats, fails the check."""
    content = text(PAYMENTS, [*ROWS, ("Total", "", "", "72.50", "", "", "")])
    path = landing.write("payments/1.csv", content, day=1)
    expected = (
        'Amount "line 5, Total: 72.50; sum of the accepted records: 42.50, 30.00 less; 0 records not accepted, 1 repeat'
        ' counted once": total disagrees; accepted: a total that is the sum of the records, give or take half a cent for'
        " each; correct what was not accepted, or export the file again with all of its records"
    )
    assert landing.load_one("payments").warnings == [expected]
    assert failing(landing) == [("payments/1.csv", "72.50", "42.50")]
    assert "72.50; sum of the accepted records: 42.50" in examine(path, timezone=NEW_YORK).warnings[0]
    # new content at the path answers it
    landing.write("payments/1.csv", text(PAYMENTS, [*ROWS, ("Total", "", "", "42.50", "", "", "")]), day=2)
    assert landing.load_one("payments").warnings == []
    assert failing(landing) == []


def test_quarantined_records_that_are_answered_answer_the_total(landing: Landing) -> None:
    """A total that lacks a quarantined record is answered as soon as that record is."""
    bad = ("P3", "2", "2024-11-02", "1.234,50", "", "", "")
    total = ("Total: all", "", "", "1,277.00", "", "", "")
    landing.write("payments/1.csv", text(PAYMENTS, [ROWS[0], ROWS[2], bad, total]), day=1)
    (warning,) = landing.load_one("payments").warnings
    assert "1 record not accepted (line 4: Amount '1.234,50': ambiguous decimal separator)" in warning
    assert failing(landing) == [("payments/1.csv", "1277.00", "42.50")]
    landing.write("payments/2.csv", text(PAYMENTS, [("P3", "2", "2024-11-02", "1234.50", "", "", "")]), day=2)
    landing.load("payments")
    assert failing(landing) == []


def test_conflicts_are_left_out_of_the_sum(landing: Landing) -> None:
    """Records that only a comparison refuses are not in the sum that the total is compared with."""
    conflict = ("P2", "2", "2024-11-02", "13", "", "", "")
    landing.write(
        "payments/1.csv", text(PAYMENTS, [*ROWS, conflict, ("Total", "", "", "55.50", "", "", "")]), day=1
    )
    (warning,) = landing.load_one("payments").warnings
    assert "sum of the accepted records: 30.00, 25.50 less; 2 records not accepted, 1 repeat" in warning


def test_files_in_any_order_state_the_same(landing: Landing) -> None:
    """A late file's total is compared with what the file says, not with what newer files left of it."""
    files = {
        1: text(PAYMENTS, [ROWS[0], ROWS[2], ("Total", "", "", "42.50", "", "", "")]),
        2: text(PAYMENTS, [("P1", "1", "2024-11-02", "31", "", "", ""), ("Total", "", "", "31", "", "", "")]),
    }
    for arrival in itertools.permutations(files):
        landing.connection.execute("TRUNCATE raw.payments, raw.source_files, raw.rejected_rows CASCADE")
        for path in landing.folder.rglob("*.csv"):
            path.unlink()
        for day in arrival:
            landing.write(f"payments/{day}.csv", files[day], day=day)
            assert landing.load_one("payments").status == "loaded"
        assert landing.rows(
            "SELECT path, stated_total, accepted_total, total_agrees FROM raw.source_files ORDER BY 1"
        ) == [("payments/1.csv", Decimal("42.50"), Decimal("42.50"), True), ("payments/2.csv", 31, 31, True)]
