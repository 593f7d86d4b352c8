"""The invariants hold on played and on adopted data, and each of them finds the damage that it is there for."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import psycopg
import pytest

from crm_analytics.crm import CrmClient
from crm_analytics.crm.proof import audit_seals as seals
from crm_analytics.crm.proof import invariants
from crm_analytics.demo.crm_activity import play
from crm_analytics_tests.crm.conftest import add_user, broken_invariants

Connection = psycopg.Connection[Any]


@pytest.fixture(scope="module")
def played(new_database: Callable[..., str]) -> Iterator[Connection]:
    url = new_database("crm")
    play(url, months=1, seed=7)
    with psycopg.connect(url, autocommit=True) as connection:
        manager = add_user(connection, "admin")  # a manager of this name is no admin
        connection.execute("SELECT public.resolve_crm_user('sso', 'm', 'admin@example.com')")
        client = CrmClient(connection)
        client.create_task_safe(title="Call", created_by=manager, due_at=datetime(2030, 1, 1, tzinfo=UTC))
        seals.seal(connection)
        yield connection


def test_all_hold_after_months_of_business(played: Connection) -> None:
    """All invariants hold after a month of business; a check that is always red would be ignored."""
    assert broken_invariants(played) == {}


def test_every_invariant_has_damage() -> None:
    """Every invariant has a case of damage below; a new one could otherwise be a query that finds nothing."""
    assert set(DAMAGE) == {invariant.name for invariant in invariants.INVARIANTS}


def test_the_snapshot_is_read_only_and_not_filtered(played: Connection) -> None:
    """The snapshot is read-only with row security off; a check could change rows, or pass because rows are hidden."""
    with invariants.snapshot(played):
        settings = [
            played.execute(f"SHOW {name}").fetchone()[0]  # type: ignore[index]
            for name in ("transaction_isolation", "transaction_read_only", "row_security")
        ]
    assert settings == ["repeatable read", "on", "off"]


def test_a_login_that_sees_only_some_rows_gets_an_error(played: Connection) -> None:
    """A login under row security gets an error; it would otherwise count nothing and pass."""
    with played.transaction(force_rollback=True):
        played.execute("CREATE ROLE half_blind; GRANT SELECT ON ALL TABLES IN SCHEMA public TO half_blind")
        played.execute("SET LOCAL ROLE half_blind; SET LOCAL row_security = off")
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            invariants.evaluate(played)


_PAID = "(SELECT id FROM public.orders WHERE status = 'paid' ORDER BY id LIMIT 1)"
_WAITING = "(SELECT id FROM public.orders WHERE status = 'created' ORDER BY id LIMIT 1)"
_PAYMENT = (
    "INSERT INTO public.payments (order_id, direction, role, method, amount, currency, status, created_by,"
    " external_reference, reference_key) SELECT id, {}, 1, currency, 'completed', created_by, NULL, NULL"
    " FROM public.orders WHERE id = {}"
)
#: For each invariant, damage that is only possible past the guards.
DAMAGE = {
    "status_is_last_event": f"UPDATE public.orders SET status = 'closed' WHERE id = {_PAID}",
    "event_numbers_have_no_gap": f"UPDATE public.order_status_events SET seq = seq + 100 WHERE order_id = {_PAID}",
    "events_follow_each_other": f"UPDATE public.order_status_events SET old_status = 'closed' WHERE order_id = {_PAID} AND seq = 2",
    "transitions_are_legal": f"UPDATE public.order_status_events SET new_status = 'delivered' WHERE order_id = {_PAID} AND seq = 2",
    "paid_means_paid": f"UPDATE public.payments SET amount = 1 WHERE order_id = {_PAID}",
    "delivery_follows_the_money": "UPDATE public.audit_log SET payload = jsonb_set(payload, '{row,total_amount}', '999999') WHERE entity = 'orders' AND payload ->> 'new' = 'in_delivery'",
    "totals_change_by_admins_once_paid": f"""INSERT INTO public.audit_log (actor_id, action, entity, entity_id, payload) SELECT created_by, 'update', 'orders', id, '{{"changes": {{"total_amount": {{"old": 2, "new": 1}}}}, "reason": "x"}}' FROM public.orders WHERE id = {_PAID}""",
    "payouts_within_client_money": "UPDATE public.payments SET amount = 100000 WHERE role = 'supplier_payment'",
    "reversals_mirror_their_payments": f"INSERT INTO public.payments (order_id, direction, role, method, amount, currency, status, created_by, reverses) SELECT order_id, direction, role, method, amount, currency, status, created_by, id FROM public.payments WHERE order_id = {_PAID} AND role = 'client_payment' LIMIT 1",
    "money_back_was_paid_out": _PAYMENT.format("'incoming', 'supplier_payment', 'cash'", _PAID),
    "full_payment_moves_the_order": "UPDATE public.orders SET total_amount = 1 WHERE id = (SELECT id FROM public.orders WHERE status = 'awaiting_payment' LIMIT 1)",
    "payouts_follow_client_money": _PAYMENT.format("'outgoing', 'supplier_payment', 'cash'", _WAITING),
    "refunds_within_the_paid_sum": f"UPDATE public.payments SET role = 'refund', amount = 99999 WHERE order_id = {_PAID} AND direction = 'outgoing'",
    "refunds_by_admins": "UPDATE public.payments SET created_by = (SELECT id FROM public.users WHERE role = 'manager' AND active LIMIT 1) WHERE role = 'refund'",
    "references_are_unique": f"UPDATE public.payments SET reference_key = reference_key || 'x' WHERE order_id = {_PAID}",
    "order_numbers_are_unique": f"UPDATE public.orders SET order_code_key = order_code_key || 'x' WHERE id = {_PAID}",
    "provider_payments_have_references": f"UPDATE public.payments SET external_reference = NULL, reference_key = NULL WHERE order_id = {_PAID}",
    "payments_are_well_formed": f"UPDATE public.payments SET amount = 'NaN' WHERE order_id = {_PAID}",
    "new_rows_have_actors": "UPDATE public.documents SET uploaded_by = NULL",
    "replacements_keep_their_order": "UPDATE public.documents SET order_id = NULL WHERE replaces IS NOT NULL",
    "converted_leads_have_orders": "UPDATE public.leads SET status = 'new' WHERE status = 'converted'",
    "every_row_is_audited": "INSERT INTO public.tasks (title) VALUES ('planted')",
    "audited_rows_exist": "DELETE FROM public.documents",
    "rows_equal_their_newest_audit_image": "UPDATE public.customers SET country = 'XX'",
    "events_equal_their_audit_rows": f"UPDATE public.order_status_events SET reason = 'because' WHERE order_id = {_PAID} AND seq = 2",
    "identities_equal_their_audit_rows": "DELETE FROM public.user_identity_map",
    "contacts_agree_with_customers": "DELETE FROM public.customer_contacts WHERE kind = 'phone'",
    "merged_customers_hold_nothing": "UPDATE public.customers SET merged_into = (SELECT id FROM public.customers ORDER BY id LIMIT 1) WHERE id = (SELECT id FROM public.customers ORDER BY id DESC LIMIT 1)",
    "positions_have_no_gap": 'UPDATE public.audit_positions SET "position" = "position" + 1000 WHERE "position" > 5',
    "changes_are_numbered": "WITH d AS (DELETE FROM public.audit_positions WHERE audit_id = 5)"
    " UPDATE public.audit_log SET created_at = clock_timestamp() - interval '181 minutes' WHERE id = 5",
    "erased_rows_are_registered": "UPDATE public.audit_positions SET salt = NULL WHERE position = 1",
    "erasures_hold": "INSERT INTO public.customer_erasures (customer_id, actor_id) SELECT id, crm_private.system_user_id()"
    " FROM public.customers LIMIT 1",
    "logins_are_expected": "UPDATE public.audit_log SET \"session_user\" = 'mallory' WHERE id = 5",
    "seals_are_intact": "UPDATE public.audit_log SET actor_id = NULL WHERE id = 1",
}
#: More damage that an invariant must find.
MORE_DAMAGE = (
    ("contacts_agree_with_customers", "UPDATE public.customers SET phone = '8 (495) 555-01-99' WHERE id = (SELECT id FROM public.customers WHERE phone IS NOT NULL LIMIT 1)"),
    ("contacts_agree_with_customers", "UPDATE public.customers SET email = 'Other@example.com' WHERE id = (SELECT id FROM public.customers LIMIT 1)"),
    ("contacts_agree_with_customers", "UPDATE public.customer_contacts SET customer_id = (SELECT id FROM public.customers ORDER BY id LIMIT 1)"),
    ("references_are_unique", f"UPDATE public.payments SET external_reference = overlay(external_reference PLACING chr(8203) FROM 2 FOR 0), reference_key = NULL WHERE order_id = {_PAID}"),
    ("order_numbers_are_unique", f"UPDATE public.orders SET order_code_key = NULL WHERE id = {_PAID}"),
    ("identities_equal_their_audit_rows", "UPDATE public.user_identity_map SET crm_user_id = (SELECT id FROM public.users WHERE role = 'admin' LIMIT 1)"),
    ("identities_equal_their_audit_rows", "INSERT INTO public.user_identity_map SELECT 'planted', 'x', id FROM public.users LIMIT 1"),
    ("events_equal_their_audit_rows", f"UPDATE public.order_status_events SET changed_by = (SELECT id FROM public.users WHERE name = 'system') WHERE order_id = {_PAID} AND seq = 2"),
    ("events_equal_their_audit_rows", f"UPDATE public.order_status_events SET created_at = created_at - interval '1 second' WHERE order_id = {_PAID} AND seq = 1"),
    ("events_equal_their_audit_rows", f"UPDATE public.order_status_events SET transaction_id = '7' WHERE order_id = {_PAID} AND seq = 2"),
    ("events_equal_their_audit_rows", f"UPDATE public.order_status_events SET notes = 'as agreed' WHERE order_id = {_PAID} AND seq = 2"),
    ("events_equal_their_audit_rows", f"UPDATE public.order_status_events SET reason = 'adopted' WHERE order_id = {_PAID} AND seq = 2"),
    ("events_equal_their_audit_rows", f"DELETE FROM public.order_status_events WHERE order_id = {_PAID} AND seq = 2"),
    ("rows_equal_their_newest_audit_image", "UPDATE public.tasks SET due_at = coalesce(due_at, now()) + interval '1 day'"),
    ("rows_equal_their_newest_audit_image", "UPDATE public.tasks SET created_at = created_at - interval '1 day'"),
    ("rows_equal_their_newest_audit_image", "UPDATE public.leads SET updated_at = updated_at + interval '1 day'"),
    ("refunds_by_admins", "UPDATE public.payments SET created_by = (SELECT id FROM public.users WHERE name = 'admin') WHERE role = 'refund'"),
)  # fmt: skip


def test_an_item_emptied_of_its_nulls_is_found(crm: Connection) -> None:
    """A NULL stripped from an order's items is found; audit images are compared exactly, not with NULLs removed."""
    manager = add_user(crm, "Max")
    order = CrmClient(crm).quick_order_safe(
        source="site", full_name="A", items=[{"model": "A", "qty": 1, "color": None}], total_amount=5, currency="EUR", contact="@a",
        user_id=manager,
    )  # fmt: skip
    name = "rows_equal_their_newest_audit_image"
    assert invariants.check(crm)[name].holds
    crm.execute("ALTER TABLE public.orders DISABLE TRIGGER USER")
    crm.execute("UPDATE public.orders SET items = items #- '{0,color}'")
    assert invariants.check(crm)[name].examples[0].startswith(f"{order.id}: orders differs")


