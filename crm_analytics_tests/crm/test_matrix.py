"""What each role may do with each table, tried for real; the tables come from the catalog."""

from __future__ import annotations

import itertools

import psycopg
import pytest

from crm_analytics.crm.proof import attacks
from crm_analytics.crm.schema import manifest
from crm_analytics.crm.schema.catalog import CRM_VIEWS

ACTIONS = ("SELECT", "INSERT", "UPDATE", "DELETE", "TRUNCATE")
#: Which role may do what, by privilege and trigger together (docs/decisions/guards-by-role.md); everything else is
#: refused. Only crm_rpc may update single columns, which counts as UPDATE.
CLASSES: dict[str, dict[str, str]] = {
    "customers": {"owner": "SIU", "crm_rpc": "SIU", "crm_app": "S"},
    "users": {"owner": "SIU", "crm_rpc": "SIU", "crm_app": "S"},
    "leads": {"owner": "S", "crm_rpc": "SIU", "crm_app": "S"},
    "orders": {"owner": "S", "crm_rpc": "SIU", "crm_app": "S"},
    "payments": {"owner": "S", "crm_rpc": "SIU", "crm_app": "S"},
    "tasks": {"owner": "S", "crm_rpc": "SIU", "crm_app": "S"},
    "shipments": {"owner": "S", "crm_rpc": "SIU", "crm_app": "S"},
    "documents": {"owner": "S", "crm_rpc": "SIU", "crm_app": "S"},
    "user_identity_map": {"owner": "S", "crm_rpc": "SID", "crm_app": "S"},
    "customer_contacts": {"owner": "S", "crm_rpc": "SIU", "crm_app": "S"},
    "order_status_transitions": {"owner": "S", "crm_rpc": "S", "crm_app": "S"},
    "payout_limits": {"owner": "S", "crm_rpc": "S", "crm_app": "S"},
    "order_status_events": {"owner": "S", "crm_rpc": "SI", "crm_app": "S"},
    "audit_log": {"owner": "S", "crm_rpc": "SI", "crm_app": "S"},
    "audit_positions": {"owner": "S", "crm_rpc": "SI", "crm_app": "S"},
    "customer_erasures": {"owner": "S", "crm_rpc": "SI", "crm_app": "S"},
    "audit_seals": {"owner": "S", "crm_rpc": "SI", "crm_app": "S"},
}
#: Tables of the schema public that do not belong to the CRM; a new table must be added here or above.
NOT_OURS: frozenset[str] = frozenset()
ROLES = ("owner", "crm_rpc", "crm_app", "stranger")


def _allowed(table: str, role: str, action: str) -> bool:
    return action != "TRUNCATE" and action[0] in CLASSES[table].get(role, "")


def test_every_table_is_classified(lab: attacks.Lab) -> None:
    """Every table of the schema public has a class here; a migration could otherwise add an unguarded one."""
    tables = {
        name
        for (name,) in lab.connection.execute(
            "SELECT relname::text FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p', 'f', 'v', 'm')"
        )
    }
    assert tables - NOT_OURS == set(CLASSES) | set(CRM_VIEWS)
    assert set(CLASSES) == set(manifest.CRM_TABLES)


def test_every_private_table_is_guarded(lab: attacks.Lab) -> None:
    """Every table of crm_private has both guards; one without could be emptied by whoever may write all data."""
    tables = [
        name
        for (name,) in lab.connection.execute(
            "SELECT oid::regclass::text FROM pg_class WHERE relnamespace = 'crm_private'::regnamespace AND relkind IN ('r', 'p')"
        )
    ]
    assert {"crm_private.migration_files", "crm_private.alembic_version"} <= set(tables)
    wanted = manifest.expected()
    for table in tables:
        for guard in ("guard_rows", "guard_truncate"):
            assert wanted.objects[f"trigger {table}.{guard}"]["enabled"] == "A"


@pytest.mark.parametrize("table", sorted(CLASSES))
def test_who_may_do_what(lab: attacks.Lab, table: str) -> None:
    """Each role can do exactly what its class says: a grant, policy or guard may allow no more and no less."""
    with lab.connection.transaction(force_rollback=True):
        found = {
            (role, action): _can(lab, table, role, action)
            for role, action in itertools.product(ROLES, ACTIONS)
        }
    assert found == {(role, action): _allowed(table, role, action) for role, action in found}


def _can(lab: attacks.Lab, table: str, role: str, action: str) -> bool:
    """Tells whether the action passes privileges, row security and triggers (a constraint may still object)."""
    updated = {
        "users": "active",
        "payments": "updated_at",
        "customer_contacts": "customer_id",
        "documents": "withdrawn_at",
    }
    column = updated.get(table) or lab.columns(table)[-1]
    statement = {
        "SELECT": f"SELECT 1 FROM public.{table} LIMIT 1",
        "INSERT": f"INSERT INTO public.{table} DEFAULT VALUES",
        "UPDATE": f"UPDATE public.{table} SET {column} = {column}",
        "DELETE": f"DELETE FROM public.{table}",
        "TRUNCATE": f"TRUNCATE public.{table} CASCADE",
    }[action]
    login = {"owner": None, "stranger": lab.stranger()}.get(role, role)
    with lab.role(login):
        try:
            with lab.connection.transaction():
                cursor = lab.connection.execute(statement)
                return action == "INSERT" or cursor.rowcount > 0
        except psycopg.errors.InsufficientPrivilege:
            return False
        except psycopg.errors.IntegrityError:
            return True
