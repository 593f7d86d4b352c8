"""Reads environment variables and .env into one typed object, the only place where configuration enters."""

from __future__ import annotations

import os
import re
from datetime import date, datetime
from pathlib import Path
from typing import Annotated, Any, Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import psycopg
from psycopg.conninfo import conninfo_to_dict
from pydantic import BeforeValidator, Field, SecretStr, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from crm_analytics.core import DATABASES, EMBEDDED_LOGIN
from crm_analytics.core.months import parse_month

PROJECT_DIR = Path(__file__).resolve().parents[2]
SQL_DIR = PROJECT_DIR / "sql"
EMBEDDED_VERSIONS = (16, 18)
#: Below the state folder, so that the sample never lands among people's own exports.
SAMPLE_FOLDER = "sample_landing"


def _default_landing_dir(values: dict[str, Any]) -> Path:
    """Returns `landing/`, or the sample's folder in a state folder whose databases hold the demo's sample."""
    sample = values.get("crm_analytics_home", Path()) / SAMPLE_FOLDER
    return sample if sample.is_dir() else Path("landing")


def _default_expected_logins(values: dict[str, Any]) -> str:
    """Returns the embedded server's only login, or none for a CRM on another server."""
    return EMBEDDED_LOGIN if values.get("crm_database_url") is None else ""


def _default_dagster_url(values: dict[str, Any]) -> str:
    """Returns where `crm-analytics up` and Compose serve the UI by default, with the path prefix."""
    return f"http://localhost:3000{values.get('dagster_webserver_path_prefix', '')}"


