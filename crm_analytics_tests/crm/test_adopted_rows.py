"""RPCs on adopted rows, which have values that no RPC would write."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from decimal import Decimal
from uuid import UUID

import psycopg
import pytest

from crm_analytics.crm import Conflict, CrmClient, Forbidden
from crm_analytics.crm.migrating.migrate import migrate_crm
from crm_analytics.crm.proof import invariants
from crm_analytics_tests.crm.conftest import Connection, add_user, broken_invariants, rows, value
from crm_analytics_tests.crm.test_adoption import SEED_SCHEMA

Adopt = Callable[..., Connection]


@pytest.fixture
def adopt(new_database: Callable[..., str]) -> Iterator[Adopt]:
    """Fills a database made from production's DDL, adopts it, and connects to it."""
    with ExitStack() as stack:

        def run(fill: str, report: Callable[[str], None] = lambda line: None) -> Connection:
            url = new_database()
            with psycopg.connect(url, autocommit=True) as connection:
                connection.execute(SEED_SCHEMA)
                connection.execute(fill.encode())
            migrate_crm(url=url, report=report)
            return stack.enter_context(psycopg.connect(url, autocommit=True))

        yield run


def order_id(connection: Connection, code: str) -> UUID:
    return value(connection, "SELECT id FROM public.orders WHERE order_code = %s", code)


PENDING = """
INSERT INTO public.orders (id, order_code, final_price_eur) VALUES (md5('a')::uuid, 'A', 100);
INSERT INTO public.payments (order_id, direction, role, method, amount, currency, status, external_reference, created_at)
SELECT md5('a')::uuid, 'incoming', 'client_payment', 'card', 10, 'EUR', p.status::public.payment_status_enum, p.reference, p.at::timestamptz
FROM (VALUES {}) AS p (status, reference, at)
"""


@pytest.mark.parametrize("blank", ["''", "'  '", "NULL"])
def test_blank_reference_is_filled_in(adopt: Adopt, blank: str) -> None:
    """Completing an old payment that has no reference stores the given one; else it could be booked a second time."""
    connection = adopt(PENDING.format(f"('planned', {blank}, '2020-01-01')"))
    client, manager = CrmClient(connection), add_user(connection, "Max")
    client.update_payment_status_safe(
        payment_id=value(connection, "SELECT id FROM public.payments"),
        new_status="completed",
        user_id=manager,
        external_reference=" R-777 ",
    )
    assert rows(connection, "SELECT external_reference, reference_key FROM public.payments") == [
        ("R-777", "R-777")
    ]
    again = client.record_generic_payment_safe(
        order_id=order_id(connection, "A"), direction="incoming", role="client_payment", method="card", amount=10,
        currency="EUR", external_reference="R-777", user_id=manager,
    )  # fmt: skip
    assert again.duplicate


def test_duplicate_of_a_reference_is_not_completed(adopt: Adopt) -> None:
    """Of two old payments with one reference, only the holder completes; else one payment would count twice."""
    connection = adopt(
        PENDING.format("('completed', 'DUP', '2020-01-01'), ('planned', ' DUP ', '2020-01-02')")
    )
    client, manager = CrmClient(connection), add_user(connection, "Max")
    first, second = (row[0] for row in rows(connection, "SELECT id FROM public.payments ORDER BY created_at"))
    client.update_payment_status_safe(payment_id=second, new_status="pending", user_id=manager)
    for reference in (None, "DUP"):
        with pytest.raises(Conflict) as refused:
            client.update_payment_status_safe(
                payment_id=second, new_status="completed", user_id=manager, external_reference=reference
            )
        assert refused.value.detail == {
            "rule": "reference_taken", "field": "external_reference", "found": "DUP", "accepted": None,
            "id": str(first),
        }  # fmt: skip
    client.update_payment_status_safe(payment_id=second, new_status="cancelled", user_id=manager)


def test_a_completed_duplicate_breaks_an_invariant(adopt: Adopt) -> None:
    """The invariants notice two completed payments with one reference; else a faulty RPC could complete both unseen."""
    connection = adopt(
        PENDING.format("('completed', 'DUP', '2020-01-01'), ('planned', ' DUP ', '2020-01-02')")
    )
    only = frozenset({"references_are_unique"})
    assert invariants.check(connection, only)["references_are_unique"].holds
    connection.execute(
        "ALTER TABLE public.payments DISABLE TRIGGER guard_rows; ALTER TABLE public.audit_log DISABLE TRIGGER guard_rows;"
        "UPDATE public.payments SET status = 'completed' WHERE status = 'planned';"
        "INSERT INTO public.audit_log (action, entity, entity_id, payload)"
        " SELECT 'status_change', 'payments', id, jsonb_build_object('old', 'planned', 'new', status)"
        " FROM public.payments WHERE reference_key IS NULL"
    )
    assert invariants.check(connection, only)["references_are_unique"].offenders == 1


