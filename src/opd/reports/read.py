"""A run folder as plain data. Whatever is absent or damaged is left out, and named in `gaps`."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from opd.core.stats import Estimate
from opd.errors import UserError
from opd.reports.alarms import Alarm, alarms, phases
from opd.run import evals, rollouts, token_texts
from opd.run.env import package_versions
from opd.run.jsonl import json_restore, read_jsonl
from opd.run.lock import is_locked
from opd.types import Graded

Floats = NDArray[np.float64]

VERSION = package_versions()["opd"]
CLOCKS = ("time/", "memory/", "teacher/")  # names of timings.jsonl
COLD = "coldstart/"
_EVAL = re.compile(r"step-(\d+)-(.+)\.json")


@dataclass(frozen=True)
class Series:
    """Finite values of one name over steps, (n,) each."""

    steps: Floats
    values: Floats

    def __len__(self) -> int:
        return len(self.steps)


@dataclass(frozen=True)
class Evaluated:
    """One evaluation of one model: numbers with intervals, and the graded samples."""

    step: int
    accuracy: Estimate
    pass_at: dict[int, Estimate]
    truncated: float
    length: Estimate
    correct: Floats  # (prompts, n)
    graded: list[Graded]
    key: dict[str, Any]

    @property
    def per_prompt(self) -> Floats:
        """Share of right samples of each prompt."""
        means: Floats = self.correct.mean(1)
        return means


@dataclass(frozen=True)
class EvalSet:
    """Everything measured on one held-out set, the student's by step."""

    label: str
    settings: dict[str, Any]
    student: list[Evaluated]
    teacher: Evaluated | None
    kept: int | None = None  # step of the student that an alarm's end of the run has kept
    warmed: Evaluated | None = None  # the student after its cold start, before on-policy steps

    @property
    def last(self) -> Evaluated:
        """The student that the run has kept: that of its latest evaluation, or an earlier one."""
        return next((e for e in self.student if e.step == self.kept), self.student[-1])

    @property
    def grader(self) -> str:
        """The grader that was used, where `auto` was asked for."""
        used = self.student[-1].key.get("grader") if self.student else None
        return str(used or self.settings.get("grader"))


@dataclass(frozen=True)
class RunData:
    """A run folder, read once."""

    path: Path
    config: dict[str, Any]
    env: dict[str, Any]
    metrics: list[dict[str, Any]]
    timings: list[dict[str, Any]]
    alarms: list[Alarm]
    phases: list[tuple[float, str]]
    check: dict[str, Any] | None
    coldstart: dict[str, Any] | None
    ended_by: Alarm | None  # the alarm that ended the run, and
    kept: int | None  # the step of the student that is kept then
    evals: list[EvalSet]
    tokens: list[str] | None
    alive: bool
    gaps: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        """What people call the run."""
        return self.path.resolve().name

    def setting(self, section: str, key: str) -> Any:
        """A key of the configuration; None where the run's version of opd had none."""
        return _at(self.config, f"{section}.{key}")

    @property
    def planned(self) -> int:
        """Steps the configuration asks for."""
        return int(self.config["train"]["steps"])

    @property
    def state(self) -> str:
        """Running, finished, or stopped before its last step."""
        return "running" if self.alive else "finished" if self.done >= self.planned else "stopped"

    @property
    def done(self) -> int:
        """Steps that were made."""
        return _done(self.metrics)

    def series(self, name: str) -> Series:
        """Values of a name of metrics.jsonl or timings.jsonl over the run's steps.

        Names of the cold start, all of whose lines belong to one step, over its own steps; clocks
        from step 1 on, without that phase's.
        """
        rows = self.timings if name.startswith(CLOCKS) else self.metrics
        own = f"{COLD}step" if name.startswith(COLD) else "step"
        first = 1 if name.startswith(CLOCKS) else 0
        found = {
            float(r[own]): float(r[name])
            for r in rows
            if isinstance(r.get(name), int | float)
            and isinstance(r.get(own), int | float)
            and r[own] >= first
            and not (name.startswith(CLOCKS) and "phase" in r)
        }
        steps = np.array(sorted(found), dtype=np.float64)
        values = np.array([found[s] for s in steps], dtype=np.float64)
        finite = np.isfinite(values)
        return Series(steps[finite], values[finite])

    def spent(self, name: str, *, cold_start: bool = False) -> float:
        """Sum of a name of timings.jsonl over all its lines, or those of the cold start."""
        values = [
            float(r[name])
            for r in self.timings
            if isinstance(r.get(name), int | float)
            and (not cold_start or r["step"] < 1 or "phase" in r)
        ]
        return float(np.nansum(values))

    def names(self) -> set[str]:
        """Every name that was logged."""
        return {name for row in (*self.metrics, *self.timings) for name in row}

    def rollout_steps(self) -> list[int]:
        """Steps whose rollouts are on disk, in order."""
        folder = self.path / "rollouts"
        paths = folder.iterdir() if folder.is_dir() else ()
        return sorted(int(m[1]) for p in paths if (m := rollouts.FILE.fullmatch(p.name)))

    def rollout_file(self, step: int) -> rollouts.StepFile | None:
        """Rollouts and scores of a step, without hidden states; None when damaged."""
        path = self.path / "rollouts" / f"step-{step}.parquet"
        try:
            return rollouts.decode(path.read_bytes(), hidden_states=False)
        except (OSError, ValueError):
            return None


