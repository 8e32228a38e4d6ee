"""Everything that can be wrong with a run and is known before weights are loaded, all at once.

Configurations, tokenizers and files are read, no weights: seconds, on the largest pair. Whatever is
found wrong is in one message, and nothing has been written.
"""

from __future__ import annotations

import importlib.util
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from opd import config
from opd.config import Run
from opd.data.prompts import PromptSet
from opd.data.readers import read_rows
from opd.data.routes import digest_routes
from opd.data.teacher_prompts import TeacherPrompts
from opd.errors import MissingDependency, UserError
from opd.run.console import Console
from opd.run.layout import INPUTS
from opd.run.manifest import list_checkpoints
from opd.run.outputs import require_folders_apart, require_writable_parent
from opd.run.preflight import check_folder, check_name, require_safe_name
from opd.samplers.replay import read_rollouts
from opd.setup.coldstart_source import given_completions
from opd.setup.notes import Overlap, find_notes, find_overlaps
from opd.setup.objective import make_objective
from opd.setup.prompts import (
    load_eval_task,
    load_sft_examples,
    load_teacher_prompts,
    load_training_prompts,
    training_grader,
)
from opd.setup.routing import naming, prompts_of, require_mixable
from opd.setup.samplers import require_rollout_server
from opd.setup.tokenized_pair import Problems, TokenizedPair, is_offline, read_pair
from opd.training.evaluate import EvalTask

log = logging.getLogger(__name__)

T = TypeVar("T")
TRACKERS = {"tensorboard": "tensorboard", "wandb": "wandb", "trackio": "trackio"}


@dataclass
class Inputs:
    """What a run reads beside weights.

    Attributes:
        prompts: of training.
        evals: held-out sets.
        overlaps: held-out sets that share questions with the training prompts.
        notes: to be said, nothing to be refused.
        models: identity of student and teacher.
        teacher_prompts: by key of the template, what a teacher sees that is not the student's
            prompt.
    """

    prompts: PromptSet | None = None
    evals: list[EvalTask] = field(default_factory=list)
    overlaps: list[Overlap] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    models: dict[str, str] = field(default_factory=dict)
    teacher_prompts: dict[str, TeacherPrompts] = field(default_factory=dict)

    def record(self) -> dict[str, Any]:
        """Plain values for `inputs.json`."""
        assert self.prompts is not None
        routes = self.prompts.routes
        return {
            "hashes": {
                "prompts": self.prompts.digest,
                **{key: seen.digest for key, seen in self.teacher_prompts.items()},
                **({"teachers": digest_routes(routes)} if routes else {}),
                **{f"eval {task.label}": task.prompts.digest for task in self.evals},
                **self.models,
            },
            "overlaps": [overlap.record() for overlap in self.overlaps],
            "notes": self.notes,
        }


def read_inputs(
    cfg: Run, console: Console, *, trains: bool = True, judges_pair: bool = False
) -> Inputs:
    """Read and check all that a run reads beside weights.

    Args:
        cfg: the run.
        console: shows how many prompts are too long.
        trains: False for commands that write no run folder.
        judges_pair: the command itself judges whether the two fit together.

    Raises:
        UserError: with everything that is wrong.
    """
    problems, inputs = Problems(), Inputs()
    problems.attempt(require_folders_apart, config.dump(cfg))
    if trains:
        for tracker in cfg.output.trackers:
            problems.attempt(require_package, tracker)
    for i, spec in enumerate(cfg.eval):
        problems.attempt(require_safe_name, spec.label, "held-out set", f"eval.{i}.name")
    pair = read_pair(cfg, problems, judges_pair=judges_pair)
    if cfg.loss.support != "auto":
        problems.attempt(make_objective, cfg)
    _read_files(cfg, problems)
    if pair is None:
        for path in (cfg.prompts.source, *(e.path for e in cfg.eval)):
            problems.attempt(read_rows, path)
    else:
        _read_prompts(cfg, pair, problems, inputs, console)
    problems.raise_all()
    assert pair is not None
    assert inputs.prompts is not None
    inputs.models = {r: f.identity for r, f in pair.models().items()}
    inputs.overlaps = find_overlaps(cfg, [p.index for p in inputs.prompts.prompts])
    inputs.notes = find_notes(cfg, inputs.prompts, pair.templates)
    for note in (*map(str, inputs.overlaps), *inputs.notes):
        log.warning(note)
    return inputs


def require_run_folder(cfg: Run, *, resume: bool, overwrite: bool) -> None:
    """Check that the run folder may be written, before anything is loaded.

    Raises:
        UserError: as `opd.run.folder.RunFolder.create`; nothing to resume.
    """
    folder = Path(cfg.output.dir)
    if not cfg.output.dir.strip():
        raise UserError("output.dir is empty; name a folder for the run.")
    require_flags(resume=resume, overwrite=overwrite)
    done = 0
    try:
        check_name(folder)
        require_writable_parent(folder, "output.dir")
        if cfg.loss.support != "auto" or not resume:  # else it depends on the teacher
            check_folder(folder, config.dump(cfg), resume, overwrite)
        done = max((step for step, _ in list_checkpoints(folder / "checkpoints")), default=0)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"output.dir={str(folder)[:80]!r} cannot be a run folder: {reason}."
        ) from None
    if resume:
        _require_steps_left(cfg, done)


def _require_steps_left(cfg: Run, done: int) -> None:
    if done > cfg.train.steps:
        raise UserError(
            f"train.steps={cfg.train.steps}, but the run in {cfg.output.dir} has a checkpoint of "
            f"step {done}. Set train.steps to {done} or more, or start over with --overwrite."
        )


