"""Column types: their exact rules, and the fast path that must agree with the rules."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from crm_analytics.analytics.ingest.errors import InvalidValue, Reason
from crm_analytics.analytics.ingest.values import column_types, patterns
from crm_analytics.analytics.ingest.values.column_types import (
    CalendarDay,
    Cleaned,
    Context,
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
    read_decimal,
)
from crm_analytics.analytics.ingest.values.dates import read_moment
from crm_analytics.analytics.ingest.values.timezones import zone
from crm_analytics_tests.chance import examples

NEW_YORK = ZoneInfo("America/New_York")
CONTEXT = Context(zone(NEW_YORK), datetime(2025, 12, 20, 17, tzinfo=UTC))
REFUSED = object()


def clean(kind: Kind, *texts: str, context: Context = CONTEXT) -> list[Any]:
    """Returns the cleaned values, `REFUSED` for refused texts."""
    cleaned = kind.clean(pa.array(texts, pa.string()), context)
    return _values(cleaned)


def _values(cleaned: Cleaned) -> list[Any]:
    return [
        REFUSED if row in cleaned.reasons else value for row, value in enumerate(cleaned.values.to_pylist())
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("85", "85"),
        ("244.6", "244.6"),
        ("-95", "-95"),
        ("$1,234.50", "1234.50"),
        ("1,234", "1234"),
        ("(20.00)", "-20.00"),
        ("($20.00)", "-20.00"),
        ("$(20.00)", REFUSED),
        ("-$20.00", "-20.00"),
        ("$-20.00", "-20.00"),
        ("−20", "-20"),
        ("–20", "-20"),
        ("20-", "-20"),
        ("+20", "20"),
        ("\u00a020.00\u00a0", "20.00"),
        ("$\u00a020.00", "20.00"),
        ("1\u00a0234.50", "1234.50"),
        (".5", "0.5"),
        ("-0", "0"),
        ("007", "7"),
        ("", None),
        ("  ", None),
        ("--", None),
        ("N/A", None),
        ("null", None),
        ("NULL", None),
        ("0", "0"),
        ("0.00", "0.00"),
        ("1.234,50", REFUSED),
        ("12,50", REFUSED),
        ("1,23,456", REFUSED),
        ("NaN", REFUSED),
        ("Infinity", REFUSED),
        ("-inf", REFUSED),
        ("1e3", REFUSED),
        ("12.345", REFUSED),
        ("12.500", REFUSED),
        ("-(20)", REFUSED),
        ("(20", REFUSED),
        ("20)", REFUSED),
        ("--20", REFUSED),
        ("-20-", REFUSED),
        ("99999999.99", "99999999.99"),
        ("100000000", REFUSED),
        ("9" * 400, REFUSED),
        ("€20", REFUSED),
        ("20 USD", REFUSED),
        ("=1+1", REFUSED),
        ("$", REFUSED),
        (".", REFUSED),
        ("1.2.3", REFUSED),
    ],
)
def test_money(text: str, expected: object):
    """Amounts are read to the cent or refused: a misread one is wrong in every report, and NULL must not become 0."""
    assert clean(Money(), text) == [expected]


def test_decimal_comma_only_where_declared():
    """`1.234,50` is read only if the source declares a decimal comma; then the point separates thousands."""
    comma = Context(CONTEXT.zone, CONTEXT.exported_at, decimal_comma=True)
    assert clean(Money(), "1.234,50", "20,5", "1.234", "12.34", context=comma) == [
        "1234.50",
        "20.5",
        "1234",
        REFUSED,
    ]


@examples(120)
@given(st.decimals(min_value=-99999999, max_value=99999999, places=2), st.integers(0, 5))
def test_money_written_in_any_accepted_form_comes_back_exactly(amount: Decimal, form: int):
    """Every accepted spelling of an amount is read as that amount, to the cent."""
    size = abs(amount)
    minus = "-" if amount < 0 else ""
    text = [
        f"{amount}",
        f"{minus}${size:,}",
        f"({size})" if amount < 0 else f"${size}",
        f"{size}{minus}",
        f"${minus}{size:,}",
        f" {minus.replace('-', '−')}{size} ",
    ][form]
    assert Decimal(clean(Money(), text)[0]) == amount


_money_like = st.text(alphabet=st.sampled_from(list("0123456789.,-()$ −\u00a0eN")), max_size=14)


@examples(120)
@given(st.lists(_money_like, min_size=1, max_size=20))
def test_fast_money_agrees_with_the_rule(texts: list[str]):
    """Cells that look plain skip the rule, which must give the same values."""
    expected: list[Any] = []
    for text in texts:
        try:
            expected.append(read_decimal(text, 2, column_types.MONEY_LIMIT))
        except InvalidValue:
            expected.append(REFUSED)
    found = clean(Money(), *texts)
    assert [Decimal(value) if isinstance(value, str) else value for value in found] == expected


_id_like = st.one_of(
    st.text(max_size=8),
    st.from_regex(r"\A[0-9A-E.+-]{1,9}\Z"),
    st.sampled_from(
        ["null", "NULL", "nulls", "0", "000", "-", "12E345", "1.2E+05", " x ", "a  b", "x" * 101, "x y" * 400]
    ),
)


@examples(120)
@given(st.lists(_id_like, min_size=1, max_size=20))
@pytest.mark.parametrize("kind", [Text(), Identifier(), JobNumber()])
def test_fast_texts_agree_with_the_rule(kind: Kind, texts: list[str]):
    """Cells that look plain skip the rule, which must give the same values."""
    by_rule = Cleaned(*kind.by_rule(pa.array(texts, pa.string()), CONTEXT))
    assert clean(kind, *texts) == _values(by_rule)


@examples(60)
@given(
    st.lists(
        st.one_of(
            _id_like,
            st.sampled_from(
                ["1.50", "$2", "2025-11-02 01:30:00", "2025-03-09 02:30", "12/20/2025", "1999-01-01"]
            ),
        ),
        min_size=1,
        max_size=20,
    )
)
@pytest.mark.parametrize("kind", [Text(), Label(), Identifier(), Money(), When(), CalendarDay()])
def test_texts_that_repeat_are_cleaned_like_others(kind: Kind, texts: list[str]):
    """A column whose texts repeat much is cleaned by its distinct texts: to the same values, reasons and local dates."""
    times = column_types.SAMPLE
    column = pa.array(texts * times, pa.string())
    many, each = kind.clean(column, CONTEXT), kind.clean_each(column, CONTEXT)
    assert many.values.equals(each.values)
    assert many.reasons == each.reasons
    assert many.local_date == each.local_date
    assert (many.dst_ambiguous is None) == (each.dst_ambiguous is None)
    assert many.dst_ambiguous is None or np.array_equal(many.dst_ambiguous, each.dst_ambiguous)  # type: ignore[arg-type]
    assert many.judged == each.judged


def test_ids():
    """Ids stay verbatim: stripping or rounding one would join two jobs or lose one."""
    assert clean(Identifier(), "12E345", "123456", "001234", " AB12CD ", "", "null") == [
        "12E345", "123456", "001234", "AB12CD", None, None,
    ]  # fmt: skip
    assert clean(Identifier(), "1.2E+05", "1E+05", "1.2e5", "3504.0", "x" * 101) == [REFUSED] * 5
    assert clean(JobNumber(), "3504", "003504", "0", "000", "JB-007", "1.2E+05", "12E345") == [
        "3504", "3504", "0", "0", "JB-007", REFUSED, "12E345",
    ]  # fmt: skip


def test_texts():
    """Labels collapse white space; formulas stay plain text."""
    assert clean(Label(), "  COD \u00a0 Service\n", "null", "") == ["COD Service", None, None]
    assert clean(Label(), "x" * 200, "x" * 201, "x" + " " * 300 + "y") == ["x" * 200, REFUSED, "x y"]
    assert clean(Text(), " =1+1 ", "@x", "+5", "a  b", "null", "x" * 1001) == [
        "=1+1",
        "@x",
        "+5",
        "a  b",
        None,
        REFUSED,
    ]


def local(text: str) -> datetime:
    """Returns an ISO local time of New York in UTC."""
    return datetime.fromisoformat(text).replace(tzinfo=NEW_YORK).astimezone(UTC)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2024-11-15 10:30:00", local("2024-11-15 10:30")),
        ("2024-11-15T10:30:00", local("2024-11-15 10:30")),
        ("2024-11-15 10:30", local("2024-11-15 10:30")),
        ("2024-11-15 10:30:00.250", local("2024-11-15 10:30:00.250")),
        ("2024-11-15", local("2024-11-15")),
        ("Fri Dec 19 2025", local("2025-12-19")),
        ("Fri, Dec 19, 2025 3:05 PM", local("2025-12-19 15:05")),
        ("Friday, December 19th, 2025", local("2025-12-19")),
        ("Fri Dec 19 2025 10:30:00 GMT-0500 (Eastern Standard Time)", local("2025-12-19 10:30")),
        ("19 Dec 2025", local("2025-12-19")),
        ("Dec 19, 2025 12:05 am", local("2025-12-19 00:05")),
        ("11/02/2024", local("2024-11-02")),
        ("11/2/2024 3:05 PM", local("2024-11-02 15:05")),
        ("11/02/2024, 15:05:09", local("2024-11-02 15:05:09")),
        ("2025-12-05 10:21:17 -0500", datetime(2025, 12, 5, 15, 21, 17, tzinfo=UTC)),
        ("2025-12-05T10:21:17+05:30", datetime(2025, 12, 5, 4, 51, 17, tzinfo=UTC)),
        ("2025-12-05T10:21:17Z", datetime(2025, 12, 5, 10, 21, 17, tzinfo=UTC)),
        ("2025-12-05 10:21:17 UTC", datetime(2025, 12, 5, 10, 21, 17, tzinfo=UTC)),
        ("", None),
        ("null", None),
        ("--", None),
        ("2024-02-30", REFUSED),
        ("2024-04-31 10:00:00", REFUSED),
        ("2024-11-15 24:00:00", REFUSED),
        ("2024-11-15 13:00 PM", REFUSED),
        ("Thu Dec 19 2025", REFUSED),  # it was a Friday
        ("13/02/2024", REFUSED),
        ("02/30/2024", REFUSED),
        ("1999-12-31", REFUSED),
        ("2101-01-01 00:00:00", REFUSED),
        ("0000-00-00", None),
        ("0000-00-00 00:00:01", REFUSED),
        ("0001-01-01", REFUSED),
        ("9999-12-31 23:59:59 +0000", REFUSED),
        ("45611.4375", REFUSED),
        ("20241115", REFUSED),
        ("yesterday", REFUSED),
        ("11/02/24", REFUSED),
        ("2024-11-15 10:30:00 -9900", REFUSED),
    ],
)
def test_moments(text: str, expected: object):
    """Times are read exactly or refused: a misread date puts money into the wrong month."""
    assert clean(When(), text) == [expected]


@pytest.mark.parametrize(
    "text",
    [
        *("0000-00-00", "0000-00-00 00:00:00", "0000-00-00T00:00:00.000Z", "0000/00/00", "00/00/0000"),
        "0/0/0000 00:00",
        *("00.00.0000", "00:00:00", "1/0/1900", "01/00/1900 0:00", "1900-01-00", "12/30/1899"),
        "1899-12-30 00:00:00",
    ],
)
@pytest.mark.parametrize("kind", [When(), When(without_year=True), CalendarDay(), CalendarDay(month=True)])
def test_zero_dates(kind: Kind, text: str):
    """A date of zeros means that there is no date: databases write it, and spreadsheets do for an empty cell."""
    assert clean(kind, text, f" {text} ") == [None, None]


@pytest.mark.parametrize(
    "text", ["0", "00", "0000", "1/1/1900", "2024-00-00", "00/01/2024", "0000-01-00", "00:01:00"]
)
def test_what_is_no_zero_date(text: str):
    """Dates with some zeros are impossible, not absent."""
    assert clean(When(), text) == [REFUSED]
    assert clean(CalendarDay(month=True), text) == [REFUSED]


def test_day_first_only_where_declared():
    """Numeric dates follow the order that the source declares; a row never decides."""
    day_first = Context(CONTEXT.zone, CONTEXT.exported_at, date_order="dmy")
    assert clean(When(), "11/02/2024", "13/02/2024", "02/13/2024", context=day_first) == [
        local("2024-02-11"), local("2024-02-13"), REFUSED,
    ]  # fmt: skip


def test_local_date_is_the_business_timezones():
    """The local date is the business timezone's: 23:30 in Los Angeles on the 5th is the 6th in New York."""
    cleaned = When().clean(pa.array(["2025-12-05 23:30:00 -0800", "2025-12-05T03:00:00Z"]), CONTEXT)
    assert cleaned.local_date is not None
    assert cleaned.local_date.to_pylist() == [date(2025, 12, 6), date(2025, 12, 4)]


