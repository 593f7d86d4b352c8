"""Every dashboard query as grafana_reader, on ten years of daily data with 20 sources, in milliseconds.

All sources and segments are chosen. The limit holds for the dashboards' default time range of twelve months; the note
has the time for all ten years.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
from psycopg.conninfo import make_conninfo

from bench.environment import Environment
from bench.table import BenchRow
from crm_analytics.core import migrations
from crm_analytics.core.embedded_postgres import EmbeddedPostgres
from crm_analytics.crm.migrating.migrate import migrate_crm
from crm_analytics.dashboards.generate import generated
from crm_analytics.dashboards.reader_role import set_up
from crm_analytics.dashboards.tools.expand_macros import expand
from crm_analytics.dashboards.tools.lint import queries_of

#: Milliseconds.
LIMIT = 50.0
REPEATS = 7
PASSWORD = "measured-and-thrown-away"  # noqa: S105 - the server is removed afterwards
SOURCES = [f"Source {number:02}" for number in range(1, 21)]

#: 3,650 days × 20 sources × 3 segments; raw rows, files, quarantine and refreshes in proportion.
ANALYTICS = """
    SET session_replication_role = replica; -- no triggers: the metrics are inserted, nothing becomes stale
    INSERT INTO analytics.daily_metrics (date, source, segment, jobs, units, repairs, leads, calls, cost, revenue_gross)
    SELECT d::date, 'Source ' || lpad(s::text, 2, '0'), g, 1 + (s + k) % 4, (s + k) % 3, (s + k) % 2, 1 + (s * k) % 5,
        s % 3, (s * 7 + k) % 90, (s * 31 + k * 3) % 700
    FROM generate_series(analytics.today() - 3649, analytics.today(), interval '1 day') WITH ORDINALITY AS days (d, k)
    CROSS JOIN generate_series(1, 20) s CROSS JOIN unnest(ARRAY['COD', 'INS', 'OTHER']) g;
    INSERT INTO analytics.monthly_metrics (month, source, segment, jobs, units, repairs, leads, calls, cost, revenue_gross)
    SELECT * FROM analytics.compute_monthly_metrics(analytics.today() - 3660, analytics.today() + 32);
    INSERT INTO analytics.targets (month, source, segment, target_repairs, target_revenue40, target_conv_l_to_r, target_cpl_max)
    SELECT DISTINCT month, s, 'ALL', 900, 90000, 0.3, 60 FROM analytics.monthly_metrics
    CROSS JOIN unnest(ARRAY['ALL', 'Source 01', 'Source 02']) s;
    INSERT INTO raw.jobs (job_id, type, source, created_at, job_date)
    SELECT 'j' || n, 'COD Service', 'Source 01', now(), analytics.today() - n % 3650 FROM generate_series(1, 200000) n;
    INSERT INTO raw.payments (payment_id, job_id, paid_date, amount)
    SELECT 'p' || n, CASE WHEN n % 100 > 0 THEN 'j' || (1 + n % 200000) END, analytics.today() - n % 3650, 120
    FROM generate_series(1, 300000) n;
    INSERT INTO raw.calls (call_id, started_at, call_date, flow)
    SELECT 'c' || n, now(), analytics.today() - n % 3650, 'Source 01' FROM generate_series(1, 200000) n;
    INSERT INTO raw.source_files (source, path, sha256, size_bytes, modified_at, exported_at, exported_at_from, status,
        message, records_read, unchanged, last_date)
    SELECT (ARRAY['jobs', 'payments', 'calls', 'elocals_leads', 'proref_leads', 'google_spend'])[1 + n % 6],
        'folder/' || n % 4000 || '.csv', n::text, 1, now(), now() - n * interval '1 hour', 'name',
        CASE WHEN n % 50 = 0 THEN 'refused' ELSE 'loaded' END, 'why', 10, 10, analytics.today() - n % 3650
    FROM generate_series(1, 5000) n;
    INSERT INTO raw.rejected_rows (file_id, source, record_no, line_no, reasons, record)
    SELECT n, 'jobs', 1, 2, jsonb_build_array(
        jsonb_build_object('code', 'not_a_number', 'column', 'column ' || n % 7, 'found', n::text)
    ), '{}' FROM generate_series(1, 3000) n;
    INSERT INTO analytics.refresh_log (month, run_id, started_at, finished_at, stale_rows, changed_rows)
    SELECT DISTINCT month, 'run-' || r, now() - r * interval '1 day', now() - r * interval '1 day', 1, 1
    FROM analytics.monthly_metrics CROSS JOIN generate_series(1, 40) r;
    INSERT INTO analytics.stale_months (month, table_name, operation)
    SELECT month, 'jobs', 'update' FROM analytics.monthly_metrics WHERE source < 'Source 05';
    RESET session_replication_role;
    ANALYZE;
