"""Adoption: a database made from production's DDL and full of old rows migrates without losing or changing a row."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import psutil
import psycopg
import pytest

from crm_analytics.core.migrations import migration_files
from crm_analytics.crm import Conflict, CrmClient
from crm_analytics.crm.migrating import preflight
from crm_analytics.crm.migrating.adoption import AdoptionError, prepare
from crm_analytics.crm.migrating.migrate import migrate_crm
from crm_analytics.crm.schema import manifest
from crm_analytics_tests.conftest import PATIENCE
from crm_analytics_tests.crm.conftest import (
    Connection,
    add_user,
    broken_invariants,
    rows,
    shown_statements,
    value,
)

SEED_SCHEMA = (Path(__file__).parent / "seed_schema.sql").read_text(encoding="utf-8")
SYSTEM = UUID("00000000-0000-0000-0000-000000000001")

TABLES = (
    "users", "customers", "leads", "orders", "documents", "order_status_events", "payments", "shipments", "tasks",
)  # fmt: skip

#: 10,000 orders as eight years leave them: every status and label, missing customers and actors, zero amounts, several
#: payments with one reference, events out of order, and events without an order.
FILL = """
INSERT INTO public.users (id, name, role, active)
SELECT md5('user' || n)::uuid, 'User ' || n, (enum_range(NULL::public.user_role_enum))[1 + n % 2], n % 3 > 0
FROM generate_series(1, 20) n;
INSERT INTO public.customers (id, full_name, phone, email, preferred_channel, created_at)
SELECT md5('customer' || n)::uuid, 'Customer ' || n, '+1 555 01' || lpad(n::text, 5, '0'), 'c' || n || '@example.com',
       CASE WHEN n % 7 > 0 THEN (enum_range(NULL::public.preferred_channel_enum))[1 + n % 4] END,
       timestamptz '2018-01-01' + n * interval '1 hour'
FROM generate_series(1, 3000) n;
INSERT INTO public.leads (id, source, customer_id, status, estimated_budget_eur, created_at)
SELECT md5('lead' || n)::uuid, 'site', CASE WHEN n % 5 > 0 THEN md5('customer' || n)::uuid END,
       (enum_range(NULL::public.lead_status_enum))[1 + n % 4], n, timestamptz '2018-01-01' + n * interval '1 hour'
FROM generate_series(1, 3000) n;
INSERT INTO public.orders (id, order_code, customer_id, lead_id, final_price_eur, commission_eur, status, assigned_manager, created_at)
SELECT md5('order' || n)::uuid, 'OLD-' || n, CASE WHEN n % 11 > 0 THEN md5('customer' || 1 + n % 3000)::uuid END,
       CASE WHEN n % 4 = 0 THEN md5('lead' || 1 + n % 3000)::uuid END,
       CASE n % 6 WHEN 0 THEN NULL WHEN 1 THEN 0 ELSE n + 0.25 END, CASE WHEN n % 3 = 0 THEN 10 END,
       (enum_range(NULL::public.order_status_enum))[1 + n % 7], CASE WHEN n % 2 = 0 THEN md5('user' || 1 + n % 20)::uuid END,
       timestamptz '2018-01-01' + n * interval '5 hours'
FROM generate_series(1, 10000) n;
INSERT INTO public.payments (id, order_id, direction, role, method, amount, currency, status, external_reference, created_at)
SELECT md5('payment' || n)::uuid, CASE WHEN n % 500 > 0 THEN md5('order' || 1 + n % 10000)::uuid END,
       (enum_range(NULL::public.payment_direction_enum))[1 + n % 2], (enum_range(NULL::public.payment_role_enum))[1 + n % 4],
       (enum_range(NULL::public.payment_method_enum))[1 + n % 3], CASE WHEN n % 9 = 0 THEN 0 ELSE n END,
       (enum_range(NULL::public.currency_enum))[1 + n % 3], (enum_range(NULL::public.payment_status_enum))[1 + n % 3],
       CASE n % 10 WHEN 0 THEN NULL WHEN 1 THEN '  ' WHEN 2 THEN ' dup-' || n / 100 || ' ' ELSE 'ref-' || n END,
       timestamptz '2018-01-01' + (n % 977) * interval '1 day'
FROM generate_series(1, 15000) n;
UPDATE public.payments SET related_payment_id = md5('payment1')::uuid WHERE role = 'refund';
INSERT INTO public.order_status_events (id, order_id, old_status, new_status, changed_by, created_at)
SELECT md5('event' || n)::uuid, CASE WHEN n % 100 > 0 THEN md5('order' || 1 + n % 4000)::uuid END,
       CASE WHEN n % 2 = 0 THEN 'awaiting_payment' END, CASE WHEN n % 13 > 0 THEN 'paid' END,
       CASE WHEN n % 3 = 0 THEN md5('user' || 1 + n % 20)::uuid END, timestamptz '2018-01-01' + (n % 501) * interval '1 day'
