"""The weekly job that keeps Dagster's own database and folder from growing without end."""

import dagster as dg

from crm_analytics.core.settings import Settings
from crm_analytics.orchestration.retention import prune_compute_logs, prune_event_logs

KEPT_DAYS = 90


@dg.op(
    description="Deletes old event logs and output of finished runs; keeps every materialization and check result."
)
def prune(context: dg.OpExecutionContext, settings: dg.ResourceParam[Settings]) -> None:
    """Prunes what is older than the default age."""
    events, runs = prune_event_logs(settings, KEPT_DAYS), prune_compute_logs(settings, KEPT_DAYS)
    context.log.info(f"{events} events and the output of {runs} runs older than {KEPT_DAYS} days deleted")


@dg.job(
    description=f"Event logs and output grow without end: deletes those of runs that ended more than {KEPT_DAYS}"
    " days ago."
)
def prune_old_events() -> None:
    """Runs the pruning."""
    prune()


maintenance_jobs = [prune_old_events]
maintenance_schedules = [
    dg.ScheduleDefinition(
        name="prune_old_events_weekly",
        job=prune_old_events,
        cron_schedule="30 4 * * 0",
        execution_timezone="UTC",
        default_status=dg.DefaultScheduleStatus.RUNNING,
    )
]
