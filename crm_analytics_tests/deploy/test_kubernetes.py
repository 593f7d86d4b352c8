"""deploy/kubernetes/: its values against the Compose file, its instance against the one of a checkout."""

from __future__ import annotations

import re
import subprocess
import sys
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement

from crm_analytics.core.settings import PROJECT_DIR
from crm_analytics_tests.deploy.compose import SECRETS, services

FOLDER = PROJECT_DIR / "deploy" / "kubernetes"
README = (FOLDER / "README.md").read_text()
VALUES: dict[str, Any] = yaml.safe_load((FOLDER / "values.yaml").read_text())
COMPOSE = services(SECRETS)
(CODE,) = VALUES["dagster-user-deployments"]["deployments"]
(MIGRATE,) = VALUES["extraManifests"][0]["spec"]["template"]["spec"]["containers"]
ROLES: dict[str, dict[str, Any]] = {
    "webserver": VALUES["dagsterWebserver"],
    "daemon": VALUES["dagsterDaemon"],
    "code": CODE,
    "migrate": MIGRATE,
}


def secret_keys(name: str) -> set[str]:
    """Returns the keys of a Secret, as the page creates it."""
    (command,) = re.findall(rf"create secret generic {name}((?:[^\n]|\\\n)*)", README.replace("\\\n", " "))
    return set(re.findall(r"--from-literal=([\w-]+)=", command))


def variables(role: dict[str, Any]) -> dict[str, str | None]:
    """Returns a container's variables; those from Secrets have no value."""
    found: dict[str, str | None] = {entry["name"]: entry.get("value") for entry in role["env"]}
    names = [entry["name"] for entry in role.get("envSecrets", [])]
    names += [entry["secretRef"]["name"] for entry in role.get("envFrom", [])]
    return {**found, **{key: None for name in names for key in secret_keys(name)}}


def explained(role: str) -> set[str]:
    """Returns what the page's table names as in only one of the files for a role."""
    table = README.split("## What differs from Compose")[1]
    rows = [line.split("|")[1:3] for line in table.splitlines() if line.startswith("| `")]
    return {name for names, where in rows if role in where for name in re.findall(r"`([^`]+)`", names)}


@pytest.mark.parametrize("role", ROLES)
def test_variables_and_mounts_are_those_of_compose_or_explained(role: str) -> None:
    """A variable that only one of the two deployments sets would work in one of them only."""
    there, here = COMPOSE[role], variables(ROLES[role])
    mounts = {volume.split(":")[0 if volume[0].isalpha() else 1] for volume in there["volumes"]}
    assert not ROLES[role].get("volumeMounts"), "the page says that pods share nothing"
    assert explained(role) == (set(there["environment"]) ^ set(here)) | mounts


@pytest.mark.parametrize("role", ROLES)
def test_variables_have_the_values_of_compose(role: str) -> None:
    """Where both files set a variable, they set the same value, but for what every installation replaces."""
    examples = {"DAGSTER_URL"}
    there, here = COMPOSE[role]["environment"], variables(ROLES[role])
    both = {name for name in there if here.get(name) is not None} - examples
    assert {name: here[name] for name in both} == {name: there[name] for name in both}
    assert len(both) >= (6 if role in ("code", "migrate") else 0)
    assert here["DAGSTER_POSTGRES_URL"] is None, "from a Secret"


def test_no_value_has_a_password() -> None:
    """Not even by a reference that Kubernetes expands: the chart copies variables into what Dagster stores of each run."""
    text = (FOLDER / "values.yaml").read_text()
    assert not re.findall(r"\$\(|://[^/@ ]*:[^/@ ]*@|password: ", text)
    keys = set(re.findall(r"secretKeyRef: \{name: ([\w-]+), key: ([\w-]+)\}", text))
    assert keys == {
        ("crm-analytics-dagster", "DAGSTER_POSTGRES_URL"),
        ("crm-analytics-grafana", "GRAFANA_READER_PASSWORD"),
    }
    assert all(key in secret_keys(name) for name, key in keys)


def test_commands_are_those_of_compose() -> None:
    """The chart puts its commands together from these values."""
    begin = ["dagster", "api", "grpc", "-h", "0.0.0.0", "-p"]
    assert [*begin, str(CODE["port"]), *CODE["dagsterApiGrpcArgs"]] == COMPOSE["code"]["command"]
    assert MIGRATE["command"] == COMPOSE["migrate"]["command"]
    port = VALUES["dagsterWebserver"]["service"]["port"]
    assert COMPOSE["webserver"]["command"][:5] == ["dagster-webserver", "-h", "0.0.0.0", "-p", str(port)]
    assert COMPOSE["daemon"]["command"][:2] == ["dagster-daemon", "run"]


