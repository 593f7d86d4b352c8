"""Where settings come from, and which values are refused."""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import date
from pathlib import Path
from typing import Any

import psycopg
import pytest
from pydantic import ValidationError

from crm_analytics.core.settings import settings

CODE = "from crm_analytics.core.settings import settings; print(settings().start_month)"


def _start_month(folder: Path, environment: dict[str, str]) -> str:
    done = subprocess.run(
        [sys.executable, "-c", CODE], cwd=folder, env=environment, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def test_dot_env_is_read_but_never_by_tests(tmp_path: Path) -> None:
    """A .env is read, but not by tests: a developer's names real databases and a real webhook."""
    (tmp_path / ".env").write_text("START_MONTH=2024-05\n")
    inherited = dict(os.environ)
    assert _start_month(tmp_path, inherited) == "2023-01-01"
    del inherited["CRM_ANALYTICS_ENV_FILE"]
    assert _start_month(tmp_path, inherited) == "2024-05-01"


def test_empty_variable_is_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty variable is the same as none: the compose file passes the webhook on as it is, set or not."""
    monkeypatch.setenv("ALERT_WEBHOOK_URL", "")
    monkeypatch.setenv("START_MONTH", "")
    assert settings().alert_webhook_url is None
    assert settings().start_month == date(2023, 1, 1)


@pytest.mark.parametrize(
    "address",
    [
        "hooks.example.com/secret-part", "ftp://hooks.example.com/secret-part", "http:///secret-part",
        "https://hooks.example.com:secret-part/", "https://[secret-part/", "https://me:secret-part@hooks.example.com/",
        "https://hooks.example.com/secret part", "https://hooks.example.com/secret-part/ü",
    ],
)  # fmt: skip
def test_address_of_no_webhook_is_refused_and_not_quoted(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mistyped address is told at the start, not with the first alert that gets lost; it stays secret."""
    monkeypatch.setenv("ALERT_WEBHOOK_URL", address)
    with pytest.raises(ValidationError, match="not the address of a webhook: write http") as refused:
        settings()
    assert "secret" not in str(refused.value)


def test_address_of_a_webhook(monkeypatch: pytest.MonkeyPatch) -> None:
    """Addresses of any host and path are accepted as they are: a port, a query, an address in numbers."""
    for address in ("https://hooks.slack.com/services/T0/B0/x", "http://[::1]:8080/a?token=%20", "http://h"):
        monkeypatch.setenv("ALERT_WEBHOOK_URL", address)
        assert settings().alert_webhook_url == address


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CRM_ANALYTICS_HOME", "state")


@pytest.mark.usefixtures("elsewhere")
def test_commands_after_the_demo_continue_with_its_sample(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the demo the landing folder is its sample, so that `up` doesn't load other exports into its databases."""
    assert settings().landing_dir == tmp_path / "landing"
    settings().sample_dir.mkdir(parents=True)
    assert settings().landing_dir == tmp_path / "state" / "sample_landing"
    monkeypatch.setenv("LANDING_DIR", "exports")
    assert settings().landing_dir == tmp_path / "exports"
    monkeypatch.delenv("LANDING_DIR")
    monkeypatch.setenv("CRM_ANALYTICS_HOME", "another")
    assert settings().landing_dir == tmp_path / "landing"


@pytest.mark.parametrize(
    "value", ["dagster.example.com", "ftp://x.example", "https://", "http://a b/", "http://x/?a"]
)
def test_dagster_address_that_no_browser_opens_is_refused(
    value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A wrong DAGSTER_URL is refused by name; later it would be a broken link or a failed check constraint."""
    monkeypatch.setenv("DAGSTER_URL", value)
    with pytest.raises(
        ValueError, match=r"dagster_url\s+Value error, not an address .*https://dagster\.example\.com"
    ):
        settings()


@pytest.mark.parametrize(
    "value", ["http://localhost:3000", "https://d/", "https://tools.example.com/dagster/"]
)
def test_every_accepted_dagster_address_fits_its_table(
    value: str, monkeypatch: pytest.MonkeyPatch, analytics: psycopg.Connection[Any]
) -> None:
    """An address that the settings accept is accepted by the table, too; else `migrate` would fail on it."""
    monkeypatch.setenv("DAGSTER_URL", value)
    analytics.execute("UPDATE reporting.deployment SET dagster_url = %s", [settings().dagster_url])
    with pytest.raises(psycopg.errors.CheckViolation):
        analytics.execute("UPDATE reporting.deployment SET dagster_url = dagster_url || '/'")


def test_dagster_address_follows_the_path_prefix(monkeypatch: pytest.MonkeyPatch) -> None:
    """Links carry the path under which a reverse proxy serves the UI, also where only that is set."""
    monkeypatch.setenv("DAGSTER_WEBSERVER_PATH_PREFIX", "/dagster")
    assert settings().dagster_url == "http://localhost:3000/dagster"
    monkeypatch.setenv("DAGSTER_URL", "https://tools.example.com/d")
    assert settings().dagster_url == "https://tools.example.com/d"
