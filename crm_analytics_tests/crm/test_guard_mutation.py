"""Guard mutation: every guard is removed or weakened in turn, and an attack and the manifest must both notice.

The kill table is committed as docs/crm-guard-mutation.md. After a deliberate change of the guards,
`CRM_WRITE_KILL_TABLE=1 pytest crm_analytics_tests/crm/test_guard_mutation.py` rewrites it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import psycopg
import pytest

from crm_analytics.core.settings import PROJECT_DIR
from crm_analytics.crm.proof import attacks
from crm_analytics.crm.schema import manifest
from crm_analytics_tests.conftest import PG_VERSION

KILL_TABLE = PROJECT_DIR / "docs" / "crm-guard-mutation.md"
WRITE = bool(os.environ.get("CRM_WRITE_KILL_TABLE"))
WRITERS_CHECK = "check only_crm_rpc_can_write"

#: The record of migrations, whose keys no RPC and no rule depends on.
BOOKKEEPING = ("crm_private.migration_files", "crm_private.alembic_version")
#: Functions whose EXECUTE by crm_rpc no RPC uses: those for migrations, and trigger functions, which need EXECUTE only
#: when the trigger is created. Revoking it weakens nothing.
UNUSED_GRANTS = (
    "revoke_others", "close_functions", "tables", "guarded_tables", "owner", "guard_rows", "guard_truncate", "require_actor",
    "payments_ledger", "order_numbers", "count_version", "audit_owner_write", "audit_origin", "broken_seals",
    "seal_audit_safe", "wait_for_calls", "claim_written_contacts",
)  # fmt: skip
#: Functions that are as safe without their search_path: what they do counts only if guard_rows lets the row pass, that
#: is from an RPC, whose search_path is pinned.
NOTHING_TO_LOOK_UP = ("payments_ledger", "order_numbers", "require_actor", "audit_origin", "count_version")

#: Functions and a trigger that only make others wait. Their tests are at the end, because one transaction cannot wait
#: for itself.
WAITS = ("lock_user", "wait_for_calls")
#: What lets the RPCs pass without calling the guard, and an operator that looks the same and lets everybody pass.
BY_OTHERS = "CURRENT_USER <> 'crm_rpc'::text"
FOREIGN_OPERATOR = (
    "CREATE FUNCTION public.never(name, text) RETURNS boolean LANGUAGE sql AS 'SELECT false';"
    " CREATE OPERATOR public.<> (LEFTARG = name, RIGHTARG = text, FUNCTION = public.never); "
)
#: What refuses the wrong isolation has a test of its own at the end, because an attack runs in a transaction, whose
#: isolation is given.
REFUSES_ISOLATION = "wrong_isolation"
#: Functions that are not emptied: the first two are for migrations only.
NOT_EMPTIED = ("close_functions", "revoke_others", REFUSES_ISOLATION, *WAITS)


@dataclass(frozen=True)
class Mutation:
    """One guard removed or weakened: `sql` does it, `key` is the manifest's object.

    `opens` is what then returns rows to `role` (a stranger by default), where that is no attack's business.
    """

    group: str
    what: str
    sql: str
    key: str
    opens: str = ""
    role: str | None = "stranger"
    since: int = 16


def _name(key: str) -> str:
    return key.split(" ", 1)[1]


def _table_and(key: str) -> tuple[str, str]:
    table, _, last = _name(key).rpartition(".")
    return table, last


def _is_crm(key: str) -> bool:
    return " public." in key


def trigger_mutations() -> Iterator[Mutation]:
    want = manifest.expected()
    for key in want.objects:
        table, trigger = _table_and(key)
        if not key.startswith("trigger ") or trigger in WAITS:
            continue
        definition = want.definitions[key]
        for what, statement in (
            ("dropped", f"DROP TRIGGER {trigger} ON {table}"),
            ("disabled", f"ALTER TABLE {table} DISABLE TRIGGER {trigger}"),
            (
                ("not ALWAYS", f"ALTER TABLE {table} ENABLE TRIGGER {trigger}")
                if want.objects[key]["enabled"] == "A"
                else ("ALWAYS", f"ALTER TABLE {table} ENABLE ALWAYS TRIGGER {trigger}")
            ),
            ("only on replicas", f"ALTER TABLE {table} ENABLE REPLICA TRIGGER {trigger}"),
        ):
            yield Mutation("triggers", f"{_name(key)} {what}", statement, key)
        weaker = []
        if " OR DELETE OR UPDATE ON " in definition:
            column = (
                "status"
                if table in ("public.orders", "public.payments", "public.leads")
                else _first_column(table)
            )
            if len([k for k in want.objects if k.startswith(f"column {table}.")]) > 1:
                narrower = definition.replace(" OR UPDATE ON ", f" OR UPDATE OF {column} ON ")
                weaker.append(("only on one column", narrower))
            weaker.append(("without DELETE", definition.replace(" OR DELETE OR ", " OR ")))
            weaker.append(("without INSERT", definition.replace(" INSERT OR ", " ")))
        if "'append_only'" in definition:
            weaker.append(("argument owner_writes", definition.replace("'append_only'", "'owner_writes'")))
        if "'record'" in definition:
            weaker.append(("argument owner_writes", definition.replace("'record'", "'owner_writes'")))
        if "'rpc'" in definition:
            weaker.append(("argument owner_writes", definition.replace("'rpc'", "'owner_writes'")))
        if BY_OTHERS in definition:
            foreign = BY_OTHERS.replace("<>", "OPERATOR(public.<>)")
            weaker.append(
                ("with a foreign operator", FOREIGN_OPERATOR + definition.replace(BY_OTHERS, foreign))
            )
            weaker.append(("never", definition.replace(BY_OTHERS, "false")))
        for what, changed in weaker:
            assert changed != definition, (key, what)
            yield Mutation("triggers", f"{_name(key)} {what}", changed, key)


def _first_column(table: str) -> str:
    """Returns a column that is not generated: a trigger on a generated one fires at every update."""
    prefix, objects = f"column {table}.", manifest.expected().objects
    return next(
        key.removeprefix(prefix)
        for key in sorted(objects)
        if key.startswith(prefix) and not objects[key]["generated"]
    )


def policy_mutations() -> Iterator[Mutation]:
    for key, facts in manifest.expected().objects.items():
        if key.startswith("policy "):
            table, policy = _table_and(key)
            yield Mutation("row security", f"{_name(key)} dropped", f"DROP POLICY {policy} ON {table}", key)
            yield Mutation(
                "row security",
                f"{_name(key)} for every role",
                f"ALTER POLICY {policy} ON {table} TO PUBLIC",
                key,
            )
        elif key.startswith("row_security ") and facts["enabled"]:
            yield Mutation(
                "row security",
                f"{_name(key)} off",
                f"ALTER TABLE {_name(key)} DISABLE ROW LEVEL SECURITY",
                key,
            )


def constraint_mutations() -> Iterator[Mutation]:
    for key, facts in manifest.expected().objects.items():
        table, name = _table_and(key)
        if key.startswith("constraint ") and table not in BOOKKEEPING:
            yield Mutation(
                "constraints",
                f"{_name(key)} dropped",
                f"ALTER TABLE {table} DROP CONSTRAINT {name} CASCADE",
                key,
            )
        elif key.startswith("index ") and facts["unique"]:
            plain = manifest.expected().definitions[key].replace("CREATE UNIQUE INDEX", "CREATE INDEX")
            schema = table.partition(".")[0]
            yield Mutation("constraints", f"{_name(key)} dropped", f"DROP INDEX {schema}.{name}", key)
            yield Mutation("constraints", f"{_name(key)} not unique", plain, key)


def grant_mutations() -> Iterator[Mutation]:
    for key in manifest.expected().objects:
        if not key.startswith("grant "):
            continue
        what, _, grantee = _name(key).rpartition(": ")[0].rpartition(" to ")
        privilege = _name(key).rpartition(": ")[2]
        if what == "schema public":
            continue  # PUBLIC has USAGE of it by PostgreSQL's default
        if grantee not in ("crm_rpc", "crm_app") or any(
            f"crm_private.{name}(" in what for name in (*UNUSED_GRANTS, REFUSES_ISOLATION)
        ):
            continue
        if what.startswith("function public.") and grantee == "crm_rpc" and not _calls_another(what):
            continue  # the owner's own EXECUTE: only an RPC that another RPC calls needs it
        kind, name = what.split(" ", 1)
        target = f"{'TABLE' if kind == 'view' else kind.upper()} {name}"
        if kind == "column":
            table, _, column = name.rpartition(".")
            target, privilege = f"TABLE {table}", f"{privilege} ({column})"
        yield Mutation(
            "grants",
            f"{_shorter(what)}: {privilege} taken from {grantee}",
            f"REVOKE {privilege} ON {target} FROM {grantee}",
            key,
        )


def _calls_another(what: str) -> bool:
    return any(
        f"public.{name}(" in what
        for name in ("create_lead_safe", "create_order_safe", "record_generic_payment_safe")
    )


def _shorter(text: str) -> str:
    return re.sub(r"\(.*\)", "()", text)


def excess_mutations() -> Iterator[Mutation]:
    for table in manifest.CRM_TABLES:
        for privilege in ("INSERT", "UPDATE", "DELETE", "TRUNCATE", "REFERENCES", "TRIGGER"):
            for grantee in ("crm_app", "PUBLIC"):
                yield Mutation(
                    "broad grants", f"public.{table}: {privilege} to {grantee}", f"GRANT {privilege} ON public.{table} TO {grantee}",
                    f"grant table public.{table} to {grantee}: {privilege}",
                )  # fmt: skip
            if privilege in ("UPDATE", "DELETE", "TRUNCATE"):
                key = f"grant table public.{table} to crm_rpc: {privilege}"
                if key not in manifest.expected().objects:
                    yield Mutation(
                        "broad grants",
                        f"public.{table}: {privilege} to crm_rpc",
                        f"GRANT {privilege} ON public.{table} TO crm_rpc",
                        key,
                    )
    for key in manifest.expected().objects:
        if key.startswith("function public."):
            yield Mutation(
                "broad grants", f"{_shorter(_name(key))}: EXECUTE to PUBLIC", f"GRANT EXECUTE ON FUNCTION {_name(key)} TO PUBLIC",
                f"grant {key} to PUBLIC: EXECUTE",
            )  # fmt: skip


def function_mutations() -> Iterator[Mutation]:
    want = manifest.expected()
    for key, facts in want.objects.items():
        if not key.startswith("function "):
            continue
        name, short = _name(key), _shorter(_name(key))
        if facts["owner"] == "crm_rpc":
            yield Mutation(
                "functions", f"{short} SECURITY INVOKER", f"ALTER FUNCTION {name} SECURITY INVOKER", key
            )
            yield Mutation(
                "functions",
                f"{short} owned by another role",
                f"ALTER FUNCTION {name} OWNER TO CURRENT_USER",
                key,
            )
        runs_for_others = facts["security_definer"] or facts["result"] == "trigger"
        if runs_for_others and not any(f".{skip}(" in name for skip in NOTHING_TO_LOOK_UP):
            yield Mutation(
                "functions",
                f"{short} without SET search_path",
                f"ALTER FUNCTION {name} RESET search_path",
                key,
            )
        if (
            facts["result"] in ("void", "trigger")
            and short.removesuffix("()").rpartition(".")[2] not in NOT_EMPTIED
        ):
            body = "BEGIN RETURN coalesce(NEW, OLD); END" if facts["result"] == "trigger" else "BEGIN END"
            start, _, end = re.split(
                r"(?<=AS \$function\$)|(?=\$function\$\n*;?$)", want.definitions[key].rstrip()
            )
            emptied = f"{start} {body} {end}"
            yield Mutation(
                "functions", f"{short} does nothing", emptied.replace("LANGUAGE sql", "LANGUAGE plpgsql"), key
            )


def role_mutations() -> Iterator[Mutation]:
    for role in ("crm_rpc", "crm_app"):
        for attribute in ("LOGIN", "SUPERUSER", "BYPASSRLS", "CREATEROLE", "CREATEDB", "REPLICATION"):
            yield Mutation("roles", f"{role} {attribute}", f"ALTER ROLE {role} {attribute}", f"role {role}")
    yield Mutation(
        "roles", "crm_app member of crm_rpc", "GRANT crm_rpc TO crm_app", "member crm_rpc <- crm_app"
    )
    yield Mutation(
        "roles",
        "crm_app may become crm_rpc",
        "GRANT crm_rpc TO crm_app WITH SET TRUE, INHERIT FALSE",
        "member crm_rpc <- crm_app",
    )
    yield Mutation(
        "roles",
        "crm_app may write all tables",
        "GRANT pg_write_all_data TO crm_app",
        "member pg_write_all_data <- crm_app",
    )
    for role in ("crm_rpc", "crm_app", "grafana_reader"):
        yield Mutation(
            "roles",
            f"another login administers {role}",
            f"GRANT {role} TO pg_monitor WITH ADMIN TRUE, SET FALSE, INHERIT FALSE",
            f"member {role} <- pg_monitor",
        )
    yield Mutation(
        "roles",
        "a role that CRM_APP_MEMBERS does not name holds crm_app",
        "GRANT crm_app TO pg_monitor",
        "member crm_app <- pg_monitor",
    )


def transition_mutations() -> Iterator[Mutation]:
    table = "public.order_status_transitions"
    around = (
        f"ALTER TABLE {table} DISABLE TRIGGER USER; {{}}; ALTER TABLE {table} ENABLE ALWAYS TRIGGER guard_rows,"
        " ENABLE ALWAYS TRIGGER guard_truncate"
    )
    for key, facts in manifest.expected().objects.items():
        if key.startswith("transition "):
            old, new = _name(key).split(" -> ")
            where = f"WHERE from_status = '{old}' AND to_status = '{new}'"
            yield Mutation(
                "transitions", f"{_name(key)} removed", around.format(f"DELETE FROM {table} {where}"), key
            )
            if facts["required_role"] == "admin":
                change = f"UPDATE {table} SET required_role = 'manager' {where}"
                yield Mutation("transitions", f"{_name(key)} by managers", around.format(change), key)
    for old, new in (
        ("created", "in_delivery"),
        ("created", "closed"),
        ("paid", "closed"),
        ("paid", "delivered"),
    ):
        add = f"INSERT INTO {table} VALUES ('{old}', '{new}', 'manager')"
        yield Mutation(
            "transitions", f"{old} -> {new} added", around.format(add), f"transition {old} -> {new}"
        )


def payout_limit_mutations() -> Iterator[Mutation]:
    table = "public.payout_limits"
    for key in manifest.expected().objects:
        if key.startswith("payout_limit "):
            raised = f"UPDATE {table} SET manager_limit = 1000000 WHERE currency = '{_name(key)}'"
            yield Mutation(
                "payout limits",
                f"limit of {_name(key)} raised",
                f"ALTER TABLE {table} DISABLE TRIGGER USER; {raised}; ALTER TABLE {table} ENABLE ALWAYS TRIGGER guard_rows,"
                " ENABLE ALWAYS TRIGGER guard_truncate",
                key,
            )


def surface_mutations() -> Iterator[Mutation]:
    """What may be planted beside the CRM's own objects, and reads them, or runs as their owner."""
    rows = (
        (
            "a SECURITY DEFINER function of the owner",
            "CREATE FUNCTION public.planted() RETURNS text LANGUAGE sql SECURITY DEFINER AS 'SELECT phone FROM public.customers'",
            "function public.planted()", "SELECT public.planted()",
        ),
        (
            "a view", "CREATE VIEW public.planted AS SELECT * FROM public.customers; GRANT SELECT ON public.planted TO PUBLIC",
            "view public.planted", "SELECT phone FROM public.planted",
        ),
        (
            "a materialized view",
            "CREATE MATERIALIZED VIEW public.planted AS SELECT * FROM public.customers; GRANT SELECT ON public.planted TO PUBLIC",
            "view public.planted", "SELECT phone FROM public.planted",
        ),
        (
            "a reporting view for everybody",
            "GRANT SELECT ON reporting.audit_entries TO PUBLIC; GRANT USAGE ON SCHEMA reporting TO PUBLIC",
            "grant view reporting.audit_entries to PUBLIC: SELECT", "SELECT 1 FROM reporting.audit_entries",
        ),
        (
            "an open table", "CREATE TABLE public.planted AS SELECT * FROM public.customers; GRANT SELECT ON public.planted TO PUBLIC",
            "exposed public.planted", "SELECT phone FROM public.planted",
        ),
        (
            "a foreign key from another table",
            "CREATE TABLE public.planted (id uuid REFERENCES public.orders); GRANT INSERT, SELECT ON public.planted TO PUBLIC",
            "reference public.planted.planted_id_fkey", "INSERT INTO public.planted VALUES (%(fresh)s) RETURNING id",
        ),
        (
            "a rule of another table that reads ours",
            "CREATE TABLE public.planted (id int); GRANT INSERT ON public.planted TO PUBLIC;"
            " CREATE RULE leak AS ON INSERT TO public.planted DO ALSO SELECT phone FROM public.customers",
            "rule public.planted.leak", "INSERT INTO public.planted VALUES (1)",
        ),
        (
            "a setting that skips foreign keys", "GRANT SET ON PARAMETER session_replication_role TO PUBLIC",
            "parameter session_replication_role to PUBLIC", "SET LOCAL session_replication_role = replica; SELECT 1",
        ),
    )  # fmt: skip
    for what, sql, key, opens in rows:
        yield Mutation("surface", what, sql, key, opens)
    yield Mutation(
        "surface",
        "a changed reporting view",
        "CREATE OR REPLACE VIEW reporting.money_by_month AS SELECT NULL::date AS month, 'forged' AS currency,"
        " 1.0::numeric AS money_in, 0::numeric AS money_out, 0::bigint AS payments",
        "view reporting.money_by_month",
        "SELECT 1 FROM reporting.money_by_month WHERE currency = 'forged'",
        "grafana_reader",
    )
    yield Mutation(
        "surface",
        "an event trigger",
        "CREATE FUNCTION public.planted() RETURNS event_trigger LANGUAGE plpgsql AS"
        " $$ BEGIN PERFORM set_config('planted.ran_as', current_user, true); END $$;"
        " CREATE EVENT TRIGGER planted ON ddl_command_end EXECUTE FUNCTION public.planted()",
        "event_trigger planted",
        "COMMENT ON FUNCTION public.planted IS 'x'; SELECT 1 WHERE current_setting('planted.ran_as', true) = current_user",
        None,
    )
    yield Mutation(
        "surface",
        "a publication",
        "CREATE PUBLICATION planted FOR TABLE public.payments",
        "publication planted of public.payments",
        "SELECT 1 FROM pg_publication_tables WHERE tablename = 'payments'",
    )
    yield Mutation(
        "surface",
        "the collation of a column",
        'ALTER TABLE public.orders ALTER COLUMN bike_url TYPE text COLLATE "C"',
        "column public.orders.bike_url",
        "SELECT 1 FROM pg_attribute WHERE attcollation = '\"C\"'::regcollation AND attrelid = 'public.orders'::regclass",
    )
    yield Mutation(
        "surface",
        "a key whose index is not unique",
        "UPDATE pg_index SET indisunique = false WHERE indexrelid = 'public.payments_reference_key_key'::regclass",
        "constraint public.payments.payments_reference_key_key",
        "SELECT 1 FROM pg_index WHERE indexrelid = 'public.payments_reference_key_key'::regclass AND NOT indisunique",
    )
    yield Mutation(
        "surface",
        "MAINTAIN to everybody",
        "GRANT MAINTAIN ON public.orders TO PUBLIC",
        "maintain table public.orders to PUBLIC",
        "LOCK TABLE public.orders IN ACCESS EXCLUSIVE MODE; SELECT 1",
        since=17,
    )
    yield Mutation(
        "surface",
        "pg_maintain to another role",
        "GRANT pg_maintain TO crm_app",
        "maintain pg_maintain to crm_app",
        "LOCK TABLE public.orders IN ACCESS EXCLUSIVE MODE; SELECT 1",
        "crm_app",
        since=17,
    )


