"""Adoption of both shapes that the requirements give: planned dry, then run; nothing is lost, and both end the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from crm_analytics.cli import crm_schema
from crm_analytics.core.embedded_postgres import EmbeddedPostgres
from crm_analytics.core.migrations import MigrationError
from crm_analytics.crm import CrmClient
from crm_analytics.crm.migrating.legacy import OTHER_NAMES, read_status_map
from crm_analytics.crm.migrating.migrate import migrate_crm
from crm_analytics.crm.schema import manifest
from crm_analytics_tests.crm.conftest import Connection, broken_invariants, rows, shown_statements, value
from crm_analytics_tests.crm.test_adoption import FILL, SEED_SCHEMA, TABLES
from crm_analytics_tests.crm.test_privileges import BROAD_GRANTS

FOLDER = Path(__file__).parent
PROSE_SCHEMA = (FOLDER / "prose_schema.sql").read_text(encoding="utf-8")
PROSE_ROWS = (FOLDER / "prose_rows.sql").read_text(encoding="utf-8")
#: Shapes and logins; test_adoption.py adopts the production DDL as the superuser.
SHAPES = (("ddl", "platform"), ("prose", "platform"), ("prose", "superuser"))


@pytest.fixture
def hosted(own_server: EmbeddedPostgres) -> EmbeddedPostgres:
    """Returns a server with Supabase's roles, and a login that owns databases without being a superuser."""
    with psycopg.connect(own_server.url("postgres"), autocommit=True) as connection:
        connection.execute("CREATE ROLE anon; CREATE ROLE authenticated; CREATE ROLE service_role BYPASSRLS")
        connection.execute("CREATE ROLE platform LOGIN CREATEROLE PASSWORD 'x'")
    return own_server


def make_database(server: EmbeddedPostgres, shape: str, login: str, fill: bool = True) -> str:
    """Makes a database of one shape with rows, which belongs to the login; returns its address."""
    url = server.url("crm")
    if login == "platform":
        with psycopg.connect(server.url("postgres"), autocommit=True) as connection:
            connection.execute("ALTER DATABASE crm OWNER TO platform")
        url = make_conninfo(url, user="platform", password="x")
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(BROAD_GRANTS.encode())
        connection.execute(SEED_SCHEMA.encode())
        if fill:
            connection.execute(FILL.encode())
        if shape == "prose":
            connection.execute(PROSE_SCHEMA.encode())
            if fill:
                connection.execute(PROSE_ROWS.encode())
        connection.execute(BROAD_GRANTS.encode())
    return url


def contents(connection: Connection) -> dict[str, list[dict[str, Any]]]:
    """Returns every row of every table that the database has, as JSON."""
    names = [
        name
        for (name,) in rows(
            connection,
            "SELECT relname::text FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind = 'r' ORDER BY 1",
        )
    ]
    return {
        name: [
            row for (row,) in rows(connection, f"SELECT to_jsonb(t) FROM public.{name} t ORDER BY t::text")
        ]
        for name in names
    }


def catalog(connection: Connection) -> list[tuple[Any, ...]]:
    return rows(
        connection,
        "SELECT oid::bigint, relname::text, relacl::text FROM pg_class UNION ALL"
        " SELECT oid::bigint, proname::text, proacl::text FROM pg_proc UNION ALL"
        " SELECT attrelid::bigint, attname::text, attnum::text FROM pg_attribute UNION ALL"
        " SELECT oid::bigint, enumlabel::text, NULL FROM pg_enum ORDER BY 1, 2",
    )


def check(url: str, file: Path | None) -> list[str]:
    """Plans the adoption, asserts that nothing changed, and returns the lines of the plan."""
    lines: list[str] = []
    with psycopg.connect(url, autocommit=True) as connection:
        before = catalog(connection)
        assert crm_schema.migrate(url=url, check=True, map_status=file, echo=lines.append) == 1
        assert catalog(connection) == before
    return lines


