"""Two connections at once: whichever wins, the rows end as if the calls had come one after the other."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any
from uuid import UUID

import psycopg
import pytest
from psycopg import errors

from crm_analytics.crm import Conflict, CrmClient, CrmError, CrmResult, Forbidden
from crm_analytics.crm.proof import invariants
from crm_analytics_tests.conftest import PATIENCE
from crm_analytics_tests.crm.conftest import Connection, broken_invariants, pay, rows, value

Call = Callable[[CrmClient], CrmResult]


class Pair:
    """Two more connections, and the ways in which two calls can meet."""

    def __init__(self, url: str, pool: ThreadPoolExecutor) -> None:
        self.first = psycopg.connect(url, autocommit=True)
        self.second = psycopg.connect(url, autocommit=True)
        self.watcher = psycopg.connect(url, autocommit=True)
        self.pool = pool

    def close(self) -> None:
        for connection in (self.first, self.second, self.watcher):
            connection.close()

    def at_once(self, *calls: Call) -> list[CrmResult | CrmError]:
        """Runs each call on a connection of its own; one barrier releases them together."""
        barrier = threading.Barrier(len(calls))

        def run(connection: Connection, call: Call) -> CrmResult | CrmError:
            barrier.wait()
            try:
                return call(CrmClient(connection))
            except CrmError as refused:
                return refused

        futures = [
            self.pool.submit(run, connection, call)
            for connection, call in zip((self.first, self.second), calls, strict=True)
        ]
        return [future.result(timeout=PATIENCE) for future in futures]

    def waits(self, first: Call, second: Call) -> tuple[CrmResult, Callable[[str], CrmResult]]:
        """Runs `first` in an open transaction and `second` beside it, which must wait for it.

        Returns the first result, and how to end the first transaction (COMMIT or ROLLBACK) and get the second.
        """
        self.first.execute("BEGIN")
        result = first(CrmClient(self.first))
        future: Future[CrmResult] = self.pool.submit(second, CrmClient(self.second))
        self.blocked(self.second)

        def end(how: str) -> CrmResult:
            assert not future.done()
            self.first.execute(how.encode())
            return future.result(timeout=PATIENCE)

        return result, end

    def blocked(self, connection: Connection) -> None:
        """Returns once the connection waits for a lock; fails if it does not within PATIENCE."""
        pid, deadline = connection.info.backend_pid, time.monotonic() + PATIENCE
        while not value(self.watcher, "SELECT cardinality(pg_blocking_pids(%s)) > 0", pid):
            assert time.monotonic() < deadline, "the second call did not wait for the first"
            time.sleep(0.005)


@pytest.fixture
def pair(crm_url: str) -> Iterator[Pair]:
    with ThreadPoolExecutor(4) as pool:
        pair = Pair(crm_url, pool)
        yield pair
        pair.close()


def quick(client: CrmClient, manager: UUID, **changed: Any) -> CrmResult:
    arguments: dict[str, Any] = {
        "source": "site", "full_name": "Olga", "items": [], "total_amount": 100, "currency": "EUR",
        "phone": "+1 555 010 0100", "user_id": manager,
    }  # fmt: skip
    return client.quick_order_safe(**{**arguments, **changed})


def test_same_reference_on_one_order(crm: Connection, pair: Pair, order: CrmResult, manager: UUID) -> None:
    """A provider's message delivered twice at once is booked once and answered twice; the order's lock does it."""
    for number in range(10):
        results = pair.at_once(*[lambda c, n=number: pay(c, order, manager, 5, f"r-{n}")] * 2)
        assert sorted(isinstance(r, CrmResult) and r.duplicate for r in results) == [False, True]
        assert len({r.id for r in results if isinstance(r, CrmResult)}) == 1
    assert value(crm, "SELECT count(*) FROM public.payments") == 10


def test_same_reference_on_two_orders(
    crm: Connection, pair: Pair, client: CrmClient, order: CrmResult, manager: UUID
) -> None:
    """One reference pays one of two orders, and the other call gets a conflict: unique key, then a separate SELECT."""
    other = quick(client, manager, phone="555 0999")
    first, end = pair.waits(
        lambda c: pay(c, order, manager, 5, "r-1"), lambda c: pay(c, other, manager, 5, "r-1")
    )
    with pytest.raises(Conflict) as refused:
        end("COMMIT")
    assert (refused.value.detail["field"], refused.value.detail["id"]) == ("order_id", str(first.id))
    assert value(crm, "SELECT count(*) FROM public.payments") == 1
    _, end = pair.waits(
        lambda c: pay(c, order, manager, 5, "r-2"), lambda c: pay(c, other, manager, 5, "r-2")
    )
    assert not end("ROLLBACK").duplicate


def test_payout_against_refund(
    crm: Connection, pair: Pair, client: CrmClient, order: CrmResult, manager: UUID, admin: UUID
) -> None:
    """A payout does not see the money that a refund is taking back; the order's lock keeps them apart."""
    pay(client, order, manager, 100)
    _, end = pair.waits(
        lambda c: pay(c, order, admin, 100, direction="outgoing", role="refund"),
        lambda c: pay(c, order, manager, 1, direction="outgoing", role="supplier_payment"),
    )
    with pytest.raises(Conflict) as refused:
        end("COMMIT")
    assert refused.value.detail["rule"] == "payout_after_payment"
    assert value(crm, "SELECT count(*) FROM public.payments") == 2