FROM generate_series(1, 12000) n;
INSERT INTO public.documents (id, order_id, type, file_url)
SELECT md5('document' || n)::uuid, CASE WHEN n % 9 > 0 THEN md5('order' || n)::uuid END,
       (enum_range(NULL::public.document_type_enum))[1 + n % 3], 's3://old/' || n FROM generate_series(1, 2000) n;
INSERT INTO public.shipments (id, order_id, provider, tracking_number, client_received)
SELECT md5('shipment' || n)::uuid, md5('order' || n)::uuid, (enum_range(NULL::public.shipment_provider_enum))[1 + n % 3],
       'T' || n, CASE n % 3 WHEN 0 THEN true WHEN 1 THEN false END FROM generate_series(1, 2000) n;
INSERT INTO public.tasks (id, order_id, title, completed, assigned_to)
SELECT md5('task' || n)::uuid, md5('order' || n)::uuid, 'Task ' || n, CASE n % 3 WHEN 0 THEN true WHEN 1 THEN false END,
       CASE WHEN n % 2 = 0 THEN md5('user' || 1 + n % 20)::uuid END FROM generate_series(1, 2000) n;
"""


@pytest.fixture
def seed_url(new_database: Callable[..., str]) -> str:
    """Returns the URL of a database with production's tables and no rows."""
    url = new_database()
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(SEED_SCHEMA)
    return url


def snapshot(connection: Connection) -> dict[str, list[tuple[Any, ...]]]:
    """Returns every row of every table, with the columns that the tables have now."""
    return {name: rows(connection, f"SELECT * FROM public.{name} ORDER BY id") for name in TABLES}


def columns(connection: Connection) -> dict[str, str]:
    return {
        name: value(
            connection,
            "SELECT string_agg(quote_ident(attname), ', ' ORDER BY attnum) FROM pg_attribute"
            " WHERE attrelid = %s::regclass AND attnum > 0",
            f"public.{name}",
        )
        for name in TABLES
    }


@dataclass(frozen=True)
class Adopted:
    """An adopted database that was full of rows: what it had before, and what the migration reported."""

    url: str
    rows: dict[str, list[tuple[Any, ...]]]
    columns: dict[str, str]
    lines: list[str]


@pytest.fixture(scope="module")
def adopted(new_database: Callable[..., str]) -> Adopted:
    """Fills a database made from production's DDL, and adopts it; its tests only read."""
    url, lines = new_database(), list[str]()
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(SEED_SCHEMA)
        connection.execute(FILL)
        before, old_columns = snapshot(connection), columns(connection)
    migrate_crm(url=url, report=lines.append)
    return Adopted(url, before, old_columns, lines)


def test_no_old_row_is_lost_or_changed(adopted: Adopted) -> None:
    """Every old row stays as it was, and new columns are filled as documented; else eight years of orders could be lost."""
    before, old_columns, lines = adopted.rows, adopted.columns, adopted.lines
    assert {name: len(found) for name, found in before.items()} == {
        "users": 20, "customers": 3000, "leads": 3000, "orders": 10000, "documents": 2000,
        "order_status_events": 12000, "payments": 15000, "shipments": 2000, "tasks": 2000,
    }  # fmt: skip
    assert lines[0] == "adopted an existing database: its catalog equals the baseline"
    with psycopg.connect(adopted.url, autocommit=True) as connection:
        for name, old in before.items():
            found = rows(connection, f"SELECT {old_columns[name]} FROM public.{name} ORDER BY id")
            added = {row[0] for row in found} - {row[0] for row in old}
            assert [row for row in found if row[0] not in added] == old, name
            assert len(added) == {"users": 1, "order_status_events": 10000}.get(name, 0), name

        # the documented fills, computed from the old rows in Python
        prices = {row[0]: row[6] for row in before["orders"]}
        assert {
            key: (total, currency)
            for key, total, currency in rows(
                connection, "SELECT id, total_amount, currency::text FROM public.orders"
            )
        } == {key: (price, None if price is None else "EUR") for key, price in prices.items()}
        received = {row[0] for row in before["shipments"] if row[6]}
        assert dict(rows(connection, "SELECT id, status FROM public.shipments")) == {
            row[0]: "delivered" if row[0] in received else None for row in before["shipments"]
        }
        holders: dict[str, UUID] = {}
        for row in sorted(before["payments"], key=lambda row: (row[10], row[0])):
            if (row[8] or "").strip():
                holders.setdefault(row[8].strip(), row[0])
        assert (
            dict(
                rows(
                    connection,
                    "SELECT reference_key, id FROM public.payments WHERE reference_key IS NOT NULL",
                )
            )
            == holders
        )
        with_reference = sum(1 for row in before["payments"] if (row[8] or "").strip())
        assert (
            f"{with_reference - len(holders):,} payments with an older payment's external reference"
            in "\n".join(lines)
        )
        for table, column in (
            ("orders", "created_by"),
            ("payments", "created_by"),
            ("documents", "uploaded_by"),
        ):
            assert value(connection, f"SELECT count({column}) FROM public.{table}") == 0
        assert dict(rows(connection, "SELECT status, count(*) FROM public.tasks GROUP BY 1")) == {
            "done": 666, "open": 1334,
        }  # fmt: skip

        # events: the old ones numbered by (created_at, id), then one 'adopted' with the order's status
        numbered: dict[UUID, list[UUID]] = {}
        for row in sorted(before["order_status_events"], key=lambda row: (row[5], row[0])):
            if row[1] is not None:
                numbered.setdefault(row[1], []).append(row[0])
        statuses = {row[0]: row[8] for row in before["orders"]}
        for order_id, found_events in _by_order(connection).items():
            old_events = numbered.get(order_id, [])
            assert [event[1] for event in found_events[:-1]] == old_events
            assert [event[0] for event in found_events] == list(range(1, len(old_events) + 2))
            assert found_events[-1][2:] == (statuses[order_id], "adopted", SYSTEM)
        assert value(connection, "SELECT count(*) FROM public.order_status_events WHERE seq IS NULL") == 120

        # one audit row for every row that was there
        assert dict(rows(connection, "SELECT entity, count(DISTINCT entity_id) FROM public.audit_log GROUP BY 1")) == {
            name: len(found) + (name == "users") for name, found in before.items() if name != "order_status_events"
        } | {"customer_contacts": 6000}  # fmt: skip


