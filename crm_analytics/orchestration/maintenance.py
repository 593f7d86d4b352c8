"""Maintenance of the Dagster instance itself."""

import dagster as dg

from crm_analytics.core.database import resolved
from crm_analytics.core.settings import settings
from crm_analytics.orchestration.retention import prune_compute_logs, prune_event_logs

KEPT_DAYS = 90


@dg.op(
    description="Deletes old event logs and output of finished runs; materializations and checks are never removed."
)
def prune(context: dg.OpExecutionContext) -> None:
    """Prune with the default age."""
    config = resolved(settings())
    events, runs = prune_event_logs(config, KEPT_DAYS), prune_compute_logs(config, KEPT_DAYS)
    context.log.info(f"{events} events and the output of {runs} runs older than {KEPT_DAYS} days deleted")


@dg.job(
    description=f"Event logs and output grow for ever: deletes those of runs that ended more than {KEPT_DAYS} days ago."
)
def prune_old_events() -> None:
    """The pruning as a job."""
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