@pytest.mark.parametrize(("shape", "login"), SHAPES)
def test_a_database_of_each_shape_is_planned_and_adopted(
    hosted: EmbeddedPostgres, tmp_path: Path, shape: str, login: str
) -> None:
    """--check prints the whole plan and changes nothing; the migration keeps every row, and ends on the same manifest."""
    url = make_database(hosted, shape, login)
    file = tmp_path / "statuses"
    file.write_text("# decided with Olga\non_hold = awaiting_payment\n", encoding="utf-8")
    with psycopg.connect(url, autocommit=True) as connection:
        # one status that the CRM does not know
        connection.execute("UPDATE public.orders SET status = 'on_hold' WHERE commission_eur IS NOT NULL")
        before = contents(connection)
    held = {row["id"] for row in before["orders"] if row["status"] == "on_hold"}
    assert len(held) > 3000

    unmapped = "\n".join(check(url, None))
    assert (
        f"{len(held):,} orders with the status on_hold, which the CRM does not know" in unmapped
        or shape == "prose"
    )
    lines = check(url, file)
    blocking = [line for line in lines if line.startswith("in the way: ")]
    assert bool(blocking) == (shape == "prose")
    for line in blocking:
        with psycopg.connect(url, autocommit=True) as connection:
            for remedy in line.splitlines()[1:]:
                connection.execute(remedy.encode())
    if blocking:
        lines = check(url, file)
        assert [line for line in lines if line.startswith("in the way: ")] == []
    text = "\n".join(lines)
    assert f"plan: {len(held):,} orders moved from on_hold to awaiting_payment" in text
    assert "each gets its total_amount from final_price_eur" in text
    assert "plan: 10,000 orders: each gets one event `adopted`" in text
    assert "plan: added later: label public.order_status_enum 'created'" in text
    if shape == "prose":
        assert "plan: column public.orders.order_number renamed to order_code" in text
        assert "plan: 5,000 rows of the older audit_log carried over" in text
        assert "plan: 23 rows of the older user_identity_map carried over" in text
        with psycopg.connect(url, autocommit=True) as connection:
            before = contents(connection)

    done: list[str] = []
    migrate_crm(url, status_map=read_status_map(file), report=done.append)
    for line in lines:
        if line.startswith("plan: ") and "added later" not in line:
            assert line.removeprefix("plan: ") in done
    with psycopg.connect(url, autocommit=True) as connection:
        after = contents(connection)
        _nothing_is_lost(before, after, held)
        if shape == "prose":
            _older_rows_are_there(before, after)
        found = manifest.compare(connection)
        assert [d.problem for d in found.differences] == []
        assert manifest.unexpected_writers(connection) == []
        assert broken_invariants(connection) == {}
        assert rows(
            connection,
            "SELECT r, c.oid::regclass::text FROM unnest(ARRAY['anon', 'authenticated', 'service_role']) r, pg_class c"
            " WHERE c.relnamespace IN ('public'::regnamespace, 'crm_private'::regnamespace) AND c.relkind IN ('r', 'S', 'v')"
            " AND CASE c.relkind WHEN 'S' THEN has_sequence_privilege(r, c.oid, 'USAGE, SELECT, UPDATE')"
            " ELSE has_table_privilege(r, c.oid, 'SELECT, INSERT, UPDATE, DELETE') END",
        ) == []  # fmt: skip
        # work goes on with an order that was on hold
        order = sorted(held)[0]
        admin = value(
            connection,
            "INSERT INTO public.users (name, email, role) VALUES ('Ada', 'ada@example.org', 'admin') RETURNING id",
        )
        CrmClient(connection).advance_order_status_safe(
            order_id=order, new_status="cancelled", user_id=admin, reason="gave up"
        )
    assert migrate_crm(url).pending == ()


def _nothing_is_lost(before: Any, after: Any, held: set[str]) -> None:
    """Every row is there with every value, under the production DDL's names; mapped statuses are in the events."""
    names = {(new.split(".")[0], older): new.split(".")[1] for new, older in OTHER_NAMES.items()}
    for table in TABLES:
        there = {row["id"]: row for row in after[table]}
        for row in before[table]:
            now = there[row["id"]]
            for column, old in row.items():
                renamed = names.get((table, column), column)
                name = renamed if renamed not in row else column
                if (table, name) == ("orders", "status") and row["id"] in held:
                    assert now["status"] == "awaiting_payment"
                elif old is not None:
                    assert now[name] == old, (table, column)
    adopted = {e["order_id"]: e for e in after["order_status_events"] if e["reason"] == "adopted"}
    assert {order for order, event in adopted.items() if event["notes"] == "was on_hold"} == held


