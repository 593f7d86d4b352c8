"""Typed calls of the CRM's RPCs, by named arguments (the SQL names without `p_`)."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import date, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

import psycopg
from psycopg import sql
from psycopg.pq import TransactionStatus
from psycopg.types.json import Jsonb

from crm_analytics.crm.errors import from_database

Money = Decimal | int
Json = dict[str, Any] | list[Any]


@dataclass(frozen=True)
class CrmResult:
    """What an RPC returned: the id of the row concerned and the whole JSON object (numbers are Decimal or int)."""

    id: UUID
    data: dict[str, Any]

    @property
    def duplicate(self) -> bool:
        """Whether a payment or checkout was a repeat that changed nothing."""
        return bool(self.data.get("duplicate", False))


class CrmClient:
    """The RPCs on one connection. Rules and errors of each stand in its SQL comment and in docs/crm-rpc.md.

    Every call is a transaction of its own, or a savepoint if the connection is in a transaction; so a refused
    call leaves the connection usable and changes nothing.

    Raises (every call):
        Forbidden, NotFound, Conflict, Invalid: see crm_analytics.crm.errors.
        TypeError: for a float, because money is never one.
    """

    def __init__(self, connection: psycopg.Connection[Any]) -> None:
        self.connection = connection

    def resolve_crm_user(self, *, provider: str, external_id: str, email: str | None = None) -> CrmResult:
        """Finds the CRM user behind an identity: by the identity map, else by e-mail address, and then maps it."""
        return self._call("resolve_crm_user", locals())

    def create_lead_safe(
        self,
        *,
        source: str,
        full_name: str,
        phone: str | None = None,
        email: str | None = None,
        contact: str | None = None,
        country: str | None = None,
        preferred_channel: str | None = None,
        bike_url: str | None = None,
        bike_snapshot: Json | None = None,
        customer_comment: str | None = None,
        estimated_budget_eur: int | None = None,
        user_id: UUID | None = None,
    ) -> CrmResult:
        """Takes in a lead with status new, and finds or creates its customer."""
        return self._call("create_lead_safe", locals())

    def advance_lead_status_safe(
        self,
        *,
        lead_id: UUID,
        new_status: str,
        user_id: UUID | None,
        notes: str | None = None,
        assigned_to: UUID | None = None,
    ) -> CrmResult:
        """Moves a lead: new to in_progress or rejected, in_progress to rejected, rejected back to in_progress."""
        return self._call("advance_lead_status_safe", locals())

    def update_lead_safe(
        self,
        *,
        lead_id: UUID,
        user_id: UUID | None,
        source: str | None = None,
        contact: str | None = None,
        notes: str | None = None,
        customer_comment: str | None = None,
        bike_url: str | None = None,
        bike_snapshot: Json | None = None,
        estimated_budget_eur: int | None = None,
        assigned_to: UUID | None = None,
    ) -> CrmResult:
        """Changes a lead's source, contact, notes, comment, bike, budget or assignee; never its status."""
        return self._call("update_lead_safe", locals())

    def create_order_safe(
        self,
        *,
        customer_id: UUID | None,
        lead_id: UUID | None = None,
        items: Json | None = None,
        total_amount: Money | None = None,
        currency: str | None = None,
        user_id: UUID | None = None,
        order_code: str | None = None,
        bike_url: str | None = None,
        bike_snapshot: Json | None = None,
        commission_eur: Money | None = None,
        assigned_manager: UUID | None = None,
    ) -> CrmResult:
        """Creates an order with status created and its first event, from a lead or for a customer."""
        return self._call("create_order_safe", locals())

    def quick_order_safe(
        self,
        *,
        source: str,
        full_name: str,
        items: Json,
        total_amount: Money,
        currency: str,
        phone: str | None = None,
        email: str | None = None,
        contact: str | None = None,
        country: str | None = None,
        preferred_channel: str | None = None,
        bike_url: str | None = None,
        bike_snapshot: Json | None = None,
        customer_comment: str | None = None,
        user_id: UUID | None = None,
    ) -> CrmResult:
        """A guest's order in one call: lead, customer (found or created) and order, all or nothing."""
        return self._call("quick_order_safe", locals())

    def checkout_order_safe(
        self,
        *,
        customer_id: UUID | None,
        items: Json,
        total_amount: Money,
        currency: str,
        method: str,
        external_reference: str | None,
        user_id: UUID | None,
        lead_id: UUID | None = None,
    ) -> CrmResult:
        """Creates an order and books the client's completed payment of its total, all or nothing; the order ends paid."""
        return self._call("checkout_order_safe", locals())

    def update_order_safe(
        self,
        *,
        order_id: UUID,
        user_id: UUID | None,
        assigned_manager: UUID | None = None,
        items: Json | None = None,
        bike_url: str | None = None,
        bike_snapshot: Json | None = None,
        commission_eur: Money | None = None,
        total_amount: Money | None = None,
        currency: str | None = None,
    ) -> CrmResult:
        """Changes an order's manager, items, bike, commission, total or currency; never its status."""
        return self._call("update_order_safe", locals())

    def advance_order_status_safe(
        self,
        *,
        order_id: UUID,
        new_status: str,
        user_id: UUID | None,
        reason: str | None = None,
        notes: str | None = None,
    ) -> CrmResult:
        """Moves an order to another status, with event and audit."""
        return self._call("advance_order_status_safe", locals())

    def record_generic_payment_safe(
        self,
        *,
        order_id: UUID,
        direction: str,
        role: str,
        method: str,
        amount: Money,
        currency: str,
        status: str | None = None,
        external_reference: str | None = None,
        related_payment_id: UUID | None = None,
        user_id: UUID | None = None,
    ) -> CrmResult:
        """Books a payment of an order, in or out, once per external reference, and moves the order as its client money says."""
        return self._call("record_generic_payment_safe", locals())

    def update_payment_status_safe(
        self,
        *,
        payment_id: UUID,
        new_status: str,
        user_id: UUID | None,
        external_reference: str | None = None,
    ) -> CrmResult:
        """Moves a payment: planned to pending, planned or pending to completed, failed or cancelled."""
        return self._call("update_payment_status_safe", locals())

    def attach_document_safe(
        self,
        *,
        document_type: str,
        storage_url: str,
        uploaded_by: UUID,
        order_id: UUID | None = None,
        lead_id: UUID | None = None,
    ) -> CrmResult:
        """Attaches an uploaded file to an order or a lead."""
        return self._call("attach_document_safe", locals())

    def create_task_safe(
        self,
        *,
        title: str,
        created_by: UUID,
        order_id: UUID | None = None,
        lead_id: UUID | None = None,
        description: str | None = None,
        assignee_id: UUID | None = None,
        due_at: datetime | None = None,
    ) -> CrmResult:
        """Creates an open task, for an order, a lead or neither."""
        return self._call("create_task_safe", locals())

    def update_task_safe(
        self,
        *,
        task_id: UUID,
        user_id: UUID | None,
        completed: bool | None = None,
        title: str | None = None,
        description: str | None = None,
        assignee_id: UUID | None = None,
        due_at: datetime | None = None,
    ) -> CrmResult:
        """Completes, reopens or changes a task."""
        return self._call("update_task_safe", locals())

    def upsert_shipment_safe(
        self,
        *,
        order_id: UUID,
        user_id: UUID | None,
        shipment_id: UUID | None = None,
        provider: str | None = None,
        tracking_number: str | None = None,
        status: str | None = None,
        estimated_delivery_date: date | None = None,
        warehouse_received: bool | None = None,
        warehouse_photos_received: bool | None = None,
        client_received: bool | None = None,
    ) -> CrmResult:
        """Creates a shipment of an order or changes one."""
        return self._call("upsert_shipment_safe", locals())

    def update_customer_safe(
        self,
        *,
        customer_id: UUID,
        user_id: UUID | None,
        full_name: str | None = None,
        phone: str | None = None,
        email: str | None = None,
        preferred_channel: str | None = None,
        country: str | None = None,
        billing_address: dict[str, Any] | None = None,
        delivery_details: dict[str, Any] | None = None,
    ) -> CrmResult:
        """Changes a customer's name, contacts and addresses."""
        return self._call("update_customer_safe", locals())

    def create_user_safe(self, *, name: str, email: str, role: str, user_id: UUID | None) -> CrmResult:
        """Creates an active CRM user."""
        return self._call("create_user_safe", locals())

    def set_user_active_safe(self, *, crm_user_id: UUID, active: bool, user_id: UUID | None) -> CrmResult:
        """Activates or deactivates a CRM user."""
        return self._call("set_user_active_safe", locals())

    def map_identity_safe(
        self, *, provider: str, external_id: str, crm_user_id: UUID, user_id: UUID | None
    ) -> CrmResult:
        """Maps an identity provider's account to a CRM user."""
        return self._call("map_identity_safe", locals())

    def _call(self, function: str, arguments: dict[str, Any]) -> CrmResult:
        values = {name: _adapted(name, value) for name, value in arguments.items() if name != "self"}
        named = sql.SQL(", ").join(
            sql.SQL("{} => {}").format(sql.Identifier(f"p_{name}"), sql.Placeholder(name)) for name in values
        )
        query = sql.SQL("SELECT {}({})::pg_catalog.text").format(sql.Identifier("public", function), named)
        connection = self.connection
        try:
            if connection.autocommit and connection.info.transaction_status == TransactionStatus.IDLE:
                row = connection.execute(query, values).fetchone()
            else:
                with connection.transaction():
                    row = connection.execute(query, values).fetchone()
        except psycopg.Error as error:
            known = from_database(error)
            if known is None:
                raise
            raise known from error
        assert row is not None
        data = json.loads(row[0], parse_float=Decimal)
        return CrmResult(UUID(data["id"]), data)


def _adapted(name: str, value: Any) -> Any:
    if isinstance(value, float):
        raise TypeError(f"{name}: {value!r} is a float; pass a Decimal, e.g. Decimal('12.50')")
    return Jsonb(value) if isinstance(value, dict | list) else value
