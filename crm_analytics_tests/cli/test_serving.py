"""Tests of what `crm-analytics up` hands to Dagster."""

from __future__ import annotations

import subprocess
from collections.abc import Callable

import pytest
from rich.console import Console

from crm_analytics.cli.serving import serve
from crm_analytics.core.settings import Settings


class Started(Exception):
    """Raised in place of starting Dagster."""


@pytest.mark.parametrize(("configured", "given"), [(None, "INFO"), ("DEBUG", "DEBUG"), ("ERROR", "ERROR")])
def test_configured_log_level_is_kept(
    new_database: Callable[..., str], monkeypatch: pytest.MonkeyPatch, configured: str | None, given: str
) -> None:
    """`up` prints runs' messages from INFO on, unless RUN_LOG_LEVEL asks for more or less."""
    environments = []

    def start(command: list[str], *, env: dict[str, str], **options: object) -> None:
        environments.append(env)
        raise Started

    url = new_database("dagster")
    config = Settings(
        analytics_database_url=url, crm_database_url=url, dagster_postgres_url=url, run_log_level=configured
    )
    monkeypatch.setattr(subprocess, "Popen", start)
    with pytest.raises(Started):
        serve(config, "127.0.0.1", 1, Console(quiet=True))
    (environment,) = environments
    assert environment["RUN_LOG_LEVEL"] == given