GROUPS: dict[str, Callable[[], Iterator[Mutation]]] = {
    "triggers": trigger_mutations,
    "row security": policy_mutations,
    "constraints": constraint_mutations,
    "grants": grant_mutations,
    "broad grants": excess_mutations,
    "functions": function_mutations,
    "roles": role_mutations,
    "transitions": transition_mutations,
    "payout limits": payout_limit_mutations,
    "surface": surface_mutations,
}


def test_nothing_is_noticed_when_nothing_is_broken(lab: attacks.Lab) -> None:
    """No attack and no check complains about a sound database; one that always complains would kill every mutant."""
    assert [f"{o.attack.name}: {o.detail}" for o in attacks.run_all(lab) if not o.held] == []
    assert manifest.compare(lab.connection).differences == ()
    assert manifest.unexpected_writers(lab.connection) == []


@pytest.mark.parametrize("group", GROUPS)
def test_every_mutant_is_killed(lab: attacks.Lab, group: str) -> None:
    """An attack and the manifest both notice every weakened guard; one could otherwise be lost and all stay green."""
    mutations = [mutation for mutation in GROUPS[group]() if mutation.since <= PG_VERSION]
    assert mutations
    known = {} if WRITE else _killers(group)
    rows, survivors = [], []
    for mutation in mutations:
        assert not mutation.opens or not _opens(lab, mutation)
        with lab.connection.transaction(force_rollback=True):
            lab.connection.execute(_or_replace(mutation.sql))
            behavior = _noticed_by(lab, mutation, known.get(mutation.what, ""))
            differences = manifest.compare(lab.connection, {mutation.key.split(" ")[0]}).differences
        catalog = next((d.object for d in differences if d.object.startswith(mutation.key)), None)
        rows.append(f"| {mutation.what} | {behavior or '**survived**'} | {_guard(catalog)} |")
        if behavior is None or catalog is None:
            survivors.append(rows[-1])
    print("\n".join(rows))
    assert survivors == [], f"{len(survivors)} of {len(mutations)} survived:\n" + "\n".join(survivors)
    _expect_section(group, rows, [m.what for m in GROUPS[group]() if m.since > PG_VERSION])