@pytest.mark.parametrize(("price", "currency"), [("NULL", "EUR"), ("100", "RUB")])
def test_cancelling_counts_client_money_in_every_currency(adopt: Adopt, price: str, currency: str) -> None:
    """Cancelling counts client money in every currency; else a manager could cancel an old order that was paid in another."""
    connection = adopt(
        f"""
        INSERT INTO public.orders (id, order_code, final_price_eur) VALUES (md5('a')::uuid, 'A', {price}), (md5('b')::uuid, 'B', {price});
        INSERT INTO public.payments (order_id, direction, role, method, amount, currency, status) VALUES
          (md5('a')::uuid, 'incoming', 'client_payment', 'cash', 500, '{currency}', 'completed'),
          (md5('a')::uuid, 'outgoing', 'refund', 'cash', 500, 'GBP', 'completed'),
          (md5('b')::uuid, 'incoming', 'client_payment', 'cash', 500, '{currency}', 'completed'),
          (md5('b')::uuid, 'outgoing', 'refund', 'cash', 500, '{currency}', 'completed'),
          (md5('b')::uuid, 'incoming', 'client_payment', 'cash', 7, '{currency}', 'planned'),
          (md5('b')::uuid, 'incoming', 'client_payment', 'cash', 'NaN', '{currency}', 'completed')
        """
    )
    client, manager = CrmClient(connection), add_user(connection, "Max")
    admin = add_user(connection, "Ada", "admin")
    with pytest.raises(Forbidden) as refused:
        client.advance_order_status_safe(
            order_id=order_id(connection, "A"), new_status="cancelled", user_id=manager
        )
    assert refused.value.detail["rule"] == "role"
    client.advance_order_status_safe(
        order_id=order_id(connection, "A"), new_status="cancelled", user_id=admin
    )
    client.advance_order_status_safe(
        order_id=order_id(connection, "B"), new_status="cancelled", user_id=manager
    )


@pytest.mark.parametrize("column", ["final_price_eur", "total_amount"])
def test_the_price_nan_gives_no_total(adopt: Adopt, column: str) -> None:
    """An old order with the price NaN is adopted without a total, and gets one later; no payment ever reaches NaN."""
    lines: list[str] = []
    connection = adopt(
        f"""
        ALTER TABLE public.orders ADD COLUMN total_amount numeric(12, 2), ADD COLUMN currency public.currency_enum;
        INSERT INTO public.orders (id, order_code, currency, {column}) VALUES (md5('a')::uuid, 'A', 'EUR', 'NaN'), (md5('b')::uuid, 'B', NULL, 'NaN');
        INSERT INTO public.payments (order_id, direction, role, method, amount, currency, status)
        VALUES (md5('a')::uuid, 'incoming', 'client_payment', 'cash', 40, 'EUR', 'completed')
        """,
        lines.append,
    )
    client, manager = CrmClient(connection), add_user(connection, "Max")
    order = order_id(connection, "A")
    if column == "final_price_eur":
        assert rows(connection, "SELECT DISTINCT total_amount FROM public.orders") == [(None,)]
        assert [line for line in lines if line.startswith("2 orders with the price NaN")]
    with pytest.raises(Conflict) as refused:  # the row lacks a currency: a conflict, not a wrong argument
        client.update_order_safe(order_id=order_id(connection, "B"), user_id=manager, total_amount=100)
    assert (refused.value.detail["rule"], refused.value.detail["field"]) == ("currency", "p_currency")
    with pytest.raises(Forbidden):  # it has client money, so a manager cannot choose what it costs
        client.update_order_safe(order_id=order, user_id=manager, total_amount=100, currency="EUR")
    admin = add_user(connection, "Ada", "admin")
    client.update_order_safe(
        order_id=order, user_id=admin, total_amount=100, currency="EUR", reason="from the contract"
    )
    paid = client.record_generic_payment_safe(
        order_id=order, direction="incoming", role="client_payment", method="cash", amount=60, currency="EUR",
        user_id=manager,
    )  # fmt: skip
    assert (paid.data["order_status"], paid.data["overpaid"]) == ("paid", Decimal(0))


