"""Disks that fail, kill or forget at their N-th operation; doubles of `opd.run.disk.FileOps`."""

from __future__ import annotations

import os
import signal
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from opd.run.disk import FileOps


class Unsynced(FileOps):
    """Does not wait for the disk: a killed process loses nothing that it wrote."""

    def fsync(self, fd):
        pass

    def sync_folder(self, path):
        pass


class Faulty(Unsynced):
    """Calls `act` instead of operation number `at` (from 1); a write first does half its work.

    `sticky`: every later operation that needs space fails too, as on a full disk.
    """

    def __init__(self, at: int, act: Callable[[], None], *, sticky: bool = False) -> None:
        self.at, self.act, self.sticky, self.count = at, act, sticky, 0

    def _due(self, *, needs_space: bool = False) -> bool:
        self.count += 1
        return self.count == self.at or (self.sticky and needs_space and self.count > self.at > 0)

    def _tick(self, *, needs_space: bool = False) -> None:
        if self._due(needs_space=needs_space):
            self.act()

    def mkdir(self, path):
        self._tick(needs_space=True)
        super().mkdir(path)

    def create(self, path):
        self._tick(needs_space=True)
        return super().create(path)

    def append(self, path):
        self._tick(needs_space=True)
        return super().append(path)

    def write(self, fd, data):
        if self._due(needs_space=True):
            super().write(fd, memoryview(data)[: len(data) // 2])
            self.act()
        super().write(fd, data)

    def truncate(self, path, size):
        self._tick()
        super().truncate(path, size)

    def fsync(self, fd):
        self._tick()
        super().fsync(fd)

    def sync_folder(self, path):
        self._tick()
        super().sync_folder(path)

    def rename(self, old, new):
        self._tick()
        super().rename(old, new)

    def unlink(self, path):
        self._tick()
        super().unlink(path)

    def rmdir(self, path):
        self._tick()
        super().rmdir(path)


def raising(code: int) -> Callable[[], None]:
    def act() -> None:
        raise OSError(code, os.strerror(code))

    return act


def count_operations(action: Callable[[FileOps], object]) -> int:
    disk = Faulty(0, lambda: None)
    action(disk)
    return disk.count


def fork() -> int:
    """`os.fork`; Python 3.12 warns of threads, but the children here take no locks of others."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return os.fork()


def dead_process() -> int:
    """The id of a process that has just ended."""
    pid = fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    return pid


def killed_at(number: int, action: Callable[[FileOps], object]) -> bool:
    """Do `action` in a forked process that gets SIGKILL at its operation; False if none was left.

    Any other end of the process is an error of the test.
    """
    pid = fork()
    if pid == 0:
        try:
            action(Faulty(number, lambda: os.kill(os.getpid(), signal.SIGKILL)))
            os._exit(0)
        finally:
            os._exit(1)
    _, status = os.waitpid(pid, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return True
    assert os.WEXITSTATUS(status) == 0, f"the child failed before operation {number}"
    return False


class PowerCut(BaseException):
    """Not an Exception: nothing may catch it."""


@dataclass(eq=False)
class Node:
    """A file (`names` is None) or folder: as programs see it, and as the disk has it."""

    names: dict[str, Node] | None = None
    durable_names: dict[str, Node] = field(default_factory=dict)
    data: bytes = b""
    durable_data: bytes = b""


class Forgetful(Unsynced):
    """Does everything under `root`, and knows what a power cut would leave.

    Promises only what POSIX does: bytes after fsync of the file, names after fsync of the folder.
    """

    def __init__(self, root: Path, at: int) -> None:
        self.root, self.at, self.count = root, at, 0
        self.top = self._scan(root)
        self._open: dict[int, Node] = {}

    def _scan(self, path: Path) -> Node:
        if path.is_file():
            data = path.read_bytes()
            return Node(data=data, durable_data=data)
        names = {p.name: self._scan(p) for p in path.iterdir()}
        return Node(names, dict(names))

    def _folder(self, path: Path) -> Node:
        node = self.top
        for part in path.relative_to(self.root).parts:
            node = node.names[part]
        return node

    def _tick(self) -> None:
        self.count += 1
        if self.count == self.at:
            raise PowerCut

    def mkdir(self, path):
        self._tick()
        super().mkdir(path)
        self._folder(path.parent).names.setdefault(path.name, Node({}))

    def create(self, path):
        self._tick()
        fd = super().create(path)
        node = self._folder(path.parent).names.setdefault(path.name, Node())
        node.data = b""
        self._open[fd] = node
        return fd

    def write(self, fd, data):
        self._tick()
        super().write(fd, data)
        self._open[fd].data += bytes(data)

    def fsync(self, fd):
        self._tick()
        super().fsync(fd)
        self._open[fd].durable_data = self._open[fd].data

    def sync_folder(self, path):
        self._tick()
        super().sync_folder(path)
        if path.is_relative_to(self.root):
            node = self._folder(path)
            node.durable_names = dict(node.names)

    def rename(self, old, new):
        self._tick()
        super().rename(old, new)
        self._folder(new.parent).names[new.name] = self._folder(old.parent).names.pop(old.name)

    def unlink(self, path):
        self._tick()
        super().unlink(path)
        del self._folder(path.parent).names[path.name]

    def rmdir(self, path):
        self._tick()
        super().rmdir(path)
        del self._folder(path.parent).names[path.name]

    def after_power_cut(self, place: Path, *, names_survive: bool) -> None:
        """Write to `place` what is left: unsynced names gone, or there with unsynced bytes gone."""
        self._restore(self.top, place, names_survive)

    def _restore(self, node: Node, place: Path, names_survive: bool) -> None:
        if node.names is None:
            place.write_bytes(node.durable_data)
            return
        place.mkdir()
        for name, inner in (node.names if names_survive else node.durable_names).items():
            self._restore(inner, place / name, names_survive)
