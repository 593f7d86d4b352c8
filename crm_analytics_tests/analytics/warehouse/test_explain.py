"""The rows behind a number: their words and files by hand, and their sums against the tables and the reference model."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterator
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crm_analytics.analytics.ingest.loading.load import load_source
from crm_analytics.analytics.ingest.sources.registry import SOURCES
from crm_analytics.analytics.warehouse import catalog
from crm_analytics.analytics.warehouse import explain as reading
from crm_analytics.analytics.warehouse.explain import MADE_OF, METRICS, RATIOS, explain
from crm_analytics.analytics.warehouse.refresh import MEASURES, refresh
from crm_analytics.core.months import months_between, next_month
from crm_analytics.demo.sample_exports import write_landing
from crm_analytics_tests.analytics import reference_model
from crm_analytics_tests.analytics import test_correction_histories as corrections
from crm_analytics_tests.analytics.reference_model import folded
from crm_analytics_tests.analytics.test_correction_histories import FIRST, LAST, Model, Step
from crm_analytics_tests.chance import examples

Connection = psycopg.Connection[Any]
ADDITIVE = [metric for metric in METRICS if metric not in RATIOS]
OCTOBER, NOVEMBER = date(2024, 10, 1), date(2024, 11, 1)


# -- by hand ----------------------------------------------------------------------------------------------------


@pytest.fixture
def october(analytics: Connection) -> Connection:
    """One row for each reason to count in October 2024, and as many that don't; from two files and by hand."""
    for path in ("jobs/october.csv", "google_spend/october.csv"):
        analytics.execute(
            "INSERT INTO raw.source_files (source, path, sha256, size_bytes, modified_at, exported_at, exported_at_from,"
            " status) VALUES (split_part(%s, '/', 1), %s, %s, 1, now(), now(), 'mtime', 'loaded')",
            [path, path, path],
        )
    analytics.execute(
        """
        INSERT INTO raw.jobs (job_id, type, source, status, created_at, job_date, file_id, record_no)
        VALUES
            ('A', 'COD Service', 'Google', 'Done', '2024-10-05', '2024-10-05', 1, 1),
            ('B', 'INS Repair', 'rely', 'Canceled', '2024-10-06', '2024-10-06', 1, 2),
            ('C', 'INS Service', 'Rely', NULL, '2024-10-06', '2024-10-06', 1, 3),
            ('D', NULL, NULL, NULL, '2024-10-07', '2024-10-07', NULL, NULL),
            ('E', 'COD Service', 'Angi', 'Done', '2024-11-01', '2024-11-01', 1, 4)
        """
    )
    analytics.execute(
        """
        INSERT INTO raw.payments (payment_id, job_ref, job_id_ref, paid_date, amount, status)
        VALUES
            ('P1', 'A', 'A', '2024-10-05', 120.00, 'Paid'), ('P2', 'A', 'A', '2024-11-09', -19.99, 'Paid'),
            ('P3', 'A', 'A', '2024-10-05', 500.00, 'Failed'), ('P4', NULL, NULL, '2024-10-31', 75.00, NULL)
        """
    )
    analytics.execute(
        "INSERT INTO raw.calls (call_id, started_at, call_date, flow) VALUES ('K', now(), '2024-10-31', 'googleads')"
    )
    analytics.execute(
        "INSERT INTO raw.elocals_leads (lead_id, lead_at, lead_date, cost)"
        " VALUES ('L1', now(), '2024-10-01', 65.25), ('L2', now(), '2024-10-01', 0)"
    )
    analytics.execute(
        "INSERT INTO raw.proref_leads (lead_id, lead_at, lead_date, current_status)"
        " VALUES ('R1', now(), '2024-10-02', 'Booked'), ('R2', now(), '2024-10-02', NULL),"
        " ('R3', now(), '2024-10-02', 'passed')"
    )
    analytics.execute(
        "INSERT INTO raw.google_spend (month, campaign, amount, covered_to, file_id, record_no)"
        " VALUES ('2024-10-01', 'all', 10.00, '2024-10-03', 2, 1)"
    )
    refresh(analytics, OCTOBER, next_month(NOVEMBER))
    return analytics


