"""Fixtures for all tests: the run's embedded server, and fresh databases cloned from migrated templates."""

from __future__ import annotations

import fcntl
import itertools
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from hypothesis import settings as hypothesis_settings

from crm_analytics.core import EMBEDDED_LOGIN, migrations
from crm_analytics.core.embedded_postgres import EmbeddedPostgres
from crm_analytics.core.settings import Settings
from crm_analytics_tests import chance
from crm_analytics_tests.databases import clone

PG_VERSION = int(os.environ.get("PG", "18"))
#: Seconds after which a test gives up waiting; a busy machine needs many times as long as an idle one.
PATIENCE = 600
STATE_VARIABLE = "CRM_ANALYTICS_TEST_STATE"
_numbers = itertools.count(1)

# for tests that don't say how many examples they need
hypothesis_settings.register_profile("tests", chance.examples(100))
hypothesis_settings.load_profile("tests")


def pytest_configure(config: pytest.Config) -> None:
    """Creates one state folder per test run, which xdist's workers inherit from the controller."""
    if STATE_VARIABLE not in os.environ:
        os.environ[STATE_VARIABLE] = tempfile.mkdtemp(prefix="crm_analytics_tests_")
        config.stash[_OWNED] = os.environ[STATE_VARIABLE]
    for name in Settings.model_fields:
        os.environ.pop(name.upper(), None)
    os.environ["CRM_ANALYTICS_HOME"] = os.environ[STATE_VARIABLE]
    os.environ["EMBEDDED_POSTGRES_VERSION"] = str(PG_VERSION)
    # most tests call the RPCs as the owner; test_audit_origin.py expects other logins
    os.environ["CRM_EXPECTED_LOGINS"] = EMBEDDED_LOGIN


_OWNED = pytest.StashKey[str]()


def pytest_unconfigure(config: pytest.Config) -> None:
    """Stops the run's server, then removes its state folder."""
    owned = config.stash.get(_OWNED, None)
    if owned:
        EmbeddedPostgres(Path(owned), PG_VERSION).stop()
        shutil.rmtree(owned, ignore_errors=True)
        del os.environ[STATE_VARIABLE]


#: They mostly wait for daemons. Started last, one of them would keep the run going alone.
_LONGEST = (
    "test_hosts.py",
    "test_dead_runs.py",
    "test_silence_served.py",
    "test_end_to_end.py",
    "test_compose.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts the longest tests first."""
    items.sort(key=lambda item: item.path.name not in _LONGEST)


@pytest.fixture(scope="session")
def server() -> Iterator[EmbeddedPostgres]:
    """The run's embedded PostgreSQL, shared by all workers, without fsync: tests needn't survive a power cut."""
    handle = EmbeddedPostgres(
        Path(os.environ[STATE_VARIABLE]), PG_VERSION, {"fsync": "off", "full_page_writes": "off"}
    ).start()
    yield handle
    handle.release()


@pytest.fixture(scope="session")
def new_database(server: EmbeddedPostgres) -> Callable[..., str]:
    """Creates databases and returns their URLs: empty, or a clone of the migrated `analytics`, `crm` or `dagster`."""

    def make(template: str | None = None) -> str:
        name = f"t_{os.environ.get('PYTEST_XDIST_WORKER', 'main')}_{os.getpid()}_{next(_numbers)}"
        with psycopg.connect(server.url("postgres"), autocommit=True) as connection:
            if template is None:
                connection.execute(f'CREATE DATABASE "{name}"')
            else:
                source = _template(server, template)
                clone(connection, source, name)
        return server.url(name)

    return make


def _template(server: EmbeddedPostgres, database: str) -> str:
    """Returns the migrated template database, which the first worker that needs it creates."""
    name = f"template_{database}"
    with (Path(os.environ[STATE_VARIABLE]) / f"{name}.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with psycopg.connect(server.url("postgres"), autocommit=True) as connection:
            if not connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", [name]).fetchone():
                connection.execute(f'CREATE DATABASE "{name}_new"')
                if database == "dagster":
                    _make_dagster_storage(server.url(f"{name}_new"))
                else:
                    migrations.migrate(database, url=server.url(f"{name}_new"))
                connection.execute(f'ALTER DATABASE "{name}_new" RENAME TO "{name}"')
    return name


def _make_dagster_storage(url: str) -> None:
    """Creates Dagster's tables once, because creating them on opening an instance takes a second per test."""
    from crm_analytics.orchestration.instance import PooledPostgresStorage

    PooledPostgresStorage(url).close()


@pytest.fixture
def analytics_url(new_database: Callable[..., str]) -> str:
    """The URL of a fresh, migrated analytics database."""
    return new_database("analytics")


@pytest.fixture
def analytics(analytics_url: str) -> Iterator[psycopg.Connection[Any]]:
    """An autocommit connection to a fresh, migrated analytics database."""
    with psycopg.connect(analytics_url, autocommit=True) as connection:
        yield connection


@pytest.fixture(scope="session")
def object_storage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The endpoint of a server with the API of S3, for all tests of this worker."""
    from crm_analytics_tests.object_storage import serve

    with serve(tmp_path_factory.mktemp("object_storage")) as endpoint:
        yield endpoint


@pytest.fixture
def prefix(object_storage: str) -> Any:
    """An empty prefix of its bucket, as a landing folder."""
    from crm_analytics_tests.object_storage import Prefix

    return Prefix(object_storage, f"test {next(_numbers)}/é")


def wait_until_blocked(watcher: psycopg.Connection[Any], kind: str) -> None:
    """Waits until a session of the watcher's database waits for a lock; other workers share the server.

    Args:
        watcher: a connection that isn't blocked itself.
        kind: `advisory` or `relation`, as in pg_locks.
    """
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        waiting = watcher.execute(
            "SELECT EXISTS (SELECT FROM pg_locks l JOIN pg_database d ON d.oid = l.database"
            " WHERE d.datname = current_database() AND l.locktype = %s AND NOT l.granted)",
            [kind],
        ).fetchone()
        if waiting == (True,):
            return
        watcher.execute("SELECT pg_sleep(0.01)")
    raise AssertionError(f"no session waits for a lock of kind {kind}")
