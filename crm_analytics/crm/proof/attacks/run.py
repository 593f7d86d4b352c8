"""Runs attacks, in a lab or on a scratch database of a throwaway server."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg

from crm_analytics.core.embedded_postgres import EmbeddedPostgres
from crm_analytics.crm.migrating.migrate import migrate_crm
from crm_analytics.crm.proof.attacks.lab import ATTACKS, Lab, Outcome
from crm_analytics.crm.proof.attacks.sample import prepare


def run_all(lab: Lab, only: Iterable[str] | None = None) -> list[Outcome]:
    """Tries every attack (or those named) in the lab's database, which stays as it was."""
    return [lab.try_(ATTACKS[name]) for name in (ATTACKS if only is None else only)]


@contextmanager
def scratch_database(version: int = 18) -> Iterator[psycopg.Connection[Any]]:
    """Starts a throwaway PostgreSQL with an empty migrated CRM database, and removes it afterwards.

    Raises:
        Exception: whatever keeps the server or the migrations from running; nothing is proved then.
    """
    with tempfile.TemporaryDirectory(prefix="crm_scratch_") as folder:
        server = EmbeddedPostgres(Path(folder), version, {"fsync": "off", "shared_buffers": "64MB"}).start()
        try:
            migrate_crm(server.url("crm"))
            with psycopg.connect(server.url("crm"), autocommit=True) as connection:
                yield connection
        finally:
            server.release()


def run_on_scratch_server(version: int = 18, only: Iterable[str] | None = None) -> list[Outcome]:
    """Tries every attack (or those named) on a scratch database of a throwaway server."""
    with scratch_database(version) as connection:
        return run_all(prepare(connection), only)
