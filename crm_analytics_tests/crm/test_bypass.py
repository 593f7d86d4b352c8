"""Every known way past the RPCs, tried by each role that could try it: all end in an error and change nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from decimal import Decimal
from typing import Any
from uuid import UUID

import psycopg
import pytest
from psycopg import errors

from crm_analytics.crm import CrmClient, CrmResult, Invalid, WrongIsolation
from crm_analytics_tests.crm.conftest import Connection, pay, rows, value

GUARDED = (
    "leads", "orders", "payments", "documents", "tasks", "shipments", "order_status_events", "audit_log",
    "audit_positions", "audit_seals", "customer_erasures", "user_identity_map", "order_status_transitions",
    "payout_limits",
)  # fmt: skip
EVERY = (*GUARDED, "users", "customers")
#: Append-only tables, each with a column that a statement tries to change.
APPEND_ONLY = {
    "order_status_events": "created_at",
    "audit_log": "created_at",
    "audit_positions": "payload_hash",
    "audit_seals": "created_at",
    "customer_erasures": "created_at",
}


@pytest.fixture
def full(crm: Connection, client: CrmClient, order: CrmResult, manager: UUID, admin: UUID) -> Connection:
    """Returns a connection to a database with at least one row in every CRM table."""
    pay(client, order, manager, 1000)
    client.attach_document_safe(
        document_type="photo", storage_url="s3://x", uploaded_by=manager, order_id=order.id
    )
    client.create_task_safe(title="x", created_by=manager, order_id=order.id)
    client.upsert_shipment_safe(order_id=order.id, user_id=manager)
    client.resolve_crm_user(provider="auth", external_id="1", email="max@example.com")
    gone = client.create_lead_safe(source="site", full_name="Gone", contact="@gone")
    client.erase_customer_safe(customer_id=gone.data["customer_id"], user_id=admin, reason="asked")
    crm.execute("SELECT crm_private.seal_audit_safe()")
    return crm


@pytest.fixture
def state(full: Connection) -> Iterator[Callable[[], Any]]:
    """Takes a fingerprint of all rows, and fails the test if it differs at the end."""

    def fingerprint() -> Any:
        return [
            value(full, f"SELECT md5(string_agg(t::text, '|' ORDER BY t::text)) FROM public.{name} t")
            for name in EVERY
        ]

    before = fingerprint()
    yield fingerprint
    assert fingerprint() == before


def refused(
    connection: Connection, statement: str, error: type[Exception] = errors.InsufficientPrivilege
) -> str:
    """Runs a statement that must fail with `error`, and returns its message."""
    with pytest.raises(error) as caught:
        connection.execute(statement.encode())
    return str(caught.value)


@pytest.mark.usefixtures("state")
@pytest.mark.parametrize("table", EVERY)
def test_owner_cannot_write_directly(full: Connection, table: str) -> None:
    """The owner, a superuser here, cannot insert, change or delete a row of any table by hand."""
    column = {
        "users": "name",
        "customers": "full_name",
        "order_status_transitions": "required_role",
        "payout_limits": "manager_limit",
    }.get(table)
    column = column or (
        "provider" if table == "user_identity_map" else "created_at" if table != "documents" else "file_url"
    )
    assert value(full, f"SELECT count(*) > 0 FROM public.{table}")
    assert "is refused" in refused(full, f"DELETE FROM public.{table}")
    refused(full, f"TRUNCATE public.{table} CASCADE")
    if table in GUARDED:
        for (name,) in rows(
            full,
            "SELECT attname FROM pg_attribute WHERE attrelid = %s::regclass AND attnum > 0 AND attgenerated = '' AND attidentity = ''",
            f"public.{table}",
        ):
            refused(full, f'UPDATE public.{table} SET "{name}" = "{name}"')
        refused(
            full,
            f"INSERT INTO public.{table} SELECT * FROM public.{table}"
            if table not in ("tasks", "documents", "audit_log", "customer_erasures")
            else f"INSERT INTO public.{table} DEFAULT VALUES",
        )


@pytest.mark.usefixtures("state")
@pytest.mark.parametrize(
    "statement",
    [
        "INSERT INTO public.orders (order_code) VALUES ('FORGED')",
        "INSERT INTO public.leads (source) VALUES ('forged')",
        "INSERT INTO public.payments (direction, role, method, amount, currency) VALUES ('incoming', 'client_payment', 'cash', 1, 'EUR')",
        "COPY public.orders (order_code) FROM PROGRAM 'echo FORGED'",
        "MERGE INTO public.orders o USING (SELECT 1) s ON true WHEN MATCHED THEN UPDATE SET status = 'closed'",
        "WITH moved AS (UPDATE public.orders SET status = 'closed' RETURNING 1) SELECT * FROM moved",
        "UPDATE ONLY public.orders SET commission_eur = 1",
        "INSERT INTO public.orders SELECT * FROM public.orders ON CONFLICT (id) DO UPDATE SET status = 'closed'",
    ],
)
def test_default_status_and_other_statements(full: Connection, statement: str) -> None:
    """Statements that name no status, and MERGE, COPY and the like, meet the guard too; it is not bound to columns."""
    refused(full, statement)


@pytest.mark.usefixtures("state")
@pytest.mark.parametrize("setting", ["crm.rpc", "app.safe_rpc", "request.jwt.claims", "role.crm_rpc"])
def test_forged_setting(full: Connection, setting: str) -> None:
    """Settings of the session open nothing; a guard that trusted one would open to anyone who sets it."""
    for forged in ("on", "crm_rpc", '{"role": "crm_rpc"}'):
        full.execute("SELECT set_config(%s, %s, false)", [setting, forged])
        refused(full, "UPDATE public.orders SET status = 'closed'")


@pytest.mark.usefixtures("state")
def test_session_replication_role(full: Connection) -> None:
    """Replica mode does not skip the guards; triggers that are not ENABLE ALWAYS would sleep in it."""
    full.execute("SET session_replication_role = replica")
    for table in GUARDED:
        refused(full, f"DELETE FROM public.{table}")
        refused(full, f"TRUNCATE public.{table} CASCADE")
    full.execute("SET session_replication_role = origin")


@pytest.mark.usefixtures("state")
def test_foreign_key_action(full: Connection) -> None:
    """Foreign keys delete and clear nothing; CASCADE and SET NULL run as the owner and would reach guarded rows."""
    for table in ("users", "customers", "leads", "orders"):
        refused(full, f"DELETE FROM public.{table}")
    assert (
        rows(
            full,
            "SELECT conrelid::regclass::text, conname FROM pg_constraint WHERE contype = 'f' AND (confdeltype, confupdtype) <> ('a', 'a')",
        )
        == []
    )


@pytest.mark.usefixtures("state")
def test_search_path_of_the_caller(full: Connection) -> None:
    """The guard ignores operators in the caller's search_path; one of them could make everyone crm_rpc."""
    full.execute(
        """
        CREATE SCHEMA evil;
        CREATE FUNCTION evil.yes(name, text) RETURNS boolean LANGUAGE sql IMMUTABLE AS 'SELECT true';
        CREATE FUNCTION evil.yes(name, name) RETURNS boolean LANGUAGE sql IMMUTABLE AS 'SELECT true';
        CREATE OPERATOR evil.= (LEFTARG = name, RIGHTARG = text, FUNCTION = evil.yes);
        CREATE OPERATOR evil.= (LEFTARG = name, RIGHTARG = name, FUNCTION = evil.yes);
        SET search_path = evil, pg_catalog, public;
        """
    )
    refused(full, "UPDATE public.orders SET status = 'closed'")


