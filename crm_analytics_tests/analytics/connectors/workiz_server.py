"""Plays Workiz's API: a list of jobs, in each of the ways in which the service has been seen to answer."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from pytest_httpserver import HTTPServer
from werkzeug import Request, Response

TOKEN = "api_k3y with/odd+signs"


def job(number: int, **fields: Any) -> dict[str, Any]:
    """Returns a job as the service tells it: booked in May for July, every third one in July itself."""
    created = f"2024-0{7 if number % 3 == 0 else 5}-01 08:00:00"
    return {
        "UUID": f"J{number:05}",
        "SerialId": number,
        "CreatedDate": created,
        "JobDateTime": f"2024-07-{number % 28 + 1:02} 10:00:00",
        "JobType": "COD Service",
        "JobSource": "Google",
        "Status": "Done",
        "Tags": ["a", "b"],
        "Comments": "",
        "LastStatusUpdate": None,
        **fields,
    }


@dataclass
class Workiz:
    """The service: what it has, and how it behaves."""

    jobs: list[dict[str, Any]]
    #: What `offset` counts.
    counts: str = "records"
    #: `has_more`, `found`, `bare` (an array) or `parts` (an array of {flag, data}).
    envelope: str = "has_more"
    #: The most records that it gives, whatever it is asked for.
    cap: int = 100
    #: Answers before those of the list, one for each request; None lets a request through.
    instead: list[Response | None] = field(default_factory=list)
    #: Called with the number of the request (from 1) before it is answered, e.g. to move rows.
    before: Callable[[int], None] = lambda number: None
    #: The query of each request.
    asked: list[dict[str, str]] = field(default_factory=list)
    token: str = TOKEN
    #: The status of an answer to another token.
    denial: int = 403
    url: str = ""

    def answer(self, request: Request) -> Response:
        """Answers a request."""
        self.asked.append(dict(request.args))
        self.before(len(self.asked))
        if self.instead and (response := self.instead.pop(0)) is not None:
            return response
        if not request.path.startswith(f"/{self.token}/"):
            return Response('{"error":true,"msg":"no"}', self.denial, content_type="application/json")
        size = min(int(request.args["records"]), self.cap)
        offset = int(request.args["offset"]) * (size if self.counts == "pages" else 1)
        page = self.jobs[offset : offset + size]
        if not page and self.envelope != "found":
            return Response(status=204)
        return Response(json.dumps(self._wrapped(page, offset + size)), content_type="application/json")

    def _wrapped(self, page: list[dict[str, Any]], end: int) -> Any:
        if self.envelope == "bare":
            return page
        if self.envelope == "parts":
            return [{"flag": True, "data": record} for record in page]
        found = {"found": len(self.jobs)} if self.envelope == "found" else {}
        return {"flag": True, "has_more": end < len(self.jobs), **found, "data": page}


@contextmanager
def serving(jobs: list[dict[str, Any]], **behavior: Any) -> Iterator[Workiz]:
    """Serves Workiz on this machine."""
    workiz = Workiz(jobs, **behavior)
    server = HTTPServer(host="127.0.0.1", port=0, threaded=True)
    server.expect_request(re.compile(".*")).respond_with_handler(workiz.answer)
    server.start()
    try:
        workiz.url = f"http://127.0.0.1:{server.port}"
        yield workiz
    finally:
        server.clear()
        server.stop()