def test_daylight_saving():
    """A time that the clock shows twice is the first of the two, a skipped one moves forward; both are reported."""
    texts = ["2024-11-03 01:30:00", "2024-03-10 02:30:00", "2024-11-03 01:30:00 -0500", "2024-11-03 02:00:00", "2024-03-10 03:00:00", "2024-03-10 01:59:59"]  # fmt: skip
    cleaned = When().clean(pa.array(texts), CONTEXT)
    assert cleaned.values.to_pylist() == [
        datetime(2024, 11, 3, 5, 30, tzinfo=UTC),
        datetime(2024, 3, 10, 7, 30, tzinfo=UTC),
        datetime(2024, 11, 3, 6, 30, tzinfo=UTC),
        datetime(2024, 11, 3, 7, 0, tzinfo=UTC),
        datetime(2024, 3, 10, 7, 0, tzinfo=UTC),
        datetime(2024, 3, 10, 6, 59, 59, tzinfo=UTC),
    ]
    assert cleaned.dst_ambiguous is not None
    assert cleaned.dst_ambiguous.tolist() == [True, True, False, False, False, False]


@examples(120)
@given(
    moment=st.datetimes(datetime(2000, 1, 2), datetime(2100, 12, 30)),
    name=st.sampled_from(
        [
            "America/New_York",
            "Europe/Berlin",
            "Australia/Lord_Howe",
            "America/Sao_Paulo",
            "UTC",
            "Pacific/Apia",
            # changes twice within a month every year, around Ramadan
            "Africa/Casablanca",
        ]
    ),
    near=st.integers(-7200, 7200),
)
@example(datetime(2011, 12, 30, 10), "Pacific/Apia", 0)  # a whole day was skipped
@example(datetime(2000, 10, 12), "America/Boa_Vista", 0)  # changed a week after it had changed
@example(datetime(2008, 4, 6, 1, 30, fold=1), "Australia/Lord_Howe", 0)  # the text of a file has no fold
def test_times_agree_with_zoneinfo(moment: datetime, name: str, near: int):
    """The table of offsets agrees with Python's own time zones (`fold=0`), around changes too."""
    timezone = ZoneInfo(name)
    transitions = zone(timezone)._changes
    moments = [moment.replace(microsecond=0, fold=0)]
    if len(transitions):
        change = int(transitions[moment.toordinal() % len(transitions)]) // 1_000_000 + near
        moments.append(datetime.fromtimestamp(change, timezone).replace(tzinfo=None, fold=0))
        moments.append(moments[-1] + timedelta(hours=1))
    moments = [value for value in moments if 2000 <= value.year <= 2100]
    expected = [value.replace(tzinfo=timezone).astimezone(UTC) for value in moments]
    cleaned = When().clean(
        pa.array([value.isoformat(" ") for value in moments]), Context(zone(timezone), CONTEXT.exported_at)
    )
    assert cleaned.values.to_pylist() == expected
    assert cleaned.local_date is not None
    assert cleaned.local_date.to_pylist() == [value.astimezone(timezone).date() for value in expected]


