"""A run in progress: only what was appended since the last look is read."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from opd.reports.alarm_log import AlarmText, alarm_texts, is_phase
from opd.run.jsonl import json_restore
from opd.run.lock import is_locked

MAX_BYTES = 64 << 20  # of one look at one journal
_EVAL = re.compile(r"step-(\d+)-(.+)\.json")


class Journal:
    """Whole lines appended to a JSON-lines file since the last look.

    A file that became shorter was cut by a resumed run: it is read again from its beginning.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._offset = 0

    def read(self) -> tuple[list[dict[str, Any]], bool]:
        """New rows, and whether they replace all that was read before.

        A journal that is absent, not yet written, or a link has none.
        """
        try:
            if self.path.is_symlink():
                return [], False
            size = self.path.stat().st_size
            starts_over = size < self._offset
            if starts_over:
                self._offset = 0
            if size == self._offset:
                return [], starts_over
            with self.path.open("rb") as file:
                file.seek(self._offset)
                data = file.read(MAX_BYTES)
        except OSError:
            return [], False
        whole = data[: data.rfind(b"\n") + 1]
        self._offset += len(whole)
        return [row for line in whole.splitlines() if (row := _row(line))], starts_over


def _row(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return json_restore(row) if isinstance(row, dict) and isinstance(row.get("step"), int) else None


@dataclass
class Evaluated:
    """Accuracy of one evaluation."""

    step: int
    value: float
    low: float
    high: float


@dataclass
class LiveRun:
    """What can be said of a run in progress from its journals.

    Attributes:
        path: of the run folder.
        names: metrics of which values are kept.
        config: the resolved configuration; empty until the run has one.
        series: steps and values by name.
        done: optimizer steps.
        alarms: by step.
        phase: the newest phase that was named.
        evals: of the student, by set.
        teacher: accuracy of the teacher, by set.
        version: changes whenever anything else does.
        epoch: changes when a resumed run cut what was read.
        is_running: a process is writing the folder.
    """

    path: Path
    names: frozenset[str]
    config: dict[str, Any] = field(default_factory=dict)
    series: dict[str, dict[int, float]] = field(default_factory=dict)
    done: int = 0
    alarms: list[AlarmText] = field(default_factory=list)
    phase: str = ""
    evals: dict[str, list[Evaluated]] = field(default_factory=dict)
    teacher: dict[str, Evaluated] = field(default_factory=dict)
    version: int = 0
    epoch: int = 0
    is_running: bool = False

    def __post_init__(self) -> None:
        self._journals = {n: Journal(self.path / f"{n}.jsonl") for n in ("metrics", "timings")}
        self._alarm_journal = Journal(self.path / "alarms.jsonl")
        self._alarm_rows: list[dict[str, Any]] = []
        self._eval_files: set[str] = set()

    @property
    def name(self) -> str:
        """Name of the folder."""
        return self.path.resolve().name

    @property
    def planned(self) -> int:
        """Steps the configuration asks for; 0 if it is not known."""
        steps = self.config.get("train", {}).get("steps", 0)
        return steps if isinstance(steps, int) else 0

    @property
    def state(self) -> str:
        """Waiting, running, finished, or stopped before its last step."""
        if not self.config:
            return "waiting"
        if self.is_running:
            return "running"
        return "finished" if self.done >= self.planned else "stopped"

    def update(self) -> bool:
        """Read what is new; whether anything is."""
        before = (self.version, self.is_running, bool(self.config))
        if not self.config:
            self.config = _read_config(self.path)
        self.is_running = is_locked(self.path)
        for name, journal in self._journals.items():
            self._add(*journal.read(), is_clock=name == "timings")
        self._read_alarms()
        self._read_evals()
        return before != (self.version, self.is_running, bool(self.config))

    def _add(self, rows: Iterable[dict[str, Any]], starts_over: bool, *, is_clock: bool) -> None:
        rows = list(rows)
        if starts_over and not is_clock:
            self.series, self.done, self.epoch = {}, 0, self.epoch + 1
        self.version += bool(rows) or starts_over
        for row in rows:
            if is_clock and ("phase" in row or row["step"] < 1):
                continue
            if "train/loss" in row or "train/refused" in row:
                self.done = max(self.done, row["step"])
            if isinstance(row.get("phase"), str):
                self.phase = row["phase"]
            for name in self.names & row.keys():
                value = row[name]
                if isinstance(value, int | float) and math.isfinite(value):
                    axis = row.get("coldstart/step") if name.startswith("coldstart/") else None
                    step = axis if isinstance(axis, int) else row["step"]
                    self.series.setdefault(name, {})[step] = float(value)

    def _read_alarms(self) -> None:
        rows, starts_over = self._alarm_journal.read()
        if not rows and not starts_over:
            return
        self._alarm_rows = rows if starts_over else self._alarm_rows + rows
        self.alarms = alarm_texts(r for r in self._alarm_rows if not is_phase(r))
        self.version += 1

    def _read_evals(self) -> None:
        try:
            names = {entry.name for entry in os.scandir(self.path / "eval") if entry.is_file()}
        except OSError:
            names = set()
        if names == self._eval_files:
            return
        if self._eval_files - names:  # cut by a resumed run
            self.evals, self.teacher, self._eval_files = {}, {}, set()
        for name in sorted(names - self._eval_files):
            if (match := _EVAL.fullmatch(name)) is not None:
                self._read_eval(self.path / "eval" / name, int(match[1]), match[2])
        self._eval_files = names
        self.version += 1

    def _read_eval(self, file: Path, step: int, label: str) -> None:
        try:
            accuracy = json.loads(file.read_bytes())["accuracy"]
            result = Evaluated(step, *(float(accuracy[k]) for k in ("value", "low", "high")))
        except (OSError, ValueError, LookupError, TypeError):
            return
        if not all(map(math.isfinite, (result.value, result.low, result.high))):
            return
        if label.startswith("teacher-"):
            self.teacher[label.removeprefix("teacher-")] = result
        elif not label.startswith("coldstart-"):
            results = [e for e in self.evals.get(label, []) if e.step != step]
            self.evals[label] = sorted([*results, result], key=lambda e: e.step)
            self.evals = dict(sorted(self.evals.items(), key=lambda item: self._rank(item[0])))

    def _rank(self, label: str) -> int:
        """Place of a held-out set in the configuration: the first is what the run is about."""
        sets = self.config.get("eval")
        names = [e.get("name") or Path(str(e.get("path"))).stem for e in sets or []]
        return names.index(label) if label in names else len(names)

    def values(self, name: str) -> tuple[list[int], list[float]]:
        """Steps and values of a metric, in order."""
        points = self.series.get(name, {})
        steps = sorted(points)
        return steps, [points[step] for step in steps]


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads((path / "config.json").read_bytes())
    except (OSError, ValueError):
        return {}
    is_run = isinstance(config, dict) and isinstance(config.get("train"), dict)
    return config if is_run else {}
