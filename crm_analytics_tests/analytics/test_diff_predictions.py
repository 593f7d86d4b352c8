"""Random histories in which every file and every change in SQL is foretold by a diff, and then really happens."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass, field
from datetime import date
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any, cast

import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crm_analytics.analytics.diff import Difference, diff_files, diff_sql
from crm_analytics.analytics.ingest.loading.load import load_source
from crm_analytics.analytics.warehouse.refresh import refresh, stale_months
from crm_analytics.core.months import next_month
from crm_analytics_tests.analytics import reference_model
from crm_analytics_tests.analytics import test_arrival_histories as histories
from crm_analytics_tests.analytics import test_correction_histories as corrections
from crm_analytics_tests.analytics.model_comparison import assert_metrics, refresh_stale
from crm_analytics_tests.analytics.reference_model import folded
from crm_analytics_tests.analytics.test_arrival_histories import NEW_YORK, Written, arrivals, model_of
from crm_analytics_tests.analytics.test_correction_histories import Model, Step
from crm_analytics_tests.chance import examples

Connection = psycopg.Connection[Any]
MEASURES = ("jobs", "units", "repairs", "leads", "calls", "cost", "revenue_gross")
HISTORIES, PROMISED = 18, 200
#: By month and source, under its folded name.
Sums = dict[tuple[date, str], dict[str, Decimal]]
#: By day, source and segment.
Days = dict[tuple[date, str, str], tuple[Decimal, ...]]


def stored(connection: Connection) -> Days:
    rows = connection.execute(
        f"SELECT date, source, segment, {', '.join(MEASURES)} FROM analytics.daily_metrics".encode()
    )
    return {(row[0], row[1], row[2]): tuple(map(Decimal, row[3:])) for row in rows}


def in_model(model: Model) -> Days:
    return {
        (day, folded(source), segment): tuple(Decimal(getattr(measures, name)) for name in MEASURES)
        for (day, source, segment), measures in reference_model.daily_metrics(model.warehouse()).items()
    }


def with_folded(days: Days) -> Days:
    return {(day, folded(source), segment): row for (day, source, segment), row in days.items()}


def differences(before: Days, after: Days) -> tuple[dict[Any, Any], set[tuple[date, str]]]:
    """Returns old and new by (month, source, measure), and the months and sources whose sums stay though days differ."""
    sums: dict[Any, list[Decimal]] = defaultdict(lambda: [Decimal(0), Decimal(0)])
    touched = set()
    for side, days in enumerate((before, after)):
        for (day, source, segment), row in days.items():
            for measure, value in zip(MEASURES, row, strict=True):
                sums[day.replace(day=1), source, measure][side] += value
            if before.get((day, source, segment)) != after.get((day, source, segment)):
                touched.add((day.replace(day=1), source))
    changes = {key: (old, new) for key, (old, new) in sums.items() if old != new}
    return changes, touched - {key[:2] for key in changes}


@dataclass
class Recorder:
    """Stands in for a connection: keeps what a step would execute, as SQL with its values in it."""

    cursor: psycopg.ClientCursor[Any]
    statements: list[str] = field(default_factory=list)

    def execute(self, query: Any, parameters: Any = None) -> None:
        self.statements.append(self.cursor.mogrify(query, parameters))


def as_sql(connection: Connection, step: Step, model: Model) -> str:
    """Returns the SQL of a step, which leaves the model as it is."""
    recorder = Recorder(psycopg.ClientCursor(connection))
    step(cast("Connection", recorder), deepcopy(model))
    return ";\n".join(recorder.statements)


@dataclass
class World:
    """A database with its landing folder, on which diffs are put to the test."""

    connection: Connection
    url: str
    foretold: int = 0
    changed: int = 0

    def foretell(self, how: Callable[[Connection], Difference]) -> Difference:
        with psycopg.connect(self.url, autocommit=True) as asking:
            return how(asking)

    def judge(self, told: Difference, change: Callable[[], object], model: Callable[[], Model]) -> None:
        """Makes the change, refreshes the months that it has made stale, and compares what was told with what happened."""
        before, waiting = stored(self.connection), {entry.month for entry in stale_months(self.connection)}
        newest = self.connection.execute("SELECT max(id) FROM analytics.stale_months").fetchone()
        change()
        made_stale = self.connection.execute(
            "SELECT DISTINCT month FROM analytics.stale_months WHERE id > coalesce(%s, 0) ORDER BY month",
            newest,
        ).fetchall()
        assert [(month,) for month in told.months] == made_stale
        for month in told.months:
            refresh(self.connection, month, next_month(month))
        after = stored(self.connection)
        changes, moved = differences(before, after)
        assert {(c.month, c.source, c.measure): (c.old, c.new) for c in told.changes} == changes
        assert len(told.changes) == len(changes)
        assert set(told.moved) == moved
        differing = {key[0] for key in changes} | {month for month, _ in moved}
        assert set(told.stale_before) == waiting & differing
        assert told.not_computed == []
        # nobody has seen this model's numbers in the database
        expected = in_model(model())
        for month in told.months:
            assert {
                key: row for key, row in with_folded(after).items() if key[0].replace(day=1) == month
            } == {key: row for key, row in expected.items() if key[0].replace(day=1) == month}
        self.foretold += 1
        self.changed += bool(changes or moved)


@pytest.fixture(scope="module")
def world(new_database: Callable[..., str]) -> Iterator[World]:
    """One database for all histories; in the end it has seen as many predictions as promised, most of them of changes."""
    url = new_database("analytics")
    with psycopg.connect(url, autocommit=True) as connection:
        world = World(connection, url)
        yield world
        assert world.foretold >= PROMISED, world
        assert world.changed >= PROMISED / 2, world


def is_refresh(step: Step) -> bool:
    return step.__qualname__.startswith(corrections.refresh_one.__qualname__)


@examples(HISTORIES, shrink=False)
@given(
    files=arrivals(),
    pauses=st.lists(st.booleans(), min_size=40, max_size=40),
    by_hand=st.lists(st.one_of(corrections.local_steps, corrections.global_steps), min_size=3, max_size=6),
)
def test_what_a_diff_says_then_happens(
    world: World,
    tmp_path_factory: pytest.TempPathFactory,
    files: list[Written],
    pauses: list[bool],
    by_hand: list[Step],
) -> None:
    """Old and new numbers of every file, rule, alias and correction are those of loading or running it, and the model's."""
    connection = world.connection
    corrections.empty(connection)
    connection.execute("TRUNCATE raw.source_files, raw.rejected_rows, raw.vanished_rows")
    landing = tmp_path_factory.mktemp("landing")
    elsewhere = tmp_path_factory.mktemp("downloads")
    pause = iter(pauses)
    for number, file in enumerate(files, start=1):
        path = elsewhere / file.path
        path.parent.mkdir(exist_ok=True)
        path.write_text(file.text(), newline="")
        told = world.foretell(
            partial(
                diff_files, landing=landing, paths=[path], timezone=NEW_YORK, start_month=corrections.FIRST
            )
        )
        (tried,) = told.files
        assert (tried.result.path, tried.exported_at) == (
            file.path,
            file.exported_at.replace(microsecond=706000),
        )
        world.judge(
            told,
            partial(histories.load, connection, landing, histories.into(landing), file),
            partial(model_of, files[:number]),
        )
        # otherwise the next file meets months that wait for a refresh
        if next(pause):
            refresh_stale(connection)
    model = model_of(files)
    for step in by_hand:
        if is_refresh(step):
            step(connection, model)
            continue
        statements = as_sql(connection, step, model)
        told = world.foretell(partial(diff_sql, statements=statements, start_month=corrections.FIRST))
        world.judge(told, partial(step, connection, model), lambda: model)
    refresh_stale(connection)
    assert_metrics(connection, model.warehouse())


