"""The rules of the RPCs for leads and orders."""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Any
from uuid import UUID, uuid4

import pytest

from crm_analytics.crm import Conflict, CrmClient, CrmResult, Forbidden, Invalid, NotFound
from crm_analytics_tests.crm.conftest import BY_HAND, Connection, add_user, pay, rows, value

pytestmark = pytest.mark.rolled_back

SYSTEM = UUID("00000000-0000-0000-0000-000000000001")
ORDER_STATUSES = (
    "created", "awaiting_payment", "paid", "in_delivery", "delivered", "closed", "cancelled",
)  # fmt: skip


@pytest.fixture
def customer(client: CrmClient) -> UUID:
    """Creates a customer without orders."""
    lead = client.create_lead_safe(source="site", full_name="Olga Example", phone="+1 555 010 0100")
    return UUID(lead.data["customer_id"])


def create(client: CrmClient, customer: UUID | None, manager: UUID | None, **changed: Any) -> CrmResult:
    arguments: dict[str, Any] = {
        "customer_id": customer, "total_amount": 100, "currency": "EUR", "user_id": manager,
    }  # fmt: skip
    return client.create_order_safe(**{**arguments, **changed})


def bring_to(client: CrmClient, order: CrmResult, status: str, admin: UUID) -> None:
    """Takes a created order of 1000 EUR to `status` by legal steps."""
    if status == "awaiting_payment":
        client.advance_order_status_safe(order_id=order.id, new_status=status, user_id=admin)
    elif status != "created":
        if status != "cancelled":
            pay(client, order, admin, 1000)
        path = ["in_delivery", "delivered", "closed"]
        steps = (
            ["cancelled"]
            if status == "cancelled"
            else path[: path.index(status) + 1]
            if status in path
            else []
        )
        for step in steps:
            client.advance_order_status_safe(order_id=order.id, new_status=step, user_id=admin)


@pytest.mark.parametrize("old", ORDER_STATUSES)
def test_every_transition(
    crm: Connection, client: CrmClient, order: CrmResult, manager: UUID, admin: UUID, old: str
) -> None:
    """Each status allows exactly its transitions; an order could otherwise skip payment or come back from the dead."""
    bring_to(client, order, old, admin)
    for new in ORDER_STATUSES:
        for actor, role in ((manager, "manager"), (admin, "admin")):
            crm.execute("SAVEPOINT s")
            required = BY_HAND.get((old, new))
            if required is None:
                with pytest.raises(Conflict) as conflict:
                    client.advance_order_status_safe(order_id=order.id, new_status=new, user_id=actor)
                assert set(conflict.value.detail["accepted"]) == {to for frm, to in BY_HAND if frm == old}
            elif required == "admin" and role == "manager":
                with pytest.raises(Forbidden):
                    client.advance_order_status_safe(order_id=order.id, new_status=new, user_id=actor)
            else:
                client.advance_order_status_safe(order_id=order.id, new_status=new, user_id=actor)
                assert rows(
                    crm,
                    "SELECT o.status::text, e.old_status, e.new_status, e.changed_by FROM public.orders o"
                    " JOIN public.order_status_events e ON e.order_id = o.id WHERE o.id = %s ORDER BY e.seq DESC LIMIT 1",
                    order.id,
                ) == [(new, old, new, actor)]
            crm.execute("ROLLBACK TO s")


def test_transitions_are_those_of_the_table(crm: Connection) -> None:
    """The table of transitions that people read equals the rules."""
    assert {
        (old, new): role
        for old, new, role in rows(
            crm,
            "SELECT from_status::text, to_status::text, required_role::text FROM public.order_status_transitions",
        )
    } == BY_HAND


def test_cancelling_with_client_money_needs_an_admin(
    client: CrmClient, order: CrmResult, manager: UUID, admin: UUID
) -> None:
    """A manager cannot cancel an order that holds client money; an admin can."""
    pay(client, order, manager, 10)
    with pytest.raises(Forbidden) as refused:
        client.advance_order_status_safe(order_id=order.id, new_status="cancelled", user_id=manager)
    assert refused.value.detail["rule"] == "role"
    pay(client, order, admin, 10, direction="outgoing", role="refund")
    client.advance_order_status_safe(order_id=order.id, new_status="cancelled", user_id=manager)


