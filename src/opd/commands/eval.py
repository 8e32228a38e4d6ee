"""`opd eval`: accuracy of student and teacher on the held-out sets."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from opd import config
from opd.commands.look import look
from opd.config import Run
from opd.config.python_objects import require_own_code
from opd.errors import UserError
from opd.run.console import Console, Style

if TYPE_CHECKING:
    import numpy as np

    from opd.core.stats import Estimate
    from opd.reports.document import Document
    from opd.training.eval_task import EvalTask
    from opd.training.evaluate import Evaluation


@dataclass(frozen=True)
class SetResult:
    """One held-out set.

    Attributes:
        label: of the set.
        before: the student before training; None for a run.yaml, whose student is `student`.
        student: the student that was asked about.
        teacher: None without one that answers; of several, each its own prompts.
    """

    label: str
    before: Evaluation | None
    student: Evaluation
    teacher: Evaluation | None

    @property
    def change(self) -> Estimate | None:
        """Student minus student before training, paired by prompt."""
        if self.before is None:
            return None
        return _paired(self.before, self.student)

    @property
    def gap(self) -> Estimate | None:
        """Teacher minus student, paired by prompt."""
        if self.teacher is None:
            return None
        return _paired(self.student, self.teacher)


def _paired(a: Evaluation, b: Evaluation) -> Estimate:
    from opd.core import stats

    return stats.paired(a.correct.mean(1), b.correct.mean(1)).difference


def evaluate_target(target: Path, overrides: Sequence[str], style: Style) -> list[SetResult]:
    """Evaluate the student of a run.yaml, or the final student of a run folder, and its teacher.

    Args:
        target: run.yaml or run folder.
        overrides: `key=value`.
        style: of what is printed.

    Returns:
        One result per held-out set, and one of pass@n where a prompt has n > 1 responses; for a run
        folder with the run's own evaluation before training.

    Raises:
        UserError: no finished run, or no held-out set.
    """
    return evaluate_config(_config_of(target, overrides), style, target)


def evaluate_config(cfg: Run, style: Style, target: Path | None = None) -> list[SetResult]:
    """As `evaluate_target`, of a configuration; `target` is its run folder, if it has one.

    Raises:
        UserError: there is no held-out set.
    """
    if not cfg.eval:
        raise UserError("There are no `eval` sets; add at least one path with answers.")
    console = Console(style)
    look(cfg)
    results = list(_evaluate(cfg, target, console))
    if style == "json":
        for result in results:
            console.show_record(record(result))
        return results
    from opd.reports.terminal import render_text

    for line in ["", *render_text(summary(results))]:
        console.print(line)
    return results


def _evaluate(cfg: Run, target: Path | None, console: Console) -> Iterator[SetResult]:
    from opd.models.tokenizers import make_decoder
    from opd.setup.launch import start_servers
    from opd.setup.models import open_for_evaluation
    from opd.setup.preflight import read_inputs
    from opd.setup.prompts import load_eval_task
    from opd.setup.samplers import eval_sampler, student_samplers
    from opd.training.evaluate import evaluate

    read_inputs(cfg, console, trains=False)
    with TemporaryDirectory() as scratch, start_servers([cfg], console, Path(scratch, "eval")):
        pair, teacher = open_for_evaluation(cfg)
        decode = make_decoder(pair.tokenizer)
        samplers = {
            "student": eval_sampler(student_samplers(cfg, pair, Path(scratch))),
            "teacher": teacher,
        }
        for index, spec in enumerate(cfg.eval):
            task = load_eval_task(cfg, spec, index, pair)
            evaluations = {}
            for who, make in samplers.items():
                sampler = None if make is None else make(task)
                if sampler is None:
                    continue
                if index == 0:
                    sampler.sync(0)
                evaluations[who] = evaluate(sampler, task, decode, seed=cfg.train.seed)
                accuracy = evaluations[who].accuracy
                console.show_evaluation(None, task.label, accuracy, who=who)
            before = None
            if target is not None and target.is_dir():
                before = _before(target, task, cfg.train.seed)
            whole = SetResult(
                task.label, before, evaluations["student"], evaluations.get("teacher")
            )
            for result in (whole, *by_teacher(whole)):
                yield result
                yield from any_of_n(result)


def any_of_n(result: SetResult) -> list[SetResult]:
    """The fraction of prompts with a correct response among all n (pass@n); none for n = 1."""
    n = result.student.correct.shape[1]
    if n == 1:
        return []

    def of(evaluation: Evaluation | None) -> Evaluation | None:
        if evaluation is None:
            return None
        some: np.ndarray = evaluation.correct.max(1, keepdims=True)
        return replace(evaluation, correct=some, accuracy=evaluation.pass_at[n])

    student = of(result.student)
    assert student is not None
    return [SetResult(f"{result.label}, pass@{n}", of(result.before), student, of(result.teacher))]


def by_teacher(result: SetResult) -> list[SetResult]:
    """The same on each teacher's prompts alone; empty where all are of one."""
    names = result.student.names
    if len(names) < 2:
        return []
    before, student, teacher = result.before, result.student, result.teacher
    return [
        SetResult(
            f"{result.label}, prompts of {name}",
            None if before is None else before.of_teacher(name),
            student.of_teacher(name),
            None if teacher is None else teacher.of_teacher(name),
        )
        for name in names
    ]


