"""Gives the benchmark a server of its own, because its databases have fixed names."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.environment import Environment
from crm_analytics.core.embedded_postgres import EmbeddedPostgres
from crm_analytics_tests.conftest import PG_VERSION


@pytest.fixture(scope="session")
def bench_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedPostgres]:
    """A server without fsync, as for the other tests."""
    options = {"fsync": "off", "full_page_writes": "off"}
    server = EmbeddedPostgres(tmp_path_factory.mktemp("bench"), PG_VERSION, options).start()
    yield server
    server.stop()
    server.release()


@pytest.fixture
def environment(bench_server: EmbeddedPostgres, tmp_path: Path) -> Iterator[Environment]:
    """A run of the benchmark at the smallest scale."""
    environment = Environment(bench_server, tmp_path, 0.001, lambda text: None)
    yield environment
    environment.drop(*sorted(environment.databases))