def test_domain_in_pg_temp(crm_url: str, crm: Connection, order: CrmResult, manager: UUID) -> None:
    """A caller's domain named like one of our types is not used; its CHECK would run the caller's code as crm_rpc."""
    with psycopg.connect(crm_url, autocommit=True) as connection:
        connection.execute("SET ROLE crm_app")
        connection.execute(
            """
            CREATE FUNCTION pg_temp.stolen(text) RETURNS boolean LANGUAGE plpgsql AS
              $$ BEGIN RAISE EXCEPTION 'ran as %', current_user; END $$;
            """
        )
        for name in (
            "text",
            "uuid",
            "numeric",
            "jsonb",
            "currency_enum",
            "payment_status_enum",
            "users",
            "orders",
        ):
            connection.execute(
                f"CREATE DOMAIN pg_temp.{name} AS pg_catalog.text CHECK (pg_temp.stolen(VALUE::pg_catalog.text))"
            )
        for path in ("pg_temp, public", "pg_temp, pg_catalog, public"):
            connection.execute(f"SET search_path = {path}")
            paid = pay(CrmClient(connection), order, manager, 10)
            assert paid.data["order_status"] == "awaiting_payment"


#: Functions without a fixed search_path that run as another role, in a trigger, or for any role but crm_rpc and the
#: owner. The RPCs' helpers need none: only crm_rpc may execute them, inside an RPC and with its search_path.
UNSAFE_FUNCTIONS = (
    "SELECT proname FROM pg_proc WHERE pronamespace IN ('public'::regnamespace, 'crm_private'::regnamespace)"
    " AND NOT COALESCE(proconfig @> ARRAY['search_path=pg_catalog, pg_temp'], false)"
    " AND (prosqlbody IS NULL OR prosecdef)"  # parsed when it was made, and with the caller's rights
    " AND (prosecdef OR prorettype = 'trigger'::regtype OR proacl IS NULL OR EXISTS (SELECT FROM aclexplode(proacl) a"
    "  WHERE a.privilege_type = 'EXECUTE' AND a.grantee NOT IN (proowner, 'crm_rpc'::regrole)))"
)