def test_advance_order_checks_in_order(client: CrmClient, order: CrmResult, manager: UUID) -> None:
    """advance_order_status_safe checks actor, input, existence, role, state, in this order."""
    with pytest.raises(Forbidden):
        client.advance_order_status_safe(order_id=uuid4(), new_status="x", user_id=None)
    with pytest.raises(Invalid) as refused:
        client.advance_order_status_safe(order_id=uuid4(), new_status="x", user_id=manager)
    assert refused.value.detail["accepted"] == "one of " + ", ".join(ORDER_STATUSES)
    with pytest.raises(NotFound):
        client.advance_order_status_safe(order_id=uuid4(), new_status="paid", user_id=manager)


@pytest.mark.parametrize(
    ("changed", "field"),
    [
        ({"total_amount": None}, "p_total_amount"),
        ({"total_amount": 0}, "p_total_amount"),
        ({"currency": None}, "p_currency"),
        ({"currency": "eur"}, "p_currency"),
        ({"items": {"model": "x"}}, "p_items"),
        ({"commission_eur": -1}, "p_commission_eur"),
        ({"commission_eur": Decimal("NaN")}, "p_commission_eur"),
        ({"customer_id": None}, "p_customer_id"),
        ({"order_code": "x" * 256}, "p_order_code"),
    ],
)
def test_order_input(
    client: CrmClient, customer: UUID, manager: UUID, changed: dict[str, Any], field: str
) -> None:
    """An order needs a customer and a price that is a number; each wrong argument is named."""
    with pytest.raises(Invalid) as refused:
        create(client, customer, manager, **changed)
    assert refused.value.detail["field"] == field


@pytest.mark.parametrize("field", ["customer_id", "lead_id", "assigned_manager"])
def test_order_refers_to_what_exists(client: CrmClient, customer: UUID, manager: UUID, field: str) -> None:
    """A wrong id is NotFound with the argument's name, not a bare foreign-key error."""
    with pytest.raises(NotFound) as refused:
        create(client, customer, manager, **{field: uuid4()})
    assert refused.value.detail["field"] == f"p_{field}"


def test_order_without_a_person_is_the_systems(crm: Connection, client: CrmClient, customer: UUID) -> None:
    """An order without a user belongs to the system user, whom no caller can name."""
    order = create(client, customer, None)
    assert value(crm, "SELECT created_by FROM public.orders WHERE id = %s", order.id) == SYSTEM
    with pytest.raises(Forbidden):
        create(client, customer, SYSTEM)


def test_order_numbers(crm: Connection, client: CrmClient, customer: UUID, manager: UUID) -> None:
    """Order numbers are unique, and one given by hand does not disturb the count."""
    first, second = create(client, customer, manager), create(client, customer, manager)
    pattern = r"(B\d{4}-)(\d{6})"
    matches = [re.fullmatch(pattern, order.data["order_code"]) for order in (first, second)]
    assert matches[0] and matches[1] and int(matches[1][2]) == int(matches[0][2]) + 1
    upcoming = f"{matches[1][1]}{int(matches[1][2]) + 1:06}"
    assert create(client, customer, manager, order_code=f" {upcoming} ").data["order_code"] == upcoming
    assert (
        create(client, customer, manager).data["order_code"] == f"{matches[1][1]}{int(matches[1][2]) + 2:06}"
    )
    with pytest.raises(Conflict) as refused:
        create(client, customer, manager, order_code=first.data["order_code"])
    assert (refused.value.detail["rule"], refused.value.detail["id"]) == ("unique_order_code", str(first.id))


def test_order_numbers_beyond_a_million(
    crm: Connection, client: CrmClient, customer: UUID, manager: UUID
) -> None:
    """The millionth order gets all the digits of its number, and so do those after it."""
    crm.execute("SELECT setval('crm_private.order_code_seq', 999999)")
    found = [create(client, customer, manager).data["order_code"].partition("-")[2] for _ in range(2)]
    assert found == ["1000000", "1000001"]


