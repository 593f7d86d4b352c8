"""The rules of the RPCs for documents: attached, replaced, withdrawn, and never forgotten."""

from __future__ import annotations

from typing import Any
from uuid import UUID, uuid4

import pytest

from crm_analytics.crm import Conflict, CrmClient, CrmResult, Forbidden, Invalid, NotFound
from crm_analytics_tests.crm.conftest import Connection, rows, value

pytestmark = pytest.mark.rolled_back


@pytest.fixture
def invoice(client: CrmClient, order: CrmResult, manager: UUID) -> CrmResult:
    """Attaches an invoice to the order."""
    return client.attach_document_safe(
        document_type="invoice", storage_url="orders/1/invoice.pdf", uploaded_by=manager, order_id=order.id
    )


def test_replaced_document_stays_as_history(
    crm: Connection, client: CrmClient, order: CrmResult, invoice: CrmResult, admin: UUID, manager: UUID
) -> None:
    """A replaced document keeps its row, and its successor names it and takes over order and type."""
    before = rows(crm, "SELECT to_jsonb(d) FROM public.documents d WHERE id = %s", invoice.id)
    new = client.replace_document_safe(
        document_id=invoice.id, storage_url="s3://files/2", user_id=admin, reason=" wrong sum "
    )
    assert new.data["replaces"] == str(invoice.id)
    assert rows(crm, "SELECT to_jsonb(d) FROM public.documents d WHERE id = %s", invoice.id) == before
    assert rows(
        crm,
        "SELECT order_id, type::text, file_url, uploaded_by, replaces, created_at = uploaded_at"
        " FROM public.documents WHERE id = %s",
        new.id,
    ) == [(order.id, "invoice", "s3://files/2", admin, invoice.id, True)]
    assert rows(
        crm,
        "SELECT actor_id, action, payload ->> 'reason' FROM public.audit_log WHERE entity_id = %s",
        new.id,
    ) == [(admin, "create", "wrong sum")]
    last = client.replace_document_safe(
        document_id=new.id, storage_url="s3://files/3", user_id=manager, document_type="contract"
    )
    assert value(crm, "SELECT type::text FROM public.documents WHERE id = %s", last.id) == "contract"


def test_document_of_a_lead_is_replaced_on_the_lead(
    crm: Connection, client: CrmClient, manager: UUID
) -> None:
    """The successor of a lead's document belongs to the lead."""
    lead = client.create_lead_safe(source="s", full_name="n", phone="555 0100")
    passport = client.attach_document_safe(
        document_type="passport", storage_url="a", uploaded_by=manager, lead_id=lead.id
    )
    new = client.replace_document_safe(document_id=passport.id, storage_url="b", user_id=manager)
    assert rows(crm, "SELECT order_id, lead_id FROM public.documents WHERE id = %s", new.id) == [
        (None, lead.id)
    ]


def test_withdrawn_document_stays_as_history(
    crm: Connection, client: CrmClient, invoice: CrmResult, manager: UUID
) -> None:
    """A withdrawn document keeps its row with the time, and the audit log keeps who did it and why."""
    client.withdraw_document_safe(document_id=invoice.id, user_id=manager, reason="another client's")
    assert value(crm, "SELECT withdrawn_at IS NOT NULL FROM public.documents WHERE id = %s", invoice.id)
    assert rows(
        crm,
        "SELECT actor_id, action, payload ->> 'reason', payload -> 'row' ->> 'withdrawn_at' IS NOT NULL"
        " FROM public.audit_log WHERE entity_id = %s ORDER BY id DESC LIMIT 1",
        invoice.id,
    ) == [(manager, "withdraw", "another client's", True)]


@pytest.mark.parametrize("first", ["replace", "withdraw"])
def test_document_that_no_longer_counts_is_left_alone(
    crm: Connection, client: CrmClient, invoice: CrmResult, manager: UUID, first: str
) -> None:
    """A replaced or withdrawn document can be neither replaced nor withdrawn again; its history would fork."""

    def replace() -> CrmResult:
        return client.replace_document_safe(document_id=invoice.id, storage_url="x", user_id=manager)

    def withdraw() -> CrmResult:
        return client.withdraw_document_safe(document_id=invoice.id, user_id=manager, reason="x")

    done = replace() if first == "replace" else withdraw()
    before = value(crm, "SELECT count(*) FROM public.audit_log")
    for call in (replace, withdraw):
        with pytest.raises(Conflict) as refused:
            call()
        assert refused.value.detail["rule"] == "document_over"
        assert refused.value.detail["replaced_by"] == (str(done.id) if first == "replace" else None)
        assert (refused.value.detail["withdrawn_at"] is None) == (first == "replace")
    assert value(crm, "SELECT count(*) FROM public.audit_log") == before


def test_refusals_of_document_calls(client: CrmClient, invoice: CrmResult, manager: UUID) -> None:
    """Unknown documents, people and types are refused, a blank reason and a missing id too."""
    good: dict[str, Any] = {"document_id": invoice.id, "storage_url": "x", "user_id": manager}
    for changed, error, field in (
        ({"user_id": None}, Forbidden, "p_user_id"),
        ({"document_id": None}, Invalid, "p_document_id"),
        ({"document_id": uuid4()}, NotFound, "p_document_id"),
        ({"storage_url": " "}, Invalid, "p_storage_url"),
        ({"document_type": "selfie"}, Invalid, "p_document_type"),
    ):
        with pytest.raises(error) as refused:
            client.replace_document_safe(**{**good, **changed})
        assert refused.value.detail["field"] == field
    with pytest.raises(Invalid) as refused:
        client.withdraw_document_safe(document_id=invoice.id, user_id=manager, reason=" ")
    assert refused.value.detail["field"] == "p_reason"