def test_adopted_rows_hold_the_invariants(adopted: Adopted) -> None:
    """Adopted rows pass the invariants, in 20 seconds of work; else the hourly checks would fail on every adopted database.

    The server's own CPU time counts: a busy machine takes longer, but has no more to do.
    """
    with psycopg.connect(adopted.url, autocommit=True) as connection:
        connection.execute("SET statement_timeout = '200s'; SET max_parallel_workers_per_gather = 0")
        backend = psutil.Process(connection.info.backend_pid)
        before = backend.cpu_times()
        broken = broken_invariants(connection)
        after = backend.cpu_times()
    assert after.user - before.user + after.system - before.system < 20
    assert broken == {}


def test_rows_written_while_migrating_are_adopted_too(seed_url: str) -> None:
    """Rows that the old application writes between two migration files get their event and audit row too."""

    def meanwhile(line: str) -> None:
        if line == "applied 0010_seals.sql":
            with psycopg.connect(seed_url, autocommit=True) as other:
                other.execute(
                    "INSERT INTO public.orders (order_code, final_price_eur, status) VALUES ('LATE', 7, 'paid');"
                    "INSERT INTO public.payments (order_id, direction, role, method, amount, currency, external_reference)"
                    " SELECT id, 'incoming', 'client_payment', 'card', 7, 'EUR', ' late-1 ' FROM public.orders;"
                    "INSERT INTO public.order_status_events (order_id, new_status) SELECT id, 'paid' FROM public.orders"
                )

    migrate_crm(url=seed_url, report=meanwhile)
    with psycopg.connect(seed_url, autocommit=True) as connection:
        assert rows(
            connection,
            "SELECT o.total_amount, e.seq, e.old_status, e.new_status, e.reason FROM public.orders o"
            " JOIN public.order_status_events e ON e.order_id = o.id ORDER BY e.seq",
        ) == [(7, 1, None, "paid", None), (7, 2, "paid", "paid", "adopted")]
        assert value(connection, "SELECT reference_key FROM public.payments") == "late-1"
        assert rows(connection, "SELECT entity, action FROM public.audit_log ORDER BY 1") == [
            ("orders", "adopt"), ("payments", "adopt"), ("users", "adopt"),
        ]  # fmt: skip


def test_same_catalog_as_a_fresh_database(seed_url: str, crm: Connection) -> None:
    """An adopted database ends with the catalog of a fresh one; else later migrations would meet two kinds of database."""
    migrate_crm(url=seed_url)
    with psycopg.connect(seed_url, autocommit=True) as connection:
        found = manifest.diff(manifest.collect(crm), manifest.collect(connection))
    assert found.differences == ()
    assert sorted(found.allowed_extras) == [
        "label public.currency_enum 'GBP'", "label public.document_type_enum 'receipt'",
        "label public.order_status_enum 'on_hold'", "label public.payment_role_enum 'bonus'",
        "label public.preferred_channel_enum 'viber'", "label public.shipment_provider_enum 'dhl'",
    ]  # fmt: skip