def test_order_from_a_lead_takes_over(crm: Connection, client: CrmClient, manager: UUID, admin: UUID) -> None:
    """An order from a lead takes over bike, manager and customer, and only from a lead of that customer."""
    lead = client.create_lead_safe(
        source="site",
        full_name="Olga",
        contact="@olga",
        bike_url="https://example.com/1",
        bike_snapshot={"size": 54},
    )
    client.advance_lead_status_safe(
        lead_id=lead.id, new_status="in_progress", user_id=manager, assigned_to=admin
    )
    stranger = UUID(
        client.create_lead_safe(source="site", full_name="Eve", phone="555 0199").data["customer_id"]
    )
    with pytest.raises(Conflict) as refused:
        create(client, stranger, manager, lead_id=lead.id)
    assert refused.value.detail["rule"] == "lead_customer"
    order = create(client, None, manager, lead_id=lead.id)
    assert rows(
        crm,
        "SELECT customer_id, bike_url, bike_snapshot, assigned_manager FROM public.orders WHERE id = %s",
        order.id,
    ) == [(UUID(lead.data["customer_id"]), "https://example.com/1", {"size": 54}, admin)]


def test_rejected_lead_is_not_converted(client: CrmClient, manager: UUID) -> None:
    """A rejected lead makes no order until it is taken back."""
    lead = client.create_lead_safe(source="site", full_name="Olga", phone="555 0100")
    client.advance_lead_status_safe(lead_id=lead.id, new_status="rejected", user_id=manager)
    with pytest.raises(Conflict) as refused:
        create(client, None, manager, lead_id=lead.id)
    assert refused.value.detail["found"] == "rejected"
    client.advance_lead_status_safe(lead_id=lead.id, new_status="in_progress", user_id=manager)
    create(client, None, manager, lead_id=lead.id)


def test_lead_transitions(crm: Connection, client: CrmClient, manager: UUID) -> None:
    """A lead moves by its rules and becomes converted only through an order."""
    statuses = ("new", "in_progress", "converted", "rejected")
    allowed = {
        ("new", "in_progress"), ("new", "rejected"), ("in_progress", "rejected"), ("rejected", "in_progress"),
    }  # fmt: skip
    for old in statuses:
        lead = client.create_lead_safe(source="site", full_name="Olga", phone="555 0100")
        if old == "converted":
            create(client, None, manager, lead_id=lead.id)
        elif old != "new":
            client.advance_lead_status_safe(lead_id=lead.id, new_status=old, user_id=manager)
        for new in statuses:
            crm.execute("SAVEPOINT s")
            if (old, new) in allowed:
                moved = client.advance_lead_status_safe(lead_id=lead.id, new_status=new, user_id=manager)
                assert (moved.data["status"], moved.data["assigned_to"]) == (new, str(manager))
            else:
                with pytest.raises(Conflict) as refused:
                    client.advance_lead_status_safe(lead_id=lead.id, new_status=new, user_id=manager)
                assert set(refused.value.detail["accepted"]) == {b for a, b in allowed if a == old}
            crm.execute("ROLLBACK TO s")


@pytest.mark.parametrize(
    ("changed", "field"),
    [
        ({"source": " "}, "p_source"),
        ({"full_name": None}, "p_full_name"),
        ({"phone": None}, "p_contact"),
        ({"phone": "12 34"}, "p_phone"),
        ({"email": "not an address"}, "p_email"),
        ({"phone": "5" * 256}, "p_phone"),
        ({"email": "o" * 244 + "@example.com"}, "p_email"),
        ({"preferred_channel": "pigeon"}, "p_preferred_channel"),
        ({"estimated_budget_eur": -1}, "p_estimated_budget_eur"),
    ],
)
def test_lead_input(crm: Connection, client: CrmClient, changed: dict[str, Any], field: str) -> None:
    """A lead needs a source, a name and a contact by which it can be answered; each wrong argument is named."""
    with pytest.raises(Invalid) as refused:
        client.create_lead_safe(**{"source": "site", "full_name": "Olga", "phone": "555 0100", **changed})
    assert refused.value.detail["field"] == field
    assert value(crm, "SELECT count(*) FROM public.customers") == 0


