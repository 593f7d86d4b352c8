"""Addresses of migrated databases: the embedded ones are migrated when a Dagster process first opens them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import dagster as dg
import psycopg

from crm_analytics.core import migrations
from crm_analytics.core.database import database_url
from crm_analytics.core.settings import Settings

_found_migrated: set[str] = set()


def migrated_url(database: str, config: Settings, migrate: Callable[[str], object]) -> str:
    """Returns the address of `analytics` or `crm`, which is migrated; starts the embedded server if it lives there.

    Args:
        migrate: brings the database at an address to the newest version. It is called for an embedded database only.

    Raises:
        dg.Failure: if a configured database has migrations to run, or its migrations are not ours.
    """
    url = database_url(database, config)
    if url not in _found_migrated:
        try:
            try:
                migrations.require_migrated(database, url=url)
            except migrations.NotMigrated:
                if config.configured_url(database) is not None:
                    raise
                migrate(url)
        except migrations.MigrationError as error:
            raise dg.Failure(str(error)) from error
        _found_migrated.add(url)
    return url


@contextmanager
def connection_to(database: str, url: str) -> Iterator[psycopg.Connection[Any]]:
    """Opens an autocommit connection to a migrated database.

    A process that runs for days remembers a database as migrated, but its objects may be dropped meanwhile: a statement
    that fails makes it look again.

    Raises:
        dg.Failure: if a statement failed and the database lacks objects of its migrations.
    """
    with psycopg.connect(url, autocommit=True) as connection:
        try:
            yield connection
        except psycopg.ProgrammingError as error:
            _found_migrated.discard(url)
            try:
                migrations.require_migrated(database, url=url)
            except migrations.MigrationError as lack:
                raise dg.Failure(str(lack)) from error
            raise