def _by_order(connection: Connection) -> dict[UUID, list[tuple[Any, ...]]]:
    found: dict[UUID, list[tuple[Any, ...]]] = {}
    for order_id, *event in rows(
        connection,
        "SELECT order_id, seq, id, new_status, reason, changed_by FROM public.order_status_events"
        " WHERE order_id IS NOT NULL ORDER BY order_id, seq",
    ):
        found.setdefault(order_id, []).append(tuple(event))
    return found


def test_adopted_orders_can_be_processed(seed_url: str) -> None:
    """Old orders accept payments and changes, although they lack actors and totals, and have zero amounts."""
    with psycopg.connect(seed_url, autocommit=True) as connection:
        connection.execute(
            """
            INSERT INTO public.orders (id, order_code, final_price_eur) VALUES (md5('a')::uuid, 'A', 100), (md5('b')::uuid, 'B', NULL);
            INSERT INTO public.payments (order_id, direction, role, method, amount, currency, status, external_reference, created_at)
            VALUES (md5('a')::uuid, 'incoming', 'client_payment', 'card', 40, 'EUR', 'completed', 'x', '2020-01-01'),
                   (md5('a')::uuid, 'incoming', 'client_payment', 'card', 0, 'EUR', 'planned', 'x', '2020-01-02'),
                   (md5('a')::uuid, 'incoming', 'client_payment', 'cash', 10, 'EUR', 'planned', NULL, '2020-01-03')
            """
        )
    migrate_crm(url=seed_url)
    with psycopg.connect(seed_url, autocommit=True) as connection:
        client, manager = CrmClient(connection), add_user(connection, "Max")
        a, b = rows(connection, "SELECT id FROM public.orders ORDER BY order_code")
        planned = value(connection, "SELECT id FROM public.payments WHERE method = 'cash'")
        zero = value(connection, "SELECT id FROM public.payments WHERE amount = 0")
        client.update_payment_status_safe(payment_id=zero, new_status="cancelled", user_id=manager)
        done = client.update_payment_status_safe(payment_id=planned, new_status="completed", user_id=manager)
        assert done.data["client_paid"] == 50
        paid = client.record_generic_payment_safe(
            order_id=a[0], direction="incoming", role="client_payment", method="cash", amount=50, currency="EUR",
            user_id=manager,
        )  # fmt: skip
        assert paid.data["order_status"] == "paid"
        wanted: dict[str, Any] = {
            "order_id": b[0], "direction": "incoming", "role": "client_payment", "method": "cash", "amount": 5,
            "currency": "EUR", "user_id": manager,
        }  # fmt: skip
        with pytest.raises(Conflict, match="currency"):
            client.record_generic_payment_safe(**wanted)
        client.update_order_safe(order_id=b[0], user_id=manager, total_amount=5, currency="EUR")
        assert client.record_generic_payment_safe(**wanted).data["order_status"] == "paid"


