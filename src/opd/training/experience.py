"""One step's experience: prompts to rollouts to scores to a batch.

What is random here is a function of (seed, step, index). What is expensive is on disk before the
update, so that a step that was interrupted is neither generated nor paid for twice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from opd.core import diagnostics, losses
from opd.core.batch import Batch, check_scores
from opd.core.objective import Objective
from opd.data.graders import Grader, grade_rollouts
from opd.data.order import batch_indices
from opd.data.prompts import PromptSet
from opd.errors import UserError
from opd.rng import Stream, generator, key
from opd.run.folder import RunFolder
from opd.run.rollouts import kept_indices
from opd.teachers.remote import TeacherDown
from opd.training.alignment import alignment_metrics, leave_out_unaligned
from opd.training.hint_quotes import HintQuotes, hint_metrics
from opd.training.horizon import Pruning, prune_weights
from opd.training.per_teacher import equalise_tokens, split_by_teacher
from opd.types import Mean, Metrics, Rollout, Sampler, Scores, Teacher, Want


@dataclass(frozen=True)
class StepSize:
    """How much experience a step takes, and from which random stream.

    Attributes:
        seed: train.seed.
        prompts: train.prompts_per_step.
        responses: rollout.n.
        shuffle: prompts.shuffle.
        diagnosed_positions: diagnostics.positions.
        kept_rollouts: output.rollout_sample; those are scored for the token view, too.
        by_tokens: each teacher's tokens together count as its prompts do (prompts.by).
    """

    seed: int
    prompts: int
    responses: int
    shuffle: bool
    diagnosed_positions: int
    kept_rollouts: int
    by_tokens: bool = False


@dataclass(frozen=True)
class ExperienceSource:
    """What makes experience.

    Attributes:
        prompts: training prompts.
        sampler: of the student.
        teacher: scores rollouts; None for a run on the outcome reward alone.
        reference: the model that the reward is extrapolated from; None without.
        grader: grades rollouts whose prompts have answers; None without.
        special: token ids without loss (stop tokens excepted), int32; None: none.
        stop: token ids that end a rollout, int32.
        sft_examples: completions to imitate beside the distillation; may be empty.
        decode: token ids to text.
        size: of a step.
        pruning: weights by overlap (horizon.prune); None without.
        quotes: finds what only the teacher sees in completions; None where it sees the same.
    """

    prompts: PromptSet
    sampler: Sampler
    teacher: Teacher | None
    reference: Teacher | None
    grader: Grader | None
    special: Tensor | None
    stop: Tensor
    sft_examples: Sequence[Rollout]
    decode: Callable[[Sequence[int]], str]
    size: StepSize
    pruning: Pruning | None = None
    quotes: HintQuotes | None = None


def sample(
    source: ExperienceSource, run: RunFolder, step: int, limit: int | None = None
) -> tuple[list[Rollout], list[Scores] | None]:
    """Rollouts of a step, of at most `limit` tokens.

    From disk, scores included, if an interrupted run left them.
    """
    saved = run.load_rollouts(step + 1, run.rollout_key(step + 1, step))
    return (sample_step(source, step, limit), None) if saved is None else saved


def sample_step(source: ExperienceSource, step: int, limit: int | None = None) -> list[Rollout]:
    """Rollouts of a step, of at most `limit` tokens, from the student as it is."""
    size = source.size
    prompts = source.prompts.batch(step, size.prompts, seed=size.seed, shuffle=size.shuffle)
    stream = key(size.seed, Stream.ROLLOUT, step)
    return source.sampler.sample(prompts, n=size.responses, key=stream, limit=limit)


def score(
    source: ExperienceSource,
    run: RunFolder,
    objective: Objective,
    step: int,
    rollouts: list[Rollout],
    scores: list[Scores] | None,
) -> Batch:
    """The step's batch. Scores that were not on disk are requested, then saved."""
    if scores is None or (source.teacher is not None and not all(map(is_scored, scores))):
        scores = request_and_save(source, run, objective, step, rollouts, scores)
    return make_batch(source, objective, step, rollouts, scores)