def test_customer_is_found_by_phone_first(client: CrmClient) -> None:
    """The phone decides before the address; a person may write from a relative's address."""
    by_phone = client.create_lead_safe(source="s", full_name="A", phone="+1 555 010 0100")
    by_email = client.create_lead_safe(source="s", full_name="B", email="b@example.com")
    both = client.create_lead_safe(source="s", full_name="?", phone="0015550100100", email="B@example.com")
    assert both.data["customer_id"] == by_phone.data["customer_id"] != by_email.data["customer_id"]


def test_messenger_contact_alone_is_enough(crm: Connection, client: CrmClient) -> None:
    """A messenger contact alone is enough; leads from messengers have no phone."""
    client.create_lead_safe(source="telegram", full_name="Olga", contact="@olga")
    client.create_lead_safe(source="telegram", full_name="Ivan", contact="@ivan")
    assert rows(crm, "SELECT contact FROM public.leads ORDER BY 1") == [("@ivan",), ("@olga",)]
    assert value(crm, "SELECT count(*) FROM public.customers") == 2


def test_quick_order_is_all_or_nothing(crm: Connection, client: CrmClient) -> None:
    """A refused quick order leaves no lead and no customer behind."""
    with pytest.raises(Invalid):
        client.quick_order_safe(
            source="s", full_name="n", items=[], total_amount=-1, currency="EUR", phone="5550100"
        )
    assert rows(
        crm, "SELECT (SELECT count(*) FROM public.leads), (SELECT count(*) FROM public.customers)"
    ) == [(0, 0)]


def test_total_is_free_before_the_first_payment(
    crm: Connection, client: CrmClient, order: CrmResult, manager: UUID
) -> None:
    """Before a payment, or after failed and cancelled ones, a manager changes total and currency."""
    client.update_order_safe(order_id=order.id, user_id=manager, total_amount=Decimal("1200.50"))
    assert rows(crm, "SELECT total_amount, final_price_eur FROM public.orders") == [(Decimal("1200.50"),) * 2]
    client.update_order_safe(order_id=order.id, user_id=manager, currency="USD")
    assert rows(crm, "SELECT currency::text, total_amount, final_price_eur FROM public.orders") == [
        ("USD", Decimal("1200.50"), None)
    ]
    for state in ("failed", "cancelled"):
        pay(client, order, manager, 1, currency="USD", status=state)
    client.update_order_safe(order_id=order.id, user_id=manager, currency="EUR", total_amount=1000)
    assert value(crm, "SELECT status::text FROM public.orders") == "created"


@pytest.mark.parametrize("state", ["planned", "pending", "completed"])
def test_total_is_an_admins_after_the_first_payment(
    crm: Connection, client: CrmClient, order: CrmResult, manager: UUID, admin: UUID, state: str
) -> None:
    """Once there is a payment, a manager cannot lower the price to what was paid; an admin can, and says why."""
    pay(client, order, manager, 400, status=state)
    for changed in ({"total_amount": 999}, {"total_amount": 1001}, {"currency": "USD"}):
        with pytest.raises(Forbidden) as forbidden:
            client.update_order_safe(order_id=order.id, user_id=manager, reason="please", **changed)
        assert forbidden.value.detail["rule"] == "total_after_payment"
        for reason in (None, " "):
            with pytest.raises(Conflict) as refused:
                client.update_order_safe(order_id=order.id, user_id=admin, reason=reason, **changed)
            assert refused.value.detail["field"] == "p_reason"
    with pytest.raises(Conflict) as refused:
        client.update_order_safe(order_id=order.id, user_id=admin, currency="USD", reason="x")
    assert refused.value.detail["rule"] == "currency"
    # everything else stays editable, and repeating the total is no change
    client.update_order_safe(order_id=order.id, user_id=manager, total_amount=1000, commission_eur=50)
    client.update_order_safe(order_id=order.id, user_id=admin, total_amount=900, reason=" a scratch ")
    assert rows(crm, "SELECT total_amount, final_price_eur, status::text FROM public.orders") == [
        (900, 900, "awaiting_payment" if state == "completed" else "created")
    ]
    assert (
        value(crm, "SELECT payload ->> 'reason' FROM public.audit_log ORDER BY id DESC LIMIT 1")
        == "a scratch"
    )


