"""The CRM's lines of the benchmark: how fast payments are booked through the RPC, and that none is lost or doubled."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg

from bench.table import BenchRow
from crm_analytics.core.embedded_postgres import EmbeddedPostgres
from crm_analytics.crm.migrating.migrate import migrate_crm

CLIENTS = 8
ORDERS = 8_000
SECTION = "CRM RPCs"

#: The same row into a table of the same shape (columns, defaults, checks, indexes, foreign keys), as durable as a
#: payment: what remains is what the RPC adds, its rules, guards, events and audit.
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
#: Call k pays for reference k; every 20th repeats the reference of some other call, with the same facts. So after
#: N calls exactly the references that are no multiple of 20 are booked, once each, whatever the order of events.
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


def crm_rpc_rows(server: EmbeddedPostgres, calls: int = 100_000, seconds: int = 10) -> list[BenchRow]:
    """Measure on a database of its own on the given (durable) server, and drop it.

    Args:
        server: a started server with the settings it has in use.
        calls: how many payments the run with repeated references makes (a multiple of 160).
        seconds: how long each of the two rates is measured.

    Raises:
        AssertionError: if a payment was lost or doubled, a call failed, or there was a deadlock.
    """
    with _database(server) as url:
        bare = _rate(server, url, _BARE_INSERT, seconds)
        paid = _rate(server, url, _DISTINCT_ORDERS, seconds)
        rate = BenchRow(
            SECTION, f"record_generic_payment_safe, {CLIENTS} clients on distinct orders", paid, "calls/s",
            f"bare single-row INSERT of the same row, same indexes and foreign keys, {CLIENTS} clients", bare, 0.25, higher_is_better=True,
        )  # fmt: skip
        return [rate, _repeated(server, url, calls - calls % (20 * CLIENTS))]


def _repeated(server: EmbeddedPostgres, url: str, calls: int) -> BenchRow:
    with psycopg.connect(url, autocommit=True) as connection:
        count = (
            "SELECT count(*), coalesce(sum(amount), 0), count(DISTINCT reference_key) FROM public.payments"
        )
        deadlocks = "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"
        before, dead_before = connection.execute(count).fetchone(), connection.execute(deadlocks).fetchone()
        per_client = calls // CLIENTS
        connection.execute("SELECT pg_stat_force_next_flush()")
        output = _pgbench(
            server, url, _REPEATED_REFERENCES, ["-t", str(per_client), "-D", f"per_client={per_client}"]
        )
        after, dead_after = connection.execute(count).fetchone(), connection.execute(deadlocks).fetchone()
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
        SECTION, f"{calls} calls, every 20th a repeated reference: payments lost or doubled, deadlocks", 0, "of them",
        limit=0, note=f"{_tps(output):.0f} calls/s",
    )  # fmt: skip


@contextmanager
def _database(server: EmbeddedPostgres) -> Iterator[str]:
    name = "bench_crm"
    with psycopg.connect(server.url("postgres"), autocommit=True) as admin:
        admin.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
        admin.execute(f"CREATE DATABASE {name}")
        try:
            url = server.url(name)
            migrate_crm(url)
            with psycopg.connect(url) as connection:
                connection.execute(
                    "CREATE TABLE bench_bare (LIKE public.payments INCLUDING ALL,"
                    " FOREIGN KEY (order_id) REFERENCES public.orders, FOREIGN KEY (created_by) REFERENCES public.users,"
                    " FOREIGN KEY (related_payment_id) REFERENCES bench_bare)"
                )
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
                # a business that has been running: sessions keep the plans of the tables they first met, and plans
                # made for empty tables scan them
                connection.execute(
                    "SELECT public.record_generic_payment_safe(o.id, 'incoming', 'client_payment', 'bank_transfer', 1, 'EUR',"
                    " p_user_id => a.id) FROM bench_orders o, bench_admin a"
                )
            with psycopg.connect(url, autocommit=True) as connection:
                connection.execute("VACUUM ANALYZE")
            yield url
        finally:
            admin.execute(f"DROP DATABASE {name} WITH (FORCE)")


def _rate(server: EmbeddedPostgres, url: str, script: str, seconds: int) -> float:
    return _tps(_pgbench(server, url, script, ["-T", str(seconds)]))


def _pgbench(server: EmbeddedPostgres, url: str, script: str, arguments: list[str]) -> str:
    """PostgreSQL's own load generator: a Python client would be slower than what it measures."""
    with tempfile.NamedTemporaryFile("w", suffix=".sql") as file:
        file.write(script)
        file.flush()
        done = subprocess.run(
            [str(Path(server.bin) / "pgbench"), "-n", "-M", "prepared", "-c", str(CLIENTS), "-j", "2", "-D", "i=0",
             "-f", file.name, *arguments, url],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
    if done.returncode:
        raise AssertionError(f"pgbench failed:\n{done.stderr[-2000:]}")
    return done.stdout


def _tps(output: str) -> float:
    match = re.search(r"^tps = ([\d.]+)", output, re.MULTILINE)
    assert match, output
    return float(match[1])
