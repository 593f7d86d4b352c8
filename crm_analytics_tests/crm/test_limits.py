"""What one call may store: texts, JSON, items and addresses have limits, the same in every RPC."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any
from uuid import UUID

import psycopg
import pytest
from psycopg.types.json import Jsonb

from crm_analytics.crm import Conflict, CrmClient, CrmResult, Invalid
from crm_analytics.crm.generate import rpcs
from crm_analytics_tests.crm.conftest import Connection, rows, value

pytestmark = pytest.mark.rolled_back

KIB = 1024
#: Arguments of the type text whose rule is another one: labels, identifiers, and what has a rule of its own.
SHORT_TEXTS = {
    "p_email", "p_external_id", "p_external_reference", "p_order_code", "p_phone", "p_provider", "p_storage_url",
    "p_tracking_number",
}  # fmt: skip
LABELS = {
    "p_currency", "p_direction", "p_document_type", "p_method", "p_new_status", "p_preferred_channel", "p_role",
    "p_status",
}  # fmt: skip


@pytest.fixture
def targets(client: CrmClient, order: CrmResult, manager: UUID, admin: UUID) -> Iterator[dict[str, Any]]:
    """Returns good values of every argument that names a row, and of those that are obligatory."""
    lead = client.create_lead_safe(source="s", full_name="n", phone="555 0142")
    task = client.create_task_safe(title="t", created_by=manager)
    document = client.attach_document_safe(
        document_type="photo", storage_url="x", uploaded_by=manager, order_id=order.id
    )
    payment = client.record_generic_payment_safe(
        order_id=order.id, direction="incoming", role="client_payment", method="cash", amount=1, currency="EUR",
        status="planned", user_id=manager,
    )  # fmt: skip
    yield {
        "p_user_id": admin, "p_created_by": admin, "p_uploaded_by": admin, "p_order_id": order.id,
        "p_customer_id": UUID(order.data["customer_id"]), "p_lead_id": lead.id, "p_task_id": task.id,
        "p_document_id": document.id, "p_payment_id": payment.id, "p_crm_user_id": manager,
    }  # fmt: skip


def test_every_text_and_json_argument_has_a_limit(crm: Connection, targets: dict[str, Any]) -> None:
    """No RPC stores a text above 16 KiB or JSON above 256 KiB; one such row would be copied into every audit image.

    All arguments of all RPCs are tried, so that a new one cannot be forgotten.
    """
    tried = set()
    for rpc in rpcs(crm):
        good = {name: targets.get(name, given) for name, given in rpc.example().items()}
        for argument in rpc.arguments:
            if argument.type not in ("text", "jsonb") or argument.name in LABELS:
                continue
            long = "x" * (16 * KIB + 1)
            if argument.name == "p_items":
                bad: Any = Jsonb([{"model": "x" * 256 * KIB, "qty": 1}])
            elif argument.type == "jsonb":
                bad = Jsonb({"x": "x" * 256 * KIB})
            else:
                bad = f"{long}@example.com" if argument.name == "p_email" else long
            refused = _refusal(crm, rpc.name, {**good, argument.name: bad})
            assert refused.sqlstate == "PT422", f"{rpc.name}.{argument.name}: {refused}"
            detail = json.loads(refused.diag.message_detail or "")
            assert detail["field"] == argument.name, f"{rpc.name}.{argument.name}: {refused}"
            assert len(detail["found"]) <= 201
            tried.add(argument.name)
    assert tried >= SHORT_TEXTS | {
        "p_notes",
        "p_reason",
        "p_description",
        "p_title",
        "p_items",
        "p_bike_snapshot",
    }


def _refusal(crm: Connection, function: str, arguments: dict[str, Any]) -> psycopg.Error:
    """Calls an RPC with named arguments, as text but for JSON, and returns how it was refused."""
    named = ", ".join(f"{name} => %({name})s" for name in arguments)
    values = {
        name: Jsonb(given)
        if isinstance(given, list | dict)
        else given
        if isinstance(given, Jsonb | bool | UUID)
        else str(given)
        for name, given in arguments.items()
    }
    try:
        with crm.transaction(force_rollback=True):
            crm.execute(f"SELECT public.{function}({named})".encode(), values)
    except psycopg.Error as error:
        return error
    raise AssertionError(f"{function} accepted {list(arguments)}")


def test_what_is_as_long_as_allowed_is_kept(crm: Connection, client: CrmClient, manager: UUID) -> None:
    """The limits count bytes in UTF-8, and a value of exactly that length is kept whole."""
    lead = client.create_lead_safe(source="s", full_name="n", phone="555 0143")
    notes = "я" * (8 * KIB)
    # {"x": "…"} has nine bytes more
    client.update_lead_safe(
        lead_id=lead.id, user_id=manager, notes=f" {notes} ", bike_snapshot={"x": "y" * (256 * KIB - 9)}
    )
    assert rows(
        crm, "SELECT notes, octet_length(bike_snapshot::text) FROM public.leads WHERE id = %s", lead.id
    ) == [(notes, 256 * KIB)]
    with pytest.raises(Invalid):
        client.update_lead_safe(lead_id=lead.id, user_id=manager, bike_snapshot={"x": "y" * (256 * KIB - 8)})


def test_notes_do_not_grow_without_end(client: CrmClient, manager: UUID) -> None:
    """Notes are appended up to 16 KiB altogether; the refusal names the call that makes room, and it does."""
    lead = client.create_lead_safe(source="s", full_name="n", phone="555 0144")
    for status in ("in_progress", "rejected"):
        client.advance_lead_status_safe(
            lead_id=lead.id, new_status=status, user_id=manager, notes="x" * (8 * KIB - 1)
        )
    with pytest.raises(Conflict) as refused:
        client.advance_lead_status_safe(
            lead_id=lead.id, new_status="in_progress", user_id=manager, notes="yy"
        )
    assert refused.value.detail["rule"] == "notes_full"
    assert "update_lead_safe" in (refused.value.hint or "")
    client.update_lead_safe(lead_id=lead.id, user_id=manager, notes="short")
    client.advance_lead_status_safe(lead_id=lead.id, new_status="in_progress", user_id=manager, notes="yy")


@pytest.mark.parametrize(
    "items",
    [
        {"model": "A", "qty": 1},
        ["A"],
        [None],
        [[]],
        [{"qty": 1}],
        [{"model": None, "qty": 1}],
        [{"model": " ", "qty": 1}],
        [{"model": 5, "qty": 1}],
        [{"model": "A"}],
        [{"model": "A", "qty": None}],
        [{"model": "A", "qty": "1"}],
        [{"model": "A", "qty": 0}],
        [{"model": "A", "qty": -1}],
        [{"model": "A", "qty": 1.5}],
        [{"model": "A", "qty": 1}, {"model": "B", "quantity": 1}],
    ],
)
def test_items_have_a_model_and_a_quantity(
    client: CrmClient, order: CrmResult, manager: UUID, items: Any
) -> None:
    """Items that are not [{model, qty, …}] are refused in every call; reports could not count bicycles otherwise."""
    customer = UUID(order.data["customer_id"])
    given = Jsonb(items)
    calls: tuple[Any, ...] = (
        lambda: client.create_order_safe(
            customer_id=customer, items=given, total_amount=1, currency="EUR", user_id=manager  # type: ignore[arg-type]
        ),
        lambda: client.quick_order_safe(
            source="s", full_name="n", phone="555 0145", items=given, total_amount=1, currency="EUR"  # type: ignore[arg-type]
        ),
        lambda: client.checkout_order_safe(
            customer_id=customer, items=given, total_amount=1, currency="EUR", method="card",  # type: ignore[arg-type]
            external_reference="limits-1", user_id=manager,
        ),
        lambda: client.update_order_safe(order_id=order.id, user_id=manager, items=given),  # type: ignore[arg-type]
    )  # fmt: skip
    for call in calls:
        with pytest.raises(Invalid) as refused:
            call()
        assert refused.value.detail["field"] == "p_items"


def test_items_keep_what_else_they_have(
    crm: Connection, client: CrmClient, order: CrmResult, manager: UUID
) -> None:
    """Items keep their other fields, a whole number may be written 2.0, and no items at all are fine."""
    items = [{"model": "A", "qty": 2.0, "color": "blue"}, {"model": "B", "qty": 1, "extras": ["bell"]}]
    client.update_order_safe(order_id=order.id, user_id=manager, items=items)
    assert value(crm, "SELECT items FROM public.orders WHERE id = %s", order.id) == items
    client.update_order_safe(order_id=order.id, user_id=manager, items=[])
    assert value(crm, "SELECT items FROM public.orders WHERE id = %s", order.id) == []


@pytest.mark.parametrize(
    ("address", "accepted"),
    [
        ("https://files.example.com/a.pdf", True),
        ("HTTPS://files.example.com/a.pdf", True),
        ("s3://bucket/a.pdf", True),
        ("orders/1/паспорт 2.pdf", True),
        ("/orders/1/a.pdf", True),
        ("a.pdf", True),
        ("a/b:c.pdf", True),
        ("http://files.example.com/a.pdf", False),
        ("javascript:alert(1)", False),
        ("data:text/html,x", False),
        ("file:///etc/passwd", False),
        ("ftp://files.example.com/a", False),
        ("//files.example.com/a", False),
        ("https:///a", False),
        ("https://", False),
        ("a\nb", False),
        ("x" * 2048, True),
        ("x" * 2049, False),
    ],
)
def test_storage_addresses(
    client: CrmClient, order: CrmResult, manager: UUID, address: str, accepted: bool
) -> None:
    """A file's address is https, s3 or a path; a browser would run some of the others when the link is opened."""

    def attach() -> CrmResult:
        return client.attach_document_safe(
            document_type="other", storage_url=address, uploaded_by=manager, order_id=order.id
        )

    if accepted:
        client.replace_document_safe(document_id=attach().id, storage_url=address, user_id=manager)
    else:
        good = client.attach_document_safe(
            document_type="other", storage_url="a", uploaded_by=manager, order_id=order.id
        )
        for call in (
            attach,
            lambda: client.replace_document_safe(document_id=good.id, storage_url=address, user_id=manager),
        ):
            with pytest.raises(Invalid) as refused:
                call()
            assert refused.value.detail["field"] == "p_storage_url"