def make_batch(
    source: ExperienceSource,
    objective: Objective,
    step: int,
    rollouts: list[Rollout],
    scores: list[Scores],
) -> Batch:
    """The step's batch, from rollouts and the teacher's scores of them."""
    reference = None
    if source.reference is not None:
        reference = source.reference.score(rollouts, objective.want._replace(topk=0))
    rewards = None
    if source.grader is not None:
        rewards = grade_rollouts(source.grader, rollouts, source.decode)
    advantages = None
    if rewards is not None:
        advantages = outcome_advantages(rewards, source.size.responses)
    weights = token_weights(source, rollouts, scores)
    return Batch(
        rollouts,
        None if source.teacher is None else scores,
        reference=reference,
        rewards=rewards,
        advantages=advantages,
        weights=weights.loss,
        sft_examples=sft_examples_of(source, step),
        pruned=weights.pruned,
        teachers=teacher_names(source, rollouts),
        quoted=find_quotes(source, rollouts),
    )


def teacher_names(source: ExperienceSource, rollouts: Sequence[Rollout]) -> list[str] | None:
    """Who scored each rollout, where there are several; None for one teacher."""
    routes = source.prompts.routes
    return [routes[r.prompt.index].label for r in rollouts] if routes else None


def find_quotes(source: ExperienceSource, rollouts: Sequence[Rollout]) -> np.ndarray | None:
    """Which rollouts quote what only the teacher sees; None where it sees the same."""
    if source.quotes is None:
        return None
    return np.array([source.quotes.find(r, source.decode(r.ids.tolist())) for r in rollouts])


def request_and_save(
    source: ExperienceSource,
    run: RunFolder,
    objective: Objective,
    step: int,
    rollouts: list[Rollout],
    known: list[Scores] | None,
) -> list[Scores]:
    """The teacher's scores, written to the run folder; partial ones too if it goes away.

    Raises:
        TeacherDown: after saving what arrived.
        UserError: scores that cannot be trained on; they are not saved.
    """
    texts = [source.decode(r.ids.tolist()) for r in rollouts]
    made_from = run.rollout_key(step + 1, step)
    try:
        scores = request_scores(source, objective, step, rollouts, known)
    except TeacherDown as down:
        partial = [s or Scores() for s in down.partial]
        run.save_rollouts(step + 1, rollouts, partial, key=made_from, texts=texts)
        raise
    require_usable(rollouts, scores, source.teacher)
    run.save_rollouts(step + 1, rollouts, scores, key=made_from, texts=texts)
    return scores


class TokenWeights(NamedTuple):
    """Arrays (T,) per rollout, as in `Batch`; None where all are 1."""

    loss: list[np.ndarray] | None = None
    pruned: list[np.ndarray] | None = None


def token_weights(
    source: ExperienceSource, rollouts: Sequence[Rollout], scores: Sequence[Scores]
) -> TokenWeights:
    """Each token's weight after special tokens and pruning by overlap."""
    plain = None if source.special is None else special_weights(source, rollouts)
    plain = leave_out_unaligned(rollouts, scores, plain)
    names = teacher_names(source, rollouts)
    if names is not None and source.size.by_tokens:
        plain = equalise_tokens(rollouts, names, plain)
    if source.pruning is None:
        return TokenWeights(plain)
    plain = plain or [np.ones(len(r), dtype=np.float32) for r in rollouts]
    kept = [prune_weights(r, s, source.pruning) for r, s in zip(rollouts, scores, strict=True)]
    return TokenWeights([p * w for p, w in zip(plain, kept, strict=True)], kept)