def test_two_refunds(
    crm: Connection, pair: Pair, client: CrmClient, order: CrmResult, manager: UUID, admin: UUID
) -> None:
    """Two refunds at once pay back no more than came in; the order's lock keeps them apart."""
    pay(client, order, manager, 100)
    results = pair.at_once(*[lambda c: pay(c, order, admin, 60, direction="outgoing", role="refund")] * 2)
    assert sorted(type(r).__name__ for r in results) == ["Conflict", "CrmResult"]
    assert value(crm, "SELECT sum(amount) FROM public.payments WHERE role = 'refund'") == 60


def test_two_part_payments_pay_the_order(
    crm: Connection, pair: Pair, order: CrmResult, manager: UUID
) -> None:
    """Two part payments at once make the order paid; without its lock neither would see the other."""
    results = pair.at_once(*[lambda c: pay(c, order, manager, 500)] * 2)
    assert sorted(r.data["order_status"] for r in results if isinstance(r, CrmResult)) == [
        "awaiting_payment",
        "paid",
    ]
    assert rows(crm, "SELECT seq, new_status FROM public.order_status_events ORDER BY seq") == [
        (1, "created"), (2, "awaiting_payment"), (3, "paid"),
    ]  # fmt: skip


def test_double_advance(
    crm: Connection, pair: Pair, client: CrmClient, order: CrmResult, manager: UUID
) -> None:
    """A double click writes one event; without the order's lock there would be two, or two with one number."""
    pay(client, order, manager, 1000)

    def advance(c: CrmClient) -> CrmResult:
        return c.advance_order_status_safe(order_id=order.id, new_status="in_delivery", user_id=manager)

    _, end = pair.waits(advance, advance)
    with pytest.raises(Conflict) as refused:
        end("COMMIT")
    assert refused.value.detail["from"] == "in_delivery"
    assert rows(crm, "SELECT seq, new_status FROM public.order_status_events ORDER BY seq") == [
        (1, "created"), (2, "paid"), (3, "in_delivery"),
    ]  # fmt: skip


def test_payment_completed_twice(
    crm: Connection, pair: Pair, client: CrmClient, order: CrmResult, manager: UUID
) -> None:
    """A payment completed twice at once is read again behind the order's lock, so the second call sees the first."""
    payment = pay(client, order, manager, 10, "r-1", status="pending")

    def complete(c: CrmClient) -> CrmResult:
        return c.update_payment_status_safe(payment_id=payment.id, new_status="completed", user_id=manager)

    first, end = pair.waits(complete, complete)
    assert (first.duplicate, end("COMMIT").duplicate) == (False, True)
    assert (
        value(
            crm,
            "SELECT count(*) FROM public.audit_log WHERE action = 'status_change' AND entity = 'payments'",
        )
        == 1
    )


def test_cancelling_against_payment(crm: Connection, pair: Pair, order: CrmResult, manager: UUID) -> None:
    """A manager cannot cancel an order at the moment when money arrives; the order's lock decides who comes first."""
    _, end = pair.waits(
        lambda c: pay(c, order, manager, 10),
        lambda c: c.advance_order_status_safe(order_id=order.id, new_status="cancelled", user_id=manager),
    )
    with pytest.raises(Forbidden):
        end("COMMIT")
    assert value(crm, "SELECT status::text FROM public.orders") == "awaiting_payment"


