"""HTTP client of a scoring or sampling server: every wait is bounded, transient failures retry.

A refusal (4xx) is final and carries the server's error message. Redirects are not followed, the
API key is sent to the configured origin alone, answers are limited in size. Whether the content of
an answer is right is checked elsewhere (`opd.teachers.validate`).
"""

from __future__ import annotations

import json
import logging
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import httpx2
import stamina

from opd.errors import UserError
from opd.http.endpoint import Endpoint, check_url
from opd.http.text import clean, error_message, parse_json

logger = logging.getLogger(__name__)
Result = TypeVar("Result")
# Retries are logged below with their reason; stamina's own line carries none.
logging.getLogger("stamina").setLevel(logging.ERROR)

TRANSIENT_STATUS = (408, 425, 429)
MAX_RETRY_AFTER = 60.0
# A scoring request of a slow teacher takes a minute at most; a connection that hangs must end some
# time. Tried again after that, and teacher.patience says for how long.
ANSWER_SECONDS = 300.0


class Transient(Exception):
    """A failure that the next try may not meet: no connection, no answer in time, an overload.

    `retry_after` is the server's own request in seconds (Retry-After), if it made one.
    """

    def __init__(self, reason: str, retry_after: float | None = None) -> None:
        super().__init__(reason)
        self.retry_after = retry_after


