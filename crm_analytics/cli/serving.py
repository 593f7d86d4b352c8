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

from rich.console import Console

from crm_analytics.cli.databases import require_storage
from crm_analytics.core.database import resolved
from crm_analytics.core.settings import PROJECT_DIR, Settings

PATIENCE = 30  # seconds that Dagster's processes have to stop by themselves


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
        interrupted.append(time.monotonic())
        process.send_signal(signal.SIGINT)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    code: int | None = None
    while code is None:
        try:
            code = process.wait(timeout=1)
        except subprocess.TimeoutExpired:
            if interrupted and time.monotonic() - interrupted[0] > PATIENCE:
                break
    # ends whatever it started and left behind; Dagster marks a run that this cuts off as failed
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    return process.wait() if code is None else code
