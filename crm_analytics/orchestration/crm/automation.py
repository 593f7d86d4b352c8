"""The CRM's jobs, schedules and sensor: migrate, prove that the guards hold (drift, invariants, attacks), number, seal."""

from __future__ import annotations

import dagster as dg
import psycopg

from crm_analytics.core.wording import counted
from crm_analytics.crm.proof import audit_seals
from crm_analytics.orchestration.crm.assets import SCHEMA_KEY, SEALS_KEY
from crm_analytics.orchestration.crm.checks import crm_attack_checks, crm_guard_checks, crm_invariant_checks
from crm_analytics.orchestration.crm.resources import CrmDatabase

INTERVAL = 10  #: seconds between the ticks that number changes


def _job(name: str, selection: dg.AssetSelection, description: str) -> dg.UnresolvedAssetJobDefinition:
    return dg.define_asset_job(
        name, selection=selection, description=description, executor_def=dg.in_process_executor
    )


def _schedule(job: dg.UnresolvedAssetJobDefinition, cron: str, description: str) -> dg.ScheduleDefinition:
    return dg.ScheduleDefinition(
        name=f"{job.name}_schedule",
        job=job,
        cron_schedule=cron,
        execution_timezone="UTC",
        default_status=dg.DefaultScheduleStatus.RUNNING,
        description=description,
    )


crm_deploy = _job(
    "crm_deploy",
    dg.AssetSelection.assets(SCHEMA_KEY).without_checks()
    | dg.AssetSelection.checks(crm_guard_checks)
    | dg.AssetSelection.checks(crm_attack_checks),
    "Migrates the CRM, compares its catalog with the manifest, and tries every attack on a scratch server.",
)
crm_guards = _job(
    "crm_guards", dg.AssetSelection.checks(crm_guard_checks), "Drift: compares the catalog with the manifest."
)
crm_invariants = _job(
    "crm_invariants",
    dg.AssetSelection.checks(crm_invariant_checks),
    "Invariants: compares the rows with the rules.",
)
crm_attacks = _job(
    "crm_attacks",
    dg.AssetSelection.checks(crm_attack_checks),
    "Attacks: tries every attack on a scratch server.",
)
crm_seal = _job(
    "crm_seal",
    dg.AssetSelection.assets(SEALS_KEY),
    "Seals the audit log and publishes the head of the chain in the metadata of crm/audit_seals.",
)


@dg.sensor(
    minimum_interval_seconds=INTERVAL,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Numbers the CRM's new audit rows, so that they appear in the change feed. Starts no runs.",
)
def number_crm_changes(
    context: dg.SensorEvaluationContext, crm_database: dg.ResourceParam[CrmDatabase]
) -> dg.SkipReason:
    """Numbers what is committed, and notifies the channel crm_changes."""
    with crm_database.connection() as connection:
        try:
            numbered, last_position = audit_seals.number(connection)
        except psycopg.errors.LockNotAvailable:
            return dg.SkipReason("a seal or an erasure is numbering the changes: the next tick looks again")
    return dg.SkipReason(f"{counted(numbered, 'change')} numbered, the last position is {last_position}")


crm_sensors = [number_crm_changes]
crm_jobs = [crm_deploy, crm_guards, crm_invariants, crm_attacks, crm_seal]
crm_schedules = [
    _schedule(crm_guards, "*/5 * * * *", "Every five minutes."),
    _schedule(crm_seal, "5 * * * *", "Hourly, before the invariants. Numbers what the sensor has not."),
    _schedule(crm_invariants, "15 * * * *", "Hourly."),
    _schedule(crm_attacks, "45 3 * * *", "Daily at 03:45 UTC."),
]
