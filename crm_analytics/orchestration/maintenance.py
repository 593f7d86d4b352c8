"""The nightly job that keeps Dagster's own database and folder from growing without end."""

import dagster as dg

from crm_analytics.core.settings import Settings
from crm_analytics.orchestration.retention import CHECKS_KEPT_DAYS, KEPT_DAYS, prune_all

_WHAT = (
    f"runs that did nothing but check after {CHECKS_KEPT_DAYS} days, and check results, event logs and output of other "
    f"runs after {KEPT_DAYS} days. Every materialization stays, and the latest result of each check."
)


@dg.op(description=f"Deletes {_WHAT}")
def prune(context: dg.OpExecutionContext, settings: dg.ResourceParam[Settings]) -> None:
    """Prunes what is older than the default ages."""
    context.log.info(str(prune_all(settings)))


@dg.job(description=f"Dagster's database grows without end: deletes {_WHAT}")
def prune_old_events() -> None:
    """Runs the pruning."""
    prune()


maintenance_jobs = [prune_old_events]
maintenance_schedules = [
    dg.ScheduleDefinition(
        name="prune_old_events_nightly",
        job=prune_old_events,
        cron_schedule="30 4 * * *",
        execution_timezone="UTC",
        default_status=dg.DefaultScheduleStatus.RUNNING,
        description=f"Nightly: deletes {_WHAT}",
    )
]
