"""What applications read, as crm_app: balances, timelines, overviews, tasks and searches, and how they find their rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

import psycopg
import pytest
from psycopg import errors
from psycopg.rows import dict_row

from crm_analytics.crm import CrmClient, CrmResult
from crm_analytics.crm.schema.catalog import CRM_VIEWS, READ_NAMES
from crm_analytics_tests.crm.conftest import Connection, add_user, pay, rows, value

pytestmark = pytest.mark.rolled_back

ITEMS = [{"model": "Gravel 54", "qty": 1}]


def read(connection: Connection, query: str, *parameters: Any) -> list[dict[str, Any]]:
    """Returns the rows of a query as dicts, asked as the application's role."""
    with connection.transaction(), connection.cursor(row_factory=dict_row) as cursor:
        cursor.execute("SET LOCAL ROLE crm_app")
        found = cursor.execute(query.encode(), parameters).fetchall()
        cursor.execute("RESET ROLE")
        return found


def test_balance_of_an_order(
    crm: Connection, client: CrmClient, order: CrmResult, manager: UUID, admin: UUID
) -> None:
    """The balance has what the client paid, got back and owes, and what was paid out; planned money stands apart."""

    def balance() -> dict[str, Any]:
        (found,) = read(crm, "SELECT * FROM public.order_balance WHERE order_id = %s", order.id)
        return found

    found = balance()
    assert (found["order_number"], found["currency"], found["total_amount"]) == (
        order.data["order_code"], "EUR", Decimal(1000),
    )  # fmt: skip
    assert (found["client_paid"], found["due"], found["held"], found["overpaid"]) == (0, 1000, 0, 0)
    pay(client, order, manager, 1100)
    out = {"direction": "outgoing"}
    pay(client, order, manager, 300, role="supplier_payment", **out)
    pay(client, order, manager, 50, role="shipping_payment", status="planned", **out)
    pay(client, order, admin, 25, role="refund", **out)
    pay(client, order, admin, 10, role="refund", status="pending", **out)
    pay(client, order, manager, 999, status="planned")
    pay(client, order, manager, 77, status="failed", role="supplier_payment", **out)
    found = balance()
    assert {name: found[name] for name in (
        "client_paid", "refunded", "refunds_open", "held", "due", "overpaid", "paid_out", "payouts_open"
    )} == {
        "client_paid": 1100, "refunded": 25, "refunds_open": 10, "held": 1075, "due": 0, "overpaid": 75,
        "paid_out": 300, "payouts_open": 50,
    }  # fmt: skip
    more = pay(client, order, manager, 5)
    assert found["held"] == more.data["client_paid"] - 5
    client.reverse_payment_safe(payment_id=more.id, reason="wrong order", user_id=admin)
    assert balance() == found


def test_timeline_has_everything_that_happened(
    crm: Connection, client: CrmClient, order: CrmResult, manager: UUID
) -> None:
    """The timeline has status changes, payments, documents, tasks and shipments of one order, and who did them."""
    payment = pay(client, order, manager, 1000, "r-1")
    old = client.attach_document_safe(
        document_type="invoice", storage_url="a", uploaded_by=manager, order_id=order.id
    )
    new = client.replace_document_safe(document_id=old.id, storage_url="b", user_id=manager)
    task = client.create_task_safe(title="Pack", created_by=manager, order_id=order.id)
    parcel = client.upsert_shipment_safe(order_id=order.id, user_id=manager, provider="cdek")
    other = client.quick_order_safe(
        source="s", full_name="n", items=[], total_amount=9, currency="EUR", phone="555 0199", user_id=manager
    )
    found = read(
        crm, "SELECT * FROM public.order_timeline WHERE order_id = %s ORDER BY at, kind, what", order.id
    )
    assert {(entry["kind"], entry["id"], entry["what"]) for entry in found if entry["kind"] != "status"} == {
        ("payment", payment.id, "client_payment"), ("document", old.id, "invoice"), ("document", new.id, "invoice"),
        ("task", task.id, "Pack"), ("shipment", parcel.id, "created"),
    }  # fmt: skip
    assert [entry["what"] for entry in found if entry["kind"] == "status"] == ["created", "paid"]
    assert {entry["actor_id"] for entry in found} == {manager}
    details = {entry["id"]: entry["details"] for entry in found}
    assert (details[payment.id]["amount"], details[payment.id]["external_reference"]) == (1000, "r-1")
    assert (details[old.id]["replaced_by"], details[new.id]["replaces"]) == (str(new.id), str(old.id))
    assert details[parcel.id]["carrier"] == "cdek"
    assert len(read(crm, "SELECT FROM public.order_timeline WHERE order_id = %s", other.id)) == 1