def _before(folder: Path, task: EvalTask, seed: int) -> Evaluation | None:
    """The run's evaluation at step 0, if it was made of the same prompts with the same decoding."""
    from opd.run import evals
    from opd.training.evaluate import Evaluation

    path = folder / "eval" / f"step-0-{task.label}.json"
    saved = evals.load(path, task.key | {"seed": seed})
    return None if saved is None else Evaluation.of_record(*saved)


def record(result: SetResult) -> dict[str, object]:
    """A result as JSON."""
    evaluations = {"before": result.before, "student": result.student, "teacher": result.teacher}
    estimates = {who: e.accuracy for who, e in evaluations.items() if e is not None}
    changes = {"change": result.change, "gap": result.gap}
    estimates |= {name: e for name, e in changes.items() if e is not None}
    fields = ("value", "low", "high", "n")
    return {"result": result.label} | {
        name: {field: getattr(e, field) for field in fields} for name, e in estimates.items()
    }


def summary(results: Sequence[SetResult]) -> Document:
    """Before, after and teacher side by side, with intervals."""
    from opd.reports.document import Cell, Document, Number, Section, Table
    from opd.reports.formatting import estimate, points, points_range

    def shown(evaluation: Evaluation | None) -> Cell:
        return "\u2013" if evaluation is None else estimate(evaluation.accuracy)

    def difference(value: Estimate | None) -> Cell:
        if value is None:
            return "\u2013"
        return Number(value.value, points(value.value), points_range(value.low, value.high))

    is_run = any(r.before is not None for r in results)
    rows: list[list[Cell]] = []
    for r in results:
        row: list[Cell] = [r.label]
        row += [shown(r.before)] if is_run else []
        row += [shown(r.student)]
        row += [difference(r.change)] if is_run else []
        rows.append([*row, shown(r.teacher), difference(r.gap)])
    trained = ("before", "after", "change") if is_run else ("student",)
    columns = ("set", *trained, "teacher", "teacher's lead")
    note = (
        "95% intervals; changes are paired prompt by prompt. pass@n: prompts with a correct one "
        "among n responses."
    )
    table = Table("Accuracy on held-out sets", columns, rows, note)
    return Document("", "", [Section("accuracy", "", [table])], source="`opd eval`")


def _config_of(target: Path, overrides: Sequence[str]) -> Run:
    if not target.is_dir():
        cfg = config.load(target, overrides)
    else:
        path = target / "config.json"
        if not (target / "final").is_dir() or not path.is_file():
            raise UserError(
                f"{target} is no finished run: it needs config.json and final/. "
                f"Finish it with `opd train ... --resume`, or give a run.yaml."
            )
        data = json.loads(path.read_text("utf-8"))
        require_own_code(data, overrides, where=str(path))
        stored = config.parse_stored(data, where=str(path))
        data["student"] = {"model": str(target / "final"), "precision": stored.student.precision}
        cfg = config.parse_stored(data, overrides, where=str(path))
    if not cfg.eval:
        raise UserError(f"{target} has no `eval` sets; add at least one path with answers.")
    return cfg
