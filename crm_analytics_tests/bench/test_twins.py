"""The twins that loads are compared with: the same tables as ours, whichever way they are filled."""

from __future__ import annotations

from typing import Any

import pytest

from bench.environment import Environment
from bench.loads import DATABASE, loaded
from bench.twins import Twins, typed_rows

#: Indexes and constraints with their definitions; not the names, which COPY doesn't notice.
DEFINITIONS = """
    SELECT regexp_replace(pg_get_indexdef(indexrelid), 'INDEX \\S+ ON', 'INDEX ON') FROM pg_index
    WHERE indrelid = ANY (%(tables)s::regclass[])
    UNION ALL
    SELECT conrelid::regclass || ' ' || pg_get_constraintdef(oid) FROM pg_constraint
    WHERE conrelid = ANY (%(tables)s::regclass[])
    ORDER BY 1
"""
COLUMNS = """
    SELECT attrelid::regclass::text, attname, format_type(atttypid, atttypmod), attnotnull, attgenerated, attcollation,
        pg_get_expr(adbin, adrelid)
    FROM pg_attribute LEFT JOIN pg_attrdef ON (adrelid, adnum) = (attrelid, attnum)
    WHERE attrelid = ANY (%(tables)s::regclass[]) AND attnum > 0 ORDER BY 1, attnum
"""


def described(twins: Twins, schema: str) -> list[list[tuple[Any, ...]]]:
    """Returns columns and definitions of the schema's two tables, with `raw` for its name."""
    tables = {"tables": [f"{schema}.jobs", f"{schema}.payments"]}
    return [
        [
            tuple(cell.replace(f"{schema}.", "raw.") if isinstance(cell, str) else cell for cell in row)
            for row in twins.connection.execute(query.encode(), tables)
        ]
        for query in (COLUMNS, DEFINITIONS)
    ]


@pytest.mark.parametrize("then_index", [False, True], ids=["bare COPY", "heap COPY, then indexes"])
def test_twins_have_our_definitions_and_rows(environment: Environment, then_index: bool):
    """A twin with an index or a check less would be filled faster than our tables can be."""
    rows = typed_rows(environment, loaded(environment), "typed")
    twins = Twins(environment)
    twins.make(indexed=not then_index)
    if then_index:
        twins.copy_then_index(rows)
    else:
        for table in rows:
            twins.copy(table)
    ours = described(twins, "raw")
    assert len(ours[1]) > 12
    assert described(twins, "bench") == ours
    with environment.connect(DATABASE) as connection:
        for table in rows:
            stored = f"SELECT md5(string_agg(t::text, '' ORDER BY t::text)) FROM {{}}.{table.table} t"
            assert (
                twins.connection.execute(stored.format("bench").encode()).fetchone()
                == connection.execute(stored.format("raw").encode()).fetchone()
            )
    twins.close()