def test_overview_of_a_customer(crm: Connection, client: CrmClient, order: CrmResult, manager: UUID) -> None:
    """The overview counts a customer's leads and orders, open ones apart, and sums the money held by currency."""
    customer = UUID(order.data["customer_id"])
    pay(client, order, manager, 1000)
    for currency in ("USD", "EUR"):
        more = client.create_order_safe(
            customer_id=customer, items=ITEMS, total_amount=10, currency=currency, user_id=manager
        )
        pay(client, more, manager, 4, currency=currency)
    client.create_lead_safe(source="s", full_name="Olga", phone="+1 555 010 0100")
    gone = client.create_order_safe(customer_id=customer, total_amount=1, currency="EUR", user_id=manager)
    client.advance_order_status_safe(order_id=gone.id, new_status="cancelled", user_id=manager)
    (found,) = read(crm, "SELECT * FROM public.customer_overview WHERE customer_id = %s", customer)
    assert (found["leads"], found["open_leads"], found["orders"], found["open_orders"]) == (2, 1, 4, 3)
    assert found["money_held"] == {"EUR": 1004, "USD": 4}
    assert found["last_order_at"] == value(crm, "SELECT max(created_at) FROM public.orders")
    alone = client.create_lead_safe(source="s", full_name="Ann", phone="555 0177").data["customer_id"]
    (found,) = read(crm, "SELECT * FROM public.customer_overview WHERE customer_id = %s", alone)
    assert (found["orders"], found["open_orders"], found["last_order_at"], found["money_held"]) == (
        0,
        0,
        None,
        {},
    )


def test_open_tasks(crm: Connection, client: CrmClient, order: CrmResult, manager: UUID, admin: UUID) -> None:
    """Open tasks have their assignee, order and customer; done ones are not there."""
    late = client.create_task_safe(
        title="Pack",
        created_by=admin,
        order_id=order.id,
        assignee_id=manager,
        due_at=datetime(2020, 1, 1, tzinfo=UTC),
    )
    lead = client.create_lead_safe(source="s", full_name="Ann", phone="555 0177")
    client.create_task_safe(title="Call", created_by=admin, lead_id=lead.id)
    done = client.create_task_safe(title="Done", created_by=admin)
    client.update_task_safe(task_id=done.id, user_id=admin, completed=True)
    found = {task["title"]: task for task in read(crm, "SELECT * FROM public.open_tasks")}
    assert set(found) == {"Pack", "Call"}
    pack, call = found["Pack"], found["Call"]
    assert (pack["task_id"], pack["overdue"], pack["assignee_id"], pack["assignee_name"], pack["order_number"]) == (
        late.id, True, manager, "Max", order.data["order_code"],
    )  # fmt: skip
    assert str(pack["customer_id"]) == order.data["customer_id"]
    assert (call["overdue"], call["assignee_id"], str(call["customer_id"])) == (
        None,
        None,
        lead.data["customer_id"],
    )


def test_searches(crm: Connection, client: CrmClient, order: CrmResult) -> None:
    """Customers are found by phone, e-mail and the beginning of their name, orders by that of their number."""
    customer = UUID(order.data["customer_id"])
    client.create_lead_safe(source="s", full_name="Olga_ Other", email="o.other@example.com")
    client.create_lead_safe(source="s", full_name="100% Cargo", email="cargo@example.com")

    def names(query: str, text: str) -> list[Any]:
        return [row["full_name"] for row in read(crm, f"SELECT * FROM public.{query}(%s)", text)]

    assert names("find_customers_by_phone", "+1 (555) 010-0100") == ["Olga Example"]
    assert names("find_customers_by_phone", "001 555 010 0100") == ["Olga Example"]
    assert names("find_customers_by_phone", "") == []
    assert names("find_customers_by_email", " O.OTHER@example.com ") == ["Olga_ Other"]
    assert names("find_customers_by_name", "OLGA") == ["Olga Example", "Olga_ Other"]
    # characters that LIKE would take for wildcards
    assert names("find_customers_by_name", "olga_") == ["Olga_ Other"]
    assert names("find_customers_by_name", "100%") == ["100% Cargo"]
    assert names("find_customers_by_name", "o%") == []
    assert names("find_customers_by_name", "example") == []
    number = order.data["order_code"]
    for text in (number, number[:5], number.lower()):
        found = read(crm, "SELECT * FROM public.find_orders_by_code(%s)", text)
        assert [(row["order_number"], row["customer_id"]) for row in found] == [(number, customer)]
    assert read(crm, "SELECT * FROM public.find_orders_by_code(%s)", number[1:]) == []


def test_typed_client_reads(client: CrmClient, order: CrmResult) -> None:
    """The client has the searches as methods that return rows, with money as Decimal."""
    (customer,) = client.find_customers_by_name(prefix="olga")
    assert customer["customer_id"] == order.data["customer_id"]
    (found,) = client.find_orders_by_code(prefix=order.data["order_code"])
    assert found["total_amount"] == Decimal(1000)


