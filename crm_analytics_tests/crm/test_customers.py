"""Customers and their contacts: who is found by what, what is kept, and two customers who turn out to be one person."""

from __future__ import annotations

from typing import Any
from uuid import UUID, uuid4

import pytest

from crm_analytics.crm import Conflict, CrmClient, CrmResult, Forbidden, Invalid, NotFound
from crm_analytics_tests.crm.conftest import Connection, broken_invariants, rows, value

pytestmark = pytest.mark.rolled_back


def lead(client: CrmClient, **contacts: Any) -> UUID:
    """Sends a form; returns the customer's id."""
    return UUID(client.create_lead_safe(source="site", full_name="Olga", **contacts).data["customer_id"])


def contacts(crm: Connection) -> list[tuple[Any, ...]]:
    return rows(crm, "SELECT kind, key, customer_id FROM public.customer_contacts ORDER BY kind, key")


def intact(crm: Connection) -> bool:
    """Tells whether the invariants hold; the deferred foreign keys are checked first."""
    crm.execute("SET CONSTRAINTS ALL IMMEDIATE")
    assert broken_invariants(crm) == {}
    return True


SAME = (
    ({"phone": "8 (916) 555-01-23"}, {"phone": "+7 916 555 0123"}),
    ({"phone": "8 916 555 01 23"}, {"phone": "007 916 555-01-23"}),
    ({"phone": "+84 91 234 56 78"}, {"phone": "0084 91 2345678"}),
    ({"phone": "8 495 555 01 00 доб. 12"}, {"phone": "+7 (495) 555-01-00"}),
    ({"phone": "+1 202 555 0100 ext 7"}, {"phone": "+1 202 555 0100 EXT. 8"}),
    ({"phone": "8 495 555 01 00 ДОБ 12"}, {"contact": "+7 495 555 01 00"}),
    ({"contact": "8 (916) 555-01-23"}, {"phone": "+7 916 555 0123"}),
    ({"contact": "Olga@Example.com"}, {"email": "olga@example.com"}),
    ({"contact": "@Olga_K"}, {"contact": " @olga_k "}),
    ({"contact": "@olga"}, {"contact": "t.me/Olga"}),
    ({"contact": "https://t.me/olga?start=1"}, {"contact": "http://telegram.me/olga/"}),
    ({"contact": "@olga", "preferred_channel": "whatsapp"}, {"contact": "@OLGA", "preferred_channel": "whatsapp"}),
)  # fmt: skip
OTHERS = (
    # Vietnam and Kazakhstan, Japan and Kazakhstan: a leading + switches off the rule for Russian numbers.
    ({"phone": "+84 91 234 56 78"}, {"phone": "+7 491 234 56 78"}),
    ({"phone": "+81 3 1234 5678"}, {"phone": "+7 131 234 56 78"}),
    ({"phone": "+84912345678"}, {"phone": "84912345678"}),
    ({"phone": "+1 202 555 0100 ext 7"}, {"phone": "+1 202 555 01007"}),
    ({"contact": "@olga"}, {"contact": "@olga", "preferred_channel": "whatsapp"}),
    ({"contact": "@olga", "preferred_channel": "email"}, {"contact": "@olga", "preferred_channel": "email"}),
    ({"contact": "t.me/joinchat/olga"}, {"contact": "t.me/joinchat/olga"}),
    ({"contact": "call me after six"}, {"contact": "call me after six"}),
    ({"contact": "12 34"}, {"contact": "12 34"}),
)


@pytest.mark.parametrize(("first", "second"), SAME)
def test_same_contact_is_one_customer(
    crm: Connection, client: CrmClient, first: dict[str, str], second: dict[str, str]
) -> None:
    """A person who writes again is found, in whatever form the contact is written."""
    assert lead(client, **first) == lead(client, **second)
    assert intact(crm)


@pytest.mark.parametrize(("first", "second"), OTHERS)
def test_different_contacts_are_different_customers(
    crm: Connection, client: CrmClient, first: dict[str, str], second: dict[str, str]
) -> None:
    """Contacts that only look alike don't make two persons one: each would see the other's orders."""
    assert lead(client, **first) != lead(client, **second)
    assert intact(crm)


