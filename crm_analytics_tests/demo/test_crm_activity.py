"""The demo's months of business: deterministic, idempotent, and within the rules."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal

import psycopg
import pytest

from crm_analytics.core import locks
from crm_analytics.demo import crm_activity
from crm_analytics.demo.crm_activity import play

COUNTS = (
    "SELECT (SELECT count(*) FROM public.leads), (SELECT count(*) FROM public.orders),"
    " (SELECT count(*) FROM public.payments), (SELECT sum(amount) FROM public.payments),"
    " (SELECT count(*) FROM public.audit_log)"
)
#: The orders of the client with the rare calls, and what they hold.
RARE = (
    "SELECT o.status::text, o.total_amount, o.commission_eur, b.held FROM public.orders o"
    " JOIN public.order_balance b ON b.order_id = o.id JOIN public.customers c ON c.id = o.customer_id"
    " WHERE c.full_name = 'Rita Repeat' ORDER BY o.status::text"
)


def test_a_second_call_adds_nothing_and_the_same_seed_plays_the_same(
    new_database: Callable[..., str],
) -> None:
    """Playing a seed again adds nothing, and the same seed plays the same business in another database."""
    urls = [new_database("crm"), new_database("crm")]
    first = play(urls[0], months=1, seed=3)
    with psycopg.connect(urls[0]) as connection:
        before = connection.execute(COUNTS).fetchone()
    again = play(urls[0], months=1, seed=3)
    with psycopg.connect(urls[0]) as connection:
        assert connection.execute(COUNTS).fetchone() == before
    assert not first.already_played
    assert again.already_played
    assert again.orders_by_status == first.orders_by_status
    assert "nothing was added" in again.text()

    other = play(urls[1], months=1, seed=3)
    assert (other.done, other.refused, other.orders_by_status) == (
        first.done,
        first.refused,
        first.orders_by_status,
    )


def test_a_demo_that_is_held_up_names_who_holds_it_up(
    new_database: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A demo waits for another one for a limited time, and says whose session it is: one that hangs would stop it forever."""
    monkeypatch.setattr(crm_activity, "PATIENCE", 1)
    url, lines = new_database("crm"), list[str]()
    with psycopg.connect(url, autocommit=True) as other:
        locks.take(other, locks.DEMO_ACTIVITY, 1, lambda who: None)
        session = f"process {other.info.backend_pid}, role postgres"
        with pytest.raises(locks.LockHeld, match=session):
            play(url, months=1, report=lines.append)
    assert lines == [f"waiting for another demo: {session}"]
    assert not play(url, months=1).already_played


def test_business_of_every_kind_is_played(new_database: Callable[..., str]) -> None:
    """Rows of every kind, refusals and statuses are played; the demo's checks must not run on empty tables."""
    url = new_database("crm")
    summary = play(url, months=2, seed=1)
    kinds = {
        "leads",
        "orders",
        "client payments",
        "repeated payments",
        "payouts",
        "refunds",
        "documents",
        "replaced documents",
        "tasks",
        "shipments",
        "repeated forms",
        "outdated edits",
        "cleared fields",
        "rebooked payments",
        "reversed payments",
        "offered transitions",
    }
    assert set(summary.done) == kinds
    assert set(summary.refused) == {"42501", "PT409"}
    assert set(summary.orders_by_status) == {
        "created", "awaiting_payment", "paid", "in_delivery", "delivered", "closed", "cancelled",
    }  # fmt: skip
    text = summary.text()
    assert f"orders {summary.done['orders']}" in text
    assert f"{summary.refused['PT409']} with PT409" in text
    once = ("repeated forms", "outdated edits", "cleared fields", "rebooked payments", "reversed payments")
    assert [summary.done[kind] for kind in once] == [1] * 5
    with psycopg.connect(url) as connection:
        assert connection.execute(RARE).fetchall() == [
            ("cancelled", Decimal(3900), None, Decimal(0)),
            ("in_delivery", Decimal(690), None, Decimal(690)),
        ]
