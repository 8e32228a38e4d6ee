"""Everything that can be wrong with a run and is known before weights are loaded, all at once.

Configurations, tokenizers and files are read, no weights: seconds, on the largest pair. Whatever is
found wrong is in one message, and nothing has been written.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from opd.config import Run
from opd.data.prompts import PromptSet
from opd.data.readers import read_rows
from opd.data.routes import digest_routes
from opd.data.teacher_prompts import TeacherPrompts
from opd.errors import UserError
from opd.run.console import Console
from opd.run.layout import INPUTS
from opd.setup.coldstart_source import given_completions
from opd.setup.disk_estimate import require_space_for_weights
from opd.setup.first_look import look_at_settings
from opd.setup.memory_advice import require_memory
from opd.setup.notes import Overlap, find_notes, find_overlaps
from opd.setup.objective import make_objective
from opd.setup.problems import Problems
from opd.setup.prompts import (
    load_eval_task,
    load_sft_examples,
    load_teacher_prompts,
    load_training_prompts,
    training_grader,
)
from opd.setup.routing import naming, prompts_of, require_mixable
from opd.setup.samplers import require_rollout_server
from opd.setup.tokenized_pair import TokenizedPair, read_pair
from opd.training.evaluate import EvalTask

log = logging.getLogger(__name__)


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

    @property
    def longest_prompt(self) -> int | None:
        """Tokens of the longest prompt of training; None if none could be read."""
        if self.prompts is None:
            return None
        return max(len(prompt.ids) for prompt in self.prompts.prompts)

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
    cfg: Run,
    console: Console,
    *,
    trains: bool = True,
    judges_pair: bool = False,
    problems: Problems | None = None,
) -> Inputs:
    """Read and check all that a run reads beside weights.

    Args:
        cfg: the run.
        console: shows how many prompts are too long.
        trains: False for commands that write no run folder.
        judges_pair: the command itself judges whether the two fit together.
        problems: found before, to be said with those found here.

    Raises:
        UserError: with everything that is wrong.
    """
    problems, inputs = problems or Problems(), Inputs()
    look_at_settings(cfg, problems, trains=trains)
    pair = read_pair(cfg, problems, judges_pair=judges_pair)
    if cfg.loss.support != "auto":
        problems.attempt(make_objective, cfg)
    if cfg.rollout.url is not None:
        problems.attempt(require_rollout_server, cfg)
    if pair is None:
        for path in (cfg.prompts.source, *(e.path for e in cfg.eval)):
            problems.attempt(read_rows, path)
    else:
        _read_prompts(cfg, pair, problems, inputs, console)
        if trains:
            _require_room(cfg, pair, inputs, problems)
    problems.raise_all()
    assert pair is not None
    assert inputs.prompts is not None
    inputs.models = {r: f.identity for r, f in pair.models().items()}
    inputs.overlaps = find_overlaps(cfg, [p.index for p in inputs.prompts.prompts])
    inputs.notes = find_notes(cfg, inputs.prompts, pair.templates)
    for note in (*map(str, inputs.overlaps), *inputs.notes):
        log.warning(note)
    return inputs


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


def _require_room(cfg: Run, pair: TokenizedPair, inputs: Inputs, problems: Problems) -> None:
    """Disk and memory."""
    folder = Path(pair.student.name).expanduser()
    if folder.is_dir():
        problems.attempt(require_space_for_weights, cfg, folder)
    problems.attempt(require_memory, cfg, inputs.longest_prompt)


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
