"""Serves the Dagster UI and daemon as a child process."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
from rich.console import Console

from crm_analytics.cli.databases import require_storage
from crm_analytics.core.database import resolved
from crm_analytics.core.settings import PROJECT_DIR, Settings

PATIENCE = 30  #: seconds that runs have to end after an interrupt
FAREWELL = 10  #: seconds that interrupted runs have to say so, and Dagster's processes to stop


def why_not_free(host: str, port: int) -> str | None:
    """Returns why nothing can listen on the port; None if it is free."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        socket.create_server((host, port), family=family).close()
    except OSError as error:
        return error.strerror or str(error)
    return None


def serve(config: Settings, host: str, port: int, console: Console) -> int:
    """Runs the Dagster UI and daemon until interrupted or terminated; returns their exit code."""
    require_storage(config)
    prefix = config.dagster_webserver_path_prefix
    console.print(f"Dagster UI: http://{host}:{port}{prefix} (in about ten seconds; Ctrl+C stops it)")
    # a run has dozens of events, and the UI shows them: the terminal is for messages
    level = config.run_log_level or "INFO"
    changes: dict[str, str] = {"run_log_level": level}
    if "dagster_url" not in config.model_fields_set:
        changes["dagster_url"] = f"http://localhost:{port}{prefix}"
    # the UI reads DAGSTER_WEBSERVER_PATH_PREFIX itself: `dagster dev` has no option for it
    environment = resolved(config).model_copy(update=changes).environment()
    # children must not inherit an ignored interrupt
    signal.signal(signal.SIGINT, signal.default_int_handler)
    command = [str(Path(sys.executable).parent / "dagster"), "dev", "--workspace", "workspace.yaml"]
    command += ["--host", host, "--port", str(port), "--log-level", "warning"]
    process = subprocess.Popen(
        command,
        cwd=PROJECT_DIR,
        env={
            **environment,
            "DAGSTER_HOME": str(PROJECT_DIR),
            # the UI makes folders for telemetry in DAGSTER_HOME otherwise, although dagster.yaml switches it off
            "DAGSTER_DISABLE_TELEMETRY": "yes",
            # `dagster dev` warns that another tool's command supersedes it
            "PYTHONWARNINGS": "ignore",
        },
        # an interrupt from the terminal reaches it once, through us
        start_new_session=True,
    )
    interrupted: list[float] = []

    def stop(*_: object) -> None:
        if not interrupted:
            console.print(f"stopping: runs have {PATIENCE} seconds to end (Ctrl+C again ends them now)")
            process.send_signal(signal.SIGINT)
        interrupted.append(time.monotonic())

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    watcher = _end_group_after_us(process.pid)
    served: set[int] = set()
    while process.poll() is None:
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=1)
        if not interrupted:
            _replace_dead_code_server(process.pid, served)
        elif len(interrupted) > 1 or time.monotonic() - interrupted[0] > PATIENCE:
            break
    code = process.poll()
    _end_group(process)
    watcher.kill()
    watcher.wait()
    if interrupted and code is None:
        console.print("stopped; if runs were interrupted, the next start does their work again")
    return process.wait() if code is None else code


def _replace_dead_code_server(dagster: int, served: set[int]) -> None:
    """Ends the proxy of a code server that has died: `dagster dev` starts a dead proxy again, but never looks behind it.

    Args:
        dagster: the process id of `dagster dev`.
        served: the proxies that had a code server when they were last looked at.
    """
    with suppress(psutil.Error):
        for proxy in psutil.Process(dagster).children():
            if "code-server" not in _words(proxy):
                continue
            if any("grpc" in _words(server) for server in proxy.children()):
                served.add(proxy.pid)
            elif proxy.pid in served:
                proxy.kill()


def _words(process: psutil.Process) -> list[str]:
    """Returns the words of the process's command; none for one that has ended."""
    with suppress(psutil.Error):
        return process.cmdline()
    return []


def _end_group_after_us(group: int) -> subprocess.Popen[bytes]:
    """Starts a watcher that ends Dagster if this process is killed: otherwise it would run on and keep the port.

    The watcher waits for the end of a pipe that this process alone can write to.
    """
    script = f"read -r _; kill -s TERM -- -{group}; sleep {FAREWELL}; kill -s KILL -- -{group}"
    return subprocess.Popen(
        ["sh", "-c", script], stdin=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True
    )


def _end_group(leader: subprocess.Popen[bytes]) -> None:
    """Ends whatever Dagster started and left behind; runs have time to store that they were interrupted."""
    with suppress(ProcessLookupError):
        os.killpg(leader.pid, signal.SIGTERM)
        deadline = time.monotonic() + FAREWELL
        while time.monotonic() < deadline:
            leader.poll()
            os.killpg(leader.pid, 0)
            time.sleep(0.1)
        os.killpg(leader.pid, signal.SIGKILL)
