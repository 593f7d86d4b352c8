"""Erasure: a customer's personal data is gone from every row and audit row, and nothing else is."""

from __future__ import annotations

import json
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from uuid import UUID

import psycopg
import pytest

from crm_analytics.crm import Conflict, CrmClient, CrmResult, Forbidden, Invalid, NotFound
from crm_analytics.crm.feed import changes_after
from crm_analytics.crm.proof import audit_seals
from crm_analytics_tests.conftest import PATIENCE
from crm_analytics_tests.crm.conftest import Connection, broken_invariants, pay, rows, value, wait_for_lock

pytestmark = pytest.mark.rolled_back

#: What the customer below told us; none of it may be found after an erasure.
SECRETS = (
    "Olga Private", "555 010 0177", "15550100177", "olga.private@example.com", "Secret Street 7", "Hidden Lane 8",
    "allergic to blue", "call me at dawn", "passport-of-olga.pdf", "Ring the private bell", "behind the gate",
    "she was angry", "because of the divorce", "licence-of-olga.pdf", "Bring it to her mother", "Handed to the neighbor",
    "Olga at the counter",
)  # fmt: skip


@pytest.fixture
def customer(crm: Connection, client: CrmClient, manager: UUID, admin: UUID) -> UUID:
    """Plays a customer with personal data in every place that can hold it, and another who must stay as they are."""
    lead = client.create_lead_safe(
        source="site", full_name="Olga Private", phone="+1 555 010 0177", email="olga.private@example.com",
        customer_comment="allergic to blue", country="US", idempotency_key="form",
    )  # fmt: skip
    customer = UUID(lead.data["customer_id"])
    client.advance_lead_status_safe(
        lead_id=lead.id, new_status="in_progress", user_id=manager, notes="call me at dawn"
    )
    client.update_customer_safe(
        customer_id=customer, user_id=manager, billing_address={"street": "Secret Street 7"},
        delivery_details={"street": "Hidden Lane 8"},
    )  # fmt: skip
    order = client.create_order_safe(
        customer_id=None, lead_id=lead.id, items=[{"model": "Gravel 54", "qty": 1}], total_amount=100, currency="EUR",
        user_id=manager, idempotency_key="order",
    )  # fmt: skip
    pay(client, order, manager, 100, "psp-77", method="card")
    client.attach_document_safe(
        document_type="passport", storage_url="https://files.example.com/passport-of-olga.pdf",
        uploaded_by=manager, order_id=order.id,
    )  # fmt: skip
    client.attach_document_safe(
        document_type="other", storage_url="s3://files/licence-of-olga.pdf", uploaded_by=manager, lead_id=lead.id,
        idempotency_key="document",
    )  # fmt: skip
    client.create_task_safe(
        title="Ring the private bell", description="behind the gate", created_by=manager, lead_id=lead.id
    )
    client.create_task_safe(
        title="Bring it to her mother", created_by=manager, order_id=order.id, idempotency_key="task"
    )
    client.upsert_shipment_safe(
        order_id=order.id, user_id=manager, tracking_number="EX1",
        ruspost_status={"last": {"operation": "Handed to the neighbor"}},
    )  # fmt: skip
    client.advance_order_status_safe(
        order_id=order.id, new_status="cancelled", user_id=admin, reason="because of the divorce",
        notes="she was angry",
    )  # fmt: skip
    client.create_lead_safe(
        source="site", full_name="Ivan Other", phone="+1 555 010 0188", idempotency_key="other"
    )
    return customer


def everything(connection: Connection) -> str:
    """Returns all rows of all tables of the CRM as one text."""
    tables = rows(
        connection,
        "SELECT c.oid::regclass::text FROM pg_class c WHERE c.relkind = 'r' AND c.relnamespace IN"
        " ('public'::regnamespace, 'crm_private'::regnamespace)",
    )
    assert len(tables) > 10
    return "\n".join(
        value(connection, f"SELECT coalesce(string_agg(to_jsonb(t)::text, chr(10)), '') FROM {table} t")
        for (table,) in tables
    )


def erase(client: CrmClient, customer: UUID, admin: UUID) -> CrmResult:
    return client.erase_customer_safe(customer_id=customer, user_id=admin, reason="asked by mail")


