"""What people wait for at the command line, with everything that a process imports."""

from __future__ import annotations

from collections.abc import Iterator

from bench.cost import SHORT_ROUNDS, by_turns
from bench.environment import Environment, run
from bench.no_op import record
from bench.platform import new_platform, write_sample
from bench.table import BenchRow

SECTION = "commands"
MONTHS = 24


def rows(environment: Environment) -> Iterator[BenchRow]:
    """Yields the lines of the commands."""
    with new_platform(environment, write_sample(environment, MONTHS)) as platform:
        platform.refresh()
        environment.say("refreshing again, with nothing new")
        shape = environment.folder / "shape.json"
        steps = record(platform.config, shape, with_metadata=False)["steps"]
        ours, empty = by_turns(
            platform.refresh,
            lambda: platform.python("-m", "bench.no_op_child", str(shape)),
        )
        yield BenchRow.of_costs(
            SECTION, "crm-analytics refresh with nothing new", ours,
            f"an empty Dagster run of as many steps ({len(steps)})", empty, 1.3,
        )  # fmt: skip
    environment.say("printing the help")
    helped, imported = by_turns(
        lambda: environment.measure(lambda: run("-m", "crm_analytics.cli.main", "--help")),
        lambda: environment.measure(lambda: run("-c", "import click, rich")),
        rounds=SHORT_ROUNDS,
    )
    yield BenchRow.of_costs(
        SECTION, "crm-analytics --help", helped, "python -c 'import click, rich'", imported, 1.5
    )
