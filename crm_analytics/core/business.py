"""Whose an analytics database is: it remembers its business timezone and its franchise, and others are refused."""

from __future__ import annotations

from typing import Any

import psycopg

from crm_analytics.core.settings import Settings


class OtherBusiness(Exception):
    """Raised when a database belongs to another franchise, or has its dates in another timezone, than the settings."""


def remember(connection: psycopg.Connection[Any], config: Settings) -> None:
    """Makes a new analytics database that of the settings' business.

    Args:
        connection: an autocommit connection.

    Raises:
        OtherBusiness: if it is another's already.
    """
    connection.execute(
        "INSERT INTO analytics.business (timezone, franchise) VALUES (%s, %s) ON CONFLICT DO NOTHING",
        [config.business_timezone, config.franchise],
    )
    refuse_other(connection, config)


def refuse_other(connection: psycopg.Connection[Any], config: Settings) -> None:
    """Does nothing if the database is that of the settings' business. Reads only.

    A date is a local date (docs/decisions/business-timezone.md), and no row names its franchise
    (docs/decisions/franchises.md), so another one's must not be among them.

    Raises:
        OtherBusiness: if it isn't.
    """
    # a database of an older release has no such column, and its migrations are refused
    row = connection.execute(
        "SELECT timezone, coalesce(to_jsonb(b) ->> 'franchise', '') FROM analytics.business b"
    ).fetchone()
    if row is None:
        return
    timezone, franchise = row
    if franchise != config.franchise:
        wanted = f"franchise {config.franchise}" if config.franchise else "no franchise"
        if not franchise:
            raise OtherBusiness(
                f"this database was made for the only business, but these settings are of {wanted}: correct its "
                f"address, or if all of its rows are {config.franchise}'s: "
                f"UPDATE analytics.business SET franchise = '{config.franchise}';"
            )
        raise OtherBusiness(
            f"this database is franchise {franchise}'s, but these settings are of {wanted}: correct its address"
        )
    if timezone != config.business_timezone:
        variable = f"{config.franchise}_BUSINESS_TIMEZONE".upper().lstrip("_")
        raise OtherBusiness(
            f"this database's dates are in {timezone}, but {variable} is {config.business_timezone}. "
            f"Set {variable}={timezone}, or load the landing folder into a new database."
        )
