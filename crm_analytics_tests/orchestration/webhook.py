"""A local server in place of the webhook that alerts go to."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any


class Webhook:
    """A local HTTP server that keeps what it accepts, and answers with `status` or with what `judge` returns for a body.

    An answer leads a client that follows redirects to a page that answers 200; `followed` counts them.
    """

    def __init__(self) -> None:
        self.received: list[dict[str, Any]] = []
        self.followed = 0
        self.status = 200
        self.judge: Callable[[dict[str, Any]], int] = lambda body: self.status
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                assert self.headers["Content-Type"] == "application/json"
                status = outer.judge(body)
                if status == 200:
                    outer.received.append(body)
                self.send_response(status)
                self.send_header("Location", "/elsewhere")
                self.end_headers()

            def do_GET(self) -> None:
                outer.followed += 1
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/services/T0/secret-part"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def texts(self) -> list[str]:
        return [block["text"]["text"] for body in self.received for block in body["blocks"]]
