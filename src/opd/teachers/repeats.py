"""Sequences scored again: a teacher that answers one question in two ways is found at any step.

After a step is scored, some of its rollouts and beginnings of earlier ones are scored again, in
other company and another order. A server that mixes rows up, repeats an answer, cuts the context,
or is another model than a step ago contradicts itself. Which rows of a step are chosen: those that
stand out most, so that one shuffled row among thousands is asked about, and some at
random. Earlier rollouts are cut at a random token, so that no list of known texts helps.

Shapes: T completion tokens, K tokens per position.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import numpy as np

from opd.rng import Stream, generator
from opd.types import Rollout, Scores

MAX_COST = 0.02  # tokens scored again, of those of a step; what is left is for later steps
FIRST = 2  # sequences that the first step scores again, whatever they cost: they measure the noise
# Of a sequence, scored again at least where the tokens do not suffice for all of it. An earlier one
# is cut at random before, and its end is what shows a context that is cut short.
SHORTEST = {"this step": 0.25, "an earlier step": 0.6}
SHORTEST_TOKENS = 4
MEMORY = 16  # earlier rollouts that are kept
KEPT_PER_CALL = 4
MIN_ROW, MIN_MEAN, MIN_ENTRY = 0.01, 0.004, 0.5  # nats: tolerances where no noise was measured
# What the noise of a bf16 model is taken for until a step has been scored twice: the handshake asks
# for few short texts, which a prefix cache may answer alike.
FIRST_MEAN, FIRST_MAX = 0.04, 0.2
MAX_CALIBRATED = 0.08  # mean noise above this is a fault, and never becomes the tolerance


Origin = Literal["this step", "an earlier step"]


class Noise(NamedTuple):
    """Difference between two scores of one token in one context, in nats."""

    mean: float = 0.0
    max: float = 0.0


NO_NOISE = Noise()


@dataclass(frozen=True, eq=False)
class Repeat:
    """A sequence to score again.

    Attributes:
        rollout: the sequence, or the beginning of one.
        expected: its scores of the first time.
        origin: whether it is of this step or of an earlier one.
    """

    rollout: Rollout
    expected: Scores
    origin: Origin


class RepeatChecks:
    """Chooses what is scored again, and judges the answers."""

    def __init__(self, noise: Noise) -> None:
        """Begin with the noise floor that the handshake measured."""
        self.noise = noise
        self.calibrated = False
        self._earlier: list[Repeat] = []
        self._calls = 0
        self._credit = 0.0  # tokens
        self._idle = False  # whether the last step had nothing scored again
        self._due: Origin = "this step"

    def choose(self, rollouts: Sequence[Rollout], scores: Sequence[Scores]) -> list[Repeat]:
        """Sequences to score again after a step, in the order in which to send them.

        Args:
            rollouts: of the step.
            scores: of each rollout.
        """
        self._calls += 1
        rng = generator(0, Stream.TEACHER_REPEATS, self._calls)
        income = MAX_COST * sum(map(_tokens, rollouts))
        self._credit += income
        # Of small steps one in two has a sequence scored again, whatever it costs.
        first = self._calls == 1
        least = FIRST if first else int(self._idle)
        chosen: list[Repeat] = []
        for repeat in self._candidates(rollouts, scores, rng):
            needed = len(chosen) < least
            # The first sequence of a step may borrow from the next step.
            loan = 0.0 if first or chosen else income
            limit = math.inf if needed else self._credit + loan
            fitting = repeat if first and needed else _fit(repeat, self._credit, limit)
            if fitting is None:
                self._due = repeat.origin
                break
            self._credit -= _tokens(fitting.rollout)
            chosen.append(fitting)
        if first:
            self._credit = max(0.0, self._credit)
        self._idle = not chosen
        return [chosen[i] for i in rng.permutation(len(chosen))]

    def remember(self, rollouts: Sequence[Rollout], scores: Sequence[Scores]) -> None:
        """Keep a few scored rollouts, to be scored again after later steps."""
        rng = generator(1, Stream.TEACHER_REPEATS, self._calls)
        scored = [i for i, r in enumerate(rollouts) if len(r) and scores[i].arrays()]
        for i in rng.permutation(scored)[:KEPT_PER_CALL].tolist():
            arrays = replace(scores[i], positions=None, hidden=None)
            self._earlier.append(Repeat(rollouts[i], arrays, "an earlier step"))
        while len(self._earlier) > MEMORY:
            self._earlier.pop(int(rng.integers(len(self._earlier))))

    def judge(self, repeats: Sequence[Repeat], answers: Sequence[Scores]) -> str | None:
        """What a server that contradicts itself has done; None if it has not.

        The first answers measure the noise, as far as noise can reach.
        """
        differences = [
            score_differences(r.expected, a) for r, a in zip(repeats, answers, strict=True)
        ]
        noise = self.noise if self.calibrated else _at_least(self.noise, FIRST_MEAN, FIRST_MAX)
        for repeat, difference in zip(repeats, differences, strict=True):
            mean, count = float(difference.tokens.mean()), len(difference.tokens)
            limit = max(MIN_ROW, 3 * noise.mean) + 3 * noise.max / math.sqrt(count)
            largest = max(MIN_ENTRY, 8 * noise.max)
            if mean > limit or difference.largest > largest:
                return (
                    f"a rollout of {repeat.origin}, scored again beside others, differs by "
                    f"{mean:.3g} nats per token, {difference.largest:.3g} at most (noise allows "
                    f"{limit:.2g} and {largest:.2g})"
                )
        if not differences:
            return None
        tokens = np.concatenate([d.tokens for d in differences])
        mean, count = float(tokens.mean()), len(tokens)
        limit = max(MIN_MEAN, 2 * noise.mean) + 2 * noise.max / math.sqrt(count)
        if mean > limit:
            return (
                f"{len(repeats)} rollouts, scored again beside others, differ by {mean:.3g} nats "
                f"per token on average (noise allows {limit:.2g})"
            )
        if not self.calibrated:
            self.calibrated = True
            largest = max(d.largest for d in differences)
            self.noise = _at_least(self.noise, min(mean, MAX_CALIBRATED), largest)
        return None

    def _candidates(
        self, rollouts: Sequence[Rollout], scores: Sequence[Scores], rng: np.random.Generator
    ) -> Iterator[Repeat]:
        """The most suspicious row and an earlier rollout, then others by turns, each once.

        The earlier one comes first where the tokens of the last step did not suffice for one.
        """
        scored = [i for i, r in enumerate(rollouts) if len(r) and scores[i].arrays()]
        suspicious: list[int] = []
        if scored:
            outlying = suspicion([rollouts[i] for i in scored], [scores[i] for i in scored])
            suspicious = [scored[j] for j in np.argsort(-outlying, kind="stable")]
        random = rng.permutation(scored).astype(int).tolist()
        earlier = [self._earlier[i] for i in rng.permutation(len(self._earlier))]
        used: set[int] = set()
        waits = bool(earlier) and self._due == "an earlier step"
        while suspicious or earlier:
            for queue in (suspicious, random):
                while queue and queue[0] in used:
                    queue.pop(0)
            if suspicious and not waits:
                used.add(i := suspicious.pop(0))
                yield Repeat(rollouts[i], scores[i], "this step")
            waits = False
            if earlier:
                yield _shortened(earlier.pop(), rng)
            if random and random[0] not in used:
                used.add(i := random.pop(0))
                yield Repeat(rollouts[i], scores[i], "this step")


def suspicion(rollouts: Sequence[Rollout], scores: Sequence[Scores]) -> np.ndarray:
    """How far each row stands out from the rows of its step, (R,): its largest robust z-score.

    Of: distance from the student's scores, signed and not; spread of the scores and of their
    distances over tokens; entropy and mass of the top tokens. A row that is shuffled, uniform, of
    another sequence or of another model is an outlier in one of them; an honest outlier costs
    nothing but being scored again.
    """
    features = np.array([_features(r, s) for r, s in zip(rollouts, scores, strict=True)])
    distance = np.abs(features - np.median(features, 0))
    scale = np.median(distance, 0) + 1e-9
    outlying: np.ndarray = (distance / scale).max(1)
    return outlying


def _features(rollout: Rollout, scores: Scores) -> list[float]:
    values, own = scores.sampled, rollout.logp
    if values is None and scores.support is not None and scores.support.size:
        values, own = _centred(scores.support), _centred(rollout.topk_logp)
    features = [0.0] * 4
    if values is not None:
        gap = values - own
        features = [gap.mean(), np.abs(gap).mean(), values.std(), gap.std()]
    entropy = 0.0 if scores.entropy is None else scores.entropy.mean()
    best = 0.0 if scores.topk_logp is None else scores.topk_logp[:, 0].mean()
    return [float(x) for x in (*features, entropy, best)]


class ScoreDifference(NamedTuple):
    """Distances between two answers to one question, in nats; see `score_differences`."""

    tokens: np.ndarray  # (T,) of the field that differs most, mean over its K
    largest: float


def score_differences(expected: Scores, got: Scores) -> ScoreDifference:
    """Distances in nats, over the fields that both have."""
    normalised = expected.log_z is not None and got.log_z is not None
    both = (_comparable(scores, normalised) for scores in (expected, got))
    pairs = [
        (a, b)
        for a, b in zip(*both, strict=True)
        if a is not None and b is not None and a.shape == b.shape and a.size
    ]
    distances = [np.abs(a.astype(np.float64) - b) for a, b in pairs]
    if expected.topk_ids is not None and got.topk_ids is not None and expected.topk_ids.size:
        distances.append(topk_distances(expected, got))
    if not distances:
        return ScoreDifference(np.zeros(1), 0.0)
    rows = max((d.reshape(len(d), -1).mean(1) for d in distances), key=np.mean)
    return ScoreDifference(rows, max(float(d.max()) for d in distances))


def topk_distances(expected: Scores, got: Scores) -> np.ndarray:
    """By how much the other answer differs on each top token, in nats, float64 (T, K).

    A token that is not among the other's top tokens has at most the least of their log-probs there,
    so that two orders of equal ones are no difference.
    """
    assert expected.topk_ids is not None
    assert expected.topk_logp is not None
    assert got.topk_ids is not None
    assert got.topk_logp is not None
    same = expected.topk_ids[:, :, None] == got.topk_ids[:, None, :]  # (T, K, K of the other)
    own, other = expected.topk_logp.astype(np.float64), got.topk_logp.astype(np.float64)
    shared = same.any(2)
    there = np.where(same, other[:, None, :], 0.0).sum(2)
    above = np.maximum(0.0, own - other.min(1, keepdims=True))
    distances: np.ndarray = np.where(shared, np.abs(own - there), above)
    return distances


def _comparable(scores: Scores, normalised: bool) -> tuple[np.ndarray | None, ...]:
    """Fields of which two answers to one question are equal, whatever ties and constants."""
    support = scores.support
    if support is not None and support.size:
        log_z = scores.log_z if normalised else None
        support = _centred(support) if log_z is None else support - log_z[:, None]
    return scores.sampled, support, scores.entropy


def _centred(values: np.ndarray) -> np.ndarray:
    centred: np.ndarray = values - values.mean(1, keepdims=True)
    return centred


def _shortened(repeat: Repeat, rng: np.random.Generator) -> Repeat:
    """The beginning of an earlier rollout, at least half of it."""
    count = len(repeat.rollout)
    return _cut(repeat, int(rng.integers((count + 1) // 2, count + 1)))


def _fit(repeat: Repeat, tokens: float, limit: float) -> Repeat | None:
    """As much of a sequence as some tokens allow, or the least that tells something.

    Args:
        repeat: the sequence.
        tokens: of prompt and completion together.
        limit: tokens that the least may have; None is returned if it has more.
    """
    count, prompt = len(repeat.rollout), len(repeat.rollout.prompt.ids)
    least = min(count, max(SHORTEST_TOKENS, math.ceil(SHORTEST[repeat.origin] * count)))
    end = max(least, min(count, math.floor(tokens) - prompt))
    return None if prompt + end > limit else _cut(repeat, end)


def _cut(repeat: Repeat, end: int) -> Repeat:
    """The first tokens of a completion."""
    rollout = repeat.rollout
    if end == len(rollout):
        return repeat
    per_token = ("ids", "logp", "entropy", "topk_ids", "topk_logp")
    cut = {name: getattr(rollout, name)[:end] for name in per_token}
    kept = replace(repeat.expected, positions=None, hidden=None)
    scores: dict[str, Any] = {n: a[:end] for n, a in kept.arrays().items()}
    return Repeat(replace(rollout, **cut), Scores(**scores), repeat.origin)


def _tokens(rollout: Rollout) -> int:
    return len(rollout.prompt.ids) + len(rollout)


def _at_least(noise: Noise, mean: float, largest: float) -> Noise:
    return Noise(max(noise.mean, mean), max(noise.max, largest))
