"""Runs that the Kubernetes launcher starts, with the values of deploy/kubernetes/, in a stand-in for a cluster."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import psycopg
import pytest
import yaml
from dagster._core.instance.ref import InstanceRef
from dagster._core.test_utils import create_run_for_test
from dagster._core.workspace.context import WorkspaceProcessContext
from dagster._core.workspace.load_target import GrpcServerTarget
from dagster._daemon.monitoring.run_monitoring import execute_run_monitoring_iteration
from dagster._grpc.client import DagsterGrpcClient
from psycopg.conninfo import conninfo_to_dict

from crm_analytics.orchestration import launcher, worker_lease
from crm_analytics_tests.conftest import PATIENCE
from crm_analytics_tests.deploy.cluster import Cluster
from crm_analytics_tests.deploy.test_kubernetes import CODE, FOLDER, VALUES
from crm_analytics_tests.ports import free_port, listens

NAMESPACE = "crm-analytics"
CODE_SERVER = "code-server"


class Deployment:
    """The location's deployment, and the daemon's view of it."""

    def __init__(self, cluster: Cluster, workspace: WorkspaceProcessContext, url: str) -> None:
        self.cluster, self.workspace, self.url = cluster, workspace, url

    def launch(self, job_name: str) -> tuple[str, str]:
        """Launches a job as the daemon does; returns the ids of the run and of its Job."""
        context = self.workspace.create_request_context()
        location = context.get_code_location(CODE["name"])
        (repository,) = location.get_repositories().values()
        job = repository.get_full_job(job_name)
        plan = location.get_execution_plan(job, {}, step_keys_to_execute=None, known_state=None)
        instance = self.workspace.instance
        run = create_run_for_test(
            instance, job_name=job_name, remote_job_origin=job.get_remote_origin(),
            job_code_origin=job.get_python_origin(), job_snapshot=job.job_snapshot,
            execution_plan_snapshot=plan.execution_plan_snapshot,
        )  # fmt: skip
        before = set(self.cluster.jobs)
        instance.launch_run(run.run_id, context)
        (started,) = set(self.cluster.jobs) - before
        return run.run_id, started

    def wait(
        self, run_id: str, status: dg.DagsterRunStatus, pod: str, *, monitored: bool = False
    ) -> dg.DagsterRun:
        deadline = time.monotonic() + PATIENCE
        while True:
            if monitored:
                assert not any(execute_run_monitoring_iteration(self.workspace, logging.getLogger("daemon")))
            run = self.workspace.instance.get_run_by_id(run_id)
            assert run is not None
            if run.status == status:
                return run
            assert time.monotonic() < deadline and not run.is_finished, (
                f"{run.status}: {self.cluster.log(pod)}"
            )
            time.sleep(0.2)


@pytest.fixture
def deployment(
    new_database: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Deployment]:
    """The code server's container, run with the chart's arguments and variables, and the daemon's instance."""
    url, dagster = new_database("analytics"), new_database("dagster")
    parts = conninfo_to_dict(dagster)
    secrets = {
        "crm-analytics-code": {"ANALYTICS_DATABASE_URL": url, "CRM_DATABASE_URL": new_database("crm")},
        "crm-analytics-dagster": {
            "DAGSTER_POSTGRES_URL": dagster,
            "postgresql-password": str(parts["password"]),
        },
    }
    (tmp_path / "landing").mkdir()
    replaced = {
        "DAGSTER_HOME": str(FOLDER),
        "LANDING_URL": "",
    }
    env = [{**e, "value": replaced[e["name"]]} if e["name"] in replaced else e for e in CODE["env"]]
    env += [{"name": "LANDING_DIR", "value": str(tmp_path / "landing")}]
    env += [{"name": "CRM_ANALYTICS_HOME", "value": str(tmp_path / "state")}]
    # what the chart passes on to the runs of a location
    context = {
        "k8s": {
            "env": env,
            "env_secrets": [secret["name"] for secret in CODE["envSecrets"]],
            "image_pull_policy": CODE["image"]["pullPolicy"],
            "namespace": NAMESPACE,
            "resources": CODE["resources"],
            "run_k8s_config": {"pod_spec_config": {"security_context": CODE["podSecurityContext"]}},
            "service_account_name": VALUES["global"]["serviceAccountName"],
        }
    }
    password = {"name": "DAGSTER_PG_PASSWORD", "valueFrom": {"secretKeyRef": {"name": VALUES["global"]["postgresqlSecretName"], "key": "postgresql-password"}}}  # fmt: skip
    port = free_port()
    cluster = Cluster(tmp_path, secrets)
    container = {
        "args": ["dagster", "api", "grpc", "-h", "127.0.0.1", "-p", str(port), *CODE["dagsterApiGrpcArgs"]],
        "env": [
            {"name": "DAGSTER_CURRENT_IMAGE", "value": f"{CODE['image']['repository']}:{CODE['image']['tag']}"},
            password,
            {"name": "DAGSTER_CLI_API_GRPC_CONTAINER_CONTEXT", "value": json.dumps(context)},
            *env,
        ],
        "envFrom": [{"secretRef": secret} for secret in CODE["envSecrets"]],
    }  # fmt: skip
    monkeypatch.setenv("DAGSTER_POSTGRES_URL", dagster)
    monkeypatch.setenv("DAGSTER_K8S_PIPELINE_RUN_NAMESPACE", NAMESPACE)
    settings = yaml.safe_load((FOLDER / "dagster.yaml").read_text())["run_launcher"]
    settings["config"] |= {"load_incluster_config": False, "kubeconfig_file": str(cluster.kubeconfig)}
    ref = InstanceRef.from_dir(str(tmp_path), config_dir=str(FOLDER), overrides={"run_launcher": settings})
    try:
        cluster.run(CODE_SERVER, container)
        client, deadline = DagsterGrpcClient(port=port), time.monotonic() + PATIENCE
        while not listens(port) or client.health_check_query() != "SERVING":
            assert time.monotonic() < deadline, cluster.log(CODE_SERVER)
            time.sleep(0.5)
        target = GrpcServerTarget(host="127.0.0.1", port=port, socket=None, location_name=CODE["name"])
        with (
            dg.DagsterInstance.from_ref(ref) as instance,
            WorkspaceProcessContext(instance, target) as workspace,
        ):
            yield Deployment(cluster, workspace, url)
    finally:
        cluster.close()


