"""Where settings come from."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

CODE = "from crm_analytics.settings import settings; print(settings().start_month)"


def _start_month(folder: Path, environment: dict[str, str]) -> str:
    done = subprocess.run(
        [sys.executable, "-c", CODE], cwd=folder, env=environment, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def test_dot_env_is_read_but_never_by_tests(tmp_path: Path) -> None:
    """A developer's .env names real databases and a real webhook."""
    (tmp_path / ".env").write_text("START_MONTH=2024-05\n")
    inherited = dict(os.environ)
    assert _start_month(tmp_path, inherited) == "2023-01-01"
    del inherited["CRM_ANALYTICS_ENV_FILE"]
    assert _start_month(tmp_path, inherited) == "2024-05-01"
