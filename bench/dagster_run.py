"""What the platform adds to Dagster in a run of all assets over ten years: compared with a run of the same shape."""

from __future__ import annotations

from collections.abc import Iterator

from bench.cost import Cost, by_turns
from bench.environment import Environment
from bench.no_op import record
from bench.platform import new_platform, write_sample
from bench.table import BenchRow
from crm_analytics.analytics.ingest.loading.load import load_source
from crm_analytics.analytics.ingest.sources.registry import SOURCES
from crm_analytics.analytics.warehouse.check_queries import QUERIES
from crm_analytics.analytics.warehouse.refresh import refresh
from crm_analytics.core.months import next_month
from crm_analytics.core.settings import settings

SECTION = "dagster"
MONTHS = 120
#: A difference of two times is less certain than a time.
RUNS = 4


def rows(environment: Environment) -> Iterator[BenchRow]:
    """Yields the Dagster line."""
    months = environment.scaled(MONTHS, least=2)
    sample = write_sample(environment, months)
    shape = environment.folder / "shape.json"

    def run() -> Cost:
        environment.say(f"one run of all assets over {months} months")
        with new_platform(environment, sample) as platform:
            cost = platform.refresh()
            record(platform.config, shape, with_metadata=True)
        return cost

    def data_work() -> Cost:
        environment.say("the same loads, computations and checks' queries without Dagster")
        with environment.connect("without_dagster") as connection:

            def work() -> None:
                for source in SOURCES:
                    load_source(connection, sample.folder, source, timezone=settings().timezone)
                first, after = sample.first_month, next_month(sample.last_month)
                refresh(connection, first, after)
                window = {"start": first, "end": after, "first_partition": first}
                for query in QUERIES:
                    connection.execute(query.sql.encode(), window).fetchall()

            environment.checkpoint()
            cost = environment.measure(work)
        environment.drop("without_dagster")
        return cost

    def no_op() -> Cost:
        environment.say("a run of the same shape that does nothing")
        with new_platform(environment, sample) as platform:
            return platform.python("-m", "bench.no_op_child", str(shape))

    whole, work, nothing = by_turns(run, data_work, no_op, rounds=RUNS)
    yield BenchRow.of_costs(
        SECTION, f"one run of all assets over {months} months, beyond its data work", whole - work,
        "a run of the same shape that does nothing", nothing, 1.5,
        note=f"run {whole.seconds:.1f} s, data work {work.seconds:.1f} s",
    )  # fmt: skip
