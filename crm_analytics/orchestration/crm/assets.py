"""The assets of the CRM: its schema, which materializing migrates, and the seals over its audit log.

What a seal publishes is in the metadata of its materialization, that is in Dagster's database.
"""

import dagster as dg
from dagster._core.storage.tags import SCHEDULE_NAME_TAG

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
    settings = crm_database.settings
    status = migrate_crm(database_url("crm", settings), report=context.log.info, config=settings)
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
def crm_audit_seals(
    context: dg.AssetExecutionContext, crm_database: dg.ResourceParam[CrmDatabase]
) -> dg.MaterializeResult[None]:
    """Seals the audit log, and publishes the head of the chain and the register of erasures.

    On schedule it publishes nothing over a head that is no longer in the chain: that and the register of erasures are
    the evidence of what happened. A person who knows (a restore) materializes the asset by hand.
    """
    by_schedule = SCHEDULE_NAME_TAG in context.run.tags
    last = last_published(context.instance) if by_schedule else None
    with crm_database.connection() as connection:
        if last and last.head and not audit_seals.head_is_in_chain(connection, last.head):
            raise dg.Failure(
                f"the published head {last.head} is not in the chain, so nothing is published over it: see the check "
                "published_head_is_in_chain. After a known restore run `crm-analytics crm verify-restore`, then "
                "materialize crm/audit_seals by hand.",
                allow_retries=False,
            )
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
    # one that somebody reported by hand has none
    for record in instance.fetch_materializations(SEALS_KEY, limit=100).records:
        made = record.asset_materialization
        if made and PUBLISHED in made.metadata:
            return Published.from_json(str(made.metadata[PUBLISHED].value))
    return None


crm_assets = [crm_schema, crm_audit_seals]
