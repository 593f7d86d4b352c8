"""Fixtures shared by the tests of the deployment."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder of its own: pytest removes permissions from its own temporary folders when a second session begins."""
    path = Path(tempfile.mkdtemp(prefix="crm_analytics_compose_"))
    yield path
    shutil.rmtree(path, ignore_errors=True)