def _older_rows_are_there(before: Any, after: Any) -> None:
    """Every row of the older journal and of the identities is in the audit log as it was; identities still resolve."""
    kept = [row["payload"]["adopted"] for row in after["audit_log"] if "adopted" in row["payload"]]
    for table in ("audit_log", "user_identity_map"):
        for row in before[table]:
            assert row in kept, (table, row)
    assert len(kept) == 5023
    assert {(m["external_id"], m["crm_user_id"]) for m in after["user_identity_map"]} == {
        (row["external_id"], row["crm_user_id"])
        for row in before["user_identity_map"]
        if row["crm_user_id"] and row["id"] != 23
    }


def test_a_status_map_names_what_there_is(hosted: EmbeddedPostgres, tmp_path: Path) -> None:
    """A line that names no status, or an older status that there is not, is refused before anything changes."""
    file = tmp_path / "statuses"
    for line in ("on_hold: paid", "on_hold = done", "paid = closed", "= paid"):
        file.write_text(line, encoding="utf-8")
        with pytest.raises(MigrationError, match="is not `older status = status`"):
            read_status_map(file)
    url = make_database(hosted, "ddl", "superuser", fill=False)
    file.write_text("frozen = paid", encoding="utf-8")
    assert any(line.startswith("in the way: --map-status names frozen") for line in check(url, file))


#: Many things at once that keep a database from being adopted, some of them on the same object.
CONFLICTS = """
ALTER TABLE public.orders DROP COLUMN commission_eur, ALTER COLUMN bike_url TYPE varchar(900);
ALTER TABLE public.tasks ADD COLUMN status text NOT NULL DEFAULT 'open', DROP CONSTRAINT tasks_order_id_fkey;
CREATE TABLE public.audit_log (id int, note text); GRANT ALL ON public.audit_log TO anon;
CREATE INDEX idx_audit_log_entity ON public.audit_log (note);
ALTER TABLE public.payments ADD COLUMN reference_key text UNIQUE;
INSERT INTO public.payments (direction, role, method, amount, currency, reference_key) VALUES ('incoming', 'refund', 'card', 1, 'EUR', 'x');
CREATE INDEX idx_orders_customer ON public.orders (customer_id);
CREATE FUNCTION public.create_lead_safe() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';
CREATE TRIGGER legacy BEFORE INSERT ON public.leads FOR EACH ROW EXECUTE FUNCTION public.create_lead_safe();
CREATE VIEW public.all_orders AS SELECT * FROM public.orders;
CREATE VIEW public.paid_orders AS SELECT * FROM public.all_orders WHERE status = 'paid';
CREATE FUNCTION public.peek() RETURNS bigint LANGUAGE sql SECURITY DEFINER AS 'SELECT count(*) FROM public.orders';
CREATE TABLE public.notes (order_id uuid REFERENCES public.orders, note text); GRANT SELECT ON public.notes TO anon;
CREATE PUBLICATION everything FOR TABLE public.orders;
"""


def test_remedies_do_not_contradict_each_other(hosted: EmbeddedPostgres) -> None:
    """All remedies of one refusal run in the order in which they are shown, and then the migration does."""
    url = make_database(hosted, "ddl", "superuser", fill=False)
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(CONFLICTS.encode())
    with pytest.raises(MigrationError) as refused:
        migrate_crm(url)
    message = str(refused.value)
    with psycopg.connect(url, autocommit=True) as connection:
        for statement in shown_statements(message):
            connection.execute(statement.encode())
    migrate_crm(url)
    with psycopg.connect(url, autocommit=True) as connection:
        assert (
            value(connection, "SELECT has_table_privilege('anon', 'public.audit_log_legacy', 'SELECT')")
            is False
        )
        assert value(connection, "SELECT count(*) FROM public.payments WHERE reference_key_legacy = 'x'") == 1
