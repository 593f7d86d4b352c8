"""The change feed: every change once, however the consumer and the writers behave."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random

import psycopg
import pytest

from crm_analytics.core.embedded_postgres import EmbeddedPostgres
from crm_analytics.crm import CrmClient, Invalid
from crm_analytics.crm.errors import from_database
from crm_analytics.crm.feed import PLACES, Change, FeedRewoundError, changes_after, consume
from crm_analytics.crm.migrating.migrate import migrate_crm
from crm_analytics.crm.proof import invariants
from crm_analytics_tests import chance
from crm_analytics_tests.conftest import PATIENCE
from crm_analytics_tests.crm import feed_consumer
from crm_analytics_tests.crm.conftest import Connection, new_server, rows, value

KILLS = 50


@pytest.fixture
def app(crm: Connection, crm_url: str) -> Iterator[Connection]:
    """Opens another connection, as the application's role, which is whose consumers read the feed."""
    with psycopg.connect(crm_url, autocommit=True) as connection:
        connection.execute("SET ROLE crm_app")
        yield connection


def lead(connection: Connection, name: str) -> None:
    CrmClient(connection).create_lead_safe(source="site", full_name=name, contact=f"the desk of {name}")


def test_changes_come_in_the_order_of_their_positions(crm: Connection, app: Connection) -> None:
    """The feed has each change with its payload, in order, from any position on; numbering makes it visible."""
    crm.execute("SELECT crm_private.number_changes()")
    lead(app, "olga")
    assert [c.position for c in changes_after(app, 0, 10)] == [1]
    crm.execute("SELECT crm_private.number_changes()")
    found = changes_after(app, 1, 10)
    assert [(c.position, c.action, c.entity) for c in found] == [
        (2, "create", "customers"),
        (3, "create", "leads"),
    ]
    assert found[0].payload["row"]["full_name"] == "olga"
    assert [c.position for c in changes_after(app, 1, 1)] == [2]
    assert changes_after(app, 3, 10) == []


def test_the_feed_only_reads(crm: Connection) -> None:
    """The feed can be called in a read-only transaction, as on a replica and by PostgREST's GET, by crm_app."""
    crm.execute("SELECT crm_private.number_changes()")
    crm.execute("BEGIN READ ONLY; SET LOCAL ROLE crm_app")
    assert [c.position for c in changes_after(crm, 0, 10)] == [1]
    crm.execute("ROLLBACK")
    assert value(crm, "SELECT provolatile FROM pg_proc WHERE proname = 'changes_after'") == "s"


@pytest.mark.parametrize(
    ("after", "limit", "field"), [(None, 5, "p_after"), (-1, 5, "p_after"), (0, 0, "p_limit"), (0, 10001, "p_limit")]
)  # fmt: skip
def test_other_arguments_are_refused(
    app: Connection, after: int | None, limit: int | None, field: str
) -> None:
    """A position below 0 or a limit out of range is PT422, naming the argument."""
    with pytest.raises(psycopg.Error) as refused:
        app.execute("SELECT * FROM public.changes_after(%s, %s)", [after, limit])
    known = from_database(refused.value)
    assert isinstance(known, Invalid)
    assert known.detail["field"] == field


def test_a_consumer_keeps_its_place_with_its_effects(
    crm: Connection, app: Connection, new_database: Callable[..., str]
) -> None:
    """What a failed application wrote is gone with the place, so the next attempt applies the same changes once."""
    lead(crm, "olga")
    crm.execute("SELECT crm_private.number_changes()")

    def fail_at_the_last(target: Connection, change: Change) -> None:
        target.execute("INSERT INTO applied VALUES (%s)", [change.position])
        if change.entity == "leads":
            raise ConnectionError

    def apply(target: Connection, change: Change) -> None:
        target.execute("INSERT INTO applied VALUES (%s)", [change.position])

    with psycopg.connect(new_database(), autocommit=True) as target:
        target.execute(PLACES.encode())
        target.execute(feed_consumer.TABLE)
        with pytest.raises(ConnectionError):
            consume(app, target, "a", fail_at_the_last)
        assert value(target, "SELECT count(*) FROM applied") == 0
        assert consume(app, target, "a", apply, limit=2) == 2
        assert consume(app, target, "a", apply, limit=2) == 1
        assert consume(app, target, "a", apply) == 0
        assert rows(target, "SELECT position FROM applied") == [(1,), (2,), (3,)]


def test_a_consumer_notices_a_source_that_was_rewound(
    crm: Connection, new_database: Callable[..., str]
) -> None:
    """A source restored from before the last applied change gives its position to another one: the consumer stops."""
    with psycopg.connect(new_database(), autocommit=True) as target:
        target.execute(PLACES.encode())
        lead(crm, "olga")
        crm.execute("BEGIN")
        crm.execute("SELECT crm_private.number_changes()")
        assert consume(crm, target, "a", lambda *_: None) == 3
        crm.execute("ROLLBACK")
        with pytest.raises(FeedRewoundError):
            consume(crm, target, "a", lambda *_: None)
        lead(crm, "ivan")
        crm.execute("SELECT crm_private.number_changes()")
        with pytest.raises(FeedRewoundError):
            consume(crm, target, "a", lambda *_: None)
        assert value(target, "SELECT position FROM crm_feed_places") == 3


# -- killed, dumped and restored --------------------------------------------------------------------------


@pytest.fixture
def young_server() -> Iterator[EmbeddedPostgres]:
    """Starts a server to restore into, whose transactions are numbered from the start again."""
    with new_server() as server:
        yield server