@pytest.mark.parametrize(
    ("contact", "again"),
    [
        ({"phone": "8 916 555 01 00"}, {"phone": "+7 (916) 555-0100"}),
        ({"email": "New@example.com"}, {"email": "new@example.com "}),
        ({"contact": "@Olga"}, {"contact": "https://t.me/olga"}),
    ],
)
def test_double_customer(crm: Connection, pair: Pair, contact: dict[str, Any], again: dict[str, Any]) -> None:
    """A form sent twice at once makes one customer; the unique key of customer_contacts does it."""
    first, end = pair.waits(
        lambda c: c.create_lead_safe(source="site", full_name="Olga", **contact),
        lambda c: c.create_lead_safe(source="site", full_name="Olga", **again),
    )
    assert end("COMMIT").data["customer_id"] == first.data["customer_id"]
    assert value(crm, "SELECT count(*) FROM public.customers") == 1


def test_lead_converted_twice(crm: Connection, pair: Pair, client: CrmClient, manager: UUID) -> None:
    """Two operators make one order from one lead; the lead's lock does it."""
    lead = client.create_lead_safe(source="site", full_name="Olga", phone="555 0100")

    def convert(c: CrmClient) -> CrmResult:
        return c.create_order_safe(
            customer_id=None, lead_id=lead.id, total_amount=1, currency="EUR", user_id=manager
        )

    results = pair.at_once(convert, convert)
    assert sorted(type(r).__name__ for r in results) == ["Conflict", "CrmResult"]
    assert value(crm, "SELECT count(*) FROM public.orders") == 1


@pytest.mark.parametrize("of", ["customer", "lead"])
def test_checkout_twice(crm: Connection, pair: Pair, client: CrmClient, manager: UUID, of: str) -> None:
    """A shop's repeated checkout leaves one paid order: both meet at the unique reference, or at the lead before."""
    lead = client.create_lead_safe(source="s", full_name="n", phone="555 0100")
    whose: dict[str, Any] = {"customer_id": None, "lead_id": lead.id}
    if of == "customer":
        whose = {"customer_id": UUID(lead.data["customer_id"])}

    def checkout(c: CrmClient) -> CrmResult:
        return c.checkout_order_safe(
            **whose, items=[], total_amount=10, currency="EUR", method="card", external_reference="c-1",
            user_id=manager,
        )  # fmt: skip

    first, end = pair.waits(checkout, checkout)
    second = end("COMMIT")
    assert (second.id, second.duplicate) == (first.id, True)
    assert value(crm, "SELECT count(*) FROM public.orders") == 1


def test_same_idempotency_key(crm: Connection, pair: Pair, client: CrmClient, manager: UUID) -> None:
    """Two calls with one idempotency key make one row: the second waits at the key, and returns the first one's row."""

    def order(c: CrmClient) -> CrmResult:
        return quick(c, manager, idempotency_key="k-1")

    first, end = pair.waits(order, order)
    second = end("COMMIT")
    assert (second.id, second.duplicate) == (first.id, True)
    assert value(crm, "SELECT count(*) FROM public.orders") == 1

    # a first call that is undone leaves no claim
    def other(c: CrmClient) -> CrmResult:
        return quick(c, manager, idempotency_key="k-2")

    undone, end = pair.waits(other, other)
    done = end("ROLLBACK")
    assert (done.duplicate, done.id != undone.id) == (False, True)


def test_payments_rebooked_crosswise(
    crm: Connection, pair: Pair, client: CrmClient, order: CrmResult, admin: UUID
) -> None:
    """Two payments booked on each other's order are exchanged by two calls at once, without a deadlock."""
    other = quick(client, admin, phone="555 0999")
    one, two = pay(client, order, admin, 5, "r-1"), pay(client, other, admin, 7, "r-2")
    results = pair.at_once(
        lambda c: c.reverse_payment_safe(
            payment_id=one.id, reason="x", user_id=admin, rebook_order_id=other.id
        ),
        lambda c: c.reverse_payment_safe(
            payment_id=two.id, reason="x", user_id=admin, rebook_order_id=order.id
        ),
    )
    assert all(isinstance(r, CrmResult) for r in results)
    assert dict(rows(crm, "SELECT reference_key, order_id FROM public.payments WHERE reference_key IS NOT NULL")) == {
        "r-1": other.id, "r-2": order.id,
    }  # fmt: skip


