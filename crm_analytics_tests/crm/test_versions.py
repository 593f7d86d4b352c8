"""Optimistic concurrency and empty fields: an edit of what somebody else has changed is refused, and fields can be cleared."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from functools import partial
from typing import Any
from uuid import UUID

import psycopg
import pytest
from psycopg.types.json import Json

from crm_analytics.crm import Conflict, CrmClient, CrmResult, Invalid
from crm_analytics.crm.generate import rpcs
from crm_analytics.crm.proof.attacks.tables import VERSIONED
from crm_analytics_tests.crm.conftest import Connection, pay, value

pytestmark = pytest.mark.rolled_back

#: Every call that takes p_expected_version, with the table of the row, and what else it needs.
EDITS: dict[str, tuple[str, dict[str, Any]]] = {
    "update_customer_safe": ("customers", {"country": "LV"}),
    "update_lead_safe": ("leads", {"notes": "x"}),
    "advance_lead_status_safe": ("leads", {"new_status": "in_progress"}),
    "update_order_safe": ("orders", {"commission_eur": 1}),
    "advance_order_status_safe": ("orders", {"new_status": "cancelled"}),
    "update_task_safe": ("tasks", {"title": "x"}),
    "upsert_shipment_safe": ("shipments", {"status": "customs"}),
    "replace_document_safe": ("documents", {"storage_url": "x"}),
    "withdraw_document_safe": ("documents", {"reason": "x"}),
    "update_user_safe": ("users", {"name": "x"}),
    "update_payment_status_safe": ("payments", {"new_status": "pending"}),
}
#: A value of every field that can be cleared, in the order in which a call would give it.
CLEARABLE: dict[str, dict[str, Any]] = {
    "update_customer_safe": {
        "phone": "555 0111", "email": "x@example.com", "preferred_channel": "email", "country": "LV",
        "billing_address": {"a": 1}, "delivery_details": {"b": 2},
    },
    "update_lead_safe": {
        "notes": "n", "customer_comment": "c", "bike_url": "u", "bike_snapshot": {"s": 1}, "estimated_budget_eur": 5,
        "assigned_to": "admin",
    },
    "update_order_safe": {
        "assigned_manager": "admin", "items": [{"model": "A", "qty": 1}], "bike_url": "u", "bike_snapshot": {"s": 1},
        "commission_eur": 3,
    },
    "update_task_safe": {"description": "d", "assignee_id": "admin", "due_at": datetime(2030, 1, 1, tzinfo=UTC)},
    "upsert_shipment_safe": {
        "tracking_number": "T-1", "estimated_delivery_date": datetime(2030, 1, 1, tzinfo=UTC).date(),
        "ruspost_status": {"code": 1}, "ruspost_last_update": datetime(2030, 1, 1, tzinfo=UTC),
    },
}  # fmt: skip
#: Columns by field, where the names differ.
COLUMN = {"assignee_id": "assigned_to"}
REQUIRED = {
    "update_customer_safe": "full_name", "update_lead_safe": "contact", "update_order_safe": "total_amount",
    "update_task_safe": "title", "upsert_shipment_safe": "status",
}  # fmt: skip


@pytest.fixture
def rows_by_table(
    crm: Connection, client: CrmClient, order: CrmResult, manager: UUID, admin: UUID
) -> dict[str, dict[str, Any]]:
    """Makes a row of every table; returns the arguments by which calls name it."""
    lead = client.create_lead_safe(source="s", full_name="n", phone="555 0142")
    task = client.create_task_safe(title="t", created_by=manager)
    parcel = client.upsert_shipment_safe(order_id=order.id, user_id=manager)
    document = client.attach_document_safe(
        document_type="photo", storage_url="x", uploaded_by=manager, order_id=order.id
    )
    return {
        "customers": {"customer_id": UUID(order.data["customer_id"])},
        "leads": {"lead_id": lead.id},
        "orders": {"order_id": order.id},
        "tasks": {"task_id": task.id},
        "shipments": {"shipment_id": parcel.id, "order_id": order.id},
        "documents": {"document_id": document.id},
        "payments": {"payment_id": pay(client, order, manager, 10, status="planned").id},
        "users": {"crm_user_id": manager},
    }


def test_every_call_that_changes_a_named_row_is_here(crm: Connection) -> None:
    """EDITS and CLEARABLE have every call with these arguments; a new one would not be tried otherwise."""
    arguments = {rpc.name: {a.name for a in rpc.arguments} for rpc in rpcs(crm)}
    assert {name for name, names in arguments.items() if "p_expected_version" in names} == set(EDITS)
    assert {name for name, names in arguments.items() if name.startswith(("update_", "upsert_"))} <= {
        name for name, names in arguments.items() if "p_expected_version" in names
    }
    assert (
        {name for name, names in arguments.items() if "p_clear" in names} == set(CLEARABLE) == set(REQUIRED)
    )


@pytest.mark.parametrize("name", EDITS)
def test_an_edit_of_a_changed_row_is_refused(
    crm: Connection, client: CrmClient, rows_by_table: dict[str, dict[str, Any]], admin: UUID, name: str
) -> None:
    """An edit with the version that the caller read works once; then the refusal names both versions, and changes nothing."""
    table, given = EDITS[name]
    names = rows_by_table[table]
    row = next(iter(names.values()))
    call: Callable[..., CrmResult] = getattr(client, name)
    version = value(crm, f"SELECT version FROM public.{table} WHERE id = %s", row)
    before = value(crm, "SELECT max(id) FROM public.audit_log")
    with pytest.raises(Conflict) as refused:
        call(**names, **given, user_id=admin, expected_version=version + 1)
    detail = refused.value.detail
    assert (detail["rule"], detail["found"], detail["accepted"], detail["id"]) == (
        "version", version + 1, version, str(row),
    )  # fmt: skip
    assert f"version {version}, expected {version + 1}" in refused.value.message
    assert value(crm, "SELECT max(id) FROM public.audit_log") == before
    answer = call(**names, **given, user_id=admin, expected_version=version)
    if name != "replace_document_safe":
        assert answer.data["version"] == version + 1
        assert value(crm, f"SELECT version FROM public.{table} WHERE id = %s", row) == version + 1


def test_a_repeat_is_answered_whatever_its_version(
    client: CrmClient, order: CrmResult, manager: UUID
) -> None:
    """A repeated payment status with the version of the first call is a duplicate, not a conflict: it was delivered twice."""
    payment = pay(client, order, manager, 10, status="planned")
    move = partial(
        client.update_payment_status_safe,
        payment_id=payment.id,
        new_status="completed",
        user_id=manager,
        external_reference="r-1",
        expected_version=1,
    )
    first, again = move(), move()
    assert (first.duplicate, first.data["version"]) == (False, 2)
    assert (again.duplicate, again.data["version"]) == (True, 2)
    # a reference that the payment does not have is no repeat
    with pytest.raises(Conflict) as refused:
        move(external_reference="r-2")
    assert refused.value.detail["rule"] == "version"


def test_the_version_after_two_changes_in_one_call(
    client: CrmClient, order: CrmResult, manager: UUID, admin: UUID
) -> None:
    """An edit that also makes the order paid returns the version after both changes, which the next edit can expect."""
    pay(client, order, manager, 600)
    edit = partial(client.update_order_safe, order_id=order.id, user_id=admin)
    lowered = edit(total_amount=600, reason="a scratch")
    assert lowered.data["status"] == "paid"
    edit(commission_eur=1, expected_version=lowered.data["version"])


@pytest.mark.parametrize("table", VERSIONED)
def test_a_row_begins_with_version_one(crm: Connection, table: str) -> None:
    """Every editable table counts from 1, so that the first edit can expect it."""
    assert (
        value(
            crm,
            "SELECT pg_get_expr(adbin, adrelid) FROM pg_attrdef d JOIN pg_attribute a ON a.attrelid = d.adrelid"
            " AND a.attnum = d.adnum WHERE adrelid = %s::regclass AND attname = 'version'",
            f"public.{table}",
        )
        == "1"
    )


def test_the_owners_writes_count_too(crm: Connection) -> None:
    """The owner's writes to people count, even if they set the version themselves; an edit would overwrite them otherwise."""
    user = value(crm, "INSERT INTO public.users (name) VALUES ('x') RETURNING id")
    crm.execute("UPDATE public.users SET name = 'y' WHERE id = %s", [user])
    crm.execute("UPDATE public.users SET version = 1 WHERE id = %s", [user])
    assert value(crm, "SELECT version FROM public.users WHERE id = %s", user) == 3