def _or_replace(statement: str) -> str:
    return (
        statement.replace("CREATE TRIGGER", "CREATE OR REPLACE TRIGGER")
        if "DROP TRIGGER" not in statement
        else statement
    )


def _guard(key: str | None) -> str:
    return f"guard_{manifest.guard_of(key)}" if key else "**survived**"


def _noticed_by(lab: attacks.Lab, mutation: Mutation, known: str) -> str | None:
    """Returns who notices a mutant: who does so by the committed table, if they still do."""
    if mutation.opens:
        return "what it opens" if _opens(lab, mutation) else None
    if known == WRITERS_CHECK and manifest.unexpected_writers(lab.connection):
        return WRITERS_CHECK
    for attack in sorted(_likeliest_first(mutation), key=lambda attack: known != _attack(attack)):
        if not lab.try_(attack).held:
            return _attack(attack)
    if manifest.unexpected_writers(lab.connection):
        return WRITERS_CHECK
    return None


def _attack(attack: attacks.Attack) -> str:
    return f"attack {attack.name}"


def _opens(lab: attacks.Lab, mutation: Mutation) -> bool:
    """Tells whether the statement returns rows; it must not before the mutation."""
    role = lab.stranger() if mutation.role == "stranger" else mutation.role
    with lab.role(role):
        try:
            with lab.connection.transaction():
                found = False
                for statement in mutation.opens.split("; "):
                    cursor = lab.connection.execute(statement.encode(), lab.sample)
                    found |= bool(cursor.description and cursor.fetchall())
                    while cursor.nextset():
                        found |= bool(cursor.description and cursor.fetchall())
                return found
        except psycopg.Error:
            return False


