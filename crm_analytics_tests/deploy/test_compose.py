"""The compose file itself, and its services started, used, stopped and started again on this machine."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
import urllib.request
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
import yaml
from psycopg.conninfo import make_conninfo

from crm_analytics.core.settings import PROJECT_DIR
from crm_analytics.dashboards.queries import query
from crm_analytics.dashboards.tools.expand_macros import expand
from crm_analytics_tests.conftest import PATIENCE
from crm_analytics_tests.deploy.compose import (
    COMPOSE_FILE,
    SECRETS,
    LocalStack,
    assert_readers_cannot_write_or_lock,
    build_image,
    init_databases,
    services,
    start_order,
    start_postgres,
)

# -- the file -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def raw() -> dict[str, Any]:
    return dict(yaml.safe_load(COMPOSE_FILE.read_text()))


def test_compose_specification_allows_the_file(tmp_path):
    """The file follows the Compose specification: Compose would refuse an unknown key."""

    def problems(file: Path) -> str:
        command = [
            sys.executable,
            "-m",
            "check_jsonschema",
            "--builtin-schema",
            "vendor.compose-spec",
            str(file),
        ]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout

    assert problems(COMPOSE_FILE) == "ok -- validation done\n"
    misspelt = tmp_path / "compose.yml"
    misspelt.write_text(COMPOSE_FILE.read_text().replace("stop_grace_period: 5m", "stop_grace_time: 5m"))
    assert "$.services.code: Unevaluated properties are not allowed ('stop_grace_time'" in problems(misspelt)


def test_no_secret_has_a_default(raw):
    """A missing secret stops `up` and names the remedy; a default password would protect nothing."""
    for name in SECRETS:
        others = {key: value for key, value in SECRETS.items() if key != name}
        with pytest.raises(ValueError, match=f"{name}: run deploy/make-env.sh"):
            services(others)
    services(SECRETS)
    example = dict(line.split("=", 1) for line in (PROJECT_DIR / ".env.example").read_text().splitlines() if "=" in line and line[0] != "#")  # fmt: skip
    assert {name for name, value in example.items() if not value} == {
        *SECRETS,
        "ALERT_WEBHOOK_URL",
        "CRM_APP_MEMBERS",
        "CRM_EXPECTED_LOGINS",
        "DAGSTER_URL",
        "DAGSTER_WEBSERVER_PATH_PREFIX",
        "LAKE_CATALOG_URL",
        "LAKE_URL",
        "WORKIZ_TOKEN",
    }
    used = set(re.findall(r"\$\{(\w+)", COMPOSE_FILE.read_text()))
    assert used == set(example), "the example must name every variable, and no other"


def test_make_env_writes_random_passwords_once(tmp_path):
    """make-env.sh writes random secrets, and never overwrites those of a running installation."""
    (tmp_path / "deploy").mkdir()
    for name in ("deploy/make-env.sh", ".env.example"):
        (tmp_path / name).write_bytes((PROJECT_DIR / name).read_bytes())
    for expected in (0, 1):
        assert (
            subprocess.run(
                ["sh", tmp_path / "deploy/make-env.sh"], capture_output=True, umask=0o027
            ).returncode
            == expected
        )
    text = (tmp_path / ".env").read_text()
    values = dict(line.split("=", 1) for line in text.splitlines() if "=" in line and line[0] != "#")
    passwords = [values[name] for name in SECRETS]
    assert all(re.fullmatch(r"[0-9a-f]{48}", password) for password in passwords)
    assert len(set(passwords)) == len(passwords)
    assert (tmp_path / ".env").stat().st_mode & 0o077 == 0
    assert (tmp_path / "landing").stat().st_mode & 0o005 == 0o005, "the container's user must see the exports"
    services(values)


def test_start_order_health_checks_and_pinned_images(raw):
    """Services start after what they need, and images are pinned: a new one could break a running system."""
    found = services(SECRETS)
    order = start_order(found)
    assert order.index("postgres") < order.index("migrate") < order.index("code")
    assert order.index("code") < min(order.index("webserver"), order.index("daemon"))
    conditions = {
        (name, needed): how["condition"]
        for name, service in found.items()
        for needed, how in service.get("depends_on", {}).items()
    }
    assert conditions == {
        ("migrate", "postgres"): "service_healthy",
        ("code", "migrate"): "service_completed_successfully",
        ("grafana", "migrate"): "service_completed_successfully",
        ("webserver", "code"): "service_healthy",
        ("daemon", "code"): "service_healthy",
    }
    for name, service in found.items():
        if "build" in service:
            assert service["image"] == "crm-analytics:local", f"{name}: the checkout is the version"
        else:
            assert re.fullmatch(r"[\w/-]+:\d+\.\d+\.?\d*[\w.-]*", service["image"]), (
                f"{name}: pin the version"
            )
        assert name == "migrate" or {"test", "interval", "retries"} <= set(service["healthcheck"])
        for port in service.get("ports", []):
            assert port.startswith("127.0.0.1:"), f"{name}: no port may face the network without a login"
    assert found["migrate"]["restart"] == "no"
    version = re.fullmatch(r"grafana/grafana:(\d+)\.(\d+)\.\d+", found["grafana"]["image"])
    assert version and (int(version[1]), int(version[2])) in ((12, 4), (13, 1))
    assert found["grafana"]["environment"]["GF_PLUGINS_PREINSTALL_AUTO_UPDATE"] == "false"


def test_grafana_encrypts_with_a_key_of_this_installation():
    """Grafana encrypts the data source's password with a key of this installation, not with its public default."""
    environment = services(SECRETS)["grafana"]["environment"]
    assert environment["GF_SECURITY_SECRET_KEY"] == SECRETS["GRAFANA_SECRET_KEY"]


