"""Keeps a server alive as long as the process that wanted it, and no longer: a program of its own.

    python keeper.py PARENT PORT COMMAND ...

It starts the command, starts it again if it dies after it has listened on the port, and ends it
when it is asked to or when the parent is gone, however that died. A second process, its guard, does
nothing but wait for the end of the first, then ends what is left. All that the command has started
carries a mark in its environment, by which it is found whatever its parent or group. Only the
standard library is used: the processes stay small, and are in sessions of their own, so that Ctrl-C
ends the trainer first.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

POLL = 0.5  # seconds
GRACE = 10.0  # seconds between asking a server to end and ending it
MAX_RESTARTS = 20
PAUSE = 2.0  # seconds before a server that died is started again
MARK = "OPD_KEPT_BY"  # variable of all processes of a server
PROCESSES = Path("/proc")


def main(arguments: list[str]) -> int:
    """Run the program; returns the server's exit code, 0 where it was ended."""
    parent, port, command = int(arguments[0]), int(arguments[1]), arguments[2:]
    asked: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda n, frame: asked.append(n))
    mark = f"{os.getpid()}-{os.urandom(8).hex()}"
    guard = Guard(mark)
    server, restarts, listened = start(command, guard), 0, False
    while not asked and os.getppid() == parent:
        code = server.poll()
        if code is None:
            listened = listened or listens(port)
        elif listened and restarts < MAX_RESTARTS:
            end(server, mark)  # what the server had started may still hold memory and port
            print(f"opd: the server died with {code}; it is started again.", flush=True)  # noqa: T201
            time.sleep(PAUSE)
            server, restarts, listened = start(command, guard), restarts + 1, False
        else:
            end(server, mark)
            return code or 1
        guard.watch()
        time.sleep(POLL)
    end(server, mark)
    return 0


def start(command: list[str], guard: Guard) -> subprocess.Popen[bytes]:
    """The command, in a process group of its own."""
    server = subprocess.Popen(
        command,
        start_new_session=True,
        stdin=subprocess.DEVNULL,
        env=os.environ | {MARK: guard.mark},
    )
    guard.note(server.pid)
    return server


class Guard:
    """A process that ends a server's processes as soon as this one is gone."""

    def __init__(self, mark: str) -> None:
        """Start it.

        Args:
            mark: that the server's processes carry.
        """
        self.mark, self.group = mark, 0
        self._start()

    def note(self, group: int) -> None:
        """Tell it of the server's process group."""
        self.group = group
        with suppress(BrokenPipeError):
            os.write(self._pipe, b"%d\n" % group)

    def watch(self) -> None:
        """Start it again if it was ended."""
        try:
            ended, _ = os.waitpid(self._pid, os.WNOHANG)
        except ChildProcessError:
            ended = self._pid
        if ended:
            os.close(self._pipe)
            self._start()
            self.note(self.group)

    def _start(self) -> None:
        reading, self._pipe = os.pipe()
        self._pid = os.fork()
        if self._pid:
            os.close(reading)
            return
        try:
            os.close(self._pipe)
            os.setsid()
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            groups = b""
            while part := os.read(reading, 4096):  # until nobody is left who could write
                groups += part
            end_left(self.mark, int(groups.split()[-1]) if groups.split() else 0)
        finally:
            os._exit(0)


def end_left(mark: str, group: int) -> None:
    """End all processes that carry a mark, and a process group."""
    for number, seconds in ((signal.SIGTERM, GRACE), (signal.SIGKILL, GRACE)):
        deadline = time.monotonic() + seconds
        asked: set[int] = set()
        while time.monotonic() < deadline:
            left = marked(mark)
            if group:
                with suppress(ProcessLookupError, PermissionError):
                    os.killpg(group, 0)
                    left.add(-group)
            if not left:
                return
            for pid in left - asked:
                with suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, number)  # a negative one is a group
            asked |= left
            time.sleep(0.1)


def marked(mark: str) -> set[int]:
    """Processes that carry a mark; those that are only to be reaped do not."""
    living = set()
    variable = f"{MARK}={mark}".encode()
    for folder in PROCESSES.glob("[0-9]*"):
        with suppress(OSError):
            if variable in (folder / "environ").read_bytes().split(b"\0"):
                living.add(int(folder.name))
    return living


def listens(port: int) -> bool:
    """Whether somebody listens on the port of this machine."""
    with socket.socket() as probe:
        probe.settimeout(POLL)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def end(server: subprocess.Popen[bytes], mark: str) -> None:
    """End the server and everything it has started."""
    for number, seconds in ((signal.SIGTERM, GRACE), (signal.SIGKILL, GRACE)):
        try:
            os.killpg(server.pid, number)
        except ProcessLookupError:
            break
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and (server.poll() is None or group_lives(server.pid)):
            time.sleep(0.1)
    server.poll()
    end_left(mark, 0)


def group_lives(group: int) -> bool:
    """Whether a process of the group is left; those that are only to be reaped do not count."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