def test_new_contacts_of_a_known_customer_are_kept(crm: Connection, client: CrmClient) -> None:
    """What a known customer tells later leads to that customer, too, and fills what the customer's row lacks."""
    olga = lead(client, contact="@olga")
    assert lead(client, contact="@olga", phone="+1 202 555 0100") == olga
    assert lead(client, phone="+1 202 555 0100", email="olga@example.com") == olga
    assert lead(client, email="olga@example.com", phone="+1 202 555 0199") == olga
    assert contacts(crm) == [
        ("email", "olga@example.com", olga), ("phone", "12025550100", olga), ("phone", "12025550199", olga),
        ("telegram", "olga", olga),
    ]  # fmt: skip
    assert rows(crm, "SELECT phone, email FROM public.customers") == [("+1 202 555 0100", "olga@example.com")]
    assert lead(client, phone="+1 202 555 0199") == olga
    assert intact(crm)


def test_text_that_is_a_phone_fills_the_row(crm: Connection, client: CrmClient) -> None:
    """A phone or address in the free text is stored as one."""
    lead(client, contact="8 (916) 555-01-23")
    lead(client, contact="Ivan@Example.com")
    assert rows(crm, "SELECT phone, email FROM public.customers ORDER BY phone") == [
        ("8 (916) 555-01-23", None), (None, "ivan@example.com"),
    ]  # fmt: skip
    assert rows(crm, "SELECT contact FROM public.leads ORDER BY 1") == [
        ("8 (916) 555-01-23",),
        ("Ivan@Example.com",),
    ]
    assert intact(crm)


def test_contacts_of_two_customers(crm: Connection, client: CrmClient) -> None:
    """Of two known customers the phone's is taken; each keeps the own contact."""
    olga, ivan = lead(client, phone="+1 202 555 0100"), lead(client, email="ivan@example.com")
    assert lead(client, phone="+1 202 555 0100", email="ivan@example.com", contact="@both") == olga
    assert contacts(crm) == [
        ("email", "ivan@example.com", ivan), ("phone", "12025550100", olga), ("telegram", "both", olga),
    ]  # fmt: skip
    assert intact(crm)


def test_immediate_constraints_do_not_stop_a_form(crm: Connection, client: CrmClient) -> None:
    """A session that checks constraints at once can still send a form, although contacts come before their customer."""
    crm.execute("SET CONSTRAINTS ALL IMMEDIATE")
    olga = lead(client, phone="+1 202 555 0100")
    crm.execute("SET CONSTRAINTS ALL IMMEDIATE")
    client.update_customer_safe(
        customer_id=olga, email="olga@example.com", user_id=value(crm, _USER, "Max", "manager")
    )


_USER = "INSERT INTO public.users (name, role) VALUES (%s, %s::text::public.user_role_enum) RETURNING id"


def test_edited_contacts_lead_to_the_customer(crm: Connection, client: CrmClient, manager: UUID) -> None:
    """An edited phone or address leads to the customer, and so do the earlier ones; another customer's is refused."""
    olga, ivan = lead(client, phone="+1 202 555 0100"), lead(client, phone="+1 202 555 0101")
    client.update_customer_safe(customer_id=olga, user_id=manager, phone="+1 202 555 0102")
    assert lead(client, phone="+1 202 555 0102") == lead(client, phone="+1 202 555 0100") == olga
    with pytest.raises(Conflict) as refused:
        client.update_customer_safe(customer_id=ivan, user_id=manager, phone="001 202 555 0102")
    assert refused.value.detail == {
        "rule": "contact_taken", "field": "p_phone", "found": "12025550102", "id": str(olga),
        "accepted": "a contact that no other customer has",
    }  # fmt: skip
    # The earlier number was mistyped, or changed hands.
    client.update_customer_safe(customer_id=ivan, user_id=manager, phone="+1 202 555 0100")
    assert lead(client, phone="+1 202 555 0100") == ivan
    client.update_customer_safe(customer_id=ivan, user_id=manager, phone="+1 202 555 0100", country="LV")
    assert intact(crm)