def test_nothing_personal_is_left_anywhere(
    crm: Connection, client: CrmClient, customer: UUID, admin: UUID
) -> None:
    """After an erasure no row of any table has a word that the customer told, and all invariants hold."""
    audit_seals.seal(crm)
    before = everything(crm)
    assert [secret for secret in SECRETS if secret not in before] == ["Olga at the counter"]
    erased = erase(client, customer, admin)
    assert (erased.data["erased_rows"], erased.data["erased_audit_rows"]) == (10, 16)
    after = everything(crm)
    assert [secret for secret in SECRETS if secret in after] == []
    assert "Ivan Other" in after
    assert broken_invariants(crm) == {}
    audit_seals.seal(crm)
    assert broken_invariants(crm) == {}
    assert rows(crm, "SELECT * FROM crm_private.broken_seals()") == []


def test_idempotency_keys_lose_what_could_be_guessed(
    crm: Connection, client: CrmClient, customer: UUID, manager: UUID, admin: UUID
) -> None:
    """Keys of the customer's rows lose hash and salt, from which a phone number can be guessed, and still answer."""
    erase(client, customer, admin)
    assert dict(
        rows(crm, "SELECT key, num_nonnulls(salt, request_hash) FROM crm_private.idempotency_keys")
    ) == {"form": 0, "order": 0, "document": 0, "task": 0, "other": 2}
    again = client.create_order_safe(
        customer_id=customer, total_amount=7, currency="USD", user_id=manager, idempotency_key="order"
    )
    order = value(crm, "SELECT id FROM public.orders WHERE customer_id = %s", customer)
    assert (again.id, again.duplicate, again.data["total_amount"]) == (order, True, 100)


def test_the_business_stays_as_it_was(
    crm: Connection, client: CrmClient, customer: UUID, admin: UUID
) -> None:
    """Items, amounts, references, statuses and times stay, so the books and repeated calls are what they were."""
    kept = (
        "SELECT (SELECT jsonb_agg(to_jsonb(o) ORDER BY id) FROM public.orders o),"
        " (SELECT jsonb_agg(to_jsonb(p) ORDER BY id) FROM public.payments p),"
        " (SELECT jsonb_agg(to_jsonb(e) - 'reason' - 'notes' ORDER BY id) FROM public.order_status_events e),"
        " (SELECT jsonb_agg(jsonb_build_array(id, actor_id, action, created_at) ORDER BY id) FROM public.audit_log"
        "  WHERE action <> 'erased')"
    )
    before = rows(crm, kept)
    erase(client, customer, admin)
    assert rows(crm, kept) == before
    order = value(crm, "SELECT id FROM public.orders")
    again = pay(client, CrmResult(order, {}), admin, 100, "psp-77", method="card")
    assert again.duplicate
    assert rows(crm, "SELECT DISTINCT reason FROM public.order_status_events ORDER BY 1") == [
        ("[erased]",), ("created",), ("payment",),
    ]  # fmt: skip


def test_rows_that_were_not_sealed_yet_are_numbered_first(
    crm: Connection, client: CrmClient, customer: UUID, admin: UUID
) -> None:
    """Rows that were never numbered get the hash of what they said before it is erased, so that they can be sealed."""
    assert value(crm, "SELECT count(*) FROM public.audit_positions") == 0
    erase(client, customer, admin)
    assert rows(
        crm,
        "SELECT DISTINCT salt IS NULL FROM public.audit_positions JOIN public.audit_log ON id = audit_id"
        " WHERE entity = 'customers' AND payload #>> '{row,full_name}' = '[erased]'",
    ) == [(True,)]
    assert value(crm, "SELECT crm_private.seal_audit_safe()")["row_count"] == value(
        crm, "SELECT count(*) FROM public.audit_log"
    )