#: What only a person can decide, so that the shown SQL cannot be run as it is.
DECISIONS = ("table public.tasks is missing", "users.email: several users", "shipments.status is sent")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("ALTER TABLE public.orders DROP COLUMN commission_eur", "column public.orders.commission_eur is missing\n    ALTER TABLE public.orders ADD COLUMN commission_eur numeric(12,2);"),
        ("ALTER TABLE public.payments ALTER amount TYPE numeric", "column public.payments.amount: type is numeric, expected numeric(12,2)\n    ALTER TABLE public.payments ALTER COLUMN amount TYPE numeric(12,2)"),
        ("ALTER TABLE public.leads ALTER source DROP NOT NULL", "ALTER TABLE public.leads ALTER COLUMN source SET NOT NULL;"),
        ("ALTER TABLE public.leads ALTER status SET DEFAULT 'rejected'", "ALTER COLUMN status SET DEFAULT 'new'::public.lead_status_enum;"),
        ("ALTER TABLE public.payments DROP CONSTRAINT chk_amount_positive", "constraint public.payments.chk_amount_positive is missing\n    ALTER TABLE public.payments DROP CONSTRAINT IF EXISTS chk_amount_positive; ALTER TABLE public.payments ADD CONSTRAINT"),
        ("ALTER TABLE public.tasks ADD CONSTRAINT short CHECK (length(title) < 9)", "ALTER TABLE public.tasks DROP CONSTRAINT short;"),
        ("DROP INDEX public.idx_orders_order_code", "CREATE INDEX idx_orders_order_code ON public.orders USING btree (order_code);"),
        ("DROP TABLE public.tasks", "table public.tasks is missing"),
        ("ALTER TABLE public.orders ADD COLUMN total_amount double precision", "column public.orders.total_amount: type is double precision, expected numeric(12,2)\n    ALTER TABLE public.orders ALTER COLUMN total_amount TYPE numeric(12,2)"),
        ("ALTER TABLE public.orders ADD COLUMN currency public.currency_enum DEFAULT 'RUB'", "ALTER COLUMN currency DROP DEFAULT;"),
        ("ALTER TABLE public.tasks ADD COLUMN status text", "ALTER TABLE public.tasks RENAME COLUMN status TO status_legacy;"),
        ("ALTER TABLE public.tasks ADD COLUMN status text GENERATED ALWAYS AS ('open') STORED", "ALTER TABLE public.tasks ALTER COLUMN status DROP EXPRESSION; ALTER TABLE public.tasks RENAME COLUMN status TO status_legacy;"),
        ("ALTER TABLE public.payments ADD COLUMN reference_key text NOT NULL; INSERT INTO public.payments (direction, role, method, amount, currency, reference_key) VALUES ('incoming', 'refund', 'card', 1, 'EUR', 'x')", "ALTER TABLE public.payments ALTER COLUMN reference_key DROP NOT NULL; ALTER TABLE public.payments RENAME COLUMN reference_key TO reference_key_legacy;"),
        ("ALTER TABLE public.orders DROP COLUMN commission_eur; ALTER TABLE public.orders ADD COLUMN commission_eur numeric(12, 2) GENERATED ALWAYS AS (final_price_eur / 10) STORED", "ALTER TABLE public.orders ALTER COLUMN commission_eur DROP EXPRESSION;"),
        ("CREATE TABLE public.audit_log (id int)", "ALTER TABLE public.audit_log RENAME TO audit_log_legacy;"),
        ("ALTER TABLE public.users ADD COLUMN email text; INSERT INTO public.users (name, email) VALUES ('a', 'A@example.com'), ('b', ' a@example.com')", "users.email: several users have a@example.com"),
        ("ALTER TABLE public.shipments ADD COLUMN status text; INSERT INTO public.shipments (status) VALUES ('sent')", "shipments.status is sent, accepted is CHECK ((status = ANY (ARRAY['created'::text,"),
        ("ALTER TABLE public.orders ADD COLUMN created_by uuid; INSERT INTO public.orders (order_code, created_by) VALUES ('A', gen_random_uuid())", "UPDATE public.orders t SET created_by = NULL"),
        ("ALTER TABLE public.order_status_events ADD COLUMN seq integer; INSERT INTO public.order_status_events (seq) VALUES (1), (1)", "RENAME COLUMN seq TO seq_legacy;"),
        ("ALTER TABLE public.orders ADD COLUMN version integer", "RENAME COLUMN version TO version_legacy;"),
        ("ALTER TABLE public.payments ADD COLUMN reference_key text; INSERT INTO public.payments (direction, role, method, amount, currency, reference_key) SELECT 'incoming', 'refund', 'card', 1, 'EUR', 'x' FROM generate_series(1, 2)", "RENAME COLUMN reference_key TO reference_key_legacy;"),
        ("INSERT INTO public.customers (full_name, phone) SELECT 'A', string_agg(n::text, ' ') FROM generate_series(1, 3000) n", "customers.phone is longer than 2000 bytes"),
        ("INSERT INTO public.payments (direction, role, method, amount, currency, external_reference) SELECT 'incoming', 'refund', 'card', 1, 'EUR', string_agg(md5(n::text), '') FROM generate_series(1, 500) n", "payments.external_reference is longer than 2000 bytes"),
        ("CREATE INDEX idx_orders_customer ON public.orders (customer_id)", "ALTER INDEX public.idx_orders_customer RENAME TO idx_orders_customer_legacy;"),
        ("CREATE VIEW public.users_email_folded_key AS SELECT 1", "ALTER VIEW public.users_email_folded_key RENAME"),
        ("CREATE TABLE public.payments_reference_key_key (id int)", "ALTER TABLE public.payments_reference_key_key RENAME"),
        ("CREATE SCHEMA reporting", "ALTER SCHEMA reporting RENAME TO reporting_legacy;"),
        ("CREATE SCHEMA crm_private; CREATE FUNCTION crm_private.trimmed(text) RETURNS text LANGUAGE sql AS 'SELECT $1'", "function crm_private.trimmed(text) is not expected here\n    DROP ROUTINE crm_private.trimmed(text);"),
        ("ALTER TABLE public.orders ADD COLUMN color text NOT NULL", "column public.orders.color is not expected here: NOT NULL without a default refuses the RPCs' rows\n    ALTER TABLE public.orders ALTER COLUMN color DROP NOT NULL;"),
        ("ALTER TABLE public.orders ADD COLUMN number serial", "column public.orders.number is not expected here: a default that is not a constant"),
        ("CREATE DOMAIN public.color AS text CHECK (length(VALUE) > 1); ALTER TABLE public.orders ADD COLUMN color public.color", "column public.orders.color is not expected here: a type that is not built in"),
        ("CREATE UNIQUE INDEX one_url ON public.orders (bike_url)", "index public.orders.one_url is not expected here: a unique index"),
        ("CREATE FUNCTION public.old_json(public.payment_role_enum) RETURNS json LANGUAGE sql AS 'SELECT NULL::json'; CREATE CAST (public.payment_role_enum AS json) WITH FUNCTION public.old_json", "DROP CAST (public.payment_role_enum AS json);"),
        ("CREATE TABLE public.evil () INHERITS (public.payments)", "ALTER TABLE public.evil NO INHERIT public.payments;"),
        ("CREATE TABLE public.all_tasks (LIKE public.tasks) PARTITION BY HASH (id); ALTER TABLE public.all_tasks ATTACH PARTITION public.tasks FOR VALUES WITH (MODULUS 1, REMAINDER 0)", "ALTER TABLE public.all_tasks DETACH PARTITION public.tasks;"),
        ("ALTER TABLE public.customers ALTER full_name TYPE text COLLATE \"C\"", "type is text COLLATE \"C\", expected text"),
        ("INSERT INTO public.shipments DEFAULT VALUES; ALTER TABLE public.shipments ALTER provider DROP DEFAULT, ALTER provider TYPE text; DROP TYPE public.shipment_provider_enum", "type public.shipment_provider_enum is missing\n    CREATE TYPE public.shipment_provider_enum AS ENUM ('rusbid',"),
        ("CREATE SCHEMA crm_private; CREATE VIEW crm_private.old AS SELECT 1; CREATE SEQUENCE crm_private.order_code_seq", "DROP VIEW IF EXISTS crm_private.old CASCADE;"),
        ("CREATE ROLE adoption_other; ALTER TYPE public.user_role_enum OWNER TO adoption_other", "ALTER TYPE public.user_role_enum OWNER TO postgres;"),
        ("CREATE ROLE adoption_other; ALTER TABLE public.tasks OWNER TO adoption_other", "table public.tasks: owner is adoption_other, expected postgres; migrate as adoption_other, or give it away\n    ALTER TABLE public.tasks OWNER TO postgres;"),
    ],
)  # fmt: skip
def test_a_different_database_is_refused(seed_url: str, change: str, message: str) -> None:
    """Any difference from the baseline is refused, and the shown SQL repairs it; else a wrong database would be stamped."""
    with psycopg.connect(seed_url, autocommit=True) as connection:
        connection.execute(change.encode())
    with pytest.raises(AdoptionError) as refused:
        migrate_crm(url=seed_url)
    assert message in str(refused.value)
    with psycopg.connect(seed_url, autocommit=True) as connection:
        assert value(connection, "SELECT count(*) FROM crm_private.migration_files") == 0
        assert value(connection, "SELECT to_regclass('crm_private.alembic_version')") is None
        needs_a_decision = message.startswith(DECISIONS)
        assert ("…" in str(refused.value) or "restore the table" in str(refused.value)) == needs_a_decision
        if needs_a_decision:
            return
        for statement in shown_statements(str(refused.value)):
            connection.execute(statement.encode())
        if "adoption_other" in change:
            connection.execute("DROP ROLE adoption_other")
    migrate_crm(url=seed_url)  # which ends with the drift check