def told(connection: Connection, metric: str, **choice: Any) -> list[str]:
    """Returns the rows of a metric in October 2024, each as text, and asserts that they add up to what is stored."""
    found = explain(connection, OCTOBER, metric, **choice)
    assert found.is_equal and found.stale is None, found
    return [
        f"{row.day:%d} {row.kind} {row.id} {row.source}/{row.segment} {row.amount}: {row.rule}"
        for row in found.rows
    ]


def test_every_row_says_why_it_counts(october: Connection) -> None:
    """Words are made for every reason to count, with the amounts that decide; refunds and free leads are told apart."""
    assert told(october, "jobs") == [
        "05 job A Google/COD 1: COD Service: every job counts, in any status",
        "06 job B Rely/INS 1: INS Repair: every job counts, in any status",
        "06 job C Rely/INS 1: INS Service: every job counts, in any status",
        "07 job D Unattributed/OTHER 1: job without a type: every job counts, in any status",
    ]
    assert told(october, "units") == [
        "05 job A Google/COD 1: COD Service, a unit by its type",
        "06 job C Rely/INS 1: INS Service, a unit by its type",
    ]
    assert told(october, "repairs") == [
        "05 job A Google/COD 1: COD Service with 100.01 paid, more than 100",
        "06 job B Rely/INS 1: INS Repair, a repair by its type",
    ]
    assert told(october, "leads") == [
        "01 lead L1 eLocals/OTHER 1: lead with a price of 65.25, above 0",
        "02 lead R1 Pro Referral/OTHER 1: lead with another status than Passed",
        "02 lead R2 Pro Referral/OTHER 1: lead without a status",
        "05 job A Google/COD 1: job of Google, whose jobs are leads",
        "06 job C Rely/INS 1: unit of Rely, whose units are leads",
    ]
    assert told(october, "calls") == [
        "31 call K Google/OTHER 1: every call counts, under the source of its flow"
    ]
    assert told(october, "cost") == [
        "01 spend 2024-10 Google/OTHER 3.33: day 1 of 3 of 10.00",
        "01 lead L1 eLocals/OTHER 65.25: the lead's own price of 65.25",
        "02 spend 2024-10 Google/OTHER 3.34: day 2 of 3 of 10.00",
        "02 lead R1 Pro Referral/OTHER 20.00: 20.00 per lead of Pro Referral",
        "02 lead R2 Pro Referral/OTHER 20.00: 20.00 per lead of Pro Referral",
        "03 spend 2024-10 Google/OTHER 3.33: day 3 of 3 of 10.00",
    ]
    assert told(october, "revenue_gross") == [
        "05 payment P1 Google/COD 120.00: 120.00 paid on 2024-10-05 for job A",
        "05 payment P2 Google/COD -19.99: 19.99 refunded on 2024-11-09 for job A",
        "31 payment P4 Unattributed/OTHER 75.00: 75.00 paid on 2024-10-31 for a job that is not known yet",
    ]
    assert told(october, "revenue40", source="Google") == [
        "05 payment P1 Google/COD 48.0000: revenue40 of 120.00 paid on 2024-10-05 for job A",
        "05 payment P2 Google/COD -7.9960: revenue40 of 19.99 refunded on 2024-11-09 for job A",
    ]
    assert told(october, "profit", day=1) == [
        "01 spend 2024-10 Google/OTHER -3.33: day 1 of 3 of 10.00",
        "01 lead L1 eLocals/OTHER -65.25: the lead's own price of 65.25",
    ]


def test_a_channels_price_and_rule_are_those_in_force(october: Connection) -> None:
    """Jobs that cost a price per lead say so, and a lead of a channel with another rule since November doesn't."""
    october.execute(
        "INSERT INTO analytics.lead_channels (source, valid_from, lead_rule, cost_rule, cost_per_lead)"
        " VALUES ('Angi', '2000-01-01', 'jobs', 'per_lead', 35.00), ('Rely', '2024-11-01', 'none', 'none', NULL),"
        " ('eLocals', '2024-10-01', 'elocals_paid', 'per_lead', 9.99)"
    )
    refresh(october, OCTOBER, next_month(NOVEMBER))
    (row,) = explain(october, NOVEMBER, "cost").rows
    assert (row.kind, row.id, row.amount, row.rule) == (
        "job",
        "E",
        Decimal("35.00"),
        "35.00 per lead of Angi",
    )
    assert told(october, "cost", source="eLocals") == [
        "01 lead L1 eLocals/OTHER 9.99: 9.99 per lead of eLocals"
    ]
    assert len(told(october, "leads", source="Rely")) == 1


