"""The analytics checks as Dagster asset checks; one that cannot run raises, so that it fails and never passes."""

from collections.abc import Iterator, Mapping
from datetime import date
from typing import Any

import dagster as dg
import psycopg
from psycopg.rows import dict_row

from crm_analytics.analytics.ingest.sources.registry import SOURCES
from crm_analytics.analytics.ingest.storage.landing import Listing
from crm_analytics.analytics.warehouse.check_queries import (
    QUERIES,
    Query,
    quarantine_reasons_sql,
    quarantine_sql,
    refused_sql,
    totals_sql,
    vanished_sql,
)
from crm_analytics.core.wording import counted
from crm_analytics.orchestration.analytics.franchise import Franchise
from crm_analytics.orchestration.partitions import window_of

SAMPLE = 10
LONGEST_CELL = 300  #: characters
#: Of the only business.
CHECKED_ASSETS = dict.fromkeys(
    [source.table.replace(".", "/") for source in SOURCES.values()] + [query.asset for query in QUERIES]
)


def _key(asset: str) -> dg.AssetKey:
    return dg.AssetKey.from_user_string(asset)


def _parameters(context: dg.AssetCheckExecutionContext, franchise: Franchise) -> dict[str, Any]:
    start, end = window_of(context) or (date(2000, 1, 1), date(2101, 1, 1))
    return {"start": start, "end": end, "first_partition": franchise.settings.start_month}


def _result(
    asset: dg.AssetKey, name: str, rows: list[dict[str, Any]], description: str, error: bool, **metadata: Any
) -> dg.AssetCheckResult:
    found: dict[str, Any] = {"found": len(rows), **metadata}
    if rows:
        found["sample"] = dg.MetadataValue.md(_table(rows[:SAMPLE]))
    return dg.AssetCheckResult(
        asset_key=asset,
        check_name=name,
        passed=not rows,
        severity=dg.AssetCheckSeverity.ERROR if error else dg.AssetCheckSeverity.WARN,
        metadata=found,
        description=description if rows else None,
    )


def _table(rows: list[dict[str, Any]]) -> str:
    """Returns rows as a markdown table; cells are text, whatever an export put into them."""

    def cell(value: Any) -> str:
        text = str(value if value is not None else "").replace("|", "\\|").replace("\n", " ")
        return text if len(text) <= LONGEST_CELL else f"{text[:LONGEST_CELL]}…"

    header = list(rows[0])
    lines = ["| " + " | ".join(header) + " |", "|" + " --- |" * len(header)]
    lines += ["| " + " | ".join(cell(row[name]) for name in header) + " |" for row in rows]
    return "\n".join(lines)


def _rows(
    connection: psycopg.Connection[Any], sql: str, parameters: Mapping[str, Any]
) -> list[dict[str, Any]]:
    with connection.cursor(row_factory=dict_row) as cursor:
        return cursor.execute(sql.encode(), parameters).fetchall()


def analytics_checks(franchise: Franchise) -> list[dg.AssetChecksDefinition]:
    """Returns the checks of all assets."""
    return [build_checks(franchise, asset) for asset in CHECKED_ASSETS]


def windowed_checks(franchise: Franchise) -> list[dg.AssetCheckKey]:
    """Returns the checks that cover their run's months only."""
    return [
        dg.AssetCheckKey(franchise.key(_key(query.asset)), query.name) for query in QUERIES if query.windowed
    ]


