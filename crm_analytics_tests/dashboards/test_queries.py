"""Every query of every dashboard as grafana_reader, compared with plain Python over the reference model's metrics."""

from __future__ import annotations

import calendar
import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from itertools import groupby
from typing import Any

import psycopg
import pytest

from crm_analytics.dashboards.generate import generated
from crm_analytics.dashboards.queries import query
from crm_analytics.dashboards.tools.expand_macros import expand
from crm_analytics.dashboards.tools.lint import panels_of, queries_of
from crm_analytics.dashboards.tools.panel_fields import headings, properties_of, stat_columns
from crm_analytics_tests.analytics.reference_model import Measures, rounded
from crm_analytics_tests.dashboards.conftest import LEAP, Sample, moment, plus_months

SEGMENTS = ("COD", "INS", "OTHER")
BOARDS = [json.loads(text) for text in generated().values()]
ANALYTICS_QUERIES = sorted(
    {
        (board["title"], where, sql)
        for board in BOARDS
        for where, source, sql in queries_of(board)
        if source["uid"] == "crm-analytics-warehouse"
    }
)


@dataclass(frozen=True)
class Choice:
    """A viewer's selection: sources, segments, month and time range, and the metric that Explain shows."""

    sources: tuple[str, ...]
    segments: tuple[str, ...]
    month: date
    time_from: date
    time_to: date
    metric: str = "repairs"


def choices(sample: Sample) -> dict[str, Choice]:
    """Returns the selections that every query is tried with, by name."""
    everything, current, closed = tuple(sample.sources), sample.month, plus_months(sample.month, -1)
    window = (plus_months(current, -2), sample.today + timedelta(1))
    return {
        "all, current month": Choice(everything, SEGMENTS, current, *window),
        "all, closed month without most targets": Choice(everything, SEGMENTS, closed, *window),
        "one source": Choice(("Google",), SEGMENTS, current, *window),
        "one source, one segment": Choice(("Google",), ("COD",), current, *window),
        "one segment": Choice(everything, ("INS",), current, *window),
        "many sources": Choice(("Google", "Rely", "eLocals"), ("COD", "OTHER"), current, *window),
        "no source": Choice((), SEGMENTS, current, *window),
        "an apostrophe": Choice(("O'Brien Appliance",), SEGMENTS, closed, *window),
        "empty month": Choice(everything, SEGMENTS, date(2023, 5, 1), date(2023, 5, 1), date(2023, 5, 31)),
        "leap February": Choice(everything, SEGMENTS, LEAP, LEAP, date(2024, 3, 1)),
        "month after a leap February": Choice(
            everything, SEGMENTS, date(2024, 3, 1), LEAP, date(2024, 3, 31)
        ),
    }


CASES = (
    "all, current month", "all, closed month without most targets", "one source", "one source, one segment",
    "one segment", "many sources", "no source", "an apostrophe", "empty month", "leap February",
    "month after a leap February",
)  # fmt: skip


@pytest.fixture(params=CASES)
def choice(request, sample) -> Choice:
    return choices(sample)[request.param]


def run(
    connection: psycopg.Connection[Any], sql: str, choice: Choice
) -> tuple[list[str], list[tuple[Any, ...]]]:
    """Returns the column names and rows that Grafana would get."""
    text = expand(
        sql,
        moment(choice.time_from),
        moment(choice.time_to),
        {
            "source": choice.sources,
            "segment": choice.segments,
            "month": f"{choice.month:%Y-%m}",
            "metric": choice.metric,
            "dagster_url": "x",
        },
    )
    cursor = connection.execute(text.encode())
    assert cursor.description
    return [column.name for column in cursor.description], cursor.fetchall()


def rows(
    connection: psycopg.Connection[Any], name: str, choice: Choice, **words: str
) -> list[dict[str, Any]]:
    """Returns the rows of sql/grafana/<name>.sql."""
    columns, found = run(connection, query(name, **words), choice)
    return [dict(zip(columns, row, strict=True)) for row in found]


# -- the same numbers in plain Python -------------------------------------------------------------------------