def test_columns_that_a_deployment_adds_later_change_nothing(played: Connection) -> None:
    """Columns added later leave the images intact; every older row would be red forever otherwise."""
    with played.transaction(force_rollback=True):
        played.execute(
            "ALTER TABLE public.orders ADD COLUMN source text NOT NULL DEFAULT 'shop', ADD COLUMN seen timestamptz,"
            " ADD COLUMN token uuid DEFAULT gen_random_uuid()"
        )
        played.execute("SET LOCAL TimeZone = 'Asia/Tokyo'")
        assert broken_invariants(played) == {}
        played.execute("ALTER TABLE public.orders DISABLE TRIGGER USER")
        played.execute("UPDATE public.orders SET seen = now()")
        name = "rows_equal_their_newest_audit_image"
        assert "in seen" in invariants.evaluate(played, frozenset({name}))[name].examples[0]


@pytest.mark.parametrize(("name", "damage"), [*DAMAGE.items(), *MORE_DAMAGE])
def test_each_invariant_finds_its_damage(played: Connection, name: str, damage: str) -> None:
    """Each invariant finds its damage; one whose query finds nothing would stay green forever."""
    with played.transaction(force_rollback=True):
        for table in (
            "orders",
            "payments",
            "order_status_events",
            "documents",
            "leads",
            "tasks",
            "customers",
            "customer_contacts",
            "audit_log",
            "audit_positions",
            "customer_erasures",
            "user_identity_map",
        ):
            played.execute(f"ALTER TABLE public.{table} DISABLE TRIGGER USER")
        changed = played.execute(damage.encode())
        assert changed.rowcount > 0
        result = invariants.evaluate(played, frozenset({name}))[name]
    assert not result.holds
    assert 0 < len(result.examples) <= invariants.ID_CAP
    assert result.offenders >= len(result.examples)
    assert result.invariant.remedy