def test_preflight_knows_what_the_migrations_make(crm: Connection) -> None:
    """A schema or an index over texts that a new migration makes must be in preflight's lists, or it fails halfway."""
    found = rows(
        crm, "SELECT nspname FROM pg_namespace WHERE nspname !~ '^pg_' AND nspname <> 'information_schema'"
    )
    assert {name for (name,) in found} == {"public", "crm_private", *preflight.SCHEMAS}
    indexed = rows(
        crm,
        """
        SELECT DISTINCT t.relname, a.attname FROM pg_index x
        JOIN pg_class t ON t.oid = x.indrelid JOIN pg_class i ON i.oid = x.indexrelid
        JOIN pg_depend d ON d.classid = 'pg_class'::regclass AND d.objid = i.oid AND d.refobjid = t.oid
        JOIN pg_attribute a ON a.attrelid = t.oid AND a.attnum = d.refobjsubid AND a.atttypid = 'text'::regtype
        WHERE t.relname = ANY (%s) AND NOT format('index public.%%s.%%s', t.relname, i.relname) = ANY (%s)
        """,
        list(TABLES),
        list(manifest.baseline().objects),
    )
    assert (
        {("users", "email"), ("customers", "phone")}
        <= set(indexed)
        <= {(t, c) for t, c, _ in preflight.INDEXED}
    )


def test_a_legacy_function_that_something_depends_on_is_refused(seed_url: str) -> None:
    """--replace-legacy names what depends on a function that it cannot drop, and changes nothing."""
    with psycopg.connect(seed_url, autocommit=True) as connection:
        connection.execute(
            "CREATE FUNCTION public.create_lead_safe() RETURNS integer LANGUAGE sql AS 'SELECT 1';"
            "CREATE TABLE public.legacy (x integer DEFAULT public.create_lead_safe())"
        )
    with pytest.raises(AdoptionError, match=r"table public\.legacy depends on"):
        migrate_crm(url=seed_url, replace_legacy=True)
    with psycopg.connect(seed_url, autocommit=True) as connection:
        assert value(connection, "SELECT count(*) FROM crm_private.migration_files") == 0