def test_contacts_that_the_owner_writes(crm: Connection, client: CrmClient, manager: UUID) -> None:
    """A customer whom the table owner writes is found by its contacts; another customer's are refused to the owner, too."""
    olga = value(
        crm,
        "INSERT INTO public.customers (full_name, phone, email) VALUES ('Olga', '8 916 555 01 23', ' O@Example.com')"
        " RETURNING id",
    )
    assert lead(client, phone="+7 916 555 01 23") == lead(client, email="o@example.com") == olga
    crm.execute("UPDATE public.customers SET phone = '+1 202 555 0100', country = 'US'")
    assert lead(client, phone="+1 202 555 0100") == olga
    with pytest.raises(Exception) as refused, crm.transaction():
        crm.execute("INSERT INTO public.customers (full_name, email) VALUES ('Other', 'O@example.com')")
    assert getattr(refused.value, "sqlstate", None) == "PT409"
    assert intact(crm)


# -- merges ---------------------------------------------------------------------------------------------------


def merge(
    client: CrmClient, customer: UUID, into: UUID, admin: UUID, reason: str = "one person"
) -> CrmResult:
    return client.merge_customers_safe(customer_id=customer, merged_into=into, user_id=admin, reason=reason)


def order(client: CrmClient, customer: UUID | None, manager: UUID, **changed: Any) -> UUID:
    """Creates an order; returns its customer."""
    made = client.create_order_safe(
        customer_id=customer, total_amount=10, currency="EUR", user_id=manager, **changed
    )
    return UUID(made.data["customer_id"])


def test_merge_moves_everything(crm: Connection, client: CrmClient, manager: UUID, admin: UUID) -> None:
    """After a merge all rows belong to the customer who remains, one audit row each, and the merged row stays."""
    olga, twin = (
        lead(client, phone="+1 202 555 0100"),
        lead(client, email="olga@example.com", contact="@olga"),
    )
    order(client, twin, manager)
    before = value(crm, "SELECT max(id) FROM public.audit_log")
    done = merge(client, twin, olga, admin)
    assert (done.id, done.data) == (
        olga,
        {"id": str(olga), "merged": str(twin), "duplicate": False, "contacts": 2, "leads": 1, "orders": 1},
    )
    assert rows(
        crm,
        "SELECT actor_id = %s, action, entity, count(*) FROM public.audit_log WHERE id > %s GROUP BY 1, 2, 3 ORDER BY 3, 2",
        admin, before,
    ) == [
        (True, "update", "customer_contacts", 2), (True, "merge", "customers", 1), (True, "update", "customers", 1),
        (True, "update", "leads", 1), (True, "update", "orders", 1),
    ]  # fmt: skip
    assert (
        value(crm, "SELECT payload ->> 'reason' FROM public.audit_log WHERE action = 'merge'") == "one person"
    )
    assert rows(crm, "SELECT id, phone, email, merged_into FROM public.customers ORDER BY merged_into NULLS FIRST") == [
        (olga, "+1 202 555 0100", "olga@example.com", None), (twin, None, "olga@example.com", olga),
    ]  # fmt: skip
    assert {row[2] for row in contacts(crm)} == {olga}
    assert lead(client, contact="@olga") == olga
    assert intact(crm)


def test_a_merged_customer_stands_for_the_other(
    crm: Connection, client: CrmClient, manager: UUID, admin: UUID
) -> None:
    """Calls that still name a merged customer reach the one who remains; a chain of merges is one step long."""
    first, second, third = (lead(client, phone=f"+1 202 555 010{n}") for n in range(3))
    open_lead = client.create_lead_safe(source="site", full_name="Olga", phone="+1 202 555 0100")
    merge(client, first, second, admin)
    merge(client, second, third, admin)
    assert rows(
        crm, "SELECT DISTINCT merged_into FROM public.customers WHERE id IN (%s, %s)", first, second
    ) == [(third,)]
    assert order(client, first, manager) == order(client, second, manager) == third
    assert order(client, first, manager, lead_id=open_lead.id) == third
    assert client.update_customer_safe(customer_id=first, user_id=manager, country="LV").id == third
    assert (
        client.update_customer_safe(customer_id=second, user_id=manager, phone="+1 202 555 0100").id == third
    )
    assert intact(crm)