def test_adopted_customers_who_share_a_contact(adopt: Adopt) -> None:
    """Of old customers with one phone the oldest has it, the others are reported, stay editable, and can be merged."""
    lines: list[str] = []
    connection = adopt(
        """
        INSERT INTO public.customers (id, full_name, phone, email, created_at) VALUES
            (md5('new')::uuid, 'New', '8 (916) 555-01-23', 'new@example.com', '2021-01-01'),
            (md5('old')::uuid, 'Old', '+7 916 555 01 23', ' Old@example.com', '2020-01-01'),
            (md5('odd')::uuid, 'Odd', '-', 'no address', '2019-01-01'),
            (md5('inside')::uuid, 'Inside', NULL, U&'a\\200Bb@example.com', '2019-01-01'),
            (md5('end')::uuid, 'End', NULL, U&'End@example.com\\200B', '2019-01-01')
        """,
        lines.append,
    )
    new, old, end = (value(connection, "SELECT md5(%s)::uuid", name) for name in ("new", "old", "end"))
    assert rows(connection, "SELECT kind, key, customer_id FROM public.customer_contacts ORDER BY 1, 2") == [
        ("email", "end@example.com", end), ("email", "new@example.com", new), ("email", "old@example.com", old),
        ("phone", "79165550123", old),
    ]  # fmt: skip
    assert [line for line in lines if line.startswith("1 customer with a phone") and str(new) in line]
    client, manager = CrmClient(connection), add_user(connection, "Max")
    admin = add_user(connection, "Ada", "admin")
    client.update_customer_safe(customer_id=new, user_id=manager, phone="8 (916) 555-01-23", country="RU")
    found = client.create_lead_safe(source="site", full_name="New", phone="8 916 5550123")
    assert found.data["customer_id"] == str(old)
    assert broken_invariants(connection) == {}
    client.merge_customers_safe(customer_id=new, merged_into=old, user_id=admin, reason="one person")
    assert invariants.check(connection)["contacts_agree_with_customers"].holds


def test_unusable_references_and_numbers_are_reported(adopt: Adopt) -> None:
    """Old references and numbers that no call would accept keep no key, are reported, and book nothing twice."""
    lines: list[str] = []
    connection = adopt(
        PENDING.format(
            "('planned', U&'IN\\200BV', '2020-01-01'), ('completed', 'two  spaces', '2020-01-02'),"
            " ('completed', U&'INV\\00A0', '2020-01-03'), ('planned', 'INV', '2020-01-04')"
        )
        + """;
        INSERT INTO public.orders (order_code, created_at) VALUES
            ('b1', '2020-01-02'), ('B1', '2020-01-01'), (U&'c\\00AD1', '2020-01-01'), (' ', '2020-01-01')
        """,
        lines.append,
    )
    assert rows(connection, "SELECT reference_key FROM public.payments ORDER BY created_at") == [
        (None,), (None,), ("INV",), (None,),
    ]  # fmt: skip
    assert dict(rows(connection, "SELECT order_code, order_code_key FROM public.orders")) == {
        "A": "a", "B1": "b1", "b1": None, "c\u00ad1": None, " ": None,
    }  # fmt: skip
    assert [line for line in lines if "stays NULL" in line] == [
        "1 payment with an older payment's external reference: reference_key stays NULL",
        "2 payments with white space or invisible characters inside the external reference: reference_key stays NULL",
        "3 orders with an older order's number (but for case and invisible characters), or an unusable one:"
        " order_code_key stays NULL: ' ', 'b1', 'c\\xad1'",
    ]
    assert broken_invariants(connection) == {}
    client, manager = CrmClient(connection), add_user(connection, "Max")
    unusable = value(connection, "SELECT id FROM public.payments ORDER BY created_at LIMIT 1")
    with pytest.raises(Conflict) as refused:
        client.update_payment_status_safe(payment_id=unusable, new_status="completed", user_id=manager)
    assert refused.value.detail == {
        "rule": "reference_unusable", "field": "external_reference", "found": "IN<U+200B>V", "accepted": None,
        "id": str(unusable),
    }  # fmt: skip
    client.update_payment_status_safe(payment_id=unusable, new_status="cancelled", user_id=manager)
    customer = client.create_lead_safe(source="site", full_name="Olga", phone="5550100").data["customer_id"]
    with pytest.raises(Conflict) as taken:
        client.create_order_safe(
            customer_id=UUID(customer), total_amount=1, currency="EUR", user_id=manager, order_code="b1"
        )
    assert taken.value.detail["id"] == str(order_id(connection, "B1"))
    # an old order without a key is worked on like any other
    client.update_order_safe(
        order_id=order_id(connection, "b1"), user_id=manager, bike_url="https://example.com/1"
    )
