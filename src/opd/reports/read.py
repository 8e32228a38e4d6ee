"""A run folder as plain data; absent or damaged parts are left out and listed in `problems`."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from opd.errors import UserError
from opd.reports.alarm_log import AlarmText, alarm_texts, phases, replay_alarms
from opd.reports.eval_sets import EvalSet, read_eval_sets
from opd.run import rollouts, token_texts
from opd.run.env import package_versions
from opd.run.jsonl import json_restore, read_jsonl
from opd.run.layout import INPUTS
from opd.run.lock import is_locked
from opd.run.own_files import check_kinds

Floats = NDArray[np.float64]

VERSION = package_versions()["opd"]
CLOCKS = ("time/", "memory/", "teacher/")  # prefixes of the names in timings.jsonl
COLD_START = "coldstart/"  # prefix of the names that a cold start logs


@dataclass(frozen=True)
class Series:
    """Finite values of one metric over steps, (n,) each."""

    steps: Floats
    values: Floats

    def __len__(self) -> int:
        return len(self.steps)


@dataclass(frozen=True)
class Overlap:
    """Rows of a held-out set that are also training prompts, the same or nearly."""

    label: str
    rows: int
    exact: int
    near: int


@dataclass(frozen=True)
class RunData:
    """A run folder, read once.

    Attributes:
        path: of the folder.
        config: the resolved configuration.
        env: versions, machine, command line.
        metrics: rows of metrics.jsonl.
        timings: rows of timings.jsonl.
        alarms: recorded, or replayed from the metrics.
        replayed: the run did not monitor its alarms; they are replayed.
        phases: first step and name of each phase.
        check: record of `opd check`.
        coldstart: record of the cold start.
        stopped_by: the alarm that stopped the run.
        kept_step: step of the student that the run ended with, if an alarm or `recipe: auto` chose
            an earlier one.
        evals: the held-out sets.
        token_texts: text of every token id.
        is_running: a process is writing the folder.
        overlaps: held-out sets that share questions with the training prompts.
        problems: what is absent, damaged or of another version.
    """

    path: Path
    config: dict[str, Any]
    env: dict[str, Any]
    metrics: list[dict[str, Any]]
    timings: list[dict[str, Any]]
    alarms: list[AlarmText]
    replayed: bool
    phases: list[tuple[float, str]]
    check: dict[str, Any] | None
    coldstart: dict[str, Any] | None
    stopped_by: AlarmText | None
    kept_step: int | None
    evals: list[EvalSet]
    token_texts: list[str] | None
    is_running: bool
    overlaps: list[Overlap] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        """Name of the folder."""
        return self.path.resolve().name

    def setting(self, section: str, key: str) -> Any:
        """A key of the configuration; None where the run's version of opd had none."""
        return _setting(self.config, f"{section}.{key}")

    @property
    def planned(self) -> int:
        """Steps the configuration asks for."""
        return int(self.config["train"]["steps"])

    @property
    def state(self) -> str:
        """Running, finished, or stopped before its last step."""
        if self.is_running:
            return "running"
        return "finished" if self.done >= self.planned else "stopped"

    @property
    def done(self) -> int:
        """Steps that were made."""
        return _steps_done(self.metrics)

    def series(self, name: str) -> Series:
        """Values of a name of metrics.jsonl or timings.jsonl over the run's steps.

        Names of a cold start, whose rows all belong to one step, are over the steps of the cold
        start; clocks begin at step 1 and leave its rows out.
        """
        is_clock = name.startswith(CLOCKS)
        axis = f"{COLD_START}step" if name.startswith(COLD_START) else "step"
        values = {
            float(row[axis]): float(row[name])
            for row in (self.timings if is_clock else self.metrics)
            if isinstance(row.get(name), int | float)
            and isinstance(row.get(axis), int | float)
            and row[axis] >= is_clock
            and not (is_clock and "phase" in row)
        }
        steps = np.array(sorted(values), dtype=np.float64)
        ordered = np.array([values[step] for step in steps], dtype=np.float64)
        finite = np.isfinite(ordered)
        return Series(steps[finite], ordered[finite])

    def total(self, name: str, *, cold_start: bool = False) -> float:
        """Sum of a name of timings.jsonl over all rows, or over those of the cold start."""
        values = [
            float(row[name])
            for row in self.timings
            if isinstance(row.get(name), int | float)
            and (not cold_start or row["step"] < 1 or "phase" in row)
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
        """Rollouts and scores of a step, without hidden states.

        None when damaged, or when the step has not begun (rollout.ahead).
        """
        path = self.path / "rollouts" / f"step-{step}.parquet"
        try:
            file = rollouts.decode(path.read_bytes(), hidden_states=False)
        except (OSError, ValueError):
            return None
        return None if file.waits else file


def read_run(path: str | Path) -> RunData:
    """Read a run folder, finished or not.

    Raises:
        UserError: no run folder, or one whose logs are not JSON lines.
    """
    path = Path(path)
    problems: list[str] = []
    if path.is_dir():
        check_kinds(path)  # nothing is read through a link
    config, env = _read_object(path, "config.json"), _read_object(path, "env.json")
    _require_keys(path, config, env)
    if (version := env["versions"].get("opd")) != VERSION:
        problems.append(
            f"Made by opd {version}, shown by opd {VERSION}: names may have another meaning."
        )
    journals = {
        name: [
            row for row in _read_rows(path / f"{name}.jsonl") if isinstance(row.get("step"), int)
        ]
        for name in ("metrics", "timings", "alarms")
    }
    metrics = journals["metrics"]
    alarms = alarm_texts(journals["alarms"])
    replayed = None if alarms else replay_alarms(config, metrics, int(config["train"]["steps"]))
    stopped_by, kept_step = _read_stop(path, metrics, problems)
    return RunData(
        path=path,
        config=config,
        env=env,
        metrics=metrics,
        timings=journals["timings"],
        alarms=alarms if replayed is None else replayed,
        replayed=replayed is not None,
        phases=phases(metrics + journals["alarms"]),
        check=_read_record(path, "check.json", problems),
        coldstart=_read_record(path, "coldstart.json", problems),
        stopped_by=stopped_by,
        kept_step=kept_step,
        evals=read_eval_sets(path / "eval", config, kept_step, problems),
        token_texts=_read_token_texts(path, problems),
        is_running=is_locked(path),
        overlaps=_read_overlaps(path, problems),
        problems=problems,
    )


def _read_overlaps(path: Path, problems: list[str]) -> list[Overlap]:
    entries = (_read_record(path, INPUTS, problems) or {}).get("overlaps")
    overlaps = []
    for entry in entries if isinstance(entries, list) else []:
        try:
            numbers = [int(entry[key]) for key in ("rows", "exact", "near")]
            overlaps.append(Overlap(str(entry["set"]), *numbers))
        except (KeyError, TypeError, ValueError):
            problems.append(f"{INPUTS} is damaged: {str(entry)[:80]}")
    return overlaps


def _read_rows(file: Path) -> list[dict[str, Any]]:
    return [json_restore(row) for row in read_jsonl(file)]


def _read_token_texts(path: Path, problems: list[str]) -> list[str] | None:
    try:
        return token_texts.load(path)
    except (OSError, ValueError):
        problems.append("tokens.parquet is absent or damaged: tokens are shown by number.")
        return None


def _read_object(path: Path, name: str) -> dict[str, Any]:
    try:
        value = json.loads((path / name).read_text("utf-8"))
    except FileNotFoundError:
        reason = f"it has no {name}" if path.is_dir() else "there is no such folder"
        raise UserError(
            f"{path} is no run folder: {reason}. Give the output.dir of an `opd train`."
        ) from None
    except NotADirectoryError:
        raise UserError(f"{path} is a file. Give the run folder, such as {path.parent}.") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path / name} cannot be read: {error}.") from None
    if not isinstance(value, dict):
        raise UserError(f"{path / name} holds no JSON object.")
    return value


