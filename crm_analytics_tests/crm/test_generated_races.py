"""Races generated over every RPC: whatever a call waits for, it ends as if it had come before or after the other one.

What an RPC may wait for is read from the source of its functions: rows that it locks, and unique keys that it claims.
`CALLS` has calls that reach all of them; a new lock in an RPC needs a call here that waits for it.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest

from crm_analytics.crm.proof import attacks
from crm_analytics.crm.schema.catalog import RPC_NAMES
from crm_analytics_tests.conftest import PATIENCE
from crm_analytics_tests.crm.conftest import Connection, broken_invariants, rows, value

_BOOK = "record_generic_payment_safe(%(fresh)s, 'incoming', 'client_payment', 'card', 10, 'EUR', 'completed', 'race', p_user_id => %(actor)s)"
#: For every RPC calls by an admin, `actor`, that reach everything it waits for; the names are those of the sample.
CALLS: Mapping[str, tuple[str, ...]] = {
    "resolve_crm_user": ("resolve_crm_user('race', 'actor', 'actor@example.com')",),
    "create_lead_safe": (
        "create_lead_safe('site', 'R', '+1 202 555 0177', 'race@example.com', '@race', p_user_id => %(actor)s)",
        # fills the address that the customer lacks
        "create_lead_safe('site', 'R', '+1 202 555 0100', 'race@example.com', p_user_id => %(actor)s)",
        "create_lead_safe('site', 'R', p_contact => '@keyed', p_user_id => %(actor)s, p_idempotency_key => 'race')",
    ),
    "advance_lead_status_safe": ("advance_lead_status_safe(%(open_lead)s, 'in_progress', %(actor)s)",),
    "create_order_safe": (
        "create_order_safe(%(other_customer)s, %(open_lead)s, NULL, 10, 'EUR', %(actor)s, 'RACE')",
        "create_order_safe(%(other_customer)s, NULL, NULL, 10, 'EUR', %(actor)s, p_idempotency_key => 'race')",
    ),
    "quick_order_safe": (
        "quick_order_safe('site', 'R', NULL, 10, 'EUR', '+1 202 555 0100', 'race@example.com', p_user_id => %(actor)s)",
        "quick_order_safe('site', 'R', NULL, 10, 'EUR', p_contact => '@keyed', p_user_id => %(actor)s, p_idempotency_key => 'race')",
    ),
    "checkout_order_safe": (
        "checkout_order_safe(%(other_customer)s, NULL, 10, 'EUR', 'card', 'race', %(actor)s, %(open_lead)s)",
        "checkout_order_safe(%(other_customer)s, NULL, 10, 'EUR', 'cash', NULL, %(actor)s, p_idempotency_key => 'race')",
    ),
    "record_generic_payment_safe": (_BOOK,),
    "update_payment_status_safe": ("update_payment_status_safe(%(bare)s, 'completed', %(actor)s, 'race')",),
    "reverse_payment_safe": ("reverse_payment_safe(%(part)s, 'R', %(actor)s)",),
    "advance_order_status_safe": ("advance_order_status_safe(%(fresh)s, 'cancelled', %(actor)s)",),
    "attach_document_safe": (
        "attach_document_safe('invoice', 's3://x', %(actor)s, %(fresh)s)",
        "attach_document_safe('invoice', 's3://x', %(actor)s, %(fresh)s, p_idempotency_key => 'race')",
    ),
    "replace_document_safe": (
        "replace_document_safe(%(current)s, 's3://y', %(actor)s)",
        "replace_document_safe(%(leads_document)s, 's3://y', %(actor)s)",
    ),
    "withdraw_document_safe": (
        "withdraw_document_safe(%(current)s, %(actor)s, 'R')",
        "withdraw_document_safe(%(leads_document)s, %(actor)s, 'R')",
    ),
    "create_task_safe": (
        "create_task_safe('R', %(actor)s, %(fresh)s, p_assignee_id => %(manager)s)",
        "create_task_safe('R', %(actor)s, %(fresh)s, p_idempotency_key => 'race')",
    ),
    "update_task_safe": ("update_task_safe(%(task)s, %(actor)s, true)",),
    "upsert_shipment_safe": ("upsert_shipment_safe(%(paid)s, %(actor)s, %(shipment)s, p_status => 'lost')",),
    "update_order_safe": ("update_order_safe(%(fresh)s, %(actor)s, p_bike_url => 'https://example.com/b')",),
    "update_lead_safe": ("update_lead_safe(%(open_lead)s, %(actor)s, p_notes => 'R')",),
    "update_customer_safe": (
        "update_customer_safe(%(other_customer)s, %(actor)s, p_phone => '+1 202 555 0177')",
        "update_customer_safe(%(customer)s, %(actor)s, p_phone => '+1 202 555 0100')",
    ),
    "merge_customers_safe": ("merge_customers_safe(%(customer)s, %(other_customer)s, %(actor)s, 'R')",),
    "erase_customer_safe": ("erase_customer_safe(%(customer)s, %(actor)s, 'R')",),
    "create_user_safe": ("create_user_safe('R', 'race@example.com', 'manager', %(actor)s)",),
    "update_user_safe": ("update_user_safe(%(manager)s, %(actor)s, 'R', 'race@example.com')",),
    "set_user_active_safe": ("set_user_active_safe(%(manager)s, false, %(actor)s)",),
    "set_user_role_safe": ("set_user_role_safe(%(manager)s, 'admin', %(actor)s)",),
    "map_identity_safe": ("map_identity_safe('race', 'actor', %(manager)s, %(actor)s)",),
    "unmap_identity_safe": ("unmap_identity_safe('attack', 'm', %(actor)s)",),
}
#: For every unique key that a call claims, one by `admin` that has claimed it already.
HOLDERS: Mapping[str, str] = {
    "customer_contacts": "create_lead_safe('site', 'H', '+1 202 555 0177', 'race@example.com', '@race', p_user_id => %(admin)s)",
    "orders": "create_order_safe(%(other_customer)s, NULL, NULL, 10, 'EUR', %(admin)s, 'RACE')",
    "payments": _BOOK.replace("%(fresh)s", "%(paid)s").replace("%(actor)s", "%(admin)s"),
    "users": "create_user_safe('H', 'race@example.com', 'manager', %(admin)s)",
    "user_identity_map": "map_identity_safe('race', 'actor', %(manager)s, %(admin)s)",
}
#: For every RPC that takes an idempotency key, a call by `admin` that has the key and nothing else that its call needs.
KEY_HOLDERS: Mapping[str, str] = {
    "create_lead_safe": "create_lead_safe('site', 'H', p_contact => '@held', p_user_id => %(admin)s, p_idempotency_key => 'race')",
    "create_order_safe": "create_order_safe(%(customer)s, NULL, NULL, 10, 'EUR', %(admin)s, p_idempotency_key => 'race')",
    "quick_order_safe": "quick_order_safe('site', 'H', NULL, 10, 'EUR', p_contact => '@held', p_user_id => %(admin)s, p_idempotency_key => 'race')",
    "checkout_order_safe": "checkout_order_safe(%(customer)s, NULL, 10, 'EUR', 'cash', NULL, %(admin)s, p_idempotency_key => 'race')",
    "attach_document_safe": "attach_document_safe('invoice', 's3://h', %(admin)s, %(paid)s, p_idempotency_key => 'race')",
    "create_task_safe": "create_task_safe('H', %(admin)s, %(paid)s, p_idempotency_key => 'race')",
}
KEYS = "crm_private.idempotency_keys"
#: Ways to take the actor's rights.
TAKEN: Mapping[str, str] = {
    "deactivated": "SELECT public.set_user_active_safe(%(actor)s, false, %(admin)s)",
    "role taken": "SELECT public.set_user_role_safe(%(actor)s, 'manager', %(admin)s)",
    "deactivated by the owner": "UPDATE public.users SET active = false WHERE id = %(actor)s",
    "role taken by the owner": "UPDATE public.users SET role = 'manager' WHERE id = %(actor)s",
}
#: RPCs that a manager may not call, at least as in `CALLS`.
FOR_ADMINS = (
    "merge_customers_safe", "create_user_safe", "update_user_safe", "set_user_active_safe", "set_user_role_safe",
    "map_identity_safe", "unmap_identity_safe", "reverse_payment_safe", "erase_customer_safe",
)  # fmt: skip
#: What no other call can hold: rows that the call itself has just made, numbers that it generates, and keys that belong
#: to a row of its locked order.
OWN = {
    "reverse_payment_safe": {"unique payments"},
    "quick_order_safe": {"row leads", "unique orders"},
    "checkout_order_safe": {"row orders", "unique orders"},
}
#: What a waiting call may find instead of the row it wanted.
REFUSALS = ("42501", "PT404", "PT409")


def waits(connection: Connection) -> dict[str, set[str]]:
    """Returns what each RPC may wait for, by the source of its functions: `row <table>` and `unique <table>`."""
    sources = dict(
        rows(
            connection,
            "SELECT proname, prosrc FROM pg_proc"
            " WHERE pronamespace IN ('public'::regnamespace, 'crm_private'::regnamespace)",
        )
    )
    unique = {
        table
        for (table,) in rows(
            connection,
            "SELECT DISTINCT indrelid::regclass::text FROM pg_index i JOIN pg_class c ON c.oid = i.indrelid"
            " WHERE indisunique AND (NOT indisprimary OR c.relname IN ('user_identity_map', 'idempotency_keys'))"
            " AND c.relnamespace IN ('public'::regnamespace, 'crm_private'::regnamespace)",
        )
    }
    # numbers within a locked order, and the owner's audit and seals: nobody waits for them
    unique -= {"order_status_events", "audit_seals", "audit_positions"}
    # a document is locked before it is replaced
    unique -= {"documents"}

    def of(function: str, seen: set[str]) -> set[str]:
        if function in seen:
            return set()
        seen.add(function)
        source = re.sub(r"--.*", "", sources[function])
        found = {
            f"row {table}"
            for table in re.findall(
                r"FROM\s+(?:public\.)?((?:crm_private\.)?\w+)\s[^;]*?\bFOR\s+(?:NO KEY UPDATE|UPDATE|KEY SHARE|SHARE)\b",
                source,
            )
        }
        found |= {
            f"unique {t}" for t in re.findall(r"INSERT INTO (?:public\.)?([\w.]+)", source) if t in unique
        }
        if re.search(r"UPDATE public\.(users|payments) ", source) and "unique_violation" in source:
            found |= {f"unique {t}" for t in re.findall(r"UPDATE public\.(users|payments) ", source)}
        for called in set(re.findall(r"(?:crm_private|public)\.(\w+)\s*\(", source)) & sources.keys():
            found |= of(called, seen)
        return found

    # the actor's own row: `test_rights_taken_first` waits for it
    return {rpc: of(rpc, set()) - {"row users"} - OWN.get(rpc, set()) for rpc in RPC_NAMES}


class Lab:
    """A database with sample rows, connections by name, and threads to call from."""

    def __init__(self, url: str, pool: ThreadPoolExecutor) -> None:
        self.pool = pool
        self.holder, self.caller, self.taker, self.watcher = (
            psycopg.connect(url, autocommit=True) for _ in range(4)
        )
        lab = attacks.prepare(self.watcher)
        with self.watcher.transaction():
            sample = lab.sample
            sample["actor"] = lab.run(
                "INSERT INTO public.users (name, email, role) VALUES ('actor', 'actor@example.com', 'admin') RETURNING id"
            )
            sample |= lab.play(
                [
                    (
                        "leads_document",
                        "attach_document_safe('passport', 's3://l', %(admin)s, NULL, %(open_lead)s)",
                    ),
                    (
                        "bare",
                        _BOOK.replace("'completed', 'race'", "'planned'").replace("%(actor)s", "%(admin)s"),
                    ),
                    ("shipment", "upsert_shipment_safe(%(paid)s, %(admin)s)"),
                ]
            )
        self.sample = sample

    def close(self) -> None:
        for connection in (self.holder, self.caller, self.taker, self.watcher):
            connection.close()

    def outcome(self, connection: Connection, statement: str) -> str:
        """Runs a statement; returns `ok`, or the SQLSTATE by which it was refused."""
        try:
            connection.execute(statement, self.sample)
        except psycopg.Error as error:
            assert error.sqlstate in REFUSALS, f"{statement}: {error.sqlstate} {error}"
            return str(error.sqlstate)
        return "ok"

    @contextmanager
    def open(self, connection: Connection) -> Iterator[None]:
        """Opens a transaction that is rolled back."""
        connection.execute("BEGIN")
        try:
            yield
        finally:
            connection.execute("ROLLBACK")

    def waits_for(self, waiting: Connection, other: Connection, work: Future[Any]) -> bool:
        """Returns once one connection waits for another, or its work is done."""
        deadline = time.monotonic() + PATIENCE
        while not work.done():
            if other.info.backend_pid in value(
                self.watcher, "SELECT pg_blocking_pids(%s)", waiting.info.backend_pid
            ):
                return True
            assert time.monotonic() < deadline
            time.sleep(0.002)
        return False


@pytest.fixture(scope="module")
def lab(new_database: Callable[..., str]) -> Iterator[Lab]:
    with ThreadPoolExecutor(3) as pool:
        lab = Lab(new_database("crm"), pool)
        yield lab
        lab.close()


def holder(wait: str, rpc: str) -> str:
    """Returns the statement that makes an RPC's calls wait."""
    kind, table = wait.split()
    if kind == "row":
        return f"SELECT FROM {table if '.' in table else f'public.{table}'} FOR UPDATE"
    return f"SELECT public.{KEY_HOLDERS[rpc] if table == KEYS else HOLDERS[table]}"