def _likeliest_first(mutation: Mutation) -> list[attacks.Attack]:
    """Returns the attacks that exercise the guard; their order saves time and decides only whose name is printed."""
    if mutation.key.endswith(": REFERENCES"):
        return []  # opens nothing without CREATE on a schema: there is no attack to try
    guard = manifest.guard_of(mutation.key)
    about = {
        word
        for word in re.findall(r"\w+", mutation.key)
        if word in (*manifest.CRM_TABLES, *manifest.RPC_NAMES)
    }
    of_rules = "functions" if "function " in mutation.key else guard
    reads = mutation.key.endswith("crm_app: SELECT")

    def likelihood(attack: attacks.Attack) -> tuple[bool, ...]:
        return (
            attack.name != ("app_reads" if reads else "working_day")
            or mutation.group in ("triggers", "broad grants"),
            not any(attack.name.endswith(f"_{word}") for word in about),
            of_rules not in attack.guards,
        )

    wide = mutation.group in ("functions", "grants")
    return sorted((a for a in attacks.ATTACKS.values() if wide or guard in a.guards), key=likelihood)


# -- locks: two connections, so on clones ---------------------------------------------------------------


@dataclass(frozen=True)
class Lock:
    """A named lock: the function and the text that take it, and two calls that must not overlap.

    Without a text, `without` is the statement that takes the lock away.
    """

    name: str
    function: str
    text: str
    without: str
    first: str
    second: str