def test_rows_name_their_file_and_record(october: Connection) -> None:
    """Every row leads to the record of the export that last changed it; a row written in SQL has none."""
    places = {
        (row.id, row.file, row.record_no)
        for metric in ("jobs", "revenue_gross")
        for row in explain(october, OCTOBER, metric).rows
    }
    assert places == {
        ("A", "jobs/october.csv", 1), ("B", "jobs/october.csv", 2), ("C", "jobs/october.csv", 3), ("D", None, None),
        ("P1", None, None), ("P2", None, None), ("P4", None, None),
    }  # fmt: skip
    spend = explain(october, OCTOBER, "cost", source="Google").rows
    assert {(row.file, row.record_no) for row in spend} == {("google_spend/october.csv", None)}


def test_a_ratio_has_the_rows_of_both_parts(october: Connection) -> None:
    """A ratio's rows are those of its numerator and of its denominator, each with its own sum."""
    found = explain(october, OCTOBER, "cpl", source="Pro Referral")
    assert [(row.part, row.id, row.amount) for row in found.rows] == [
        ("numerator", "R1", Decimal("20.00")), ("numerator", "R2", Decimal("20.00")),
        ("denominator", "R1", 1), ("denominator", "R2", 1),
    ]  # fmt: skip
    assert found.explained == found.stored == {"numerator": Decimal("40.00"), "denominator": Decimal(2)}
    for ratio, (numerator, denominator) in RATIOS.items():
        parts: defaultdict[str, list[str]] = defaultdict(list)
        for row in explain(october, OCTOBER, ratio).rows:
            parts[row.part].append(row.id)
        assert parts["numerator"] == [row.id for row in explain(october, OCTOBER, numerator).rows]
        assert parts["denominator"] == [row.id for row in explain(october, OCTOBER, denominator).rows]


def test_a_month_that_changed_says_so(october: Connection) -> None:
    """Rows are those of now. The stored number is that of the last refresh, and the month is stale until the next."""
    october.execute("UPDATE raw.payments SET amount = 100.00 WHERE payment_id = 'P1'")
    found = explain(october, OCTOBER, "repairs")
    assert (found.explained, found.stored) == ({"whole": 1}, {"whole": 2})
    assert found.stale is not None and found.stale.causes == "payments update"
    refresh(october, OCTOBER, NOVEMBER)
    found = explain(october, OCTOBER, "repairs")
    assert found.is_equal and found.stale is None


