"""Assets of the CRM: its schema (materializing migrates) and the seals over its audit log."""

import dagster as dg

from crm_analytics.crm.proof import audit_seals as seals
from crm_analytics.crm.proof import manifest
from crm_analytics.orchestration.crm.resources import CrmDatabase, CrmMigrations

SCHEMA_KEY = dg.AssetKey(["crm", "schema"])
SEALS_KEY = dg.AssetKey(["crm", "audit_seals"])


@dg.asset(
    key=SCHEMA_KEY,
    group_name="crm",
    owners=["team:data"],
    kinds={"postgres", "alembic"},
    tags={"domain": "crm"},
    description=(
        "The CRM database's schema: tables, safe RPCs, guards. Materializing it runs the migrations under sql/crm "
        "(nothing happens when none is pending). Its checks prove that the guards hold."
    ),
)
def crm_schema(
    context: dg.AssetExecutionContext,
    crm_database: dg.ResourceParam[CrmDatabase],
    crm_migrations: dg.ResourceParam[CrmMigrations],
) -> dg.MaterializeResult:
    """Migrate the CRM, and record its version, files and manifest hash."""
    status = crm_migrations.migrate(report=context.log.info)
    with crm_database.connection() as connection:
        found = manifest.collect(connection)
    return dg.MaterializeResult(
        metadata={
            "version": status.version or "none",
            "applied_files": list(status.applied),
            "manifest_hash": found.sha256(),
            "committed_manifest_hash": manifest.expected().sha256(),
        }
    )


@dg.asset(
    key=SEALS_KEY,
    deps=[SCHEMA_KEY],
    group_name="crm",
    owners=["team:data"],
    kinds={"postgres"},
    tags={"domain": "crm"},
    description=(
        "The hash chain over audit_log. Materializing seals the rows written since the last seal; the head in this "
        "asset's metadata lives in Dagster's database, so that a rewritten chain does not match it any more "
        "(check published_head_is_in_chain of crm/schema)."
    ),
)
def crm_audit_seals(crm_database: dg.ResourceParam[CrmDatabase]) -> dg.MaterializeResult:
    """Seal the audit log, and publish the head of the chain."""
    with crm_database.connection() as connection:
        seal = seals.seal(connection)
    return dg.MaterializeResult(
        metadata={
            "head": seal.get("hash") or "nothing sealed yet",
            "last_audit_id": seal.get("last_audit_id") or 0,
            "sealed_rows": seal.get("row_count") or 0,
        }
    )


crm_assets = [crm_schema, crm_audit_seals]
