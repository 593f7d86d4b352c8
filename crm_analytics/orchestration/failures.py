"""Finds out why a step or a run failed, and whether trying again can help."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import dagster as dg
import psycopg
from dagster._core.events import JobFailureData, RunFailureReason
from dagster._utils.error import SerializableErrorInfo

from crm_analytics.analytics.connectors.errors import TransientError

#: What Dagster writes before the message of such an exception.
FAILURE = f"{dg.Failure.__module__}.{dg.Failure.__qualname__}: "
#: What PostgreSQL writes after its message: where in its work it was, with the record that it was reading.
CONTEXT = "\nCONTEXT:"
WORKER_GONE = "the run's worker is gone"
#: Classes and codes of SQLSTATE: connection lost, disk or memory full, too many connections, deadlock, lock timeout,
#: server shut down, input or output error.
TRANSIENT_SQLSTATES = ("08", "53", "40001", "40P01", "55P03", "57P01", "57P02", "57P03", "58030")
#: A connection that broke has no SQLSTATE. Files that are missing or forbidden have classes of their own, so a bare
#: OSError is a disk that is full or fails.
TRANSIENT_EXCEPTIONS = (
    "OperationalError", "OSError", "TimeoutError", "ConnectionError", "ConnectionRefusedError", "ConnectionResetError",
    "BrokenPipeError", "MemoryError", "DagsterUserCodeUnreachableError", "LandingUnreachable", TransientError.__name__,
)  # fmt: skip


@dataclass(frozen=True)
class RunFailure:
    """Why a run failed."""

    reason: str
    #: the same run may succeed later without any change
    transient: bool
    #: nothing is wrong with the work: its process was killed or interrupted
    worker_gone: bool = False


def root_cause(event: dg.DagsterEvent) -> str:
    """Returns the message of a failed step's own exception."""
    return root_message(event.step_failure_data.error)


def root_message(error: SerializableErrorInfo | None) -> str:
    """Returns the message of the exception at the root of an error, not of those wrapped around it.

    Without PostgreSQL's context: alerts send the message to other companies' servers, and a customer's record isn't
    for them.
    """
    while error and error.cause:
        error = error.cause
    return error.message.partition(CONTEXT)[0].strip().removeprefix(FAILURE) if error else "no reason given"


def run_failure(instance: dg.DagsterInstance, run_id: str) -> RunFailure:
    """Returns why a run that has failed did so: what its steps raised, one per line, or what ended it from outside."""
    ends = _events(instance, run_id, dg.DagsterEventType.RUN_FAILURE)
    data = ends[-1].event_specific_data if ends else None
    error, why = (data.error, data.failure_reason) if isinstance(data, JobFailureData) else (None, None)
    if why == RunFailureReason.UNEXPECTED_TERMINATION or (not error and why != RunFailureReason.STEP_FAILURE):
        told = f": {ends[-1].message}" if ends and ends[-1].message else ""
        return RunFailure(WORKER_GONE + told, transient=True, worker_gone=True)
    steps = _events(instance, run_id, dg.DagsterEventType.STEP_FAILURE)
    if not steps:
        return RunFailure(error.message.strip() if error else "no reason given", _is_transient(error))
    return RunFailure(
        "\n".join(f"{step.step_key}: {root_cause(step)}" for step in steps),
        any(_is_transient(step.step_failure_data.error) for step in steps),
    )


def _events(instance: dg.DagsterInstance, run_id: str, kind: dg.DagsterEventType) -> list[dg.DagsterEvent]:
    entries = instance.all_logs(run_id, of_type=kind)
    return [entry.dagster_event for entry in entries if entry.dagster_event]


def _is_transient(error: SerializableErrorInfo | None) -> bool:
    """Returns whether an exception, or one that led to it, is transient; `dg.Failure` is never."""
    names = {name for link in _chain(error) if (name := link.cls_name)}
    states = {str(getattr(getattr(psycopg.errors, name, None), "sqlstate", None)) for name in names}
    return dg.Failure.__name__ not in names and (
        not names.isdisjoint(TRANSIENT_EXCEPTIONS) or any(s.startswith(TRANSIENT_SQLSTATES) for s in states)
    )


def _chain(error: SerializableErrorInfo | None) -> Iterator[SerializableErrorInfo]:
    while error:
        yield error
        error = error.cause or error.context
