"""Where the completions of a cold start come from, round by round."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from opd import rng
from opd.config import Coldstart
from opd.data.graders import Grader
from opd.rng import Stream
from opd.run import rollouts as rollout_files
from opd.run.disk import write_bytes
from opd.run.layout import COLD_START
from opd.training.session import Session
from opd.types import Prompt, Rollout, Sampler, Scores

PER_PROMPT = 1  # completions: the paper's; more text of the teacher is better had on more prompts


@dataclass(frozen=True)
class CompletionSource:
    """The teacher's sampler with prompts, or completions that are given.

    Attributes:
        prompts: that the teacher answers, in order of use; empty where completions are given.
        given: completions in order of use; empty where the teacher samples them.
        sampler: the teacher's; None where completions are given.
        probe: prompts on which the student's overlap is measured; none of them is learned from.
        grader: for prompts with ground truths.
        stop: tokens that end the student's rollouts.
        end: what a completion ends with if the teacher's end token is not among those.
    """

    prompts: Sequence[Prompt]
    given: Sequence[Rollout]
    sampler: Sampler | None
    probe: Sequence[Prompt]
    grader: Grader | None
    stop: frozenset[int]
    end: int

    def rounds(self, cfg: Coldstart) -> int:
        """How many rounds there are completions or prompts for."""
        items = self.given if self.sampler is None else self.prompts
        return min(cfg.max_rounds, -(-len(items) // cfg.completions_per_round))

    def prompts_of(self, number: int, cfg: Coldstart) -> Sequence[Prompt]:
        """The prompts of a round."""
        part = _slice(number, cfg)
        return [r.prompt for r in self.given[part]] if self.sampler is None else self.prompts[part]

    def given_of(self, number: int, cfg: Coldstart) -> Sequence[Rollout]:
        """The given completions of a round."""
        return self.given[_slice(number, cfg)]


def _slice(number: int, cfg: Coldstart) -> slice:
    size = cfg.completions_per_round
    return slice(number * size, (number + 1) * size)


def completions_of_round(
    session: Session, source: CompletionSource, cfg: Coldstart, number: int
) -> list[Rollout]:
    """The teacher's completions of a round: given, from disk, or sampled now."""
    if source.sampler is None:
        return [with_student_end(r, source) for r in source.given_of(number, cfg)]
    path = session.folder.path / COLD_START / "rollouts" / f"step-{number}.parquet"
    key = session.folder.rollout_key(number, 0)
    saved = rollout_files.load(path, key)
    if saved is not None:
        return saved[0]
    prompts = source.prompts_of(number, cfg)
    stream = rng.key(session.cfg.train.seed, Stream.COLDSTART_COMPLETIONS, number)
    sampled = source.sampler.sample(prompts, n=PER_PROMPT, key=stream)
    completions = [with_student_end(r, source) for r in sampled]
    texts = [session.source.decode(r.ids.tolist()) for r in completions]
    file = rollout_files.StepFile(completions, [Scores()] * len(completions), texts, key)
    write_bytes(path, rollout_files.encode(file), session.folder.ops)
    return completions


def with_student_end(rollout: Rollout, source: CompletionSource) -> Rollout:
    """A finished completion with an end token that ends the student's rollouts too."""
    if rollout.finish != "stop" or not len(rollout) or int(rollout.ids[-1]) in source.stop:
        return rollout
    ids = rollout.ids.copy()
    ids[-1] = source.end
    return replace(rollout, ids=ids)