def require_same_inputs(cfg: Run, inputs: Inputs) -> None:
    """Refuse to resume a run whose prompts or models have changed since it began.

    Raises:
        UserError: naming what changed.
    """
    path = Path(cfg.output.dir) / INPUTS
    try:
        before = json.loads(path.read_bytes())["hashes"]
    except FileNotFoundError:
        return  # a run of an earlier version
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"{path} is damaged. Remove it to resume without comparing.") from None
    now = inputs.record()["hashes"]
    changed = [k for k in now if k in before and before[k] != now[k]]
    if changed:
        raise UserError(
            f"Since the run in {cfg.output.dir} began, this has changed: {', '.join(changed)}. "
            "Going on would mix two runs. Put the old files back, or start a new run (another "
            "output.dir)."
        )


def require_flags(*, resume: bool, overwrite: bool) -> None:
    """Refuse to continue a run and to start it over at once."""
    if resume and overwrite:
        raise UserError("--resume and --overwrite exclude each other: continue, or start over?")


def require_resumable(cfg: Run) -> None:
    """Refuse `--resume` where no run has begun: a typing error would start a new one.

    A start that was killed before it wrote anything of value has left a folder, and begins again.

    Raises:
        UserError: naming the folder.
    """
    folder = Path(cfg.output.dir)
    if not folder.is_dir() or not any(folder.iterdir()):
        raise UserError(
            f"--resume: there is no run in output.dir={folder} to go on with. Check the name, or "
            "start it without --resume."
        )


def require_package(tracker: str) -> None:
    """Check that the package of a tracker is installed.

    Raises:
        MissingDependency: it is not.
    """
    if importlib.util.find_spec(TRACKERS[tracker]) is None:
        raise MissingDependency(
            TRACKERS[tracker], needed_for=f"output.trackers=[{tracker}]", extra=tracker
        )


def _read_files(cfg: Run, problems: Problems) -> None:
    """Files that need no tokenizer."""
    if cfg.rollout.url is not None:
        problems.attempt(require_rollout_server, cfg)
    if cfg.rollout.path is not None:
        problems.attempt(read_rollouts, Path(cfg.rollout.path))
    for key, path in _row_files(cfg):
        problems.attempt(_named, key, read_rows, path)
    if is_offline(cfg):
        problems.attempt(_require_cache, cfg)


def _row_files(cfg: Run) -> Sequence[tuple[str, str]]:
    files = [("loss.terms.sft_path", cfg.loss.terms.sft_path)]
    if cfg.coldstart is not None:
        files.append(("coldstart.prompts", cfg.coldstart.prompts))
        if cfg.coldstart.path is not None and not Path(cfg.coldstart.path).exists():
            files.append(("coldstart.path", cfg.coldstart.path))
    return [(key, path) for key, path in files if path is not None]


def _named(key: str, read: Callable[[str], T], path: str) -> T:
    try:
        return read(path)
    except UserError as error:
        raise UserError(f"{key}: {error}") from None


def _require_cache(cfg: Run) -> None:
    assert cfg.teacher is not None
    assert cfg.teacher.cache is not None
    folder = Path(cfg.teacher.cache.dir)
    if not folder.is_dir() or not any(folder.iterdir()):
        raise UserError(
            f"teacher.cache.offline=true, but teacher.cache.dir={folder} holds no scores. Make "
            "them with `opd serve-teacher run.yaml --score ROLLOUTS`, or set "
            "teacher.cache.offline=false."
        )


def _read_prompts(
    cfg: Run, pair: TokenizedPair, problems: Problems, inputs: Inputs, console: Console
) -> None:
    inputs.prompts = problems.attempt(load_training_prompts, cfg, pair, console)
    for i, spec in enumerate(cfg.eval):
        task = problems.attempt(load_eval_task, cfg, spec, i, pair)
        if task is not None:
            inputs.evals.append(task)
    if inputs.prompts is not None:
        problems.attempt(training_grader, cfg, inputs.prompts)
        _read_teacher_prompts(cfg, pair, problems, inputs)
    if cfg.loss.terms.sft_path is not None:
        problems.attempt(load_sft_examples, cfg, pair)
    if cfg.coldstart is not None and cfg.coldstart.path is not None:
        problems.attempt(given_completions, cfg, pair.tokenizer, cfg.coldstart)


def _read_teacher_prompts(
    cfg: Run, pair: TokenizedPair, problems: Problems, inputs: Inputs
) -> None:
    """What each teacher sees, where that is not the student's prompt."""
    prompts = inputs.prompts
    assert prompts is not None
    if cfg.teachers and cfg.loss.support != "auto":
        prunes = cfg.horizon is not None and cfg.horizon.prune is not None
        objective = problems.attempt(make_objective, cfg)
        if objective is not None:
            problems.attempt(require_mixable, prompts, objective, prunes)
    for name, member in (pair.members or {"": pair}).items():
        own = cfg.of_teacher(name) if name else cfg
        subset = prompts_of(prompts, name) if name else prompts
        seen = problems.attempt(_named_prompts, name, own, member, subset)
        if seen is not None:
            inputs.teacher_prompts[f"teachers.{name}.prompt" if name else "teacher.prompt"] = seen


def _named_prompts(
    name: str, cfg: Run, pair: TokenizedPair, prompts: PromptSet
) -> TeacherPrompts | None:
    if not name:
        return load_teacher_prompts(cfg, pair, prompts)
    with naming(name):
        return load_teacher_prompts(cfg, pair, prompts)