def test_reaching_the_new_total_pays_the_order(
    crm: Connection, client: CrmClient, order: CrmResult, manager: UUID, admin: UUID
) -> None:
    """Client money that reaches a lowered total makes the order paid; a raise leaves it paid, but holds the delivery."""
    pay(client, order, manager, 600)
    done = client.update_order_safe(order_id=order.id, user_id=admin, total_amount=600, reason="a scratch")
    assert done.data["status"] == "paid"
    assert rows(
        crm,
        "SELECT new_status, changed_by, reason, notes FROM public.order_status_events ORDER BY seq DESC LIMIT 1",
    ) == [("paid", admin, "total_changed", "a scratch")]
    raised = client.update_order_safe(order_id=order.id, user_id=admin, total_amount=700, reason="a bell")
    assert raised.data["status"] == "paid"
    with pytest.raises(Forbidden) as refused:
        client.advance_order_status_safe(
            order_id=order.id, new_status="in_delivery", user_id=manager, reason="go"
        )
    assert refused.value.detail["client_paid"] == 600
    pay(client, order, manager, 100)
    client.advance_order_status_safe(order_id=order.id, new_status="in_delivery", user_id=manager)


def test_total_covers_what_was_refunded_and_paid_out(
    client: CrmClient, order: CrmResult, manager: UUID, admin: UUID
) -> None:
    """No total goes below what was refunded or paid out, in whatever status those payments are."""
    pay(client, order, manager, 900)
    pay(client, order, admin, 100, direction="outgoing", role="refund")
    pay(client, order, manager, 300, direction="outgoing", role="supplier_payment")
    pay(client, order, manager, 50, direction="outgoing", role="commission", status="planned")
    pay(
        client,
        order,
        admin,
        77,
        direction="outgoing",
        role="shipping_payment",
        currency="USD",
        reason="dollars",
    )
    with pytest.raises(Conflict) as refused:
        client.update_order_safe(order_id=order.id, user_id=admin, total_amount=Decimal("449.99"), reason="x")
    assert (refused.value.detail["rule"], refused.value.detail["accepted"]) == ("total_after_payment", 450)
    done = client.update_order_safe(order_id=order.id, user_id=admin, total_amount=450, reason="x")
    assert done.data["status"] == "paid"


def test_currency_changes_once_client_money_is_reversed(
    crm: Connection, client: CrmClient, order: CrmResult, manager: UUID, admin: UUID
) -> None:
    """An order priced in the wrong currency is corrected after its client money was reversed, and holds the invariants."""
    payment = pay(client, order, manager, 1000)
    with pytest.raises(Conflict) as refused:
        client.update_order_safe(order_id=order.id, user_id=admin, currency="USD", reason="wrong currency")
    assert (refused.value.detail["rule"], refused.value.detail["paid"]) == ("currency", 1000)
    client.reverse_payment_safe(payment_id=payment.id, reason="wrong currency", user_id=admin)
    client.update_order_safe(order_id=order.id, user_id=admin, currency="USD", reason="wrong currency")
    assert pay(client, order, manager, 1000, currency="USD").data["client_paid"] == 1000


def test_delivery_needs_the_total(
    crm: Connection, client: CrmClient, order: CrmResult, manager: UUID, admin: UUID
) -> None:
    """A fully refunded order is not delivered by a manager; an admin may, with a reason that stands in the event."""
    pay(client, order, manager, 1000)
    pay(client, order, admin, Decimal("0.01"), direction="outgoing", role="refund")
    for actor, reason, error in ((manager, "go", Forbidden), (admin, None, Conflict), (admin, " ", Conflict)):
        with pytest.raises(error) as refused:
            client.advance_order_status_safe(
                order_id=order.id, new_status="in_delivery", user_id=actor, reason=reason
            )
        assert refused.value.detail["rule"] == "delivery_after_payment"
    client.advance_order_status_safe(
        order_id=order.id, new_status="in_delivery", user_id=admin, reason="a cent"
    )
    assert rows(
        crm, "SELECT changed_by, reason FROM public.order_status_events ORDER BY seq DESC LIMIT 1"
    ) == [(admin, "a cent")]


