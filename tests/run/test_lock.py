"""One writer per folder, a lock that dies with its holder, and a look that disturbs nobody."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys

import pytest

from opd.errors import UserError
from opd.run.layout import LOCK
from opd.run.lock import Lock, is_locked

HOLDER = """
import sys, time
from pathlib import Path
from opd.run.lock import Lock
lock = Lock(Path(sys.argv[1]))
print("ready", flush=True)
time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """A process that holds the lock of `tmp_path`."""
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert child.stdout.readline() == "ready\n"
        yield child
    finally:
        child.kill()
        child.communicate()


def test_the_other_process_is_named_and_its_death_frees_the_lock(tmp_path, holder):
    assert is_locked(tmp_path)
    with pytest.raises(UserError, match=rf"Another run is writing .* \(process {holder.pid} on"):
        Lock(tmp_path)
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert not is_locked(tmp_path)
    Lock(tmp_path).release()


def test_a_look_is_possible_with_a_file_that_may_only_be_read(tmp_path, holder):
    (tmp_path / LOCK).chmod(0o444)
    assert is_locked(tmp_path)


def test_a_look_changes_nothing(tmp_path):
    assert not is_locked(tmp_path)
    assert not is_locked(tmp_path / "absent")
    assert list(tmp_path.iterdir()) == []
    Lock(tmp_path).release()
    before = (tmp_path / LOCK).read_bytes(), (tmp_path / LOCK).stat().st_mtime_ns
    assert not is_locked(tmp_path)
    held = Lock(tmp_path)  # a look leaves the lock free
    assert is_locked(tmp_path)
    assert is_locked(tmp_path)
    held.release()
    held.release()
    assert not is_locked(tmp_path)
    assert before[0] == (tmp_path / LOCK).read_bytes()


def test_a_run_may_start_while_somebody_looks(tmp_path):
    """The look holds the lock for a moment; a start that fell into it would name a ghost."""
    Lock(tmp_path).release()
    looker = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys, time; from pathlib import Path; from opd.run.lock import is_locked\n"
            "print('ready', flush=True); end = time.monotonic() + 3\n"
            "while time.monotonic() < end: is_locked(Path(sys.argv[1])); time.sleep(0.0005)",
            str(tmp_path),
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert looker.stdout.readline() == "ready\n"
        for _ in range(300):
            Lock(tmp_path).release()
        assert looker.poll() is None
    finally:
        looker.kill()
        looker.communicate()


def test_the_same_process_cannot_write_twice(tmp_path):
    held = Lock(tmp_path)
    with pytest.raises(UserError, match=f"process {os.getpid()} on"):
        Lock(tmp_path)
    held.release()


def test_a_forked_child_does_not_keep_the_lock(tmp_path):
    held = Lock(tmp_path)
    command = [sys.executable, "-c", "import time; time.sleep(60)"]
    child = subprocess.Popen(command, close_fds=False)
    try:
        held.release()
        Lock(tmp_path).release()
    finally:
        child.kill()
        child.wait()


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_a_warning(tmp_path, monkeypatch, caplog, code):
    def refuse(fd, operation):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("fcntl.flock", refuse)
    held = Lock(tmp_path)
    assert "has no locks" in caplog.text
    assert str(os.getpid()) in (tmp_path / LOCK).read_text()
    assert not is_locked(tmp_path)
    held.release()


def test_any_other_failure_is_raised(tmp_path, monkeypatch):
    def fail(fd, operation):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr("fcntl.flock", fail)
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        Lock(tmp_path)