def test_several_files_of_several_sources_at_once(
    analytics: Connection, analytics_url: str, tmp_path: Path
) -> None:
    """One diff of a whole folder says what one load of it does: jobs, their payments, and leads, in export order."""
    landing, elsewhere = tmp_path / "landing", tmp_path / "elsewhere"
    landing.mkdir()
    exported = histories.EXPORTED[0]
    jobs = [
        reference_model.Job(f"J{n}", str(n), "COD Service", "Google", "Done", date(2024, 10, n))
        for n in (1, 2)
    ]
    payment = corrections.PaymentRow("P", None, "2", date(2024, 11, 5), Decimal("150.00"), "Paid")
    files = [
        Written("payments", "b", exported, (histories.payment_line(payment, 0, False),)),
        Written("jobs", "a", exported, tuple(histories.job_line(job, False, False) for job in jobs)),
        Written(
            "elocals_leads",
            "c",
            exported,
            (histories.elocals_line("L", date(2024, 12, 3), Decimal(65), False),),
        ),
    ]
    for file in files:
        for folder in (landing, elsewhere):
            path = folder / file.path
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(file.text(), newline="")
    with psycopg.connect(analytics_url, autocommit=True) as asking:
        told = diff_files(
            asking,
            landing,
            [elsewhere / file.path for file in files],
            timezone=NEW_YORK,
            start_month=corrections.FIRST,
        )
    october, december = date(2024, 10, 1), date(2024, 12, 1)
    assert [(c.month, c.source, c.measure, c.old, c.new) for c in told.changes] == [
        (october, "Google", "jobs", 0, 2),
        (october, "Google", "units", 0, 2),
        (october, "Google", "repairs", 0, 1),
        (october, "Google", "leads", 0, 2),
        (october, "Google", "revenue_gross", 0, 150),
        (december, "eLocals", "leads", 0, 1),
        (december, "eLocals", "cost", 0, 65),
    ]
    for source in ("jobs", "payments", "elocals_leads"):
        load_source(analytics, landing, source, timezone=NEW_YORK)
    refresh_stale(analytics)
    changes, moved = differences({}, stored(analytics))
    assert {(c.month, c.source, c.measure): (c.old, c.new) for c in told.changes} == changes
    assert moved == set()
