"""Finds out why a step failed."""

import dagster as dg

#: What Dagster writes before the message of such an exception.
FAILURE = f"{dg.Failure.__module__}.{dg.Failure.__qualname__}: "


def root_cause(event: dg.DagsterEvent) -> str:
    """Returns the message of a failed step's own exception, not of the one wrapped around it."""
    error = event.step_failure_data.error
    while error and error.cause:
        error = error.cause
    return error.message.strip().removeprefix(FAILURE) if error else "no reason given"