def test_the_feed_tells_what_was_erased(
    crm: Connection, client: CrmClient, customer: UUID, admin: UUID
) -> None:
    """A consumer that has the data already gets a change `erased` for each row; older changes are empty from now on."""
    crm.execute("SELECT crm_private.number_changes()")
    last = value(crm, "SELECT max(position) FROM public.audit_positions")
    erase(client, customer, admin)
    crm.execute("SELECT crm_private.number_changes()")
    news = changes_after(crm, last, 100)
    assert {change.action for change in news} == {"erased"}
    assert Counter(change.entity for change in news) == {
        "customer_contacts": 2, "customers": 1, "documents": 2, "leads": 1, "shipments": 1, "tasks": 2,
    }  # fmt: skip
    assert news[-1].entity_id == customer
    assert news[-1].payload["reason"] == "asked by mail"
    old = json.dumps([change.payload for change in changes_after(crm, 0, last)])
    assert [secret for secret in SECRETS if secret in old] == []
    assert '"phone": null' in old


def test_repeating_an_erasure_erases_what_came_since(
    crm: Connection, client: CrmClient, customer: UUID, admin: UUID
) -> None:
    """A repeated erasure finds nothing more to erase, except what was written since."""
    erase(client, customer, admin)
    again = erase(client, customer, admin)
    assert (again.data["erased_rows"], again.data["erased_audit_rows"]) == (0, 0)
    client.update_lead_safe(
        lead_id=value(crm, "SELECT id FROM public.leads WHERE customer_id = %s", customer), user_id=admin,
        notes="Olga at the counter",
    )  # fmt: skip
    last = erase(client, customer, admin)
    assert (last.data["erased_rows"], last.data["erased_audit_rows"]) == (1, 1)
    assert "Olga at the counter" not in everything(crm)
    assert value(crm, "SELECT count(*) FROM public.customer_erasures") == 3
    assert broken_invariants(crm) == {}


def test_an_erased_customer_who_comes_back_is_a_new_one(
    crm: Connection, client: CrmClient, customer: UUID, admin: UUID
) -> None:
    """The contacts of an erased customer find nobody: the same phone makes a new customer."""
    erase(client, customer, admin)
    lead = client.create_lead_safe(source="site", full_name="Olga Private", phone="+1 555 010 0177")
    assert UUID(lead.data["customer_id"]) != customer
    assert broken_invariants(crm) == {}


def test_whoever_was_merged_is_erased_too(
    crm: Connection, client: CrmClient, customer: UUID, admin: UUID
) -> None:
    """A customer who was merged with another one is the same person, whichever of their ids the erasure names."""
    twin = client.create_lead_safe(source="site", full_name="Olga at the counter", email="twin@example.com")
    twin_id = UUID(twin.data["customer_id"])
    client.merge_customers_safe(customer_id=customer, merged_into=twin_id, user_id=admin, reason="one person")
    assert erase(client, customer, admin).id == twin_id
    after = everything(crm)
    assert [secret for secret in (*SECRETS, "twin@example.com") if secret in after] == []
    assert rows(crm, "SELECT customer_id FROM public.customer_erasures ORDER BY 1") == sorted(
        [(customer,), (twin_id,)]
    )
    assert broken_invariants(crm) == {}


def test_an_erased_customer_gets_no_personal_data_again(
    client: CrmClient, customer: UUID, admin: UUID
) -> None:
    """An erased customer can be neither edited nor merged; personal data would come back through either."""
    erase(client, customer, admin)
    other = UUID(
        client.create_lead_safe(source="site", full_name="Ivan", email="ivan@example.com").data["customer_id"]
    )
    for refused in (
        lambda: client.update_customer_safe(customer_id=customer, user_id=admin, full_name="Olga"),
        lambda: client.merge_customers_safe(
            customer_id=other, merged_into=customer, user_id=admin, reason="x"
        ),
        lambda: client.merge_customers_safe(
            customer_id=customer, merged_into=other, user_id=admin, reason="x"
        ),
    ):
        with pytest.raises(Conflict) as caught:
            refused()
        assert caught.value.detail["rule"] == "erased"


def test_only_admins_with_a_reason_erase(
    client: CrmClient, customer: UUID, manager: UUID, admin: UUID
) -> None:
    """A manager may not erase, a reason is required, and an unknown customer is not found."""
    with pytest.raises(Forbidden):
        erase(client, customer, manager)
    with pytest.raises(Invalid) as refused:
        client.erase_customer_safe(customer_id=customer, user_id=admin, reason=" ")
    assert refused.value.detail["field"] == "p_reason"
    with pytest.raises(NotFound):
        erase(client, UUID(int=7), admin)


