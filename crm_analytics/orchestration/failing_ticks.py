"""Finds the sensors and schedules that fail: a tick that raises starts no run, so no run tells of it."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from itertools import takewhile

import dagster as dg
from dagster._core.definitions.run_request import InstigatorType
from dagster._core.scheduler.instigation import InstigatorTick, TickStatus
from dagster._utils.error import SerializableErrorInfo

from crm_analytics.orchestration.failures import root_message

#: One failure may pass, and ends in a log; so many in a row are told.
FAILURES = 3
FINISHED = (TickStatus.SUCCESS, TickStatus.SKIPPED, TickStatus.FAILURE)
#: The code server was away, as during an upgrade; whoever reads this runs in it, or beside it.
UNREACHABLE = ("DagsterUserCodeUnreachableError", "DagsterCodeLocationLoadError")
#: What Dagster writes into such an error, too, when the code server was there and the tick took too long.
TOO_LONG = "timed out"


@dataclass(frozen=True)
class Ticks:
    """The newest ticks of a sensor or schedule that is on."""

    name: str
    #: `Sensor` or `Schedule`
    kind: str
    #: How many of the newest failed, FAILURES at most.
    failures: int
    #: Whether the newest did not fail. A tick while the code server was away says neither.
    works: bool
    #: Why the newest failed.
    reason: str

    @property
    def fails(self) -> bool:
        """Whether this is to be told."""
        return self.failures >= FAILURES


def automation_names(repository: dg.RepositoryDefinition | None) -> set[str]:
    """Returns the names of all sensors and schedules; those of older versions left ticks behind that nobody heals."""
    if repository is None:
        return set()
    return {sensor.name for sensor in repository.sensor_defs} | {
        schedule.name for schedule in repository.schedule_defs
    }


def newest_ticks(instance: dg.DagsterInstance, names: Collection[str]) -> list[Ticks]:
    """Returns the newest ticks of those of these sensors and schedules that are on and have ticked, by name."""
    found: dict[str, list[InstigatorTick]] = {}
    # one name has several states if it was loaded from several places, as by `up` and by `dagster dev`
    for state in instance.all_instigator_state():
        if state.name in names and state.is_running:
            found.setdefault(state.name, []).extend(
                instance.get_ticks(
                    state.instigator_origin_id, state.selector_id, limit=FAILURES, statuses=list(FINISHED)
                )
            )
    return [_newest(name, ticks) for name, ticks in sorted(found.items()) if ticks]


def _newest(name: str, ticks: list[InstigatorTick]) -> Ticks:
    newest = sorted(ticks, key=lambda tick: tick.timestamp, reverse=True)[:FAILURES]
    last = newest[0]
    return Ticks(
        name,
        "Schedule" if last.instigator_type == InstigatorType.SCHEDULE else "Sensor",
        sum(1 for _ in takewhile(_failed, newest)),
        last.status != TickStatus.FAILURE,
        (_timeout(last) or root_message(last.tick_data.error)) if _failed(last) else "",
    )


def _failed(tick: InstigatorTick) -> bool:
    """Returns whether a tick failed by itself, and not because the code server was away."""
    away = any(link.cls_name in UNREACHABLE for link in _causes(tick))
    return tick.status == TickStatus.FAILURE and (not away or _timeout(tick) is not None)


def _timeout(tick: InstigatorTick) -> str | None:
    """Returns what Dagster says of a tick that took too long; None for any other."""
    for link in _causes(tick):
        if link.cls_name in UNREACHABLE and TOO_LONG in link.message:
            return link.message.partition(": ")[2].strip()
    return None


def _causes(tick: InstigatorTick) -> Iterator[SerializableErrorInfo]:
    error = tick.tick_data.error
    while error:
        yield error
        error = error.cause
