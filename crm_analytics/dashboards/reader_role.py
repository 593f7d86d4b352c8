"""The command `crm-analytics grafana-reader`, which sets up the role grafana_reader.

It reads GRAFANA_READER_PASSWORD and DAGSTER_URL. Migrations create the role without a password, so that no file has a
secret.
"""

from __future__ import annotations

import sys
from typing import Any

import psycopg
from psycopg import sql

from crm_analytics.core.database import database_url
from crm_analytics.core.migrations import MigrationError, apply_server_part, require_migrated
from crm_analytics.core.settings import Settings, settings

ROLE = "grafana_reader"
SHORTEST_PASSWORD = 12


def set_up(
    connection: psycopg.Connection[Any],
    database: str,
    password: str | None = None,
    config: Settings | None = None,
) -> None:
    """Gives the role that reads this database the migrations' settings in this database and, if one is given, its password.

    A database cloned without its settings gets them back here. The server receives the password only as a SCRAM
    verifier, so it never appears in a log.

    Args:
        connection: autocommit, as a role that may alter the reader.
        database: `analytics` or `crm`.
        password: at least 12 characters; None keeps the current one.
        config: whose database it is; the environment's settings by default.

    Raises:
        ValueError: if the password is too short.
        MigrationError: if the role doesn't exist and the login may not create it.
    """
    config = config or settings()
    apply_server_part(connection, database, lambda line: print(line, file=sys.stderr), config)
    role = config.grafana_reader if database == "analytics" else ROLE
    if password is None:
        return
    if len(password) < SHORTEST_PASSWORD:
        raise ValueError(
            f"GRAFANA_READER_PASSWORD has {len(password)} characters: use {SHORTEST_PASSWORD} or more"
        )
    verifier = connection.pgconn.encrypt_password(password.encode(), role.encode(), b"scram-sha-256").decode()
    connection.execute(
        sql.SQL("ALTER ROLE {} LOGIN PASSWORD {}").format(sql.Identifier(role), sql.Literal(verifier))
    )


def apply(config: Settings) -> None:
    """Sets up the role in the CRM and the analytics databases, and stores the Dagster UI's address for links in them."""
    databases = [("analytics", business) for business in config.of_franchises()]
    if not config.franchise:
        databases.append(("crm", config))
    for database, business in databases:
        secret = business.grafana_reader_password
        require_migrated(database, config=business)
        with psycopg.connect(database_url(database, business), autocommit=True) as connection:
            set_up(connection, database, secret.get_secret_value() if secret else None, business)
            if database == "analytics":
                connection.execute("UPDATE reporting.deployment SET dagster_url = %s", [config.dagster_url])


def main(config: Settings) -> None:
    """Applies the settings; exits with code 1 and one line if that fails."""
    try:
        apply(config)
    except (ValueError, MigrationError, psycopg.Error) as error:
        sys.exit(f"grafana_reader was not set up: {error}")
