"""Where the completions of a cold start come from: the teacher's sampler, or files."""

from __future__ import annotations

from pathlib import Path

from opd.config import Coldstart, Run
from opd.data.graders import grader_for
from opd.data.prompts import PromptSet, load_prompts
from opd.errors import UserError
from opd.recipes.coldstart import CompletionSource
from opd.run.checkpoint import find_newest_checkpoint
from opd.samplers.decoding import Decoding
from opd.setup.given_completions import completion_order, given_completions
from opd.setup.models import Models
from opd.types import Prompt, Sampler

# Of prompts.path that the phase may use where it has no prompts of its own: it ends by itself, most
# often long before that, and on-policy training must keep enough.
PROMPT_FRACTION = 0.5


def probe_size(cold: Coldstart) -> int:
    """Prompts on which the student's overlap is measured after each round.

    A quarter of a round, so that measuring costs at most a quarter of its tokens.
    """
    return max(1, cold.completions_per_round // 4)


def completion_source(
    models: Models, prompts: PromptSet, *, processes: int, resume: bool
) -> CompletionSource | None:
    """The completions of the configured cold start; None without one.

    Args:
        models: student and teacher.
        prompts: training prompts.
        processes: how many make up the run.
        resume: the run in output.dir goes on.

    Raises:
        UserError: more than one process before the hand-over, prompts or completions that cannot be
            read, ground truths missing for coldstart.answer=right, a teacher that cannot generate.
    """
    cfg, pair = models.cfg, models.pair
    cold = cfg.coldstart
    if cold is None:
        return None
    require_one_process(cfg, cold, processes, resume=resume)
    given = given_completions(cfg, pair.tokenizer, cold)
    own = [] if given else _prompts(models, cold, prompts)
    stop, end = pair.stop, pair.tokenizer.eos_token_id
    order = completion_order(len(prompts.prompts), cfg.train.seed)
    return CompletionSource(
        prompts=own,
        given=given,
        sampler=None if given else teacher_sampler(models, cold),
        probe=[prompts.prompts[i] for i in order[-probe_size(cold) :]],
        grader=grader_for(
            own or [r.prompt for r in given],
            cfg.prompts.grader,
            required_by="coldstart.answer=right" if cold.answer == "right" else None,
            remedy="set coldstart.answer=found",
        ),
        stop=stop,
        end=end if end in stop else min(stop),
    )


def require_one_process(cfg: Run, cold: Coldstart, processes: int, *, resume: bool) -> None:
    """Refuse a cold start by several processes, unless it is done.

    That of a run which is going to be replaced is not.

    Raises:
        UserError: with the two commands that work.
    """
    if processes == 1:
        return
    if cold.when == "alarm":
        raise UserError(
            f"coldstart.when=alarm: a cold start runs in one process, and there are {processes}. "
            "Start this run with one, or set coldstart.when=start."
        )
    if not resume or find_newest_checkpoint(Path(cfg.output.dir) / "checkpoints") is None:
        raise UserError(
            f"The cold start runs in one process, and there are {processes}. Make it first: `opd "
            "coldstart run.yaml`; then continue with torchrun ... opd train run.yaml --resume."
        )


def teacher_sampler(models: Models, cold: Coldstart) -> Sampler:
    """The teacher's sampler with the phase's decoding.

    Raises:
        UserError: a teacher that cannot generate.
    """
    new_tokens = cold.max_new_tokens or models.cfg.rollout.max_new_tokens
    make = models.teacher_samplers()
    if make is None:
        raise UserError(
            "The teacher server scores and does not generate, so it cannot make the completions of "
            "a cold start. Serve the teacher with vLLM, use a teacher in this process, or give "
            "completions in coldstart.path."
        )
    return make(Decoding(new_tokens, cold.temperature, cold.top_p), None)


def _prompts(models: Models, cold: Coldstart, prompts: PromptSet) -> list[Prompt]:
    """The prompts the teacher answers, in order of use."""
    cfg = models.cfg
    if cold.prompts is None:
        order = completion_order(len(prompts.prompts), cfg.train.seed)
        count = max(1, int(PROMPT_FRACTION * len(order)))
        return [prompts.prompts[i] for i in order[:count]]
    new_tokens = cold.max_new_tokens or cfg.rollout.max_new_tokens
    context, max_tokens = models.pair.student.context_length, cfg.prompts.max_tokens
    if context is not None:
        max_tokens = min(max_tokens, max(1, context - new_tokens))
    own = load_prompts(
        cold.prompts,
        models.pair.tokenizer,
        template=cfg.prompts.template,
        chat=cfg.prompts.chat,
        max_tokens=max_tokens,
    ).prompts
    return [own[i] for i in completion_order(len(own), cfg.train.seed)]
