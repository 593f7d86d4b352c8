"""Adopts an existing CRM database: compares its catalog with the baseline, and stamps it only where the two agree.

docs/decisions/adoption.md has the reasons.
"""

from __future__ import annotations

from dataclasses import replace
from textwrap import indent
from typing import Any

import psycopg

from crm_analytics.core.migrated_objects import remedy
from crm_analytics.core.migrations import MigrationError, SqlFile, migration_files, record_applied
from crm_analytics.core.wording import counted, listed
from crm_analytics.crm.migrating.forms import form
from crm_analytics.crm.migrating.preflight import obstacles, takes_the_place
from crm_analytics.crm.schema.catalog import Manifest, collect, kind_of
from crm_analytics.crm.schema.manifest import ADOPTED_KINDS, Difference, baseline, diff, expected

#: What may act on the CRM's rows from outside the migrations, or has an RPC's name; `replace_legacy` drops it.
_LEGACY = ("function", "trigger", "rule", "policy", "row_security", "cast")
SHOWN = 5
_BOOKKEEPING = ("table crm_private.migration_files", "table crm_private.alembic_version")


class AdoptionError(MigrationError):
    """The existing database differs from the baseline; the message is the diff, with the SQL that repairs it."""


def prepare(connection: psycopg.Connection[Any], *, replace_legacy: bool = False) -> list[str]:
    """Compares an existing database that no migration has touched with the baseline, and stamps it as version 0001.

    Runs inside the migration lock, in the caller's transaction. Leaves an empty database and a migrated one as they
    are. Extra labels, columns and indexes may stay.

    Args:
        replace_legacy: drop functions with an RPC's name, and triggers, rules, policies and casts on the tables,
            instead of refusing them.

    Returns:
        One line per finding; none for a database that is empty or migrated.

    Raises:
        AdoptionError: something is missing, different or in the way; the message names each object with the remedy.
        MigrationError: the database was migrated before, and has lost the record of it.
    """
    first = migration_files("crm")[0]
    stamped = "SELECT FROM crm_private.migration_files WHERE version = %s"
    if connection.execute(stamped, [first.version]).fetchone() is not None:
        return []
    connection.execute("SET LOCAL search_path = pg_catalog")  # so that every name is printed qualified
    everything = collect(connection, ADOPTED_KINDS, by_login=True)
    _refuse_lost_record(everything)
    found = _relevant(everything)
    adopting = not baseline().objects.keys().isdisjoint(found.objects)
    wanted = _wanted(found) if adopting else Manifest({})
    comparison = diff(wanted, found)
    legacy = {
        d.object: found.removals[d.object]
        for d in comparison.differences
        if kind_of(d.object) in _LEGACY and found.objects[d.object].get("parent") != "schema crm_private"
    }
    problems = [_problem(d, wanted, found) for d in comparison.differences if d.object not in legacy]
    problems += obstacles(connection, found, adopting)
    if legacy and not replace_legacy:
        problems += [f"{key} is in the way\n    {removal}" for key, removal in legacy.items()]
        problems.append("to let the migration drop what is in the way: --replace-legacy")
    if problems:
        raise AdoptionError(
            "this database is not the CRM that the migrations start from. Nothing was changed. Found:\n"
            + "\n".join(f"- {problem}" for problem in problems)
        )
    _drop(connection, legacy)
    replaced = [f"replaced {key}" for key in legacy]
    if not adopting:
        return replaced
    _stamp(connection, first)
    later = wanted.objects.keys() - baseline().objects.keys()
    return [
        "adopted an existing database: its catalog equals the baseline",
        *(f"allowed extra: {key}" for key in comparison.allowed_extras),
        *(f"exists already: {key}" for key in sorted(later) if kind_of(key) == "column"),
        *replaced,
        *_odd_rows(connection),
    ]


def refuse_lost_record(connection: psycopg.Connection[Any]) -> None:
    """Refuses a database that has tables that only the migrations make, but no record of a migration. Reads only.

    Adoption would take it for an older application's, and ask to rename the migrations' own tables.

    Raises:
        MigrationError: the message says what is missing, and what to do.
    """
    _refuse_lost_record(collect(connection, ADOPTED_KINDS, by_login=True))


def _refuse_lost_record(found: Manifest) -> None:
    later = {
        key: facts
        for key, facts in expected().objects.items()
        if kind_of(key) in ADOPTED_KINDS and not {key, facts.get("parent")} & {*_BOOKKEEPING}
    }
    ours = [
        key
        for key in sorted(later.keys() - baseline().objects.keys())
        if kind_of(key) == "table" and _columns(expected(), key) <= _columns(found, key)
    ]
    if not ours:
        return
    missing = sorted(later.keys() - found.objects.keys())
    gone = "the record of its migrations (crm_private.migration_files) is gone or empty"
    if missing:
        more = f" and {len(missing) - SHOWN} more" if missing[SHOWN:] else ""
        gone += f", and {counted(len(missing), 'object')} with it: {', '.join(missing[:SHOWN])}{more}"
    raise MigrationError(
        f"this database was migrated before: only the migrations make {', '.join(ours)}. But {gone}. Something dropped "
        f"that, or only a part of a backup was restored. Nothing was changed. Now: {remedy('crm')}"
    )


def _columns(manifest: Manifest, table: str) -> set[tuple[str, str]]:
    return {
        (key, facts["type"])
        for key, facts in manifest.objects.items()
        if kind_of(key) == "column" and facts["parent"] == table
    }


