"""Positions of audit rows: given when rows are read, without gaps, once each, whatever the writers do meanwhile."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest

from crm_analytics.crm import CrmClient
from crm_analytics.crm.proof import invariants
from crm_analytics_tests import chance
from crm_analytics_tests.conftest import PATIENCE
from crm_analytics_tests.crm.conftest import Connection, rows, value

_STATE = (
    "SELECT floor_id, next_floor_id, next_floor_transaction_id::text::bigint FROM crm_private.audit_numbering"
)


@pytest.fixture
def other(crm_url: str) -> Iterator[Connection]:
    """Opens a second connection, whose transactions stay open."""
    with psycopg.connect(crm_url, autocommit=True) as connection:
        yield connection


def lead(connection: Connection, name: str = "Olga") -> None:
    CrmClient(connection).create_lead_safe(source="site", full_name=name, contact=f"the desk of {name}")


def number(connection: Connection, everything: bool = False) -> tuple[int, int]:
    """Numbers the changes; returns how many, and the last position."""
    [found] = rows(connection, "SELECT * FROM crm_private.number_changes(%s)", everything)
    return found


def missing(connection: Connection) -> list[tuple[Any, ...]]:
    return rows(
        connection,
        "SELECT id FROM public.audit_log WHERE id NOT IN (SELECT audit_id FROM public.audit_positions)",
    )


def test_every_committed_row_gets_the_next_position(crm: Connection) -> None:
    """Numbering gives each row one position, in the order of ids, and repeating it changes nothing."""
    lead(crm)
    assert number(crm) == (3, 3)
    assert number(crm) == (0, 3)
    lead(crm, "Ivan")
    assert number(crm) == (2, 5)
    assert rows(crm, "SELECT position, audit_id FROM public.audit_positions ORDER BY 1") == list(
        enumerate(value(crm, "SELECT array_agg(id ORDER BY id) FROM public.audit_log"), 1)
    )


def test_the_hash_cannot_be_guessed_and_is_of_the_payload(crm: Connection) -> None:
    """Each row has its own random salt of 32 bytes, and equal payloads have different hashes."""
    number(crm)
    lead(crm)
    number(crm)
    assert value(
        crm,
        "SELECT count(DISTINCT salt) = count(*) AND min(octet_length(salt)) = 32 FROM public.audit_positions",
    )
    assert value(
        crm,
        "SELECT bool_and(payload_hash = sha256(salt || convert_to(jsonb_build_array(payload, client_address)::text,"
        " 'UTF8'))) FROM public.audit_positions JOIN public.audit_log ON id = audit_id",
    )


def test_an_open_transaction_delays_only_its_own_rows(crm: Connection, other: Connection) -> None:
    """Rows that a transaction drew ids for before others get later positions, when it commits; nobody waits for it."""
    number(crm)
    other.execute("BEGIN")
    lead(other, "early")
    lead(crm, "late")
    crm.execute("SET lock_timeout = '1s'")
    assert number(crm) == (2, 3)
    other.execute("COMMIT")
    assert number(crm) == (2, 5)
    assert rows(
        crm, "SELECT payload #>> '{row,full_name}' FROM public.audit_log JOIN public.audit_positions ON audit_id = id"
        " WHERE entity = 'customers' ORDER BY position"
    ) == [("late",), ("early",)]  # fmt: skip


def test_a_row_that_appears_far_below_the_others_is_found(crm: Connection, other: Connection) -> None:
    """The floor stays below an open transaction's ids, however often others are numbered meanwhile."""
    other.execute("BEGIN")
    lead(other, "early")
    for n in range(20):
        lead(crm, f"late {n}")
        number(crm)
    assert value(crm, "SELECT floor_id FROM crm_private.audit_numbering") < value(
        other, "SELECT min(id) FROM public.audit_log WHERE transaction_id = pg_current_xact_id()"
    )
    other.execute("COMMIT")
    assert number(crm)[0] == 2
    assert missing(crm) == []


def test_the_floor_rises_when_no_transaction_is_open(crm: Connection) -> None:
    """Without open transactions the floor follows the rows; the search would otherwise read all of them each time."""
    for n in range(5):
        lead(crm, f"n{n}")
        number(crm)
        # other databases of this server may have writers of their own, which the floor waits for as well
        deadline = time.monotonic() + PATIENCE
        while not value(
            crm, "SELECT floor_id = (SELECT max(id) FROM public.audit_log) FROM crm_private.audit_numbering"
        ):
            assert time.monotonic() < deadline, rows(crm, _STATE)
            number(crm)
            time.sleep(0.01)


