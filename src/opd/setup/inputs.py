"""Prompts, held-out sets and examples of a run, checked with its pair; no torch.

The same checks run twice: at first on models and tokenizers as their files show them, then as
transformers reads them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from opd.config import Run
from opd.data.prompts import PromptSet
from opd.data.readers import read_rows
from opd.data.routes import digest_routes
from opd.data.teacher_prompts import TeacherPrompts
from opd.run.console import Console
from opd.setup.given_completions import given_completions
from opd.setup.notes import Overlap
from opd.setup.objective import loss_settings
from opd.setup.problems import Problems
from opd.setup.prompts import (
    load_eval_task,
    load_sft_examples,
    load_teacher_prompts,
    load_training_prompts,
    training_grader,
)
from opd.setup.routing import naming, prompts_of, require_mixable
from opd.setup.tokenized_pair import WITH_TRANSFORMERS, Readers, TokenizedPair, read_pair
from opd.training.eval_task import EvalTask


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


def check_inputs(
    cfg: Run,
    console: Console,
    problems: Problems,
    *,
    judges_pair: bool = False,
    readers: Readers = WITH_TRANSFORMERS,
) -> tuple[TokenizedPair | None, Inputs]:
    """The pair and what it is trained on; what is wrong is noted.

    Args:
        cfg: the run.
        console: shows how many prompts are too long.
        problems: gets what is wrong.
        judges_pair: the command itself judges whether the two fit together.
        readers: of models and tokenizers.
    """
    inputs = Inputs()
    pair = read_pair(cfg, problems, judges_pair=judges_pair, readers=readers)
    if cfg.loss.support != "auto":
        problems.attempt(loss_settings, cfg)
    if pair is not None:
        _read_prompts(cfg, pair, problems, inputs, console, readers)
    if inputs.prompts is None or len(inputs.evals) < len(cfg.eval):  # rows may be wrong, too
        for path in (cfg.prompts.source, *(e.path for e in cfg.eval)):
            problems.attempt(read_rows, path)
    return pair, inputs


def _read_prompts(
    cfg: Run,
    pair: TokenizedPair,
    problems: Problems,
    inputs: Inputs,
    console: Console,
    readers: Readers,
) -> None:
    inputs.prompts = problems.attempt(load_training_prompts, cfg, pair, console)
    for i, spec in enumerate(cfg.eval):
        task = problems.attempt(load_eval_task, cfg, spec, i, pair)
        if task is not None:
            inputs.evals.append(task)
    if inputs.prompts is not None:
        problems.attempt(training_grader, cfg, inputs.prompts)
        _read_teacher_prompts(cfg, pair, problems, inputs, readers)
    if cfg.loss.terms.sft_path is not None:
        problems.attempt(load_sft_examples, cfg, pair)
    if cfg.coldstart is not None and cfg.coldstart.path is not None:
        problems.attempt(given_completions, cfg, pair.tokenizer, cfg.coldstart)


def _read_teacher_prompts(
    cfg: Run, pair: TokenizedPair, problems: Problems, inputs: Inputs, readers: Readers
) -> None:
    """What each teacher sees, where that is not the student's prompt."""
    prompts = inputs.prompts
    assert prompts is not None
    if cfg.teachers and cfg.loss.support != "auto":
        prunes = cfg.horizon is not None and cfg.horizon.prune is not None
        wanted = problems.attempt(loss_settings, cfg)
        if wanted is not None:
            problems.attempt(require_mixable, prompts, wanted, prunes)
    for name, member in (pair.members or {"": pair}).items():
        own = cfg.of_teacher(name) if name else cfg
        subset = prompts_of(prompts, name) if name else prompts
        view = (own, member, subset, readers.tokenizer)
        seen = problems.attempt(_named_prompts, name, *view)
        if seen is not None:
            inputs.teacher_prompts[f"teachers.{name}.prompt" if name else "teacher.prompt"] = seen


def _named_prompts(
    name: str, cfg: Run, pair: TokenizedPair, prompts: PromptSet, load: Callable[..., Any]
) -> TeacherPrompts | None:
    if not name:
        return load_teacher_prompts(cfg, pair, prompts, load)
    with naming(name):
        return load_teacher_prompts(cfg, pair, prompts, load)
