"""Dagster resources of the analytics: its database and the landing folder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import dagster as dg
import psycopg

from crm_analytics.analytics.ingest.storage.landing import Landing
from crm_analytics.analytics.ingest.storage.places import Place, landing_at
from crm_analytics.core.business import OtherBusiness, refuse_other
from crm_analytics.core.database import end_with_client
from crm_analytics.core.migrations import migrate
from crm_analytics.core.settings import Settings
from crm_analytics.orchestration.migrated import connection_to, migrated_url

#: The pool of all assets that load or compute; dagster.yaml limits how many runs with such assets there are at once.
POOL = "loads_and_metrics"


@dataclass(frozen=True)
class AnalyticsDatabase:
    """The analytics database of the settings. A plain object, because Dagster would show a config with its password."""

    settings: Settings

    def address(self) -> str:
        """Returns the libpq URL or keyword string; see `migrated_url` for what it raises."""
        return migrated_url(
            "analytics", self.settings, lambda url: migrate("analytics", config=self.settings, url=url)
        )

    @contextmanager
    def connect(self) -> Iterator[psycopg.Connection[Any]]:
        """Opens an autocommit connection and closes it at the end.

        Raises:
            dg.Failure: if the database is not migrated, not whole, or another business's.
            psycopg.OperationalError: if the server cannot be reached.
        """
        with connection_to("analytics", self.address()) as connection:
            end_with_client(connection)
            try:
                refuse_other(connection, self.settings)
            except OtherBusiness as error:
                raise dg.Failure(str(error)) from error
            yield connection


@dataclass(frozen=True)
class LandingFolder:
    """The folder that people drop exports into, on this machine or in a bucket."""

    place: Place

    @property
    def landing(self) -> Landing:
        """The folder, which may not exist."""
        return landing_at(self.place)

    def existing(self) -> Landing:
        """Returns the folder.

        Raises:
            dg.Failure: if it does not exist.
        """
        if not self.landing.exists():
            raise dg.Failure(self.landing.missing())
        return self.landing
