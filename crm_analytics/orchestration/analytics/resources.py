"""The analytics database as a Dagster resource."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import dagster as dg
import psycopg

from crm_analytics.core.database import database_url
from crm_analytics.core.settings import settings


class AnalyticsDatabase(dg.ConfigurableResource[Any]):
    """Connections to the analytics database; the address comes from the environment unless `url` is given."""

    url: str = ""

    def address(self) -> str:
        """The libpq URL (starts the embedded server when none is configured)."""
        return self.url or database_url("analytics")

    @contextmanager
    def connect(self, **options: Any) -> Iterator[psycopg.Connection[Any]]:
        """An autocommit connection, closed at the end; options as for `psycopg.connect`.

        Raises:
            dg.Failure: not retried, if the database is not migrated or belongs to another business timezone.
            dg.RetryRequested: if the server cannot be reached or the connection breaks (twice, 5 s apart).
        """
        try:
            with psycopg.connect(self.address(), autocommit=True, **options) as connection:
                _refuse_wrong_database(connection)
                yield connection
        except psycopg.OperationalError as error:
            raise dg.RetryRequested(max_retries=2, seconds_to_wait=5) from error


def _refuse_wrong_database(connection: psycopg.Connection[Any]) -> None:
    """Dates are baked in the business timezone, so a run with another one must not touch them."""
    try:
        row = connection.execute("SELECT timezone FROM analytics.business").fetchone()
    except psycopg.errors.UndefinedTable:
        row = None
    if row is None:
        raise dg.Failure(
            "the analytics database is not migrated: run `crm-analytics migrate analytics`",
            allow_retries=False,
        )
    wanted = settings().business_timezone
    if row[0] != wanted:
        raise dg.Failure(
            f"the database's dates are in {row[0]}, but BUSINESS_TIMEZONE is {wanted}: set it to {row[0]}",
            allow_retries=False,
        )