"""

#: 10,000 leads and orders over ten years, one in twenty unfinished, with payments, events and audit entries.
CRM = """
    INSERT INTO public.leads (source, status, created_at)
    SELECT 'site', CASE WHEN n % 20 = 0 THEN 'in_progress' WHEN n % 2 = 0 THEN 'rejected' ELSE 'converted' END::public.lead_status_enum,
        now() - n * interval '8 hours' FROM generate_series(1, 10000) n;
    INSERT INTO public.orders (order_code, lead_id, status, created_at)
    SELECT 'bench-' || n, id, CASE WHEN n % 20 = 0 THEN 'paid' WHEN n % 5 = 0 THEN 'cancelled' ELSE 'closed' END::public.order_status_enum,
        created_at FROM (SELECT row_number() OVER () AS n, id, created_at FROM public.leads) l;
    INSERT INTO public.order_status_events (order_id, seq, old_status, new_status, created_at)
    SELECT id, k, 'created', 'paid', created_at FROM public.orders CROSS JOIN generate_series(1, 3) k;
    INSERT INTO public.payments (order_id, direction, role, method, amount, currency, status, created_at)
    SELECT id, (ARRAY['incoming', 'outgoing'])[k]::public.payment_direction_enum,
        (ARRAY['client_payment', 'supplier_payment'])[k]::public.payment_role_enum, 'cash', 100 / k, 'EUR', 'completed',
        created_at FROM public.orders CROSS JOIN generate_series(1, 2) k;
    INSERT INTO public.audit_log (action, entity, entity_id, created_at)
    SELECT CASE k WHEN 1 THEN 'create' ELSE 'status_change' END, 'leads', id, created_at
    FROM public.leads CROSS JOIN generate_series(1, 4) k;
    ANALYZE;
"""
CRM_TABLES = ("leads", "orders", "order_status_events", "payments", "audit_log")


def rows(environment: Environment) -> Iterator[BenchRow]:
    """Yields one line per distinct query, slowest first, with the indexes it used."""
    environment.say("filling databases for the dashboards")
    readers = _databases(environment.server)
    today = datetime.now(UTC)
    choice = {
        "source": SOURCES, "segment": ["COD", "INS", "OTHER"], "month": f"{today:%Y-%m}", "metric": "repairs",
    }  # fmt: skip
    measured = []
    for (source, sql), places in _queries().items():
        year = expand(sql, today - timedelta(365), today, choice).encode()
        decade = expand(sql, today - timedelta(3650), today, choice).encode()
        note = _reads(readers[source], year)
        if decade != year:
            note += f"; all ten years {_milliseconds(readers[source], decade):.0f} ms"
        measured.append((_milliseconds(readers[source], year), places, note))
    for reader in readers.values():
        reader.close()
    for value, places, plan in sorted(measured, key=lambda item: -item[0]):
        more = f" (and {len(places) - 1} more)" if len(places) > 1 else ""
        yield BenchRow("Grafana panels", places[0] + more, value, "ms", limit=LIMIT, note=plan)


def _queries() -> dict[tuple[str, str], list[str]]:
    found: dict[tuple[str, str], list[str]] = {}
    for text in generated().values():
        board = json.loads(text)
        for where, source, sql in queries_of(board):
            found.setdefault((source["uid"], sql), []).append(
                f"{board['title']}: {where.removeprefix('panel ')}"
            )
    return found


def _databases(server: EmbeddedPostgres) -> dict[str, psycopg.Connection[Any]]:
    readers = {}
    migrations.migrate("analytics", url=server.url("analytics"))
    migrate_crm(url=server.url("crm"))
    for database, uid, fill in (
        ("analytics", "crm-analytics-warehouse", ANALYTICS),
        ("crm", "crm-analytics-crm", CRM),
    ):
        url = server.url(database)
        with psycopg.connect(url, autocommit=True) as connection:
            # no RPC writes rows dated in the past
            if database == "crm":
                for table in CRM_TABLES:
                    connection.execute(f"ALTER TABLE public.{table} DISABLE TRIGGER USER")
            connection.execute(fill.encode())
            connection.execute("VACUUM")
            set_up(connection, database, PASSWORD)
        readers[uid] = psycopg.connect(
            make_conninfo(url, user="grafana_reader", password=PASSWORD), autocommit=True
        )
    return readers


def _milliseconds(connection: psycopg.Connection[Any], text: bytes) -> float:
    """Returns the fastest of several runs after a warm-up: the query's own cost, whatever else the machine does."""
    times = []
    for _ in range(REPEATS + 1):
        start = time.perf_counter()
        connection.execute(text).fetchall()
        times.append((time.perf_counter() - start) * 1000)
    return min(times[1:])


def _reads(connection: psycopg.Connection[Any], text: bytes) -> str:
    """Names the indexes that the plan uses and the tables that it scans."""
    row = connection.execute(b"EXPLAIN (FORMAT JSON) " + text).fetchone()
    assert row is not None
    indexes, scans = set(), set()
    pending = [row[0][0]["Plan"]]
    while pending:
        node = pending.pop()
        pending += node.get("Plans", [])
        if "Index Name" in node:
            indexes.add(node["Index Name"])
        elif node["Node Type"] == "Seq Scan":
            scans.add(node["Relation Name"])
    parts = [
        f"{name} {', '.join(sorted(found))}"
        for name, found in (("index", indexes), ("scan of", scans))
        if found
    ]
    return "; ".join(parts) or "no table"