def _relevant(found: Manifest) -> Manifest:
    """Leaves out the migrations' own tables, and tables that the baseline lacks: their names are in the way."""

    def relevant(home: str) -> bool:
        other = home.startswith(("table public.", "type public.")) and home not in baseline().objects
        return not other and home not in _BOOKKEEPING

    objects = {key: facts for key, facts in found.objects.items() if relevant(facts.get("parent", key))}
    return replace(found, objects=objects)


def _wanted(found: Manifest) -> Manifest:
    """Returns the baseline, and what the database may have already of the later migrations."""
    objects = {
        key: facts
        for key, facts in baseline().objects.items()
        if kind_of(key) not in ("label", "row_security") or key in found.objects
    }
    for key, facts in found.objects.items():
        kind, later = kind_of(key), expected().objects.get(key)
        if kind == "row_security":  # the migrations enable it; forced, it hides rows from their owner
            objects[key] = {**facts, "forced": False}
        elif later is None or key in objects:
            continue
        elif kind == "column" and not takes_the_place(facts, later):
            objects[key] = later if facts["default"] else {**later, "default": None}
        elif kind in ("column", "label") or (kind == "constraint" and later["kind"] == "f"):
            objects[key] = facts  # preflight refuses such columns; the migrations replace foreign keys
    # a type that is missing is created with every label, so that the old values fit
    types = {key: sql for key, sql in expected().definitions.items() if kind_of(key) == "type"}
    return Manifest(objects, {**baseline().definitions, **types})


def _problem(difference: Difference, wanted: Manifest, found: Manifest) -> str:
    problem, key = difference.problem, difference.object
    if key in wanted.objects and (owner := found.objects.get(key, {}).get("owner", "$owner")) != "$owner":
        problem += f"; migrate as {owner}, or give it away"
    return f"{problem}\n{indent(difference.repair, '    ')}"


def _drop(connection: psycopg.Connection[Any], legacy: dict[str, str]) -> None:
    for removal in legacy.values():
        try:
            connection.execute(removal.encode())
        except psycopg.Error as error:
            detail = f" ({error.diag.message_detail})" if error.diag.message_detail else ""
            raise AdoptionError(
                f"--replace-legacy cannot run {removal} {error.diag.message_primary}{detail}. Nothing was changed."
                " Remove or change by hand what depends on it, then migrate again."
            ) from error


def _odd_rows(connection: psycopg.Connection[Any]) -> list[str]:
    """Reports rows that are adopted, but whose new columns the migrations leave empty."""
    reference, code = form("reference_key", "external_reference"), form("order_code_key", "order_code")
    row = connection.execute(
        f"""
        WITH reference AS (
            SELECT {reference} AS key, {form("trimmed", "external_reference")} IS NOT NULL AS given
            FROM public.payments
        ), number AS (
            SELECT order_code, {code} AS key,
                row_number() OVER (PARTITION BY {code} ORDER BY created_at, id) AS place
            FROM public.orders
        )
        SELECT (SELECT count(key) - count(DISTINCT key) FROM reference),
            (SELECT count(*) FROM reference WHERE given AND key IS NULL),
            (SELECT array_agg(order_code ORDER BY order_code) FROM number WHERE key IS NULL OR place > 1),
            (SELECT count(*) FROM public.orders WHERE final_price_eur = 'NaN')
        """.encode()
    ).fetchone()
    repeated, unusable, codes, unpriced = row or (0, 0, None, 0)
    lines = []
    if repeated:
        lines.append(
            f"{counted(repeated, 'payment')} with an older payment's external reference: reference_key stays NULL"
        )
    if unusable:
        lines.append(
            f"{counted(unusable, 'payment')} with white space or invisible characters inside the external reference: "
            "reference_key stays NULL"
        )
    if codes:
        lines.append(
            f"{counted(len(codes), 'order')} with an older order's number (but for case and invisible characters), or "
            f"an unusable one: order_code_key stays NULL: {listed([repr(code) for code in codes[: SHOWN + 1]], SHOWN)}"
        )
    if unpriced:
        lines.append(
            f"{counted(unpriced, 'order')} with the price NaN: total_amount stays NULL; "
            "set it with update_order_safe"
        )
    return lines


def shared_contacts(connection: psycopg.Connection[Any]) -> list[str]:
    """Reports customers whose phone or e-mail address belongs to an older one, in a database that has been migrated."""
    row = connection.execute(
        """
        SELECT count(DISTINCT c.id), min(c.id::text)
        FROM public.customers c
        CROSS JOIN crm_private.contacts(c.phone, crm_private.folded_email(c.email)) t
        JOIN public.customer_contacts k USING (kind, key)
        WHERE k.customer_id <> coalesce(c.merged_into, c.id)
        """
    ).fetchone()
    count, example = row or (0, None)
    if not count:
        return []
    return [
        f"{counted(count, 'customer')} with a phone or e-mail address of an older customer, who has it "
        f"(customer_contacts): {example}{' and others' if count > 1 else ''}; merge them with merge_customers_safe"
    ]


def _stamp(connection: psycopg.Connection[Any], first: SqlFile) -> None:
    connection.execute(
        """
        CREATE TABLE IF NOT EXISTS crm_private.alembic_version (
            version_num varchar(32) NOT NULL,
            CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num)
        )
        """
    )
    connection.execute("INSERT INTO crm_private.alembic_version VALUES (%s)", [first.version])
    record_applied(connection, "crm", first)
