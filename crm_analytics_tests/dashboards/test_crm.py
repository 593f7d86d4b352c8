"""The CRM dashboard: every query as grafana_reader, counted by hand after a few orders through the RPCs."""

from __future__ import annotations

from datetime import timedelta
from decimal import Decimal
from uuid import uuid4

import psycopg
import pytest

from crm_analytics.crm import CrmClient
from crm_analytics.dashboards.tools.lint import panels_of, queries_of
from crm_analytics_tests.dashboards.conftest import as_reader
from crm_analytics_tests.dashboards.test_queries import BOARDS, Choice, rows, run


@pytest.fixture(scope="module")
def url(new_database) -> str:
    """Three leads, two orders, three payments."""
    url: str = new_database("crm")
    with psycopg.connect(url, autocommit=True) as connection:
        row = connection.execute(
            "INSERT INTO public.users (name, email, role) VALUES ('Ada', 'ada@example.com', 'admin') RETURNING id"
        ).fetchone()
        assert row
        client, ada = CrmClient(connection), row[0]
        leads = [
            client.create_lead_safe(
                source="site", full_name=f"Client {n}", phone=f"+1 555 010 000{n}", user_id=ada
            )
            for n in range(3)
        ]
        client.advance_lead_status_safe(lead_id=leads[1].id, new_status="in_progress", user_id=ada)
        client.advance_lead_status_safe(lead_id=leads[2].id, new_status="rejected", user_id=ada)
        orders = [
            client.quick_order_safe(
                source="site", full_name=f"Buyer {n}", phone=f"+1 555 010 001{n}", items=[{"model": "bicycle", "qty": 1}],
                total_amount=Decimal("1000.00"), currency="EUR", user_id=ada,
            )
            for n in range(2)
        ]  # fmt: skip
        order = orders[0].data.get("order_id", orders[0].id)
        for direction, role, amount, status in (
            ("incoming", "client_payment", "1000.00", "completed"),
            ("outgoing", "supplier_payment", "400.50", "completed"),
            ("outgoing", "shipping_payment", "90.00", "planned"),
        ):
            client.record_generic_payment_safe(
                order_id=order, direction=direction, role=role, method="bank_transfer", amount=Decimal(amount),
                currency="EUR", status=status, user_id=ada,
            )  # fmt: skip
        connection.execute("SELECT crm_private.seal_audit_safe()")
        client.create_lead_safe(source="site", full_name="Late", phone="+1 555 010 0099", user_id=ada)
    return url


@pytest.fixture
def grafana(url):
    with as_reader(url, "crm") as connection:
        yield connection


@pytest.fixture
def now(url) -> Choice:
    """The day of the leads and its month, whatever the time is by now."""
    with psycopg.connect(url) as connection:
        row = connection.execute(
            "SELECT max(created_at AT TIME ZONE 'UTC')::date FROM public.leads"
        ).fetchone()
    assert row
    today = row[0]
    return Choice((), (), today.replace(day=1), today, today + timedelta(1))


def test_every_query_answers_and_has_the_columns_that_its_panel_names(grafana, now):
    """Every query runs and has its panel's columns: a misspelled column would be an empty chart."""
    (board,) = [board for board in BOARDS if board["title"] == "CRM"]
    tried = 0
    for _, source, sql in queries_of(board):
        if source["uid"] == "crm-analytics-crm":
            run(grafana, sql, now)
            tried += 1
    assert tried == 8
    for panel in panels_of(board):
        names, found = run(grafana, panel["targets"][0]["rawSql"], now)
        assert {one["matcher"]["options"] for one in panel["fieldConfig"]["overrides"]} <= set(names)
        assert found


def test_leads_and_orders_by_month_and_status(grafana, now):
    """Leads and orders are counted by current status; quick orders add converted leads."""
    (leads,) = rows(grafana, "crm_leads_by_month", now)
    assert leads == {
        "month": f"{now.month:%Y-%m}", "new": 2, "in_progress": 1, "converted": 2, "rejected": 1, "other": 0,
    }  # fmt: skip
    (orders,) = rows(grafana, "crm_orders_by_month", now)
    assert orders["paid"] == 1
    assert sum(value for name, value in orders.items() if name != "month") == 2
    past = Choice((), (), now.month, now.time_from - timedelta(400), now.time_from - timedelta(300))
    assert rows(grafana, "crm_leads_by_month", past) == rows(grafana, "crm_orders_by_month", past) == []


def test_age_counts_what_is_unfinished(grafana, now):
    """Time in status covers only unfinished leads and orders."""
    found = rows(grafana, "crm_age_in_status", now)
    assert {(r["entity"], r["status"], r["rows"]) for r in found} >= {
        ("lead", "new", 2), ("lead", "in_progress", 1), ("order", "paid", 1),
    }  # fmt: skip
    assert all(r["status"] not in ("rejected", "converted", "closed", "cancelled") for r in found)
    assert all(0 <= r["mean_days"] <= r["longest_days"] < 1 for r in found)