def test_payment_reversed_twice(
    crm: Connection, pair: Pair, client: CrmClient, order: CrmResult, admin: UUID
) -> None:
    """A payment reversed twice at once is reversed once; the order's lock does it."""
    payment = pay(client, order, admin, 10)
    results = pair.at_once(
        *[lambda c: c.reverse_payment_safe(payment_id=payment.id, reason="x", user_id=admin)] * 2
    )
    assert sorted(isinstance(r, CrmResult) and r.duplicate for r in results) == [False, True]
    assert value(crm, "SELECT count(*) FROM public.payments") == 2


def test_lower_total_against_payout(
    crm: Connection, pair: Pair, client: CrmClient, order: CrmResult, manager: UUID, admin: UUID
) -> None:
    """A total is not lowered below a payout that is being booked; the order's lock keeps them apart."""
    pay(client, order, manager, 600)
    _, end = pair.waits(
        lambda c: pay(c, order, manager, 500, direction="outgoing", role="supplier_payment"),
        lambda c: c.update_order_safe(order_id=order.id, user_id=admin, total_amount=400, reason="x"),
    )
    with pytest.raises(Conflict) as refused:
        end("COMMIT")
    assert refused.value.detail["rule"] == "total_after_payment"


def test_same_order_number(crm: Connection, pair: Pair, client: CrmClient, manager: UUID) -> None:
    """The second of two equal order numbers is a Conflict, not a bare database error."""
    customer = UUID(client.create_lead_safe(source="s", full_name="n", phone="555 0100").data["customer_id"])

    def create(c: CrmClient) -> CrmResult:
        return c.create_order_safe(
            customer_id=customer, total_amount=1, currency="EUR", user_id=manager, order_code="X-1"
        )

    results = pair.at_once(create, create)
    assert sorted(type(r).__name__ for r in results) == ["Conflict", "CrmResult"]
    assert [r.detail["rule"] for r in results if isinstance(r, CrmError)] == ["unique_order_code"]


def test_same_parcel_twice(crm: Connection, pair: Pair, order: CrmResult, manager: UUID) -> None:
    """A carrier's message delivered twice at once makes one shipment; the order's lock does it."""
    results = pair.at_once(
        *[lambda c: c.upsert_shipment_safe(order_id=order.id, user_id=manager, tracking_number="T-1")] * 2
    )
    assert len({r.id for r in results if isinstance(r, CrmResult)}) == 1


def test_identity_mapped_twice(crm: Connection, pair: Pair, manager: UUID) -> None:
    """Two first requests of one person at once both succeed; ON CONFLICT does it."""
    results = pair.at_once(
        *[lambda c: c.resolve_crm_user(provider="auth", external_id="1", email="max@example.com")] * 2
    )
    assert [r.id for r in results if isinstance(r, CrmResult)] == [manager, manager]
    assert value(crm, "SELECT count(*) FROM public.audit_log WHERE action = 'map_identity'") == 1


@pytest.mark.parametrize("how", ["deactivate", "demote", "one of each"])
def test_admins_who_take_each_others_rights(
    crm: Connection, pair: Pair, admin: UUID, manager: UUID, how: str
) -> None:
    """Two admins cannot take each other's rights at once, and don't deadlock; no one could create users any more."""

    def take(user: UUID, by: UUID, demote: bool) -> Call:
        if demote:
            return lambda c: c.set_user_role_safe(crm_user_id=user, role="manager", user_id=by)
        return lambda c: c.set_user_active_safe(crm_user_id=user, active=False, user_id=by)

    for _ in range(10):
        crm.execute("UPDATE public.users SET role = 'admin', active = true WHERE name <> 'system'")
        results = pair.at_once(
            take(manager, admin, how == "demote"), take(admin, manager, how != "deactivate")
        )
        assert sorted(type(r).__name__ for r in results) == ["CrmResult", "Forbidden"]
        assert value(crm, "SELECT count(*) FROM public.users WHERE active AND role = 'admin'") == 1


def test_work_for_a_user_who_is_being_deactivated(
    crm: Connection, pair: Pair, admin: UUID, manager: UUID
) -> None:
    """Nobody gets work while being deactivated; the assignee's lock does it."""
    _, end = pair.waits(
        lambda c: c.set_user_active_safe(crm_user_id=manager, active=False, user_id=admin),
        lambda c: c.create_task_safe(title="t", created_by=admin, assignee_id=manager),
    )
    with pytest.raises(Conflict) as refused:
        end("COMMIT")
    assert refused.value.detail["rule"] == "assignee"