@pytest.mark.parametrize("name", CLEARABLE)
def test_fields_are_cleared(
    crm: Connection, client: CrmClient, rows_by_table: dict[str, dict[str, Any]], admin: UUID, name: str
) -> None:
    """Each field that may be empty is emptied by its argument's name, alone, and the audit log has what was there."""
    table = EDITS[name][0]
    names = rows_by_table[table]
    row = next(iter(names.values()))
    call: Callable[..., CrmResult] = getattr(client, name)
    fields = {field: admin if given == "admin" else given for field, given in CLEARABLE[name].items()}
    call(**names, **fields, user_id=admin)
    full = value(
        crm, f"SELECT to_jsonb(t) - 'version' - 'updated_at' FROM public.{table} t WHERE id = %s", row
    )
    for field in fields:
        column = COLUMN.get(field, field)
        empty: Any = [] if field == "items" else None
        call(**names, user_id=admin, clear=(field,))
        found = value(
            crm, f"SELECT to_jsonb(t) - 'version' - 'updated_at' FROM public.{table} t WHERE id = %s", row
        )
        assert found == {**full, column: empty}
        changes = value(crm, "SELECT payload -> 'changes' FROM public.audit_log ORDER BY id DESC LIMIT 1")
        assert changes == {column: {"old": full[column], "new": empty}}
        call(**names, **fields, user_id=admin)
    call(**names, user_id=admin, clear=tuple(fields))
    found = value(crm, f"SELECT to_jsonb(t) FROM public.{table} t WHERE id = %s", row)
    assert {field: found[COLUMN.get(field, field)] for field in fields} == {
        field: [] if field == "items" else None for field in fields
    }