def test_offending_ids_are_capped_and_counted(played: Connection) -> None:
    """The examples are capped and the count is complete; metadata must neither hold a million ids nor hide their number."""
    with played.transaction(force_rollback=True):
        played.execute("ALTER TABLE public.tasks DISABLE TRIGGER USER")
        played.execute("INSERT INTO public.tasks (title) SELECT 'planted' FROM generate_series(1, 50)")
        result = invariants.evaluate(played, frozenset({"every_row_is_audited"}))["every_row_is_audited"]
    assert result.offenders == 50
    assert len(result.examples) == invariants.ID_CAP


def test_the_chain_of_seals_is_as_computed_here(played: Connection) -> None:
    """The chain of seals equals the one computed here; the SQL that seals and the SQL that checks could share an error."""
    head, after = "0" * 64, 0
    for last, row_count, found in played.execute(
        "SELECT last_position, row_count, hash FROM public.audit_seals ORDER BY seq"
    ).fetchall():
        rows = played.execute(
            "SELECT jsonb_build_array(position, id, actor_id, action, entity, entity_id, session_user_, transaction_id,"
            " application_name)::text, to_char(created_at AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US'),"
            " salt, jsonb_build_array(payload, client_address)::text"
            ' FROM public.audit_positions JOIN (SELECT *, "session_user" AS session_user_ FROM public.audit_log) l'
            " ON id = audit_id WHERE position > %s AND position <= %s ORDER BY position",
            [after, last],
        ).fetchall()
        salted = [hashlib.sha256(salt + payload.encode()).hexdigest() for _, _, salt, payload in rows]
        texts = [
            f"{text[:-1]}, {json.dumps(moment)}, {json.dumps(payload)}]"
            for (text, moment, *_), payload in zip(rows, salted, strict=True)
        ]
        hashes = "".join(hashlib.sha256(text.encode()).hexdigest() for text in texts)
        head, after = hashlib.sha256((head + hashes).encode()).hexdigest(), last
        assert (found, row_count) == (head, len(rows))
    assert seals.head_is_in_chain(played, head)
    assert not seals.head_is_in_chain(played, "f" * 64)