def total(
    sample: Sample, choice: Choice, start: date, end: date, only: Iterable[str] | None = None
) -> Measures:
    """Adds up the measures of the selected sources and segments over [start, end)."""
    result = Measures()
    wanted = choice.sources if only is None else only
    for (day, source, segment), measures in sample.daily.items():
        if start <= day < end and source in wanted and segment in choice.segments:
            result.add(measures)
    return result


def shown(sample: Sample, choice: Choice, start: date, end: date) -> set[str]:
    """Returns the sources with at least one row in [start, end)."""
    return {
        source
        for (day, source, segment) in sample.daily
        if start <= day < end and source in choice.sources and segment in choice.segments
    }


def length(month: date) -> int:
    return calendar.monthrange(month.year, month.month)[1]


def elapsed(sample: Sample, month: date) -> int:
    """Counts the days of the month up to the last loaded day."""
    return max(0, min((sample.last_loaded - month).days + 1, length(month)))


def months_in(choice: Choice) -> list[date]:
    found, month = [], choice.time_from.replace(day=1)
    # a range that ends at a midnight ends with the day before it
    while month < choice.time_to:
        found.append(month)
        month = plus_months(month, 1)
    return found


def target(sample: Sample, choice: Choice, month: date) -> tuple[Any, ...]:
    """Returns the four targets of exactly this selection; None for each that isn't set."""
    source = (
        "ALL"
        if set(choice.sources) >= set(sample.sources)
        else choice.sources[0]
        if len(choice.sources) == 1
        else ""
    )
    segment = (
        "ALL"
        if set(choice.segments) == set(SEGMENTS)
        else choice.segments[0]
        if len(choice.segments) == 1
        else ""
    )
    return sample.targets.get((month, source, segment), (None,) * 4)


def same(found: Any, expected: Any) -> bool:
    """Compares two values, ratios and divisions to ten places; None equals only None."""
    if found is None or expected is None:
        return found is None and expected is None
    if isinstance(expected, int | Decimal | Fraction) and not isinstance(expected, bool):
        return rounded(Fraction(found), 8) == rounded(Fraction(expected), 8)
    return bool(found == expected)


def ratio(part: Any, whole: Any) -> Fraction | None:
    return Fraction(part) / Fraction(whole) if whole else None


def change(now: Any, before: Any) -> Fraction | None:
    return Fraction(now) / Fraction(before) - 1 if before else None


def assert_rows(found: Sequence[dict[str, Any]], expected: Sequence[dict[str, Any]]) -> None:
    """Asserts equal rows in equal order, in the columns that `expected` has."""
    assert len(found) == len(expected), (found, expected)
    for have, want in zip(found, expected, strict=True):
        wrong = {name: (have[name], value) for name, value in want.items() if not same(have[name], value)}
        assert not wrong, (wrong, have)


# -- all queries ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", [f"{board}: {place}" for board, place, _ in ANALYTICS_QUERIES])
def test_every_query_answers_as_grafana_reader_whatever_is_chosen(grafana, sample, where):
    """No query fails, whatever a viewer selects."""
    sql = next(text for board, place, text in ANALYTICS_QUERIES if f"{board}: {place}" == where)
    columns: set[tuple[str, ...]] = set()
    for choice in choices(sample).values():
        names, _ = run(grafana, sql, choice)
        columns.add(tuple(names))
        assert len(set(names)) == len(names)
    assert len(columns) == 1


def test_panels_name_only_columns_that_their_query_has(grafana, sample):
    """Panels name only columns of their query: an override for a misspelled column does nothing, silently."""
    choice = choices(sample)["all, current month"]
    for board in BOARDS:
        for panel in panels_of(board):
            if panel["datasource"]["uid"] != "crm-analytics-warehouse":
                continue
            names, _ = run(grafana, panel["targets"][0]["rawSql"], choice)
            wanted = set(properties_of(panel))
            assert wanted <= set(names), (panel["title"], wanted - set(names))
            assert len(set(headings(panel, names).values())) == len(names), panel["title"]
            if panel["type"] == "stat":
                assert set(stat_columns(panel, names)) == wanted, panel["title"]
            if panel["type"] in ("trend", "barchart"):
                assert panel["options"]["xField"] in names