@pytest.mark.parametrize("isolation", ["READ COMMITTED", "REPEATABLE READ"])
def test_every_read_only_reads(
    crm: Connection, crm_url: str, client: CrmClient, order: CrmResult, manager: UUID, isolation: str
) -> None:
    """Every view and function finds its rows as crm_app in a read-only transaction: by GET, and on a replica.

    In a session that was never anybody else: what another role has planned would stay planned, missing rights or not.
    """
    client.create_lead_safe(source="s", full_name="Ann", email="ann@example.com")
    client.create_task_safe(title="Pack", created_by=manager)
    crm.execute("SELECT crm_private.number_changes()")
    given: dict[str, tuple[Any, ...]] = {
        "find_customers_by_phone": ("+1 555 010 0100",),
        "find_customers_by_email": ("ann@example.com",),
        "find_customers_by_name": ("olga",),
        "find_orders_by_code": (order.data["order_code"],),
        "changes_after": (0, 1),
        "whoami": (manager, order.id),
    }
    assert set(given) == set(READ_NAMES)
    with psycopg.connect(crm_url, autocommit=True, options="-c role=crm_app") as app:
        app.execute(f"BEGIN ISOLATION LEVEL {isolation} READ ONLY".encode())
        for name, arguments in given.items():
            places = ", ".join(["%s"] * len(arguments))
            assert len(rows(app, f"SELECT * FROM public.{name}({places})", *arguments)) == 1, name
        for name in CRM_VIEWS:
            assert rows(app, f"SELECT * FROM public.{name}"), name


@pytest.fixture(scope="module")
def crowded(new_database: Callable[..., str]) -> Iterator[Connection]:
    """A database with 10,000 customers, leads, orders, payments and tasks, written past the guards."""
    with psycopg.connect(new_database("crm"), autocommit=True) as connection:
        add_user(connection, "Max")
        connection.execute("SET session_replication_role = replica")
        for table in (
            "users",
            "customers",
            "customer_contacts",
            "leads",
            "orders",
            "payments",
            "tasks",
            "documents",
        ):
            connection.execute(f"ALTER TABLE public.{table} DISABLE TRIGGER USER".encode())
        connection.execute(
            """
            INSERT INTO public.users (name, email) SELECT 'u' || n, 'u' || n FROM generate_series(1, 200) n;
            CREATE TABLE public.u AS SELECT row_number() OVER () AS n, id FROM public.users;
            INSERT INTO public.customers (full_name, phone, email)
            SELECT 'Client ' || md5(n::text), '+1555' || lpad(n::text, 7, '0'), md5(n::text) || '@example.com'
            FROM generate_series(1, 10000) n;
            INSERT INTO public.customer_contacts (kind, key, customer_id)
            SELECT 'phone', crm_private.phone_digits(phone), id FROM public.customers
            UNION ALL SELECT 'email', email, id FROM public.customers;
            CREATE TABLE public.c AS SELECT row_number() OVER () AS n, id FROM public.customers;
            INSERT INTO public.leads (source, customer_id, assigned_to)
            SELECT 'site', c.id, u.id FROM public.c JOIN public.u ON u.n = 1 + c.n % 200;
            CREATE TABLE public.l AS SELECT row_number() OVER () AS n, id FROM public.leads;
            INSERT INTO public.orders (order_code, customer_id, assigned_manager, total_amount, currency, created_by)
            SELECT 'B2601-' || lpad(c.n::text, 6, '0'), c.id, u.id, 10, 'EUR', u.id
            FROM public.c JOIN public.u ON u.n = 1 + c.n % 200;
            INSERT INTO public.payments (order_id, direction, role, method, amount, currency, status, created_by)
            SELECT id, 'incoming', 'client_payment', 'cash', 1, 'EUR', 'completed', created_by FROM public.orders;
            INSERT INTO public.tasks (title, order_id, lead_id, assigned_to, created_by)
            SELECT 't', (SELECT id FROM public.orders LIMIT 1), l.id, u.id, u.id
            FROM public.l JOIN public.u ON u.n = 1 + l.n % 200;
            INSERT INTO public.documents (type, file_url, lead_id, uploaded_by)
            SELECT 'photo', 'x', l.id, u.id FROM public.l JOIN public.u ON u.n = 1 + l.n % 200;
            """
        )
        connection.execute("VACUUM ANALYZE")
        connection.execute("SET ROLE crm_app")
        yield connection


ONE = "(SELECT id FROM public.{} LIMIT 1)"


