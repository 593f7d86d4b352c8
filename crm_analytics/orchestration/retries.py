"""Decides when a sensor asks again for work whose run failed, and what it reports meanwhile.

Nothing else retries: no asset has a retry policy, and Dagster's run retries are off. A run key is never run twice,
whatever became of its run, so each attempt has a key of its own (docs/decisions/dead-runs.md).
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import datetime, tzinfo
from typing import Any

import dagster as dg
from dagster._core.storage.tags import SCHEDULE_NAME_TAG

from crm_analytics.orchestration.failures import RunFailure, run_failure

#: The tag that all attempts at one piece of work share.
WORK_TAG = "crm-analytics/work"
RUN_KEY_TAG = "dagster/run_key"
#: Seconds before each retry. After a worker's death it follows at once, since that says nothing about the work.
DELAYS = (30, 120, 600)
#: How it goes on without a retry.
GOES_ON = "it is tried again when it changes, or with crm-analytics refresh"


def request(
    instance: dg.DagsterInstance,
    work: str,
    name: str,
    *,
    timezone: tzinfo,
    tags: Mapping[str, str],
    **options: Any,
) -> dg.RunRequest | str:
    """Returns the request for the next attempt at a piece of work, or why there is none now.

    Args:
        work: the key of the work, which changes when there is anything new about it.
        name: what people call it.
        timezone: of the times in messages.
        tags: of the run.
        options: other arguments of the request.
    """
    attempts = instance.get_run_records(dg.RunsFilter(tags={WORK_TAG: work}))
    if attempts:
        run = attempts[0].dagster_run
        if not run.is_finished:
            return f"{name}: run {run.run_id} is {run.status.value.lower()}"
        if run.status != dg.DagsterRunStatus.FAILURE:
            ended = f"run {run.run_id} has ended ({run.status.value.lower()})"
            return f"{name}: {ended}; {GOES_ON}"
        failure = run_failure(instance, run.run_id)
        delay = _delay(failure, len(attempts))
        if delay is None:
            retries = f" after {len(DELAYS)} retries" if failure.transient else ""
            return f"gave up on {name}{retries}; {GOES_ON}. Run {run.run_id} failed: {failure.reason}"
        due = (attempts[0].end_time or 0) + delay
        if time.time() < due:
            at = datetime.fromtimestamp(due, timezone)
            return (
                f"retry {len(attempts)} of {len(DELAYS)} of {name} at {at:%H:%M:%S} after: {failure.reason}"
            )
    return dg.RunRequest(run_key=f"{work}:{len(attempts) + 1}", tags={**tags, WORK_TAG: work}, **options)


def attempt_of(run: dg.DagsterRun) -> int | None:
    """Returns which attempt at its work a run is, from 1; None for a run that no sensor here asked for."""
    work, _, attempt = run.tags.get(RUN_KEY_TAG, "").rpartition(":")
    return int(attempt) if work and run.tags.get(WORK_TAG) == work else None


def will_retry(run: dg.DagsterRun, failure: RunFailure) -> bool:
    """Returns whether a sensor asks again for the work of a failed run."""
    attempt = attempt_of(run)
    return attempt is not None and _delay(failure, attempt) is not None


def outlook(run: dg.DagsterRun, failure: RunFailure) -> str:
    """Returns what happens about a failed run, in a sentence; nothing for one that a person started."""
    attempt = attempt_of(run)
    if attempt is None:
        schedule = run.tags.get(SCHEDULE_NAME_TAG)
        return f"{schedule} starts it again at its next time." if schedule else ""
    delay = _delay(failure, attempt)
    if delay is None:
        return f"No retry follows: {GOES_ON}."
    return f"Retry {attempt} of {len(DELAYS)} follows {f'in {delay} s' if delay else 'at once'}."


def _delay(failure: RunFailure, attempts: int) -> int | None:
    """Returns the seconds from a failure to the next attempt; None if there is none."""
    if not failure.transient or attempts > len(DELAYS):
        return None
    return 0 if failure.worker_gone else DELAYS[attempts - 1]
