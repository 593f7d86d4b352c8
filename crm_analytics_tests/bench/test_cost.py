"""Costs: how rounds become one number, and that each side's CPU is the one that it used."""

from __future__ import annotations

import subprocess
import sys
from functools import partial

import pytest

from bench.cost import Cost, by_turns, of_rounds
from bench.environment import Environment

BURN = "import time\nwhile time.process_time() < 0.3: pass"


def test_rounds_give_the_best_time_and_the_mean_cpu():
    """Other work adds to wall-clock time only, and CPU time is too coarse to choose the least of it."""
    assert of_rounds([Cost(3, 1, 0.5), Cost(2, 2, 1.5)]) == Cost(2, 1.5, 1.0)


def test_costs_add_up_and_divide():
    """Parts of a load add up, a baseline's part is taken away, and a batch is divided among its files."""
    assert (Cost(6, 3, 1) + Cost(2, 1, 1) - Cost(4, 2, 0)) / 2 == Cost(2, 1, 1)
    assert Cost(6, 3, 1).cpu == 4


def test_both_sides_take_turns():
    """A B A B: measuring all of one side first would give a busy minute to one side alone."""
    order: list[str] = []

    def way(name: str, seconds: list[float]) -> Cost:
        order.append(name)
        return Cost(seconds.pop(0))

    costs = by_turns(partial(way, "ours", [5, 4]), partial(way, "theirs", [1, 2]))
    assert order == ["ours", "theirs", "ours", "theirs"]
    assert costs == [Cost(4), Cost(1)]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="CPU of other processes is read from /proc")
def test_cpu_is_told_apart(environment: Environment):
    """The server's CPU includes that of sessions that have ended; the client's, that of children that it waited for."""

    def in_the_server() -> None:
        with environment.connect("burned") as connection:
            connection.execute("SELECT count(*) FROM generate_series(1, 3000000)")

    environment.analytics("burned")
    server = environment.measure(in_the_server)
    client = environment.measure(lambda: subprocess.run([sys.executable, "-c", BURN], check=True))
    assert server.server > 0.1 > server.client
    assert client.client >= 0.28  # of 0.3: the kernel counts ticks of 0.01
