"""The run launcher that dagster.yaml names: Dagster's own, which also knows whether a run's worker lives."""

from __future__ import annotations

import time
from typing import Any

import dagster as dg
from dagster._core.launcher import CheckRunHealthResult, DefaultRunLauncher, RunLauncher, WorkerStatus

from crm_analytics.orchestration.worker_lease import WatchedRunStorage

#: Seconds. A living worker renews its lease within five, after its machine slept or the database was away.
PATIENCE = 8


class WatchingLauncher(RunLauncher):
    """For Dagster's run monitoring, which fails every started run that is not healthy: asks the run's lease.

    It answers for runs of any process on any host: a worker that outlives its code server works on, and a command in a
    terminal never had one.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)  # type: ignore[no-untyped-call]
        self._missed_since: dict[str, float] = {}

    @property
    def supports_check_run_worker_health(self) -> bool:
        """Tells the monitoring to ask."""
        return True

    def check_run_worker_health(self, run: dg.DagsterRun) -> CheckRunHealthResult:
        """Returns FAILED once the run has been without a lease for PATIENCE seconds."""
        storage = self._instance.run_storage
        assert isinstance(storage, WatchedRunStorage)
        if storage.worker_lives(run.run_id):
            self._missed_since.pop(run.run_id, None)
            return CheckRunHealthResult(WorkerStatus.RUNNING)
        now = time.monotonic()
        if now - self._missed_since.setdefault(run.run_id, now) < PATIENCE:
            return CheckRunHealthResult(
                WorkerStatus.RUNNING, "its lease has lapsed: asked again at the next check"
            )
        del self._missed_since[run.run_id]
        return CheckRunHealthResult(WorkerStatus.FAILED, "no process renews its lease")


class WatchedRunLauncher(WatchingLauncher, DefaultRunLauncher):
    """`DefaultRunLauncher`, which lets the code server of the run's location start the worker, wherever it is."""
