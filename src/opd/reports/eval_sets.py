"""Evaluations of a run folder: accuracies with intervals and graded samples, by held-out set."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from opd.core import stats
from opd.core.stats import Estimate
from opd.run import evals
from opd.types import Graded

Floats = NDArray[np.float64]

_FILE = re.compile(r"step-(\d+)-(.+)\.json")


@dataclass(frozen=True)
class EvalResult:
    """One evaluation of one model on one held-out set.

    Attributes:
        step: optimizer steps of the student; 0 for the teacher.
        accuracy: mean over prompts and samples.
        pass_at: pass@k by k.
        truncated: fraction of completions cut by the token limit.
        length: tokens of a completion.
        correct: (prompts, samples) of 0 and 1.
        graded: every sample with its grade.
        key: prompts and decoding; equal keys are comparable.
        entropy: mean over the tokens of a completion, nats; None in runs that did not keep it.
    """

    step: int
    accuracy: Estimate
    pass_at: dict[int, Estimate]
    truncated: float
    length: Estimate
    correct: Floats
    graded: list[Graded]
    key: dict[str, Any]
    entropy: Estimate | None = None
    teachers: tuple[str, ...] = ()  # of several, who teaches each prompt; "": none is named

    @property
    def per_prompt(self) -> Floats:
        """Fraction of correct samples of each prompt, (prompts,)."""
        means: Floats = self.correct.mean(1)
        return means

    def of_teacher(self, name: str) -> EvalResult:
        """The result on the prompts of one teacher; answers are shown with the whole."""
        mask = np.array([teacher == name for teacher in self.teachers])
        correct = self.correct[mask]
        lengths = np.array([g.length for g in self.graded], dtype=np.float64)
        cut = np.array([g.finish == "length" for g in self.graded])
        return replace(
            self,
            correct=correct,
            accuracy=stats.avg_at_n(correct),
            pass_at={k: stats.pass_at_k(correct, k) for k in self.pass_at},
            length=stats.mean(lengths.reshape(self.correct.shape)[mask].mean(1)),
            truncated=float(cut.reshape(self.correct.shape)[mask].mean()),
            entropy=None,
            graded=[],
            teachers=(),
        )


@dataclass(frozen=True)
class EvalSet:
    """Every evaluation on one held-out set.

    Attributes:
        label: name of the set.
        settings: its entry in the configuration.
        student: evaluations of the student by step.
        teacher: evaluation of the teacher.
        kept_step: step of the student that is kept after an alarm stopped the run; None otherwise.
        after_coldstart: the student after a cold start, before on-policy steps.
    """

    label: str
    settings: dict[str, Any]
    student: list[EvalResult]
    teacher: EvalResult | None
    kept_step: int | None = None
    after_coldstart: EvalResult | None = None

    def by_teacher(self) -> list[EvalSet]:
        """The same on each teacher's prompts alone; empty where all are of one."""
        results = [*self.student, self.teacher, self.after_coldstart]
        names = sorted({name for e in results if e for name in e.teachers} - {""})
        if len(names) < 2:
            return []

        def part(name: str, result: EvalResult | None) -> EvalResult | None:
            return None if result is None else result.of_teacher(name)

        return [
            replace(
                self,
                label=f"{self.label}, prompts of {name}",
                student=[e.of_teacher(name) for e in self.student],
                teacher=part(name, self.teacher),
                after_coldstart=part(name, self.after_coldstart),
            )
            for name in names
        ]

    @property
    def final(self) -> EvalResult:
        """The student that the run keeps: the latest evaluation, or that of `kept_step`."""
        return next((e for e in self.student if e.step == self.kept_step), self.student[-1])

    @property
    def grader(self) -> str:
        """The grader that was used; the one asked for may be `auto`."""
        used = self.student[-1].key.get("grader") if self.student else None
        return str(used or self.settings.get("grader"))


def read_eval_sets(
    folder: Path, config: Mapping[str, Any], kept_step: int | None, problems: list[str]
) -> list[EvalSet]:
    """The held-out sets of the configuration with their evaluations, also by teacher.

    Args:
        folder: `eval` of the run folder.
        config: of the run.
        kept_step: see `EvalSet`.
        problems: descriptions of damaged files are appended.
    """
    paths = sorted(folder.iterdir()) if folder.is_dir() else []
    files = sorted((int(m[1]), m[2]) for p in paths if (m := _FILE.fullmatch(p.name)))

    def read(name: str) -> list[EvalResult]:
        results = [_read(folder, step, n, problems) for step, n in files if n == name]
        return [result for result in results if result is not None]

    sets = []
    for settings in config.get("eval", []):
        label = settings.get("name") or Path(settings["path"]).stem
        student = read(label)
        # A set may change when a run is resumed: only evaluations like the latest are comparable.
        key = student[-1].key if student else None
        teacher, after_coldstart = (
            _first_with_key(read(f"{model}-{label}"), key) for model in ("teacher", "coldstart")
        )
        comparable = [e for e in student if e.key == key]
        whole = EvalSet(label, settings, comparable, teacher, kept_step, after_coldstart)
        sets += [whole, *whole.by_teacher()]
    return sets


def why_not_comparable(a: EvalSet, b: EvalSet) -> str | None:
    """Why two sets cannot be paired, or None: same prompts, same decoding, same count.

    The sampling seed may differ: two runs of different seeds still have the same prompts.
    """
    if not a.student or not b.student:
        return "one of the runs never evaluated it"
    first, second = a.final, b.final
    if first.key.get("prompts") != second.key.get("prompts"):
        return "the prompts differ"
    differing = [
        k
        for k in sorted(first.key.keys() | second.key.keys())
        if k != "seed" and first.key.get(k) != second.key.get(k)
    ]
    return f"the evaluations differ in {', '.join(differing)}" if differing else None


def _first_with_key(results: Sequence[EvalResult], key: dict[str, Any] | None) -> EvalResult | None:
    """The first evaluation, if it is comparable with those of the student."""
    first = next(iter(results), None)
    return None if first is None or (key is not None and first.key != key) else first


def _read(folder: Path, step: int, name: str, problems: list[str]) -> EvalResult | None:
    file = folder / f"step-{step}-{name}.json"
    try:
        key = json.loads(file.read_text("utf-8"))["key"]
        saved = evals.load(file, key)
    except (OSError, ValueError, LookupError, TypeError):
        saved = None
    if saved is None:
        problems.append(f"eval/{file.name} is damaged and left out.")
        return None
    record, graded = saved
    entropy = record.get("response_entropy")
    return EvalResult(
        step=step,
        accuracy=Estimate(**record["accuracy"]),
        pass_at={int(k): Estimate(**e) for k, e in record["pass_at"].items()},
        truncated=float(record["truncated"]),
        length=Estimate(**record["length"]),
        correct=np.array(record["correct"], dtype=np.float64),
        graded=graded,
        key=key,
        entropy=Estimate(**entropy) if isinstance(entropy, dict) else None,
        teachers=tuple(record.get("teachers", ())),
    )
