"""Tier D of crm.md: every attack for real, on a scratch database that nobody else uses, each rolled back.

An attack is a function that tries to get past a guard and raises `Breach` when it succeeds, or when something
that must work does not (a guard that refuses everybody is no guard). Never run these against production.
"""

from __future__ import annotations

import re
import tempfile
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql
from psycopg.types.json import Jsonb

from crm_analytics.core.embedded_postgres import EmbeddedPostgres
from crm_analytics.crm.proof.manifest import CRM_TABLES, RPC_NAMES, expected

REFUSED = frozenset({"42501"})
#: The owner may insert and update these (audited), crm.md "Guards".
OWNER_WRITES = ("users", "customers")
APPEND_ONLY = ("order_status_events", "audit_log", "audit_seals")


class Breach(AssertionError):
    """An attack got through, or a guard refuses what it must allow."""


class _RollBack(Exception):
    """Leaves a savepoint on purpose."""


@dataclass(frozen=True)
class Attack:
    """One attack: what it tries, which guards (of `manifest.GUARDS`) it exercises, and how to run it.

    Attacks that differ only in their table or function are one `family`: one check in Dagster.
    """

    name: str
    family: str
    description: str
    guards: tuple[str, ...]
    run: Callable[[Lab], None]


@dataclass(frozen=True)
class Outcome:
    """Whether the guards held against one attack; `detail` says what got through."""

    attack: Attack
    held: bool
    detail: str = ""


ATTACKS: dict[str, Attack] = {}


