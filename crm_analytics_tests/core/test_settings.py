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

from crm_analytics.analytics.ingest.storage.places import landing_of
from crm_analytics.core.settings import Settings, settings

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


@pytest.mark.parametrize(
    "value",
    [
        "https://bucket/x",
        "s3://",
        "s3://B/x",
        "s3://bucket//x",
        "s3://bucket/../x",
        "s3://key:secret@bucket",
        "s3://b/x?y",
    ],
)
def test_an_address_that_is_no_bucket_is_refused(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrong LANDING_URL is refused by name, and not shown: it may have a secret in it."""
    monkeypatch.setenv("LANDING_URL", value)
    with pytest.raises(ValueError, match=r"landing_url\s+Value error, not the address of a bucket") as raised:
        settings()
    assert "secret" not in str(raised.value)


@pytest.mark.usefixtures("elsewhere")
def test_there_is_one_landing_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """LANDING_URL stands in for LANDING_DIR; children get the one that is meant, and both together are an error."""
    monkeypatch.setenv("LANDING_URL", "s3://bucket/exports/é/")
    config = settings()
    assert str(landing_of(config)) == config.landing_url == "s3://bucket/exports/é"
    assert (config.environment()["LANDING_URL"], config.environment()["LANDING_DIR"]) == (
        config.landing_url,
        "",
    )
    local = config.with_landing("exports")
    assert str(landing_of(local)) == str(tmp_path / "exports")
    assert (local.environment()["LANDING_URL"], local.environment()["LANDING_DIR"]) == (
        "",
        str(tmp_path / "exports"),
    )
    assert str(landing_of(local.with_landing("s3://other"))) == "s3://other"
    monkeypatch.setenv("LANDING_DIR", "exports")
    with pytest.raises(ValueError, match="LANDING_DIR and LANDING_URL are both set"):
        settings()


def test_credentials_are_passed_on_and_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    """Child processes get what object storage needs, also if a .env has it; neither text nor errors show secrets."""
    variables = {
        "AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "hidden", "AWS_SESSION_TOKEN": "concealed",
        "AWS_DEFAULT_REGION": "eu-west-1", "AWS_ENDPOINT_URL": "http://127.0.0.1:9000",
    }  # fmt: skip
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    config = settings()
    assert not {"hidden", "concealed"} & set(str(config).replace("'", " ").split())
    for name in variables:
        monkeypatch.delenv(name)
    assert variables.items() <= config.environment().items()
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://user:hidden@host")
    with pytest.raises(
        ValueError, match=r"aws_endpoint_url\s+Value error, not the address of a server"
    ) as raised:
        settings()
    assert "hidden" not in str(raised.value)


def test_franchise_has_its_own_variables_over_the_common_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What may be shared falls back to the common variable; databases, folders and logins never do."""
    for name, value in {
        "FRANCHISES": "north, south",
        "LANDING_DIR": str(tmp_path),
        "START_MONTH": "2024-02",
        "ALERT_WEBHOOK_URL": "https://hooks.example.com/all",
        "GRAFANA_READER_PASSWORD": "of the common role",
        "NORTH_START_MONTH": "2024-05",
        "NORTH_ANALYTICS_DATABASE_URL": "host=north",
        "SOUTH_LANDING_DIR": str(tmp_path / "elsewhere"),
        "SOUTH_ALERT_WEBHOOK_URL": "https://hooks.example.com/south",
    }.items():
        monkeypatch.setenv(name, value)
    north, south = settings().of_franchises()
    assert (north.franchise, north.start_month, south.franchise, south.start_month) == (
        "north", date(2024, 5, 1), "south", date(2024, 2, 1),
    )  # fmt: skip
    assert (north.landing_dir, south.landing_dir) == (tmp_path / "north", tmp_path / "elsewhere")
    assert (north.analytics_database_url, south.analytics_database_url) == ("host=north", None)
    assert (north.database_name("analytics"), south.database_name("analytics")) == (
        "analytics_north", "analytics_south",
    )  # fmt: skip
    assert north.database_name("crm") == "crm"
    assert north.grafana_reader_password is None
    assert (north.alert_webhook_url, south.alert_webhook_url) == (
        "https://hooks.example.com/all", "https://hooks.example.com/south",
    )  # fmt: skip
    assert settings().of_franchises() == [settings("north"), settings("south")]


def test_child_processes_have_the_same_franchises(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A child in another directory sees the franchises of this one's files: Dagster's processes run elsewhere."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(Settings.model_config, "env_file", "here.env")
    (tmp_path / "here.env").write_text("FRANCHISES=north\nNORTH_START_MONTH=2024-05\nLANDING_DIR=exports\n")
    code = (
        "from crm_analytics.core.settings import settings; c = settings('north');"
        " print(c.start_month, c.landing_dir)"
    )
    child = subprocess.run(
        [sys.executable, "-c", code],
        cwd="/",
        env=settings().environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    assert child.stdout.split() == ["2024-05-01", str(tmp_path / "exports" / "north")]


def test_a_name_alone_makes_no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """FRANCHISE chooses for commands; read as a setting, it would be a franchise with the common database."""
    monkeypatch.setenv("FRANCHISE", "north")
    assert settings().franchise == ""


def test_franchises_share_a_bucket_but_no_prefix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each has a prefix of its name in the common one, or a landing folder of its own of either kind."""
    for name, value in {
        "FRANCHISES": "north,south,west",
        "LANDING_URL": "s3://exports/all",
        "SOUTH_LANDING_URL": "s3://southern",
        "WEST_LANDING_DIR": str(tmp_path),
    }.items():
        monkeypatch.setenv(name, value)
    assert [str(landing_of(config)) for config in settings().of_franchises()] == [
        "s3://exports/all/north", "s3://southern", str(tmp_path),
    ]  # fmt: skip
    monkeypatch.delenv("LANDING_URL")
    monkeypatch.setenv("LANDING_DIR", str(tmp_path))
    assert str(landing_of(settings("south"))) == "s3://southern"
    monkeypatch.setenv("SOUTH_LANDING_DIR", str(tmp_path))
    with pytest.raises(ValueError, match="LANDING_DIR and LANDING_URL are both set"):
        settings("south")