def test_an_admins_own_calls_do_not_deadlock(crm: Connection, pair: Pair, admin: UUID, manager: UUID) -> None:
    """An admin who gives work to a user and deactivates that user at once waits for nobody but the user."""
    pair.first.execute("BEGIN")
    CrmClient(pair.first).create_task_safe(title="t", created_by=admin)
    deactivated = pair.pool.submit(
        lambda: CrmClient(pair.second).set_user_active_safe(crm_user_id=manager, active=False, user_id=admin)
    )
    assert deactivated.result(timeout=PATIENCE).data["active"] is False
    pair.first.execute("ROLLBACK")


@pytest.mark.parametrize("end_of_merge", ["COMMIT", "ROLLBACK"])
def test_calls_for_a_customer_who_is_being_merged(
    crm: Connection, pair: Pair, client: CrmClient, admin: UUID, manager: UUID, end_of_merge: str
) -> None:
    """Orders, leads and edits that name a customer who is being merged wait, and reach the one who remains."""

    def known(phone: str) -> UUID:
        return UUID(client.create_lead_safe(source="s", full_name="n", phone=phone).data["customer_id"])

    into = known("+1 202 555 0199")
    calls: list[tuple[Callable[[UUID], Call], str]] = [
        (lambda who: lambda c: c.create_order_safe(customer_id=who, total_amount=1, currency="EUR", user_id=manager), "customer_id"),
        (lambda who: lambda c: c.create_lead_safe(source="s", full_name="n", phone=phones[who], email="new@example.com"), "customer_id"),
        (lambda who: lambda c: c.update_customer_safe(customer_id=who, user_id=manager, email="edit@example.com"), "id"),
    ]  # fmt: skip
    phones = {known(f"+1 202 555 010{n}"): f"+1 202 555 010{n}" for n in range(len(calls))}
    for who, (call, field) in zip(phones, calls, strict=True):
        _, end = pair.waits(
            lambda c, who=who: c.merge_customers_safe(  # type: ignore[misc]
                customer_id=who, merged_into=into, user_id=admin, reason="r"
            ),
            call(who),
        )
        assert end(end_of_merge).data[field] == str(into if end_of_merge == "COMMIT" else who)
    assert broken_invariants(crm) == {}


def test_merges_that_cross(crm: Connection, pair: Pair, client: CrmClient, admin: UUID) -> None:
    """Two merges the other way round at once make one customer; both rows are locked in the order of their ids."""
    for n in range(10):
        a, b = (
            UUID(
                client.create_lead_safe(source="s", full_name="n", contact=f"@{name}_{n}").data["customer_id"]
            )
            for name in "ab"
        )
        results = pair.at_once(
            lambda c, a=a, b=b: c.merge_customers_safe(
                customer_id=a, merged_into=b, user_id=admin, reason="r"
            ),  # type: ignore[misc]
            lambda c, a=a, b=b: c.merge_customers_safe(
                customer_id=b, merged_into=a, user_id=admin, reason="r"
            ),  # type: ignore[misc]
        )
        assert sorted(isinstance(r, CrmResult) and r.duplicate for r in results) == [False, True]
        assert len({r.id for r in results if isinstance(r, CrmResult)}) == 1
    assert invariants.check(crm)["merged_customers_hold_nothing"].holds


def test_children_while_the_order_moves(
    crm: Connection, pair: Pair, client: CrmClient, order: CrmResult, manager: UUID
) -> None:
    """Payments, documents and tasks of one order at once do not deadlock: FOR NO KEY UPDATE comes first."""

    def work(kind: int) -> Call:
        def run(c: CrmClient) -> CrmResult:
            for n in range(15):
                if (n + kind) % 3 == 0:
                    result = pay(c, order, manager, 1, f"r-{kind}-{n}")
                elif (n + kind) % 3 == 1:
                    result = c.create_task_safe(title="t", created_by=manager, order_id=order.id)
                else:
                    result = c.attach_document_safe(
                        document_type="photo", storage_url="s3://x", uploaded_by=manager, order_id=order.id
                    )
            return result

        return run

    assert all(isinstance(r, CrmResult) for r in pair.at_once(work(0), work(1)))
    assert rows(
        crm, "SELECT (SELECT count(*) FROM public.payments), (SELECT count(*) FROM public.tasks)"
    ) == [(10, 10)]