def test_contacts_of_a_merged_customer_change_hands(
    crm: Connection, client: CrmClient, manager: UUID, admin: UUID
) -> None:
    """They are earlier contacts of the one who remains: a third customer may get them, and keeps them if one is erased."""
    remains, merged, third = (lead(client, phone=f"+1 202 555 010{n}") for n in range(3))
    merge(client, merged, remains, admin)
    client.update_customer_safe(customer_id=third, user_id=manager, phone="+1 202 555 0101")
    assert lead(client, phone="+1 202 555 0101") == third
    assert intact(crm)
    with crm.transaction(force_rollback=True):
        crm.execute("ALTER TABLE public.customer_contacts DISABLE TRIGGER USER")
        crm.execute("DELETE FROM public.customer_contacts WHERE key = '12025550101'")
        lost = broken_invariants(crm)["contacts_agree_with_customers"]
        assert sorted(example.split(":")[0] for example in lost) == sorted([str(merged), str(third)])
    client.erase_customer_safe(customer_id=remains, user_id=admin, reason="asked by letter")
    assert lead(client, phone="+1 202 555 0101") == third
    assert intact(crm)
    client.erase_customer_safe(customer_id=third, user_id=admin, reason="asked by letter")
    assert intact(crm)


def test_a_call_repeated_after_a_merge_answers_as_the_first_one(
    crm: Connection, client: CrmClient, manager: UUID, admin: UUID
) -> None:
    """A call that arrives again after its customer was merged gets the row of the first, by its key or its reference."""
    olga, twin = lead(client, phone="+1 202 555 0100"), lead(client, email="twin@example.com")
    form: dict[str, Any] = {"source": "site", "full_name": "Olga", "email": "twin@example.com"}
    priced: dict[str, Any] = {"total_amount": 10, "currency": "EUR", "user_id": manager}
    checkout: dict[str, Any] = {"customer_id": twin, "items": [], **priced}
    calls = (
        lambda: client.create_lead_safe(**form, idempotency_key="k"),
        lambda: client.create_order_safe(customer_id=twin, **priced, idempotency_key="k"),
        lambda: client.quick_order_safe(items=[], **form, **priced, idempotency_key="k"),
        lambda: client.checkout_order_safe(
            **checkout, method="cash", external_reference=None, idempotency_key="k"
        ),
        lambda: client.checkout_order_safe(**checkout, method="card", external_reference="psp-1"),
    )
    first = [call() for call in calls]
    merge(client, twin, olga, admin)
    before = value(crm, "SELECT max(id) FROM public.audit_log")
    for call, made in zip(calls, first, strict=True):
        again = call()
        assert (again.id, again.duplicate) == (made.id, True)
        now = {"customer_id": str(olga)} if "customer_id" in made.data else {}
        assert again.data == {**made.data, "duplicate": True, **now}
    # a shop that has read the order since names the customer who remains
    there = client.checkout_order_safe(
        **{**checkout, "customer_id": olga}, method="card", external_reference="psp-1"
    )
    assert (there.id, there.duplicate) == (first[-1].id, True)
    assert value(crm, "SELECT max(id) FROM public.audit_log") == before
    assert intact(crm)


def test_merge_rules(crm: Connection, client: CrmClient, manager: UUID, admin: UUID) -> None:
    """Merges are an admin's, with a reason, repeatable, and never lead two ways."""
    first, second, third = (lead(client, phone=f"+1 202 555 010{n}") for n in range(3))
    with pytest.raises(Forbidden):
        merge(client, first, second, manager)
    for changed, field in (({"reason": " "}, "p_reason"), ({"merged_into": first}, "p_merged_into")):
        with pytest.raises(Invalid) as invalid:
            client.merge_customers_safe(
                **{"customer_id": first, "merged_into": second, "user_id": admin, "reason": "r", **changed}  # type: ignore[arg-type]
            )
        assert invalid.value.detail["field"] == field
    for customer, into, field in ((uuid4(), first, "p_customer_id"), (first, uuid4(), "p_merged_into")):
        with pytest.raises(NotFound) as missing:
            merge(client, customer, into, admin)
        assert missing.value.detail["field"] == field
    assert not merge(client, first, second, admin).duplicate
    before = value(crm, "SELECT max(id) FROM public.audit_log")
    # Repeated, or the other way round: they are one customer already.
    for again in (merge(client, first, second, admin), merge(client, second, first, admin)):
        assert (again.id, again.duplicate) == (second, True)
    with pytest.raises(Conflict) as refused:
        merge(client, first, third, admin)
    assert (refused.value.detail["rule"], refused.value.detail["accepted"]) == ("merged", str(second))
    assert value(crm, "SELECT max(id) FROM public.audit_log") == before
    # Into a merged customer means into the one who remains.
    assert merge(client, third, first, admin).id == second
    assert intact(crm)
