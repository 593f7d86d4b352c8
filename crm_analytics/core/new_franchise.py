"""Makes the database and the roles of a franchise on a server of which an administrator's address is known."""

from __future__ import annotations

from typing import Any

import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo

from crm_analytics.core.database import sqlalchemy_url
from crm_analytics.core.settings import Settings


class CannotPrepare(Exception):
    """Raised when a database or role of the franchise's name is another's; nothing was changed, the message says what to do."""


def owner_of(config: Settings) -> str:
    """Returns the role that owns the franchise's analytics database."""
    return f"analytics_owner_{config.franchise}"


def address(config: Settings, admin: str, password: str) -> str:
    """Returns the owner's URL of the franchise's database, on the administrator's server."""
    database = config.database_name("analytics")
    return sqlalchemy_url(make_conninfo(admin, user=owner_of(config), password=password, dbname=database))


def role_exists(connection: psycopg.Connection[Any], role: str) -> bool:
    """Returns whether the server has a role."""
    return connection.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", [role]).fetchone() is not None


def prepare(connection: psycopg.Connection[Any], config: Settings, password: str) -> None:
    """Makes a franchise's database, its owner with this password, and its reader. Harmless when repeated.

    The owner can connect to no other franchise's database, and act as no other role: CONNECT is not PUBLIC's, and of
    the reader it only has the administration, for its settings and its password.

    Args:
        connection: autocommit, as a superuser or a login that may create databases and roles.

    Raises:
        CannotPrepare: if the database exists and is another role's.
    """
    owner, reader = owner_of(config), config.grafana_reader
    database = config.database_name("analytics")
    row = connection.execute(
        "SELECT pg_get_userbyid(datdba) FROM pg_database WHERE datname = %s", [database]
    ).fetchone()
    if row and row[0] != owner:
        raise CannotPrepare(
            f"the database {database} exists and belongs to {row[0]}. If its rows are the franchise's, as an "
            f"administrator: ALTER DATABASE {database} OWNER TO {owner}; otherwise choose another name."
        )
    names = {"owner": sql.Identifier(owner), "reader": sql.Identifier(reader), "db": sql.Identifier(database)}

    def run(statement: str, **more: sql.Composable) -> None:
        connection.execute(sql.SQL(statement).format(**names, **more))

    # the server gets the password only as a verifier, so that it never appears in a log
    verifier = connection.pgconn.encrypt_password(
        password.encode(), owner.encode(), b"scram-sha-256"
    ).decode()
    verb = "ALTER" if role_exists(connection, owner) else "CREATE"
    # CREATEROLE lets it administer its reader, and no role that it isn't given
    run(f"{verb} ROLE {{owner}} LOGIN CREATEROLE PASSWORD {{verifier}}", verifier=sql.Literal(verifier))
    if not role_exists(connection, reader):
        run("CREATE ROLE {reader} LOGIN")
    run("GRANT {reader} TO {owner} WITH ADMIN TRUE, INHERIT FALSE, SET FALSE")
    superuser = connection.execute("SELECT rolsuper FROM pg_roles WHERE rolname = current_user").fetchone()
    assert superuser is not None
    if not superuser[0]:
        run("GRANT {owner} TO CURRENT_USER WITH INHERIT TRUE, SET TRUE")
    if row is None:
        run("CREATE DATABASE {db} OWNER {owner}")
    run("REVOKE ALL ON DATABASE {db} FROM PUBLIC")
    run("GRANT CONNECT ON DATABASE {db} TO {reader}")
    if not superuser[0]:
        run("REVOKE {owner} FROM CURRENT_USER")
