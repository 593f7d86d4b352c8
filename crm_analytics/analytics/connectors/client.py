"""The HTTP client of all connectors: pace, further attempts, redaction of secrets, and refusal of what isn't an answer.

Every error is raised outside of the handler that caught its cause, so that no chain of exceptions leads to a text of
`requests`, which would quote the address with its token.
"""

from __future__ import annotations

import json
import logging
import random
import re
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import quote, quote_plus

import requests
import tenacity

from crm_analytics.analytics.connectors.errors import ConnectorError, TransientError

#: Attempts at one request. The waits between them add up to some two minutes.
ATTEMPTS = 7
FIRST_WAIT, LONGEST_WAIT = 2.0, 60.0  #: seconds, doubled each time
#: Seconds. A service that asks for more is asked again by a later pull.
LONGEST_RETRY_AFTER = 120.0
CONNECT_TIMEOUT, READ_TIMEOUT = 10.0, 60.0  #: seconds; the second one without a byte
LONGEST_ANSWER = 300.0  #: seconds
LARGEST_ANSWER = 64 * 2**20  #: bytes
REDACTED = "[secret]"
#: Loggers that write addresses.
_TALKATIVE = ("urllib3.connectionpool", "urllib3.util.retry", "urllib3.connection", "requests")


@dataclass(frozen=True)
class Clock:
    """Time as connectors know it; tests put a faster one in its place."""

    sleep: Callable[[float], None] = time.sleep
    #: Seconds that only grow.
    monotonic: Callable[[], float] = time.monotonic
    #: UTC.
    now: Callable[[], datetime] = lambda: datetime.now(UTC)


class _Redaction(logging.Filter):
    """Takes secrets out of log records, also in the forms that they have in an address."""

    def __init__(self) -> None:
        super().__init__()
        self._forms: set[str] = set()

    def hide(self, secrets: Iterable[str]) -> None:
        """Adds secrets for as long as the process lives."""
        for secret in filter(None, secrets):
            self._forms |= {secret, quote(secret), quote(secret, safe=""), quote_plus(secret)}
        for name in _TALKATIVE:
            logging.getLogger(name).addFilter(self)

    def clean(self, text: str) -> str:
        """Returns a text without secrets, the longest first: one may be part of another."""
        for form in sorted(self._forms, key=len, reverse=True):
            text = text.replace(form, REDACTED)
        return text

    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = self.clean(record.getMessage()), None
        return True


_redaction = _Redaction()


def redact(text: str) -> str:
    """Returns a text without the secrets of any client of this process."""
    return _redaction.clean(text)