def require_usable(
    rollouts: Sequence[Rollout], scores: Sequence[Scores], teacher: Teacher | None
) -> None:
    """Refuse scores that cannot be trained on, before a resume could find them on disk.

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


def request_scores(
    source: ExperienceSource,
    objective: Objective,
    step: int,
    rollouts: Sequence[Rollout],
    known: Sequence[Scores] | None,
) -> list[Scores]:
    """The teacher's scores; those that an earlier attempt at the step got are not asked again.

    Raises:
        TeacherDown: with everything scored so far, one entry per rollout.
    """
    scores = list(known) if known is not None else [Scores()] * len(rollouts)
    if source.teacher is None:
        return scores
    positions = (
        [np.arange(len(r)) for r in rollouts]
        if objective.needs_full_teacher
        else choose_positions(rollouts, source.size.diagnosed_positions, source.size.seed, step)
    )
    missing = [i for i, s in enumerate(scores) if not is_scored(s)]
    kept = set(kept_indices(step + 1, len(rollouts), source.size.kept_rollouts))
    view = [i in kept for i in range(len(rollouts))]
    want = step_want(source, objective)._replace(full=positions, view=view).of_rollouts(missing)

    def fill_in(answers: Sequence[Scores | None]) -> list[Scores]:
        for i, answer in zip(missing, answers, strict=True):
            scores[i] = scores[i] if answer is None else with_positions(answer, positions[i])
        return scores

    try:
        return fill_in(source.teacher.score([rollouts[i] for i in missing], want))
    except TeacherDown as down:
        raise TeacherDown(str(down), list(fill_in(down.partial))) from None


def with_positions(scores: Scores, positions: np.ndarray) -> Scores:
    """Scores with the positions that are diagnosed, where a teacher that went away left them out.

    A teacher of another tokenizer (`Scores.chunk`) is not diagnosed.
    """
    if scores.positions is not None or scores.chunk is not None or not is_scored(scores):
        return scores
    return replace(scores, positions=positions.astype(np.int32))


def step_want(source: ExperienceSource, objective: Objective) -> Want:
    """What a step asks of its teacher for every rollout alike, diagnostics included."""
    want = objective.want._replace(full=())
    if source.pruning is not None:
        want = want._replace(topk=max(want.topk, source.pruning.k))
    return want


def is_scored(scores: Scores) -> bool:
    """Whether a teacher has scored the rollout at all."""
    fields = (scores.sampled, scores.support, scores.topk_logp, scores.hidden)
    return any(x is not None for x in fields)


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


def outcome_advantages(rewards: np.ndarray, responses: int) -> np.ndarray:
    """Rewards as z-scores within the responses of each prompt."""
    grouped = torch.from_numpy(rewards).reshape(-1, responses)
    advantages: np.ndarray = losses.group_advantage(grouped).reshape(-1).numpy()
    return advantages.astype(np.float32)


def sft_examples_of(source: ExperienceSource, step: int) -> list[Rollout]:
    """The supervised examples of a step: as many as there are prompts."""
    if not source.sft_examples:
        return []
    examples, size = source.sft_examples, source.size
    indices = batch_indices(
        len(examples), size.prompts, step, seed=size.seed, stream=Stream.SFT_ORDER
    )
    return [examples[i] for i in indices]


def special_weights(source: ExperienceSource, rollouts: Sequence[Rollout]) -> list[np.ndarray]:
    """Loss weights (T,) per rollout: 0 on special tokens that do not stop, 1 elsewhere."""
    assert source.special is not None
    ids = [torch.from_numpy(r.ids) for r in rollouts]
    keep = [losses.ordinary_tokens(x, source.special, source.stop) for x in ids]
    return [x.numpy().astype(np.float32) for x in keep]


def rollout_metrics(batch: Batch) -> Metrics:
    """Length, truncation, repetition, entropy and reward of the rollouts."""
    rollouts, count = batch.rollouts, len(batch.rollouts)
    entropy = float(sum(r.entropy.sum(dtype=np.float64) for r in rollouts))
    metrics = {
        "rollout/length": Mean(batch.num_tokens, count),
        "rollout/truncated": Mean(sum(r.finish == "length" for r in rollouts), count),
        "rollout/repetition": Mean(sum(diagnostics.repetition(r.ids) for r in rollouts), count),
    }
    if not np.isnan(entropy):  # a rollout server does not report it
        metrics["rollout/entropy"] = Mean(entropy, batch.num_tokens)
    if batch.rewards is not None:
        metrics["rollout/reward"] = Mean(float(batch.rewards.sum()), count)
    if batch.quoted is not None:
        metrics |= hint_metrics(rollouts, batch.quoted)
    metrics |= alignment_metrics(rollouts, batch.scores or ())
    if batch.teachers is not None:
        for name, part in split_by_teacher(batch).items():
            metrics |= {f"teachers/{name}/{n}": m for n, m in rollout_metrics(part).items()}
            metrics[f"teachers/{name}/token_share"] = Mean(part.num_tokens, batch.num_tokens)
    return metrics