def _attack(*guards: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Registers a function as an attack under its own name; its docstring is the description."""

    def register(function: Callable[..., None]) -> Callable[..., None]:
        _register(function.__name__, (function.__doc__ or "").strip(), guards, function)
        return function

    return register


def _register(
    family: str, description: str, guards: tuple[str, ...], run: Callable[[Lab], None], about: str = ""
) -> None:
    name = f"{family}_{about}" if about else family
    ATTACKS[name] = Attack(name, family, description, guards, run)


class Lab:
    """A scratch database with a row in every table, where attacks are tried and rolled back."""

    def __init__(self, connection: psycopg.Connection[Any], sample: Mapping[str, Any]) -> None:
        self.connection = connection
        self.sample = sample

    def try_(self, attack: Attack) -> Outcome:
        """Run one attack; whatever it does is rolled back."""
        held, detail = True, ""
        try:
            with self.connection.transaction(force_rollback=True):
                attack.run(self)
        except Breach as breach:
            held, detail = False, str(breach)
        except psycopg.Error as error:
            held, detail = False, f"the attack could not be tried: {error.sqlstate} {error}"
        return Outcome(attack, held, detail)

    # -- what attacks use -------------------------------------------------------------------------------

    def run(self, statement: str, **values: Any) -> Any:
        """Run one statement as whoever is current; the first column of its first row, if it returns one."""
        cursor = self.connection.execute(statement, {**self.sample, **values})
        row = cursor.fetchone() if cursor.description else None
        return row[0] if row else None

    @contextmanager
    def role(self, name: str | None) -> Iterator[None]:
        """Act as another role, in a savepoint that is rolled back; None is the login itself."""
        try:
            with self.connection.transaction():
                if name is not None:
                    self.connection.execute(sql.SQL("SET LOCAL ROLE {}").format(sql.Identifier(name)))
                yield
                raise _RollBack
        except _RollBack:
            pass

    def stranger(self) -> str:
        """A role without any membership, made for the duration of one attack."""
        name = f"crm_stranger_{self.connection.info.backend_pid}"
        self.run(f"DO $$ BEGIN CREATE ROLE {name} NOLOGIN; EXCEPTION WHEN duplicate_object THEN NULL; END $$")
        return name

    def refused(
        self,
        statements: Iterable[str],
        role: str | None = None,
        sqlstates: frozenset[str] = REFUSED,
        saying: str = "",
        **values: Any,
    ) -> None:
        """Every one of the statements must be refused with one of the SQLSTATEs, and a message that has `saying`.

        Privileges and triggers refuse with the same SQLSTATE: the message tells which of the two held.

        Raises:
            Breach: naming the first statement that was not.
        """
        for statement in statements:
            with self.role(role):
                try:
                    with self.connection.transaction():
                        result = self.connection.execute(statement, {**self.sample, **values})
                        said = f"succeeded ({result.statusmessage})"
                        self.connection.execute("SET CONSTRAINTS ALL IMMEDIATE")
                except psycopg.Error as error:
                    if error.sqlstate in sqlstates and saying in str(error):
                        continue
                    said = f"ended with {error.sqlstate}: {str(error).splitlines()[0]}"
            raise Breach(
                f"as {role or 'the owner'}: {statement} {said}, expected {'/'.join(sorted(sqlstates))}"
            )

    def call(self, rpc: str, /, **arguments: Any) -> dict[str, Any]:
        """Call an RPC by named arguments (names without `p_`); raises what the database raises."""
        names = sql.SQL(", ").join(
            sql.SQL("{} => {}").format(sql.Identifier(f"p_{name}"), sql.Placeholder(name))
            for name in arguments
        )
        query = sql.SQL("SELECT public.{}({})").format(sql.Identifier(rpc), names)
        values = {name: Jsonb(v) if isinstance(v, dict | list) else v for name, v in arguments.items()}
        row = self.connection.execute(query, values).fetchone()
        assert row is not None
        answer: dict[str, Any] = row[0]
        return answer

    def call_refused(self, sqlstate: str, rpc: str, /, **arguments: Any) -> None:
        """The RPC, called as crm_app, must refuse with exactly this SQLSTATE."""
        shown = f"{rpc}({', '.join(f'{name} => {value}' for name, value in arguments.items())})"
        with self.role("crm_app"):
            try:
                with self.connection.transaction():
                    said = f"returned {self.call(rpc, **arguments)}"
            except psycopg.Error as error:
                if error.sqlstate == sqlstate:
                    return
                said = f"ended with {error.sqlstate}: {str(error).splitlines()[0]}"
        raise Breach(f"{shown} {said}, expected {sqlstate}")

    def columns(self, table: str, *, identity: bool = False, writable: bool = True) -> list[str]:
        """The columns that a statement can name: not generated ones, and identity columns only if asked for."""
        return [
            name
            for (name,) in self.connection.execute(
                "SELECT quote_ident(attname) FROM pg_attribute WHERE attrelid = %(table)s::regclass AND attnum > 0"
                " AND NOT attisdropped AND (attgenerated = '' OR NOT %(writable)s)"
                " AND (attidentity = '' OR %(identity)s OR NOT %(writable)s) ORDER BY attnum",
                {"table": f"public.{table}", "identity": identity, "writable": writable},
            )
        ]

    def writes(
        self, table: str, actions: Sequence[str] = ("INSERT", "UPDATE", "DELETE", "TRUNCATE")
    ) -> list[str]:
        """Statements that write a table in every way: defaults, copies, each single column, all rows."""
        columns = self.columns(table)
        statements = []
        if "INSERT" in actions:
            statements += [
                f"INSERT INTO public.{table} DEFAULT VALUES",
                f"INSERT INTO public.{table} ({', '.join(columns)}) SELECT {', '.join(columns)} FROM public.{table}",
            ]
        if "UPDATE" in actions:
            statements += [f"UPDATE public.{table} SET {column} = {column}" for column in columns]
        if "DELETE" in actions:
            statements.append(f"DELETE FROM public.{table}")
        if "TRUNCATE" in actions:
            statements.append(f"TRUNCATE public.{table} CASCADE")
        return statements


# -- the sample ------------------------------------------------------------------------------------------


def prepare(connection: psycopg.Connection[Any]) -> Lab:
    """Put people, a lead, orders, payments and the rest into an empty migrated database, through the RPCs."""
    lab = Lab(connection, {})
    people = {
        name: connection.execute(
            "INSERT INTO public.users (name, email, role, active)"
            " VALUES (%s, %s, %s::text::public.user_role_enum, %s) RETURNING id",
            [name, f"{name}@example.com", role, active],
        ).fetchone()[0]  # type: ignore[index]
        for name, role, active in (
            ("admin", "admin", True),
            ("manager", "manager", True),
            ("left", "admin", False),
        )
    }
    admin, manager = people["admin"], people["manager"]
    with connection.transaction():
        connection.execute("SET LOCAL ROLE crm_app")
        lab.call("map_identity_safe", provider="attack", external_id="m", crm_user_id=manager, user_id=admin)
        lead = lab.call("create_lead_safe", source="site", full_name="A Client", phone="+1 202 555 0100")[
            "id"
        ]
        open_lead = lab.call("create_lead_safe", source="site", full_name="B Client", email="b@example.com")[
            "id"
        ]
        customer = connection.execute(
            "SELECT customer_id FROM public.leads WHERE id = %s", [lead]
        ).fetchone()[0]  # type: ignore[index]
        order_of = partial(
            lab.call,
            "create_order_safe",
            customer_id=customer,
            total_amount="1000",
            currency="EUR",
            user_id=manager,
        )
        fresh, paid = order_of(items=[{"model": "Road 54"}])["id"], order_of(lead_id=lead)["id"]
        pay = partial(lab.call, "record_generic_payment_safe", currency="EUR", user_id=manager)
        payment = pay(
            order_id=paid, direction="incoming", role="client_payment", method="card", amount="1000",
            external_reference="attack-1",
        )["id"]  # fmt: skip
        planned = pay(
            order_id=fresh, direction="incoming", role="client_payment", method="bank_transfer", amount="100",
            status="planned", external_reference="attack-2",
        )["id"]  # fmt: skip
        lab.call(
            "attach_document_safe", document_type="passport", storage_url="https://example.com/p",
            uploaded_by=manager, order_id=paid,
        )  # fmt: skip
        task = lab.call("create_task_safe", title="Call", created_by=manager, order_id=paid)["id"]
        shipment = lab.call("upsert_shipment_safe", order_id=paid, user_id=manager, provider="cdek")["id"]
    connection.execute("SELECT crm_private.seal_audit_safe()")
    lab.sample = {
        **people, "customer": customer, "lead": lead, "open_lead": open_lead, "fresh": fresh, "paid": paid,
        "payment": payment, "planned": planned, "task": task, "shipment": shipment,
    }  # fmt: skip
    return lab


# -- writing past the RPCs -------------------------------------------------------------------------------


def _owner_writes(lab: Lab, table: str) -> None:
    actions = ("DELETE",) if table in OWNER_WRITES else ("INSERT", "UPDATE", "DELETE")
    lab.refused(lab.writes(table, actions))
    # CASCADE reaches other tables, whose guards must not be what refuses
    lab.refused(lab.writes(table, ("TRUNCATE",)), saying=f"TRUNCATE on {table} is refused")


def _other_superuser_writes(lab: Lab, table: str) -> None:
    other = lab.stranger()
    lab.run(f"ALTER ROLE {other} SUPERUSER")
    for setting in ("origin", "replica"):
        lab.run("SELECT set_config('session_replication_role', %(setting)s, true)", setting=setting)
        lab.refused(lab.writes(table, ("INSERT", "UPDATE", "DELETE")), role=other, saying="is refused")


def _replica_writes(lab: Lab, table: str) -> None:
    lab.run("SET LOCAL session_replication_role = replica")
    _owner_writes(lab, table)


def _app_writes(lab: Lab, table: str) -> None:
    lab.refused(lab.writes(table), role="crm_app", saying="permission denied")
    _plants(lab, table, "crm_app")


def _stranger_reaches(lab: Lab, table: str) -> None:
    stranger = lab.stranger()
    lab.refused(
        [f"SELECT FROM public.{table}", *lab.writes(table)], role=stranger, saying="permission denied"
    )
    _plants(lab, table, stranger)


def _plants(lab: Lab, table: str, role: str) -> None:
    lab.refused(
        [
            f"CREATE TRIGGER planted BEFORE INSERT ON public.{table} FOR EACH ROW"
            " EXECUTE FUNCTION pg_catalog.suppress_redundant_updates_trigger()",
            f"CREATE RULE planted AS ON INSERT TO public.{table} DO INSTEAD NOTHING",
            f"CREATE POLICY planted ON public.{table} USING (true)",
            f"ALTER TABLE public.{table} DISABLE TRIGGER ALL",
        ],
        role=role,
    )


def _rpc_role_overreaches(lab: Lab, table: str) -> None:
    grants = expected().objects
    writes = [
        ("INSERT", f"INSERT INTO public.{table} DEFAULT VALUES"),
        ("DELETE", f"DELETE FROM public.{table}"),
        ("TRUNCATE", f"TRUNCATE public.{table} CASCADE"),
        *((f"UPDATE {c}", f"UPDATE public.{table} SET {c} = {c}") for c in lab.columns(table)),
    ]
    for action, statement in writes:
        privilege, _, column = action.partition(" ")
        granted = f"grant table public.{table} to crm_rpc: {privilege}" in grants or (
            f"grant column public.{table}.{column} to crm_rpc: {privilege}" in grants
        )
        if not granted:
            lab.refused([statement], role="crm_rpc", saying=f"permission denied for table {table}")


def _broad_grant(lab: Lab, table: str) -> None:
    stranger = lab.stranger()
    lab.run(f"GRANT ALL ON public.{table} TO {stranger}")
    with lab.role(stranger):
        if seen := lab.run(f"SELECT count(*) FROM public.{table}"):
            raise Breach(f"a role with nothing but a grant reads {seen} rows of {table}")
    # no row is visible to update or delete; an insert meets the trigger, and behind it the policy
    lab.refused([f"INSERT INTO public.{table} DEFAULT VALUES"], role=stranger)


def _rewrites_history(lab: Lab, table: str) -> None:
    lab.run(f"GRANT UPDATE, DELETE, TRUNCATE ON public.{table} TO crm_rpc")  # only the triggers are left
    for setting in ("origin", "replica"):
        lab.run("SELECT set_config('session_replication_role', %(setting)s, true)", setting=setting)
        lab.refused(lab.writes(table, ("UPDATE", "DELETE")), role="crm_rpc", saying="is refused")


for _table in CRM_TABLES:
    for _name, _text, _guards, _run in (
        (
            "owner_writes",
            "The owner or a superuser writes {} by hand: every action, every column.",
            (f"triggers_{_table}",),
            _owner_writes,
        ),
        (
            "replica_role_writes",
            "As owner_writes, with session_replication_role = replica, which skips triggers not ALWAYS.",
            (f"triggers_{_table}",),
            _replica_writes,
        ),
        (
            "app_writes",
            "The application's role writes {} without an RPC.",
            ("table_grants", f"triggers_{_table}"),
            _app_writes,
        ),
        (
            "stranger_reaches",
            "A role without rights reads, writes, or plants a trigger, rule or policy on {}.",
            ("table_grants",),
            _stranger_reaches,
        ),
        (
            "rpc_role_overreaches",
            "crm_rpc writes in {} what no RPC needs to write: its grants end there.",
            ("table_grants",),
            _rpc_role_overreaches,
        ),
        (
            "broad_grant",
            "Somebody grants everything on {} to a stranger: row security and triggers must still hold.",
            ("row_security", f"triggers_{_table}"),
            _broad_grant,
        ),
    ):
        _register(_name, _text.format(_table), _guards, partial(_run, table=_table), _table)
for _table in OWNER_WRITES:
    _register(
        "other_superuser_writes",
        f"A superuser who is not the owner writes {_table}.",
        (f"triggers_{_table}",),
        partial(_other_superuser_writes, table=_table),
        _table,
    )
for _table in APPEND_ONLY:
    _register(
        "rewrites_history",
        f"Even crm_rpc, the RPCs' own role, changes or deletes rows of {_table}.",
        (f"triggers_{_table}",),
        partial(_rewrites_history, table=_table),
        _table,
    )


_ACTOR_COLUMNS = {
    "orders": "created_by",
    "payments": "created_by",
    "documents": "uploaded_by",
    "tasks": "created_by",
    "shipments": "created_by",
    "order_status_events": "changed_by",
}


def _no_actor_row(lab: Lab, table: str, column: str) -> None:
    others = [name for name in lab.columns(table) if name not in ("id", column)]
    insert = f"INSERT INTO public.{table} ({', '.join(others)}) SELECT {', '.join(others)} FROM public.{table} LIMIT 1"
    lab.run(f"GRANT UPDATE ON public.{table} TO crm_rpc")
    for setting in ("origin", "replica"):
        lab.run("SELECT set_config('session_replication_role', %(setting)s, true)", setting=setting)
        lab.refused([insert], role="crm_rpc", sqlstates=frozenset({"23502"}), saying="is required")
        if table not in APPEND_ONLY:
            open_payment = " WHERE id = %(planned)s" if table == "payments" else ""
            update = f"UPDATE public.{table} SET {column} = %(admin)s{open_payment}"
            lab.refused([update], role="crm_rpc", sqlstates=frozenset({"23514"}), saying="never changes")


for _table, _column in _ACTOR_COLUMNS.items():
    _register(
        "row_without_actor",
        f"A faulty RPC inserts a row of {_table} without {_column}, or changes who made it.",
        (f"triggers_{_table}",),
        partial(_no_actor_row, table=_table, column=_column),
        _table,
    )


@_attack("triggers_payments", "constraints")
def faulty_ledger_writes(lab: Lab) -> None:
    """A faulty RPC books a payment of nothing, or changes one that is booked."""
    insert = (
        "INSERT INTO public.payments (order_id, direction, role, method, amount, currency, status, external_reference,"
        " reference_key, created_by) VALUES ({order}, 'incoming', 'client_payment', 'cash', {amount}, 'EUR',"
        " 'completed', {reference}, {key}, %(manager)s)"
    )
    good = {"order": "%(fresh)s", "amount": "1", "reference": "NULL", "key": "NULL"}
    wrong = (
        {"amount": "0"}, {"amount": "'NaN'"}, {"order": "NULL"}, {"reference": "'a'"}, {"reference": "' a'", "key": "' a'"},
    )  # fmt: skip
    lab.run("GRANT UPDATE ON public.payments TO crm_rpc")
    refused = partial(lab.refused, role="crm_rpc", sqlstates=frozenset({"23514"}), saying="payment")
    for setting in ("origin", "replica"):
        lab.run("SELECT set_config('session_replication_role', %(setting)s, true)", setting=setting)
        refused([insert.format(**{**good, **change}) for change in wrong])
        refused(["UPDATE public.payments SET status = 'failed' WHERE id = %(payment)s"])
        refused(["UPDATE public.payments SET amount = 99 WHERE id = %(planned)s"])
        refused(
            [
                "UPDATE public.payments SET external_reference = 'b', reference_key = 'b' WHERE id = %(planned)s"
            ]
        )


@_attack("triggers_users", "triggers_customers")
def unaudited_owner_write(lab: Lab) -> None:
    """The owner changes people's rows: allowed, and traced with the login, however the session is set."""
    for setting in ("origin", "replica"):
        lab.run("SELECT set_config('session_replication_role', %(setting)s, true)", setting=setting)
        for table, insert in (
            ("users", "INSERT INTO public.users (name) VALUES ('x') RETURNING id"),
            ("customers", "INSERT INTO public.customers (full_name) VALUES ('x') RETURNING id"),
        ):
            name = "name" if table == "users" else "full_name"
            row = lab.run(insert)
            lab.run(f"UPDATE public.{table} SET {name} = 'y' WHERE id = %(row)s", row=row)
            traces = lab.run(
                "SELECT count(*) FROM public.audit_log WHERE entity = %(table)s AND entity_id = %(row)s"
                ' AND "session_user" = SESSION_USER',
                table=table,
                row=row,
            )
            if traces != 2:
                raise Breach(
                    f"an insert and an update of {table} by the owner left {traces} audit rows, expected 2"
                )


@_attack(*(f"triggers_{table}" for table in CRM_TABLES))
def forged_setting(lab: Lab) -> None:
    """A session claims to be the RPC by setting variables that a careless guard might trust."""
    for name in ("crm.rpc", "crm.bypass", "app.current_user", "request.jwt.claims", "crm.allow_write"):
        lab.run("SELECT set_config(%(name)s, 'crm_rpc', true)", name=name)
    lab.refused([s for table in CRM_TABLES for s in lab.writes(table, ("DELETE",))])
    lab.refused(["UPDATE public.orders SET status = 'paid'", "UPDATE public.payments SET amount = 1"])


@_attack("triggers_orders", "triggers_tasks", "triggers_order_status_events", "constraints")
def foreign_key_action(lab: Lab) -> None:
    """A foreign key's ON UPDATE CASCADE, which runs as the owner, rewrites guarded rows."""
    for table, column in (("orders", "created_by"), ("tasks", "created_by"), ("payments", "created_by")):
        with lab.role(None):
            lab.run(
                "DO $$ DECLARE c record; BEGIN FOR c IN SELECT conrelid::regclass AS t, conname FROM pg_constraint"
                " WHERE confrelid = 'public.users'::regclass LOOP"
                " EXECUTE format('ALTER TABLE %%s DROP CONSTRAINT %%I', c.t, c.conname); END LOOP; END $$"
            )
            lab.run(
                f"ALTER TABLE public.{table} ADD CONSTRAINT planted FOREIGN KEY ({column})"
                " REFERENCES public.users (id) ON UPDATE CASCADE"
            )
            lab.refused(["UPDATE public.users SET id = gen_random_uuid() WHERE id = %(manager)s"])


@_attack("roles")
def becomes_crm_rpc(lab: Lab) -> None:
    """The application or a stranger becomes crm_rpc, or gives the membership away."""
    stranger = lab.stranger()
    for role in ("crm_app", stranger):
        lab.refused([f"GRANT crm_rpc TO {role}", f"GRANT crm_app TO {stranger}"], role=role)
        if lab.run(
            f"SELECT pg_has_role('{role}', 'crm_rpc', 'SET') OR pg_has_role('{role}', 'crm_rpc', 'USAGE')"
        ):
            raise Breach(f"{role} is a member of crm_rpc")
    members = lab.run(
        "SELECT string_agg(member::regrole::text, ', ') FROM pg_auth_members"
        " WHERE roleid = 'crm_rpc'::regrole AND (set_option OR inherit_option)"
    )
    if members:
        raise Breach(f"members of crm_rpc: {members}")


@_attack("roles")
def role_attributes(lab: Lab) -> None:
    """crm_rpc or crm_app can log in, skip row security, create roles or is a superuser."""
    strong = lab.run(
        "SELECT string_agg(rolname, ', ') FROM pg_roles WHERE rolname IN ('crm_rpc', 'crm_app') AND (rolcanlogin"
        " OR rolsuper OR rolbypassrls OR rolcreaterole OR rolcreatedb OR rolreplication)"
    )
    if strong:
        raise Breach(f"{strong} can do more than hold privileges")


#: A row that each CHECK must refuse.
_CHECKED: dict[str, dict[str, Any]] = {
    "chk_final_price_nonneg": {"final_price_eur": -1},
    "chk_amount_positive": {"amount": -1},
    "audit_seals_hash_check": {"hash": "x"},
    "audit_seals_row_count_check": {"row_count": 0},
    "audit_seals_seq_check": {"seq": 0},
    "order_status_events_seq_check": {"seq": 0},
    "order_status_transitions_check": {"from_status": "awaiting_payment", "to_status": "paid"},
    "shipments_status_check": {"status": "teleported"},
}
#: Values that no sample row has, for the columns of unique keys.
_FRESH: dict[str, Any] = {
    "id": "00000000-0000-4000-8000-0000000000ff",
    "order_code": "fresh",
    "reference_key": "fresh",
    "email": "fresh@example.com",
    "seq": 1_000_000,
    "last_audit_id": 1_000_000_000,
    "external_id": "fresh",
    "from_status": "closed",
    "to_status": "created",
}


def _rows_against_constraints(lab: Lab, table: str) -> None:
    for key, facts in expected().objects.items():
        kind, name = key.split(" ", 1)
        unique_index = kind == "index" and facts["unique"]
        if not name.startswith(f"public.{table}.") or not (kind == "constraint" or unique_index):
            continue
        constraint = name.split(".")[2]
        definition = facts["definition"].split(" USING btree ")[-1]
        own = [
            c
            for c in lab.columns(table, writable=False)
            if re.search(rf"\b{c}\b", definition.split("REFERENCES")[0])
        ]
        fresh = {**_FRESH, "id": 1_000_000_000} if table == "audit_log" else _FRESH
        values = {c: v for c, v in fresh.items() if c in lab.columns(table, writable=False)}
        if definition.startswith("CHECK"):
            if constraint not in _CHECKED:
                raise Breach(f"no row is known that {constraint} refuses: add one to _CHECKED")
            values |= _CHECKED[constraint]
        elif definition.startswith("FOREIGN KEY"):
            values |= {own[0]: "00000000-0000-4000-8000-00000000dead"}
        else:
            values = {c: v for c, v in values.items() if c not in own}
        _refused_row(lab, table, constraint, own, values)


for _table in CRM_TABLES:
    _register(
        "rows_against_constraints",
        f"With the triggers out of the way: rows of {_table} that a key, unique index or CHECK must refuse.",
        ("constraints", "unique_indexes"),
        partial(_rows_against_constraints, table=_table),
        _table,
    )


def _refused_row(lab: Lab, table: str, constraint: str, own: list[str], values: dict[str, Any]) -> None:
    columns = ", ".join(lab.columns(table, identity=True))
    not_null = " AND ".join(f"{column} IS NOT NULL" for column in own if column not in values) or "true"
    with lab.role(None):
        lab.run(f"ALTER TABLE public.{table} DISABLE TRIGGER USER")
        lab.refused(
            [
                f"INSERT INTO public.{table} ({columns}) OVERRIDING SYSTEM VALUE SELECT {columns} FROM jsonb_populate_record("
                f"NULL::public.{table}, (SELECT to_jsonb(t) FROM public.{table} t WHERE {not_null} LIMIT 1) || %(values)s)"
            ],
            sqlstates=frozenset({"23503", "23505", "23514"}),
            saying=constraint,
            values=Jsonb(values),
        )


# -- calling the RPCs ------------------------------------------------------------------------------------


def _stranger_calls(lab: Lab, rpc: str) -> None:
    nulls = lab.run(
        "SELECT string_agg('NULL::' || format_type(t, NULL), ', ') FROM pg_proc,"
        " unnest(proargtypes::oid[]) WITH ORDINALITY AS a(t, n)"
        " WHERE pronamespace = 'public'::regnamespace AND proname = %(rpc)s",
        rpc=rpc,
    )
    lab.refused([f"SELECT public.{rpc}({nulls})"], role=lab.stranger())
    granted = lab.run(
        "SELECT has_function_privilege('public', oid, 'EXECUTE') FROM pg_proc"
        " WHERE pronamespace = 'public'::regnamespace AND proname = %(rpc)s",
        rpc=rpc,
    )
    if (
        granted
    ):  # every call by a stranger is refused for the want of an actor too: that must not hide the grant
        raise Breach(f"PUBLIC may execute {rpc}")


for _rpc in RPC_NAMES:
    _register(
        "stranger_calls",
        f"A role that is not crm_app calls {_rpc}.",
        ("function_grants",),
        partial(_stranger_calls, rpc=_rpc),
        _rpc,
    )


@_attack("functions")
def no_actor(lab: Lab) -> None:
    """Nobody, an unknown user, or one who has left acts through every RPC that needs a user."""
    for actor in (None, uuid.uuid4(), lab.sample["left"]):
        refused = partial(lab.call_refused, "42501")
        s = lab.sample
        refused("advance_order_status_safe", order_id=s["fresh"], new_status="cancelled", user_id=actor)
        refused("advance_lead_status_safe", lead_id=s["open_lead"], new_status="in_progress", user_id=actor)
        refused(
            "record_generic_payment_safe", order_id=s["fresh"], direction="incoming", role="client_payment",
            method="cash", amount="10", currency="EUR", user_id=actor,
        )  # fmt: skip
        refused("update_payment_status_safe", payment_id=s["planned"], new_status="completed", user_id=actor)
        refused(
            "attach_document_safe", document_type="invoice", storage_url="https://example.com/i", uploaded_by=actor,
            order_id=s["fresh"],
        )  # fmt: skip
        refused("create_task_safe", title="x", created_by=actor, order_id=s["fresh"])
        refused("update_task_safe", task_id=s["task"], user_id=actor, completed=True)
        refused("upsert_shipment_safe", order_id=s["paid"], user_id=actor)
        refused("create_user_safe", name="x", email="x@example.com", role="admin", user_id=actor)
        refused("set_user_active_safe", crm_user_id=s["left"], active=True, user_id=actor)
        refused("map_identity_safe", provider="x", external_id="x", crm_user_id=s["admin"], user_id=actor)


def _payment(lab: Lab, sqlstate: str, **changes: Any) -> None:
    arguments = {
        "order_id": lab.sample["fresh"], "direction": "incoming", "role": "client_payment", "method": "cash",
        "amount": "10", "currency": "EUR", "user_id": lab.sample["manager"], **changes,
    }  # fmt: skip
    lab.call_refused(sqlstate, "record_generic_payment_safe", **arguments)


@_attack("functions")
def impossible_amounts(lab: Lab) -> None:
    """NaN (which is greater than every number), infinity, zero, negative and fractions of a cent."""
    for amount in ("NaN", "Infinity", "-Infinity", "0", "-1", "0.001", None):
        _payment(lab, "PT422", amount=amount)
    for amount in ("NaN", "Infinity", "0", "-1", "10.001"):
        lab.call_refused(
            "PT422", "create_order_safe", customer_id=lab.sample["customer"], total_amount=amount, currency="EUR",
            user_id=lab.sample["manager"],
        )  # fmt: skip


@_attack("functions")
def wrong_roles_and_directions(lab: Lab) -> None:
    """Client money that goes out, refunds that come in, foreign currency, labels that do not exist."""
    _payment(lab, "PT422", direction="outgoing")
    _payment(lab, "PT422", direction="incoming", role="refund", user_id=lab.sample["admin"])
    _payment(lab, "PT422", direction="incoming", role="supplier_payment")
    _payment(lab, "PT422", currency="BTC")
    _payment(lab, "PT422", method="card")  # a provider's payment without its reference
    _payment(lab, "PT404", order_id="00000000-0000-0000-0000-000000000000")


@_attack("functions")
def payout_before_money(lab: Lab) -> None:
    """The supplier is paid although the client has paid nothing."""
    for role in ("supplier_payment", "shipping_payment", "commission"):
        _payment(lab, "PT409", direction="outgoing", role=role)


@_attack("functions")
def refund_by_manager(lab: Lab) -> None:
    """A manager refunds; or an admin refunds more than the client paid."""
    refund = {"order_id": lab.sample["paid"], "direction": "outgoing", "role": "refund"}
    _payment(lab, "42501", **refund)
    _payment(lab, "PT409", **refund, amount="1000.01", user_id=lab.sample["admin"])


@_attack("functions")
def reused_reference(lab: Lab) -> None:
    """A reference is used again for another amount, order or method: it must be refused, never booked."""
    same = {
        "order_id": lab.sample["paid"],
        "method": "card",
        "amount": "1000",
        "external_reference": "attack-1",
    }
    _payment(lab, "PT409", **{**same, "amount": "999"})
    _payment(lab, "PT409", **{**same, "order_id": lab.sample["fresh"]})
    _payment(lab, "PT409", **{**same, "external_reference": "  attack-1 ", "method": "cash"})


@_attack("functions", "transitions")
def illegal_transitions(lab: Lab) -> None:
    """Statuses are skipped, undone or claimed; a manager does what only an admin may."""

    def advance(sqlstate: str, **arguments: Any) -> None:
        lab.call_refused(sqlstate, "advance_order_status_safe", **arguments)

    for status in ("created", "paid", "in_delivery", "delivered", "closed"):
        advance("PT409", order_id=lab.sample["fresh"], new_status=status, user_id=lab.sample["admin"])
    for status in ("created", "awaiting_payment", "paid", "delivered", "closed"):
        advance("PT409", order_id=lab.sample["paid"], new_status=status, user_id=lab.sample["admin"])
    advance("42501", order_id=lab.sample["paid"], new_status="cancelled", user_id=lab.sample["manager"])
    lab.call_refused(
        "PT409", "advance_lead_status_safe", lead_id=lab.sample["open_lead"], new_status="converted",
        user_id=lab.sample["admin"],
    )  # fmt: skip


@_attack("transitions", "functions")
def every_transition(lab: Lab) -> None:
    """Each legal transition by the least role that may make it; where an admin is needed, a manager is refused."""
    for way in _WAYS:
        with lab.role("crm_app"):
            order = lab.call(
                "create_order_safe", customer_id=lab.sample["customer"], total_amount="10", currency="EUR",
                user_id=lab.sample["manager"],
            )["id"]  # fmt: skip
            money: dict[str, Any] = {"order_id": order, "method": "cash", "amount": "10", "currency": "EUR"}
            for status, who in way:
                if status == "paid":
                    pay = {**money, "direction": "incoming", "role": "client_payment"}
                    _must_work(lab, "record_generic_payment_safe", **pay, user_id=lab.sample["manager"])
                elif status == "refunded":  # cancelling with client money needs an admin anyway
                    refund = {**money, "direction": "outgoing", "role": "refund"}
                    _must_work(lab, "record_generic_payment_safe", **refund, user_id=lab.sample["admin"])
                    continue
                else:
                    step = {"order_id": order, "new_status": status}
                    if who == "admin":
                        lab.call_refused(
                            "42501", "advance_order_status_safe", **step, user_id=lab.sample["manager"]
                        )
                    _must_work(lab, "advance_order_status_safe", **step, user_id=lab.sample[who])
                _expect_status(lab, order, status)


#: Every legal transition at least once, each by the role that it needs.
_WAYS = (
    (("cancelled", "manager"),),
    (("awaiting_payment", "manager"), ("cancelled", "manager")),
    (("paid", ""), ("refunded", ""), ("cancelled", "admin")),
    (("paid", ""), ("in_delivery", "manager"), ("refunded", ""), ("cancelled", "admin")),
    (("paid", ""), ("in_delivery", "manager"), ("delivered", "manager"), ("closed", "admin")),
)


def _must_work(lab: Lab, rpc: str, /, **arguments: Any) -> None:
    try:
        lab.call(rpc, **arguments)
    except psycopg.Error as error:
        raise Breach(f"{rpc}({arguments}) must work: {error.sqlstate} {error}") from error


@_attack("functions")
def wrong_assignees(lab: Lab) -> None:
    """Work is given to somebody who does not exist, or has left."""
    for sqlstate, assignee in (
        ("PT404", "00000000-0000-4000-8000-00000000dead"),
        ("PT409", lab.sample["left"]),
    ):
        lab.call_refused(
            sqlstate, "create_task_safe", title="x", created_by=lab.sample["manager"], order_id=lab.sample["fresh"],
            assignee_id=assignee,
        )  # fmt: skip
        lab.call_refused(
            sqlstate, "update_order_safe", order_id=lab.sample["fresh"], user_id=lab.sample["manager"],
            assigned_manager=assignee,
        )  # fmt: skip


@_attack("functions")
def missing_ids(lab: Lab) -> None:
    """The row that a call is about is not named."""
    manager = lab.sample["manager"]
    _payment(lab, "PT422", order_id=None)
    lab.call_refused(
        "PT422", "advance_order_status_safe", order_id=None, new_status="cancelled", user_id=manager
    )
    lab.call_refused(
        "PT422", "update_payment_status_safe", payment_id=None, new_status="failed", user_id=manager
    )


@_attack("functions")
def manager_makes_admins(lab: Lab) -> None:
    """A manager creates an admin, wakes one who left, or maps a login to one."""
    manager = lab.sample["manager"]
    lab.call_refused(
        "42501", "create_user_safe", name="x", email="x@example.com", role="admin", user_id=manager
    )
    lab.call_refused(
        "42501", "set_user_active_safe", crm_user_id=lab.sample["left"], active=True, user_id=manager
    )
    lab.call_refused(
        "42501",
        "map_identity_safe",
        provider="x",
        external_id="x",
        crm_user_id=lab.sample["admin"],
        user_id=manager,
    )
    lab.call_refused("42501", "resolve_crm_user", provider="attack", external_id="nobody")


# -- what must work --------------------------------------------------------------------------------------


def _working_day(lab: Lab) -> None:
    """The whole way of an order as crm_app: a guard, grant or policy too many breaks it."""
    s = lab.sample
    admin, manager = s["admin"], s["manager"]
    lab.call("resolve_crm_user", provider="attack", external_id="m")
    lead = lab.call("create_lead_safe", source="site", full_name="C", email="c@example.com", user_id=manager)[
        "id"
    ]
    lab.call(
        "advance_lead_status_safe", lead_id=lead, new_status="in_progress", user_id=manager, notes="called"
    )
    lab.call("update_lead_safe", lead_id=lead, user_id=manager, notes="wants a 56")
    lab.call("update_customer_safe", customer_id=s["customer"], user_id=manager, country="US")
    order = lab.call(
        "create_order_safe",
        customer_id=None,
        lead_id=lead,
        total_amount="500",
        currency="EUR",
        user_id=manager,
    )["id"]
    lab.call("update_order_safe", order_id=order, user_id=manager, assigned_manager=manager)
    pay = partial(lab.call, "record_generic_payment_safe", order_id=order, currency="EUR", user_id=manager)
    part = pay(
        direction="incoming", role="client_payment", method="cash", amount="200", status="planned",
        external_reference="day-1",
    )  # fmt: skip
    lab.call("update_payment_status_safe", payment_id=part["id"], new_status="completed", user_id=manager)
    full = {
        "direction": "incoming", "role": "client_payment", "method": "card", "amount": "300",
        "external_reference": "day-2",
    }  # fmt: skip
    first, again = pay(**full), pay(**full)
    if first["id"] != again["id"] or again["duplicate"] is not True:
        raise Breach(f"a repeated payment is booked again: {first}, {again}")
    _expect_status(lab, order, "paid")
    pay(direction="outgoing", role="supplier_payment", method="bank_transfer", amount="250")
    lab.call(
        "attach_document_safe", document_type="invoice", storage_url="u", uploaded_by=manager, order_id=order
    )
    lab.call(
        "attach_document_safe", document_type="passport", storage_url="u", uploaded_by=manager, lead_id=lead
    )
    task = lab.call("create_task_safe", title="Pack", created_by=manager, order_id=order, lead_id=lead)["id"]
    lab.call("update_task_safe", task_id=task, user_id=manager, completed=True)
    shipment = lab.call("upsert_shipment_safe", order_id=order, user_id=manager, provider="cdek")["id"]
    lab.call("upsert_shipment_safe", order_id=order, user_id=manager, shipment_id=shipment, status="shipped")
    for status in ("in_delivery", "delivered", "closed"):
        lab.call("advance_order_status_safe", order_id=order, new_status=status, user_id=admin)
        _expect_status(lab, order, status)
    pay(direction="outgoing", role="refund", method="bank_transfer", amount="10", user_id=admin)
    quick = {"source": "site", "full_name": "D", "phone": "+1 202 555 0101", "items": [{"model": "Gravel"}]}
    lab.call("quick_order_safe", **quick, total_amount="70", currency="USD")
    lab.call(
        "checkout_order_safe", customer_id=s["customer"], items=[{"model": "City"}], total_amount="80",
        currency="EUR", method="online_cashbox", external_reference="day-3", user_id=manager,
    )  # fmt: skip
    user = lab.call("create_user_safe", name="New", email="new@example.com", role="manager", user_id=admin)[
        "id"
    ]
    lab.call("map_identity_safe", provider="attack", external_id="new", crm_user_id=user, user_id=admin)
    lab.call("map_identity_safe", provider="attack", external_id="new", crm_user_id=user, user_id=admin)
    lab.call("resolve_crm_user", provider="attack", external_id="by mail", email="New@example.com")
    lab.call("set_user_active_safe", crm_user_id=user, active=False, user_id=admin)


def _expect_status(lab: Lab, order: Any, status: str) -> None:
    # spelt out, because hostile_search_path calls this as well
    found = lab.run(
        "SELECT status::pg_catalog.text FROM public.orders WHERE id OPERATOR(pg_catalog.=) %(order)s",
        order=order,
    )
    if found != status:
        raise Breach(f"the order is {found}, expected {status}: an update silently touched nothing")


@_attack("functions", "function_grants", "table_grants", "row_security", "columns", "transitions")
def working_day(lab: Lab) -> None:
    """Not an attack: what the application does every day must work as crm_app, and must reach the rows."""
    with lab.role("crm_app"):
        try:
            _working_day(lab)
        except psycopg.Error as error:
            raise Breach(f"an ordinary call fails: {error.sqlstate} {error}") from error


@_attack("row_security", "table_grants")
def app_reads(lab: Lab) -> None:
    """Not an attack: crm_app must see every row of the tables that it may read."""
    for table in CRM_TABLES:
        count = lab.run(f"SELECT count(*) FROM public.{table}")
        with lab.role("crm_app"):
            try:
                seen = lab.run(f"SELECT count(*) FROM public.{table}")
            except psycopg.Error as error:
                raise Breach(f"crm_app cannot read {table}: {error.sqlstate}") from error
        if seen != count or count == 0:
            raise Breach(f"crm_app sees {seen} of {count} rows of {table}")


@_attack("functions", "function_grants", "table_grants", "row_security")
def sealing(lab: Lab) -> None:
    """Not an attack: the owner seals the audit log, new rows continue the chain, and crm_app cannot seal."""
    lab.call("create_lead_safe", source="site", full_name="S", contact="@s")
    before = lab.run("SELECT max(seq) FROM public.audit_seals")
    try:
        seal = lab.run("SELECT crm_private.seal_audit_safe()")
    except psycopg.Error as error:
        raise Breach(f"the owner cannot seal: {error.sqlstate} {error}") from error
    if seal["id"] is None or before is None or seal["id"] <= before:
        raise Breach(f"nothing was sealed: {seal} after seal {before}")
    lab.refused(["SELECT crm_private.seal_audit_safe()"], role="crm_app", saying="permission denied")


@_attack("functions")
def hostile_operators_against_guards(lab: Lab) -> None:
    """The writer's search_path holds an = by which everybody is crm_rpc; the guard must not use it."""
    lab.run("CREATE SCHEMA hostile")
    for left, right in (("name", "name"), ("text", "text"), ("name", "text"), ("text", "name")):
        lab.run(
            f"CREATE FUNCTION hostile.yes(a {left}, b {right}) RETURNS boolean LANGUAGE sql IMMUTABLE AS 'SELECT true'"
        )
        lab.run(f"CREATE OPERATOR hostile.= (FUNCTION = hostile.yes, LEFTARG = {left}, RIGHTARG = {right})")
    for arguments in ("text, name", "text, text, name"):  # a better match for the guards' own calls of format
        lab.run(
            f"CREATE FUNCTION hostile.format({arguments}) RETURNS text LANGUAGE plpgsql AS"
            " $$ BEGIN RAISE EXCEPTION 'a planted function ran' USING ERRCODE = 'XX999'; END $$"
        )
    writes = [s for table in CRM_TABLES for s in lab.writes(table, ("DELETE",))]
    truncates = [f"TRUNCATE public.{table}" for table in ("audit_log", "audit_seals", "user_identity_map")]
    lab.run("SET LOCAL search_path = hostile, pg_catalog, public")
    lab.refused([*writes, *truncates, "UPDATE public.orders SET status = 'paid'"])


@_attack("functions")
def hostile_search_path(lab: Lab) -> None:
    """The caller's search_path holds operators and functions, and pg_temp domains, that would run as crm_rpc."""
    lab.run("CREATE SCHEMA hostile")
    lab.run("GRANT USAGE ON SCHEMA hostile TO PUBLIC")
    trap = "LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'a planted function ran' USING ERRCODE = 'XX999'; END $$"
    for left, right in ((t, t) for t in ("uuid", "text", "name", "numeric", "bigint", "boolean")):
        lab.run(f"CREATE FUNCTION hostile.trap(a {left}, b {right}) RETURNS boolean {trap}")
        for operator in ("=", "<>", "<", ">", "<=", ">="):
            lab.run(
                f"CREATE OPERATOR hostile.{operator} (FUNCTION = hostile.trap, LEFTARG = {left}, RIGHTARG = {right})"
            )
    for signature, result in (
        ("btrim(text)", "text"), ("lower(text)", "text"), ("now()", "timestamptz"), ("gen_random_uuid()", "uuid"),
        ("to_jsonb(anyelement)", "jsonb"), ("jsonb_build_object(VARIADIC \"any\")", "jsonb"),
        ("coalesce_trap()", "text"),
    ):  # fmt: skip
        if "any" in signature:  # PL/pgSQL takes no "any"
            continue
        lab.run(f"CREATE FUNCTION hostile.{signature} RETURNS {result} {trap}")
    lab.run("SET LOCAL search_path = hostile, pg_catalog, public")
    with lab.role("crm_app"):
        for type_name in ("uuid", "text", "numeric", "jsonb", "bool", "timestamptz"):
            lab.run(f"CREATE DOMAIN pg_temp.{type_name} AS pg_catalog.{type_name} CHECK (false)")
        try:
            _working_day(lab)
            lab.run("RESET ROLE")
            lab.run("SELECT crm_private.seal_audit_safe()")
            lab.run("INSERT INTO public.users (name) VALUES ('traced by a trigger')")
        except psycopg.Error as error:
            raise Breach(
                f"names are looked up in the caller's search_path: {error.sqlstate} {error}"
            ) from error


@_attack("functions")
def rpcs_run_as_crm_rpc(lab: Lab) -> None:
    """An RPC runs as somebody else, or with the caller's search_path (some do no harm so: the rule has no exceptions)."""
    wrong = lab.run(
        "SELECT string_agg(proname, ', ') FROM pg_proc WHERE pronamespace = 'public'::regnamespace"
        " AND proname = ANY (%(rpcs)s) AND NOT coalesce(prosecdef AND proowner = 'crm_rpc'::regrole"
        " AND 'search_path=pg_catalog, pg_temp' = ANY (proconfig), false)",
        rpcs=list(RPC_NAMES),
    )
    if wrong:
        raise Breach(f"not SECURITY DEFINER as crm_rpc with a pinned search_path: {wrong}")


# -- running them ----------------------------------------------------------------------------------------


def run_all(lab: Lab, only: Iterable[str] | None = None) -> list[Outcome]:
    """Try every attack (or those named) in the lab's database, which stays as it was."""
    return [lab.try_(ATTACKS[name]) for name in (only if only is not None else ATTACKS)]


@contextmanager
def scratch_database(version: int = 18) -> Iterator[psycopg.Connection[Any]]:
    """A throwaway PostgreSQL with an empty migrated CRM database; gone afterwards.

    Raises:
        Exception: whatever keeps the server or the migrations from running: then nothing is proved.
    """
    from crm_analytics.crm.migrating.migrate import migrate_crm

    with tempfile.TemporaryDirectory(prefix="crm_scratch_") as folder:
        server = EmbeddedPostgres(Path(folder), version, {"fsync": "off", "shared_buffers": "64MB"}).start()
        try:
            migrate_crm(server.url("crm"))
            with psycopg.connect(server.url("crm"), autocommit=True) as connection:
                yield connection
        finally:
            server.release()


def run_on_scratch_server(version: int = 18, only: Iterable[str] | None = None) -> list[Outcome]:
    """Try every attack (or those named) on a scratch database of a throwaway server."""
    with scratch_database(version) as connection:
        return run_all(prepare(connection), only)