class Client:
    """Sends requests to one service, one at a time."""

    def __init__(
        self,
        service: str,
        address: str,
        *,
        secrets: Iterable[str],
        pace: float,
        denied: str,
        clock: Clock,
        headers: Mapping[str, str] | None = None,
        authorize: Callable[[requests.PreparedRequest], requests.PreparedRequest] | None = None,
    ) -> None:
        """Makes a client.

        Args:
            service: its name in messages.
            address: the address before every path; may have secrets.
            secrets: texts that no message and no log may have.
            pace: seconds from the beginning of one request to that of the next, at least.
            denied: the sentence for an answer 401 or 403, naming the variable.
            clock: of all waiting.
            headers: of every request.
            authorize: adds what changes from request to request, such as a token that is renewed.
        """
        self.service = service
        self._address = address.rstrip("/")
        self._pace, self._denied, self._clock = pace, denied, clock
        self._next_at = clock.monotonic()
        self._session = requests.Session()
        self._session.headers.update({"Accept": "application/json", **(headers or {})})
        # without one, requests would take a login from ~/.netrc and replace our own header
        self._session.auth = authorize or (lambda request: request)
        self.hide(*secrets)

    def hide(self, *secrets: str) -> None:
        """Keeps further secrets out of all messages and logs, such as a token that was just fetched."""
        _redaction.hide(secrets)

    def get(self, path: str, parameters: Mapping[str, Any] | None = None) -> Any:
        """Returns the JSON of an answer to GET, its decimal numbers exact; None for an empty answer (204).

        Args:
            path: after the client's address; a whole address (such as that of a next page) must begin with it.
            parameters: of the query.

        Raises:
            ConnectorError: if the service refuses, or answers with something else than JSON of its own.
            TransientError: if it still does so after all attempts, or cannot be reached.
        """
        return self.send("GET", path, params=parameters)

    def post(self, path: str, body: Any) -> Any:
        """Returns the JSON of an answer to POST with a JSON body; otherwise as `get`."""
        return self.send("POST", path, json=body)

    def send(self, method: str, path: str, **options: Any) -> Any:
        """Sends a request, again and again while that may help; otherwise as `get`."""
        address = self._whole(path)

        def wait(state: tenacity.RetryCallState) -> float:
            error = state.outcome.exception() if state.outcome else None
            asked = error.retry_after if isinstance(error, _Again) else None
            if asked is not None:
                return asked
            doubled = FIRST_WAIT * 2.0 ** (state.attempt_number - 1)
            return min(LONGEST_WAIT, doubled) + random.uniform(0, FIRST_WAIT)  # noqa: S311

        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(_Again),
            stop=tenacity.stop_after_attempt(ATTEMPTS),
            wait=wait,
            sleep=self._clock.sleep,
            reraise=True,
        )
        failure: str
        try:
            return retrying(self._once, method, address, options)
        except _Again as error:
            failure = str(error)
        raise TransientError(
            f"{failure}, {ATTEMPTS} times; nothing was written, and the next pull tries again"
        )

    def _whole(self, path: str) -> str:
        if re.match(r"https?://", path):
            if not path.startswith(f"{self._address}/"):
                raise ConnectorError(
                    f"{self.service} names a next page that is not its own; nothing was written"
                )
            return path
        return f"{self._address}/{path.lstrip('/')}"

    def _once(self, method: str, address: str, options: dict[str, Any]) -> Any:
        """Sends a request once. Raises _Again where another attempt may help."""
        delay = self._next_at - self._clock.monotonic()
        if delay > 0:
            self._clock.sleep(delay)
        self._next_at = self._clock.monotonic() + self._pace
        failure: Exception | None = None
        try:
            with self._session.request(
                method,
                address,
                timeout=(CONNECT_TIMEOUT, READ_TIMEOUT),
                stream=True,
                # a redirect would take the credentials elsewhere
                allow_redirects=False,
                **options,
            ) as response:
                body = self._read(response)
        except requests.RequestException as error:
            failure = self._explained(error)
        if failure is not None:
            raise failure
        return self._judged(response, body)

    def _read(self, response: requests.Response) -> bytes:
        until = self._clock.monotonic() + LONGEST_ANSWER
        body = bytearray()
        for part in response.iter_content(2**16):
            body += part
            if len(body) > LARGEST_ANSWER:
                raise ConnectorError(
                    f"{self.service} sends more than {LARGEST_ANSWER // 2**20} MB in one answer; nothing was written"
                )
            if self._clock.monotonic() > until:
                raise _Again(f"{self.service} was not done after {LONGEST_ANSWER:g} seconds")
        return bytes(body)

    def _explained(self, error: requests.RequestException) -> Exception:
        """Returns the error as ours, without any text that may have the address."""
        if isinstance(error, requests.exceptions.SSLError):
            return ConnectorError(
                f"{self.service}: its certificate is not accepted; check the address, the clock of this machine, and a"
                " proxy in between"
            )
        if isinstance(
            error,
            requests.exceptions.InvalidURL
            | requests.exceptions.InvalidSchema
            | requests.exceptions.MissingSchema,
        ):
            return ConnectorError(f"{self.service}: its address is not one; accepted: https://…")
        if isinstance(error, requests.Timeout):
            return _Again(f"{self.service} does not answer in time")
        if isinstance(
            error, requests.exceptions.ChunkedEncodingError | requests.exceptions.ContentDecodingError
        ):
            return _Again(f"{self.service}: the connection was cut in the middle of an answer")
        return _Again(f"{self.service} cannot be reached ({_root(error)})")

    def _judged(self, response: requests.Response, body: bytes) -> Any:
        """Returns the JSON of a complete answer, or raises why it isn't one."""
        status = response.status_code
        if status == 204:
            return None
        if status == 429 or status >= 500:
            retry_after = self._retry_after(response)
            if retry_after is not None and retry_after > LONGEST_RETRY_AFTER:
                raise TransientError(
                    f"{self.service} asks to wait {retry_after:,.0f} seconds; nothing was written, and a later pull tries"
                    " again"
                )
            busy = "too many requests" if status == 429 else "its own error"
            raise _Again(f"{self.service} answers {status}, {busy}", retry_after)
        if status in (401, 403):
            raise ConnectorError(f"{self._denied} ({self.service} answers {status}); nothing was written")
        if status != 200:
            raise ConnectorError(
                f"{self.service} answers {status}{self._told(body)}; accepted: 200. Nothing was written"
            )
        try:
            return json.loads(body.decode("utf-8-sig"), parse_float=Decimal, parse_constant=_no_constant)
        except ValueError:
            pass
        if body.lstrip()[:1] == b"<":
            # a page of a firewall or a maintenance, which may be gone soon
            raise _Again(f"{self.service} answers with a web page{_title(body)} instead of data")
        raise _Again(f"{self.service} sends JSON that is cut off or damaged")

    def _retry_after(self, response: requests.Response) -> float | None:
        """Returns the seconds that the service asks to wait, which it says as a number or as a date."""
        told = response.headers.get("Retry-After", "").strip()
        if not told:
            return None
        if re.fullmatch(r"\d{1,9}", told):
            return float(told)
        try:
            moment = parsedate_to_datetime(told)
        except ValueError:
            return None
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=UTC)
        return max(0.0, (moment - self._clock.now()).total_seconds())

    def _told(self, body: bytes) -> str:
        """Returns the service's own words, if it says any in a field that is meant for them."""
        try:
            answer = json.loads(body)
        except ValueError:
            return _title(body)
        return words_of(answer)


