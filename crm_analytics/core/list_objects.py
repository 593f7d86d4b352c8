"""Writes the lists of what each migration creates and drops, by running them one by one in new databases."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import psycopg

from crm_analytics.core.embedded_postgres import EmbeddedPostgres
from crm_analytics.core.migrated_objects import LIST_FILE, MigratedObjects, found
from crm_analytics.core.migrations import apply_server_part, migration_files, prepare_bookkeeping
from crm_analytics.core.settings import SQL_DIR, settings


def observed(connection: psycopg.Connection[Any], database: str) -> MigratedObjects:
    """Runs every migration of `analytics` or `crm` in an empty database, and returns what each of them changed.

    Args:
        connection: an autocommit connection to a database that is thrown away.
    """
    apply_server_part(connection, database)
    prepare_bookkeeping(connection, database)
    before = found(connection, database)
    changes = []
    for file in migration_files(database):
        with connection.transaction():
            connection.execute(file.text().encode())
        after = found(connection, database)
        changes += [(file.version, False, name) for name in sorted(before - after)]
        changes += [(file.version, True, name) for name in sorted(after - before)]
        before = after
    return MigratedObjects(database, tuple(changes))


def main() -> None:
    """Writes the list of each database."""
    with tempfile.TemporaryDirectory(prefix="crm_scratch_") as folder:
        server = EmbeddedPostgres(
            Path(folder), settings().embedded_postgres_version, {"fsync": "off"}
        ).start()
        try:
            for database in ("analytics", "crm"):
                with psycopg.connect(server.url(database), autocommit=True) as connection:
                    text = observed(connection, database).text()
                (SQL_DIR / database / LIST_FILE).write_text(text, encoding="utf-8")
        finally:
            server.release()


if __name__ == "__main__":
    main()
