"""`opd dash [RUNS]`: a live page of runs, on this machine alone.

It listens on loopback, answers only who has the token of its address, and sends nothing but its own
page and numbers of the runs: no file of a run folder is served.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import secrets
import subprocess
import sys
import threading
from collections.abc import Callable
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import resources
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from opd.errors import UserError
from opd.reports.dash_data import (
    NAMES,
    find_runs,
    newest_rollouts,
    run_detail,
    run_summary,
    settings,
)
from opd.reports.live import LiveRun
from opd.run.stop_request import ask_to_stop

TEMPLATES = resources.files("opd.reports") / "templates"
TOKEN_HEADER = "X-Opd-Token"
MAX_BODY = 65536  # bytes of a request that are read; none is needed
CONTINUED = "continued.log"  # output of runs that the page continued, beside the run folder


class Runs:
    """The runs below a folder; each is read incrementally, by one request at a time."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._runs: dict[str, LiveRun] = {}
        self._lock = threading.Lock()

    def summaries(self) -> list[dict[str, Any]]:
        """Every run, newest first."""
        with self._lock:
            paths = {self._name(path): path for path in find_runs(self.root)}
            rows = []
            for name, path in paths.items():
                run = self._runs.setdefault(name, LiveRun(path, NAMES))
                run.update()
                rows.append(run_summary(run, name))
            self._runs = {name: self._runs[name] for name in paths}
            return rows

    def detail(self, name: str, have: int, version: int, epoch: int) -> dict[str, Any] | None:
        """One run; only that nothing changed, if the page has this version. None: no such run."""
        with self._lock:
            run = self._find(name)
            if run is None:
                return None
            run.update()
            if epoch != run.epoch:
                have = 0
            elif version == run.version and run.state != "waiting":
                return {"unchanged": True, "state": run.state}
            return run_detail(run, name, have)

    def path(self, name: str) -> Path | None:
        """The folder of a run."""
        with self._lock:
            run = self._find(name)
            return None if run is None else run.path

    def settings(self, name: str) -> list[list[str]]:
        """The configuration of a run."""
        with self._lock:
            run = self._find(name)
            return [] if run is None else settings(run)

    def _find(self, name: str) -> LiveRun | None:
        if name not in self._runs:
            for path in find_runs(self.root):
                self._runs.setdefault(self._name(path), LiveRun(path, NAMES))
        return self._runs.get(name)

    def _name(self, path: Path) -> str:
        return path.name if path == self.root else path.relative_to(self.root).as_posix()


def stop(path: Path) -> str:
    """Ask a run to stop after its step; what to tell the user."""
    ask_to_stop(path)
    return "Asked to stop: it finishes and saves its step."


