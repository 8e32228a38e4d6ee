"""HTTP to a scoring or generating server: every wait ends, and only the transient is tried again.

A refusal (4xx) is final and carries the server's own words. Redirects are not followed, the key
goes to the configured origin alone, answers are capped in size. What an answer says is judged
elsewhere (`opd.teachers.validate`).
"""

from __future__ import annotations

import ipaddress
import json
import logging
import os
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

logger = logging.getLogger(__name__)
Result = TypeVar("Result")
# Retries are told in our own words below; stamina's own line carries no reason.
logging.getLogger("stamina").setLevel(logging.ERROR)

TRANSIENT_STATUS = (408, 425, 429)
MAX_RETRY_AFTER = 60.0
METADATA_HOSTS = ("metadata.google.internal", "metadata.goog", "instance-data")
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2066-\u2069]+")


class Transient(Exception):
    """A failure that the next try may not meet: no connection, no answer in time, an overload.

    `after` is the server's own wish in seconds (Retry-After), if it had one.
    """

    def __init__(self, why: str, after: float | None = None) -> None:
        super().__init__(why)
        self.after = after


class Refusal(UserError):
    """The server answered, and the answer is no: asking again would not change it."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class Timer(NamedTuple):
    """Where time comes from, so that tests can bring their own."""

    now: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep


@dataclass(frozen=True)
class Limits:
    """How long and how much. Seconds and bytes."""

    connect: float = 10.0
    answer: float = 300.0  # one request, from first byte sent to last byte read
    attempts: int = 5
    wait_initial: float = 0.5
    wait_max: float = 20.0
    answer_bytes: int = 256 * 2**20


class Answer(NamedTuple):
    """A 2xx answer."""

    body: bytes
    content_type: str


def read_json(answer: Answer) -> Any:
    """The body as JSON.

    Raises:
        Transient: it is none; a cut connection or a proxy's page may be gone next time.
    """
    try:
        return parse_json(answer.body)
    except ValueError as error:
        shown = clean(answer.body[:80]) or "nothing"
        raise Transient(f"the answer is not JSON ({error}): {shown}") from None


def parse_json(data: bytes) -> Any:
    """JSON in UTF-8, without NaN and Infinity.

    Raises:
        ValueError: it is none, or nested too deeply.
    """
    try:
        return json.loads(data.decode("utf-8"), parse_constant=_no_constant)
    except RecursionError as error:
        raise ValueError(str(error)) from None


class Http:
    """A client of one origin; safe to use from several threads."""

    def __init__(
        self,
        url: str,
        *,
        who: str,
        key: str,
        api_key: str | None = None,
        limits: Limits = Limits(),
        timer: Timer = Timer(),  # noqa: B008 - an immutable default
        transport: httpx2.BaseTransport | None = None,
    ) -> None:
        """Make a client.

        Args:
            url: base of all paths.
            who: what to call the other side in messages, such as "teacher".
            key: configuration key of the URL, named in messages.
            api_key: sent as a bearer token, to this origin only.
            limits: waits and sizes.
            timer: clock and sleep.
            transport: how bytes travel; None is the network.

        Raises:
            UserError: a URL that is not plain http(s), carries a password, or points to a metadata
                service.
        """
        self.url = check_url(url, key, with_key=api_key is not None)
        self.who, self.key, self.limits, self.timer = who, key, limits, timer
        self.bytes_out = self.bytes_in = self.requests = self.retries = 0
        self._secret = api_key
        self._heard = _Heard()
        headers = {"accept-encoding": "identity", "user-agent": "opd"}
        if api_key is not None:
            headers["authorization"] = f"Bearer {api_key}"
        self._client = httpx2.Client(
            headers=headers,
            follow_redirects=False,
            trust_env=False,  # no proxies or .netrc: the key goes where the file says, or nowhere
            transport=transport or httpx2.HTTPTransport(limits=httpx2.Limits(max_connections=None)),
        )

    def get_json(self, path: str, *, once: bool = False) -> Any:
        """GET JSON from a path below the base URL; see `post`. `once`: no second try."""
        return self._send("GET", path, b"", "", read_json, once)

    def post_json(self, path: str, value: Any) -> Any:
        """POST JSON, read JSON; see `post`."""
        body = json.dumps(value, allow_nan=False, separators=(",", ":")).encode("ascii")
        return self._send("POST", path, body, "application/json", read_json, False)

    def post_text(self, path: str, value: Any) -> str:
        """POST JSON, read whatever text comes; see `post`."""
        body = json.dumps(value, allow_nan=False).encode("ascii")
        return self._send("POST", path, body, "application/json", _text, False)

    def post(
        self, path: str, body: bytes, content_type: str, read: Callable[[Answer], Result]
    ) -> Result:
        """POST, with retries for the transient.

        Args:
            path: below the base URL.
            body: what to send.
            content_type: what it is.
            read: turns an answer into a value; what it raises as Transient is tried again.

        Raises:
            Transient: still failing after the last try, or after the deadline.
            Refusal: a 4xx or a redirect, with the server's own words.
        """
        return self._send("POST", path, body, content_type, read, False)

    @contextmanager
    def overhear(self) -> Iterator[list[tuple[str, bytes, bytes]]]:
        """Collect this thread's (path, sent, received) meanwhile, without the key."""
        log: list[tuple[str, bytes, bytes]] = []
        self._heard.log = log
        try:
            yield log
        finally:
            self._heard.log = None

    def close(self) -> None:
        """Drop all connections; requests under way in other threads fail."""
        self._client.close()

    def _send(
        self,
        method: str,
        path: str,
        body: bytes,
        content_type: str,
        read: Callable[[Answer], Result],
        once: bool,
    ) -> Result:
        deadline = self.timer.now() + self.limits.answer * 2

        def again(error: Exception) -> bool | float:
            if not isinstance(error, Transient):
                return False
            if self.timer.now() + (error.after or 0.0) > deadline:
                return False
            self.retries += 1
            logger.info("%s: %s; trying again.", self.who, error)
            return True if error.after is None else error.after

        for attempt in stamina.retry_context(
            on=again,
            attempts=1 if once else self.limits.attempts,
            timeout=None,
            wait_initial=self.limits.wait_initial,
            wait_max=self.limits.wait_max,
            wait_jitter=self.limits.wait_initial,
        ):
            with attempt:
                return read(self._once(method, path, body, content_type))
        raise AssertionError("retry_context ends by returning or raising")

    def _once(self, method: str, path: str, body: bytes, content_type: str) -> Answer:
        deadline = self.timer.now() + self.limits.answer
        wait = self.limits.answer
        timeout = httpx2.Timeout(connect=self.limits.connect, read=wait, write=wait, pool=wait)
        headers = {"content-type": content_type} if content_type else {}
        self.requests += 1
        self.bytes_out += len(body)
        try:
            with self._client.stream(
                method, self.url + path, content=body or None, headers=headers, timeout=timeout
            ) as response:
                data = self._read(response, deadline)
        except httpx2.TimeoutException as error:
            raise Transient(f"no answer in time ({type(error).__name__}) from {path}") from None
        except (httpx2.UnsupportedProtocol, httpx2.LocalProtocolError) as error:
            raise Refusal(f"{self.key}={self.url}: {clean(str(error))}", 0) from None
        except httpx2.TransportError as error:
            said = clean(str(error)) or type(error).__name__
            raise Transient(f"connection to {self.url} failed: {said}") from None
        answer = self._judge(response, data, path)
        if self._heard.log is not None:
            secret = self._secret.encode() if self._secret else None
            self._heard.log.append((path, body, data.replace(secret, b"***") if secret else data))
        return answer

    def _read(self, response: httpx2.Response, deadline: float) -> bytes:
        """The raw body, cut off at size and time."""
        encoding = response.headers.get("content-encoding", "identity").lower()
        if encoding != "identity":
            raise Refusal(
                f"{self.key}={self.url}: the answer is compressed ({clean(encoding)}), which was "
                "not asked for and could unpack to any size. Switch compression off at the server "
                "or the proxy before it.",
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
                raise Transient(f"the answer was still coming after {self.limits.answer:g} s")
            parts.append(part)
        return b"".join(parts)

    def _judge(self, response: httpx2.Response, data: bytes, path: str) -> Answer:
        status = response.status_code
        if 200 <= status < 300:
            return Answer(data, response.headers.get("content-type", ""))
        said = f"HTTP {status} from {path}: {self._words(data)}"
        if status in TRANSIENT_STATUS or status >= 500:
            raise Transient(said, _retry_after(response.headers.get("retry-after")))
        if 300 <= status < 400:
            place = self._hide(clean(response.headers.get("location", "nowhere")))
            raise Refusal(
                f"{self.key}={self.url} redirects to {place}. Redirects are not followed; write "
                f"the final address into {self.key}.",
                status,
            )
        fix = {
            401: f" Set {self.key.rpartition('.')[0]}.api_key_env to the variable with the key.",
            403: f" Check the key in {self.key.rpartition('.')[0]}.api_key_env.",
            404: f" Check {self.key} and {self.key.rpartition('.')[0]}.model.",
        }.get(status, "")
        raise Refusal(f"The {self.who} at {self.url} refused: {said}.{fix}", status)

    def _words(self, data: bytes) -> str:
        """The server's own words, made safe to print."""
        text = data[:4000].decode("utf-8", "replace")
        try:
            value = json.loads(text)
            error = value.get("error", value) if isinstance(value, dict) else value
            text = str(error.get("message", error)) if isinstance(error, dict) else str(error)
        except (ValueError, RecursionError):
            text = re.sub(r"<[^>]{0,200}>", " ", text)
        return self._hide(clean(text)[:500]) or "(no words)"

    def _hide(self, text: str) -> str:
        return text.replace(self._secret, "***") if self._secret else text


class _Heard(threading.local):
    """What each thread overhears; None when nobody wants to know."""

    log: list[tuple[str, bytes, bytes]] | None = None


def _text(answer: Answer) -> str:
    return clean(answer.body[:4000])


def clean(text: str | bytes) -> str:
    """Foreign text for a message: no control or direction-changing characters, one line."""
    if isinstance(text, bytes):
        text = text.decode("utf-8", "replace")
    return " ".join(_UNPRINTABLE.sub(" ", text).split())


def check_url(url: str, key: str, *, with_key: bool = False) -> str:
    """`url` without its last slash.

    Raises:
        UserError: not http(s), a password or query inside, or a link-local or metadata address.
    """
    try:
        parsed = httpx2.URL(url)
    except httpx2.InvalidURL as error:
        raise UserError(
            f"{key} is no URL: {error}. Give one like http://127.0.0.1:8000/v1."
        ) from None
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise UserError(
            f"{key}={clean(url)}: only http:// and https:// addresses, such as "
            "http://127.0.0.1:8000/v1."
        )
    if parsed.userinfo or parsed.query or parsed.fragment:
        raise UserError(
            f"{key}: a URL with a name, password, query or fragment inside is refused, because it "
            f"would end up in logs. Put the key into an environment variable and name it in "
            f"{key.rpartition('.')[0]}.api_key_env."
        )
    host = parsed.host.lower().rstrip(".")
    address = _address(host)
    if host in METADATA_HOSTS or (address is not None and _is_local_link(address)):
        raise UserError(
            f"{key}={clean(url)}: link-local and metadata addresses are refused; they hold the "
            "credentials of cloud machines. Use the server's ordinary address."
        )
    loopback = host == "localhost" or (address is not None and address.is_loopback)
    if with_key and parsed.scheme == "http" and not loopback:
        logger.warning("%s: the key travels unencrypted to %s. Use https.", key, host)
    return url.rstrip("/")


def read_key(variable: str | None, key: str) -> str | None:
    """The secret in an environment variable.

    Raises:
        UserError: the variable is not set, or holds what cannot be a key.
    """
    if variable is None:
        return None
    value = os.environ.get(variable, "")
    if not value or not value.isascii() or not value.isprintable():
        raise UserError(
            f"{key}={variable}: this environment variable is "
            f"{'empty or not set' if not value else 'not a key'}. export {variable}=..."
        )
    return value


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host.strip("[]").partition("%")[0])
    except ValueError:
        return None


def _is_local_link(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    address = mapped or address
    return address.is_link_local or str(address) == "fd00:ec2::254"


def _retry_after(value: str | None) -> float | None:
    """Seconds; a date or nonsense is ignored in favour of our own backoff."""
    if value is None or not re.fullmatch(r"\d{1,6}", value.strip()):
        return None
    return min(float(value), MAX_RETRY_AFTER)


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not a JSON number")