class Business:
    """Writers whose transactions overlap and sometimes roll back, and a session that numbers what they commit."""

    def __init__(self, url: str, name: str) -> None:
        self.url, self.name = url, name
        self.stopping = threading.Event()
        self.pool = ThreadPoolExecutor(5)
        self.running = [self.pool.submit(self._write, writer) for writer in range(4)]
        self.running.append(self.pool.submit(self._number))

    def _write(self, writer: int) -> None:
        mine = chance.generator(f"feed {self.name} {writer}")
        with psycopg.connect(self.url, autocommit=True) as connection:
            number = 0
            while not self.stopping.is_set():
                connection.execute("BEGIN")
                for _ in range(mine.randint(1, 4)):
                    number += 1
                    lead(connection, f"{self.name}-{writer}-{number}")
                    time.sleep(mine.random() / 4)
                connection.execute("ROLLBACK" if mine.random() < 0.2 else "COMMIT")

    def _number(self) -> None:
        with psycopg.connect(self.url, autocommit=True) as connection:
            while not self.stopping.is_set():
                connection.execute("SELECT crm_private.number_changes()")
                time.sleep(0.02)

    def stop(self) -> None:
        self.stopping.set()
        for one in self.running:
            one.result(timeout=PATIENCE)
        self.pool.shutdown()


#: Starts consumers by forking a process that has imported what they need.
_PROCESSES = multiprocessing.get_context("forkserver")
_PROCESSES.set_forkserver_preload([feed_consumer.__name__])


def _kill_consumers(source: str, target: str, times: int, chances: Random) -> None:
    """Starts the consumer and kills it at a random moment, so many times."""
    for _ in range(times):
        receiver, sender = _PROCESSES.Pipe(duplex=False)
        consumer = _PROCESSES.Process(
            target=feed_consumer.consume_until_killed, args=(source, target, sender)
        )
        consumer.start()
        sender.close()
        assert receiver.recv() == "ready"
        time.sleep(chances.random() * 0.3)
        consumer.kill()
        consumer.join(PATIENCE)
        assert consumer.exitcode == -signal.SIGKILL


def _dump_and_restore(old: EmbeddedPostgres, new: EmbeddedPostgres, folder: Path) -> None:
    dump = folder / "crm.dump"
    with psycopg.connect(new.url("postgres"), autocommit=True) as connection:
        connection.execute(
            "CREATE ROLE crm_rpc NOLOGIN; CREATE ROLE crm_app NOLOGIN; CREATE ROLE grafana_reader LOGIN"
        )
    for command in (
        ["pg_dump", "-Fc", "-f", str(dump), old.url("crm")],
        ["pg_restore", "--exit-on-error", "-d", new.url("crm"), str(dump)],
    ):
        subprocess.run(
            [old.bin / command[0], *command[1:]], check=True, env={**os.environ, "LC_ALL": "C.UTF-8"}
        )


@pytest.mark.random
def test_every_change_once_though_killed_dumped_and_restored(
    own_server: EmbeddedPostgres,
    young_server: EmbeddedPostgres,
    new_database: Callable[..., str],
    tmp_path: Path,
) -> None:
    """A consumer killed fifty times applies each change once: out of order, rolled back, prepared, dumped, restored."""
    first, second = own_server, young_server
    migrate_crm(first.url("crm"))
    target = new_database()
    with psycopg.connect(target, autocommit=True) as connection:
        connection.execute(PLACES.encode())
        connection.execute(feed_consumer.TABLE)
    chances = chance.generator("feed kills")

    business = Business(first.url("crm"), "before")
    with psycopg.connect(first.url("crm"), autocommit=True) as connection:
        connection.execute("BEGIN")
        lead(connection, "prepared")
        connection.execute("PREPARE TRANSACTION 'a payment provider'")
        unnumbered = next(i.query for i in invariants.INVARIANTS if i.name == "changes_are_numbered")
        named = connection.execute(unnumbered.replace("3 hours", "0 seconds").encode()).fetchall()
        assert "prepared transaction a payment provider" in {id_ for id_, _ in named}
        _kill_consumers(first.url("crm"), target, KILLS // 2, chances)
        business.stop()
        # committed last, with the smallest ids, and not numbered before the dump
        connection.execute("COMMIT PREPARED 'a payment provider'")
        unnumbered = value(
            connection,
            "SELECT count(*) FROM public.audit_log WHERE id NOT IN (SELECT audit_id FROM public.audit_positions)",
        )
        assert unnumbered >= 2
    _dump_and_restore(first, second, tmp_path)

    business = Business(second.url("crm"), "after")
    _kill_consumers(second.url("crm"), target, KILLS - KILLS // 2, chances)
    business.stop()
    with (
        psycopg.connect(second.url("crm"), autocommit=True) as source,
        psycopg.connect(target, autocommit=True) as end,
    ):
        source.execute("SELECT crm_private.number_changes()")
        missing = "SELECT count(*) FROM public.audit_log WHERE id NOT IN (SELECT audit_id FROM public.audit_positions)"
        assert value(source, missing) == 0
        before = value(end, "SELECT count(*) FROM applied")
        while consume(source, end, "test", feed_consumer.apply):
            pass
        applied = rows(end, "SELECT position, audit_id, payload_hash FROM applied ORDER BY position")
        numbered = "SELECT position, audit_id, encode(payload_hash, 'hex') FROM public.audit_positions ORDER BY position"
        assert applied == rows(source, numbered)
        assert [position for position, *_ in applied] == list(range(1, len(applied) + 1))
        print(f"{len(applied)} changes, {before} of them applied by {KILLS} consumers that were killed")
        assert before > 200