def go_on(path: Path) -> str:
    """Continue a stopped run in a process of its own; what to tell the user.

    What its configuration names relative to a folder is looked for in that of this process.
    """
    log = path.with_name(f"{path.name}.{CONTINUED}")
    command = [sys.executable, "-m", "opd", "train", str(path / "config.json"), "--resume"]
    with log.open("ab") as output:
        subprocess.Popen(
            [*command, f"output.dir={path}"],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    return f"Continuing; its output goes to {log}."


class Handler(BaseHTTPRequestHandler):
    """Answers who is on this machine and has the token.

    Attributes:
        runs: that are shown.
        token: that a request must carry.
    """

    runs: Runs
    token: str
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """The page, or numbers of a run."""
        url = urlsplit(self.path)
        if not self._is_local():
            self._send(403, b"", "text/plain")
        elif url.path == "/":
            self._send(200, page().encode(), "text/html; charset=utf-8")
        elif not self._knows_token():
            self._send(401, b'{"error": "wrong token"}', "application/json")
        else:
            self._answer(_get(self.runs, url.path, parse_qs(url.query)))

    def do_POST(self) -> None:
        """Stop or continue a run."""
        length = self.headers.get("Content-Length") or ""
        self.rfile.read(min(int(length), MAX_BODY) if _is_number(length) else 0)
        self.close_connection = True  # what is left of a body is not the next request
        if not self._is_local() or not self._knows_token():
            self._send(401, b'{"error": "wrong token"}', "application/json")
        else:
            self._answer(_post(self.runs, urlsplit(self.path).path))

    def _is_local(self) -> bool:
        """No other name for this machine: a page elsewhere cannot make one of its own."""
        host = (self.headers.get("Host") or "").rsplit(":", 1)[0]
        return host in ("127.0.0.1", "localhost")

    def _knows_token(self) -> bool:
        given = self.headers.get(TOKEN_HEADER) or ""
        return hmac.compare_digest(given.encode(), self.token.encode())

    def _answer(self, value: Any) -> None:
        if value is None:
            self._send(404, b'{"error": "no such run"}', "application/json")
        else:
            body = json.dumps(value, separators=(",", ":"), allow_nan=False).encode()
            self._send(200, body, "application/json")

    def _send(self, status: int, body: bytes, kind: str) -> None:
        self.send_response(status)
        headers = {
            "Content-Type": kind,
            "Content-Length": str(len(body)),
            "Cache-Control": "no-store",
            "X-Content-Type-Options": "nosniff",
            "X-Frame-Options": "DENY",
            "Referrer-Policy": "no-referrer",
            "Content-Security-Policy": policy(),
        }
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        """Nothing: the address bar knows what was asked."""


def make_server(root: Path, port: int, token: str) -> ThreadingHTTPServer:
    """The server of the page, bound to loopback.

    Raises:
        UserError: the port is taken.
    """
    handler = type("PageHandler", (Handler,), {"runs": Runs(root), "token": token})
    try:
        return ThreadingHTTPServer(("127.0.0.1", port), handler)
    except OSError as error:
        raise UserError(
            f"--port={port}: {error.strerror}. Give another, or 0 for a free one."
        ) from None


def _get(runs: Runs, path: str, query: dict[str, list[str]]) -> Any:
    def number(name: str) -> int:
        text = query.get(name, ["0"])[0]
        return int(text) if _is_number(text.removeprefix("-")) else 0

    if path == "/api/runs":
        return runs.summaries()
    kind, _, name = path.removeprefix("/api/").partition("/")
    name = unquote(name)
    if kind == "run":
        return runs.detail(name, number("have"), number("version"), number("epoch"))
    folder = runs.path(name)
    if folder is None:
        return None
    if kind == "rollouts":
        return newest_rollouts(folder)
    return runs.settings(name) if kind == "settings" else None


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 20


def _post(runs: Runs, path: str) -> Any:
    kind, _, name = path.removeprefix("/api/").partition("/")
    folder = runs.path(unquote(name))
    action = {"stop": stop, "continue": go_on}.get(kind)
    return None if folder is None or action is None else {"message": action(folder)}


@cache
def page() -> str:
    """The HTML of the page, with its script and style inside."""
    style, script = _style(), _script()
    return _template("dash.html").replace("{style}", style).replace("{script}", script)


@cache
def policy() -> str:
    """Our own script alone runs, and talks to this server alone."""
    digest = base64.b64encode(hashlib.sha256(_script().encode()).digest()).decode()
    return (
        f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline'; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


def _style() -> str:
    return _template("report.css") + _template("dash.css")


def _script() -> str:
    return "".join(map(_template, ("dom.js", "chart.js", "dash.js")))


def _template(name: str) -> str:
    return (TEMPLATES / name).read_text("utf-8")


def serve(root: Path, *, port: int, say: Callable[[str], None]) -> None:
    """Serve the page until Ctrl-C.

    Args:
        root: a run folder, or a folder of them.
        port: to listen on; 0: a free one.
        say: prints a line.

    Raises:
        UserError: no such folder, or a port that is taken.
    """
    if not root.is_dir():
        raise UserError(f"There is no folder {root}. Give a folder of runs, or a run folder.")
    token = secrets.token_urlsafe(24)
    server = make_server(root.resolve(), port, token)
    count = len(find_runs(root.resolve()))
    plural = "" if count == 1 else "s"
    say(f"{count} run{plural} in {root}. Open (only from this machine; the address is the key):")
    say(f"  http://127.0.0.1:{server.server_port}/#token={token}")
    say("Ctrl-C ends it; runs go on.")
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        say("")
    finally:
        server.server_close()
