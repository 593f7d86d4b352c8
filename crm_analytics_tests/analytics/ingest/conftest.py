"""Fixtures of the ingest tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import psycopg
import pytest

from crm_analytics_tests.analytics.ingest.landing_folder import Landing


@pytest.fixture
def landing(tmp_path: Path, analytics: psycopg.Connection[Any]) -> Landing:
    """An empty landing folder and a fresh analytics database to load it into."""
    return Landing(tmp_path, analytics)
