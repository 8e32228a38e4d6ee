"""Keeps a server alive as long as the process that wanted it, and no longer: a program of its own.

    python keeper.py PARENT PORT COMMAND ...

It starts the command, starts it again if it dies after it has listened on the port, and ends it
when it is asked to or when the parent is gone, however that died. Only the standard library is
used: the process stays small, and is not one of the trainer's sessions, so that Ctrl-C ends the
trainer first.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time

POLL = 0.5  # seconds
GRACE = 10.0  # seconds between asking a server to end and ending it
MAX_RESTARTS = 20
PAUSE = 2.0  # seconds before a server that died is started again


def main(arguments: list[str]) -> int:
    """Run the program; returns the server's exit code, 0 where it was ended."""
    parent, port, command = int(arguments[0]), int(arguments[1]), arguments[2:]
    asked: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda n, frame: asked.append(n))
    server, restarts, listened = start(command), 0, False
    while not asked and os.getppid() == parent:
        code = server.poll()
        if code is None:
            listened = listened or listens(port)
        elif listened and restarts < MAX_RESTARTS:
            end(server)  # what the server had started may still hold memory and port
            print(f"opd: the server died with {code}; it is started again.", flush=True)  # noqa: T201
            time.sleep(PAUSE)
            server, restarts, listened = start(command), restarts + 1, False
        else:
            end(server)
            return code or 1
        time.sleep(POLL)
    end(server)
    return 0


def start(command: list[str]) -> subprocess.Popen[bytes]:
    """The command, in a process group of its own."""
    return subprocess.Popen(command, start_new_session=True, stdin=subprocess.DEVNULL)


def listens(port: int) -> bool:
    """Whether somebody listens on the port of this machine."""
    with socket.socket() as probe:
        probe.settimeout(POLL)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def end(server: subprocess.Popen[bytes]) -> None:
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


def group_lives(group: int) -> bool:
    """Whether a process of the group is left; those that are only to be reaped do not count."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