def test_logs_of_every_service_are_limited():
    """Every service's log is limited: Docker's default grows until the disk is full and the databases stop."""
    for name, service in services(SECRETS).items():
        assert {"max-size", "max-file"} <= set(service["logging"]["options"]), name


def test_volumes_contain_what_must_survive(raw):
    """Volumes are mounted where the data is: postgres:18 keeps it below /var/lib/postgresql."""
    found = services(SECRETS)
    assert "postgres-data:/var/lib/postgresql" in found["postgres"]["volumes"]
    assert "grafana-data:/var/lib/grafana" in found["grafana"]["volumes"]
    named = {volume.split(":")[0] for service in found.values() for volume in service.get("volumes", [])
             if not volume.startswith((".", "/"))}  # fmt: skip
    assert named == set(raw["volumes"])
    for service in found.values():
        for volume in service.get("volumes", []):
            if volume.startswith("./") and not volume.startswith("./landing"):
                assert (PROJECT_DIR / volume.split(":")[0]).exists(), volume


def test_landing_folder_goes_to_the_code_server(raw):
    """Only the code server gets the landing folder, because runs execute there."""
    found = services(SECRETS)
    for name, service in found.items():
        has_landing = any(":/landing" in volume for volume in service.get("volumes", []))
        assert has_landing == (name == "code")
    assert "./landing:/landing" in found["code"]["volumes"], "connectors add files"


def test_secrets_of_services_go_to_the_code_server_only():
    """Pulls run in the code server, so no other service has the tokens."""
    found = services({**SECRETS, "WORKIZ_TOKEN": "t0ken"})
    assert [name for name, service in found.items() if "t0ken" in json.dumps(service)] == ["code"]


def test_grafana_and_the_ui_have_no_owner_password():
    """Grafana and the UI processes have no owner's password, so a stolen container can't change the numbers."""
    found = services(SECRETS)
    for name in ("grafana", "webserver", "daemon"):
        text = json.dumps(found[name].get("environment", {}))
        assert SECRETS["ANALYTICS_DB_PASSWORD"] not in text
        assert SECRETS["CRM_DB_PASSWORD"] not in text
        assert SECRETS["POSTGRES_PASSWORD"] not in text


def test_image_has_no_secrets_and_runs_without_root(tmp_path):
    """The image contains no secrets, which every registry would get, and doesn't run as root."""
    build_image(tmp_path / "app")
    names = {
        str(path.relative_to(tmp_path / "app")) for path in (tmp_path / "app").rglob("*") if path.is_file()
    }
    assert {
        "dagster.yaml",
        "deploy/workspace.yaml",
        "crm_analytics/definitions.py",
        "sql/analytics/0001_raw.sql",
    } <= names
    assert not [name for name in names if ".env" in name or "landing/" in name or name.endswith(".pyc")]
    lines = (PROJECT_DIR / "Dockerfile").read_text().splitlines()
    assert [line for line in lines if line.startswith("USER")] == ["USER app"]
    assert re.fullmatch(
        r"FROM python:3\.\d+\.\d+-[\w-]+", next(line for line in lines if line.startswith("FROM"))
    )


# -- the processes -------------------------------------------------------------------------------------------------