def test_concurrent_writers_leave_nothing_behind(
    crm: Connection, crm_url: str, customer: UUID, admin: UUID
) -> None:
    """A call that writes to the customer's order makes the erasure wait, which goes on then, and erases what it wrote."""
    order = value(crm, "SELECT id FROM public.orders WHERE customer_id = %s", customer)
    with (
        psycopg.connect(crm_url, autocommit=True) as other,
        psycopg.connect(crm_url, autocommit=True) as eraser,
        ThreadPoolExecutor(1) as pool,
    ):
        other.execute("BEGIN")
        CrmClient(other).create_task_safe(title="Olga at the counter", created_by=admin, order_id=order)
        waiting = pool.submit(erase, CrmClient(eraser), customer, admin)
        wait_for_lock(crm, eraser, waiting)
        other.execute("COMMIT")
        waiting.result(timeout=PATIENCE)
    assert "Olga at the counter" not in everything(crm)


def test_a_lead_that_waited_for_an_erasure_is_a_new_customers(
    crm: Connection, crm_url: str, customer: UUID, admin: UUID
) -> None:
    """A form with the contact of a customer who is being erased makes a new customer; the erased one stays empty."""
    phone = value(crm, "SELECT phone FROM public.customers WHERE id = %s", customer)
    assert phone is not None
    with (
        psycopg.connect(crm_url, autocommit=True) as eraser,
        psycopg.connect(crm_url, autocommit=True) as form,
        ThreadPoolExecutor(1) as pool,
    ):
        eraser.execute("BEGIN")
        erase(CrmClient(eraser), customer, admin)
        waiting = pool.submit(
            CrmClient(form).create_lead_safe,
            source="site",
            full_name="Olga",
            phone=phone,
            email="new@example.com",
        )
        wait_for_lock(crm, form, waiting)
        eraser.execute("COMMIT")
        lead = waiting.result(timeout=PATIENCE)
    assert lead.data["customer_id"] != str(customer)
    assert rows(crm, "SELECT phone, email FROM public.customers WHERE id = %s", customer) == [(None, None)]
    assert broken_invariants(crm) == {}


def test_an_edit_that_waited_for_an_erasure_has_its_contact(
    crm: Connection, crm_url: str, client: CrmClient, customer: UUID, admin: UUID
) -> None:
    """A customer who gets the phone of one who is being erased has it afterwards, and is found by it."""
    phone = value(crm, "SELECT phone FROM public.customers WHERE id = %s", customer)
    other = value(crm, "SELECT id FROM public.customers WHERE full_name = 'Ivan Other'")
    with (
        psycopg.connect(crm_url, autocommit=True) as eraser,
        psycopg.connect(crm_url, autocommit=True) as editor,
        ThreadPoolExecutor(1) as pool,
    ):
        eraser.execute("BEGIN")
        # as far as an erasure gets before it changes the contact
        eraser.execute("SELECT FROM public.customer_contacts WHERE customer_id = %s FOR UPDATE", [customer])
        waiting = pool.submit(
            CrmClient(editor).update_customer_safe, customer_id=other, user_id=admin, phone=phone
        )
        wait_for_lock(crm, editor, waiting)
        erase(CrmClient(eraser), customer, admin)
        eraser.execute("COMMIT")
        waiting.result(timeout=PATIENCE)
    found = client.create_lead_safe(source="site", full_name="Ivan", phone=phone)
    assert found.data["customer_id"] == str(other)
    assert broken_invariants(crm) == {}


def test_rows_of_an_older_audit_log_are_emptied(
    crm: Connection, client: CrmClient, customer: UUID, admin: UUID
) -> None:
    """A row that adoption carried over has the customer's data under columns of its own, and loses all of it."""
    crm.execute("ALTER TABLE public.audit_log DISABLE TRIGGER guard_rows")
    crm.execute(
        "INSERT INTO public.audit_log (actor_id, action, entity, entity_id, payload) VALUES"
        " (%s, 'adopted', 'Client', %s, '{\"adopted\": {\"before\": \"Olga Private\"}}')",
        [admin, customer],
    )
    crm.execute("ALTER TABLE public.audit_log ENABLE ALWAYS TRIGGER guard_rows")
    erase(client, customer, admin)
    assert value(crm, "SELECT payload FROM public.audit_log WHERE action = 'adopted'") == {
        "adopted": "[erased]"
    }
    assert "Olga Private" not in everything(crm)
    assert broken_invariants(crm) == {}