_moment_like = st.one_of(
    st.datetimes(datetime(1998, 1, 1), datetime(2102, 12, 31)).map(
        lambda value: value.strftime("%Y-%m-%d %H:%M:%S")
    ),
    st.from_regex(r"\A20[0-2][0-9]-[01][0-9]-[0-3][0-9][ T][0-2][0-9]:[0-6][0-9]:[0-6][0-9]\Z"),
)


@examples(120)
@given(st.lists(_moment_like, min_size=1, max_size=5))
def test_fast_moments_agree_with_the_rule(texts: list[str]):
    """Timestamps in the plain form skip the rule, which must give the same values."""
    expected: list[Any] = []
    for text in texts:
        try:
            moment = read_moment(text, "mdy")
            naive = datetime(1970, 1, 1) + timedelta(microseconds=moment.microseconds)
            expected.append(
                naive.replace(tzinfo=NEW_YORK).astimezone(UTC) if 2000 <= naive.year <= 2100 else REFUSED
            )
        except InvalidValue:
            expected.append(REFUSED)
    assert clean(When(), *texts) == expected


def test_call_times_without_a_year():
    """The weekday and the export's date tell the year: a guess would put a call into a wrong year."""
    kind = When(without_year=True)
    assert clean(
        kind,
        "Wed Dec 17th, 03:21PM",  # three days before the export
        "Sat Dec 20th, 09:00AM",  # the export's day
        "Sun Dec 21st, 09:00AM",  # tomorrow, and 21 December was a Sunday in none of the four years before
        "Wed Dec 25th, 12:05AM",  # 2024
        "Thu Feb 29th, 12:00PM",  # 2024, the leap day
        "Mon Dec 17th, 03:21PM",
        "Wed Dec 17th, 13:21PM",
        "Wed Feb 30th, 03:21PM",
        "2025-12-17 15:21:00",
    ) == [
        local("2025-12-17 15:21"), local("2025-12-20 09:00"), REFUSED, local("2024-12-25 00:05"),
        local("2024-02-29 12:00"), REFUSED, REFUSED, REFUSED, local("2025-12-17 15:21"),
    ]  # fmt: skip