def assert_that_a_run_without_a_pod_lives(instance: dg.DagsterInstance) -> None:
    """A command typed in a pod has no Job; Dagster's own launcher would fail its run at the first look."""
    seen: list[Any] = []

    @dg.asset
    def table() -> None:
        run = instance.get_run_by_id(dg.AssetExecutionContext.get().run_id)
        assert run is not None
        seen.append(instance.run_launcher.check_run_worker_health(run).status.value)

    assert dg.materialize([table], instance=instance).success
    assert seen == ["RUNNING"]


def test_runs_are_pods_that_may_die(deployment: Deployment, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run's pod has its location's image, variables, Secrets and resources; only a run whose process is gone fails."""
    assert_that_a_run_without_a_pod_lives(deployment.workspace.instance)
    run, pod = deployment.launch("check_history")
    deployment.wait(run, dg.DagsterRunStatus.SUCCESS, pod)
    assert deployment.cluster.pods[pod].wait(PATIENCE) == 0
    job = deployment.cluster.jobs[pod]
    spec = job["spec"]["template"]["spec"]
    (container,) = spec["containers"]
    assert container["image"] == f"{CODE['image']['repository']}:{CODE['image']['tag']}"
    assert container["resources"] == CODE["resources"]
    assert container["securityContext"] == CODE["securityContext"]
    assert spec["securityContext"] == CODE["podSecurityContext"]
    assert (spec["restartPolicy"], job["spec"]["backoffLimit"]) == ("Never", 0), (
        "nothing repeats it but the sensors"
    )
    assert spec["serviceAccountName"] == VALUES["serviceAccount"]["name"]
    text = json.dumps(job)
    assert not [
        value for keys in deployment.cluster.secrets.values() for value in keys.values() if value in text
    ]

    monkeypatch.setattr(worker_lease, "LAPSE", worker_lease.RENEWAL + 2)
    monkeypatch.setattr(launcher, "PATIENCE", 0)
    with psycopg.connect(deployment.url) as connection:
        connection.execute("LOCK TABLE analytics.daily_metrics IN ACCESS EXCLUSIVE MODE")
        run, pod = deployment.launch("check_history")
        deployment.wait(run, dg.DagsterRunStatus.STARTED, pod)
        assert not any(execute_run_monitoring_iteration(deployment.workspace, logging.getLogger("daemon")))
        deployment.cluster.kill(pod)
        deployment.wait(run, dg.DagsterRunStatus.FAILURE, pod, monitored=True)