def test_rows_and_number_are_of_one_snapshot(
    october: Connection, analytics_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A change that is committed and refreshed between the two reads is in neither of them."""

    def after_a_change(connection: Connection, *arguments: Any) -> dict[str, Decimal]:
        with psycopg.connect(analytics_url, autocommit=True) as other:
            other.execute("DELETE FROM raw.jobs WHERE job_id = 'B'")
            refresh(other, OCTOBER, NOVEMBER)
        return stored(connection, *arguments)

    stored = reading._stored
    monkeypatch.setattr(reading, "_stored", after_a_change)
    found = explain(october, OCTOBER, "jobs")
    assert found.stored == {"whole": 4} and found.is_equal
    monkeypatch.undo()
    assert explain(october, OCTOBER, "jobs").stored == {"whole": 3}


def test_a_source_is_found_in_any_spelling(october: Connection) -> None:
    """A source is asked for as people write it: by an alias, in other capitals, or as it is shown."""
    for spelling, name in (
        ("google", "Google"), (" GoogleAds ", "Google"), ("pro  referral", "Pro Referral"), ("unattributed", "Unattributed"),
        ("Gogle", None),
    ):  # fmt: skip
        assert reading.source_named(october, spelling) == name
    october.execute("UPDATE analytics.channel_aliases SET source = 'Google' WHERE alias_folded = 'rely'")
    assert (reading.source_named(october, "rely"), reading.source_named(october, "Rely")) == (
        "Google",
        "Rely",
    )
    assert reading.source_names(october) == [
        "Angi",
        "Google",
        "Pro Referral",
        "Rely",
        "Unattributed",
        "eLocals",
    ]


# -- the list of metrics, and plans -----------------------------------------------------------------------------


def test_every_metric_of_the_tables_is_explained(analytics: Connection) -> None:
    """The metrics are the measures and generated columns of daily_metrics: none is forgotten, here or in SQL."""
    keys = {"date", "source", "segment", "updated_at"}
    columns = {column.name for column in catalog.columns(analytics, "analytics", "daily_metrics")}
    assert set(METRICS) == columns - keys
    with pytest.raises(psycopg.errors.InvalidParameterValue, match="no such metric: repair") as refused:
        analytics.execute(
            "SELECT * FROM analytics.explain_between('2024-10-01', '2024-11-01', 'repair', NULL, NULL)"
        )
    assert refused.value.diag.message_hint == f"Metrics: {', '.join(METRICS)}."


def test_python_and_sql_agree_on_what_metrics_are_made_of(analytics: Connection) -> None:
    """Each metric has the same measures in both, and the same two of them as numerator and denominator."""
    found = analytics.execute(
        """
        SELECT metric, analytics.is_ratio(metric), array_agg(measure), array_agg(analytics.part_of(metric, measure))
        FROM unnest(%s::text[]) AS metric, unnest(%s::text[]) AS measure
        WHERE analytics.part_of(metric, measure) IS NOT NULL
        GROUP BY metric
        """,
        [list(METRICS), list(MEASURES)],
    ).fetchall()
    in_sql = {
        metric: (ratio, dict(zip(measures, parts, strict=True))) for metric, ratio, measures, parts in found
    }
    in_python = {
        metric: (
            metric in RATIOS,
            dict(zip(RATIOS[metric], ("numerator", "denominator"), strict=True))
            if metric in RATIOS
            else dict.fromkeys(MADE_OF.get(metric, (metric,)), "whole"),
        )
        for metric in METRICS
    }
    assert in_sql == in_python


def test_metric_of_gives_what_the_tables_generate(october: Connection) -> None:
    """A metric computed from sums of measures, as Grafana does, equals the column that PostgreSQL generates."""
    for metric in METRICS:
        different = october.execute(
            f"""
            SELECT * FROM analytics.monthly_metrics
            WHERE {metric} IS DISTINCT FROM
                analytics.metric_of('{metric}', jobs, units, repairs, leads, calls, cost, revenue_gross)
            """
        ).fetchall()
        assert different == [], metric


@pytest.mark.parametrize(
    ("metric", "tables"),
    [
        ("jobs", {"jobs"}), ("units", {"jobs"}), ("repairs", {"jobs", "payments"}), ("calls", {"calls"}),
        ("leads", {"elocals_leads", "proref_leads", "workiz_leads", "jobs"}), ("revenue_gross", {"jobs", "payments"}),
        ("cost", {"elocals_leads", "proref_leads", "workiz_leads", "jobs", "google_spend"}), ("conv_u_to_r", {"jobs", "payments"}),
    ],
)  # fmt: skip
def test_a_month_reads_only_the_rows_of_its_metric(
    analytics: Connection, metric: str, tables: set[str]
) -> None:
    """The plan has the metric's tables alone, by the index of their dates, with every rule inlined.

    A metric that isn't a constant to the planner would read all tables, and a function that isn't inlined would be called
    for each of a month's 100,000 jobs.
    """
    analytics.execute("SET enable_seqscan = off")
    row = analytics.execute(
        "EXPLAIN (VERBOSE, COSTS OFF, FORMAT JSON)"
        " SELECT * FROM analytics.explain_between(%s::date, %s::date, %s, NULL, NULL)",
        [OCTOBER, NOVEMBER, metric],
        prepare=False,
    ).fetchone()
    assert row
    nodes = list(executed(row[0][0]["Plan"]))
    read = {node["Relation Name"] for node in nodes if node.get("Schema") == "raw"} - {"source_files"}
    assert read == tables
    assert re.findall(r"\b(?:analytics|reporting|raw)\.\w+\(", str(nodes)) == []
    conditions = " ".join(str(node.get("Index Cond")) for node in nodes)
    for table, day in (("jobs", "job_date"), ("calls", "call_date"), ("elocals_leads", "lead_date")):
        if table in tables:
            assert f"{day} >= '2024-10-01'::date" in conditions, conditions


def executed(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yields the nodes of a plan that may run; PostgreSQL 16 leaves some of a ruled-out branch below a false filter."""
    if plan.get("One-Time Filter") != "false":
        children = plan.pop("Plans", [])
        yield plan
        for child in children:
            yield from executed(child)


# -- against the tables of the demo -------------------------------------------------------------------------------


def test_explains_every_number_of_the_demos_last_twelve_months(tmp_path: Path, analytics: Connection) -> None:
    """Rows add up to every additive number of twelve months of the demo: by day, source and segment, to the cent.

    So do those of one source and segment, asked for alone.
    """
    summary = write_landing(tmp_path, months=12, until=date(2025, 12, 16))
    for source in SOURCES:
        load_source(analytics, tmp_path, source, timezone=ZoneInfo("America/New_York"))
    first, end = summary.first_month, next_month(summary.last_month)
    refresh(analytics, first, end)
    months = list(months_between(first, end))
    assert len(months) == 12
    for metric in ADDITIVE:
        for month in months:
            different = analytics.execute(
                f"""
                SELECT date, source, segment, sum(explained), sum(stored)
                FROM (
                    SELECT day AS date, source, segment, amount AS explained, 0 AS stored
                    FROM analytics.explain_between(%(first)s::date, %(end)s::date, '{metric}', NULL, NULL)
                    UNION ALL
                    SELECT date, source, segment, 0, {metric} FROM analytics.daily_metrics
                    WHERE date >= %(first)s AND date < %(end)s
                ) rows
                GROUP BY date, source, segment HAVING sum(explained) <> sum(stored)
                """,
                {"first": month, "end": next_month(month)},
                prepare=False,
            ).fetchall()
            assert different == [], (metric, month)
        keys = analytics.execute(
            "SELECT DISTINCT source, segment FROM analytics.monthly_metrics WHERE month = %s", [months[-2]]
        ).fetchall()
        assert len(keys) > 10
        for source, segment in keys:
            found = explain(analytics, months[-2], metric, source, segment)
            assert found.is_equal, (metric, source, segment)
            assert {(row.source, row.segment) for row in found.rows} <= {(source, segment)}
            assert all(row.rule for row in found.rows)


# -- against the reference model, on random histories ----------------------------------------------------------------


@pytest.fixture(scope="module")
def connection(new_database: Callable[..., str]) -> Iterator[Connection]:
    with psycopg.connect(new_database("analytics"), autocommit=True) as opened:
        yield opened


def assert_explains(connection: Connection, model: Model) -> None:
    """Asserts that the rows of every metric add up to the model's numbers, by day, source and segment."""
    daily = reference_model.daily_metrics(model.warehouse())
    explained: defaultdict[tuple[Any, ...], Decimal] = defaultdict(Decimal)
    rows = connection.execute(
        " UNION ALL ".join(
            f"SELECT '{metric}', part, day, source, segment, amount, rule"
            f" FROM analytics.explain_between('{FIRST}', '{next_month(LAST)}', '{metric}', NULL, NULL)"
            for metric in METRICS
        ).encode()
    )
    for metric, part, day, source, segment, amount, rule in rows:
        assert rule, (metric, day, source)
        explained[metric, part, day, folded(source), segment] += amount
    expected = {
        (metric, part, day, folded(source), segment): getattr(measures, measure)
        for (day, source, segment), measures in daily.items()
        for metric in METRICS
        for part, measure in zip(
            ("numerator", "denominator") if metric in RATIOS else ("whole",), RATIOS.get(metric, (metric,)), strict=True
        )
    }  # fmt: skip
    assert {key: sum_ for key, sum_ in explained.items() if sum_} == {
        key: value for key, value in expected.items() if value
    }


@examples(200, shrink=False)
@given(fill=corrections.filling, work=st.lists(corrections.bursts, max_size=2))
def test_explains_random_histories_as_the_reference_model_does(
    connection: Connection, fill: tuple[Step, ...], work: list[list[Step]]
) -> None:
    """Whatever rows and rules there are, the rows of every metric add up to what the independent model computes."""
    corrections.empty(connection)
    model = Model()
    for burst in (fill, *work):
        for step in burst:
            step(connection, model)
    assert_explains(connection, model)
