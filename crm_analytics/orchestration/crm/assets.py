"""The assets of the CRM: its schema, which materializing migrates, and the seals over its audit log.

What a seal publishes is in the metadata of its materialization, that is in Dagster's database.
"""

import dagster as dg

from crm_analytics.core.database import database_url
from crm_analytics.crm.migrating.migrate import migrate_crm
from crm_analytics.crm.proof import audit_seals
from crm_analytics.crm.proof.restored import Published, published
from crm_analytics.crm.schema import manifest
from crm_analytics.orchestration.crm.resources import CrmDatabase

SCHEMA_KEY = dg.AssetKey(["crm", "schema"])
SEALS_KEY = dg.AssetKey(["crm", "audit_seals"])
#: The metadata that has all of it, for `crm-analytics crm verify-restore`.
PUBLISHED = "published"
#: The head in the metadata of crm/audit_seals until the first audit row is sealed.
NOTHING_SEALED = "nothing sealed yet"


@dg.asset(
    key=SCHEMA_KEY,
    group_name="crm",
    owners=["team:data"],
    kinds={"postgres", "alembic"},
    tags={"domain": "crm"},
    description=(
        "The CRM database's schema: tables, safe RPCs, guards. Materializing it runs the pending migrations under "
        "sql/crm, if there are any. Its checks prove that the guards hold."
    ),
)
def crm_schema(
    context: dg.AssetExecutionContext, crm_database: dg.ResourceParam[CrmDatabase]
) -> dg.MaterializeResult[None]:
    """Migrates the CRM, and records its version, files and manifest hash."""
    status = migrate_crm(database_url("crm", crm_database.settings), report=context.log.info)
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
        "The hash chain over audit_log. Materializing it numbers the new rows and seals them. The head in this "
        "asset's metadata is in Dagster's database, so a rewritten chain no longer matches it "
        "(check published_head_is_in_chain of crm/schema). So is the register of erasures, which run again after a "
        "restore."
    ),
)
def crm_audit_seals(crm_database: dg.ResourceParam[CrmDatabase]) -> dg.MaterializeResult[None]:
    """Seals the audit log, and publishes the head of the chain and the register of erasures."""
    with crm_database.connection() as connection:
        seal = audit_seals.seal(connection)
        now = published(connection)
    return dg.MaterializeResult(
        metadata={
            "head": seal.get("hash") or NOTHING_SEALED,
            "last_position": seal.get("last_position") or 0,
            "sealed_rows": seal.get("row_count") or 0,
            "erasures": len(now.erasures),
            PUBLISHED: now.to_json(),
        }
    )


def last_published(instance: dg.DagsterInstance) -> Published | None:
    """Returns what the newest materialization of crm/audit_seals published; None if there is none."""
    event = instance.get_latest_materialization_event(SEALS_KEY)
    if event is None or event.asset_materialization is None:
        return None
    return Published.from_json(str(event.asset_materialization.metadata[PUBLISHED].value))


crm_assets = [crm_schema, crm_audit_seals]