def test_allowed_extras_pass_the_checks_after_adoption(seed_url: str) -> None:
    """What adoption allows, the drift check and the RPCs accept too; else an adopted database would fail its checks."""
    with psycopg.connect(seed_url, autocommit=True) as connection:
        connection.execute(
            "ALTER TABLE public.orders ADD COLUMN shop text NOT NULL DEFAULT 'q', ADD COLUMN seen timestamptz;"
            "ALTER TABLE public.tasks ADD COLUMN color text NOT NULL DEFAULT 'q';"
            "INSERT INTO public.orders (order_code, final_price_eur, seen) VALUES ('A', 5, now())"
        )
    migrate_crm(url=seed_url)
    with psycopg.connect(seed_url, autocommit=True) as connection:
        client, manager = CrmClient(connection), add_user(connection, "Max")
        client.create_task_safe(title="Call", created_by=manager)
        assert [difference.problem for difference in manifest.compare(connection).differences] == []
        connection.execute("SET TimeZone = 'Asia/Tokyo'")
        assert broken_invariants(connection) == {}


def test_money_in_the_other_direction_is_not_client_money(seed_url: str) -> None:
    """RPCs and invariants agree on what client money is; else a correct payment would break an invariant."""
    with psycopg.connect(seed_url, autocommit=True) as connection:
        connection.execute(
            """
            INSERT INTO public.orders (id, order_code, final_price_eur) VALUES (md5('a')::uuid, 'A', 1000), (md5('b')::uuid, 'B', 1000);
            INSERT INTO public.payments (order_id, direction, role, method, amount, currency, status)
            VALUES (md5('a')::uuid, 'outgoing', 'client_payment', 'cash', 950, 'EUR', 'completed'),
                   (md5('b')::uuid, 'incoming', 'refund', 'cash', 950, 'EUR', 'completed')
            """
        )
    migrate_crm(url=seed_url)
    with psycopg.connect(seed_url, autocommit=True) as connection:
        client, admin = CrmClient(connection), add_user(connection, "Ada", "admin")
        for order, direction, role, amount in (
            ("A", "incoming", "client_payment", 100),
            ("B", "incoming", "client_payment", 500),
            ("B", "outgoing", "refund", 200),
        ):
            client.record_generic_payment_safe(
                order_id=value(connection, "SELECT id FROM public.orders WHERE order_code = %s", order),
                direction=direction, role=role, method="cash", amount=amount, currency="EUR", user_id=admin,
            )  # fmt: skip
        assert broken_invariants(connection) == {}
        # the owner's dashboard, too
        assert rows(
            connection, "SELECT sum(client_paid), sum(refunded) FROM reporting.client_money_by_month"
        ) == rows(connection, "SELECT sum(client_paid), sum(refunded) FROM public.order_balance")
        assert value(connection, "SELECT sum(client_paid) FROM public.order_balance") == 600


def test_extras_are_allowed_and_reported(seed_url: str) -> None:
    """Harmless extras stay and are reported; else a database that has grown could not be adopted."""
    with psycopg.connect(seed_url, autocommit=True) as connection:
        connection.execute(
            "ALTER TABLE public.orders ADD COLUMN color text, ADD COLUMN items jsonb,"
            " ADD COLUMN created_by uuid CONSTRAINT orders_created_by_fkey REFERENCES public.users (id) ON DELETE CASCADE;"
            "CREATE INDEX idx_color ON public.orders (color)"
        )
    lines: list[str] = []
    migrate_crm(url=seed_url, report=lines.append)
    assert {line for line in lines if line.startswith(("allowed extra: ", "exists already: "))} == {
        "allowed extra: column public.orders.color", "exists already: column public.orders.items",
        "exists already: column public.orders.created_by", "allowed extra: index public.orders.idx_color",
        "allowed extra: label public.preferred_channel_enum 'viber'",
        "allowed extra: label public.document_type_enum 'receipt'",
        "allowed extra: label public.order_status_enum 'on_hold'",
        "allowed extra: label public.payment_role_enum 'bonus'", "allowed extra: label public.currency_enum 'GBP'",
        "allowed extra: label public.shipment_provider_enum 'dhl'",
    }  # fmt: skip
    with psycopg.connect(seed_url, autocommit=True) as connection:
        assert (
            value(
                connection,
                "SELECT confdeltype::text FROM pg_constraint WHERE conname = 'orders_created_by_fkey'",
            )
            == "a"
        )