def test_sealing_waits_for_no_writer_and_no_writer_for_it(
    crm: Connection, pair: Pair, order: CrmResult, manager: UUID
) -> None:
    """An open transaction delays nothing but its own rows, which get later positions; payments go on while sealing."""
    pair.first.execute("BEGIN")
    pay(CrmClient(pair.first), order, manager, 10)
    own = rows(
        pair.first,
        "SELECT max(id), min(id) FROM public.audit_log WHERE transaction_id = pg_current_xact_id()",
    )
    later = quick(CrmClient(crm), manager, phone="+1 555 010 0177")
    pair.second.execute("BEGIN; SET LOCAL lock_timeout = '1s'")
    sealed = value(pair.second, "SELECT crm_private.seal_audit_safe()")
    assert sealed["row_count"] > 0
    with crm.transaction():
        crm.execute("SET LOCAL lock_timeout = '1s'")
        pay(CrmClient(crm), later, manager, 10)
    pair.second.execute("COMMIT")
    pair.first.execute("COMMIT")
    assert (
        value(pair.second, "SELECT crm_private.seal_audit_safe()")["row_count"]
        == value(crm, "SELECT max(position) FROM public.audit_positions") - sealed["last_position"]
    )
    assert value(
        crm, "SELECT min(position) > %s FROM public.audit_positions WHERE audit_id BETWEEN %s AND %s",
        sealed["last_position"], own[0][1], own[0][0],
    )  # fmt: skip
    assert rows(crm, "SELECT * FROM crm_private.broken_seals()") == []


def test_two_sealings(crm: Connection, pair: Pair, order: CrmResult, manager: UUID) -> None:
    """Two sealings at once write two seals in turn; the lock excludes itself."""
    pair.first.execute("BEGIN")
    first = value(pair.first, "SELECT crm_private.seal_audit_safe()")
    second = pair.pool.submit(lambda: value(pair.second, "SELECT crm_private.seal_audit_safe()"))
    pair.blocked(pair.second)
    pair.first.execute("COMMIT")
    assert second.result(timeout=PATIENCE) == {**first, "row_count": 0}


def test_two_replacements_of_one_document(
    pair: Pair, client: CrmClient, order: CrmResult, manager: UUID
) -> None:
    """Of two who replace a document at once, one succeeds, and the other is told by what it was replaced."""
    old = client.attach_document_safe(
        document_type="invoice", storage_url="1", uploaded_by=manager, order_id=order.id
    )
    new, end = pair.waits(
        *[lambda c: c.replace_document_safe(document_id=old.id, storage_url="2", user_id=manager)] * 2
    )
    with pytest.raises(Conflict) as refused:
        end("COMMIT")
    assert refused.value.detail["replaced_by"] == str(new.id)


def test_sealing_gives_up_behind_another(crm: Connection, pair: Pair, order: CrmResult) -> None:
    """Sealing gives up after its lock_timeout behind another one that hangs; the hourly job must end with an error."""
    assert value(crm, "SELECT proconfig::text FROM pg_proc WHERE proname = 'seal_audit_safe'").count(
        "lock_timeout=5s"
    )
    crm.execute("ALTER FUNCTION crm_private.seal_audit_safe() SET lock_timeout = '50ms'")
    pair.first.execute("BEGIN")
    pair.first.execute("SELECT crm_private.seal_audit_safe()")
    with pytest.raises(errors.LockNotAvailable):
        pair.second.execute("SELECT crm_private.seal_audit_safe()")
    pair.first.execute("ROLLBACK")
    pair.second.execute("SELECT crm_private.seal_audit_safe()")


def test_seals_stay_whole_under_load(crm: Connection, pair: Pair, order: CrmResult, manager: UUID) -> None:
    """Sealing while rows are written leaves no row outside the chain."""

    def write(c: CrmClient) -> CrmResult:
        for n in range(30):
            result = pay(c, order, manager, 1, f"r-{n}")
        return result

    def seal(c: CrmClient) -> CrmResult:
        for _ in range(30):
            c.connection.execute("SELECT crm_private.seal_audit_safe()")
        return pay(c, order, manager, 1, "last")

    assert all(isinstance(r, CrmResult) for r in pair.at_once(write, seal))
    crm.execute("SELECT crm_private.seal_audit_safe()")
    assert rows(crm, "SELECT * FROM crm_private.broken_seals()") == []
    assert value(
        crm, "SELECT sum(row_count) = (SELECT count(*) FROM public.audit_log) FROM public.audit_seals"
    )
