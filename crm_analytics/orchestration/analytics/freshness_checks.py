"""The checks `fresh`, one for each source, and the job that runs them every hour: silence starts no run by itself."""

from collections.abc import Iterable, Iterator

import dagster as dg

from crm_analytics.analytics.ingest.sources.declaration import Source
from crm_analytics.analytics.ingest.sources.registry import SOURCES
from crm_analytics.analytics.warehouse.freshness import Age, Freshness, freshness
from crm_analytics.core.wording import counted
from crm_analytics.orchestration.analytics.franchise import Franchise

FRESH = "fresh"
REMEDY = (
    "Remedy: drop a newer export. If rows are expected less often, or the tool is no longer used, set other limits in"
    " analytics.source_expectations."
)


def build_freshness_checks(franchise: Franchise, sources: Iterable[Source]) -> dg.AssetChecksDefinition:
    """Returns the checks of all sources, which run in one step and one snapshot."""
    by_key = {franchise.key(dg.AssetKey(list(source.table_path))): source for source in sources}
    specs = [
        dg.AssetCheckSpec(FRESH, asset=key, description=f"{_expected(source)} {REMEDY}")
        for key, source in by_key.items()
    ]

    @dg.multi_asset_check(
        name=franchise.name("freshness_checks"),
        specs=specs,
        can_subset=True,
        required_resource_keys=franchise.resource_keys,
    )
    def checks(context: dg.AssetCheckExecutionContext) -> Iterator[dg.AssetCheckResult]:
        keys = sorted(key.asset_key for key in context.selected_asset_check_keys)
        with franchise.analytics(context).connect() as connection, connection.transaction():
            connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
            found = freshness(connection, [by_key[key] for key in keys])
        for key, fresh in zip(keys, found, strict=True):
            yield _result(key, fresh)

    return checks


def _expected(source: Source) -> str:
    """Says what the declaration expects."""
    limits = {"warns": source.expectation.warn_days, "fails": source.expectation.error_days}
    told = " and ".join(
        f"{what} when it is older than {counted(days, 'day')}"
        for what, days in limits.items()
        if days is not None
    )
    return f"The day of the newest row, whatever runs or files there were: {told or 'no limit'}."


def _result(key: dg.AssetKey, found: Freshness) -> dg.AssetCheckResult:
    passed = found.age in (Age.FRESH, Age.EMPTY)
    return dg.AssetCheckResult(
        asset_key=key,
        check_name=FRESH,
        passed=passed,
        severity=dg.AssetCheckSeverity.ERROR if found.age == Age.SILENT else dg.AssetCheckSeverity.WARN,
        metadata={"days": found.days, "newest": str(found.newest)} if found.newest else {},
        description=f"{found}" if passed else f"{found}. {REMEDY}",
    )


def freshness_checks(franchise: Franchise) -> dg.AssetChecksDefinition:
    """Returns the checks of all sources."""
    return build_freshness_checks(franchise, SOURCES.values())