def test_function_replaced_without_its_set_clause(crm: Connection, order: CrmResult, manager: UUID) -> None:
    """Every function that needs a fixed search_path has one; CREATE OR REPLACE drops SET clauses silently."""
    assert rows(crm, UNSAFE_FUNCTIONS) == []
    definition = value(crm, "SELECT pg_get_functiondef('public.resolve_crm_user'::regproc)")
    assert "SET search_path TO 'pg_catalog', 'pg_temp'\n" in definition
    crm.execute("BEGIN")
    crm.execute(
        """
        CREATE FUNCTION pg_temp.stolen(text) RETURNS boolean LANGUAGE plpgsql AS
          $$ BEGIN RAISE EXCEPTION 'ran as %', current_user; END $$;
        CREATE DOMAIN pg_temp.code AS text CHECK (pg_temp.stolen(VALUE));
        """
    )
    crm.execute("GRANT CREATE ON SCHEMA public TO crm_rpc; SET LOCAL ROLE crm_rpc")
    crm.execute(
        definition.replace("SET search_path TO 'pg_catalog', 'pg_temp'\n", "")
        .replace("v_provider text", "v_provider code")
        .encode()
    )
    crm.execute("RESET ROLE")
    assert rows(crm, UNSAFE_FUNCTIONS) == [("resolve_crm_user",)]
    # The danger is real: this is what the SET clause is for.
    message = refused(crm, "SELECT public.resolve_crm_user('auth', '1')", errors.RaiseException)
    assert message.startswith("ran as crm_rpc")
    crm.execute("ROLLBACK")


@pytest.mark.parametrize("amount", ["NaN", "Infinity", "-Infinity", "0", "-1", "0.001", "10000000000"])
def test_impossible_amounts(
    crm: Connection, client: CrmClient, order: CrmResult, manager: UUID, amount: str
) -> None:
    """NaN, infinity and the like are refused as amounts; NaN is greater than every number and would pay every order."""
    with pytest.raises(Invalid) as caught:
        pay(client, order, manager, Decimal(amount))
    assert caught.value.detail["field"] == "p_amount"
    with pytest.raises(Invalid):
        client.quick_order_safe(
            source="s", full_name="n", items=[], total_amount=Decimal(amount),
            currency="EUR", phone="5550100", user_id=manager,
        )  # fmt: skip
    assert rows(crm, "SELECT count(*) FROM public.payments") == [(0,)]


@pytest.mark.usefixtures("state")
def test_append_only_for_the_rpcs_too(full: Connection) -> None:
    """Even crm_rpc cannot change events, audit rows, positions, seals or erasures; a faulty RPC could otherwise rewrite history."""
    full.execute("SET ROLE crm_rpc")
    for table, column in APPEND_ONLY.items():
        for statement in (f"UPDATE public.{table} SET {column} = {column}", f"DELETE FROM public.{table}"):
            refused(full, statement)
    full.execute("RESET ROLE")
    # The trigger alone holds as well, when the privilege is there.
    full.execute("BEGIN")
    full.execute("GRANT ALL ON ALL TABLES IN SCHEMA public TO crm_rpc; SET LOCAL ROLE crm_rpc")
    for table, column in APPEND_ONLY.items():
        full.execute("SAVEPOINT s")
        assert "is refused" in refused(full, f"DELETE FROM public.{table}")
        full.execute("ROLLBACK TO s")
        assert "is refused" in refused(full, f"UPDATE public.{table} SET {column} = {column}")
        full.execute("ROLLBACK TO s")
    full.execute("ROLLBACK")


def test_ledger_holds_for_the_rpcs_too(
    crm: Connection, client: CrmClient, order: CrmResult, manager: UUID
) -> None:
    """Even crm_rpc cannot change a booked amount, or book without an actor, an order or a real amount."""
    pay(client, order, manager, 10, "r-1")
    crm.execute(
        "BEGIN; GRANT ALL ON public.payments, public.orders TO crm_rpc; SET LOCAL ROLE crm_rpc; SAVEPOINT s"
    )
    insert = (
        "INSERT INTO public.payments (order_id, direction, role, method, amount, currency, created_by) VALUES"
    )
    for statement, error in (
        ("UPDATE public.payments SET amount = 11", errors.CheckViolation),
        ("UPDATE public.payments SET status = 'pending'", errors.CheckViolation),
        ("UPDATE public.payments SET reference_key = 'r-2', external_reference = 'r-2'", errors.CheckViolation),
        ("UPDATE public.orders SET created_by = NULL", errors.CheckViolation),
        (f"{insert} ('{order.id}', 'incoming', 'client_payment', 'cash', 1, 'EUR', NULL)", errors.NotNullViolation),
        (f"{insert} ('{order.id}', 'incoming', 'client_payment', 'cash', 'NaN', 'EUR', '{manager}')", errors.CheckViolation),
        (f"{insert} ('{order.id}', 'incoming', 'client_payment', 'cash', 0, 'EUR', '{manager}')", errors.CheckViolation),
        (f"{insert} (NULL, 'incoming', 'client_payment', 'cash', 1, 'EUR', '{manager}')", errors.CheckViolation),
    ):  # fmt: skip
        refused(crm, statement, error)
        crm.execute("ROLLBACK TO s")
    crm.execute("ROLLBACK")