_PAYOUT = (
    "SELECT public.record_generic_payment_safe(%(paid)s, 'outgoing', 'supplier_payment', 'cash', 1, 'EUR',"
    " p_status => 'planned', p_user_id => %(manager)s)"
)
#: Calls that insert nothing: a foreign key's check would lock the user as well.
_REPEAT = (
    "SELECT public.record_generic_payment_safe(%(paid)s, 'incoming', 'client_payment', 'card', 1000, 'EUR', 'completed',"
    " 'attack-1', p_user_id => %(manager)s)"
)
_ASSIGN = "SELECT public.update_task_safe(%(task)s, %(admin)s, p_assignee_id => %(manager)s)"
_RENAME = "SELECT public.update_user_safe(%(manager)s, %(admin)s, 'x')"
_DEACTIVATE = "SELECT public.set_user_active_safe(%(manager)s, false, %(admin)s)"
_BY_HAND = "UPDATE public.users SET active = false WHERE name = 'manager'"
_LEAD = "SELECT public.create_lead_safe('site', 'Twice', p_phone => '+1 202 555 0142')"
LOCKS = (
    Lock("order row", "locked_order", "FOR NO KEY UPDATE", "", _PAYOUT, _PAYOUT),
    Lock("customer's phone", "create_lead_safe", "crm_private.claim_contact(v_kind, v_key, v_new_id)", "v_new_id", _LEAD, _LEAD),
    Lock("actor", "actor", "FOR KEY SHARE", "", _REPEAT, _DEACTIVATE),
    Lock("assignee", "actor", "ORDER BY u.id FOR KEY SHARE", "ORDER BY u.id", _ASSIGN, _DEACTIVATE),
    Lock("user whom an admin changes", "lock_user", "FOR UPDATE", "", _RENAME, _REPEAT),
    Lock("user whom the owner changes", "wait_for_calls", "FOR UPDATE", "", _REPEAT, _BY_HAND),
    *(
        Lock(f"trigger wait_for_calls {what}", "wait_for_calls", "", statement, _REPEAT, _BY_HAND)
        for what, statement in (
            ("dropped", "DROP TRIGGER wait_for_calls ON public.users"),
            ("disabled", "ALTER TABLE public.users DISABLE TRIGGER wait_for_calls"),
            ("only on replicas", "ALTER TABLE public.users ENABLE REPLICA TRIGGER wait_for_calls"),
        )
    ),
    Lock("trigger wait_for_calls not ALWAYS", "wait_for_calls", "", "ALTER TABLE public.users ENABLE TRIGGER wait_for_calls", _REPEAT, f"DO $$ BEGIN SET LOCAL session_replication_role = replica; {_BY_HAND}; END $$"),
)  # fmt: skip


