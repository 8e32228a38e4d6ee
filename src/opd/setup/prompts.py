"""Training prompts, held-out sets and supervised examples of a configuration."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from opd.config import EvalSet, Run, SelfTeacher
from opd.data.graders import Grader, grader_for
from opd.data.prompts import PromptSet, load_prompts
from opd.data.sft_examples import read_sft_examples
from opd.data.teacher_prompts import Rendering, TeacherPrompts, make_teacher_prompts
from opd.errors import UserError
from opd.models.configs import rope_parameters
from opd.models.tokenizers import load_tokenizer
from opd.run.console import Console
from opd.samplers.decoding import Decoding
from opd.setup.own_tokenizer import own_tokenizer
from opd.setup.routing import evaluated_teachers, route_prompts
from opd.training.eval_task import EvalTask
from opd.types import Rollout


class Sized(Protocol):
    """A model, as far as lengths of prompts depend on it."""

    @property
    def config(self) -> Any:
        """Its text configuration."""
        ...

    @property
    def context_length(self) -> int | None:
        """Longest sequence it takes."""
        ...


class Tokenized(Protocol):
    """A pair, as far as prompts depend on it: its weights may not be loaded yet."""

    @property
    def tokenizer(self) -> Any:
        """The student's."""
        ...

    @property
    def student(self) -> Sized:
        """The student."""
        ...

    @property
    def teacher(self) -> Sized | None:
        """The teacher in this process."""
        ...


def load_training_prompts(cfg: Run, pair: Tokenized, console: Console) -> PromptSet:
    """The training prompts; a message says how many were dropped."""
    prompts = load_prompts(
        cfg.prompts.source,
        pair.tokenizer,
        template=cfg.prompts.template,
        chat=cfg.prompts.chat,
        max_tokens=max_prompt_tokens(
            cfg, pair, cfg.rollout.max_new_tokens, "rollout.max_new_tokens"
        ),
    )
    if prompts.dropped:
        console.print(
            f"{prompts.dropped} of {prompts.rows} prompts are longer than they may be and are left "
            f"out (prompts.max_tokens={cfg.prompts.max_tokens})."
        )
    return route_prompts(cfg, prompts)


def load_teacher_prompts(
    cfg: Run,
    pair: Tokenized,
    prompts: PromptSet,
    load: Callable[..., Any] = load_tokenizer,
) -> TeacherPrompts | None:
    """What the teacher sees instead of the student's prompts; None where it sees the same.

    Args:
        cfg: the run.
        pair: student and teacher.
        prompts: of the student.
        load: reads a tokenizer of a name and a key.

    Raises:
        UserError: a row without what teacher.prompt needs, or a prompt beyond the context.
    """
    spec, own = cfg.teacher, own_tokenizer(cfg, load)
    if spec is None or (spec.prompt is None and own is None):
        return None
    model = pair.student if isinstance(spec, SelfTeacher) else pair.teacher
    context = None if model is None else model.context_length
    return make_teacher_prompts(
        cfg.prompts.source,
        prompts.prompts,
        # Keywords of the student's chat template mean nothing to another one.
        Rendering(pair.tokenizer, cfg.prompts.template, cfg.prompts.chat)
        if own is None
        else Rendering(own, cfg.prompts.template, None if cfg.prompts.chat is None else {}),
        spec.prompt or "{prompt}",
        longest=None if context is None else context - cfg.rollout.max_new_tokens,
    )


def load_eval_task(cfg: Run, spec: EvalSet, index: int, pair: Tokenized) -> EvalTask:
    """The held-out set at `index` of `eval`, with its grader.

    Raises:
        UserError: a prompt without an answer, or of an unknown teacher.
    """
    new_tokens = spec.max_new_tokens or cfg.rollout.max_new_tokens
    prompts = load_prompts(
        spec.path,
        pair.tokenizer,
        template=spec.template,
        chat=spec.chat,
        max_tokens=max_prompt_tokens(cfg, pair, new_tokens, f"eval.{index}.max_new_tokens"),
        limit=spec.limit,
    )
    grader = grader_for(
        prompts.prompts,
        spec.grader,
        required_by=f"eval.{index}.path={spec.path}",
        remedy="drop the set",
    )
    assert grader is not None
    return EvalTask(
        label=spec.label,
        prompts=prompts,
        grader=grader,
        decoding=Decoding(new_tokens, spec.temperature, spec.top_p),
        n=spec.n,
        every=spec.every,
        teachers=evaluated_teachers(cfg, spec, index, prompts),
    )


def training_grader(cfg: Run, prompts: PromptSet) -> Grader | None:
    """A grader for training rollouts, when their prompts have answers.

    Raises:
        UserError: an outcome reward is asked for and there are no answers.
    """
    weight = cfg.loss.terms.outcome_weight
    return grader_for(
        prompts.prompts,
        cfg.prompts.grader,
        required_by=f"loss.terms.outcome_weight={weight}" if weight > 0 else None,
        remedy="set the weight to 0",
    )


def load_sft_examples(cfg: Run, pair: Tokenized) -> list[Rollout]:
    """The completions of loss.terms.sft_path; none if it is not set."""
    if cfg.loss.terms.sft_path is None:
        return []
    return read_sft_examples(
        cfg.loss.terms.sft_path,
        pair.tokenizer,
        template=cfg.prompts.template,
        chat=cfg.prompts.chat,
        max_tokens=cfg.prompts.max_tokens,
    )


def max_prompt_tokens(cfg: Run, pair: Tokenized, new_tokens: int, key: str) -> int:
    """Longest prompt: prompts.max_tokens, or what the context of both models leaves.

    Args:
        cfg: the run.
        pair: student and teacher.
        new_tokens: of a completion.
        key: that sets it, for the message.

    Raises:
        UserError: when no prompt fits.
    """
    models = [lm for lm in (pair.student, pair.teacher) if lm]
    contexts = [lm.context_length for lm in models if lm.context_length]
    if not contexts:
        return cfg.prompts.max_tokens
    left = min(contexts) - new_tokens
    if left < 1:
        longrope = any(rope_parameters(lm.config, "longrope") for lm in models)
        note = " (with longrope, those of the original context)" if longrope else ""
        raise UserError(
            f"{key}={new_tokens} leaves no room for a prompt: the models read at most "
            f"{min(contexts)} tokens{note}. Lower {key}."
        )
    return min(left, cfg.prompts.max_tokens)
