"""Memory of the host, within the limits of the control groups that this process is in."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PROC, CGROUP = Path("/proc"), Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class _Names:
    """Files of a version of control groups, and what memory.stat calls cached files."""

    limit: str
    used: str
    cached: str


_VERSION_2 = _Names("memory.max", "memory.current", "inactive_file")
_VERSION_1 = _Names("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")


def total_host_bytes(proc: Path = PROC, cgroup: Path = CGROUP) -> int | None:
    """All memory that this process may use: the same in a run that is resumed on this host.

    Args:
        proc: where Linux describes processes; None is returned where there is no such folder.
        cgroup: where it describes control groups.
    """
    total = _match(proc / "meminfo", r"MemTotal:\s+(\d+) kB")
    limits = [_match(folder / names.limit, r"(\d+)") for folder, names in _groups(proc, cgroup)]
    known = [limit for limit in limits if limit is not None]
    return min(known if total is None else [*known, 1024 * total], default=None)


def free_host_bytes(proc: Path = PROC, cgroup: Path = CGROUP) -> int | None:
    """Memory that a new process can have now; arguments as of `total_host_bytes`."""
    available = _match(proc / "meminfo", r"MemAvailable:\s+(\d+) kB")
    known = [] if available is None else [1024 * available]
    for folder, names in _groups(proc, cgroup):
        limit, used = (_match(folder / name, r"(\d+)") for name in (names.limit, names.used))
        if limit is not None and used is not None:  # memory of cached files can be had back
            cached = _match(folder / "memory.stat", rf"(?m)^{names.cached} (\d+)$") or 0
            known.append(max(0, limit - used + cached))
    return min(known, default=None)


def processes_on_host(everywhere: int) -> int:
    """How many processes of this run share the host's memory, as torchrun and accelerate say.

    Args:
        everywhere: the processes of all hosts; all on this one where nothing is said.
    """
    here = os.environ.get("LOCAL_WORLD_SIZE", "")
    return min(everywhere, int(here)) if here.isdigit() else everywhere


def _groups(proc: Path, cgroup: Path) -> Iterator[tuple[Path, _Names]]:
    """The groups of this process and those around them; a container sees its own as the root."""
    try:
        lines = (proc / "self" / "cgroup").read_text("utf-8").splitlines()
    except OSError:
        lines = []
    paths = {_VERSION_2: (cgroup, "/"), _VERSION_1: (cgroup / "memory", "/")}
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            paths[_VERSION_2] = (cgroup, path)
        elif "memory" in controllers.split(","):
            paths[_VERSION_1] = (cgroup / "memory", path)
    for names, (root, path) in paths.items():
        parts = [part for part in path.split("/") if part and part != ".."]
        for depth in range(len(parts) + 1):
            yield root.joinpath(*parts[:depth]), names


def _match(path: Path, pattern: str) -> int | None:
    """The number that a pattern finds in a file; None without file or match."""
    try:
        match = re.search(pattern, path.read_text("utf-8"))
    except OSError:
        return None
    return None if match is None else int(match[1])