def test_owner_writes_of_people_are_audited(crm: Connection, manager: UUID) -> None:
    """The owner's changes of users and customers are audited with the login; a changed role must leave a trace."""
    crm.execute("UPDATE public.users SET role = 'admin' WHERE id = %s", [manager])
    crm.execute("INSERT INTO public.customers (full_name) VALUES ('By hand')")
    found = rows(
        crm,
        "SELECT actor_id, action, entity, entity_id = %s, payload -> 'changes', \"session_user\" = session_user"
        " FROM public.audit_log ORDER BY id DESC LIMIT 2",
        manager,
    )
    assert found == [
        (None, "create", "customers", False, None, True),
        (None, "update", "users", True, {"role": {"old": "manager", "new": "admin"}}, True),
    ]


def test_audit_trigger_cannot_be_borrowed(crm: Connection) -> None:
    """The audit trigger refuses to run on other tables; the owner could forge audit rows through one of them."""
    crm.execute(
        "CREATE SCHEMA forge; CREATE TABLE forge.users (id uuid); CREATE TRIGGER t AFTER INSERT ON forge.users"
        " FOR EACH ROW EXECUTE FUNCTION crm_private.audit_owner_write()"
    )
    before = value(crm, "SELECT count(*) FROM public.audit_log")
    refused(crm, "INSERT INTO forge.users VALUES (gen_random_uuid())")
    assert value(crm, "SELECT count(*) FROM public.audit_log") == before


def test_seals_show_tampering(full: Connection) -> None:
    """Sealed audit rows and seals that were changed are found, even when a superuser switched the guards off."""
    assert rows(full, "SELECT * FROM crm_private.broken_seals()") == []
    last = value(full, "SELECT max(id) FROM public.audit_log")
    for statement, problem in (
        ("UPDATE public.audit_log SET payload = '{}' WHERE id = 3", "the audit rows it covers were changed"),
        ("UPDATE public.audit_log SET created_at = created_at - interval '1 microsecond' WHERE id = 3", "the audit rows it covers were changed"),
        (f"DELETE FROM public.audit_log WHERE id = {last}", f"sealed {last} audit rows, {last - 1} are there"),
        (f"UPDATE public.audit_seals SET hash = '{'0' * 64}'", "the audit rows it covers were changed"),
        (f"UPDATE public.audit_seals SET previous_hash = '{'1' * 64}'", "does not continue the seal before it"),
        ("UPDATE public.audit_positions SET salt = NULL, payload_hash = sha256('') WHERE position = 3", "the audit rows it covers were changed"),
        (f"DELETE FROM public.audit_positions WHERE position = {last}", f"sealed {last} audit rows, {last - 1} are there"),
        ("UPDATE public.audit_positions SET audit_id = 1 WHERE audit_id = 3", "the audit rows it covers were changed"),
        ("UPDATE public.audit_seals SET seq = 2", "a seal is missing before this one"),
    ):  # fmt: skip
        full.execute("BEGIN")
        full.execute(
            "ALTER TABLE public.audit_log DISABLE TRIGGER ALL; ALTER TABLE public.audit_seals DISABLE TRIGGER ALL;"
            "ALTER TABLE public.audit_positions DISABLE TRIGGER ALL, DROP CONSTRAINT audit_positions_audit_id_key"
        )
        full.execute(statement.encode())
        assert [found for _, found in rows(full, "SELECT * FROM crm_private.broken_seals()")] == [problem]
        full.execute("ROLLBACK")


def test_above_read_committed_is_refused(
    crm: Connection, client: CrmClient, order: CrmResult, manager: UUID
) -> None:
    """RPCs refuse isolation levels above READ COMMITTED, whose snapshot would be older than the order's lock."""
    for level in ("REPEATABLE READ", "SERIALIZABLE"):
        crm.execute(f"BEGIN ISOLATION LEVEL {level}")
        with pytest.raises(WrongIsolation) as caught:
            pay(client, order, manager, 1)
        assert caught.value.sqlstate == "25001"
        crm.execute("ROLLBACK")
