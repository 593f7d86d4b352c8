"""Compares the lake with PostgreSQL: by month, the number of rows and the sum of each measure."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from typing import Any

import psycopg

from crm_analytics.analytics.lake.datasets import DATASETS, Dataset, Sums
from crm_analytics.analytics.lake.pending import pending_months
from crm_analytics.analytics.lake.tables import Lake
from crm_analytics.analytics.lake.write import one_at_a_time, require_own
from crm_analytics.core.months import next_month

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Difference:
    """A sum of a month that the lake has otherwise than PostgreSQL; a month without rows has sums of 0."""

    table: str
    month: date
    measure: str
    postgresql: int | Decimal
    lake: int | Decimal


def differences(
    connection: psycopg.Connection[Any], lake: Lake, waiting: Callable[[str], None] = log.info
) -> list[Difference]:
    """Returns what the lake has otherwise than one snapshot of PostgreSQL, in months that wait for nothing.

    Keeps writes of the franchise waiting meanwhile, so that both sides are of the same state.

    Raises:
        LakeError: if another database writes the same franchise, or this one was put back to an earlier state.
        LockHeld: if a write took more than 10 minutes.
    """
    with one_at_a_time(connection, waiting):
        require_own(connection, lake)
        with connection.transaction():
            connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
            waits = {entry.month for entry in pending_months(connection)}
            waits |= {month for (month,) in connection.execute("SELECT month FROM analytics.stale_months")}
            # what no refresh has covered is not in the lake
            known = {month for (month,) in connection.execute("SELECT month FROM analytics.lake_months")}
            return [
                difference
                for dataset in DATASETS
                for difference in _of(dataset, connection, lake, known, waits)
            ]


def _of(
    dataset: Dataset, connection: psycopg.Connection[Any], lake: Lake, known: set[date], waits: set[date]
) -> Iterator[Difference]:
    schema = dataset.schema(connection)
    there = lake.sums(dataset.name, schema)
    here: Sums = {}
    if known:
        found = dataset.sums(connection, min(known), next_month(max(known)), schema)
        here = {month: sums for month, sums in found.items() if month in known}
    for month in sorted((here.keys() | there.keys()) - waits):
        ours, theirs = here.get(month, {}), there.get(month, {})
        for measure in ours.keys() | theirs.keys():
            if (ours.get(measure) or 0) != (theirs.get(measure) or 0):
                yield Difference(
                    dataset.name, month, measure, ours.get(measure) or 0, theirs.get(measure) or 0
                )
