"""Many measurements in several processes: each is a file, so that all of it can go on later."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from opd_lab.pairs.outcomes import AnyRun

Measure = Callable[[AnyRun], dict[str, Any]]
STALE = ".claim"


def work(runs: Iterable[AnyRun], measure: Measure, folder: Path) -> Iterator[dict[str, Any]]:
    """Measure every run that has no record and that no other process has claimed.

    A claim names the process that made it; that of a process which is gone does not count.

    Args:
        runs: in this order.
        measure: gives the record of a run.
        folder: of the records: one JSON file per run.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for run in runs:
        path = folder / f"{run.block}-{run.index:04d}.json"
        if path.exists() or not _claim(path.with_suffix(STALE)):
            continue
        record = measure(run)
        part = path.with_suffix(f".{os.getpid()}")
        part.write_text(json.dumps(record) + "\n", encoding="utf-8")
        part.rename(path)
        path.with_suffix(STALE).unlink()
        yield record


def _claim(path: Path) -> bool:
    """Whether this process may have a run: nobody else alive has it."""
    try:
        handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    except FileExistsError:
        owner = path.read_text()
        if not owner or _is_alive(int(owner)):
            return False
        path.write_text(str(os.getpid()))
        return True
    with os.fdopen(handle, "w") as file:
        file.write(str(os.getpid()))
    return True


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def records_in(folder: Path) -> list[dict[str, Any]]:
    """All records of a folder, by block and index."""
    return [json.loads(path.read_text("utf-8")) for path in sorted(folder.glob("*.json"))]
