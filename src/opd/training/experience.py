"""One step's experience: prompts to rollouts to scores to an aligned batch.

What is random here is a function of (seed, step, index). What is expensive is on disk before the
update, so that a step that was interrupted is neither generated nor paid for twice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from opd.config import Run
from opd.core import diagnostics, losses
from opd.core.batch import Batch, check_scores
from opd.core.objective import Objective
from opd.data.graders import Grader
from opd.data.prompts import PromptSet
from opd.data.sft_examples import choose
from opd.errors import UserError
from opd.rng import Stream, generator, key
from opd.run.folder import RunFolder
from opd.teachers.remote import TeacherDown
from opd.training.horizon import pruned
from opd.types import Mean, Metrics, Rollout, Sampler, Scores, Teacher


@dataclass(frozen=True)
class Source:
    """What makes experience: the student's prompts and sampler, the teacher, the judge."""

    prompts: PromptSet
    sampler: Sampler
    teacher: Teacher | None
    reference: Teacher | None
    judge: Grader | None  # grades rollouts whose prompts have answers
    special: Tensor | None  # token ids without loss (stop tokens excepted); None: none
    stop: Tensor
    gold: Sequence[Rollout]  # completions to imitate beside the distillation; may be empty
    decode: Callable[[Sequence[int]], str]


def sample(
    source: Source, run: RunFolder, cfg: Run, step: int, limit: int | None = None
) -> tuple[list[Rollout], list[Scores] | None]:
    """Rollouts of a step, of at most `limit` tokens.

    From disk, scores included, if an interrupted run left them.
    """
    saved = run.load_rollouts(step + 1, run.key(step + 1, step))
    if saved is not None:
        return saved
    seed = cfg.train.seed
    prompts = source.prompts.batch(
        step, cfg.train.prompts_per_step, seed=seed, shuffle=cfg.prompts.shuffle
    )
    words = key(seed, Stream.ROLLOUT, step)
    return source.sampler.sample(prompts, n=cfg.rollout.n, key=words, limit=limit), None


def score(
    source: Source,
    run: RunFolder,
    cfg: Run,
    objective: Objective,
    step: int,
    rollouts: list[Rollout],
    scores: list[Scores] | None,
) -> Batch:
    """The step's batch. Scores that were not on disk are asked for, then put there."""
    if scores is None or (source.teacher is not None and not all(map(is_scored, scores))):
        texts = [source.decode(r.ids.tolist()) for r in rollouts]
        made_from = run.key(step + 1, step)
        try:
            scores = ask(source, cfg, objective, step, rollouts, scores)
        except TeacherDown as down:
            kept = [s or Scores() for s in down.partial]
            run.save_rollouts(step + 1, rollouts, kept, key=made_from, texts=texts)
            raise
        refuse_bad(rollouts, scores, source.teacher)
        run.save_rollouts(step + 1, rollouts, scores, key=made_from, texts=texts)
    reference = None
    if source.reference is not None:
        reference = source.reference.score(rollouts, objective.want._replace(topk=0))
    rewards = None if source.judge is None else grade(source, source.judge, rollouts)
    weights = token_weights(source, cfg, rollouts, scores)
    return Batch(
        rollouts,
        None if source.teacher is None else scores,
        reference=reference,
        rewards=rewards,
        advantages=None if rewards is None else outcome_advantages(rewards, cfg.rollout.n),
        weights=weights.loss,
        gold=gold_of(source, cfg, step),
        outcome_weights=weights.outcome,
        pruned=weights.pruned,
    )


class TokenWeights(NamedTuple):
    """Arrays (T,) a rollout, as in `Batch`; None where all are 1."""

    loss: list[np.ndarray] | None = None
    outcome: list[np.ndarray] | None = None
    pruned: list[np.ndarray] | None = None


def token_weights(
    source: Source, cfg: Run, rollouts: Sequence[Rollout], scores: Sequence[Scores]
) -> TokenWeights:
    """What special tokens and a dying overlap leave of each token's weight."""
    plain = None if source.special is None else special_weights(source, rollouts)
    prune = None if cfg.horizon is None else cfg.horizon.prune
    if prune is None:
        return TokenWeights(plain)
    plain = plain or [np.ones(len(r), dtype=np.float32) for r in rollouts]
    left = [pruned(r, s, prune) for r, s in zip(rollouts, scores, strict=True)]
    base = np.float32(prune.base)
    loss = [p * (w + base) for p, w in zip(plain, left, strict=True)]
    if prune.tail == "drop":
        return TokenWeights(loss, None, left)
    return TokenWeights(loss, [p * (1 - w) for p, w in zip(plain, left, strict=True)], left)