def test_removing_a_lock_is_noticed(new_database: Callable[..., str]) -> None:
    """Without a named lock two calls overlap that must not: double customers, overspent orders."""
    rows = []
    for lock in LOCKS:
        url = new_database("crm")
        with psycopg.connect(url, autocommit=True) as connection:
            sample = attacks.prepare(connection).sample
            connection.execute(_ASSIGN, sample)
            assert _waits(url, lock, sample), f"{lock.name}: the second call did not wait for the first"
            statement = lock.without
            if lock.text:
                definition = connection.execute(
                    "SELECT pg_get_functiondef(oid) FROM pg_proc WHERE proname = %s", [lock.function]
                ).fetchone()
                assert definition and lock.text in definition[0], f"{lock.function} has no {lock.text!r}"
                statement = definition[0].replace(lock.text, lock.without)
            connection.execute(statement.encode())
            assert not _waits(url, lock, sample), f"{lock.name} survived"
            keys = [d.object for d in manifest.compare(connection).differences]
            assert [key for key in keys if f".{lock.function}" in key]
        guard = "guard_functions" if lock.text else "guard_triggers_users"
        rows.append(f"| {lock.name} ({lock.function}) | test_removing_a_lock_is_noticed | {guard} |")
    print("\n".join(rows))
    _expect_section("locks", rows)


