"""The Python library: every command as a call, and a run made of Python objects."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias, cast

from opd import config
from opd.commands.eval import SetResult, evaluate_target, summary
from opd.commands.results import Result
from opd.config.python_objects import PREFIX, remember
from opd.errors import UserError
from opd.reports.document import Code, Document, Section
from opd.run.console import Style
from opd.run.disk import write_output
from opd.types import Grading, Reward, Teacher

Rows: TypeAlias = str | Path | Iterable[str | Mapping[str, Any]]
Source: TypeAlias = str | Path | config.Run


class Run:
    """A run made of Python objects instead of a run.yaml.

    Prompts that are given as rows, and a model that is given as an object, are written beside the
    run folder (`<output>.inputs/`), so that the run can be resumed and repeated from its files.

    Args:
        student: folder or hub name, a pair (model, tokenizer) of transformers, or a mapping as in
            run.yaml whose `model` is one of them.
        teacher: folder or hub name, an object that follows `opd.types.Teacher`, or a mapping as in
            run.yaml, such as {"url": ..., "model": ...}; None: the reward alone trains.
        prompts: file; rows: strings, or mappings with `prompt` (or `messages`) and `answer`; or a
            mapping as in run.yaml whose `path` is one of them.
        reward: `reward(completion, answer)`, a finite number for every training rollout; it is
            logged, and trains where loss.terms.outcome_weight is above 0.
        grader: `grader(completion, answer)`, True or False, for held-out answers.
        output: the run folder, or a mapping as in run.yaml whose `dir` is one.
        **settings: other sections of run.yaml, such as `train={"steps": 50}`. The path of an
            `eval` set may be rows, too; `rollout.python`, and each of `alarms.python` and
            `output.trackers`, an object.

    Attributes:
        config: the validated configuration.

    Raises:
        UserError: as `opd.load`.
    """

    def __init__(
        self,
        student: str | Path | tuple[Any, Any] | Mapping[str, Any],
        teacher: str | Path | Teacher | Mapping[str, Any] | None,
        prompts: Rows | Mapping[str, Any],
        *,
        reward: Reward | None = None,
        grader: Grading | None = None,
        output: str | Path | Mapping[str, Any] = "runs/python",
        **settings: Any,
    ) -> None:
        folder = dict(output) if isinstance(output, Mapping) else {"dir": output}
        folder = {"dir": "runs/python"} | _plain(folder)
        self._inputs = Path(f"{folder['dir']}.inputs")
        data: dict[str, Any] = {name: _plain(value) for name, value in settings.items()}
        section = dict(student) if isinstance(student, Mapping) else {"model": student}
        data["student"] = section | {"model": self._student(section.get("model"))}
        data["teacher"] = _teacher(teacher)
        data["output"] = folder | {"dir": str(folder["dir"])}
        _remember_objects(data)
        section = dict(prompts) if isinstance(prompts, Mapping) else {"path": prompts}
        data["prompts"] = section | {"path": self._rows("train", section.get("path", []))}
        if reward is not None:
            data["prompts"]["grader"] = PREFIX + remember(reward)
        for i, each in enumerate(data.get("eval", [])):
            each["path"] = self._rows(each.get("name") or f"eval-{i}", each["path"])
            if grader is not None:
                each.setdefault("grader", PREFIX + remember(grader))
        self.config = config.parse(data, where="opd.Run")

    def train(
        self, *, resume: bool = False, overwrite: bool = False, style: Style = "auto"
    ) -> dict[str, Any]:
        """The whole run; see `opd.train`.

        Args:
            resume: continue an interrupted run.
            overwrite: replace the run in the folder.
            style: what is printed: auto, plain, json or quiet.
        """
        from opd.commands.train import run_train

        return run_train(self.config, resume=resume, overwrite=overwrite, style=style)

    def check(self, *, budget: float | None = None) -> Result[dict[str, Any]]:
        """Will this teacher help this student? See `opd.check`."""
        return check(self.config, budget=budget)

    def evaluate(self) -> Result[list[SetResult]]:
        """Accuracy of student and teacher as they are before training; see `opd.evaluate`."""
        return evaluate(self.config)

    def report(self) -> Result[dict[str, Any]]:
        """The report of the run folder; see `opd.report`."""
        return report(self.config.output.dir)

    def _rows(self, name: str, rows: Rows) -> str:
        """A file of the rows, unless they are one already."""
        if isinstance(rows, str | Path):
            return str(rows)
        records = [{"prompt": row} if isinstance(row, str) else dict(row) for row in rows]
        if not records:
            raise UserError(f"opd.Run: {name} has no rows. Give at least one prompt.")
        path = self._inputs / f"{name}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        text = "".join(json.dumps(record, default=str) + "\n" for record in records)
        write_output(path, text.encode())
        return str(path)

    def _student(self, student: Any) -> str:
        """The folder of the student; a model in memory is saved to one."""
        if isinstance(student, str | Path):
            return str(student)
        if not isinstance(student, tuple) or len(student) != 2:
            raise UserError(
                "opd.Run: student must be a folder, a hub name, or a pair (model, tokenizer); got "
                f"{type(student).__name__}."
            )
        model, tokenizer = student
        folder = self._inputs / "student"
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return str(folder)


def _teacher(teacher: str | Path | Teacher | Mapping[str, Any] | None) -> dict[str, Any] | None:
    if teacher is None:
        return None
    if isinstance(teacher, Mapping):
        return dict(teacher)
    if isinstance(teacher, str | Path):
        name = str(teacher)
        if name.startswith(("http://", "https://")):
            raise UserError(
                f"opd.Run: a teacher server needs its model's name, too: "
                f'teacher={{"url": {name!r}, "model": "..."}}.'
            )
        return {"model": name}
    return {"python": remember(teacher)}


def _remember_objects(data: dict[str, Any]) -> None:
    """Names in the place of a sampler, trackers and alarms that are given as objects."""
    for section, key in (("rollout", "python"), ("alarms", "python"), ("output", "trackers")):
        prefix = PREFIX if key == "trackers" else ""
        given = data.get(section, {}).get(key)
        if isinstance(given, list):
            data[section][key] = [
                each if isinstance(each, str) else prefix + remember(each) for each in given
            ]
        elif given is not None and not isinstance(given, str):
            data[section][key] = prefix + remember(given)


def _plain(value: Any) -> Any:
    """A private copy of settings; rows of prompts stay as they are."""
    if isinstance(value, Mapping):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_plain(v) for v in value]
    return value


def check(
    source: Source, overrides: Sequence[str] = (), *, budget: float | None = None
) -> Result[dict[str, Any]]:
    """Before a run: will this teacher help this student on these prompts?

    Args:
        source: run.yaml (whose teacher may be a list), or a configuration.
        overrides: `key=value`; for a file.
        budget: seconds; None: 5 % of a long run, two minutes of a short one.

    Returns:
        The record of the check; `value["verdict"]` is go, go with changes, not known or don't.

    Raises:
        UserError: wrong input, or a teacher that cannot be reached.
    """
    import tempfile

    from opd.commands.check import output
    from opd.commands.check.rounds import Budget
    from opd.commands.check.run import check as run
    from opd.reports.check_page import check_document
    from opd.run.console import Console
    from opd.setup.preflight import read_inputs

    is_config = isinstance(source, config.Run)
    cfgs = [source] if isinstance(source, config.Run) else config.load_each(source, overrides)
    if names := ", ".join(cfgs[0].teachers):
        raise UserError(
            f"opd.check looks at one teacher, and teachers has {names}. `opd check FILE` on the "
            "command line checks each on its own prompts."
        )
    several = {"teacher": None} if len(cfgs) > 1 else {}
    quiet = Console("quiet")
    read_inputs(cfgs[0].model_copy(update=several), quiet, trains=False, judges_pair=True)
    name = "opd.check" if is_config else str(source)
    with tempfile.TemporaryDirectory() as scratch:
        record = output.to_record(run(name, cfgs, Budget(budget), Path(scratch)))
    return Result(record, check_document(record))


def evaluate(
    source: Source, overrides: Sequence[str] = (), *, style: Style = "quiet"
) -> Result[list[SetResult]]:
    """Accuracy of student and teacher on the held-out sets, with intervals.

    Args:
        source: run.yaml, a run folder, or a configuration.
        overrides: `key=value`; for a file or folder.
        style: what is printed on the way.

    Raises:
        UserError: no finished run, or no held-out set.
    """
    from opd.commands.eval import evaluate_config

    if isinstance(source, config.Run):
        results = evaluate_config(source, style)
    else:
        results = evaluate_target(Path(source), overrides, style)
    return Result(results, summary(results))


def report(run: str | Path) -> Result[dict[str, Any]]:
    """Write the report of a run folder, finished or not.

    Args:
        run: the folder.

    Returns:
        The JSON sidecar of the report, and the path of the HTML.

    Raises:
        UserError: no run folder.
    """
    from opd.commands.report import report_and_write

    document, path = report_and_write(Path(run))
    return Result(document.record(), document, path)


def compare(
    runs: Sequence[str | Path], out: str | Path | None = None, *, overwrite: bool = False
) -> Result[dict[str, Any]]:
    """Compare runs, paired prompt by prompt; runs of several seeds as groups.

    Args:
        runs: run folders; the first is the base.
        out: HTML file to write; None: none.
        overwrite: replace an older report.

    Raises:
        UserError: too few runs, one that is no run folder, or `out` exists.
    """
    from opd.commands.report import compare_and_write
    from opd.reports.compare_page import compare_document
    from opd.reports.read import read_run

    paths = [Path(run) for run in runs]
    if out is None:
        document = compare_document([read_run(path) for path in paths])
        return Result(document.record(), document)
    document, path = compare_and_write(paths, Path(out), overwrite=overwrite)
    return Result(document.record(), document, path)


def export(run: str | Path, out: str | Path | None = None, *, merge: bool = False) -> Result[Any]:
    """The trained student as a Hugging Face folder with a model card, reloaded to check.

    Args:
        run: the run folder.
        out: folder to write; None: `export` in the run folder.
        merge: merge a LoRA adapter into the weights.

    Returns:
        An `opd.commands.export.Exported`.

    Raises:
        UserError: nothing to export, or a folder that is in the way.
    """
    from opd.commands.export import export_run

    exported = export_run(Path(run), None if out is None else Path(out), merge=merge)
    parts = [Code("Exported", str(exported))]
    document = Document("Export", Path(run).name, [Section("export", "", parts)])
    return Result(exported, document, exported.path)


def select(
    source: Source, overrides: Sequence[str] = (), *, overwrite: bool = False
) -> Result[dict[str, Any]]:
    """Choose the prompts, and the template, on which this teacher can teach this student.

    Args:
        source: run.yaml or a configuration, with a `select` section.
        overrides: `key=value`; for a file.
        overwrite: replace what an earlier call wrote.

    Returns:
        The record of the selection, and the path of its report.

    Raises:
        UserError: as `opd select`.
    """
    from opd.commands.select import run_select
    from opd.reports.select_page import select_document

    cfg = source if isinstance(source, config.Run) else config.load(source, overrides)
    record = run_select(cfg, overwrite=overwrite)
    output = Path(cast(config.Select, cfg.select).output)
    document = select_document(record, source=cfg.prompts.name)
    return Result(record, document, output.with_suffix(".html"))
