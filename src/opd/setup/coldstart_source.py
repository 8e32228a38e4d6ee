"""Where the completions of a cold start come from: the teacher's own pen, or files."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow.parquet as pq

from opd.config import Coldstart, Run
from opd.data.graders import grader_for
from opd.data.prompts import PromptSet, load_prompts
from opd.data.sft_examples import load_gold
from opd.errors import UserError
from opd.models.lm import LM
from opd.recipes.coldstart import Supply, interlude, warm_up
from opd.rng import Stream, generator
from opd.run import checkpoint as store
from opd.samplers.hf import Decoding, HFSampler
from opd.samplers.replay import read_rollouts
from opd.setup import remote_teacher
from opd.training.loop import Parts
from opd.types import Prompt, Rollout, Sampler

if TYPE_CHECKING:
    from opd.setup.pair import Pair


def warm_up_of(
    cfg: Run,
    pair: Pair,
    remote: remote_teacher.Remote | None,
    prompts: PromptSet,
    *,
    processes: int,
) -> Callable[..., Parts] | None:
    """The cold start as the loop calls it, before the first step or after one; None without.

    Args:
        cfg: the run.
        pair: student and, if it is in this process, teacher.
        remote: a teacher behind HTTP.
        prompts: training prompts.
        processes: how many make up the run.

    Raises:
        UserError: more than one process before the hand-over, prompts or completions that cannot be
            read, ground truths missing for coldstart.answer=right, a teacher server that only
            scores.
    """
    if cfg.coldstart is None:
        return None
    if processes > 1 and cfg.coldstart.when == "alarm":
        raise UserError(
            f"coldstart.when=alarm: a cold start runs in one process, and there are {processes}. "
            "Start this run with one, or set coldstart.when=start."
        )
    if processes > 1 and store.newest(Path(cfg.output.dir) / "checkpoints") is None:
        raise UserError(
            f"The cold start runs in one process, and there are {processes}. Make it first: `opd "
            "coldstart run.yaml`; then continue with torchrun ... opd train run.yaml --resume."
        )
    cold = cfg.coldstart
    given = given_completions(cfg, cold, pair.tokenizer)
    own = [] if given else _prompts(cfg, cold, pair.tokenizer, pair.student, prompts)
    length = cold.max_new_tokens or cfg.rollout.max_new_tokens
    decoding = Decoding(length, cold.temperature, cold.top_p)
    writer: Sampler | None = None
    if not given and pair.teacher is not None:
        writer = HFSampler(
            pair.teacher, decoding, stop=pair.teacher_stop, capture=1, batch=cfg.rollout.batch
        )
    elif not given:
        assert remote is not None
        writer = remote.writer(pair.student, pair.tokenizer, decoding, pair.stop)
    end = pair.tokenizer.eos_token_id
    last = _order(len(prompts.prompts), cfg.train.seed)[-cold.probe_prompts :]
    supply = Supply(
        prompts=own,
        given=given,
        writer=writer,
        probe=[prompts.prompts[i] for i in last],
        grader=grader_for(
            own or [r.prompt for r in given],
            cfg.prompts.grader,
            required_by="coldstart.answer=right" if cold.answer == "right" else None,
            remedy="set coldstart.answer=found",
        ),
        stop=pair.stop,
        end=end if end in pair.stop else min(pair.stop),
    )
    return partial(warm_up if cold.when == "start" else interlude, supply=supply)


def given_completions(cfg: Run, cold: Coldstart, tokenizer: Any) -> list[Rollout]:
    """What coldstart.path holds, in an order drawn from train.seed; empty without a path."""
    if cold.path is None:
        return []
    path = Path(cold.path)
    if path.is_dir() or _is_rollout_file(path):
        found = read_rollouts(path, key="coldstart.path")
    else:
        found = load_gold(
            cold.path,
            tokenizer,
            template=cfg.prompts.template,
            chat=cfg.prompts.chat,
            max_tokens=cfg.prompts.max_tokens,
            key="coldstart.path",
        )
    return [found[i] for i in _order(len(found), cfg.train.seed)]


def _is_rollout_file(path: Path) -> bool:
    """A parquet file may hold rollouts or rows of prompt and completion; its columns tell."""
    if path.suffix != ".parquet" or not path.is_file():
        return False
    return {"prompt_ids", "ids", "finish"} <= set(pq.read_schema(path).names)


def _prompts(
    cfg: Run, cold: Coldstart, tokenizer: Any, student: LM, prompts: PromptSet
) -> list[Prompt]:
    """The prompts the teacher answers, in order of use."""
    if cold.prompts is None:
        order = _order(len(prompts.prompts), cfg.train.seed)
        most = max(1, int(cold.share * len(order)))
        return [prompts.prompts[i] for i in order[:most]]
    room = cold.max_new_tokens or cfg.rollout.max_new_tokens
    found = load_prompts(
        cold.prompts,
        tokenizer,
        template=cfg.prompts.template,
        chat=cfg.prompts.chat,
        max_tokens=cfg.prompts.max_tokens,
        context=None if student.context_length is None else max(1, student.context_length - room),
    ).prompts
    return [found[i] for i in _order(len(found), cfg.train.seed)]


def _order(count: int, seed: int) -> list[int]:
    rng = generator(seed, Stream.COLDSTART_ORDER)
    order: list[int] = rng.permutation(count).tolist()
    return order
