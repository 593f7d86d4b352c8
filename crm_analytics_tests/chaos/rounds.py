"""A round: the work of two stages, killed some times in each, and done to its end in between."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from random import Random

from crm_analytics_tests.chaos.lab import Hit, Kill, Lab

#: What is killed, and how often: the working process; its database sessions; the postmaster; the server by an
#: immediate shutdown; the process and all processes of the server at once.
VICTIMS = {"worker": 10, "sessions": 4, "server": 2, "server at once": 2, "everything": 4}


@dataclass(frozen=True)
class Moment:
    """A kill's victim, and its moment as a share of the time that the work, or its part from the first refresh on, takes."""

    victim: str
    share: float
    in_refresh: bool = False


@dataclass(frozen=True)
class Plan:
    """The kills of a round by stage."""

    way: str
    stages: tuple[tuple[Moment, ...], ...]


def plan(seed: int, number: int, ways: Sequence[str]) -> Plan:
    """Returns the plan of a round, always the same for the same seed and number."""
    rng = Random(f"{seed}:{number}")

    def victim() -> str:
        return rng.choices(list(VICTIMS), list(VICTIMS.values()))[0]

    def stage() -> tuple[Moment, ...]:
        # refreshes take a small part of the time, so they get some kills of their own
        if rng.random() < 0.4:
            return tuple(Moment(victim(), rng.random(), in_refresh=True) for _ in range(rng.randint(1, 3)))
        return tuple(
            Moment(victim(), share) for share in sorted(rng.random() for _ in range(rng.randint(1, 3)))
        )

    return Plan(ways[number % len(ways)], (stage(), stage()))


def run(lab: Lab, plan: Plan) -> Iterator[Hit]:
    """Does the work of a round with its kills, yields what each met, and compares the tables after each stage."""
    lab.reset()
    for stage, moments in enumerate(plan.stages):
        done = 0.0
        for moment in moments:
            # what was done before an earlier kill need not be done again
            share = moment.share if moment.in_refresh else moment.share - done
            done = moment.share
            delay = share * lab.spans[plan.way, stage, moment.in_refresh]
            yield lab.kill(plan.way, stage, Kill(moment.victim, delay, moment.in_refresh))
        lab.finish(plan.way, stage)
        lab.require_expected(stage)
