"""The calls of the Kubernetes API that a launcher makes, on this machine: a Job's container becomes a process.

It knows Secrets, and treats config maps as empty. Volumes are not mounted.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import yaml

from crm_analytics.core.settings import PROJECT_DIR

Secrets = dict[str, dict[str, str]]


def environment(container: dict[str, Any], secrets: Secrets) -> dict[str, str]:
    """Returns a container's variables as Kubernetes makes them: `env` wins over `envFrom` and expands `$(NAME)`."""
    found: dict[str, str] = {}
    for source in container.get("envFrom", []):
        if "secretRef" in source:
            found |= secrets[source["secretRef"]["name"]]
    for entry in container.get("env", []):
        value = entry.get("value", "")
        if "valueFrom" in entry:
            key = entry["valueFrom"]["secretKeyRef"]
            value = secrets[key["name"]][key["key"]]
        found[entry["name"]] = re.sub(r"\$\((\w+)\)", lambda name: found.get(name[1], name[0]), value)
    return found


class Cluster:
    """A cluster of one node; `folder` gets the output of the pods, and the file with which clients find the API."""

    def __init__(self, folder: Path, secrets: Secrets) -> None:
        self.folder, self.secrets = folder, secrets
        self.jobs: dict[str, dict[str, Any]] = {}
        self.pods: dict[str, subprocess.Popen[bytes]] = {}
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.kubeconfig = folder / "kubeconfig"
        address = f"http://127.0.0.1:{self._server.server_port}"
        self.kubeconfig.write_text(
            yaml.safe_dump(
                {
                    "apiVersion": "v1",
                    "kind": "Config",
                    "current-context": "here",
                    "clusters": [{"name": "here", "cluster": {"server": address}}],
                    "contexts": [{"name": "here", "context": {"cluster": "here", "user": "me"}}],
                    "users": [{"name": "me", "user": {}}],
                }
            )
        )

    def run(self, name: str, container: dict[str, Any]) -> None:
        """Starts a container's process."""
        system = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "HOME": str(self.folder)}
        with (self.folder / f"{name}.log").open("wb") as log:
            self.pods[name] = subprocess.Popen(
                container["args"], env={**system, **environment(container, self.secrets)}, cwd=PROJECT_DIR,
                stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip

    def kill(self, name: str) -> None:
        """Ends a pod without a word, as a node does that is short of memory."""
        with suppress(ProcessLookupError):
            os.killpg(self.pods[name].pid, signal.SIGKILL)
        self.pods[name].wait()

    def log(self, name: str) -> str:
        """Returns the end of a pod's output."""
        return (self.folder / f"{name}.log").read_text(errors="replace")[-3000:]

    def close(self) -> None:
        """Ends everything."""
        for name in self.pods:
            self.kill(name)
        self._server.shutdown()
        self._server.server_close()

    def _handler(cluster: Cluster) -> type[BaseHTTPRequestHandler]:
        class Api(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                job = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                name = job["metadata"]["name"]
                cluster.jobs[name] = job
                cluster.run(name, job["spec"]["template"]["spec"]["containers"][0])
                self._answer(201, job)

            def do_GET(self) -> None:
                path = self.path.split("?")[0]
                if path.endswith(("/pods", "/events")):
                    self._answer(200, {"apiVersion": "v1", "kind": "List", "items": []})
                else:
                    job = cluster.jobs.get(path.removesuffix("/status").rpartition("/")[2])
                    self._answer(200 if job else 404, job or {})

            def _answer(self, status: int, body: dict[str, Any]) -> None:
                content = json.dumps(body).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: Any) -> None:
                """Says nothing."""

        return Api