def _jobs_shown(port: int, sources: list[str], month: date) -> int:
    """Counts the jobs that the panel Month to month by source shows for the month."""
    url = f"postgresql://grafana_reader:{SECRETS['GRAFANA_READER_PASSWORD']}@127.0.0.1:{port}/analytics"
    first = datetime(month.year, month.month, 1, tzinfo=UTC)
    text = expand(
        query("month_to_month_by_source"), first, first + timedelta(27),
        {"source": sources, "segment": ["COD", "INS", "OTHER"]},
    )  # fmt: skip
    with psycopg.connect(url) as connection:
        cursor = connection.execute(text.encode())
        names = [column.name for column in cursor.description or ()]
        rows = [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]
    return sum(
        int(row["jobs"]) for row in rows if row["source"] == "Total" and row["month"] == f"{first:%Y-%m}"
    )


def _drop_file(folder: Path, name: str, jobs: list[tuple[str, str]], day: date) -> None:
    """Puts an export into the landing volume, old enough to count as completely written."""
    path = folder / "landing" / "jobs" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = ["UUID,Job #,Job Type,Created,Status,Source,Total"]
    lines += [f"{uuid},,COD Service,{day:%a %b %d %Y},Done,{source},100" for uuid, source in jobs]
    path.write_text("\n".join(lines) + "\n")
    old = time.time() - 60
    os.utime(path, (old, old))


def _until(condition: Any, timeout: float, stack: LocalStack) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, f"{stack.log('daemon')}\n{stack.log('code')}"
        time.sleep(0.5)


def test_services_start_load_a_file_stop_and_start_again(folder):
    """`docker compose up` is all it takes from empty volumes to a number in a panel, and data survives a restart."""
    month = datetime.now(UTC).date().replace(day=1) - timedelta(1)  # a closed month
    # under a path, as behind a reverse proxy: the health check and the links follow it
    environment = {
        **SECRETS,
        "START_MONTH": f"{month:%Y-%m}",
        "DAGSTER_WEBSERVER_PATH_PREFIX": "/dagster",
    }
    postgres = start_postgres(folder, SECRETS)
    port = int(psycopg.conninfo.conninfo_to_dict(postgres.url("x"))["port"] or 0)
    stack = LocalStack(folder, environment, port)
    day = month.replace(day=10)
    try:
        init_databases(postgres, SECRETS)
        assert start_order(stack.services)[:2] == ["postgres", "migrate"]
        stack.run("migrate")
        assert_readers_cannot_write_or_lock(postgres.url("postgres"), SECRETS["GRAFANA_READER_PASSWORD"])
        with psycopg.connect(postgres.url("analytics")) as connection:
            (link,) = connection.execute("SELECT dagster_url FROM reporting.deployment").fetchall()
        assert link == ("http://localhost:3000/dagster",)
        stack.start("code")
        stack.wait_until_healthy("code")
        stack.start("webserver")
        stack.start("daemon")
        assert _jobs_shown(port, ["Google", "Rely"], month) == 0
        _drop_file(folder, "jobs_1.csv", [("A1", "Google"), ("A2", "Google"), ("A3", "Rely")], day)
        stack.wait_until_healthy("webserver")
        _until(lambda: _jobs_shown(port, ["Google", "Rely"], month) == 3, PATIENCE, stack)
        stack.wait_until_healthy("daemon")
        asked = json.dumps({"query": "{ runsOrError { ... on Runs { results { status } } } }"}).encode()
        request = urllib.request.Request(
            f"http://127.0.0.1:{stack.ports['3000']}/dagster/graphql",
            asked,
            {"Content-Type": "application/json"},
        )
        runs = json.load(urllib.request.urlopen(request))["data"]["runsOrError"]["results"]
        assert runs, "the UI must show the runs that the daemon launched"
        for name in reversed([name for name in start_order(stack.services) if name in stack.running]):
            stack.stop(name)
        postgres.release()
        assert not postgres.running()

        postgres = start_postgres(folder, SECRETS)
        stack.run("migrate")
        assert _jobs_shown(port, ["Google", "Rely"], month) == 3
        stack.start("code")
        stack.wait_until_healthy("code")
        with pytest.raises(psycopg.OperationalError):
            psycopg.connect(make_conninfo(postgres.url("analytics"), user="crm_owner", password=SECRETS["CRM_DB_PASSWORD"]))  # fmt: skip
        stack.stop("code")
    finally:
        stack.kill_all()
        postgres.release()
