"""A server that this process starts on this machine, and that ends with it."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from opd.errors import UserError
from opd.http import keeper
from opd.http.client import Http, Limits, Refusal, Transient
from opd.http.endpoint import Endpoint
from opd.http.text import clean
from opd.http.vllm import MODELS

STARTUP = 1800.0  # seconds: a large model is read from a slow disk, then compiled
PROGRESS = 10.0  # seconds between lines while a server starts
POLL, ENDING = 0.5, 25.0  # seconds
TAIL, SEARCHED = 1500, 2**18  # bytes of a log's end that a message shows, that are searched
ERROR, ERRORS = re.compile(rb"\b\w+(?:Error|Exception): .{1,500}"), 3  # that a message shows
LOG_FILE = "{role}-server.log"
# Of a launcher of several trainers: a server would take itself for one of them.
LAUNCHER_VARIABLES = (
    *("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK"),
    *("MASTER_ADDR", "MASTER_PORT", "PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV"),
)


@dataclass
class LaunchedServer:
    """A server of this machine; see `opd.http.keeper` for how it is kept and ended.

    Attributes:
        role: of the server, in messages and in the name of its log.
        command: starts it; "{port}" and "{model}" are filled in.
        model: folder or name of the model that it loads.
        environment: variables for it, beside those of this process.
        log: file of its output.
        port: where it listens.
    """

    role: str
    command: Sequence[str]
    model: str
    environment: Mapping[str, str]
    log: Path
    port: int = field(default_factory=lambda: free_port())
    _keeper: subprocess.Popen[bytes] | None = field(default=None, init=False, repr=False)

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start it; returns before it answers.

        Raises:
            UserError: there is no such interpreter.
        """
        command = [part.format(port=self.port, model=self.model) for part in self.command]
        inherited = {k: v for k, v in os.environ.items() if k not in LAUNCHER_VARIABLES}
        if not (os.path.isfile(command[0]) and os.access(command[0], os.X_OK)):
            raise UserError(
                f"{self.role}.launch.python={command[0]}: there is no such program. Make an "
                "environment with vLLM, and name its interpreter."
            )
        words = [sys.executable, "-I", keeper.__file__, str(os.getpid()), str(self.port), *command]
        with self.log.open("ab") as log:
            self._keeper = subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=inherited | dict(self.environment),
                start_new_session=True,
            )

    def wait(self, show: Callable[[str], None] = lambda line: None) -> None:
        """Wait until it answers.

        Args:
            show: gets a line of progress now and then.

        Raises:
            UserError: it ended, or did not answer within `STARTUP` seconds; with its last words.
        """
        http = Http(Endpoint(self.url, f"{self.role} server", f"{self.role}.launch"), limits=QUICK)
        began = shown = time.monotonic()
        try:
            while True:
                if (why := self.ended()) is not None:
                    raise UserError(f"The {self.role} server did not start: {why}")
                try:
                    http.get_json(MODELS, once=True)
                    return
                except (Transient, Refusal):
                    now = time.monotonic()
                if now - began > STARTUP:
                    raise UserError(
                        f"The {self.role} server does not answer after {STARTUP:.0f} s: "
                        f"{self.last_words()}"
                    )
                if now - shown >= PROGRESS:
                    shown = now
                    show(f"Waiting for the {self.role} server, {now - began:.0f} s ({self.log})")
                time.sleep(POLL)
        finally:
            http.close()

    def ended(self) -> str | None:
        """Why it is over and will not come back; None while it lives or is started again."""
        if self._keeper is None:
            return "it was not started"
        code = self._keeper.poll()
        return None if code is None else f"it ended with {code}. {self.last_words()}"

    def last_words(self) -> str:
        """The errors in its log and the log's end, for a message.

        A server of several processes names the reason far above its end.
        """
        try:
            data = self.log.read_bytes()[-SEARCHED:]
        except OSError:
            return f"Its log {self.log} cannot be read."
        above, tail = data[:-TAIL], data[-TAIL:]
        errors = [clean(line) for line in list(dict.fromkeys(ERROR.findall(above)))[:ERRORS]]
        lines = [f"Errors in {self.log}:", *errors] if errors else []
        lines += [f"The end of {self.log}:", *map(clean, tail.splitlines())]
        return "\n".join(lines)

    def restart(self, model: str) -> None:
        """Start it again on another model, and wait until it answers.

        Raises:
            UserError: as `wait`.
        """
        self.stop()
        self.model = model
        self.start()
        self.wait()

    def move_log(self, folder: Path) -> None:
        """Put its log into a folder of the same disk; what it prints from now on goes there too."""
        target = folder / LOG_FILE.format(role=self.role)
        os.replace(self.log, target)
        self.log = target

    def stop(self) -> None:
        """End it; nothing it has started is left."""
        process, self._keeper = self._keeper, None
        if process is None:
            return
        process.terminate()
        try:
            process.wait(ENDING)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(ENDING)


QUICK = Limits(connect=2.0, answer=10.0)


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port
