"""The `crm-analytics franchise …` commands: prepare a franchise, and list those that there are."""

from __future__ import annotations

import fcntl
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from crm_analytics.core.settings import Settings

#: Variables of Grafana's process: its readers' passwords, and nothing else.
GRAFANA_FILE = "grafana.env"


@click.group()
def franchise() -> None:
    """Prepare a franchise, and list those that there are.

    A franchise is a business of its own: its own database, landing folder, timezone and first month, and everything that
    Dagster shows of it begins with its name. FRANCHISES names those of this code location. A variable with a franchise's
    name before it is its own, as in NORTH_START_MONTH; most others are common to all.
    """


@franchise.command("add")
@click.argument("name")
@click.option(
    "--timezone",
    metavar="ZONE",
    help="Its BUSINESS_TIMEZONE, e.g. America/Chicago; the common one by default.",
)
@click.option("--start-month", metavar="YYYY-MM", help="Its START_MONTH; the common one by default.")
@click.option(
    "--landing",
    metavar="FOLDER|URL",
    help="Its landing folder, or s3://bucket/prefix; a folder of its name in the common one by default.",
)
@click.option(
    "--folder",
    type=click.Path(file_okay=False, path_type=Path),
    help="Where its variables and Grafana's files are written; `franchises`, where they are read, by default.",
)
@click.option("--new-passwords", is_flag=True, help="Give its roles new passwords.")
def add(
    name: str,
    timezone: str | None,
    start_month: str | None,
    landing: str | None,
    folder: Path | None,
    new_passwords: bool,
) -> None:
    """Prepare the franchise NAME: its database and roles, its variables, Grafana's data source.

    Safe to repeat. Without a server of your own, the database analytics_NAME is made on the embedded one. On your own
    server, ADMIN_DATABASE_URL is the address of a login that may create databases and roles; only this command uses it.
    NAME then gets two roles: analytics_owner_NAME, whose address is written to NAME_ANALYTICS_DATABASE_URL, and
    grafana_reader_NAME, which can only read. Neither can connect to another franchise's database.

    \b
    Two franchises on this machine:
      crm-analytics franchise add north
      crm-analytics franchise add south --timezone America/Chicago --start-month 2024-01
      crm-analytics up
    On your own server:
      ADMIN_DATABASE_URL=postgresql://postgres@db.example.com/postgres crm-analytics franchise add north

    Passwords are made here and written to franchises/franchises.env and franchises/grafana.env, which only you may read
    (mode 0600), never to the terminal. A database that NAME_ANALYTICS_DATABASE_URL names already is migrated and kept.
    """
    from crm_analytics.core.new_franchise import CannotPrepare
    from crm_analytics.core.settings import FRANCHISES_FOLDER, Settings, settings

    common = settings()
    names = dict.fromkeys([*common.franchise_names, name])
    # checks the name before anything is written
    common = Settings(**{**common.model_dump(exclude_unset=True), "franchises": ",".join(names)})
    wanted = {
        "business_timezone": timezone,
        "start_month": start_month,
        "landing_url": landing if landing and "://" in landing else None,
        "landing_dir": str(Path(landing).resolve()) if landing and "://" not in landing else None,
    }
    given = {field: value for field, value in wanted.items() if value}
    try:
        _add(common, name, given, folder or FRANCHISES_FOLDER, new_passwords=new_passwords)
    except CannotPrepare as error:
        raise click.ClickException(str(error)) from error


def _add(common: Settings, name: str, given: dict[str, str], folder: Path, *, new_passwords: bool) -> None:
    from crm_analytics.analytics.ingest.storage.places import landing_of
    from crm_analytics.core.migrations import migrate
    from crm_analytics.core.settings import FRANCHISES_FILE
    from crm_analytics.dashboards import reader_role

    with _lock(folder):
        platform, grafana = _Variables(folder / FRANCHISES_FILE), _Variables(folder / GRAFANA_FILE)
        listed = dict.fromkeys([*platform.franchises(), *common.franchise_names])
        platform.values["FRANCHISES"] = ",".join(listed)
        platform.set(name, given)
        config = platform.settings(common, name)
        if config.grafana_reader_password is None or new_passwords:
            platform.set(name, {"grafana_reader_password": secrets.token_urlsafe(24)})
        _make_database(common, platform, name, new_passwords=new_passwords)
        config = platform.settings(common, name)
        assert config.grafana_reader_password is not None
        grafana.set(name, {"grafana_reader_password": config.grafana_reader_password.get_secret_value()})
        platform.write()
        grafana.write()
        migrate("analytics", config=config, report=click.echo)
        reader_role.apply(config)
        landing = landing_of(config)
        try:
            landing.prepare()
        except OSError as error:
            click.echo(f"make the landing folder {landing} yourself: {error.strerror}")
        several = [platform.settings(common, each) for each in listed]
        _write_grafana(several, folder / "grafana")
    click.echo(_told(config, folder, listed))


