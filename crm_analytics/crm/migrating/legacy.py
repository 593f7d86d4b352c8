"""What an older application has under other names: columns that are renamed, tables that are carried over, statuses.

Adoption moves such a table to crm_private; 0050_guards.sql carries its rows over and drops it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import psycopg

from crm_analytics.core.migrations import MigrationError
from crm_analytics.core.wording import counted
from crm_analytics.crm.schema.catalog import Manifest, kind_of
from crm_analytics.crm.schema.manifest import baseline, expected
from crm_analytics.crm.schema.renames import Renames

#: The requirements' words for columns of the production DDL.
OTHER_NAMES = {
    "orders.order_code": "order_number",
    "leads.customer_comment": "description",
    "order_status_events.changed_by": "actor_id",
    "documents.type": "document_type",
    "documents.file_url": "storage_url",
    "documents.uploaded_at": "created_at",
    "tasks.assigned_to": "assignee_id",
    "shipments.provider": "carrier",
}
#: Tables that only the migrations make, and what an older one of the same name must have for its rows to be readable:
#: of each group of columns one.
READABLE = {
    "audit_log": (("action",), ("entity",), ("created_at",)),
    "user_identity_map": (("external_id", "identity_id", "auth_user_id"), ("crm_user_id", "user_id")),
}
_SIMPLE = ("text", "character varying", "uuid")
#: For created_at, which 0050_guards.sql casts.
_TIMES = ("timestamp with time zone", "timestamp without time zone")
ORDER_STATUS = "type public.order_status_enum"


def other_names(found: Manifest) -> Renames:
    """Returns the columns of the baseline that an existing database has under the requirements' names."""
    columns = {
        f"column public.{old}": f"column public.{old.split('.')[0]}.{new}" for old, new in OTHER_NAMES.items()
    }
    certain = {old: new for old, new in columns.items() if old not in found.objects and new in found.objects}
    return Renames(Manifest({key: baseline().objects[key] for key in certain}), found, certain)


def readable_tables(found: Manifest) -> list[str]:
    """Returns the older tables whose rows can be carried over."""
    return [
        name
        for name, groups in READABLE.items()
        if f"table public.{name}" in found.objects
        and all(any(_is_simple(found, f"column public.{name}.{c}") for c in group) for group in groups)
    ]


def _is_simple(found: Manifest, column: str) -> bool:
    types = _TIMES if column.endswith(".created_at") else _SIMPLE
    return column in found.objects and re.sub(r"\(\d+\)", "", found.objects[column]["type"]) in types


def set_aside(name: str) -> str:
    """Returns the SQL that takes an older table out of the way, and its rows from everyone but the owner."""
    return (
        f"ALTER TABLE public.{name} DISABLE ROW LEVEL SECURITY, NO FORCE ROW LEVEL SECURITY;"
        f" ALTER TABLE public.{name} DISABLE TRIGGER USER; ALTER TABLE public.{name} SET SCHEMA crm_private;"
        f" ALTER TABLE crm_private.{name} RENAME TO adopted_{name};"
    )


def read_status_map(file: Path) -> dict[str, str]:
    """Reads lines `older status = status`; a line may be empty or begin with #.

    Raises:
        MigrationError: a line is something else, or names a status that the CRM does not have.
    """
    statuses: dict[str, str] = {}
    known = [label for label in _labels(expected()) if label]
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise MigrationError(f"{file} is not UTF-8 ({error}): save it as UTF-8") from error
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        older, equals, status = (part.strip() for part in line.partition("="))
        if not older or not equals or status not in known or older in known:
            raise MigrationError(
                f"{file}:{number}: {line.strip()!r} is not `older status = status`; a status is one of {', '.join(known)}"
            )
        statuses[older] = status
    return statuses


def _labels(manifest: Manifest) -> list[str]:
    return [
        key.partition(" '")[2][:-1]
        for key, facts in manifest.objects.items()
        if kind_of(key) == "label" and facts["parent"] == ORDER_STATUS
    ]


def statuses(
    connection: psycopg.Connection[Any], found: Manifest, status_map: Mapping[str, str]
) -> Iterator[tuple[bool, str]]:
    """Yields a sentence for each status of orders that the CRM lacks, and whether it is an obstacle."""
    extra = [label for label in _labels(found) if label not in _labels(expected())]
    for label in status_map:
        if label not in extra:
            yield (
                True,
                f"--map-status names {label}, which no order's status can be; there are {', '.join(extra) or 'none'}",
            )
    if ORDER_STATUS not in found.objects or "column public.orders.status" not in found.objects:
        return
    for label, orders in connection.execute(
        "SELECT status::text, count(*) FROM public.orders WHERE status::text = ANY (%s) GROUP BY 1 ORDER BY 1",
        [extra],
    ):
        if label in status_map:
            yield (
                False,
                f"{counted(orders, 'order')} moved from {label} to {status_map[label]}, by --map-status",
            )
        else:
            yield (
                False,
                f"{counted(orders, 'order')} with the status {label}, which the CRM does not know: they keep it, and no "
                f"call and no payment moves them on. To map them: --map-status FILE, with a line `{label} = …`",
            )


def fills(connection: psycopg.Connection[Any], found: Manifest, moved: Sequence[str]) -> Iterator[str]:
    """Yields what the migrations will fill, by counting the rows of an existing database. Reads only."""

    def count(query: str) -> int:
        row = connection.execute(query.encode()).fetchone()
        return int(row[0]) if row else 0

    def has(column: str) -> bool:
        return f"column public.{column}" in found.objects

    unpriced = (
        "total_amount IS NULL AND currency IS NULL AND"
        if has("orders.total_amount") and has("orders.currency")
        else ""
    )
    for number, text in (
        (count(f"SELECT count(*) FROM public.orders WHERE {unpriced} final_price_eur <> 'NaN'"),
         "gets its total_amount from final_price_eur, in EUR"),
        (count("SELECT count(*) FROM public.orders"), "gets one event `adopted`, after its old ones"),
    ):  # fmt: skip
        if number:
            yield f"{counted(number, 'order')}: each {text}"
    tables = ("users", "customers", "leads", "orders", "payments", "documents", "tasks", "shipments")
    total = count("SELECT " + " + ".join(f"(SELECT count(*) FROM public.{table})" for table in tables))
    if total:
        yield f"{counted(total, 'row')}: each gets one audit row `adopt`"
    for table in moved:
        rows = count(f"SELECT count(*) FROM public.{table}")
        yield f"{counted(rows, 'row')} of the older {table} carried over, marked `adopted`; its grants end"