class Refusal(UserError):
    """The server answered with a refusal: asking again would not change it."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class Timer(NamedTuple):
    """Clock and sleep, so that tests can bring their own."""

    now: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep


@dataclass(frozen=True)
class Limits:
    """Limits of one request, in seconds and bytes."""

    connect: float = 10.0
    answer: float = ANSWER_SECONDS  # one request, from first byte sent to last byte read
    attempts: int = 5
    wait_initial: float = 0.5
    wait_max: float = 20.0
    answer_bytes: int = 256 * 2**20


class _Request(NamedTuple):
    method: str
    path: str
    body: bytes = b""
    content_type: str = ""


def read_json(body: bytes) -> Any:
    """The body of an answer as JSON.

    Raises:
        Transient: it is not JSON; a cut connection or a proxy's page may be gone next time.
    """
    try:
        return parse_json(body)
    except ValueError as error:
        shown = clean(body[:80]) or "nothing"
        raise Transient(f"the answer is not JSON ({error}): {shown}") from None


class Http:
    """A client of one origin; safe to use from several threads."""

    def __init__(
        self,
        endpoint: Endpoint,
        *,
        limits: Limits = Limits(),
        timer: Timer = Timer(),  # noqa: B008 - an immutable default
        transport: httpx2.BaseTransport | None = None,
    ) -> None:
        """Make a client; nothing is sent yet.

        Args:
            endpoint: the server.
            limits: waits and sizes.
            timer: clock and sleep.
            transport: replaces the network, for tests.

        Raises:
            UserError: a URL that is not plain http(s), contains a password, or points to a
                metadata service.
        """
        self._api_key = endpoint.api_key
        self.url = check_url(endpoint.url, endpoint.key, with_api_key=self._api_key is not None)
        self.role, self.key, self.limits, self.timer = endpoint.role, endpoint.key, limits, timer
        self.bytes_out = self.bytes_in = self.requests = self.retries = 0
        self._captured = _Captured()
        headers = {"accept-encoding": "identity", "user-agent": "opd"}
        if self._api_key is not None:
            headers["authorization"] = f"Bearer {self._api_key}"
        self._client = httpx2.Client(
            headers=headers,
            follow_redirects=False,
            trust_env=False,  # no proxies or .netrc: the key is sent to the configured URL only
            transport=transport or httpx2.HTTPTransport(limits=httpx2.Limits(max_connections=None)),
        )

    @property
    def section(self) -> str:
        """Section of the configuration that names this server, such as "teacher"."""
        return self.key.rpartition(".")[0]

    def get_json(self, path: str, *, once: bool = False) -> Any:
        """GET JSON from a path below the base URL; see `post`. `once`: no retries."""
        return self._send(_Request("GET", path), read_json, once=once)

    def post_json(self, path: str, value: Any) -> Any:
        """POST JSON, read JSON; see `post`."""
        body = json.dumps(value, allow_nan=False, separators=(",", ":")).encode("ascii")
        return self.post(path, body, "application/json", read_json)

    def post_text(self, path: str, value: Any, *, once: bool = False) -> str:
        """POST JSON, read any text; see `post`. `once`: no retries."""
        body = json.dumps(value, allow_nan=False).encode("ascii")
        request = _Request("POST", path, body, "application/json")
        return self._send(request, _read_text, once=once)

    def post(
        self, path: str, body: bytes, content_type: str, read: Callable[[bytes], Result]
    ) -> Result:
        """POST, with retries of transient failures.

        Args:
            path: below the base URL.
            body: what to send.
            content_type: MIME type of `body`.
            read: parses the body of an answer; what it raises as Transient is retried.

        Raises:
            Transient: still failing after the last try, or after the deadline.
            Refusal: a 4xx or a redirect, with the server's error message.
        """
        return self._send(_Request("POST", path, body, content_type), read)

    @contextmanager
    def capture(self) -> Iterator[list[tuple[str, bytes, bytes]]]:
        """Record this thread's (path, sent, received) inside the block, API key removed."""
        exchanges: list[tuple[str, bytes, bytes]] = []
        self._captured.exchanges = exchanges
        try:
            yield exchanges
        finally:
            self._captured.exchanges = None

    def close(self) -> None:
        """Close all connections; requests under way in other threads fail."""
        self._client.close()

    def _send(
        self, request: _Request, read: Callable[[bytes], Result], *, once: bool = False
    ) -> Result:
        deadline = self.timer.now() + self.limits.answer * 2

        def should_retry(error: Exception) -> bool | float:
            if not isinstance(error, Transient):
                return False
            if self.timer.now() + (error.retry_after or 0.0) > deadline:
                return False
            self.retries += 1
            logger.info("%s: %s; trying again.", self.role, error)
            return True if error.retry_after is None else error.retry_after

        for attempt in stamina.retry_context(
            on=should_retry,
            attempts=1 if once else self.limits.attempts,
            timeout=None,
            wait_initial=self.limits.wait_initial,
            wait_max=self.limits.wait_max,
            wait_jitter=self.limits.wait_initial,
        ):
            with attempt:
                return read(self._send_once(request))
        raise AssertionError("retry_context ends by returning or raising")

    def _send_once(self, request: _Request) -> bytes:
        """The body of a 2xx answer."""
        wait = self.limits.answer
        deadline = self.timer.now() + wait
        timeout = httpx2.Timeout(connect=self.limits.connect, read=wait, write=wait, pool=wait)
        headers = {"content-type": request.content_type} if request.content_type else {}
        self.requests += 1
        self.bytes_out += len(request.body)
        try:
            with self._client.stream(
                request.method,
                self.url + request.path,
                content=request.body or None,
                headers=headers,
                timeout=timeout,
            ) as response:
                data = self._read_body(response, deadline)
        except httpx2.TimeoutException as error:
            raise Transient(
                f"no answer in time ({type(error).__name__}) from {request.path}"
            ) from None
        except (httpx2.UnsupportedProtocol, httpx2.LocalProtocolError) as error:
            raise Refusal(f"{self.key}={self.url}: {clean(str(error))}", 0) from None
        except httpx2.TransportError as error:
            reason = clean(str(error)) or type(error).__name__
            raise Transient(f"connection to {self.url} failed: {reason}") from None
        self._check_status(response, data, request.path)
        if self._captured.exchanges is not None:
            secret = self._api_key.encode() if self._api_key else None
            received = data.replace(secret, b"***") if secret else data
            self._captured.exchanges.append((request.path, request.body, received))
        return data

    def _read_body(self, response: httpx2.Response, deadline: float) -> bytes:
        """The raw body, within the limits of size and time."""
        encoding = response.headers.get("content-encoding", "identity").lower()
        if encoding != "identity":
            raise Refusal(
                f"{self.key}={self.url}: the answer is compressed ({clean(encoding)}), which was "
                "not asked for and could unpack to any size. Switch compression off at the server "
                "or its proxy.",
                response.status_code,
            )
        parts, size = [], 0
        for part in response.iter_raw():
            size += len(part)
            self.bytes_in += len(part)
            if size > self.limits.answer_bytes:
                raise Refusal(
                    f"{self.key}={self.url}: an answer of more than {self.limits.answer_bytes} "
                    "bytes. Lower loss.k or rollout.max_new_tokens.",
                    response.status_code,
                )
            if self.timer.now() > deadline:
                raise Transient(f"the answer was not complete after {self.limits.answer:g} s")
            parts.append(part)
        return b"".join(parts)

    def _check_status(self, response: httpx2.Response, data: bytes, path: str) -> None:
        status = response.status_code
        if 200 <= status < 300:
            return
        message = self._redact(error_message(data)) or "(no message)"
        failure = f"HTTP {status} from {path}: {message}"
        if status in TRANSIENT_STATUS or status >= 500:
            raise Transient(failure, _retry_after(response.headers.get("retry-after")))
        if 300 <= status < 400:
            location = self._redact(clean(response.headers.get("location", "nowhere")))
            raise Refusal(
                f"{self.key}={self.url} redirects to {location}. Redirects are not followed; set "
                f"{self.key} to the final address.",
                status,
            )
        fix = {
            401: f" Set {self.section}.api_key_env to the variable with the key.",
            403: f" Check the key in {self.section}.api_key_env.",
            404: f" Check {self.key} and {self.section}.model.",
        }.get(status, "")
        raise Refusal(f"The {self.role} at {self.url} refused: {failure}.{fix}", status)

    def _redact(self, text: str) -> str:
        return text.replace(self._api_key, "***") if self._api_key else text


class _Captured(threading.local):
    """Exchanges of each thread; None outside of `Http.capture`."""

    exchanges: list[tuple[str, bytes, bytes]] | None = None


def _read_text(body: bytes) -> str:
    return clean(body[:4000])


def _retry_after(value: str | None) -> float | None:
    """Seconds; a date or nonsense is ignored in favour of our own backoff."""
    if value is None or not re.fullmatch(r"\d{1,6}", value.strip()):
        return None
    return min(float(value), MAX_RETRY_AFTER)
