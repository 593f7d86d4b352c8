"""A migrated CRM database on a throwaway server, for attacks and for what is generated from the catalog."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg

from crm_analytics.core.embedded_postgres import EmbeddedPostgres
from crm_analytics.crm.migrating.migrate import migrate_crm


@contextmanager
def scratch_database(version: int = 18) -> Iterator[psycopg.Connection[Any]]:
    """Starts a throwaway PostgreSQL with an empty migrated CRM database, and removes it afterwards.

    Raises:
        Exception: whatever keeps the server or the migrations from running.
    """
    with tempfile.TemporaryDirectory(prefix="crm_scratch_") as folder:
        server = EmbeddedPostgres(Path(folder), version, {"fsync": "off", "shared_buffers": "64MB"}).start()
        try:
            migrate_crm(server.url("crm"), prove=False)  # the committed manifest may be older
            with psycopg.connect(server.url("crm"), autocommit=True) as connection:
                yield connection
        finally:
            server.release()