def read_run(path: str | Path) -> RunData:
    """Read a run folder, finished or not.

    Raises:
        UserError: no run folder, or one whose logs are not JSON lines.
    """
    path = Path(path)
    gaps: list[str] = []
    config, env = _object(path, "config.json"), _object(path, "env.json")
    _require(path, config, env)
    if (made := env["versions"].get("opd")) != VERSION:
        gaps.append(f"Made by opd {made}, shown by opd {VERSION}: names may mean other things.")
    lines = {
        name: [json_restore(r) for r in read_jsonl(path / f"{name}.jsonl")]
        for name in ("metrics", "timings", "alarms")
    }
    try:
        tokens = token_texts.load(path)
    except (OSError, ValueError):
        tokens = None
        gaps.append("tokens.parquet is absent or damaged: tokens are shown by number.")
    metrics, found = _stepped(lines["metrics"]), alarms(_stepped(lines["alarms"]))
    ended_by, kept = _ended(path, metrics, gaps)
    return RunData(
        path=path,
        config=config,
        env=env,
        metrics=metrics,
        timings=_stepped(lines["timings"]),
        alarms=found,
        phases=phases(_stepped(lines["metrics"] + lines["alarms"])),
        check=_record(path, "check.json", gaps),
        coldstart=_record(path, "coldstart.json", gaps),
        ended_by=ended_by,
        kept=kept,
        evals=_evals(path / "eval", config, kept, gaps),
        tokens=tokens,
        alive=is_locked(path),
        gaps=gaps,
    )


def _object(path: Path, name: str) -> dict[str, Any]:
    try:
        found = json.loads((path / name).read_text("utf-8"))
    except FileNotFoundError:
        why = f"it has no {name}" if path.is_dir() else "there is no such folder"
        raise UserError(
            f"{path} is no run folder: {why}. Give the output.dir of an `opd train`."
        ) from None
    except NotADirectoryError:
        raise UserError(f"{path} is a file. Give the run folder, such as {path.parent}.") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path / name} cannot be read: {error}.") from None
    if not isinstance(found, dict):
        raise UserError(f"{path / name} holds no JSON object.")
    return found


