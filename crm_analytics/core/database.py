"""Finds the databases: at their configured addresses, or on the embedded server, which is started on demand."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import psycopg
from psycopg.conninfo import conninfo_to_dict

from crm_analytics.core.embedded_postgres import EmbeddedPostgres
from crm_analytics.core.settings import Settings, settings

_servers: dict[tuple[str, int], EmbeddedPostgres] = {}


def embedded(config: Settings | None = None) -> EmbeddedPostgres:
    """Returns the state folder's embedded server, started or not; one handle per process."""
    config = config or settings()
    key = (str(config.crm_analytics_home), config.embedded_postgres_version)
    if key not in _servers:
        _servers[key] = EmbeddedPostgres(config.crm_analytics_home, config.embedded_postgres_version)
    return _servers[key]


def database_url(database: str, config: Settings | None = None) -> str:
    """Returns the libpq URL or keyword string of `analytics`, `crm` or `dagster`; starts the embedded server if needed."""
    config = config or settings()
    configured = config.configured_url(database)
    if configured is not None:
        return configured
    server, name = embedded(config).start(), config.database_name(database)
    server.ensure_databases([name])
    return server.url(name)


def connect(database: str, config: Settings | None = None, **options: Any) -> psycopg.Connection[Any]:
    """Opens a psycopg connection to `analytics`, `crm` or `dagster`; options as for `psycopg.connect`."""
    return psycopg.connect(database_url(database, config), **options)


def end_with_client(connection: psycopg.Connection[Any]) -> None:
    """Makes the server end the session within seconds if this process dies, even in the middle of a statement.

    Otherwise the session would keep its locks, and the next attempt would wait for them.
    """
    # a server on Windows cannot do it
    with suppress(psycopg.errors.InvalidParameterValue):
        connection.execute("SET client_connection_check_interval = '5s'")


def incarnation(connection: psycopg.Connection[Any]) -> str:
    """Returns a name for this very analytics database, which changes when it is made anew or restored from a dump."""
    found = connection.execute(
        """
        SELECT d.oid || '-' || (SELECT extract(epoch FROM min(applied_at)) FROM analytics.migration_files)
        FROM pg_database d WHERE d.datname = current_database()
        """
    ).fetchone()
    assert found is not None
    return str(found[0])


def sqlalchemy_url(conninfo: str, driver: str = "postgresql") -> str:
    """Returns any libpq connection string (URL, keywords, socket directory) as an SQLAlchemy URL with its password.

    dagster-postgres takes URLs only. Whatever is not user, password, host, port or dbname goes into the query
    part; a socket directory becomes `?host=`.
    """
    # a tenth of a second to import, and only Dagster's processes need it
    from sqlalchemy.engine import URL

    parts = {name: str(value) for name, value in conninfo_to_dict(conninfo).items() if value is not None}
    host = parts.pop("host", None)
    query: dict[str, str] = {}
    if host and (host.startswith("/") or "," in host):
        query["host"], host = host, None
    port = parts.pop("port", None)
    if port and host is None:
        query["port"], port = port, None
    url = URL.create(
        driver,
        username=parts.pop("user", None),
        password=parts.pop("password", None),
        host=host,
        port=int(port) if port else None,
        database=parts.pop("dbname", None),
        query={**query, **parts},
    )
    return url.render_as_string(hide_password=False)


def resolved(config: Settings | None = None) -> Settings:
    """Returns the settings with all addresses filled in, those of several franchises excepted; starts the embedded server if one is missing."""
    config = config or settings()
    changes = {
        "crm_database_url": database_url("crm", config),
        "dagster_postgres_url": sqlalchemy_url(database_url("dagster", config)),
    }
    if config.franchise or not config.franchise_names:
        changes["analytics_database_url"] = database_url("analytics", config)
    return config.model_copy(update=changes)
