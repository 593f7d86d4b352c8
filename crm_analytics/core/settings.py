"""Reads environment variables and .env into one typed object, the only place where configuration enters."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from datetime import date, datetime
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import psycopg
from psycopg.conninfo import conninfo_to_dict
from pydantic import (
    BeforeValidator,
    Field,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError
from pydantic_settings import (
    BaseSettings,
    DotEnvSettingsSource,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from crm_analytics.core import DATABASES, EMBEDDED_LOGIN
from crm_analytics.core.months import parse_month

PROJECT_DIR = Path(__file__).resolve().parents[2]
SQL_DIR = PROJECT_DIR / "sql"
EMBEDDED_VERSIONS = (16, 18)
#: Below the state folder, so that the sample never lands among people's own exports.
SAMPLE_FOLDER = "sample_landing"
#: Where `franchise add` writes, below the working directory.
FRANCHISES_FOLDER = Path("franchises")
FRANCHISES_FILE = "franchises.env"
#: First parts of the keys of assets that belong to no franchise.
RESERVED = ("analytics", "crm", "lake", "landing", "operation", "raw")
#: What an instance, a server or a process has once, whatever franchises there are.
COMMON = (
    "franchise", "franchises", "crm_enabled", "maintenance_enabled", "admin_database_url", "crm_database_url",
    "dagster_postgres_url", "dagster_connections_kept", "dagster_connections_max", "crm_analytics_home",
    "embedded_postgres_version", "run_log_level", "crm_expected_logins", "crm_app_members",
    "dagster_webserver_path_prefix", "dagster_url", "lake_url", "lake_catalog_url",
)  # fmt: skip
_TWO_LANDINGS = "LANDING_DIR and LANDING_URL are both set, and there is one landing folder: unset one of them"
#: What would mix two franchises' rows, or let one read the other's: databases, and accounts of services.
NEVER_SHARED = ("analytics_database_url", "grafana_reader_password", "workiz_token")


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


class NoFranchise(Exception):
    """Raised when one business's data are asked for, and it isn't said which of several; the message says how."""


class Settings(BaseSettings):
    """The platform's settings; every field is the environment variable of the same name in capitals."""

    model_config = SettingsConfigDict(
        # tests name another file, so that they never meet the databases and the webhook of a developer's .env
        env_file=os.environ.get("CRM_ANALYTICS_ENV_FILE") or (FRANCHISES_FOLDER / FRANCHISES_FILE, ".env"),
        extra="ignore",
        env_ignore_empty=True,
        hide_input_in_errors=True,
    )

    franchise: str = Field(
        "",
        description="the franchise that these settings are of, none when there is only one business; no variable sets it",
    )
    franchises: str = Field(
        "",
        description="the franchises of this code location, separated by commas; none when there is only one business",
    )
    analytics_database_url: str | None = Field(None, description="any libpq URL or keyword string")
    crm_database_url: str | None = None
    dagster_postgres_url: str | None = None
    dagster_connections_kept: int = Field(
        1, ge=1, description="connections to Dagster's database that a process keeps once it needed them"
    )
    dagster_connections_max: int = Field(
        20, ge=5, description="connections to Dagster's database that a process has at a time"
    )
    admin_database_url: str | None = Field(
        None, description="an administrator's address of the server on which `franchise add` makes a database"
    )
    crm_enabled: bool = Field(
        True, description="whether the CRM belongs to this code location: one of an instance's has it"
    )
    maintenance_enabled: bool = Field(
        True, description="whether pruning, and alerts about it and the CRM, belong to this code location"
    )
    crm_expected_logins: str = Field(
        default_factory=_default_expected_logins,
        description="logins whose calls of the CRM's RPCs are expected besides those of crm_app's members, separated by commas",
    )
    crm_analytics_home: Path = Path(".crm_analytics")
    landing_dir: Path = Field(default_factory=_default_landing_dir)
    landing_url: str | None = Field(
        None, description="the landing folder in object storage, s3://bucket/prefix, instead of landing_dir"
    )
    landing_patience: int = Field(
        15, ge=1, le=3600, description="seconds for which a request to object storage is repeated"
    )
    aws_access_key_id: str | None = None
    aws_secret_access_key: SecretStr | None = None
    aws_session_token: SecretStr | None = None
    aws_region: str | None = None
    aws_default_region: str | None = None
    aws_endpoint_url: str | None = Field(
        None, description="of a server with the API of S3 that is not Amazon's"
    )
    lake_catalog_url: str | None = Field(
        None, description="the database of the lake's catalog, which all franchises share"
    )
    lake_url: str | None = Field(
        None, description="where the lake's files are, a folder or s3://bucket/folder; no lake without it"
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

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Ignores the variable FRANCHISE, which chooses a franchise for a command: a name alone makes no settings."""
        for source in (env_settings, dotenv_settings):
            assert isinstance(source, EnvSettingsSource)
            source.env_vars = {name: value for name, value in source.env_vars.items() if name != "franchise"}
        return init_settings, env_settings, dotenv_settings

    @field_validator("franchise", "franchises")
    @classmethod
    def _franchise_names(cls, value: str) -> str:
        names = _names(value)
        for name in names:
            # part of asset keys, where two underscores end it, and of names of databases and roles
            if len(name) > 30 or not re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", name, re.ASCII):
                raise ValueError(
                    f"{name!r} is not a franchise's name: up to 30 lowercase letters and digits, a letter first, "
                    "words joined by an underscore"
                )
            if name in RESERVED:
                raise ValueError(f"no franchise may be named {name}: assets that belong to none begin so")
        if len(set(names)) < len(names):
            raise ValueError("a franchise occurs twice")
        return ",".join(names)

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

    @field_validator("analytics_database_url")
    @classmethod
    def _of_one_business(cls, value: str | None, info: ValidationInfo) -> str | None:
        names = _names(info.data.get("franchises", ""))
        if value is not None and names and not info.data.get("franchise"):
            raise ValueError(
                "franchises can't share a database: unset it, and set "
                + " and ".join(f"{name.upper()}_ANALYTICS_DATABASE_URL" for name in names)
            )
        return value

    @field_validator(
        "analytics_database_url",
        "crm_database_url",
        "dagster_postgres_url",
        "admin_database_url",
        "lake_catalog_url",
    )
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

    @field_validator("dagster_connections_max")
    @classmethod
    def _at_least_those_kept(cls, value: int, info: ValidationInfo) -> int:
        kept = info.data.get("dagster_connections_kept", 1)
        if value < kept:
            raise ValueError(f"{value} is less than DAGSTER_CONNECTIONS_KEPT, {kept}")
        return value

    @field_validator("alert_webhook_url")
    @classmethod
    def _webhook_address(cls, value: str | None) -> str | None:
        # no text quotes it: whoever has the address may post
        if value is not None:
            try:
                parts = urlsplit(value)
                is_address = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
            except ValueError:
                is_address = False
            # a space or a letter beyond ASCII must be written as %20; urllib takes a login for part of the host
            if not is_address or "@" in parts.netloc or not re.fullmatch("[!-~]+", value):
                raise ValueError(
                    "not the address of a webhook: write http(s)://…, e.g. https://hooks.slack.com/services/…, without"
                    " a login"
                )
        return value

    @field_validator("lake_url")
    @classmethod
    def _lake_address(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is None:
            return None
        if "lake_catalog_url" in info.data and info.data["lake_catalog_url"] is None:
            raise ValueError(
                "a lake needs a catalog, too: set LAKE_CATALOG_URL to a database of its own, the same for all franchises"
            )
        scheme, separator, rest = value.partition("://")
        if not separator:
            return Path(value).expanduser().resolve().as_uri()
        if scheme not in ("file", "s3") or not rest.strip("/"):
            raise ValueError("not a place for a lake: write a folder, or s3://bucket/folder")
        return value.rstrip("/")

    @field_validator("embedded_postgres_version")
    @classmethod
    def _comes_with_the_wheel(cls, value: int) -> int:
        if value not in EMBEDDED_VERSIONS:
            raise ValueError(
                f"{value} does not come with the platform: use {' or '.join(map(str, EMBEDDED_VERSIONS))}"
            )
        return value

    @field_validator("landing_url")
    @classmethod
    def _bucket_and_prefix(cls, value: str | None) -> str | None:
        return None if value is None else cls._bucket_address(value)

    @staticmethod
    def _bucket_address(value: str) -> str:
        bucket = r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]"
        if not re.fullmatch(rf"s3://{bucket}(/(?!\.{{1,2}}(/|$))[^/?#\x00-\x1f\x7f]+)*/?", value):
            raise ValueError("not the address of a bucket: write s3://bucket or s3://bucket/prefix")
        return value.rstrip("/")

    @field_validator("aws_endpoint_url")
    @classmethod
    def _endpoint(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"https?://[^\s/?#@]+/?", value):
            raise ValueError(
                "not the address of a server: write http(s)://host:port, without a user or a path"
            )
        return value

    @model_validator(mode="after")
    def _one_landing_folder(self) -> Settings:
        # a franchise may have a bucket of its own where the others have folders
        if self.landing_url is not None and "landing_dir" in self.model_fields_set and not self.franchise:
            raise ValueError(_TWO_LANDINGS)
        return self

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

    @property
    def franchise_names(self) -> tuple[str, ...]:
        """The franchises of this code location; none when there is only one business."""
        return _names(self.franchises)

    def of(self, franchise: str, **values: Any) -> Settings:
        """Returns the settings of a franchise: its own variables, and these for whatever may be shared.

        Its own variables have its name in capitals before them, as in NORTH_START_MONTH. Without a landing folder of its
        own, on this machine or in object storage, it has a folder of its name in the common one.

        Args:
            values: fields in place of its own variables.

        Raises:
            ValidationError: if a value is wrong, or a variable can't be a franchise's own; it names the variable.
        """
        own = {**own_variables(franchise), **values}
        wrong = [name for name in own if name in COMMON]
        if wrong:
            raise _error(
                ((franchise, name), f"all franchises have the same: set {name.upper()} instead", None)
                for name in wrong
            )
        if {"landing_dir", "landing_url"} <= own.keys():
            raise _error([((franchise, "landing_url"), _TWO_LANDINGS, None)])
        shared = {
            name: getattr(self, name)
            for name in self.model_fields_set
            if name not in (*NEVER_SHARED, "landing_dir", "landing_url")
        }
        # the common variables, which Settings would read
        shared |= dict.fromkeys((*NEVER_SHARED, "landing_url"))
        if not {"landing_dir", "landing_url"} & own.keys():
            if self.landing_url is None:
                shared["landing_dir"] = self.landing_dir / franchise
            else:
                shared["landing_url"] = f"{self.landing_url}/{franchise}"
        try:
            return Settings(**{**shared, **own, "franchise": franchise})
        except ValidationError as error:
            raise _error(
                (
                    (franchise, *problem["loc"]) if problem["loc"][0] in own else problem["loc"],
                    problem["msg"],
                    problem["input"],
                )
                for problem in error.errors()
                if problem["type"] != "default_factory_not_called"
            ) from None

    def of_franchises(self) -> list[Settings]:
        """Returns the settings of each franchise; these alone if they are one's, or there is only one business."""
        if self.franchise or not self.franchise_names:
            return [self]
        return [self.of(name) for name in self.franchise_names]

    def command(self, arguments: str) -> str:
        """Returns the command line `crm-analytics …` as it is typed for these settings' business."""
        chosen = f" --franchise {self.franchise}" if self.franchise else ""
        return f"crm-analytics {arguments}{chosen}"

    @property
    def lake_franchise(self) -> str:
        """The franchise as the lake's rows name it: `main` where there is only one."""
        return self.franchise or "main"

    def login(self, database: str) -> str | None:
        """Returns the login that a configured address names; None if it names none."""
        login = conninfo_to_dict(self.configured_url(database) or "").get("user")
        return None if login is None else str(login)

    @property
    def sample_dir(self) -> Path:
        """The folder that the demo writes its sample exports into."""
        return self.crm_analytics_home / SAMPLE_FOLDER

    def database_name(self, database: str) -> str:
        """Returns the name that `analytics`, `crm` or `dagster` has on the embedded server."""
        return f"{database}_{self.franchise}" if self.franchise and database == "analytics" else database

    @property
    def grafana_reader(self) -> str:
        """The role that reads the analytics database for Grafana; roles are the server's, so a franchise has its own."""
        return f"grafana_reader_{self.franchise}" if self.franchise else "grafana_reader"

    def with_landing(self, place: str) -> Settings:
        """Returns these settings with another landing folder: s3://bucket/prefix, or a folder on this machine.

        Raises ValueError if it looks like an address and is none.
        """
        if "://" in place:
            return self.model_copy(update={"landing_url": self._bucket_address(place)})
        return self.model_copy(update={"landing_dir": Path(place).resolve(), "landing_url": None})

    @property
    def object_storage(self) -> dict[str, str]:
        """What is set of AWS_ACCESS_KEY_ID and so on, by the names that the libraries have for it; has secrets."""
        secret, token = self.aws_secret_access_key, self.aws_session_token
        values = {
            "aws_access_key_id": self.aws_access_key_id,
            "aws_secret_access_key": secret and secret.get_secret_value(),
            "aws_session_token": token and token.get_secret_value(),
            "aws_region": self.aws_region or self.aws_default_region,
            "aws_endpoint_url": self.aws_endpoint_url,
        }
        return {name: value for name, value in values.items() if value}

    def configured_url(self, database: str) -> str | None:
        """Returns the configured address of `analytics`, `crm` or `dagster`; None means the embedded server.

        Raises:
            NoFranchise: for `analytics` without a franchise, if there are several.
        """
        if database == "analytics" and self.franchise_names and not self.franchise:
            raise NoFranchise(
                f"add --franchise NAME, or set FRANCHISE: one of {', '.join(self.franchise_names)}"
            )
        urls = (self.analytics_database_url, self.crm_database_url, self.dagster_postgres_url)
        return dict(zip(DATABASES, urls, strict=True))[database]

    def environment(self) -> dict[str, str]:
        """Returns the process's environment with these settings, for child processes in any directory."""
        values = self._variables()
        for config in self.of_franchises():
            if config.franchise != self.franchise:
                own = config._variables().items()
                prefix = config.franchise.upper()
                values |= {f"{prefix}_{name}": value for name, value in own if name.lower() not in COMMON}
        return {**os.environ, **values}

    def _variables(self) -> dict[str, str]:
        hidden = {
            "start_month", "grafana_reader_password", "admin_database_url", "franchise", "aws_secret_access_key",
            "aws_session_token",
        }  # fmt: skip
        values = {
            **self.model_dump(exclude=hidden, exclude_none=True),
            **self.object_storage,
            "start_month": f"{self.start_month:%Y-%m}",
            # an empty one is none: the other is the landing folder
            "landing_url": self.landing_url or "",
        }
        if self.landing_url is not None:
            values["landing_dir"] = ""
        return {name.upper(): _plain(value) for name, value in values.items()}


def _plain(value: object) -> str:
    return value.get_secret_value() if isinstance(value, SecretStr) else str(value)


def settings(franchise: str = "") -> Settings:
    """Returns the settings of this moment's environment, those of a franchise if one is named."""
    common = Settings()
    return common.of(franchise) if franchise else common


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def own_variables(franchise: str) -> dict[str, Any]:
    """Returns the values of a franchise's own variables, as text, by the names of their fields."""
    prefix = f"{franchise}_"
    file = DotEnvSettingsSource(Settings, env_file=Settings.model_config.get("env_file"), env_prefix=prefix)
    return {
        name: value
        for source in (file, EnvSettingsSource(Settings, env_prefix=prefix))
        for name, value in source().items()
        if name in Settings.model_fields
    }


def _error(problems: Iterable[tuple[tuple[int | str, ...], str, Any]]) -> ValidationError:
    """Returns an error with these problems: the parts of the variable's name, what is wrong, and what was found."""
    return ValidationError.from_exception_data(
        Settings.__name__,
        [
            InitErrorDetails(
                type=PydanticCustomError("value_error", "{text}", {"text": text}), loc=loc, input=found
            )
            for loc, text, found in problems
        ],
        hide_input=True,
    )