def test_no_locking_rpc_is_missing(lab: Lab) -> None:
    """Every RPC has its calls here, and every unique key that one may wait for has its holder."""
    assert set(CALLS) == set(RPC_NAMES)
    waits_of = waits(lab.watcher)
    found = {wait for of_rpc in waits_of.values() for wait in of_rpc}
    assert {w.removeprefix("unique ") for w in found if w.startswith("unique ")} == {*HOLDERS, KEYS}
    assert {rpc for rpc, of_rpc in waits_of.items() if f"unique {KEYS}" in of_rpc} == set(KEY_HOLDERS)
    assert {
        "row customers", "row orders", "row leads", "row tasks", "row crm_private.audit_numbering",
    } <= found  # fmt: skip


@pytest.mark.parametrize("rpc", RPC_NAMES)
def test_rights_hold_while_a_call_waits(lab: Lab, rpc: str) -> None:
    """Nobody loses rights while a call waits, for a row or a unique key: whoever takes them waits for the call."""
    for wait in sorted(waits(lab.watcher)[rpc]):
        waited = []
        for call in CALLS[rpc]:
            for how in TAKEN.values():
                with lab.open(lab.holder), lab.open(lab.caller), lab.open(lab.taker):
                    lab.holder.execute(holder(wait, rpc), lab.sample)
                    calling = lab.pool.submit(lab.outcome, lab.caller, f"SELECT public.{call}")
                    if not lab.waits_for(lab.caller, lab.holder, calling):
                        break  # another call of this RPC waits here
                    waited.append(call)
                    taking = lab.pool.submit(lab.outcome, lab.taker, how)
                    assert lab.waits_for(lab.taker, lab.caller, taking), f"{how} did not wait for {call}"
                    lab.holder.execute("ROLLBACK")
                    assert calling.result(PATIENCE) in ("ok", "PT409")
                    assert not taking.done()
                    lab.caller.execute("ROLLBACK")
                    assert taking.result(PATIENCE) == "ok"
        assert waited, f"no call of {rpc} waits for {wait}: add one to CALLS"


