"""Idempotency keys: a call that is delivered twice is done once, whatever it creates."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest

from crm_analytics.crm import Conflict, CrmClient, CrmError, CrmResult, Forbidden, Invalid, NotFound
from crm_analytics_tests.crm.conftest import Connection, add_user, rows, value

pytestmark = pytest.mark.rolled_back

Call = Callable[..., CrmResult]

#: Each call that takes a key: its arguments, and others that make it a different call.
CALLS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "create_order_safe": (
        {"total_amount": Decimal("10.50"), "currency": "EUR", "items": [{"model": "A", "qty": 1}], "order_code": "K-1"},
        {"total_amount": 11, "currency": "USD", "items": [], "order_code": "K-2", "commission_eur": 1,
         "bike_url": "https://example.com", "bike_snapshot": {"size": 1}, "assigned_manager": "manager"},
    ),
    "quick_order_safe": (
        {"source": "site", "full_name": "Olga", "items": [{"model": "A", "qty": 1}], "total_amount": Decimal("10.50"),
         "currency": "EUR", "phone": "5550100"},
        {"source": "app", "full_name": "Ivan", "items": [], "total_amount": 11, "currency": "USD", "phone": "5550101",
         "email": "a@example.com", "contact": "c", "country": "DE", "preferred_channel": "email",
         "bike_url": "https://example.com", "bike_snapshot": {"size": 1}, "customer_comment": "x"},
    ),
    "checkout_order_safe": (
        {"items": [{"model": "A", "qty": 1}], "total_amount": Decimal("10.50"), "currency": "EUR", "method": "cash",
         "external_reference": None},
        {"items": [], "total_amount": 11, "currency": "USD", "method": "bank_transfer", "external_reference": "r-1"},
    ),
}  # fmt: skip
NOON = datetime(2030, 1, 1, 12, tzinfo=UTC)
CALLS |= {
    "create_lead_safe": (
        {"source": "site", "full_name": "Olga", "phone": "5550100"},
        {"source": "app", "full_name": "Ivan", "phone": "5550101", "email": "a@example.com", "contact": "c",
         "country": "DE", "preferred_channel": "email", "bike_url": "https://example.com", "bike_snapshot": {"size": 1},
         "customer_comment": "x", "estimated_budget_eur": 1},
    ),
    "attach_document_safe": (
        {"document_type": "photo", "storage_url": "s3://a"}, {"document_type": "other", "storage_url": "s3://b"},
    ),
    "create_task_safe": (
        {"title": "Call", "due_at": NOON},
        {"title": "Pack", "description": "x", "due_at": NOON.replace(hour=13), "assignee_id": "manager"},
    ),
}  # fmt: skip
#: Calls that the system user makes when no one does.
WITHOUT_USER = ("create_order_safe", "quick_order_safe", "create_lead_safe")
ACTOR = {"attach_document_safe": "uploaded_by", "create_task_safe": "created_by"}
TABLES = (
    "customers",
    "leads",
    "orders",
    "payments",
    "documents",
    "tasks",
    "order_status_events",
    "audit_log",
)


@pytest.fixture
def call(client: CrmClient, manager: UUID, order: CrmResult) -> Call:
    """Calls an RPC with its arguments of `CALLS`, some of them changed."""

    def run(rpc: str, key: str | None, user: UUID | None = manager, **changed: Any) -> CrmResult:
        arguments = {**CALLS[rpc][0], **changed}
        if rpc in ("create_order_safe", "checkout_order_safe"):
            arguments.setdefault("customer_id", UUID(order.data["customer_id"]))
        elif rpc == "attach_document_safe":
            arguments["order_id"] = order.id
        arguments = {name: manager if value == "manager" else value for name, value in arguments.items()}
        return getattr(client, rpc)(**arguments, **{ACTOR.get(rpc, "user_id"): user}, idempotency_key=key)

    return run


def counts(crm: Connection) -> list[int]:
    return [value(crm, f"SELECT count(*) FROM public.{table}") for table in TABLES]


@pytest.mark.parametrize("rpc", CALLS)
def test_a_repeat_returns_the_first_row(crm: Connection, call: Call, admin: UUID, rpc: str) -> None:
    """A repeated call changes nothing and returns the first row, whoever repeats it and however the key is padded."""
    first = call(rpc, "k-1")
    assert not first.duplicate
    before = counts(crm)
    for key, user in (("k-1", None if rpc in WITHOUT_USER else admin), (" k-1\u200b", admin)):
        again = call(rpc, key, user)
        assert (again.id, again.duplicate) == (first.id, True)
        assert {**again.data, "duplicate": False} == first.data
    assert counts(crm) == before


@pytest.mark.parametrize("rpc", CALLS)
def test_a_key_belongs_to_its_facts(crm: Connection, call: Call, rpc: str) -> None:
    """Every argument is a fact of the call: with another one, its key is a Conflict that names the first row."""
    first = call(rpc, "k-1")
    before = counts(crm)
    for field, other in CALLS[rpc][1].items():
        with pytest.raises(Conflict) as refused:
            call(rpc, "k-1", **{field: other})
        assert (refused.value.detail["rule"], refused.value.detail["id"]) == (
            "idempotency_key",
            str(first.id),
        ), field
    assert counts(crm) == before
    if rpc == "create_order_safe":
        call(rpc, None, order_code="K-3"), call(rpc, "k-2", order_code="K-4")
    else:
        assert len({call(rpc, key).id for key in ("k-2", None, " ")} | {first.id}) == 4


def test_every_call_with_a_key_is_tested(crm: Connection) -> None:
    """Every RPC that takes an idempotency key has a case here, with every argument that is a fact."""
    found = {
        name: set(arguments)
        for name, arguments in rows(
            crm,
            "SELECT proname, proargnames FROM pg_proc WHERE pronamespace = 'public'::regnamespace"
            " AND 'p_idempotency_key' = ANY (proargnames)",
        )
    }
    assert set(found) == set(CALLS)
    ids = {"p_customer_id", "p_lead_id", "p_order_id"}  # they name rows: the tests of the calls change them
    actors = {"p_user_id", "p_created_by", "p_uploaded_by", "p_idempotency_key"}
    for name, arguments in found.items():
        assert {f"p_{field}" for field in CALLS[name][1]} == arguments - ids - actors, name


def test_equal_numbers_are_equal_facts(call: Call) -> None:
    """10.5 and 10.50 are one amount: a client may write it either way when it repeats a call."""
    first = call("create_order_safe", "k-1")
    assert call("create_order_safe", "k-1", total_amount=Decimal("10.5")).id == first.id


def test_a_time_is_a_fact_in_any_time_zone(crm: Connection, call: Call) -> None:
    """One moment is one fact, whatever the time zone of the session that repeats the call."""
    first = call("create_task_safe", "k-1")
    crm.execute("SET LOCAL TimeZone = 'Asia/Tokyo'")
    assert call("create_task_safe", "k-1").id == first.id


def test_the_answer_is_the_row_as_it_is_now(client: CrmClient, call: Call, manager: UUID) -> None:
    """A late repeat shows what became of the order since, not what it was."""
    first = call("create_order_safe", "k-1")
    client.update_order_safe(order_id=first.id, user_id=manager, total_amount=77)
    client.advance_order_status_safe(order_id=first.id, new_status="cancelled", user_id=manager)
    again = call("create_order_safe", "k-1")
    assert (again.data["total_amount"], again.data["status"]) == (77, "cancelled")


def test_a_refused_call_claims_no_key(crm: Connection, call: Call) -> None:
    """A refused call leaves its key free, so that the corrected call can use it."""
    refused: tuple[tuple[dict[str, Any], type[CrmError]], ...] = (
        ({"total_amount": -1}, Invalid),
        ({"assigned_manager": UUID(int=0xDEAD)}, NotFound),
        ({"assigned_manager": add_user(crm, "Gone", active=False)}, Conflict),
        ({"user": UUID(int=0xDEAD)}, Forbidden),
    )
    for changed, error in refused:
        with pytest.raises(error):
            call("create_order_safe", "k-1", **changed)
    assert value(crm, "SELECT count(*) FROM crm_private.idempotency_keys") == 0
    assert not call("create_order_safe", "k-1").duplicate


def test_a_lead_that_became_an_order_is_repeated(client: CrmClient, manager: UUID) -> None:
    """A repeat comes before the state: the lead is converted by then, and still it is the first order."""
    lead = client.create_lead_safe(source="site", full_name="Eva", phone="5550177")

    def convert(currency: str = "EUR") -> CrmResult:
        return client.create_order_safe(
            customer_id=None,
            lead_id=lead.id,
            total_amount=5,
            currency=currency,
            user_id=manager,
            idempotency_key="k",
        )

    first = convert()
    assert (convert().id, convert().duplicate) == (first.id, True)
    with pytest.raises(Conflict) as refused:
        convert("USD")
    assert refused.value.detail["rule"] == "idempotency_key"


def test_nested_calls_claim_no_key_of_their_own(crm: Connection, call: Call) -> None:
    """A quick order and a checkout claim one key each; the calls inside them claim none."""
    call("quick_order_safe", "k-1"), call("checkout_order_safe", "k-1")
    assert rows(crm, "SELECT function, key FROM crm_private.idempotency_keys ORDER BY 1") == [
        ("checkout_order_safe", "k-1"), ("quick_order_safe", "k-1"),
    ]  # fmt: skip


def test_nobody_guesses_the_facts_from_the_hash(crm: Connection, call: Call) -> None:
    """Equal calls have different hashes: each is salted, so that a phone number cannot be found by trying all."""
    call("quick_order_safe", "k-1"), call("quick_order_safe", "k-2")
    assert rows(
        crm,
        "SELECT count(DISTINCT request_hash), count(DISTINCT salt), min(length(salt)) FROM crm_private.idempotency_keys",
    ) == [(2, 2, 32)]


@pytest.mark.parametrize("key", ["a\u200bb", "x" * 256, "a  b"])
def test_a_key_is_a_reference(call: Call, key: str) -> None:
    """An idempotency key obeys the rules of references: it must not look like another one."""
    with pytest.raises(Invalid) as refused:
        call("create_order_safe", key)
    assert refused.value.detail["field"] == "p_idempotency_key"
