"""The payment RPC: how fast it books payments, and proof that it loses and doubles none."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import psycopg

from bench.cost import Cost, by_turns
from bench.environment import Environment
from bench.table import BenchRow
from crm_analytics.core.embedded_postgres import EmbeddedPostgres
from crm_analytics.core.settings import PROJECT_DIR
from crm_analytics.crm.proof import audit_seals

CLIENTS = 8
ORDERS = 8_000
#: Payments of the run with repeated references, at full scale.
CALLS = 100_000
#: How long a rate is measured in each round.
SECONDS = 5
#: How often both versions' rates are measured: their ratio is near its limit, and two rounds still changed it by a tenth.
ROUNDS = 4
#: More references than a client uses in a round.
PER_ROUND = 10_000_000
SECTION = "CRM RPCs"
#: The commit before reads, feed, versions, reversals and erasure came, whose rate is to be beaten with all of them.
BEFORE = "2685d58b84d8afb61d57ce82f3a568016db589e5"

#: Inserts the same row, as durably, into a table of the same shape (columns, defaults, checks, indexes, foreign keys).
#: The difference is what the RPC adds: rules, guards, events and audit.
_BARE_INSERT = f"""
\\set i :i + 1
\\set n :client_id * {ORDERS // CLIENTS} + :i % {ORDERS // CLIENTS}
\\set reference -(:client_id * 100000000 + :i)
INSERT INTO bench_bare (order_id, direction, role, method, amount, currency, status, external_reference, reference_key, created_by)
SELECT o.id, 'incoming', 'client_payment', 'card', 1, 'EUR', 'completed', :reference::text, :reference::text, a.id
FROM bench_orders o, bench_admin a WHERE o.n = :n;
"""
_PAY = """
SELECT public.record_generic_payment_safe(
    (SELECT id FROM bench_orders WHERE n = :n), 'incoming', 'client_payment', 'card', 1, 'EUR',
    p_external_reference => :reference::text, p_user_id => (SELECT id FROM bench_admin));
"""
#: Every client has its own orders and references.
_DISTINCT_ORDERS = f"""
\\set i :i + 1
\\set n :client_id * {ORDERS // CLIENTS} + :i % {ORDERS // CLIENTS}
\\set reference -(:client_id * 100000000 + :i)
{_PAY}"""
#: Call k pays for reference k, except that every 20th repeats the reference of another call, with the same facts.
#: So N calls must book each reference that isn't a multiple of 20 exactly once, in whatever order they run.
_REPEATED_REFERENCES = f"""
\\set i :i + 1
\\set reference :client_id * :per_client + :i
\\if :reference % 20 = 0
\\set reference (:reference * 7919) % (:per_client * {CLIENTS})
\\if :reference % 20 = 0
\\set reference :reference + 1
\\endif
\\endif
\\set n :reference % {ORDERS}
{_PAY}"""


def rows(environment: Environment) -> Iterator[BenchRow]:
    """Measures on a database of its own, and drops it.

    Raises:
        AssertionError: if a payment was lost or doubled, a call failed, or there was a deadlock.
    """
    server, every = environment.server, 20 * CLIENTS
    calls = max(1, round(CALLS * environment.scale) // every) * every
    with (
        _sources(BEFORE) as older,
        _database(server, "bench_crm_before", older) as before_url,
        _database(server) as url,
    ):
        starts = count(0, PER_ROUND)
        paid, before = by_turns(
            partial(_call, environment, url, _DISTINCT_ORDERS, starts, durably=False),
            partial(_call, environment, before_url, _DISTINCT_ORDERS, count(0, PER_ROUND), durably=False),
            rounds=ROUNDS,
        )
        yield BenchRow(
            SECTION, f"record_generic_payment_safe, {CLIENTS} clients on distinct orders", 1 / paid.seconds, "calls/s",
            f"the same at commit {BEFORE[:7]}", 1 / before.seconds, 1.25,
            higher_is_better=True,
            note=f"synchronous_commit off; server CPU {paid.server * 1000:.2f} : {before.server * 1000:.2f} ms a call",
        )  # fmt: skip
        durably_paid, bare = by_turns(
            partial(_call, environment, url, _DISTINCT_ORDERS, starts),
            partial(_call, environment, url, _BARE_INSERT, count(0, PER_ROUND)),
        )
        yield BenchRow(
            SECTION, f"record_generic_payment_safe, {CLIENTS} clients on distinct orders", 1 / durably_paid.seconds, "calls/s",
            f"bare INSERT of the same row, same indexes and foreign keys, {CLIENTS} clients", 1 / bare.seconds, 0.25,
            higher_is_better=True, note=f"server CPU {durably_paid.server * 1000:.2f} : {bare.server * 1000:.2f} ms a call",
        )  # fmt: skip
        yield _sealed_meanwhile(server, url)
        yield _repeated(server, url, calls)


def _sealed_meanwhile(server: EmbeddedPostgres, url: str) -> BenchRow:
    """Seals the audit log while clients pay, and beside a transaction that wrote to it and stays open."""
    unsealed = (
        "SELECT count(*) FROM public.audit_log l WHERE id <= %s AND NOT EXISTS (SELECT FROM public.audit_positions p"
        ' WHERE p.audit_id = l.id AND p."position" <= (SELECT max(last_position) FROM public.audit_seals))'
    )
    with (
        tempfile.TemporaryDirectory() as folder,
        ThreadPoolExecutor(1) as pool,
        psycopg.connect(url) as idle,
        psycopg.connect(url, autocommit=True) as connection,
    ):
        # what the rounds before left, however many they were; then as many changes as there are in one
        audit_seals.seal(connection)
        _pgbench(server, url, _DISTINCT_ORDERS, ["-T", str(SECONDS), "-D", f"i={8 * PER_ROUND}"])
        idle.execute("SELECT public.create_lead_safe('bench', 'Idle', p_contact => 'idle')")
        highest = connection.execute("SELECT max(id) FROM public.audit_log").fetchone()
        arguments = ["-T", str(SECONDS), "-D", f"i={9 * PER_ROUND}", "-l", "--log-prefix", f"{folder}/calls"]
        paying = pool.submit(_pgbench, server, url, _DISTINCT_ORDERS, arguments)
        time.sleep(SECONDS / 4)
        start = time.perf_counter()
        sealed = audit_seals.seal(connection)["row_count"]
        seconds = time.perf_counter() - start
        assert not paying.done(), "nobody paid until the end of the sealing"
        paying.result()
        left = connection.execute(unsealed, highest).fetchone()
        assert left == (0,), f"{left} older changes were not sealed"
        idle.rollback()
        slowest = max(
            int(line.split()[2]) / 1e6
            for file in Path(folder).iterdir()
            for line in file.read_text().splitlines()
        )
    return BenchRow(
        SECTION, f"slowest of all payments while {sealed:,} changes are sealed, with an idle transaction open", slowest * 1000,
        "ms", "the sealing, for which nobody waits", seconds * 1000, 0.5,
    )  # fmt: skip


def _repeated(server: EmbeddedPostgres, url: str, calls: int) -> BenchRow:
    with psycopg.connect(url, autocommit=True) as connection:
        booked_so_far = (
            "SELECT count(*), coalesce(sum(amount), 0), count(DISTINCT reference_key) FROM public.payments"
        )
        deadlocks = "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"
        before, dead_before = (
            connection.execute(booked_so_far).fetchone(),
            connection.execute(deadlocks).fetchone(),
        )
        per_client = calls // CLIENTS
        connection.execute("SELECT pg_stat_force_next_flush()")
        output = _pgbench(
            server,
            url,
            _REPEATED_REFERENCES,
            ["-t", str(per_client), "-D", f"per_client={per_client}", "-D", "i=0"],
        )
        after, dead_after = (
            connection.execute(booked_so_far).fetchone(),
            connection.execute(deadlocks).fetchone(),
        )
    assert before and after and dead_before and dead_after
    expected = calls - calls // 20
    booked, amount, references = (int(new - old) for new, old in zip(after, before, strict=True))
    assert (booked, amount, references) == (expected, expected, expected), (
        f"{calls} calls with {calls // 20} repeats booked {booked} payments of {amount} for {references} references, "
        f"expected {expected} of each"
    )
    assert dead_after == dead_before, "there was a deadlock"
    assert "number of failed transactions: 0 " in output, output
    return BenchRow(
        SECTION, f"{calls} calls, every 20th with a repeated reference: payments lost or doubled, deadlocks", 0, "of them",
        limit=0, note=f"{_tps(output):.0f} calls/s",
    )  # fmt: skip


@contextmanager
def _sources(commit: str) -> Iterator[Path]:
    """Yields a folder with the sources of an older commit, from the history of the clone."""
    with tempfile.TemporaryDirectory() as folder:
        archive = subprocess.run(
            ["git", "-C", str(PROJECT_DIR), "archive", commit, "crm_analytics", "sql", "pyproject.toml"],
            capture_output=True, check=False,
        )  # fmt: skip
        if archive.returncode:
            raise AssertionError(
                f"commit {commit} is not here, so its rate can't be measured; clone with the whole history: "
                f"{archive.stderr.decode().strip()}"
            )
        subprocess.run(["tar", "-x", "-C", folder], input=archive.stdout, check=True)
        yield Path(folder)


@contextmanager
def _database(
    server: EmbeddedPostgres, name: str = "bench_crm", sources: Path = PROJECT_DIR
) -> Iterator[str]:
    """Yields the URL of a CRM database with orders to pay for, migrated by the code of the sources."""
    with psycopg.connect(server.url("postgres"), autocommit=True) as admin:
        admin.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
        admin.execute(f"CREATE DATABASE {name}")
        try:
            url = server.url(name)
            subprocess.run(
                [sys.executable, "-c", "import sys; from crm_analytics.crm.migrating.migrate import migrate_crm; migrate_crm(sys.argv[1])", url],
                cwd=sources, check=True,
            )  # fmt: skip
            with psycopg.connect(url) as connection:
                make_bare_table(connection)
                connection.execute(
                    "INSERT INTO public.users (name, email, role) VALUES ('Bench', 'bench@example.com', 'admin')"
                )
                connection.execute(
                    "CREATE TABLE bench_admin AS SELECT id FROM public.users WHERE email = 'bench@example.com'"
                )
                connection.execute(
                    "CREATE TABLE bench_orders (n integer PRIMARY KEY, id uuid NOT NULL);"
                    "WITH lead AS MATERIALIZED (SELECT public.create_lead_safe('bench', 'Bench', p_contact => 'bench') AS l)"
                    " INSERT INTO bench_orders SELECT n, (public.create_order_safe((l ->> 'customer_id')::uuid,"
                    " p_total_amount => 1000000, p_currency => 'EUR') ->> 'id')::uuid"
                    f" FROM lead, generate_series(0, {ORDERS - 1}) AS n"
                )
                # Sessions keep the plans they first made, and plans made for empty tables scan them.
                # So the measured calls start in a database with history, as those of a running business do.
                connection.execute(
                    "SELECT public.record_generic_payment_safe(o.id, 'incoming', 'client_payment', 'bank_transfer', 1, 'EUR',"
                    " p_user_id => a.id) FROM bench_orders o, bench_admin a"
                )
            with psycopg.connect(url, autocommit=True) as connection:
                connection.execute("VACUUM ANALYZE")
            yield url
        finally:
            admin.execute(f"DROP DATABASE {name} WITH (FORCE)")


def make_bare_table(connection: psycopg.Connection[Any]) -> None:
    """Makes bench_bare: the payments' columns, defaults, checks, indexes and foreign keys, without their triggers."""
    connection.execute("CREATE TABLE bench_bare (LIKE public.payments INCLUDING ALL)")
    foreign_keys = connection.execute(
        "SELECT replace(pg_get_constraintdef(oid), 'REFERENCES payments(', 'REFERENCES bench_bare(') FROM pg_constraint"
        " WHERE conrelid = 'public.payments'::regclass AND contype = 'f'"
    ).fetchall()
    for (definition,) in foreign_keys:
        connection.execute(f"ALTER TABLE bench_bare ADD {definition}".encode())


def _call(
    environment: Environment, url: str, script: str, starts: Iterator[int], *, durably: bool = True
) -> Cost:
    """Calls for a while, with references after the next start; returns the cost of one call.

    Its wall-clock time is the time between the ends of two calls of any clients.
    """
    outputs: list[str] = []
    arguments = ["-T", str(SECONDS), "-D", f"i={next(starts)}"]
    whole = environment.measure(
        lambda: outputs.append(_pgbench(environment.server, url, script, arguments, durably))
    )
    rate = _tps(outputs[0])
    return replace(whole / (rate * SECONDS), seconds=1 / rate)


def _pgbench(
    server: EmbeddedPostgres, url: str, script: str, arguments: list[str], durably: bool = True
) -> str:
    """Runs PostgreSQL's own load generator, because a Python client would be slower than what it measures.

    Unless `durably`, commits don't wait for the disk, whose time the code compared has no part in.
    """
    with tempfile.NamedTemporaryFile("w", suffix=".sql") as file:
        file.write(script)
        file.flush()
        done = subprocess.run(
            [str(Path(server.bin) / "pgbench"), "-n", "-M", "prepared", "-c", str(CLIENTS), "-j", "2",
             "-f", file.name, *arguments, url],
            capture_output=True, text=True, check=False,
            env={**os.environ, "PGOPTIONS": f"-c synchronous_commit={'on' if durably else 'off'}"},
        )  # fmt: skip
    if done.returncode:
        raise AssertionError(f"pgbench failed:\n{done.stderr[-2000:]}")
    return done.stdout


def _tps(output: str) -> float:
    match = re.search(r"^tps = ([\d.]+)", output, re.MULTILINE)
    assert match, output
    return float(match[1])