def refuse_bad(
    rollouts: Sequence[Rollout], scores: Sequence[Scores], teacher: Teacher | None
) -> None:
    """Nothing that cannot be trained on is put on disk, where a resume would find it again.

    Raises:
        UserError: naming the teacher and what is wrong with its scores.
    """
    try:
        check_scores(rollouts, scores)
    except ValueError as error:
        name = "none" if teacher is None else teacher.name
        raise UserError(
            f"Teacher {name}: {error}. Its scores were not kept; look at the teacher model "
            "(teacher.dtype, a diverged checkpoint), then continue with --resume."
        ) from None


def ask(
    source: Source,
    cfg: Run,
    objective: Objective,
    step: int,
    rollouts: Sequence[Rollout],
    known: Sequence[Scores] | None,
) -> list[Scores]:
    """The teacher's scores; those an earlier attempt at the step brought home are not asked again.

    Raises:
        TeacherDown: with everything scored so far, one entry a rollout.
    """
    found = list(known) if known is not None else [Scores()] * len(rollouts)
    if source.teacher is None:
        return found
    positions = (
        [np.arange(len(r)) for r in rollouts]
        if objective.needs_full_teacher
        else choose_positions(rollouts, cfg.diagnostics.positions, cfg.train.seed, step)
    )
    missing = [i for i, s in enumerate(found) if not is_scored(s)]
    want = objective.want._replace(full=[positions[i] for i in missing])
    if cfg.horizon is not None and cfg.horizon.prune is not None:
        want = want._replace(topk=max(want.topk, cfg.horizon.prune.k))

    def place(given: Sequence[Scores | None]) -> list[Scores]:
        for i, scores in zip(missing, given, strict=True):
            found[i] = scores or found[i]
        return found

    try:
        return place(source.teacher.score([rollouts[i] for i in missing], want))
    except TeacherDown as down:
        raise TeacherDown(str(down), list(place(down.partial))) from None


def is_scored(scores: Scores) -> bool:
    """Whether a teacher has said anything about the rollout."""
    said = (scores.sampled, scores.support, scores.topk_logp, scores.hidden)
    return any(x is not None for x in said)


def choose_positions(
    rollouts: Sequence[Rollout], count: int, seed: int, step: int
) -> list[np.ndarray]:
    """Completion positions given the full-vocabulary treatment: `count` at random, sorted."""
    ends = np.cumsum([len(r) for r in rollouts])
    total = int(ends[-1]) if len(ends) else 0
    rng = generator(seed, Stream.DIAGNOSTIC_POSITIONS, step)
    chosen = (
        np.arange(total) if count >= total else np.sort(rng.choice(total, count, replace=False))
    )
    pieces = np.split(chosen, np.searchsorted(chosen, ends[:-1]))
    return [piece - (end - len(r)) for piece, end, r in zip(pieces, ends, rollouts, strict=True)]


def grade(source: Source, judge: Grader, rollouts: Sequence[Rollout]) -> np.ndarray:
    """1 for a right answer, 0 for a wrong one, (number of rollouts,)."""
    texts = [source.decode(r.ids.tolist()) for r in rollouts]
    grades = judge.grade(texts, [r.prompt.answer or "" for r in rollouts])
    return np.array([float(g.correct) for g in grades])


def outcome_advantages(rewards: np.ndarray, n: int) -> np.ndarray:
    """Rewards as z-scores within each prompt's group of n rollouts."""
    grouped = torch.from_numpy(rewards).reshape(-1, n)
    advantages: np.ndarray = losses.group_advantage(grouped).reshape(-1).numpy()
    return advantages.astype(np.float32)


def gold_of(source: Source, cfg: Run, step: int) -> list[Rollout]:
    """The gold examples of a step: as many as there are prompts."""
    if not source.gold:
        return []
    chosen = choose(len(source.gold), cfg.train.prompts_per_step, step, cfg.train.seed)
    return [source.gold[i] for i in chosen]


def special_weights(source: Source, rollouts: Sequence[Rollout]) -> list[np.ndarray]:
    """Loss weights (T,) a rollout: 0 on special tokens that do not stop, 1 elsewhere."""
    assert source.special is not None
    ids = [torch.from_numpy(r.ids) for r in rollouts]
    keep = [losses.ordinary_tokens(x, source.special, source.stop) for x in ids]
    return [x.numpy().astype(np.float32) for x in keep]


def rollout_metrics(batch: Batch) -> Metrics:
    """What the rollouts themselves say: length, truncation, repetition, entropy, reward."""
    rollouts, count = batch.rollouts, len(batch.rollouts)
    entropy = float(sum(r.entropy.sum(dtype=np.float64) for r in rollouts))
    found = {
        "rollout/length": Mean(batch.num_tokens, count),
        "rollout/truncated": Mean(sum(r.finish == "length" for r in rollouts), count),
        "rollout/repetition": Mean(sum(diagnostics.repetition(r.ids) for r in rollouts), count),
    }
    if not np.isnan(entropy):  # a rollout server does not say
        found["rollout/entropy"] = Mean(entropy, batch.num_tokens)
    if batch.rewards is not None:
        found["rollout/reward"] = Mean(float(batch.rewards.sum()), count)
    return found