class _Again(Exception):
    """A request that failed, but may succeed when it is sent again; `retry_after` in seconds, if the service says."""

    def __init__(self, text: str, retry_after: float | None = None) -> None:
        super().__init__(text)
        self.retry_after = retry_after


def words_of(answer: Any) -> str:
    """Returns what an answer says about an error, in parentheses, cut and without secrets; nothing if it says nothing."""
    if not isinstance(answer, Mapping):
        return ""
    for name in ("message", "msg", "error", "description", "details"):
        told = answer.get(name)
        if isinstance(told, Mapping):
            return words_of(told)
        if isinstance(told, str) and told.strip():
            return f" ({redact(' '.join(told.split()))[:200]})"
    return ""


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _title(body: bytes) -> str:
    found = re.search(rb"<title[^>]*>([^<]{1,100})", body, re.IGNORECASE)
    return f" ({redact(' '.join(found[1].decode('utf-8', 'replace').split()))})" if found else ""


def _root(error: BaseException) -> str:
    """Returns the operating system's words at the root of an error, or else its kind: never an address."""
    seen: BaseException | None = error
    root = error
    while seen is not None:
        root = seen
        inner = [
            value for value in (*seen.args, getattr(seen, "reason", None)) if isinstance(value, BaseException)
        ]
        seen = inner[0] if inner else seen.__cause__ or seen.__context__
    words = getattr(root, "strerror", None)
    return str(words) if words else type(root).__name__
