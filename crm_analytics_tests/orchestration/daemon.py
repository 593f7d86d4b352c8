"""The daemon's own iterations over the platform's definitions, in this process and at times that a test sets."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

import dagster as dg
from dagster._core.remote_origin import InProcessCodeLocationOrigin
from dagster._core.test_utils import create_test_daemon_workspace_context, freeze_time
from dagster._core.types.loadable_target_origin import LoadableTargetOrigin
from dagster._core.workspace.context import WorkspaceProcessContext
from dagster._core.workspace.load_target import InProcessWorkspaceLoadTarget
from dagster._daemon.sensor import execute_sensor_iteration
from dagster._scheduler.scheduler import ScheduleIterationTimes, launch_scheduled_runs

from crm_analytics_tests.orchestration.conftest import Platform

log = logging.getLogger("daemon")
#: What the daemon loads from this module, as a code server would load the definitions.
defs = dg.Definitions()
#: Seconds; every sensor is due again after it.
INTERVAL = 31


class Daemon:
    """Ticks sensors and schedules as the daemon does, and moves its clock."""

    def __init__(self, workspace: WorkspaceProcessContext, now: datetime) -> None:
        self._workspace, self.now = workspace, now
        self._times: dict[str, ScheduleIterationTimes] = {}

    def tick(self, times: int = 1) -> None:
        """Evaluates every sensor, `times` times."""
        for _ in range(times):
            self.now += timedelta(seconds=INTERVAL)
            with freeze_time(self.now):
                list(execute_sensor_iteration(self._workspace, log, None, None))

    def schedules(self, until: datetime) -> None:
        """Evaluates every schedule that is due until then."""
        self.now = until
        with freeze_time(until):
            list(launch_scheduled_runs(self._workspace, log, until, self._times))


@contextmanager
def running(platform: Platform, now: datetime = datetime(2024, 11, 1, 12, tzinfo=UTC)) -> Iterator[Daemon]:
    """Loads the platform's definitions into a daemon whose clock begins at `now`."""
    global defs
    defs = platform.defs
    origin = InProcessCodeLocationOrigin(LoadableTargetOrigin(module_name=__name__, attribute="defs"))
    target = InProcessWorkspaceLoadTarget(origin)
    with create_test_daemon_workspace_context(target, platform.instance) as workspace:
        yield Daemon(workspace, now)
