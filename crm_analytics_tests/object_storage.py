"""A real server with the API of S3 for tests, a prefix of its bucket for each test, and a proxy that makes faults."""

from __future__ import annotations

import http.client
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import urlsplit

import obstore
from obstore.store import S3Store

from crm_analytics.analytics.ingest.storage.bucket import Bucket
from crm_analytics_tests.conftest import PATIENCE
from crm_analytics_tests.ports import free_port

BUCKET, KEY, SECRET = "landing", "test-key", "test-secret"
_IDENTITIES = (
    '{"identities": [{"name": "tests", "credentials": [{"accessKey": "%s", "secretKey": "%s"}],'
    ' "actions": ["Admin", "Read", "Write", "List"]}]}'
)


@contextmanager
def serve(folder: Path) -> Iterator[str]:
    """Runs SeaweedFS with its data in a folder; gives its endpoint once it answers."""
    folder.mkdir(parents=True, exist_ok=True)
    identities = folder / "identities.json"
    identities.write_text(_IDENTITIES % (KEY, SECRET))
    roles = ("master", "volume", "filer", "s3")
    ports = {role + kind: free_port() for role in roles for kind in (".port", ".port.grpc")}
    command = [
        str(Path(sys.executable).parent / "weed"), "server", "-ip=127.0.0.1", f"-dir={folder}", "-filer", "-s3",
        f"-s3.config={identities}", "-s3.iam=false", "-s3.port.iceberg=0", "-s3.port.lance=0", "-master.telemetry=false",
        "-master.volumeSizeLimitMB=64", "-volume.max=50",
        *(f"-{name}={port}" for name, port in ports.items()),
    ]  # fmt: skip
    with (folder / "log").open("wb") as log:
        # the shell ends the server when this process is gone, however it ended; to end in peace takes it half a minute
        process = subprocess.Popen(
            ["sh", "-c", 'exec 3<&0; "$@" & server=$!; (read -r _ <&3; kill -s KILL $server) & wait $server', "sh", *command],
            stdin=subprocess.PIPE, stdout=log, stderr=log,
        )  # fmt: skip
        try:
            endpoint = f"http://127.0.0.1:{ports['s3.port']}"
            _wait_for(endpoint, process)
            yield endpoint
        finally:
            assert process.stdin is not None
            process.stdin.close()
            process.wait()


def _wait_for(endpoint: str, process: subprocess.Popen[bytes]) -> None:
    """Waits until the server takes an object, which makes the bucket."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline and process.poll() is None:
        with suppress(obstore.exceptions.BaseError):
            obstore.put(_store(endpoint, "", 0), "ready", b"")
            return
        time.sleep(0.1)
    raise AssertionError("the object storage doesn't start")


def _store(endpoint: str, prefix: str, most_retries: int = 10) -> S3Store:
    return S3Store(
        BUCKET,
        prefix=prefix or None,
        config={
            "access_key_id": KEY,
            "secret_access_key": SECRET,
            "endpoint": endpoint,
            "region": "us-east-1",
        },
        client_options={"allow_http": True},
        retry_config={"max_retries": most_retries},
    )


@dataclass
class Prefix:
    """A prefix of the bucket: a landing folder for one test, which is empty before."""

    endpoint: str
    prefix: str

    @property
    def url(self) -> str:
        return f"s3://{BUCKET}/{self.prefix}"

    @property
    def access(self) -> dict[str, str]:
        """What the settings have of it."""
        return {
            "aws_access_key_id": KEY,
            "aws_secret_access_key": SECRET,
            "aws_region": "us-east-1",
            "aws_endpoint_url": self.endpoint,
        }

    @property
    def variables(self) -> dict[str, str]:
        """The environment in which it is the landing folder."""
        return {"LANDING_URL": self.url, **{name.upper(): value for name, value in self.access.items()}}

    @property
    def store(self) -> S3Store:
        """Writes and deletes objects."""
        return _store(self.endpoint, self.prefix)

    def landing(self, *, through: str = "", patience: float = 15, **access: str) -> Bucket:
        """Returns it as a landing folder: through a proxy, or with other credentials."""
        endpoint = {"aws_endpoint_url": through} if through else {}
        return Bucket(self.url, {**self.access, **endpoint, **access}, patience)

    def write(self, name: str, content: str | bytes) -> None:
        """Writes an object."""
        obstore.put(self.store, name, content.encode() if isinstance(content, str) else content)

    def delete(self, name: str) -> None:
        """Deletes an object."""
        obstore.delete(self.store, name)


# -- faults ----------------------------------------------------------------------------------------------------------


@dataclass
class Request:
    """A request on its way to the server."""

    method: str
    path: str

    @property
    def is_listing(self) -> bool:
        return "list-type=2" in self.path


#: Gets the answer's status and body, and returns what the client gets: None cuts the connection in the middle of it.
Fault = Callable[[int, bytes], tuple[int, bytes] | None]


def busy(status: int, body: bytes) -> tuple[int, bytes]:
    """Answers as a server that has too much to do."""
    return 503, b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"


def cut(status: int, body: bytes) -> None:
    """Ends in the middle."""


def late(seconds: float) -> Fault:
    """Answers so many seconds later."""

    def wait(status: int, body: bytes) -> tuple[int, bytes]:
        time.sleep(seconds)
        return status, body

    return wait


@dataclass
class Proxy:
    """Stands between client and server, notes the requests, and does to answers what `fault` says."""

    endpoint: str
    #: Returns what is done to the answer to a request; None leaves it alone.
    fault: Callable[[Request], Fault | None] = lambda request: None
    requests: list[Request] = field(default_factory=list)
    url: str = ""

    def count(self, method: str, listings: bool = False) -> int:
        """Returns how many requests there were."""
        return sum(r.method == method and r.is_listing == listings for r in self.requests)


@contextmanager
def proxy(endpoint: str) -> Iterator[Proxy]:
    """Runs a proxy before the server."""
    found = Proxy(endpoint)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self) -> None:
            request = Request(self.command, self.path)
            found.requests.append(request)
            fault = found.fault(request)
            server = http.client.HTTPConnection(urlsplit(found.endpoint).netloc)
            # with the host that was signed
            server.request(self.command, self.path, headers=dict(self.headers.items()))
            answer = server.getresponse()
            status, body = answer.status, answer.read()
            length = answer.headers.get("Content-Length") if self.command == "HEAD" else None
            server.close()
            changed = (status, body) if fault is None else fault(status, body)
            status, whole = changed or (status, body)
            self.send_response(status)
            for name, value in answer.headers.items():
                if name.lower() not in (
                    "content-length",
                    "transfer-encoding",
                    "connection",
                    "date",
                    "server",
                ):
                    self.send_header(name, value)
            self.send_header("Content-Length", length or str(len(whole)))
            self.end_headers()
            with suppress(ConnectionError):
                self.wfile.write(whole if changed else whole[: len(whole) // 2])
            self.close_connection = self.close_connection or not changed

        do_GET = do_HEAD = answer

        def log_message(self, format: str, *arguments: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        found.url = f"http://127.0.0.1:{server.server_port}"
        Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield found
        finally:
            server.shutdown()
