"""Adopts an existing CRM database: compares its catalog with the baseline, and stamps it only where the two agree.

docs/decisions/adoption.md has the reasons.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from textwrap import indent
from typing import Any

import psycopg

from crm_analytics.core.migrated_objects import remedy
from crm_analytics.core.migrations import MigrationError, SqlFile, migration_files, record_applied
from crm_analytics.core.wording import counted, listed
from crm_analytics.crm.migrating.forms import form
from crm_analytics.crm.migrating.legacy import fills, other_names, readable_tables, set_aside, statuses
from crm_analytics.crm.migrating.preflight import obstacles, takes_the_place
from crm_analytics.crm.schema.catalog import READ_NAMES, RPC_NAMES, Manifest, collect, kind_of
from crm_analytics.crm.schema.manifest import ADOPTED_KINDS, Difference, baseline, diff, expected

#: What may act on the CRM's rows from outside the migrations, or has an RPC's name; `replace_legacy` drops it.
_LEGACY = ("function", "trigger", "rule", "policy", "row_security", "cast")
SHOWN = 5
_BOOKKEEPING = ("table crm_private.migration_files", "table crm_private.alembic_version")


class AdoptionError(MigrationError):
    """The existing database differs from the baseline; the message is the diff, with the SQL that repairs it."""


@dataclass
class Plan:
    """What adoption would do with an existing database; `problems` is what keeps it from doing it."""

    adopting: bool
    problems: list[str] = field(default_factory=list)
    #: what it does itself: a sentence and its SQL
    steps: list[tuple[str, str]] = field(default_factory=list)
    findings: list[str] = field(default_factory=list)
    status_map: Mapping[str, str] = field(default_factory=dict)

    def lines(self) -> list[str]:
        """Returns the whole plan in sentences, for people."""
        return [
            *(f"plan: {line}" for line, _ in self.steps),
            *(f"plan: {line}" for line in self.findings),
            *(f"in the way: {problem}" for problem in self.problems),
        ]


def plan(
    connection: psycopg.Connection[Any],
    *,
    replace_legacy: bool = False,
    status_map: Mapping[str, str] | None = None,
) -> Plan:
    """Compares a database that no migration has touched with the baseline. Reads only.

    Args:
        replace_legacy: as for `prepare`.
        status_map: as for `prepare`.

    Raises:
        MigrationError: the database was migrated before, and has lost the record of it.
    """
    connection.execute("SET LOCAL search_path = pg_catalog")  # so that every name is printed qualified
    everything = collect(connection, ADOPTED_KINDS, by_login=True)
    _refuse_lost_record(everything)
    renames = other_names(everything)
    there = _relevant(everything)
    found = replace(renames, found=there).settled()
    adopting = not baseline().objects.keys().isdisjoint(found.objects)
    wanted = _wanted(found) if adopting else Manifest({})
    moved = readable_tables(everything) if adopting else []
    comparison = diff(wanted, found)
    legacy = {
        d.object: found.removals[d.object] for d in comparison.differences if _is_legacy(d.object, found)
    }
    result = Plan(adopting, status_map=status_map or {})
    result.problems = [_problem(d, wanted, found) for d in comparison.differences if d.object not in legacy]
    # what gets another name is in nobody's way
    staying = {key: facts for key, facts in there.objects.items() if not renames.present(key)}
    result.problems += obstacles(connection, replace(there, objects=staying), adopting, moved)
    if legacy and not replace_legacy:
        result.problems += [f"{key} is in the way\n    {removal}" for key, removal in legacy.items()]
        result.problems.append("to let the migration drop what is in the way: --replace-legacy")
    elif legacy:
        result.steps += [(f"replaced {key}", removal) for key, removal in legacy.items()]
    result.steps += [
        (f"{new} renamed to {_short(old)}", renames.repair(old) or "") for old, new in renames.certain.items()
    ]
    result.steps += [(f"table public.{name} carried over", set_aside(name)) for name in moved]
    if not adopting:
        if status_map:
            result.problems.append("--map-status is for orders of an existing database; this one has none")
        return result
    later = wanted.objects.keys() - baseline().objects.keys()
    result.findings += [
        *(f"allowed extra: {key}" for key in comparison.allowed_extras),
        *(f"exists already: {key}" for key in sorted(later) if kind_of(key) == "column"),
        *(
            f"added later: {key}"
            for key in expected().objects
            if kind_of(key) == "label" and key not in found.objects
        ),
    ]
    present = {key for key in everything.objects if kind_of(key) == "column"}
    if not any(key.startswith(("table", "column")) for key in _missing(wanted, found)):
        for blocks, line in statuses(connection, everything, result.status_map):
            (result.problems if blocks else result.findings).append(line)
        result.findings += [*_odd_rows(connection, present), *fills(connection, everything, moved)]
    return result


def prepare(
    connection: psycopg.Connection[Any],
    *,
    replace_legacy: bool = False,
    status_map: Mapping[str, str] | None = None,
) -> list[str]:
    """Compares an existing database that no migration has touched with the baseline, and stamps it as version 0001.

    Runs inside the migration lock, in the caller's transaction. Leaves an empty database and a migrated one as they
    are. Extra labels, columns and indexes may stay. Columns with the requirements' names are renamed; an older
    audit_log and user_identity_map are set aside, so that their rows can be carried over.

    Args:
        replace_legacy: drop functions with an RPC's name, and triggers, rules, policies and casts on the tables,
            instead of refusing them.
        status_map: which status orders with an older status get.

    Returns:
        One line per finding; none for a database that is empty or migrated.

    Raises:
        AdoptionError: something is missing, different or in the way; the message names each object with the remedy.
        MigrationError: the database was migrated before, and has lost the record of it.
    """
    first = migration_files("crm")[0]
    stamped = "SELECT FROM crm_private.migration_files WHERE version = %s"
    if connection.execute(stamped, [first.version]).fetchone() is not None:
        if status_map:
            raise AdoptionError(
                "--map-status is for the adoption of a database; this one is migrated already"
            )
        return []
    made = plan(connection, replace_legacy=replace_legacy, status_map=status_map)
    if made.problems:
        renamed = [f"{line}\n    {sql}" for line, sql in made.steps if line.startswith("column ")]
        raise AdoptionError(
            "this database is not the CRM that the migrations start from. Nothing was changed. Found:\n"
            + "\n".join(f"- {problem}" for problem in (*renamed, *made.problems))
        )
    for line, sql in made.steps:
        _run(connection, line, sql)
    if not made.adopting:
        return [line for line, _ in made.steps]
    _stamp(connection, first)
    if made.status_map:
        _remember_statuses(connection, made.status_map)
    return [
        "adopted an existing database: its catalog equals the baseline",
        *(line for line, _ in made.steps),
        *(line for line in made.findings if not line.startswith("added later: ")),
    ]


def _is_legacy(key: str, found: Manifest) -> bool:
    """Tells whether an object is one that `--replace-legacy` may drop: it acts on our rows, or has an RPC's name."""
    if kind_of(key) == "function":
        return key.startswith("function public.") and key.split("(")[0].rpartition(".")[2] in (
            *RPC_NAMES,
            *READ_NAMES,
        )
    return kind_of(key) in _LEGACY and found.objects[key].get("parent") != "schema crm_private"