@pytest.mark.parametrize("rpc", RPC_NAMES)
def test_rights_taken_first(lab: Lab, rpc: str) -> None:
    """A call that comes while its actor's rights are being taken waits, and is refused without them."""
    for name, how in TAKEN.items():
        needs_admin = rpc in FOR_ADMINS or "deactivated" in name
        with lab.open(lab.caller), lab.open(lab.taker):
            lab.taker.execute(how, lab.sample)
            calling = lab.pool.submit(lab.outcome, lab.caller, f"SELECT public.{CALLS[rpc][0]}")
            assert lab.waits_for(lab.caller, lab.taker, calling), f"{rpc} did not wait: {name}"
            lab.taker.execute("COMMIT")
            assert calling.result(PATIENCE) == ("42501" if needs_admin else "ok"), name
        lab.watcher.execute(
            "UPDATE public.users SET active = true, role = 'admin' WHERE id = %(actor)s", lab.sample
        )


@pytest.mark.parametrize("rpc", RPC_NAMES)
def test_it_ends_as_if_one_came_first(new_database: Callable[..., str], rpc: str) -> None:
    """Beside the same call, or beside one that cancels its order, a call ends as it would after that one."""
    cancelled = "advance_order_status_safe({}, 'cancelled', %(admin)s)"
    with ThreadPoolExecutor(2) as pool:
        lab = Lab(new_database("crm"), pool)
        tried = 0
        for call in CALLS[rpc]:
            for first in (call, cancelled.format("%(fresh)s"), cancelled.format("%(paid)s")):
                with lab.open(lab.watcher):
                    if lab.outcome(lab.watcher, f"SELECT public.{first}") != "ok":
                        continue  # done by a case before
                    serial = lab.outcome(lab.watcher, f"SELECT public.{call}")
                for end in ("ROLLBACK", "COMMIT"):
                    with lab.open(lab.holder), lab.open(lab.caller):
                        assert lab.outcome(lab.holder, f"SELECT public.{first}") == "ok"
                        calling = lab.pool.submit(lab.outcome, lab.caller, f"SELECT public.{call}")
                        waited = lab.waits_for(lab.caller, lab.holder, calling)
                        lab.holder.execute(end)
                        found = calling.result(PATIENCE)
                        if end == "COMMIT":
                            tried += waited
                            # one that did not wait may have come first; the invariants hold all the same
                            assert found == serial or not waited, (
                                f"{call} beside {first}: {found}, after it {serial}"
                            )
                            lab.caller.execute("ROLLBACK" if found != "ok" else "COMMIT")
        assert tried
        assert broken_invariants(lab.watcher) == {}
        lab.close()
