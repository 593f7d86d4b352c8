"""Tests of what `crm-analytics up` hands to Dagster."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from typing import Any

import pytest
from click.testing import CliRunner
from rich.console import Console

from crm_analytics.cli.main import main
from crm_analytics.cli.serving import serve
from crm_analytics.core.settings import Settings


class Started(Exception):
    """Raised in place of starting Dagster."""


@pytest.fixture
def handed(
    new_database: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., dict[str, str]]:
    """Serves with the given settings, and returns the environment that Dagster would have."""
    url = new_database("dagster")

    def serve_with(**changes: Any) -> dict[str, str]:
        environments = []

        def start(command: list[str], *, env: dict[str, str], **options: object) -> None:
            environments.append(env)
            raise Started

        config = Settings(
            analytics_database_url=url, crm_database_url=url, dagster_postgres_url=url, **changes
        )
        monkeypatch.setattr(subprocess, "Popen", start)
        with pytest.raises(Started):
            serve(config, "127.0.0.1", 3100, Console(quiet=True))
        (environment,) = environments
        return environment

    return serve_with


@pytest.mark.parametrize(("configured", "given"), [(None, "INFO"), ("DEBUG", "DEBUG"), ("ERROR", "ERROR")])
def test_configured_log_level_is_kept(
    handed: Callable[..., dict[str, str]], configured: str | None, given: str
) -> None:
    """`up` prints runs' messages from INFO on, unless RUN_LOG_LEVEL asks for more or less."""
    assert handed(run_log_level=configured)["RUN_LOG_LEVEL"] == given


@pytest.mark.parametrize(
    ("changes", "link"),
    [
        ({}, "http://localhost:3100"),
        ({"dagster_webserver_path_prefix": "/tools/dagster"}, "http://localhost:3100/tools/dagster"),
        (
            {"dagster_webserver_path_prefix": "/dagster", "dagster_url": "https://example.com/dagster/"},
            "https://example.com/dagster",
        ),
    ],
)
def test_links_lead_to_where_the_ui_is_served(
    handed: Callable[..., dict[str, str]], changes: dict[str, str], link: str
) -> None:
    """Links in alerts have the port and the path of this UI, unless DAGSTER_URL says where browsers find it."""
    environment = handed(**changes)
    assert environment["DAGSTER_URL"] == link
    assert environment["DAGSTER_WEBSERVER_PATH_PREFIX"] == changes.get("dagster_webserver_path_prefix", "")


@pytest.mark.parametrize(
    "prefix", ["dagster", "/dagster/", "/", "/a b", "/a?b", "https://example.com/dagster", "/a//b"]
)
def test_path_that_no_address_has_is_refused(prefix: str) -> None:
    """A wrong path is one sentence with an example; Dagster itself would end in a stack trace."""
    done = CliRunner().invoke(main, ["up", "--path-prefix", prefix])
    assert done.exit_code == 1
    assert "DAGSTER_WEBSERVER_PATH_PREFIX: not the path of an address" in " ".join(done.output.split())
    assert "e.g. /dagster" in " ".join(done.output.split())
    assert "DAGSTER_URL" not in done.output, "nothing is wrong with it"