# -- the list --------------------------------------------------------------------------------------------


def test_every_column_that_could_hold_personal_data_is_classified(crm: Connection) -> None:
    """A new column of text or JSON fails here until somebody decides in data_classes() whether it is personal."""
    classified = rows(crm, "SELECT tab, col FROM crm_private.data_classes() ORDER BY 1, 2")
    assert len(classified) == len(set(classified))
    found = rows(
        crm,
        """
        SELECT c.relname::text, a.attname::text FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid
        JOIN pg_type t ON t.oid = a.atttypid
        WHERE c.relnamespace IN ('public'::regnamespace, 'crm_private'::regnamespace) AND c.relkind = 'r'
          AND a.attnum > 0 AND (t.typcategory IN ('S', 'A', 'I') OR t.typname IN ('jsonb', 'json', 'xml', 'bytea'))
        ORDER BY 1, 2
        """,
    )
    assert sorted(set(found) - set(classified)) == []
    assert sorted(set(classified) - set(found)) == []


def test_a_column_that_nobody_classified_is_found(crm: Connection) -> None:
    """The test above fails for a new text column; otherwise it would be a list that is compared with itself."""
    crm.execute("ALTER TABLE public.tasks ADD COLUMN remarks text")
    with pytest.raises(AssertionError, match="remarks"):
        test_every_column_that_could_hold_personal_data_is_classified(crm)


def test_every_key_of_a_payload_is_known(
    crm: Connection, client: CrmClient, customer: UUID, admin: UUID
) -> None:
    """What actions add to an audit row's payload is either erased or known to be harmless."""
    erase(client, customer, admin)
    keys = {key for (key,) in rows(crm, "SELECT DISTINCT jsonb_object_keys(payload) FROM public.audit_log")}
    erased = {"row", "changes", "notes", "reason"}
    harmless = {"old", "new", "payment_id", "order_id", "by", "audit_rows", "merged_into", "payout_limit"}
    assert erased <= keys <= erased | harmless


# -- damage ----------------------------------------------------------------------------------------------

DAMAGE = (
    ("erased_rows_are_registered", "UPDATE public.audit_positions SET salt = NULL WHERE position = 1"),
    ("erased_rows_are_registered", "UPDATE public.audit_log l SET payload = payload || '{\"new\": \"paid\"}' FROM public.audit_positions p WHERE p.audit_id = l.id AND p.salt IS NULL"),
    ("erased_rows_are_registered", "UPDATE public.audit_log l SET client_address = '203.0.113.9' FROM public.audit_positions p WHERE p.audit_id = l.id AND p.salt IS NULL"),
    ("erasures_hold", "UPDATE public.customers SET full_name = 'Olga' WHERE full_name = '[erased]'"),
    ("erasures_hold", "UPDATE public.customers SET phone = '5550100' WHERE full_name = '[erased]'"),
    ("erasures_hold", "DELETE FROM public.customer_erasures"),
    ("erasures_hold", "UPDATE public.customer_erasures SET actor_id = (SELECT id FROM public.users WHERE name = 'Max')"),
    ("erasures_hold", "INSERT INTO public.customer_erasures (customer_id, actor_id) SELECT customer_id, actor_id FROM public.customer_erasures"),
)  # fmt: skip


@pytest.mark.parametrize(("name", "damage"), DAMAGE)
def test_the_exception_to_append_only_hides_nothing(
    crm: Connection, client: CrmClient, customer: UUID, admin: UUID, name: str, damage: str
) -> None:
    """What an erasure may do cannot be used to change an audit row unseen: its hash is in the erasure's own row."""
    erase(client, customer, admin)
    audit_seals.seal(crm)
    for table in ("audit_log", "audit_positions", "customer_erasures", "customers"):
        crm.execute(f"ALTER TABLE public.{table} DISABLE TRIGGER USER")
    assert crm.execute(damage.encode()).rowcount > 0
    assert name in broken_invariants(crm)