@pytest.mark.parametrize("end", ["cancelled", "closed"])
@pytest.mark.parametrize(
    "changed",
    [
        {"items": []},
        {"commission_eur": 1},
        {"bike_url": "https://example.com/3"},
        {"bike_snapshot": {"size": 56}},
    ],
)
def test_what_was_sold_is_an_admins_after_the_end(
    client: CrmClient, order: CrmResult, manager: UUID, admin: UUID, end: str, changed: dict[str, Any]
) -> None:
    """Items, commission and bike of a cancelled or closed order are changed by admins only; its manager by anyone."""
    bring_to(client, order, end, admin)
    client.update_order_safe(order_id=order.id, user_id=manager, assigned_manager=manager)
    with pytest.raises(Forbidden):
        client.update_order_safe(order_id=order.id, user_id=manager, **changed)
    client.update_order_safe(order_id=order.id, user_id=admin, **changed)


def test_order_edits_leave_the_rest_and_are_audited(
    crm: Connection, client: CrmClient, order: CrmResult, manager: UUID, admin: UUID
) -> None:
    """An edit changes only the given fields, never the status, and its audit row has the old values."""
    before = rows(crm, "SELECT order_code, status, total_amount, items FROM public.orders")
    client.update_order_safe(
        order_id=order.id,
        user_id=admin,
        assigned_manager=manager,
        bike_url="https://example.com/2",
        commission_eur=0,
    )
    assert rows(crm, "SELECT order_code, status, total_amount, items FROM public.orders") == before
    assert rows(crm, "SELECT assigned_manager, commission_eur, updated_by FROM public.orders") == [
        (manager, 0, admin)
    ]
    assert value(crm, "SELECT payload -> 'changes' FROM public.audit_log ORDER BY id DESC LIMIT 1") == {
        "assigned_manager": {"old": None, "new": str(manager)},
        "bike_url": {"old": None, "new": "https://example.com/2"},
        "commission_eur": {"old": None, "new": 0},
    }


def test_work_goes_to_active_users_only(
    crm: Connection, client: CrmClient, order: CrmResult, customer: UUID, manager: UUID
) -> None:
    """Orders, leads and tasks are assigned to active users only."""
    gone = add_user(crm, "Gone", active=False)
    lead = client.create_lead_safe(source="s", full_name="n", phone="555 0100")
    task = client.create_task_safe(title="t", created_by=manager)
    for call in (
        lambda who: create(client, customer, manager, assigned_manager=who),
        lambda who: client.update_order_safe(order_id=order.id, user_id=manager, assigned_manager=who),
        lambda who: client.update_lead_safe(lead_id=lead.id, user_id=manager, assigned_to=who),
        lambda who: client.advance_lead_status_safe(
            lead_id=lead.id, new_status="in_progress", user_id=manager, assigned_to=who
        ),
        lambda who: client.create_task_safe(title="t", created_by=manager, assignee_id=who),
        lambda who: client.update_task_safe(task_id=task.id, user_id=manager, assignee_id=who),
    ):
        with pytest.raises(Conflict) as refused:
            call(gone)
        assert refused.value.detail["rule"] == "assignee"
        with pytest.raises(NotFound):
            call(uuid4())


def test_lead_edits(crm: Connection, client: CrmClient, manager: UUID) -> None:
    """An edit of a lead changes only the given fields, never the status."""
    lead = client.create_lead_safe(source="site", full_name="Olga", phone="555 0100", customer_comment="blue")
    client.update_lead_safe(
        lead_id=lead.id, user_id=manager, notes=" calls back ", estimated_budget_eur=0, contact="@olga"
    )
    assert rows(
        crm,
        "SELECT source, contact, notes, customer_comment, estimated_budget_eur, status::text FROM public.leads",
    ) == [("site", "@olga", "calls back", "blue", 0, "new")]
    with pytest.raises(NotFound):
        client.update_lead_safe(lead_id=uuid4(), user_id=manager)
