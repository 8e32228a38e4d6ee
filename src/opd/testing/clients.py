"""Clients of fake servers: in memory, or over a loopback port.

A fake server is a transport of httpx2: the client above it is the real one.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx2

from opd.http import Endpoint, Http, Limits, Timer


class FakeClock:
    """Time that passes only when somebody sleeps."""

    def __init__(self) -> None:
        self.time = 0.0
        self._lock = threading.Lock()

    def now(self) -> float:
        """Seconds slept so far."""
        return self.time

    def sleep(self, seconds: float) -> None:
        """Let time pass."""
        with self._lock:
            self.time += seconds


def fake_client(server: httpx2.BaseTransport, clock: FakeClock, **limits: Any) -> Http:
    """A client of a fake server in memory, whose waits pass on `clock`.

    Args:
        server: the fake.
        clock: replaces the time.
        limits: changes of `opd.http.Limits`; by default 30 s, 4 attempts and 4 MiB.
    """
    defaults = {"answer": 30.0, "attempts": 4, "answer_bytes": 2**22}
    return Http(
        Endpoint("http://teacher.test:8000", "teacher", "teacher.url"),
        limits=Limits(**(defaults | limits)),
        timer=Timer(clock.now, clock.sleep),
        transport=server,
    )


@contextmanager
def serve_on_loopback(server: httpx2.BaseTransport) -> Iterator[str]:
    """Serve a fake on a free port of 127.0.0.1 inside the block; yields its URL, without /v1."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer()

        def do_POST(self) -> None:
            self._answer()

        def log_message(self, *args: Any) -> None:
            pass

        def _answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            url = f"http://127.0.0.1{self.path}"
            request = httpx2.Request(
                self.command, url, headers=dict(self.headers.items()), content=body
            )
            try:
                response = server.handle_request(request)
                data = b"".join(response.iter_raw())
            except httpx2.TransportError:
                return  # the connection closes without an answer
            self.send_response(response.status_code)
            for name, value in response.headers.items():
                if name not in ("content-length", "transfer-encoding"):
                    self.send_header(name, value)
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

    listener = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=listener.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.server_address[1]}"
    finally:
        listener.shutdown()
        listener.server_close()
        thread.join(10)


def json_response(
    value: object, status: int = 200, headers: Mapping[str, str] | None = None
) -> httpx2.Response:
    """A response with a JSON body."""
    return raw_response(json.dumps(value).encode(), status, headers)


def raw_response(
    body: bytes, status: int = 200, headers: Mapping[str, str] | None = None
) -> httpx2.Response:
    """A response whose body is still to be read, as from a network."""
    return httpx2.Response(status, stream=StreamedBody([body]), headers=headers)


class StreamedBody(httpx2.SyncByteStream):
    """A body that arrives in pieces; the iterable may raise, as a connection that breaks."""

    def __init__(self, pieces: Iterable[bytes]) -> None:
        self.pieces = pieces

    def __iter__(self) -> Iterator[bytes]:
        yield from self.pieces
