"""Copies of databases for tests, and their clock."""

from __future__ import annotations

from datetime import date
from typing import Any

import psycopg


def clone(connection: psycopg.Connection[Any], template: str, name: str) -> None:
    """Creates a database as a copy of another, with its settings, which CREATE DATABASE alone doesn't copy."""
    connection.execute(f'CREATE DATABASE "{name}" TEMPLATE "{template}"'.encode())
    for (setting,) in connection.execute(
        "SELECT unnest(setconfig) FROM pg_db_role_setting s JOIN pg_database d ON d.oid = s.setdatabase"
        " WHERE d.datname = %s AND s.setrole = 0",
        [template],
    ).fetchall():
        key, value = setting.split("=", 1)
        connection.execute(f'ALTER DATABASE "{name}" SET {key} = {value}'.encode())


def set_today(connection: psycopg.Connection[Any], today: date) -> None:
    """Makes an analytics database take a day for today."""
    connection.execute(
        f"CREATE OR REPLACE FUNCTION analytics.today() RETURNS date LANGUAGE sql STABLE RETURN date '{today}'".encode()
    )
