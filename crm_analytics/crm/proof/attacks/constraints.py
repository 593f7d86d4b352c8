"""Attacks on keys, unique indexes and CHECKs: with the triggers out of the way, rows that each of them must refuse."""

from __future__ import annotations

from typing import Any

from psycopg.types.json import Jsonb

from crm_analytics.crm.proof.attacks.lab import Breach, Lab, attack
from crm_analytics.crm.schema.catalog import CRM_TABLES
from crm_analytics.crm.schema.manifest import expected

#: A value that each CHECK must refuse.
_CHECKED: dict[str, dict[str, Any]] = {
    "chk_final_price_nonneg": {"final_price_eur": -1},
    "chk_amount_positive": {"amount": -1},
    "customer_contacts_kind_check": {"kind": "pigeon"},
    "customer_contacts_key_check": {"key": ""},
    "customers_merged_into_check": {"merged_into": "00000000-0000-4000-8000-0000000000ff"},
    "audit_positions_hash_check": {"payload_hash": r"\x00"},
    "audit_positions_position_check": {"position": 0},
    "audit_positions_salt_check": {"salt": r"\x00"},
    "audit_seals_hash_check": {"hash": "x"},
    "audit_seals_row_count_check": {"row_count": 0},
    "audit_seals_seq_check": {"seq": 0},
    "order_status_events_seq_check": {"seq": 0},
    "order_status_transitions_check": {"from_status": "awaiting_payment", "to_status": "paid"},
    "payout_limits_check": {"manager_limit": -1},
    "shipments_status_check": {"status": "teleported"},
}
#: Values of key columns that no sample row has.
_FRESH: dict[str, Any] = {
    "id": "00000000-0000-4000-8000-0000000000ff",
    "order_code": "fresh",
    "order_code_key": "fresh",
    "reference_key": "fresh",
    "reverses": None,
    "rebooks": None,
    "currency": "RUB",
    "email": "fresh@example.com",
    "key": "fresh",
    "seq": 1_000_000,
    "last_position": 1_000_000_000,
    "position": 1_000_000_000,
    "external_id": "fresh",
    "from_status": "closed",
    "to_status": "created",
}


@attack("constraints", "unique_indexes", on=CRM_TABLES)
def rows_against_constraints(lab: Lab, table: str) -> None:
    """Inserts rows that a key, a unique index or a CHECK must refuse, with the triggers out of the way."""
    all_columns = _plain(lab.columns(table, identity=True, generated=True))
    fresh = {column: value for column, value in _FRESH.items() if column in all_columns}
    unknown = str(lab.sample["unknown"])
    if table in ("audit_log", "customer_erasures"):
        fresh["id"] = 1_000_000_000
    elif table == "audit_positions":
        lab.play([("", "create_lead_safe('site', 'Unnumbered', p_contact => '@u')")])
        fresh["audit_id"] = lab.run("SELECT max(id) FROM public.audit_log")
        unknown = "1000000000"
    for key, facts in expected().objects.items():
        kind, _, name = key.partition(" ")
        constrains = kind == "constraint" or (kind == "index" and facts["unique"])
        if not constrains or not name.startswith(f"public.{table}."):
            continue
        constraint = name.split(".")[2]
        own = _plain(facts["columns"]) if kind == "constraint" else _index_columns(lab, constraint)
        if facts.get("kind") == "c":
            if constraint not in _CHECKED:
                raise Breach(f"no value is known that {constraint} refuses: add one to _CHECKED")
            values = fresh | _CHECKED[constraint]
        elif facts.get("kind") == "f":
            values = fresh | {own[0]: unknown}
        else:
            values = {column: value for column, value in fresh.items() if column not in own}
        _copy_of_a_row_is_refused(lab, table, constraint, own, values)


@attack("constraints")
def rows_against_private_keys(lab: Lab) -> None:
    """Inserts rows that keys and CHECKs of the RPCs' private tables must refuse, with the triggers out of the way."""
    numbering, keys = "crm_private.audit_numbering", "crm_private.idempotency_keys"
    with lab.role(None):
        lab.run(f"ALTER TABLE {numbering} DISABLE TRIGGER USER")
        lab.run(f"ALTER TABLE {keys} DISABLE TRIGGER USER")
        for insert, sqlstate, constraint in (
            (f"INSERT INTO {numbering} (only_row) VALUES (true)", "23505", "audit_numbering_pkey"),
            (f"INSERT INTO {numbering} (only_row) VALUES (false)", "23514", "audit_numbering_only_row_check"),
            (
                f"INSERT INTO {keys} (function, key) SELECT function, key FROM {keys}",
                "23505",
                "idempotency_keys_pkey",
            ),
        ):
            lab.refused([insert], None, (sqlstate,), constraint)


def _plain(columns: list[str]) -> list[str]:
    """Returns names without the quotes that SQL needs for some of them."""
    return [column.strip('"') for column in columns]


def _index_columns(lab: Lab, index: str) -> list[str]:
    """Returns the columns that an index is about, those in its expressions and predicate included."""
    columns: list[str] = lab.run(
        """
        SELECT array_agg(DISTINCT a.attname::text)
        FROM pg_depend d
        JOIN pg_attribute a ON a.attrelid = d.refobjid AND a.attnum = d.refobjsubid
        WHERE d.classid = 'pg_class'::regclass AND d.objid = %(of)s::regclass
        """,
        of=f"public.{index}",
    )
    return columns


def _copy_of_a_row_is_refused(
    lab: Lab, table: str, constraint: str, own: list[str], values: dict[str, Any]
) -> None:
    """Inserts a copy of a sample row with some values changed; the constraint's `own` columns are not NULL in it."""
    columns = ", ".join(lab.columns(table, identity=True))
    not_null = " AND ".join(f'"{column}" IS NOT NULL' for column in own if column not in values) or "true"
    insert = f"""
        INSERT INTO public.{table} ({columns}) OVERRIDING SYSTEM VALUE
        SELECT {columns} FROM jsonb_populate_record(NULL::public.{table},
            (SELECT to_jsonb(t) FROM public.{table} t WHERE {not_null} LIMIT 1) || %(values)s)
        """
    with lab.role(None):
        lab.run(f"ALTER TABLE public.{table} DISABLE TRIGGER USER")
        lab.refused([insert], None, ("23503", "23505", "23514"), constraint, values=Jsonb(values))
