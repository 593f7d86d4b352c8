"""What the CRM records about when a row was written: a transaction that stays open cannot back-date its rows."""

from __future__ import annotations

import re

import pytest

from crm_analytics.crm.proof import attacks
from crm_analytics.crm.proof.attacks.legitimate import work_a_day
from crm_analytics.crm.schema.manifest import CRM_TABLES
from crm_analytics_tests.crm.conftest import Connection, rows, value

#: Texts that mean the time when a transaction or statement began.
_BEGINNING = re.compile(
    r"\bnow\s*\(|\b(transaction|statement)_timestamp\b|\b(current|local)_?time(stamp)?\b|\bcurrent_date\b|'now'",
    re.I,
)
_TIMES = [
    (table, column)
    for table in CRM_TABLES
    for column in ("created_at", "updated_at", "uploaded_at")
    if (table, column) in {
        *(
            (t, "created_at")
            for t in CRM_TABLES
            if t not in ("documents", "order_status_transitions", "payout_limits", "audit_positions")
        ),
        *((t, "updated_at") for t in ("leads", "orders", "payments")),
        ("documents", "created_at"),
        ("documents", "uploaded_at"),
    }
]  # fmt: skip


def test_rows_of_an_open_transaction_carry_the_clock(crm: Connection) -> None:
    """Every row that the RPCs write in a transaction carries a later time than its beginning."""
    lab = attacks.prepare(crm)
    with crm.transaction(force_rollback=True):
        crm.execute("SELECT pg_sleep(0.01)")
        work_a_day(lab)
        crm.execute("SELECT crm_private.seal_audit_safe()")
        found = {
            (table, column): rows(
                crm, f"SELECT bool_or({column} > now()), bool_or({column} = now()) FROM public.{table}"
            )[0]
            for table, column in _TIMES
        }
    assert found == dict.fromkeys(_TIMES, (True, False))


def test_every_time_of_a_row_is_known_here(crm: Connection) -> None:
    """The list above is complete: a new time of writing has to prove that it is the clock's."""
    times = rows(
        crm,
        """
        SELECT c.relname::text, a.attname::text FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid
        JOIN pg_attrdef d ON d.adrelid = c.oid AND d.adnum = a.attnum
        WHERE c.oid IN (SELECT crm_private.tables()) AND a.atttypid = 'timestamptz'::regtype
        """,
    )
    assert sorted(times) == sorted(_TIMES)


def test_nothing_asks_when_the_transaction_began(crm: Connection) -> None:
    """No function and no default of the CRM uses the time when a transaction or statement began."""
    texts = rows(
        crm,
        """
        SELECT oid::regprocedure::text, prosrc FROM pg_proc
        WHERE pronamespace IN ('public'::regnamespace, 'crm_private'::regnamespace)
        UNION ALL SELECT adrelid::regclass || ' default ' || adnum, pg_get_expr(adbin, adrelid) FROM pg_attrdef
        WHERE adrelid IN (SELECT crm_private.tables())
        """,
    )
    assert len(texts) > 60
    assert [name for name, text in texts if _BEGINNING.search(text)] == []


@pytest.mark.parametrize(
    "text", ["now()", "CURRENT_TIMESTAMP", "'now'::text", "localtime", "statement_timestamp()"]
)
def test_the_search_finds_the_beginning_of_a_transaction(text: str) -> None:
    """The pattern of the test above finds each way to ask for that time."""
    assert _BEGINNING.search(f"SET updated_at = {text}")


def test_events_and_audit_rows_name_their_transaction(crm: Connection) -> None:
    """An event and its audit row carry the id of the transaction that wrote them, so that they can be matched."""
    lab = attacks.prepare(crm)
    with crm.transaction(force_rollback=True):
        transaction = value(crm, "SELECT pg_current_xact_id()::text")
        before = value(crm, "SELECT max(id) FROM public.audit_log")
        work_a_day(lab)
        assert rows(
            crm, "SELECT DISTINCT transaction_id::text FROM public.audit_log WHERE id > %s", before
        ) == [(transaction,)]
        assert rows(
            crm,
            "SELECT count(*) > 3 FROM public.order_status_events WHERE transaction_id = pg_current_xact_id()",
        ) == [(True,)]
