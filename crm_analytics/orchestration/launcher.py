"""The run launcher that dagster.yaml names: Dagster's own, which also knows whether a run's worker lives."""

from __future__ import annotations

import time

import dagster as dg
from dagster._core.launcher import CheckRunHealthResult, DefaultRunLauncher, WorkerStatus
from dagster._serdes import ConfigurableClassData

from crm_analytics.orchestration.worker_lock import WatchedRunStorage

#: Seconds. A living worker whose session broke has its lock again within two.
PATIENCE = 8


class WatchedRunLauncher(DefaultRunLauncher):
    """`DefaultRunLauncher` for Dagster's run monitoring, which fails every started run that is not healthy.

    It answers for runs of any process: a worker that outlives its code server works on, and a command in a terminal
    never had one.
    """

    def __init__(self, inst_data: ConfigurableClassData | None = None) -> None:
        super().__init__(inst_data)
        self._missed_since: dict[str, float] = {}

    @property
    def supports_check_run_worker_health(self) -> bool:
        """Tells the monitoring to ask."""
        return True

    def check_run_worker_health(self, run: dg.DagsterRun) -> CheckRunHealthResult:
        """Returns FAILED once the run's lock has been free for PATIENCE seconds."""
        storage = self._instance.run_storage
        assert isinstance(storage, WatchedRunStorage)
        if storage.worker_lives(run.run_id):
            self._missed_since.pop(run.run_id, None)
            return CheckRunHealthResult(WorkerStatus.RUNNING)
        now = time.monotonic()
        if now - self._missed_since.setdefault(run.run_id, now) < PATIENCE:
            return CheckRunHealthResult(
                WorkerStatus.RUNNING, "its lock is free: asked again at the next check"
            )
        del self._missed_since[run.run_id]
        return CheckRunHealthResult(WorkerStatus.FAILED, "no process holds its lock")