def _make_database(common: Settings, platform: _Variables, name: str, *, new_passwords: bool) -> None:
    """Makes a franchise's database on the administrator's server, if it is not on another one or embedded.

    Its address is written before its role exists: whatever ends this in between, the next call goes on with it.
    """
    import psycopg
    from psycopg.conninfo import conninfo_to_dict

    from crm_analytics.core import new_franchise

    config = platform.settings(common, name)
    is_ours = config.analytics_database_url == platform.own(name).get("analytics_database_url")
    if common.admin_database_url is None or not is_ours:
        return
    with psycopg.connect(common.admin_database_url, autocommit=True) as admin:
        if config.analytics_database_url is None or new_passwords:
            owner = new_franchise.owner_of(config)
            if new_franchise.role_exists(admin, owner) and not new_passwords:
                raise new_franchise.CannotPrepare(
                    f"the role {owner} exists, and its password is not known here: set "
                    f"{name.upper()}_ANALYTICS_DATABASE_URL, or give it a new one with --new-passwords"
                )
            password = secrets.token_urlsafe(24)
            url = new_franchise.address(config, common.admin_database_url, password)
            platform.set(name, {"analytics_database_url": url})
            platform.write()
            config = platform.settings(common, name)
        password = str(conninfo_to_dict(config.analytics_database_url or "")["password"])
        new_franchise.prepare(admin, config, password)


def _write_grafana(franchises: list[Settings], folder: Path) -> None:
    from crm_analytics.core.database import database_url
    from crm_analytics.dashboards.franchises import provisioning

    for path, text in provisioning([(config, database_url("analytics", config)) for config in franchises]):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text, encoding="utf-8")


def _told(config: Settings, folder: Path, names: dict[str, None]) -> str:
    """Returns what was made, and what to do with it."""
    from crm_analytics.analytics.ingest.storage.places import landing_of
    from crm_analytics.core.settings import FRANCHISES_FILE, FRANCHISES_FOLDER, settings

    name = config.franchise
    lines = [
        f"franchise {name} is ready: dates in {config.business_timezone}, from {config.start_month:%Y-%m} on",
        f"  exports          {landing_of(config)}/<source>/",
        f"  variables        {folder / FRANCHISES_FILE} (for the platform; has passwords)",
        f"                   {folder / GRAFANA_FILE} (for Grafana; has passwords)",
        f"  Grafana          {folder / 'grafana'}: data sources and dashboards",
        f"  next             {config.command('refresh')}; or crm-analytics up for all franchises",
    ]
    if folder != FRANCHISES_FOLDER:
        lines.append(
            f"  set              the variables in {folder / FRANCHISES_FILE}: they are not read there"
        )
    elif set(settings().franchise_names) != set(names):
        lines.append(f"  set              FRANCHISES={','.join(names)}: another value is set elsewhere")
    return "\n".join(lines)


class _Variables:
    """A file of variables: this user's only, because it has passwords."""

    def __init__(self, path: Path) -> None:
        self.path = path
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        self.values = dict(line.split("=", 1) for line in lines if "=" in line and not line.startswith("#"))

    def franchises(self) -> list[str]:
        return [name for name in self.values.get("FRANCHISES", "").split(",") if name]

    def own(self, franchise: str) -> dict[str, str]:
        """Returns what the file says of a franchise, by the names of the fields."""
        from crm_analytics.core.settings import Settings

        names = {field: f"{franchise}_{field}".upper() for field in Settings.model_fields}
        return {field: self.values[name] for field, name in names.items() if name in self.values}

    def set(self, franchise: str, values: dict[str, str]) -> None:
        self.values |= {f"{franchise}_{field}".upper(): value for field, value in values.items()}

    def settings(self, common: Settings, franchise: str) -> Settings:
        """Returns a franchise's settings with the file's values, wherever the file is; other variables win."""
        from crm_analytics.core.settings import own_variables

        return common.of(franchise, **{**self.own(franchise), **own_variables(franchise)})

    def write(self) -> None:
        new = self.path.with_name(f"{self.path.name}.new")
        descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write("# Written by `crm-analytics franchise add`.\n")
            file.writelines(f"{name}={value}\n" for name, value in self.values.items())
        new.replace(self.path)


@contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """One call at a time writes the folder's files."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@franchise.command("list")
@click.option("--names", is_flag=True, help="Print the names only, one per line.")
def list_franchises(names: bool) -> None:
    """List the franchises of this code location, and whether their databases are ready.

    Exit code 1 if one isn't.

    \b
    Something for each of them:
      for f in $(crm-analytics franchise list --names); do crm-analytics status --franchise $f; done
    """
    from crm_analytics.analytics.ingest.storage.places import landing_of
    from crm_analytics.core.settings import settings

    config = settings()
    if names:
        click.echo("\n".join(config.franchise_names))
        return
    if not config.franchise_names:
        click.echo("there is one business, and no franchise: crm-analytics franchise add NAME prepares one")
        return
    states = [(business, _state(business)) for business in config.of_franchises()]
    for business, problem in states:
        click.echo(
            f"{business.franchise:20} {business.business_timezone:20} from {business.start_month:%Y-%m}  "
            f"{problem or 'ready'}\n{'':20} {landing_of(business)}"
        )
    raise SystemExit(1 if any(problem for _, problem in states) else 0)


def _state(config: Settings) -> str | None:
    """Returns what is wrong with a franchise's database; None if nothing is."""
    import psycopg

    from crm_analytics.core.migrations import MigrationError, require_migrated

    try:
        require_migrated("analytics", config=config)
    except (psycopg.Error, MigrationError) as error:
        return str(error).strip()
    return None