def test_series_have_a_time_column_in_ascending_order(grafana, sample):
    """Series have a time column in ascending order: Grafana refuses them without it, and draws others wrong."""
    choice = choices(sample)["all, current month"]
    tried = 0
    for board in BOARDS:
        for panel in panels_of(board):
            for one in panel["targets"]:
                if one["format"] != "time_series":
                    continue
                names, found = run(grafana, one["rawSql"], choice)
                times = [row[names.index("time")] for row in found]
                assert times and all(isinstance(time, datetime) for time in times)
                assert times == sorted(times)
                tried += 1
    assert tried >= 9


def test_numbers_of_stat_panels_come_in_one_row(grafana, choice):
    """Queries of stat panels return one row, because the panels show the last."""
    for name in ("month_scorecard", "trust_summary"):
        assert len(rows(grafana, name, choice)) == 1


# -- numbers ----------------------------------------------------------------------------------------------------


def test_month_to_month_by_source(grafana, sample, choice):
    """Totals, ratios and changes are right, and a partial month is compared with the same days."""
    expected = []
    for month in reversed(months_in(choice)):
        before, after = plus_months(month, -1), plus_months(month, 1)
        days = elapsed(sample, month)
        partial = days < length(month)
        until = min(before + timedelta(days), month) if partial else month
        names = shown(sample, choice, month, after) | shown(sample, choice, before, until)
        for name in (["Total"] if names else []) + sorted(names):
            only = choice.sources if name == "Total" else [name]
            now = total(sample, choice, month, after, only)
            then = total(sample, choice, before, until, only)
            there = bool(shown(sample, choice, month, after) & set(only))
            row = {
                "month": f"{month:%Y-%m}", "days": f"days 1–{days}" if partial else "whole month", "source": name,
                "jobs": now.jobs, "leads": now.leads, "units": now.units, "repairs": now.repairs, "calls": now.calls,
                "cost": now.cost, "revenue_gross": now.revenue_gross, "revenue40": now.revenue40,
                "profit": now.profit, "conv_l_to_u": now.conv_l_to_u, "conv_l_to_r": now.conv_l_to_r,
                "conv_u_to_r": now.conv_u_to_r, "cpl": now.cpl, "profit_change": now.profit - then.profit,
            }  # fmt: skip
            if there:
                row |= {
                    f"{measure}_change": change(getattr(now, measure), getattr(then, measure))
                    for measure in ("leads", "units", "repairs", "cost", "revenue40")
                }
                row["cpl_change"] = change(now.cpl, then.cpl) if now.cpl is not None else None
            expected.append(row)
    assert_rows(rows(grafana, "month_to_month_by_source", choice), expected)


@pytest.mark.parametrize("measure", ["repairs", "revenue40"])
def test_daily_cumulative_against_target(grafana, sample, choice, measure):
    """Actual, pace, target, month before and projection are right on every day."""
    month, days = choice.month, length(choice.month)
    done = elapsed(sample, month)
    goal = target(sample, choice, month)[0 if measure == "repairs" else 1]
    complete = min(sample.last_loaded, sample.today - timedelta(1))

    def amount(start: date, end: date) -> Any:
        return getattr(total(sample, choice, start, end), measure)

    recent = Fraction(amount(complete - timedelta(13), complete + timedelta(1))) / 14
    so_far = amount(month, month + timedelta(done))
    expected = []
    for day in range(1, days + 1):
        earlier = plus_months(month, -1)
        projection = None
        if 0 < done < days and day >= done:
            projection = Fraction(so_far) + recent * (day - done)
        expected.append(
            {
                "date": month + timedelta(day - 1), "day": day,
                "actual": amount(month, month + timedelta(day)) if day <= done else None,
                "pace": None if goal is None else Fraction(goal) * day / days,
                "target": goal,
                "last_month": amount(earlier, earlier + timedelta(day)) if day <= length(earlier) else None,
                "projection": projection,
            }
        )  # fmt: skip
    assert_rows(rows(grafana, f"daily_cumulative_{measure}_vs_target", choice), expected)