def build_checks(franchise: Franchise, asset: str) -> dg.AssetChecksDefinition:
    """Returns all checks of one asset, which run in one step and one snapshot."""
    key = franchise.key(_key(asset))
    queries = [query for query in QUERIES if query.asset == asset]
    source = next((s for s in SOURCES.values() if s.table.replace(".", "/") == asset), None)
    # a file that replaces whole months leaves no rows of older ones behind
    vanishing = source if source is not None and source.month_totals is None else None
    # a file that replaces whole months is refused if its total disagrees
    totaled = vanishing if vanishing is not None and vanishing.summed else None

    def spec(
        name: str, description: str, blocking: bool = False, after: str | None = None
    ) -> dg.AssetCheckSpec:
        return dg.AssetCheckSpec(
            name,
            asset=key,
            description=description,
            blocking=blocking,
            additional_deps=[franchise.key(_key(after))] if after else None,
        )

    specs = [spec(query.name, query.description, query.error, query.after) for query in queries]
    if source is not None:
        specs += [
            spec(
                "quarantine",
                "Records that were not loaded. Remedy: correct them in the tool and export again, or dismiss them.",
            ),
            spec(
                "files_read",
                "Files that could not be read, so nothing in them is loaded. Each message names the remedy.",
            ),
        ]
    if vanishing is not None:
        specs.append(
            spec(
                "vanished_rows",
                "Rows that a newer export of their dates does not have. They are kept and count. Remedy:"
                " delete a row from its table if it is really gone (its month is then recomputed), or set"
                " dismissed_at in raw.vanished_rows.",
            )
        )

    if totaled is not None:
        specs.append(
            spec(
                "file_totals",
                "Files whose own total is not the sum of the records accepted from them. Remedy: correct quarantined"
                " records, or export the file again.",
            )
        )

    @dg.multi_asset_check(
        name=franchise.name(f"{asset.replace('/', '_')}_checks"),
        specs=specs,
        can_subset=True,
        required_resource_keys=franchise.resource_keys,
    )
    def checks(context: dg.AssetCheckExecutionContext) -> Iterator[dg.AssetCheckResult]:
        analytics, landing = franchise.analytics(context), franchise.landing(context)
        wanted = {key.name for key in context.selected_asset_check_keys}
        # once for all checks of the step; None where the folder cannot be seen
        folder = landing.landing
        listing = folder.scan() if source is not None and folder.exists() else None
        with analytics.connect() as connection, connection.transaction():
            connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
            for query in queries:
                if query.name in wanted:
                    yield _run(connection, key, query, _parameters(context, franchise), listing)
            if source is not None and "quarantine" in wanted:
                yield _quarantine(connection, key, source.name)
            if vanishing is not None and "vanished_rows" in wanted:
                rows = _rows(connection, vanished_sql(vanishing), {})
                yield _result(
                    key, "vanished_rows", rows, f"{counted(len(rows), 'row')} vanished", error=False
                )
            if totaled is not None and "file_totals" in wanted:
                rows = _still_there(_rows(connection, totals_sql(), {"source": totaled.name}), listing)
                found = f"{counted(len(rows), 'file')} with another total than its records"
                yield _result(key, "file_totals", rows, found, error=True)
            if source is not None and "files_read" in wanted:
                rows = _still_there(_rows(connection, refused_sql(), {"source": source.name}), listing)
                rows += _unreadable(listing, source.name)
                yield _result(
                    key, "files_read", rows, f"{counted(len(rows), 'file')} could not be read", error=True
                )

    return checks


def _still_there(rows: list[dict[str, Any]], listing: Listing | None) -> list[dict[str, Any]]:
    """Leaves out files that were removed since; where the folder cannot be seen, returns all of them."""
    if listing is None:
        return rows
    there = {file.name for file in listing.files}
    return [row for row in rows if row["path"] in there]


def _unreadable(listing: Listing | None, source: str | None) -> list[dict[str, Any]]:
    """Returns what is in the landing folder and cannot be read at all: the ledger has no entry for it."""
    found = listing.unreadable if listing is not None else []
    return [{"path": entry.name, "message": entry.message} for entry in found if entry.source == source]


def _run(
    connection: psycopg.Connection[Any],
    asset: dg.AssetKey,
    query: Query,
    parameters: Mapping[str, Any],
    listing: Listing | None,
) -> dg.AssetCheckResult:
    rows = _rows(connection, query.sql, parameters)
    if query.name == "unrecognized_files":
        rows = _still_there(rows, listing) + _unreadable(listing, None)
    return _result(asset, query.name, rows, query.description, query.error)


def _quarantine(connection: psycopg.Connection[Any], asset: dg.AssetKey, source: str) -> dg.AssetCheckResult:
    rows = _rows(connection, quarantine_sql(), {"source": source})
    reasons = _rows(connection, quarantine_reasons_sql(), {"source": source}) if rows else []
    return _result(
        asset,
        "quarantine",
        rows,
        f"{counted(len(rows), 'record')} in quarantine",
        error=False,
        reasons={row["reason"]: row["records"] for row in reasons},
    )