def test_removing_the_isolation_check_is_noticed(new_database: Callable[..., str]) -> None:
    """Without the check a call runs at REPEATABLE READ, where its snapshot may be older than the lock that it took."""
    calls = (_PAYOUT, "SELECT crm_private.number_changes()")
    with psycopg.connect(new_database("crm"), autocommit=True) as connection:
        sample = attacks.prepare(connection).sample
        connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        revoke = f"REVOKE EXECUTE ON FUNCTION crm_private.{REFUSES_ISOLATION} FROM crm_rpc"
        for call in calls:
            for change, sqlstate in (("", "25001"), (revoke, "42501")):
                with pytest.raises(psycopg.Error) as refused, connection.transaction(force_rollback=True):
                    connection.execute(change.encode())
                    connection.execute(call, sample)
                assert refused.value.sqlstate == sqlstate
        for function, text, weaker in (
            ("at_read_committed", "= 'read committed'", "IS NOT NULL"),
            (REFUSES_ISOLATION, "BEGIN", "BEGIN RETURN;"),
        ):
            definition = connection.execute(
                "SELECT pg_get_functiondef(%s::regproc)", [f"crm_private.{function}"]
            ).fetchone()
            assert definition and text in definition[0]
            connection.execute(definition[0].replace(text, weaker).encode())
            for call in calls:
                with connection.transaction(force_rollback=True):
                    connection.execute(call, sample)
            [difference] = manifest.compare(connection, {"function"}).differences
            assert difference.object.startswith(f"function crm_private.{function}(")
            connection.execute(definition[0].encode())


