"""Holds a refresh in its middle, so that a test can do something meanwhile."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date
from typing import Any, Literal

import psycopg

from crm_analytics.analytics.warehouse.refresh import refresh
from crm_analytics.core.months import next_month
from crm_analytics_tests.conftest import PATIENCE, wait_until_blocked

Connection = psycopg.Connection[Any]
_LOCKS = {
    # before it reads anything: the computation reads what is stored first
    "daily_metrics": "LOCK TABLE analytics.daily_metrics IN ACCESS EXCLUSIVE MODE",
    # between its two statements: days are computed and written, months are not
    "monthly_metrics": "LOCK TABLE analytics.monthly_metrics IN EXCLUSIVE MODE",
}


@contextmanager
def refresh_held(
    refresher: Connection,
    holder: Connection,
    month: date,
    run_id: str | None = None,
    *,
    before: Literal["daily_metrics", "monthly_metrics"] = "monthly_metrics",
) -> Iterator[None]:
    """Runs a refresh of a month in a thread, which waits for a table until the block ends, and has ended after it."""
    thread = threading.Thread(target=refresh, args=(refresher, month, next_month(month), run_id))
    with holder.transaction():
        holder.execute(_LOCKS[before])
        thread.start()
        wait_until_blocked(holder, "relation")
        yield
    thread.join(PATIENCE)
    assert not thread.is_alive()