@pytest.mark.parametrize("name", CLEARABLE)
def test_what_cannot_be_cleared(
    crm: Connection, client: CrmClient, rows_by_table: dict[str, dict[str, Any]], admin: UUID, name: str
) -> None:
    """A required or unknown field, NULL, or one that the call also gives a value is refused, and changes nothing."""
    names = rows_by_table[EDITS[name][0]]
    call: Callable[..., CrmResult] = getattr(client, name)
    field, given = next((f, g) for f, g in CLEARABLE[name].items() if g != "admin")
    before = value(crm, "SELECT max(id) FROM public.audit_log")
    for clear, more in (
        ((REQUIRED[name],), {}),
        (("id",), {}),
        ((f"p_{field}",), {}),
        ((None,), {}),
        ((field, "nonsense"), {}),
        ((field,), {field: given}),
    ):
        with pytest.raises(Invalid) as refused:
            call(**names, user_id=admin, clear=clear, **more)
        assert refused.value.detail["field"] == "p_clear"
    assert value(crm, "SELECT max(id) FROM public.audit_log") == before
    call(**names, user_id=admin, clear=())


def _task(client: CrmClient, person: UUID) -> tuple[Callable[..., CrmResult], tuple[dict[str, Any], ...]]:
    task = client.create_task_safe(title="t", created_by=person)
    return partial(CrmClient.update_task_safe, task_id=task.id), ({"title": "a"}, {"title": "b"})


def _payment(client: CrmClient, person: UUID) -> tuple[Callable[..., CrmResult], tuple[dict[str, Any], ...]]:
    order = client.quick_order_safe(
        source="s", full_name="n", items=[], total_amount=10, currency="EUR", phone="555 0142", user_id=person
    )
    payment = pay(client, order, person, 10, status="planned")
    move = partial(CrmClient.update_payment_status_safe, payment_id=payment.id)
    return move, ({"new_status": "pending"}, {"new_status": "cancelled"})


@pytest.mark.parametrize("edited", [_task, _payment])
def test_the_version_is_read_after_the_lock(crm_url: str, edited: Callable[..., Any]) -> None:
    """Of two who edit what both have read, the second waits for the first, and is then refused."""
    url = crm_url
    with psycopg.connect(url, autocommit=True) as setup:
        person = value(setup, "INSERT INTO public.users (name) VALUES ('Max') RETURNING id")
        edit, (one, other) = edited(CrmClient(setup), person)
        with psycopg.connect(url) as first, psycopg.connect(url, autocommit=True) as second:
            first.execute("SELECT")
            edit(CrmClient(first), user_id=person, expected_version=1, **one)
            with ThreadPoolExecutor(1) as pool:
                waiting = pool.submit(edit, CrmClient(second), user_id=person, expected_version=1, **other)
                while not value(
                    setup, "SELECT cardinality(pg_blocking_pids(%s)) > 0", second.info.backend_pid
                ):
                    assert not waiting.done()
                first.commit()
                with pytest.raises(Conflict) as refused:
                    waiting.result()
        assert (refused.value.detail["accepted"], refused.value.detail["found"]) == (2, 1)


def test_clearing_by_json(crm: Connection, client: CrmClient, manager: UUID) -> None:
    """A JSON list of names, as PostgREST passes it, clears fields too."""
    task = client.create_task_safe(title="t", created_by=manager, description="d").id
    body = {"p_task_id": str(task), "p_user_id": str(manager), "p_clear": ["description"]}
    crm.execute(
        "SELECT public.update_task_safe(p_task_id := b.p_task_id, p_user_id := b.p_user_id, p_clear := b.p_clear)"
        " FROM json_to_record(%s) AS b(p_task_id uuid, p_user_id uuid, p_clear text[])",
        [Json(body)],
    )
    assert value(crm, "SELECT description FROM public.tasks WHERE id = %s", task) is None