def test_age_leaves_out_what_began_at_infinity(new_database, now):
    """A row created at infinity is left out: it would be an error, or make the mean infinite."""
    url = new_database("crm")
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(
            "ALTER TABLE public.leads DISABLE TRIGGER guard_rows;"
            "INSERT INTO public.leads (source, created_at) VALUES ('old', '-infinity'), ('old', 'infinity'),"
            " ('old', now() - interval '2 days')"
        )
    with as_reader(url, "crm") as connection:
        (found,) = rows(connection, "crm_age_in_status", now)
    assert (found["rows"], found["mean_days"], found["longest_days"]) == (3, 2, 2)


def test_money_counts_completed_payments_only(grafana, now):
    """Only completed payments count as money."""
    (money,) = rows(grafana, "crm_money_by_month", now)
    assert (money["currency"], money["money_in"], money["money_out"], money["net"], money["payments"]) == (
        "EUR", Decimal("1000.00"), Decimal("400.50"), Decimal("599.50"), 2,
    )  # fmt: skip


def test_funnel_counts_leads_by_how_far_they_came(new_database, now):
    """The funnel counts each lead once, by the furthest step of its orders, with the mean time of every step."""
    url = new_database("crm")
    with psycopg.connect(url, autocommit=True) as connection:
        # the steps take whole days, which no test can wait for
        connection.execute(
            "ALTER TABLE public.leads DISABLE TRIGGER USER; ALTER TABLE public.orders DISABLE TRIGGER USER"
        )
        connection.execute("ALTER TABLE public.order_status_events DISABLE TRIGGER USER")
        for n, (source, days, events) in enumerate(
            (
                ("site", 10, ()),
                ("site", 10, (("created", 8),)),
                ("site", 10, (("created", 6), ("paid", 5))),
                (
                    "site",
                    10,
                    (("created", 9), ("paid", 6), ("in_delivery", 5), ("delivered", 2), ("closed", 1)),
                ),
                ("telegram", 10, (("created", 9), ("cancelled", 6))),
                # an adopted order: paid and delivered at some time that no event tells
                ("telegram", 10, (("closed", 0),)),
            )
        ):
            lead, order = uuid4(), uuid4()
            connection.execute(
                "INSERT INTO public.leads (id, source, created_at) VALUES (%s, %s, %s::date - %s)",
                [lead, source, now.time_to, days],
            )
            if events:
                connection.execute(
                    "INSERT INTO public.orders (id, order_code, lead_id) VALUES (%s, %s, %s)",
                    [order, f"F-{n}", lead],
                )
            for seq, (status, ago) in enumerate(events, 1):
                reason = "adopted" if not ago else "created" if seq == 1 else None
                connection.execute(
                    "INSERT INTO public.order_status_events (order_id, seq, new_status, created_at, reason)"
                    " VALUES (%s, %s, %s, %s::date - %s, %s)",
                    [order, seq, status, now.time_to, ago, reason],
                )
    with as_reader(url, "crm") as connection:
        wide = Choice((), (), now.month, now.time_from - timedelta(31), now.time_to)
        found = {row["source"]: row for row in rows(connection, "crm_funnel", wide)}
        (month,) = rows(connection, "crm_funnel_by_month", wide)
    steps = ("leads", "orders", "paid", "delivered")
    assert [found["site"][step] for step in steps] == [4, 3, 2, 1]
    assert [found["telegram"][step] for step in steps] == [2, 2, 1, 1]
    assert [month[step] for step in steps] == [6, 5, 3, 2]
    site, telegram = found["site"], found["telegram"]
    # (2 + 4 + 1) / 3, (1 + 3) / 2, 4
    assert [site[f"days_to_{step}"] for step in ("order", "paid", "delivered")] == [Decimal("2.3"), 2, 4]
    assert [telegram[f"days_to_{step}"] for step in ("order", "paid", "delivered")] == [1, None, None]
    assert (site["lead_to_order"], site["order_to_paid"], site["paid_to_delivered"]) == (
        Decimal("0.75"), Decimal("0.6667"), Decimal("0.5"),
    )  # fmt: skip


def test_held_money_is_what_is_left_of_it(grafana, now):
    """Held money is what clients paid, less refunds and payouts, of all months so far; planned payments don't count."""
    (money,) = rows(grafana, "crm_client_money", now)
    assert [money[name] for name in ("currency", "client_paid", "refunded", "paid_out", "held")] == [
        "EUR", Decimal("1000.00"), 0, Decimal("400.50"), Decimal("599.50"),
    ]  # fmt: skip


def test_audit_is_newest_first_without_contents(grafana, now):
    """Audit entries are newest first, without their payload, which has names and phone numbers."""
    found = rows(grafana, "crm_latest_audit", now)
    assert (found[0]["action"], found[0]["entity"], found[0]["actor"], found[0]["sealed"]) == (
        "create", "leads", "Ada", False,
    )  # fmt: skip
    assert found[-1]["sealed"] is True
    assert "payload" not in found[0]
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        grafana.execute("SELECT * FROM public.customers")
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        grafana.execute("SELECT payload FROM public.audit_log")
