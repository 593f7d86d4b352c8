"""`crm-analytics franchise`: what it makes on a server, who may connect where, and that repeating it changes nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psycopg
import pytest
import yaml
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from crm_analytics.core.embedded_postgres import EmbeddedPostgres
from crm_analytics.core.settings import PROJECT_DIR, Settings
from crm_analytics_tests.conftest import PG_VERSION


@dataclass
class Place:
    """A working directory with a server that an administrator, not a superuser, may make databases on."""

    folder: Path
    server: EmbeddedPostgres
    variables: dict[str, str] = field(default_factory=dict)

    @property
    def admin(self) -> str:
        return make_conninfo(self.server.url("postgres"), user="boss", password="x")

    def call(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        inherited = {name: value for name, value in os.environ.items() if name != "CRM_ANALYTICS_ENV_FILE"}
        return subprocess.run(
            [sys.executable, "-m", "crm_analytics", *arguments],
            cwd=self.folder,
            env={**inherited, "CRM_ANALYTICS_HOME": str(self.folder / "state"), **self.variables},
            capture_output=True,
            text=True,
            check=False,
        )

    def done(self, *arguments: str) -> str:
        called = self.call(*arguments)
        assert called.returncode == 0, called.stdout + called.stderr
        return called.stdout

    def refused(self, *arguments: str) -> str:
        called = self.call(*arguments)
        assert called.returncode == 1 and "Traceback" not in called.stderr, called.stdout + called.stderr
        return " ".join(called.stderr.split())

    def written(self, name: str) -> dict[str, str]:
        """The variables that were written."""
        lines = (self.folder / "franchises" / name).read_text().splitlines()
        return dict(line.split("=", 1) for line in lines if not line.startswith("#"))

    def connect(self, login: str, password: str, database: str) -> psycopg.Connection:
        url = make_conninfo(self.server.url(database), user=login, password=password)
        return psycopg.connect(url, autocommit=True)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """Two franchises on a server of their own, made by an administrator who is no superuser."""
    folder = tmp_path_factory.mktemp("place")
    server = EmbeddedPostgres(folder / "server", PG_VERSION, {"fsync": "off"}).start()
    try:
        with psycopg.connect(server.url("postgres"), autocommit=True) as connection:
            connection.execute("CREATE ROLE boss LOGIN CREATEDB CREATEROLE PASSWORD 'x'")
        place = Place(folder, server)
        place.variables["ADMIN_DATABASE_URL"] = place.admin
        place.done("franchise", "add", "north")
        place.done("franchise", "add", "south", "--timezone", "America/Chicago", "--start-month", "2024-01")
        yield place
    finally:
        server.release()


def login_of(place: Place, franchise: str) -> tuple[str, str]:
    parts = conninfo_to_dict(place.written("franchises.env")[f"{franchise.upper()}_ANALYTICS_DATABASE_URL"])
    return str(parts["user"]), str(parts["password"])


def test_roles_connect_to_their_own_database_only(place: Place) -> None:
    """Neither the owner nor the reader of a franchise can connect to another franchise's database."""
    for franchise, other in (("north", "south"), ("south", "north")):
        reader = place.written("grafana.env")[f"{franchise.upper()}_GRAFANA_READER_PASSWORD"]
        for login, password in (login_of(place, franchise), (f"grafana_reader_{franchise}", reader)):
            with place.connect(login, password, f"analytics_{franchise}") as connection:
                assert connection.execute("SELECT count(*) FROM analytics.monthly_metrics").fetchone() == (0,)
            with pytest.raises(psycopg.OperationalError, match="permission denied for database"):
                place.connect(login, password, f"analytics_{other}")


def test_an_owner_gets_at_no_other_role(place: Place) -> None:
    """An owner administers its reader, and can neither become nor change another franchise's roles."""
    with place.connect(*login_of(place, "north"), "analytics_north") as connection:
        for statement in (
            "SET ROLE analytics_owner_south",
            "SET ROLE grafana_reader_north",
            "GRANT grafana_reader_south TO analytics_owner_north",
            "ALTER ROLE grafana_reader_south PASSWORD 'y'",
            "ALTER ROLE analytics_owner_south PASSWORD 'y'",
            "GRANT CONNECT ON DATABASE analytics_south TO PUBLIC",
        ):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute(statement.encode())
        readers = connection.execute(
            "SELECT has_table_privilege('grafana_reader_north', 'raw.jobs', 'SELECT')"
        )
        assert readers.fetchone() == (False,)
    with psycopg.connect(place.admin) as connection:
        members = connection.execute(
            "SELECT pg_has_role('boss', 'analytics_owner_north', 'USAGE'), pg_has_role('boss', 'analytics_owner_north', 'SET')"
        ).fetchone()
    assert members == (False, False), "the administrator is left in no owner's place"