def test_probes_are_the_health_checks_of_compose() -> None:
    """A probe that differs from the health check would find another service healthy."""
    daemon, web = VALUES["dagsterDaemon"]["livenessProbe"], VALUES["dagsterWebserver"]["readinessProbe"]
    assert ["CMD", *daemon["exec"]["command"]] == COMPOSE["daemon"]["healthcheck"]["test"]
    assert web["httpGet"] == {"path": "/server_info", "port": VALUES["dagsterWebserver"]["service"]["port"]}
    assert CODE["readinessProbe"]["enabled"], "the chart's own: dagster api grpc-health-check"
    for probe, role in ((daemon, "daemon"), (web, "webserver"), (CODE["readinessProbe"], "code")):
        check = COMPOSE[role]["healthcheck"]
        assert [f"{probe['periodSeconds']}s", f"{probe['timeoutSeconds']}s", probe["failureThreshold"]] == [
            check["interval"],
            check["timeout"],
            check["retries"],
        ]


def test_containers_are_as_confined_as_in_compose() -> None:
    """No container has a capability, may gain privileges, or runs as root; all have the same pinned image."""
    for name, role in ROLES.items():
        assert COMPOSE[name]["cap_drop"] == role["securityContext"]["capabilities"]["drop"] == ["ALL"]
        assert COMPOSE[name]["security_opt"] == ["no-new-privileges:true"]
        assert role["securityContext"]["allowPrivilegeEscalation"] is False
    pods = [ROLES[name]["podSecurityContext"] for name in ("webserver", "daemon", "code")]
    pods.append(VALUES["extraManifests"][0]["spec"]["template"]["spec"]["securityContext"])
    (user,) = re.findall(r"useradd --uid (\d+)", (PROJECT_DIR / "Dockerfile").read_text())
    assert [(pod["runAsNonRoot"], pod["runAsUser"]) for pod in pods] == [(True, int(user))] * 4
    images = {
        f"{ROLES[name]['image']['repository']}:{ROLES[name]['image']['tag']}"
        for name in ("webserver", "daemon", "code")
    }
    assert images == {MIGRATE["image"]}
    assert VALUES["postgresql"]["image"]["tag"] == COMPOSE["postgres"]["image"].split(":")[1]


def test_the_instance_is_that_of_a_checkout_but_for_its_launcher_and_limits() -> None:
    """Storage, retention and monitoring are the same: a setting that is changed in one file is changed in both."""
    here, there = (yaml.safe_load((folder / "dagster.yaml").read_text()) for folder in (FOLDER, PROJECT_DIR))
    del there["code_servers"]  # of local processes
    del here["compute_logs"]
    assert here.keys() == there.keys()
    differ = {key for key in here if here[key] != there[key]}
    assert differ == {"run_launcher", "concurrency", "run_monitoring"}
    assert here["run_monitoring"].keys() == there["run_monitoring"].keys()
    assert here["concurrency"]["pools"].keys() == there["concurrency"]["pools"].keys()
    launcher, values = here["run_launcher"]["config"], VALUES["global"]
    name = values["fullnameOverride"]
    assert (
        launcher["service_account_name"] == values["serviceAccountName"] == VALUES["serviceAccount"]["name"]
    )
    assert launcher["instance_config_map"] == f"{name}-instance"
    assert launcher["postgres_password_secret"] == values["postgresqlSecretName"]
    assert "postgresql-password" in secret_keys(values["postgresqlSecretName"]), "the chart asks for it"
    home = {variables(ROLES[role])["DAGSTER_HOME"] for role in ("webserver", "daemon", "code")}
    assert home == {f"/app/{FOLDER.relative_to(PROJECT_DIR)}"}


def test_the_chart_is_of_the_release_that_the_image_has() -> None:
    """Chart, dagster and dagster-k8s are one release; SQLAlchemy stays below 2.1 in every image."""
    pinned = dict(
        line.split("==")
        for line in (PROJECT_DIR / "constraints.txt").read_text().splitlines()
        if "==" in line
    )
    assert set(re.findall(r"--version (\S+)", README)) == {pinned["dagster"]}
    assert pinned["dagster-k8s"] == pinned["dagster-postgres"]
    assert pinned["SQLAlchemy"] in Requirement("sqlalchemy>=2.0,<2.1").specifier


def test_without_the_extra_there_is_one_clear_sentence() -> None:
    """An image that was built without the extra says what is missing and how to get it."""
    script = (
        "import sys; sys.modules['dagster_k8s'] = None\n"
        "from dagster._core.instance.ref import InstanceRef\n"
        f"InstanceRef.from_dir({str(FOLDER)!r}).run_launcher"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    *_, last = done.stderr.strip().splitlines()
    assert last.startswith("ImportError: runs on Kubernetes need the extra k8s (")
    assert last.endswith("): pip install 'crm-analytics[k8s]'")