def test_durations():
    """Durations are read from words and from clocks."""
    assert clean(Duration(), "3 Min 25 Sec", "45 Sec", "2 Min", "1 Hour 3 Min 25 Sec", "03:25", "1:03:25", "90", "", "x", "3:75") == [
        205, 45, 120, 3805, 205, 3805, 90, None, REFUSED, REFUSED,
    ]  # fmt: skip


def test_targets_cells():
    """A percentage is a ratio; `35` without the sign is refused instead of read as 3,500%."""
    assert clean(Ratio(), "0.35", "35%", "12.5%", "1", "35", "-0.1", "0.12345", "") == [
        "0.35", "0.35", "0.125", "1", REFUSED, REFUSED, REFUSED, None,
    ]  # fmt: skip
    assert clean(WholeNumber(), "120", "1,200", "", "12.5", "-3") == [120, 1200, None, REFUSED, REFUSED]


def test_micros():
    """Millionths stay exact, because their sum is rounded once, later."""
    assert clean(Micros(), "2520000000", "1", "-5", "", "1.5", "1e6") == [
        "2520.000000", "0.000001", "-0.000005", None, REFUSED, REFUSED,
    ]  # fmt: skip


def test_months_and_days():
    """Months are read in the forms of spreadsheets and reports."""
    assert clean(CalendarDay(month=True), "2024-10", "2024-10-01", "Oct 2024", "October 2024", "10/2024", "2024-13", "Oct", "") == [
        *[date(2024, 10, 1)] * 5, REFUSED, REFUSED, None,
    ]  # fmt: skip
    assert clean(CalendarDay(), "2024-10-05", "10/05/2024", "2024-10-05 10:00", "2150-01-01") == [
        date(2024, 10, 5), date(2024, 10, 5), REFUSED, REFUSED,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "text", "code"),
    [
        (Money(), "ten", "not_a_number"),
        (Money(), "1.234,50", "ambiguous_decimal_separator"),
        (Money(), "1.005", "too_many_decimals"),
        (Money(), "(-20)", "ambiguous_sign"),
        (Money(), "100000000", "too_large"),
        (Identifier(), "1.2E+05", "id_turned_into_a_number_by_a_spreadsheet"),
        (Label(), "x" * 201, "too_long"),
        (When(), "2024-02-30", "not_a_valid_date"),
        (When(), "1999-12-31", "year_out_of_range"),
        (When(without_year=True), "Mon Dec 17th, 03:21PM", "weekday_fits_no_recent_year"),
        (CalendarDay(month=True), "1999-12", "year_out_of_range"),
    ],
)
def test_refused_cells_have_a_reason(kind: Kind, text: str, code: str):
    """A reason names the fault and what is accepted; without the latter a person would have to guess."""
    (reason,) = kind.clean(pa.array([text]), CONTEXT).reasons.values()
    assert reason.code == code
    assert reason.accepted
    assert (reason.column, reason.found) == (None, None)
    assert reason.about("Date", text) == Reason(
        code,
        "Date",
        text if len(text) <= 80 else f"{text[:80]}… (201 characters)",
        reason.accepted,
        reason.remedy,
    )