def test_passwords_are_in_private_files_only(place: Place) -> None:
    """Nothing prints a password, Grafana's file has no owner's, and only this user can read both files."""
    variables = place.written("franchises.env")
    secrets = [login_of(place, "north")[1], variables["NORTH_GRAFANA_READER_PASSWORD"]]
    printed = place.call("franchise", "add", "north")
    listed = place.call("franchise", "list")
    for text in (printed.stdout, printed.stderr, listed.stdout, listed.stderr):
        assert not any(secret in text for secret in secrets)
    assert set(place.written("grafana.env")) == {
        "NORTH_GRAFANA_READER_PASSWORD",
        "SOUTH_GRAFANA_READER_PASSWORD",
    }
    for path in (place.folder / "franchises").rglob("*"):
        if path.is_file() and any(secret in path.read_text() for secret in secrets):
            assert path.suffix == ".env" and path.stat().st_mode & 0o777 == 0o600, path


def test_repeating_it_changes_nothing(place: Place) -> None:
    """The same files and working passwords as before: it can be run in every deployment."""
    before = {path: path.read_bytes() for path in (place.folder / "franchises").rglob("*") if path.is_file()}
    place.done("franchise", "add", "north")
    assert {path: path.read_bytes() for path in before} == before
    place.connect(*login_of(place, "north"), "analytics_north").close()


def test_settings_read_what_was_written(place: Place) -> None:
    """Commands know the franchises afterwards, each with its own timezone, first month and landing folder."""
    assert place.done("franchise", "list", "--names").split() == ["north", "south"]
    listed = place.done("franchise", "list").splitlines()
    assert listed[0].split() == ["north", "America/New_York", "from", "2023-01", "ready"]
    assert listed[2].split() == ["south", "America/Chicago", "from", "2024-01", "ready"]
    assert (place.folder / "landing" / "south").is_dir()
    asked = "SELECT timezone, franchise FROM analytics.business"
    told = place.done("psql", "analytics", "--franchise", "south", "--", "-Atc", asked)
    assert told.strip() == "America/Chicago|south"


@pytest.mark.parametrize(
    ("arguments", "variables", "told"),
    [
        (["explain", "2024-10", "repairs"], {}, "which franchise?: add --franchise NAME, or set FRANCHISE: one of north, south"),
        (["status", "--franchise", "nroth"], {}, "there is no franchise nroth: FRANCHISES names north, south"),
        (["url", "analytics"], {}, "which franchise?"),
        (["demo", "--no-serve"], {}, "the demo is of one business: unset FRANCHISES"),
        (["migrate"], {"ANALYTICS_DATABASE_URL": "host=x"},
         "ANALYTICS_DATABASE_URL: franchises can't share a database: unset it, and set NORTH_ANALYTICS_DATABASE_URL and SOUTH_ANALYTICS_DATABASE_URL"),
        (["migrate"], {"NORTH_CRM_DATABASE_URL": "host=x"}, "NORTH_CRM_DATABASE_URL: all franchises have the same: set CRM_DATABASE_URL instead"),
        (["migrate", "analytics"], {"NORTH_START_MONTH": "May"}, "NORTH_START_MONTH: "),
        (["migrate", "analytics"], {"NORTH_BUSINESS_TIMEZONE": "Asia/Tokyo"},
         "this database's dates are in America/New_York, but NORTH_BUSINESS_TIMEZONE is Asia/Tokyo"),
        (["franchise", "add", "North"], {}, "'North' is not a franchise's name"),
        (["franchise", "add", "raw"], {}, "no franchise may be named raw"),
    ],
)  # fmt: skip
def test_wrong_combinations_are_one_sentence(
    place: Place, arguments: list[str], variables: dict[str, str], told: str
) -> None:
    """What can't be meant is refused before anything happens, with the variable's name and the remedy."""
    wrong = Place(place.folder, place.server, {**place.variables, **variables})
    assert told in wrong.refused(*arguments)


