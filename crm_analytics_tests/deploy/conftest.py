"""What the tests of the deployment share."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def folder() -> Iterator[Path]:
    """A short-lived folder of its own: pytest takes rights from its folders when a second session begins."""
    path = Path(tempfile.mkdtemp(prefix="crm_analytics_compose_"))
    yield path
    shutil.rmtree(path, ignore_errors=True)