@pytest.mark.parametrize(
    ("query", "index"),
    [
        ("SELECT * FROM public.find_customers_by_phone('+1 555 0000042')", "customer_contacts_kind_key_key"),
        ("SELECT * FROM public.find_customers_by_email('X@example.com')", "customer_contacts_kind_key_key"),
        ("SELECT * FROM public.find_customers_by_name('client a87f')", "idx_customers_name"),
        ("SELECT * FROM public.find_orders_by_code('b2601-00004')", "idx_orders_code_prefix"),
        ("SELECT * FROM public.order_balance WHERE order_id = '{order}'", "orders_pkey"),
        ("SELECT * FROM public.order_balance WHERE order_id = '{order}'", "idx_payments_order"),
        ("SELECT * FROM public.order_timeline WHERE order_id = '{order}'", "idx_payments_order"),
        ("SELECT * FROM public.customer_overview WHERE customer_id = '{customer}'", "customers_pkey"),
        ("SELECT * FROM public.customer_overview WHERE customer_id = '{customer}'", "idx_orders_customer"),
        (
            "SELECT * FROM public.open_tasks WHERE assignee_id = '{user}' ORDER BY due_at",
            "idx_tasks_assigned_to",
        ),
        ("SELECT * FROM public.open_tasks WHERE lead_id = '{lead}'", "idx_tasks_lead"),
        ("SELECT * FROM public.orders WHERE assigned_manager = '{user}'", "idx_orders_assigned_manager"),
        (
            "SELECT * FROM public.leads WHERE assigned_to = '{user}' AND status = 'new'",
            "idx_leads_assigned_to",
        ),
        ("SELECT * FROM public.documents WHERE lead_id = '{lead}'", "idx_documents_lead"),
    ],
)
def test_reads_find_their_rows_by_an_index(crowded: Connection, query: str, index: str) -> None:
    """With 10,000 rows each read uses its index, also with a value that is known only when it runs, as in PostgREST."""
    ids = {
        name: value(crowded, f"SELECT id FROM public.{name}s LIMIT 1")
        for name in ("order", "customer", "user", "lead")
    }
    text = query.format(**ids)
    plan = "\n".join(row[0] for row in rows(crowded, f"EXPLAIN {text}"))
    assert index in plan, plan
    if "find_" in query:
        function, argument = query.removeprefix("SELECT * FROM ").rstrip(")").split("(")
        late = f"SELECT f.* FROM (SELECT {argument} AS a OFFSET 0) given, LATERAL {function}(given.a) f"
        plan = "\n".join(row[0] for row in rows(crowded, f"EXPLAIN {late}"))
        assert index in plan, plan


def test_reads_are_for_the_application_alone(crm: Connection) -> None:
    """Only crm_app may read the views and run the searches; default privileges would open them to the browser's roles.

    The change feed and whoami, which run as crm_rpc, are the owner's too, like every RPC.
    """
    for name in CRM_VIEWS:
        assert rows(
            crm,
            "SELECT DISTINCT a.grantee::regrole::text FROM pg_class c, aclexplode(c.relacl) a"
            " WHERE c.oid = %s::regclass AND a.grantee <> c.relowner",
            f"public.{name}",
        ) == [("crm_app",)]
        assert value(crm, "SELECT reloptions FROM pg_class WHERE oid = %s::regclass", f"public.{name}") == [
            "security_invoker=true"
        ]
    for name in READ_NAMES:
        assert rows(
            crm,
            "SELECT DISTINCT CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE a.grantee::regrole::text END"
            " FROM pg_proc p, aclexplode(p.proacl) a WHERE p.oid = %s::regproc AND a.grantee <> p.proowner",
            f"public.{name}",
        ) == ([("crm_app",), ("postgres",)] if name in ("changes_after", "whoami") else [("crm_app",)])


def test_a_stranger_sees_nothing(crm: Connection, order: CrmResult) -> None:
    """A role that gets a broad grant on a view by mistake sees no rows: the view runs with its rights."""
    crm.execute("CREATE ROLE nosy; GRANT SELECT ON ALL TABLES IN SCHEMA public TO nosy; SET LOCAL ROLE nosy")
    for name in CRM_VIEWS:
        assert rows(crm, f"SELECT * FROM public.{name}") == []
    with pytest.raises(errors.InsufficientPrivilege):
        crm.execute("SELECT * FROM public.find_orders_by_code('B')")


def test_a_callers_search_path_changes_nothing(crm: Connection, order: CrmResult) -> None:
    """A caller whose search_path has functions of the same names gets the same answers."""
    crm.execute("CREATE SCHEMA evil; GRANT USAGE ON SCHEMA evil TO crm_app")
    crm.execute("CREATE FUNCTION evil.lower(text) RETURNS text LANGUAGE sql IMMUTABLE AS $$ SELECT 'x' $$")
    crm.execute("SET search_path = evil, pg_catalog")
    number = order.data["order_code"]
    assert len(read(crm, "SELECT * FROM public.find_orders_by_code(%s)", number)) == 1