def test_a_transaction_with_a_newer_id_than_any_that_ended_holds_the_floor(
    crm: Connection, crm_url: str, other: Connection
) -> None:
    """A writer whose transaction is newer than all that ended is invisible in a snapshot's xmax, and still counts."""
    number(crm)
    with psycopg.connect(crm_url, autocommit=True) as first:
        first.execute("BEGIN; SELECT pg_current_xact_id()")
        other.execute("BEGIN; SELECT pg_current_xact_id()")
        lead(other, "small id")
        lead(first, "large id")
        first.execute("COMMIT")
    number(crm)
    number(crm)
    number(crm)
    other.execute("COMMIT")
    number(crm)
    assert missing(crm) == []


def test_correctness_does_not_depend_on_the_floor(crm: Connection) -> None:
    """A floor that is too high hides rows from the quick search only: sealing, which searches all, finds them."""
    lead(crm)
    crm.execute("ALTER TABLE crm_private.audit_numbering DISABLE TRIGGER USER")
    crm.execute("UPDATE crm_private.audit_numbering SET floor_id = 1000000")
    assert number(crm) == (0, 0)
    assert value(crm, "SELECT crm_private.seal_audit_safe()")["row_count"] == 3
    assert missing(crm) == []


def test_a_note_of_another_server_is_dropped(crm: Connection, other: Connection) -> None:
    """After a restore into a younger server the noted transaction lies in the future, and is not waited for."""
    lead(crm)
    number(crm)
    crm.execute("ALTER TABLE crm_private.audit_numbering DISABLE TRIGGER USER")
    crm.execute(
        "UPDATE crm_private.audit_numbering SET floor_id = 0, next_floor_id = 2, next_floor_transaction_id = '900000000'"
    )
    number(crm)
    floor, _, transaction = rows(crm, _STATE)[0]
    assert floor == 0
    assert transaction < 900_000_000


def test_two_numberings_at_once_take_turns(crm: Connection, other: Connection) -> None:
    """The second numbering waits for the first and finds its rows numbered; both at once would use a position twice."""
    lead(crm)
    crm.execute("BEGIN")
    number(crm)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(number, other)
        crm.execute("SELECT pg_sleep(0.2)")
        assert not waiting.done()
        crm.execute("COMMIT")
        assert waiting.result(timeout=60) == (0, 3)


def test_numbering_above_read_committed_is_refused(crm: Connection) -> None:
    """Numbering refuses a snapshot that may be older than its lock."""
    crm.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
    with pytest.raises(psycopg.Error) as refused:
        number(crm)
    assert refused.value.sqlstate == "25001"
    crm.execute("ROLLBACK")


@pytest.mark.random
def test_under_load_every_row_is_numbered_once(crm_url: str, crm: Connection) -> None:
    """Eight writers, a fifth of whose transactions roll back, and an idle one: all rows once each, without gaps."""
    stop = threading.Event()

    def write(writer: int) -> None:
        mine = chance.generator(f"positions {writer}")
        with psycopg.connect(crm_url, autocommit=True) as connection:
            for n in range(40):
                connection.execute("BEGIN")
                for k in range(mine.randint(1, 3)):
                    lead(connection, f"{writer}-{n}-{k}")
                connection.execute("ROLLBACK" if mine.random() < 0.2 else "COMMIT")

    def keep_numbering() -> None:
        with psycopg.connect(crm_url, autocommit=True) as connection:
            while not stop.is_set():
                number(connection)

    with psycopg.connect(crm_url, autocommit=True) as idle, ThreadPoolExecutor(9) as pool:
        idle.execute("BEGIN")
        lead(idle, "idle")
        numbering = pool.submit(keep_numbering)
        for done in [pool.submit(write, writer) for writer in range(8)]:
            done.result()
        stop.set()
        numbering.result()
        number(crm)
        assert missing(crm) == []
        idle.execute("COMMIT")
    assert number(crm)[0] == 2
    assert value(
        crm,
        "SELECT max(position) = count(*) AND count(DISTINCT audit_id) = count(*) FROM public.audit_positions",
    )
    assert invariants.check(crm)["positions_have_no_gap"].holds


def test_old_writers_are_named(crm: Connection, other: Connection) -> None:
    """A transaction that writes for hours is named with its login, because its rows can't be numbered."""
    other.execute("SET application_name = 'stuck'; BEGIN")
    lead(other, "early")
    name = "changes_are_numbered"
    with crm.transaction(force_rollback=True):
        query = next(i.query for i in invariants.INVARIANTS if i.name == name)
        results = crm.execute(query.replace("3 hours", "0 seconds").encode()).fetchall()
    assert (f"session {other.info.backend_pid}", True) in [
        (id_, "stuck" in detail) for id_, detail in results
    ]
    other.execute("ROLLBACK")
