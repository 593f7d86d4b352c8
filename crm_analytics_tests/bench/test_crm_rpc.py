"""The bare table that the payment RPC is compared with must cost what payments cost, or the ratio says nothing."""

from __future__ import annotations

from collections.abc import Callable

import psycopg

from bench.crm_rpc import make_bare_table

#: What PostgreSQL does for each row: columns with types and defaults, indexes, checks and keys, without their names.
_WORK = """
    SELECT 'column', a.attname || ' ' || format_type(a.atttypid, a.atttypmod)
        || CASE WHEN a.attnotnull THEN ' NOT NULL' ELSE '' END || coalesce(' ' || pg_get_expr(d.adbin, d.adrelid), '')
    FROM pg_attribute a LEFT JOIN pg_attrdef d ON (d.adrelid, d.adnum) = (a.attrelid, a.attnum)
    WHERE a.attrelid = %(table)s::regclass AND a.attnum > 0 AND NOT a.attisdropped
    UNION ALL
    SELECT 'constraint', replace(pg_get_constraintdef(oid), %(name)s || '(', 'itself(') FROM pg_constraint
    WHERE conrelid = %(table)s::regclass AND contype <> 'n'
    UNION ALL
    SELECT 'index', substring(pg_get_indexdef(indexrelid) FROM 'USING .*') || ' ' || indisunique
    FROM pg_index WHERE indrelid = %(table)s::regclass
    ORDER BY 1, 2
"""


def test_the_bare_table_is_the_payments_table_without_triggers(new_database: Callable[..., str]) -> None:
    """Every column, default, check, index and foreign key of payments is there; a lighter table would flatter nobody but us."""
    with psycopg.connect(new_database("crm"), autocommit=True) as connection:
        make_bare_table(connection)
        bare, payments = (
            connection.execute(_WORK, {"table": f"public.{name}", "name": name}).fetchall()
            for name in ("bench_bare", "payments")
        )
    assert bare == payments
    kinds = [kind for kind, _ in payments]
    assert (kinds.count("column"), kinds.count("index")) >= (17, 5)
    assert any("FOREIGN KEY (created_by)" in definition for _, definition in payments)