class Settings(BaseSettings):
    """The platform's settings; every field is the environment variable of the same name in capitals."""

    model_config = SettingsConfigDict(
        # tests name another file, so that they never meet the databases and the webhook of a developer's .env
        env_file=os.environ.get("CRM_ANALYTICS_ENV_FILE", ".env"),
        extra="ignore",
        env_ignore_empty=True,
        hide_input_in_errors=True,
    )

    analytics_database_url: str | None = Field(None, description="any libpq URL or keyword string")
    crm_database_url: str | None = None
    dagster_postgres_url: str | None = None
    crm_expected_logins: str = Field(
        default_factory=_default_expected_logins,
        description="logins whose calls of the CRM's RPCs are expected besides those of crm_app's members, separated by commas",
    )
    crm_analytics_home: Path = Path(".crm_analytics")
    landing_dir: Path = Field(default_factory=_default_landing_dir)
    franchise: str = Field(
        "",
        description="the franchise whose databases and landing folder these are; none when there is only one",
    )
    business_timezone: str = "America/New_York"
    start_month: Annotated[date, BeforeValidator(parse_month)] = date(2023, 1, 1)
    embedded_postgres_version: int = Field(18, description="16 or 18: both come with the platform")
    run_log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] | None = Field(
        None, description="what runs print; every event without it, and INFO under `crm-analytics up`"
    )
    alert_webhook_url: str | None = Field(None, description="where alerts are posted; none without it")
    crm_app_members: str = Field(
        "", description="roles of trusted servers, separated by commas: only they may hold crm_app"
    )
    workiz_token: SecretStr | None = Field(None, description="of Workiz's API: its jobs and leads are pulled")
    workiz_url: str = Field("https://api.workiz.com/api/v1", description="Workiz's API; tests have their own")
    grafana_reader_password: SecretStr | None = Field(None, description="set for the role grafana_reader")
    dagster_webserver_path_prefix: str = Field(
        "",
        description="the path under which a reverse proxy serves the Dagster UI; its web server reads it, too",
    )
    dagster_url: str = Field(
        default_factory=_default_dagster_url,
        description="the Dagster UI, for links in alerts and dashboards",
    )

    @field_validator("franchise")
    @classmethod
    def _franchise_name(cls, value: str) -> str:
        # part of asset keys, of database names and of roles
        if not re.fullmatch(r"([a-z][a-z0-9_]{0,29})?", value, re.ASCII):
            raise ValueError(
                f"{value!r} is not a franchise's name: up to 30 lowercase letters, digits and underscores, a letter first"
            )
        return value

    @field_validator("business_timezone")
    @classmethod
    def _known_timezone(cls, value: str) -> str:
        try:
            ZoneInfo(value)
        # a folder's name is an OSError, a path outside the zones' folder a ValueError
        except (ZoneInfoNotFoundError, OSError, ValueError):
            raise ValueError(
                f"BUSINESS_TIMEZONE {value!r} is not an IANA name such as America/New_York"
            ) from None
        return value

    @field_validator("start_month")
    @classmethod
    def _has_begun(cls, value: date, info: ValidationInfo) -> date:
        zone = info.data.get("business_timezone")
        if zone and value > datetime.now(ZoneInfo(zone)).date():
            raise ValueError(f"{value:%Y-%m} is in the future: give the first month with data, e.g. 2023-01")
        return value

    @field_validator("analytics_database_url", "crm_database_url", "dagster_postgres_url")
    @classmethod
    def _database_address(cls, value: str | None) -> str | None:
        if value is not None:
            try:
                conninfo_to_dict(value)
            except psycopg.ProgrammingError:  # its text may quote the password
                raise ValueError(
                    "not a database address: write postgresql://user:password@host:5432/database, or host=… dbname=…"
                ) from None
        return value

    @field_validator("embedded_postgres_version")
    @classmethod
    def _comes_with_the_wheel(cls, value: int) -> int:
        if value not in EMBEDDED_VERSIONS:
            raise ValueError(
                f"{value} does not come with the platform: use {' or '.join(map(str, EMBEDDED_VERSIONS))}"
            )
        return value

    @field_validator("dagster_webserver_path_prefix")
    @classmethod
    def _path_of_an_address(cls, value: str) -> str:
        # Dagster reads the variable itself, and ends in a stack trace at a slash at its end
        if not re.fullmatch(r"(/[\w.~-]+)*", value, re.ASCII):
            raise ValueError(
                "not the path of an address: write it with a slash before it and none after it, e.g. /dagster"
            )
        return value

    @field_validator("dagster_url")
    @classmethod
    def _web_address(cls, value: str) -> str:
        if not re.fullmatch(r"https?://[^\s/?#]+(/[^\s?#]*)?", value):
            raise ValueError(
                "not an address that a browser opens: write http(s)://…, e.g. https://dagster.example.com"
            )
        return value.rstrip("/")

    @field_validator("landing_dir", "crm_analytics_home")
    @classmethod
    def _absolute(cls, value: Path) -> Path:
        return value.expanduser().resolve()

    @property
    def timezone(self) -> ZoneInfo:
        """The business timezone; every date in the warehouse is a local date in it (docs/decisions/business-timezone.md)."""
        return ZoneInfo(self.business_timezone)

    @property
    def crm_app_member_names(self) -> tuple[str, ...]:
        """The roles that may hold crm_app."""
        return tuple(name.strip() for name in self.crm_app_members.split(",") if name.strip())

    def login(self, database: str) -> str | None:
        """Returns the login that a configured address names; None if it names none."""
        login = conninfo_to_dict(self.configured_url(database) or "").get("user")
        return None if login is None else str(login)

    @property
    def sample_dir(self) -> Path:
        """The folder that the demo writes its sample exports into."""
        return self.crm_analytics_home / SAMPLE_FOLDER

    def configured_url(self, database: str) -> str | None:
        """Returns the configured address of `analytics`, `crm` or `dagster`; None means the embedded server."""
        urls = (self.analytics_database_url, self.crm_database_url, self.dagster_postgres_url)
        return dict(zip(DATABASES, urls, strict=True))[database]

    def environment(self) -> dict[str, str]:
        """Returns the process's environment with these settings, for child processes in any directory."""
        values = {
            **self.model_dump(exclude={"start_month", "grafana_reader_password"}, exclude_none=True),
            "start_month": f"{self.start_month:%Y-%m}",
        }
        return {**os.environ, **{name.upper(): _plain(value) for name, value in values.items()}}


def _plain(value: object) -> str:
    return value.get_secret_value() if isinstance(value, SecretStr) else str(value)


def settings() -> Settings:
    """Returns the settings of this moment's environment."""
    return Settings()
