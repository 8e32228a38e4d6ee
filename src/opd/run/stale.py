"""What a resumed run must make anew, because alarms that act on it were changed."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from opd.run.disk import FileOps, remove
from opd.run.layout import BEST, is_own_file
from opd.run.manifest import find_fault, list_checkpoints

log = logging.getLogger(__name__)

_OF_STEP = re.compile(r"step-(\d+)\b.*")


def may_act_otherwise(before: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """Whether alarms may change a run in another way than before it was resumed.

    Args:
        before: the configuration that was stored, with defaults.
        now: that of the resumed run, with defaults.
    """
    if not (_acts(before) or _acts(now)):
        return False
    changed = before.get("alarms") != now.get("alarms")
    return changed or _steps(before) != _steps(now)  # of which the windows are a tenth


def remove_later(run: Path, ops: FileOps) -> None:
    """Remove what a run has sampled, evaluated and kept after its newest checkpoint.

    Those rollouts and numbers are of students that alarms may have changed, and that the resumed
    run does not have.

    Args:
        run: the run folder.
        ops: the disk.
    """
    checkpoints = list_checkpoints(run / "checkpoints")
    done = next((step for step, path in checkpoints if find_fault(path) is None), 0)
    later = [path for path in _paths(run) if _step(path) > done and _is_own(path, run)]
    for path in later:
        remove(path, ops)
    if later:
        log.warning(
            "Alarms that may change the run were changed: from step %d on it is no repetition of "
            "the run that was interrupted. %d files of later steps are made anew.",
            done,
            len(later),
        )


def _paths(run: Path) -> Iterator[Path]:
    for name in ("rollouts", "eval", BEST):
        folder = run / name
        yield from sorted(folder.iterdir()) if folder.is_dir() else ()


def _is_own(path: Path, run: Path) -> bool:
    """Whether a run has written a file, or every file of a folder."""
    files = path.iterdir() if path.is_dir() else (path,)
    return all(is_own_file(file.relative_to(run).as_posix()) for file in files)


def _step(path: Path) -> int:
    match = _OF_STEP.fullmatch(path.name)
    return int(match[1]) if match else 0


def _acts(config: Mapping[str, Any]) -> bool:
    alarms = config.get("alarms") or {}
    rules = (alarms.get("rules") or {}).values()
    return "act" in (alarms.get("action"), *(rule.get("action") for rule in rules))


def _steps(config: Mapping[str, Any]) -> Any:
    return (config.get("train") or {}).get("steps")