def test_scorecard(grafana, sample, choice):
    """Every number of the Executive dashboard is right."""
    month, days, done = choice.month, length(choice.month), elapsed(sample, choice.month)
    earlier = plus_months(month, -1)
    until = month if done == days else min(earlier + timedelta(done), month)
    now = total(sample, choice, month, plus_months(month, 1))
    then = total(sample, choice, earlier, until)
    complete = min(sample.last_loaded, sample.today - timedelta(1))
    recent = total(sample, choice, complete - timedelta(13), complete + timedelta(1))
    repairs, revenue40, conversion, cpl = target(sample, choice, month)
    expected: dict[str, Any] = {
        "as_of": month + timedelta(done - 1) if done else None, "days_left": days - done,
        "cpl": now.cpl, "cpl_before": then.cpl, "cpl_maximum": cpl,
        "conv_l_to_r": now.conv_l_to_r, "conv_l_to_r_target": conversion, "calls": now.calls,
    }  # fmt: skip
    for measure in ("leads", "units", "repairs", "cost", "revenue40", "profit"):
        expected |= {measure: getattr(now, measure), f"{measure}_before": getattr(then, measure)}
    for measure, goal in (("repairs", repairs), ("revenue40", revenue40)):
        actual = Fraction(getattr(now, measure))
        expected[f"{measure}_target"] = goal
        expected[f"{measure}_pace"] = None if goal is None else Fraction(goal) * done / days
        expected[f"{measure}_attainment"] = None if goal is None else ratio(actual, goal)
        expected[f"{measure}_projection"] = (
            actual + Fraction(getattr(recent, measure)) / 14 * (days - done) if done else None
        )
        missing = None if goal is None else max(Fraction(goal) - actual, Fraction(0))
        expected[f"{measure}_needed_per_day"] = None if missing is None else ratio(missing, days - done)
    assert_rows(rows(grafana, "month_scorecard", choice), [expected])


@pytest.mark.parametrize("measure", ["leads", "units", "repairs", "revenue40", "cost", "profit", "calls"])
def test_series_by_month_and_source(grafana, sample, choice, measure):
    """The stacked charts have one value per month and source."""
    expected = [
        {"time": datetime(month.year, month.month, 1, 12), "metric": name,
         measure: getattr(total(sample, choice, month, plus_months(month, 1), [name]), measure)}
        for month in months_in(choice)
        for name in sorted(shown(sample, choice, month, plus_months(month, 1)))
    ]  # fmt: skip
    assert_rows(rows(grafana, "monthly_series_by_source", choice, measure=measure), expected)


def test_money_conversions_and_costs_by_month(grafana, sample, choice):
    """Lines over months are right: sums, ratios of sums, and targets."""
    months = [month for month in months_in(choice) if shown(sample, choice, month, plus_months(month, 1))]
    sums = {month: total(sample, choice, month, plus_months(month, 1)) for month in months}
    when = {month: datetime(month.year, month.month, 1, 12) for month in months}
    assert_rows(
        rows(grafana, "monthly_money", choice),
        [
            {"time": when[m], "revenue40": s.revenue40, "cost": s.cost, "profit": s.profit}
            for m, s in sums.items()
        ],
    )
    assert_rows(
        rows(grafana, "conversion_by_month", choice),
        [
            {"time": when[m], "conv_l_to_u": s.conv_l_to_u, "conv_u_to_r": s.conv_u_to_r,
             "conv_l_to_r": s.conv_l_to_r, "conv_l_to_r_target": target(sample, choice, m)[2]}
            for m, s in sums.items()
        ],
    )  # fmt: skip
    assert_rows(
        rows(grafana, "cpl_by_month", choice),
        [
            {"time": when[m], "cpl": s.cpl, "cpl_maximum": target(sample, choice, m)[3],
             "cost_per_repair": ratio(s.cost, s.repairs)}
            for m, s in sums.items()
        ],
    )  # fmt: skip