def _read_record(path: Path, name: str, problems: list[str]) -> dict[str, Any] | None:
    """What a command or a phase left in the run folder; None without a file."""
    if not (path / name).is_file():
        return None
    try:
        return _read_object(path, name)
    except UserError as error:
        problems.append(f"{name} is left out: {error}")
        return None


def _require_keys(path: Path, config: dict[str, Any], env: dict[str, Any]) -> None:
    """Raise UserError unless the keys that every report needs are there."""
    kinds = {"student.model": str, "train.steps": int, "output.dir": str}
    missing = [key for key, kind in kinds.items() if not isinstance(_setting(config, key), kind)]
    if not isinstance(env.get("versions"), dict):
        missing.append("versions (in env.json)")
    if missing:
        raise UserError(
            f"{path} is no run folder that this opd can show: its config.json has no "
            f"{', '.join(missing)}. Runs of opd {VERSION} have them; was it made by another "
            "version?"
        )


def _setting(config: dict[str, Any], key: str) -> Any:
    section, _, name = key.partition(".")
    values = config.get(section)
    return values.get(name) if isinstance(values, dict) else None


def _steps_done(metrics: list[dict[str, Any]]) -> int:
    steps = [int(r["step"]) for r in metrics if "train/loss" in r or "train/refused" in r]
    return max(steps, default=0)


def _read_stop(
    path: Path, metrics: list[dict[str, Any]], problems: list[str]
) -> tuple[AlarmText | None, int | None]:
    """The alarm that stopped the run and the step that was kept, unless it was resumed since."""
    summary = _read_record(path, "summary.json", problems) or {}
    alarm, kept_step, kept = (summary.get(name) for name in ("stopped", "steps", "kept"))
    if isinstance(kept, dict) and kept.get("after") == _steps_done(metrics):
        return None, kept.get("step")
    if not isinstance(alarm, dict) or not isinstance(kept_step, int):
        return None, None
    if alarm.get("step") != _steps_done(metrics):  # resumed since
        return None, None
    return alarm_texts([alarm])[0], kept_step