@given(
    st.sampled_from(
        [kind.plain_texts(CONTEXT) for kind in (Text(), Identifier(), JobNumber(), Money(), When())]
    ),
    st.data(),
)
def test_few_texts_match_as_many_do(pattern: str, data: st.DataObject) -> None:
    """Python matches the patterns of plain texts in small files, pyarrow in large ones: both find the same texts plain."""
    texts = data.draw(st.lists(st.from_regex(pattern) | st.text(max_size=8), min_size=1, max_size=5))
    few = pa.array(texts, pa.string())
    many = pa.array(texts * (patterns.FEW + 1), pa.string())
    assert patterns.are_whole(many, pattern).tolist() == patterns.are_whole(few, pattern).tolist() * (
        patterns.FEW + 1
    )


@examples(60)
@given(st.lists(st.text(alphabet="0 9!~éA", max_size=4), max_size=6), st.integers(0, 3))
def test_range_of_characters(texts: list[str], skipped: int) -> None:
    """A column is known by its bytes to have no letter and no blank text, even a part of a column."""
    part = pa.array(texts, pa.string())[skipped:]
    rest = texts[skipped:]
    assert patterns.have_only(part, "!", "9") == (
        bool(rest) and all(text and all("!" <= character <= "9" for character in text) for text in rest)
    )