def _missing(wanted: Manifest, found: Manifest) -> set[str]:
    return wanted.objects.keys() - found.objects.keys()


def _short(key: str) -> str:
    return key.rpartition(".")[2]


def _refuse_lost_record(found: Manifest) -> None:
    """Refuses a database that has tables that only the migrations make, but no record of a migration.

    Adoption would take it for an older application's, and ask to rename the migrations' own tables.
    """
    later = {
        key: facts
        for key, facts in expected().objects.items()
        if kind_of(key) in ADOPTED_KINDS and not {key, facts.get("parent")} & {*_BOOKKEEPING}
    }
    ours = [
        key
        for key in sorted(later.keys() - baseline().objects.keys())
        # an older application's identities may have the same columns
        if kind_of(key) == "table"
        and key != "table public.user_identity_map"
        and _columns(expected(), key) <= _columns(found, key)
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
    """Leaves out the migrations' own tables, and what only has a name that is in the way: preflight has it renamed."""

    def relevant(home: str) -> bool:
        other = home.startswith(("table public.", "type public.")) and home not in baseline().objects
        return not other and home not in _BOOKKEEPING and " reporting." not in home

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
        if key in objects and facts == later and kind in ("column", "constraint"):
            objects[key] = facts  # as the migrations leave it: they do the same again
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


def _run(connection: psycopg.Connection[Any], line: str, sql: str) -> None:
    try:
        connection.execute(sql.encode())
    except psycopg.Error as error:
        detail = f" ({error.diag.message_detail})" if error.diag.message_detail else ""
        by = "--replace-legacy" if line.startswith("replaced ") else "adoption"
        raise AdoptionError(
            f"{by} cannot run {sql} {error.diag.message_primary}{detail}. Nothing was changed."
            " Remove or change by hand what depends on it, then migrate again."
        ) from error


def _remember_statuses(connection: psycopg.Connection[Any], status_map: Mapping[str, str]) -> None:
    """Leaves the map for 0050_guards.sql: labels that it needs are added by a file before."""
    connection.execute(
        "CREATE TABLE crm_private.adopted_statuses (older text PRIMARY KEY, status text NOT NULL)"
    )
    for older, status in status_map.items():
        connection.execute("INSERT INTO crm_private.adopted_statuses VALUES (%s, %s)", [older, status])


def _odd_rows(connection: psycopg.Connection[Any], columns: Collection[str]) -> list[str]:
    """Reports rows that are adopted, but whose new columns the migrations leave empty."""
    needed = {
        "column public.payments.external_reference",
        "column public.orders.final_price_eur",
        "column public.orders.order_code",
    }
    if not needed <= set(columns):
        return []
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