def _require(path: Path, config: dict[str, Any], env: dict[str, Any]) -> None:
    """Raise UserError unless what every page needs is there."""
    kinds = {"student.model": str, "train.steps": int, "output.dir": str}
    found = {key: _at(config, key) for key in kinds}
    wrong = [key for key, kind in kinds.items() if not isinstance(found[key], kind)]
    if not isinstance(env.get("versions"), dict):
        wrong.append("versions (in env.json)")
    if wrong:
        raise UserError(
            f"{path} is no run folder that this opd can show: its config.json has no "
            f"{', '.join(wrong)}. Runs of opd {VERSION} have them; was it made by another?"
        )


def _done(metrics: list[dict[str, Any]]) -> int:
    made = [int(r["step"]) for r in metrics if "train/loss" in r or "train/refused" in r]
    return max(made, default=0)


def _ended(
    path: Path, metrics: list[dict[str, Any]], gaps: list[str]
) -> tuple[Alarm | None, int | None]:
    """The alarm that ended the run and the step it kept, if summary.json speaks of this end."""
    found = _record(path, "summary.json", gaps) or {}
    stopped, kept = found.get("stopped"), found.get("steps")
    if not isinstance(stopped, dict) or not isinstance(kept, int):
        return None, None
    if stopped.get("step") != _done(metrics):  # resumed since
        return None, None
    return alarms([stopped])[0], kept


def _at(config: dict[str, Any], key: str) -> Any:
    section, _, name = key.partition(".")
    found = config.get(section)
    return found.get(name) if isinstance(found, dict) else None


def _record(path: Path, name: str, gaps: list[str]) -> dict[str, Any] | None:
    """What a command or a phase left in the run folder, if it did."""
    if not (path / name).is_file():
        return None
    try:
        return _object(path, name)
    except UserError as error:
        gaps.append(f"{name} is left out: {error}")
        return None


def _stepped(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [r for r in rows if isinstance(r.get("step"), int)]


def _evals(
    folder: Path, config: Mapping[str, Any], kept: int | None, gaps: list[str]
) -> list[EvalSet]:
    paths = sorted(folder.iterdir()) if folder.is_dir() else []
    files = [(int(m[1]), m[2]) for p in paths if (m := _EVAL.fullmatch(p.name))]
    sets = []
    for settings in config.get("eval", []):
        label = settings.get("name") or Path(settings["path"]).stem
        student = [_evaluated(folder, s, n, gaps) for s, n in sorted(files) if n == label]
        theirs, warmed = (
            [_evaluated(folder, s, n, gaps) for s, n in sorted(files) if n == f"{who}-{label}"]
            for who in ("teacher", "coldstart")
        )
        found = [e for e in student if e is not None]
        # A set may have been changed when a run was resumed: only what is like the latest counts.
        same = [e for e in found if e.key == found[-1].key]
        key = same[-1].key if same else None
        who = _like(theirs, key), kept, _like(warmed, key)
        sets.append(EvalSet(label, settings, same, *who))
    return sets


def _like(found: Sequence[Evaluated | None], key: dict[str, Any] | None) -> Evaluated | None:
    first = next((e for e in found if e is not None), None)
    return None if first is None or (key is not None and first.key != key) else first


def _evaluated(folder: Path, step: int, name: str, gaps: list[str]) -> Evaluated | None:
    file = folder / f"step-{step}-{name}.json"
    try:
        key = json.loads(file.read_text("utf-8"))["key"]
        saved = evals.load(folder, step, name, key)
    except (OSError, ValueError, LookupError, TypeError):
        saved = None
    if saved is None:
        gaps.append(f"eval/{file.name} is damaged and left out.")
        return None
    record, graded = saved
    return Evaluated(
        step=step,
        accuracy=Estimate(**record["accuracy"]),
        pass_at={int(k): Estimate(**e) for k, e in record["pass_at"].items()},
        truncated=float(record["truncated"]),
        length=Estimate(**record["length"]),
        correct=np.array(record["correct"], dtype=np.float64),
        graded=graded,
        key=key,
    )