def test_legacy_guards_are_refused_or_replaced(seed_url: str) -> None:
    """Functions with an RPC's name, triggers, rules and policies are refused, or dropped on request."""
    with psycopg.connect(seed_url, autocommit=True) as connection:
        connection.execute(
            """
            CREATE FUNCTION public.create_lead_safe(p_source text) RETURNS void LANGUAGE sql AS 'SELECT';
            CREATE FUNCTION public.legacy_guard() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';
            CREATE TRIGGER legacy_guard BEFORE UPDATE ON public.orders FOR EACH ROW EXECUTE FUNCTION public.legacy_guard();
            CREATE RULE legacy_rule AS ON DELETE TO public.orders DO INSTEAD NOTHING;
            ALTER TABLE public.leads ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
            CREATE POLICY legacy_policy ON public.leads USING (true);
            """
        )
    with pytest.raises(AdoptionError) as refused:
        migrate_crm(url=seed_url)
    for remedy in (
        "DROP ROUTINE public.create_lead_safe(p_source text);", "DROP TRIGGER legacy_guard ON public.orders;",
        "DROP RULE legacy_rule ON public.orders;", "DROP POLICY legacy_policy ON public.leads;",
        "NO FORCE ROW LEVEL SECURITY", "--replace-legacy",
    ):  # fmt: skip
        assert remedy in str(refused.value)
    migrate_crm(url=seed_url, replace_legacy=True)
    with psycopg.connect(seed_url, autocommit=True) as connection:
        assert value(connection, "SELECT count(*) FROM pg_proc WHERE proname = 'create_lead_safe'") == 1
        assert rows(
            connection,
            "SELECT tgname FROM pg_trigger WHERE tgrelid = 'public.orders'::regclass AND NOT tgisinternal ORDER BY 1",
        ) == [("guard_rows",), ("guard_truncate",), ("order_numbers",), ("require_actor",), ("row_version",)]
        assert value(connection, "SELECT count(*) FROM pg_policy WHERE polname = 'legacy_policy'") == 0


def test_legacy_function_in_an_empty_database_is_refused(new_database: Callable[..., str]) -> None:
    """A function with an RPC's name is not dropped unasked, even where there are no tables."""
    url = new_database()
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("CREATE FUNCTION public.create_user_safe() RETURNS void LANGUAGE sql AS 'SELECT'")
    with pytest.raises(AdoptionError, match="create_user_safe"):
        migrate_crm(url=url)


def test_migrating_again_changes_nothing(crm_url: str) -> None:
    """A second migration changes nothing; else the next deployment would fill rows and write events again."""
    query = (
        "SELECT (SELECT max(id) FROM public.audit_log), (SELECT count(*) FROM public.users), (SELECT max(oid::bigint) FROM pg_proc),"
        " (SELECT max(oid::bigint) FROM pg_class)"
    )
    with psycopg.connect(crm_url, autocommit=True) as connection:
        before = rows(connection, query)
        lines: list[str] = []
        assert migrate_crm(url=crm_url, report=lines.append).pending == ()
        assert (lines, rows(connection, query)) == ([], before)


def test_migrating_twice_at_once(new_database: Callable[..., str]) -> None:
    """Concurrent migrations of one database, and of two on one server, all succeed; deployments may overlap."""
    urls = [new_database(), new_database()]
    code = "import sys; from crm_analytics.crm.migrating.migrate import migrate_crm; print(migrate_crm(url=sys.argv[1]).version)"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, url], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for url in (urls[0], urls[0], urls[1])
    ]
    newest = migration_files("crm")[-1].version
    for process in processes:
        out, error = process.communicate(timeout=PATIENCE)
        assert out.strip() == newest, error
    with psycopg.connect(urls[0], autocommit=True) as connection:
        assert value(connection, "SELECT count(*) FROM crm_private.migration_files") == len(
            migration_files("crm")
        )


def test_prepare_leaves_an_empty_database_alone(new_database: Callable[..., str]) -> None:
    """An empty database is not stamped; else it would never get its tables."""
    url = new_database()
    with psycopg.connect(url) as connection:
        connection.execute("CREATE SCHEMA crm_private")
        connection.execute("CREATE TABLE crm_private.migration_files (version text)")
        assert prepare(connection) == []
        assert value(connection, "SELECT count(*) FROM crm_private.migration_files") == 0


def test_amounts_stay_exact(seed_url: str) -> None:
    """The fill keeps every digit of a price."""
    with psycopg.connect(seed_url, autocommit=True) as connection:
        connection.execute(
            "INSERT INTO public.orders (order_code, final_price_eur) VALUES ('A', 9999999999.99)"
        )
    migrate_crm(url=seed_url)
    with psycopg.connect(seed_url, autocommit=True) as connection:
        assert value(connection, "SELECT total_amount FROM public.orders") == Decimal("9999999999.99")