def test_targets_by_month(grafana, sample, choice):
    """A month without a target shows none instead of 0."""
    expected = []
    for month in reversed(months_in(choice)):
        goals = target(sample, choice, month)
        there = shown(sample, choice, month, plus_months(month, 1))
        if not there and goals == (None,) * 4:
            continue
        now = total(sample, choice, month, plus_months(month, 1))
        expected.append(
            {
                "month": f"{month:%Y-%m}", "repairs": now.repairs, "target_repairs": goals[0],
                "repairs_attainment": ratio(now.repairs, goals[0]),
                "revenue40": now.revenue40, "target_revenue40": goals[1],
                "revenue40_attainment": ratio(now.revenue40, goals[1]),
                "conv_l_to_r": now.conv_l_to_r, "target_conv_l_to_r": goals[2],
                "cpl": now.cpl, "target_cpl_max": goals[3],
            }
        )  # fmt: skip
    assert_rows(rows(grafana, "targets_by_month", choice), expected)


@pytest.mark.parametrize("by", ["source", "segment"])
def test_funnel(grafana, sample, choice, by):
    """Totals and unit economics are right; the total's ratios aren't means of its parts."""
    start, end = months_in(choice)[0], plus_months(months_in(choice)[-1], 1)
    groups: defaultdict[str, Measures] = defaultdict(Measures)
    for (day, source, segment), measures in sample.daily.items():
        if start <= day < end and source in choice.sources and segment in choice.segments:
            groups[source if by == "source" else segment].add(measures)
            groups["Total"].add(measures)
    expected = [
        {
            by: name, "leads": m.leads, "units": m.units, "repairs": m.repairs, "conv_l_to_u": m.conv_l_to_u,
            "conv_u_to_r": m.conv_u_to_r, "conv_l_to_r": m.conv_l_to_r, "cpl": m.cpl,
            "cost_per_repair": ratio(m.cost, m.repairs), "revenue40_per_lead": ratio(m.revenue40, m.leads),
            "revenue40": m.revenue40, "cost": m.cost, "profit": m.profit, "margin": ratio(m.profit, m.revenue40),
            "calls": m.calls,
        }
        for name, m in sorted(groups.items(), key=lambda item: (item[0] != "Total", item[0]))
    ]  # fmt: skip
    assert_rows(rows(grafana, "funnel", choice, by=by), expected)
    whole = groups["Total"]
    assert [(row["stage"], row["count"]) for row in rows(grafana, "funnel_stages", choice)] == [
        ("Leads", whole.leads), ("Units", whole.units), ("Repairs", whole.repairs),
    ]  # fmt: skip


def test_variables_offer_existing_months_and_sources(grafana, sample):
    """Variables offer what exists, the current month first, because dashboards open on the first."""
    choice = choices(sample)["all, current month"]
    assert [row["source"] for row in rows(grafana, "variable_source", choice)] == sample.sources
    months = {day.replace(day=1) for day, _, _ in sample.daily} | {sample.month}
    assert [row["month"] for row in rows(grafana, "variable_month", choice)] == [
        f"{month:%Y-%m}" for month in sorted(months, reverse=True)
    ]


def test_refreshes_are_annotated_once_each(grafana, sample):
    """Each refresh in the time range is one annotation."""
    today = datetime.now(UTC).date()
    now = Choice((), (), sample.month, today - timedelta(2), today + timedelta(2))
    found = rows(grafana, "refresh_annotations", now)
    assert [row["text"].split(",")[0] for row in found] == ["Months refreshed: 1", "Months refreshed: 4"]
    assert all(row["time"] <= row["timeend"] for row in found)
    past = Choice((), (), sample.month, date(2020, 1, 1), date(2020, 2, 1))
    assert rows(grafana, "refresh_annotations", past) == []


def test_rows_come_in_whole_months(grafana, sample):
    """A range that begins within a month includes that whole month."""
    middle = Choice(tuple(sample.sources), SEGMENTS, sample.month, sample.month + timedelta(0), sample.today)
    late = Choice(
        tuple(sample.sources),
        SEGMENTS,
        sample.month,
        plus_months(sample.month, -1) + timedelta(20),
        sample.today,
    )
    months = [key for key, _ in groupby(row["time"] for row in rows(grafana, "monthly_money", late))]
    before = plus_months(sample.month, -1)
    assert datetime(before.year, before.month, 1, 12) in months
    assert len(rows(grafana, "monthly_money", middle)) == (1 if sample.today.day > 1 else 0)