def test_setting_a_sequence_to_its_end_is_noticed(new_database: Callable[..., str]) -> None:
    """Who may write all data may set a sequence to its end, which stops every RPC: the check shows how to set it back.

    Nothing can refuse it, and no transaction takes it back, so each runs on a clone.
    """
    for key, facts in manifest.expected().objects.items():
        if not key.startswith("sequence "):
            continue
        with psycopg.connect(new_database("crm"), autocommit=True) as connection:
            laboratory = attacks.prepare(connection)
            day = attacks.ATTACKS["working_day"]
            assert laboratory.try_(day).held
            # other tests' databases are on this server: the role never commits, the sequence changes all the same
            with connection.transaction(force_rollback=True):
                connection.execute(
                    "CREATE ROLE writes_all IN ROLE pg_write_all_data; SET LOCAL ROLE writes_all"
                )
                connection.execute(f"SELECT setval('{_name(key)}', 9223372036854775807)".encode())
            if facts["column"] or "order_code" in key:
                assert not laboratory.try_(day).held
            [difference] = manifest.compare(connection).differences
            assert (difference.object, difference.guard) == (key, "columns")
            connection.execute(difference.repair.encode())
            assert manifest.compare(connection).differences == ()
            assert laboratory.try_(day).held


def _waits(url: str, lock: Lock, sample: Any) -> bool:
    with psycopg.connect(url) as first, psycopg.connect(url) as second:
        first.execute(lock.first, sample)
        second.execute("SET LOCAL lock_timeout = '200ms'")
        try:
            second.execute(lock.second, sample)
        except psycopg.errors.LockNotAvailable:
            return True
        finally:
            first.rollback()
            second.rollback()
        return False


# -- the committed table --------------------------------------------------------------------------------

_HEAD = """\
# Guard mutation: the kill table

Generated by `crm_analytics_tests/crm/test_guard_mutation.py`, which fails if a mutant survives or this table is out
of date. It removes or weakens every guard, grant, policy, constraint and unique index in turn on a real PostgreSQL. An
attack or a check must notice by what then becomes possible, and the drift check by the catalog. The last column is the
asset check that turns red in production.
"""


def _sections() -> dict[str, str]:
    if not KILL_TABLE.exists():
        return {}
    parts = re.split(r"^## (.+)$", KILL_TABLE.read_text(encoding="utf-8"), flags=re.M)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def _killers(group: str) -> dict[str, str]:
    """Returns who noticed each mutant when the table was written."""
    cells = [row.strip("| ").split(" | ") for row in _sections().get(group, "").splitlines()]
    return {what: who for what, who, *_ in (row for row in cells if len(row) == 3)}


def _section(rows: Sequence[str]) -> str:
    head = (
        f"\n\n{len(rows)} mutants, {len(rows)} killed.\n\n| mutant | noticed by | manifest |\n|---|---|---|\n"
    )
    return head + "\n".join(rows) + "\n\n"


def _expect_section(group: str, rows: Sequence[str], newer: Sequence[str] = ()) -> None:
    """Expects the committed rows, without those of newer servers."""
    sections = _sections()
    if newer:
        there = [row for row in sections.get(group, "").splitlines() if row.startswith("| ")][1:]
        assert [row for row in there if row.split(" | ")[0].removeprefix("| ") not in newer] == list(rows)
        return
    if WRITE:
        sections[group] = _section(rows)
        text = "".join(f"## {name}{sections[name]}" for name in [*GROUPS, "locks"] if name in sections)
        KILL_TABLE.write_text(f"{_HEAD}\n{text}".rstrip() + "\n", encoding="utf-8")
    else:
        assert sections.get(group, "").strip() == _section(rows).strip(), (
            "rewrite the table: see the module's docstring"
        )