def test_another_franchises_address_is_refused(place: Place) -> None:
    """Commands look whose the database is; the remedy is in the sentence."""
    north = place.written("franchises.env")["NORTH_ANALYTICS_DATABASE_URL"]
    wrong = Place(place.folder, place.server, {**place.variables, "SOUTH_ANALYTICS_DATABASE_URL": north})
    for command in (["explain", "2024-10", "repairs"], ["migrate", "analytics"]):
        said = wrong.refused(*command, "--franchise", "south")
        assert "this database is franchise north's, but these settings are of franchise south" in said
    unnamed = Place(place.folder / "landing", place.server, {"ANALYTICS_DATABASE_URL": north})
    assert "franchise north's, but these settings are of no franchise" in unnamed.refused(
        "explain", "2024-10", "repairs"
    )


def test_a_role_that_is_there_already_keeps_its_password(place: Place, tmp_path: Path) -> None:
    """On another machine, without the files, nothing is changed: a new password would lock out what runs."""
    elsewhere = Place(tmp_path, place.server, place.variables)
    assert "analytics_owner_north exists, and its password is not known here" in elsewhere.refused(
        "franchise", "add", "north"
    )
    place.connect(*login_of(place, "north"), "analytics_north").close()


def test_grafana_has_a_data_source_for_each_and_dashboards_choose_one(place: Place) -> None:
    """Each data source reads as its franchise's role; what the dashboards ask goes to the chosen one."""
    folder = place.folder / "franchises" / "grafana"
    text = (folder / "provisioning" / "datasources" / "databases.yaml").read_text()
    sources = {source["name"]: source for source in yaml.safe_load(text)["datasources"]}
    assert list(sources) == ["Analytics north", "Analytics south", "CRM"]
    for name in ("north", "south"):
        source = sources[f"Analytics {name}"]
        assert source["user"] == f"grafana_reader_{name}"
        assert source["jsonData"]["database"] == f"analytics_{name}"
        assert source["secureJsonData"] == {"password": f"${name.upper()}_GRAFANA_READER_PASSWORD"}
    assert [source["isDefault"] for source in sources.values() if "isDefault" in source] == [True, False]
    committed = PROJECT_DIR / "grafana" / "dashboards"
    for path in committed.glob("*.json"):
        before, after = path.read_text(), (folder / "dashboards" / path.name).read_text()
        assert "crm-analytics-warehouse" not in after
        assert ('"name": "franchise"' in after) == ("crm-analytics-warehouse" in before)
        assert after.count('"uid": "${franchise}"') == before.count('"uid": "crm-analytics-warehouse"')
        assert after.count("/d/crm-analytics-explain?${franchise:queryparam}&") == before.count(
            "/d/crm-analytics-explain?"
        )


def test_compose_file_names_what_is_written(place: Place) -> None:
    """The Compose file for franchises changes services that there are, and names the files that are written."""
    main = yaml.safe_load((PROJECT_DIR / "docker-compose.yml").read_text())
    more = yaml.safe_load((PROJECT_DIR / "deploy" / "docker-compose.franchises.yml").read_text())
    assert set(more["services"]) == {"migrate", "code", "grafana"} <= set(main["services"])
    for service in more["services"].values():
        for file in service["env_file"]:
            assert (place.folder / file).is_file()
        for volume in service.get("volumes", []):
            assert (place.folder / volume.split(":")[0]).is_dir()
    # Grafana gets no owner's password, and the platform's code no database that franchises would share
    assert more["services"]["grafana"]["env_file"] == ["franchises/grafana.env"]
    for name in ("migrate", "code"):
        assert more["services"][name]["environment"] == {"ANALYTICS_DATABASE_URL": ""}


def test_on_the_embedded_server_it_needs_no_address(tmp_path: Path, server: EmbeddedPostgres) -> None:
    """Without a server of one's own, the database is made on the embedded one."""
    place = Place(tmp_path, server)
    state = {"CRM_ANALYTICS_HOME": os.environ["CRM_ANALYTICS_HOME"]}
    place.variables |= state
    name = f"f{os.getpid()}"
    place.done("franchise", "add", name)
    with psycopg.connect(server.url(f"analytics_{name}"), autocommit=True) as connection:
        assert connection.execute("SELECT franchise FROM analytics.business").fetchone() == (name,)
    assert Settings(franchise=name).database_name("analytics") == f"analytics_{name}"
