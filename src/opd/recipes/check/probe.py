"""What a pair shows without training: answers, continuations, diagnostics on one set of rollouts.

The student writes once; any number of teachers are held against the same rollouts. Everything is
paired by prompt, and grows by rounds of prompts until the budget is spent.
Shapes: P prompts, n student samples and m teacher samples a prompt, D depths.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from opd.core import diagnostics
from opd.core.diagnostics import Tops
from opd.data.graders import Grader
from opd.models.lm import LM
from opd.recipes.check.diagnose import Diagnosis, diagnose, of_positions
from opd.rng import Stream, key
from opd.samplers.hf import Decoding, HFSampler
from opd.types import Kind, Prompt, Rollout, Teacher, Want

DEPTHS = (0.25, 0.5, 0.75)  # of a student rollout, where both models take over
TAIL = 3  # last tokens of a rollout that no prefix holds: the answer is usually there
OWN, THEIRS, FINISH = 0, 1, 2


@dataclass(frozen=True)
class Player:
    """A model that writes, and reads what others wrote.

    Attributes:
        lm: the model.
        stop: token ids that end its completions.
    """

    lm: LM
    stop: frozenset[int]


@dataclass(frozen=True)
class Rules:
    """How the probe is played.

    Attributes:
        decoding: of every sample, the run's own rollout settings.
        decode: token ids to text, special tokens left out.
        grader: None where the prompts have no answers.
        n: student samples a prompt.
        m: teacher samples a prompt.
        k: support size of the diagnostics.
        tokens: padded tokens a forward.
        batch: most rows decoded at once.
        seed: of all samples.
    """

    decoding: Decoding
    decode: Callable[[Sequence[int]], str]
    grader: Grader | None
    n: int = 4
    m: int = 2
    k: int = 16
    tokens: int = 8192
    batch: int = 128
    seed: int = 0


@dataclass(frozen=True)
class Own:
    """The student's side of the probe, shared by all teachers.

    Attributes:
        prompts: (P,) in order.
        rollouts: P x n, grouped.
        correct: (P, n), or None without answers.
        prefixes: D lists of P prompts that end inside a rollout.
        finished: (P, D) whether the student's own continuation is right, or None.
        written: tokens of rollouts and continuations.
    """

    prompts: tuple[Prompt, ...]
    rollouts: tuple[Rollout, ...]
    correct: np.ndarray | None
    prefixes: tuple[tuple[Prompt, ...], ...]
    finished: np.ndarray | None
    written: int

    def __add__(self, other: Own) -> Own:
        """Both rounds together."""
        return Own(
            self.prompts + other.prompts,
            self.rollouts + other.rollouts,
            _joined(self.correct, other.correct),
            tuple(a + b for a, b in zip(self.prefixes, other.prefixes, strict=True)),
            _joined(self.finished, other.finished),
            self.written + other.written,
        )


@dataclass(frozen=True)
class Against:
    """A teacher's side of the probe.

    Attributes:
        forward: diagnostics on the student's rollouts (P n of them).
        reward: (P, n) mean log q - log p a token of the student's rollouts.
        correct: (P, m) of its own answers, or None.
        finished: (P, D) whether its continuation of the student's prefix is right, or None.
        reverse: diagnostics on its own rollouts, the student reading, or None.
        lengths: (P, m) tokens of its own answers, or None.
        written: tokens of answers and continuations.
    """

    forward: Diagnosis
    reward: np.ndarray
    correct: np.ndarray | None
    finished: np.ndarray | None
    reverse: Diagnosis | None
    lengths: np.ndarray | None
    written: int = 0

    def __add__(self, other: Against) -> Against:
        """Both rounds together."""
        reverse = None
        if self.reverse is not None and other.reverse is not None:
            reverse = self.reverse + other.reverse
        return Against(
            self.forward + other.forward,
            np.concatenate([self.reward, other.reward]),
            _joined(self.correct, other.correct),
            _joined(self.finished, other.finished),
            reverse,
            _joined(self.lengths, other.lengths),
            self.written + other.written,
        )


def _joined(a: np.ndarray | None, b: np.ndarray | None) -> np.ndarray | None:
    return None if a is None or b is None else np.concatenate([a, b])


def play_student(student: Player, prompts: Sequence[Prompt], rules: Rules) -> Own:
    """The student writes, is graded, and finishes its own prefixes."""
    rollouts = _sample(student, prompts, rules, rules.n, OWN)
    firsts = rollouts[:: rules.n]
    prefixes = tuple(tuple(prefix(r, depth) for r in firsts) for depth in DEPTHS)
    finished, written = _finish(student, prefixes, rules)
    return Own(
        tuple(prompts),
        tuple(rollouts),
        _graded(rollouts, rules, rules.n),
        prefixes,
        finished,
        _tokens(rollouts) + written,
    )


def play_teacher(teacher: Player, student: Player, own: Own, rules: Rules) -> Against:
    """The teacher reads the student's rollouts, answers, and finishes the student's prefixes."""
    forward = diagnose(student.lm, teacher.lm, own.rollouts, k=rules.k, tokens=rules.tokens)
    theirs = _sample(teacher, own.prompts, rules, rules.m, THEIRS)
    finished, written = _finish(teacher, own.prefixes, rules)
    return Against(
        forward,
        forward.mean["diag/token_reward"].reshape(len(own.prompts), -1),
        _graded(theirs, rules, rules.m),
        finished,
        diagnose(teacher.lm, student.lm, theirs, k=rules.k, tokens=rules.tokens),
        np.array([float(len(r)) for r in theirs]).reshape(-1, rules.m),
        _tokens(theirs) + written,
    )


def play_server(teacher: Teacher, own: Own, rules: Rules) -> Against:
    """What a server can show: scores of the student's rollouts, and its own top tokens.

    It answers nothing itself, so there is no accuracy and no continuation gain.
    """
    topk = rules.k if Kind.TOPK in teacher.kinds else 0
    scores = teacher.score(own.rollouts, Want(sampled=True, topk=topk))
    rewards, found = [], []
    for rollout, given in zip(own.rollouts, scores, strict=True):
        assert given.sampled is not None
        rewards.append(given.sampled - rollout.logp)
        positions = {"diag/token_reward": diagnostics.everywhere(torch.from_numpy(rewards[-1]))}
        if given.topk_ids is not None and given.topk_logp is not None:
            k = min(given.topk_ids.shape[1], rollout.topk_ids.shape[1])
            lists = (rollout.topk_ids, rollout.topk_logp), (given.topk_ids, given.topk_logp)
            ours, theirs = (
                Tops(torch.from_numpy(ids[:, :k]).long(), torch.from_numpy(logp[:, :k]))
                for ids, logp in lists
            )
            positions |= diagnostics.topk_metrics(ours, theirs)
        found.append(positions)
    return Against(
        of_positions(found),
        np.array([r.mean() for r in rewards]).reshape(len(own.prompts), -1),
        None,
        None,
        None,
        None,
    )


def prefix(rollout: Rollout, depth: float) -> Prompt:
    """A rollout's prompt with its first tokens: `depth` of them, never its last few."""
    length = max(0, min(int(depth * len(rollout)), len(rollout) - TAIL))
    return replace(rollout.prompt, ids=(*rollout.prompt.ids, *rollout.ids[:length].tolist()))


def _sample(
    player: Player, prompts: Sequence[Prompt], rules: Rules, n: int, who: int
) -> list[Rollout]:
    sampler = HFSampler(
        player.lm, rules.decoding, stop=player.stop, capture=rules.k, batch=rules.batch
    )
    return sampler.sample(prompts, n=n, key=key(rules.seed, Stream.CHECK, who))


def _graded(rollouts: Sequence[Rollout], rules: Rules, n: int) -> np.ndarray | None:
    """(P, n) of 0/1, or None without answers."""
    if rules.grader is None:
        return None
    texts = [rules.decode(r.ids.tolist()) for r in rollouts]
    return _right(texts, [r.prompt.answer for r in rollouts], rules).reshape(-1, n)


def _finish(
    player: Player, prefixes: Sequence[Sequence[Prompt]], rules: Rules
) -> tuple[np.ndarray | None, int]:
    """(P, D): whether prefix and continuation together are right, and tokens written.

    The random numbers are the same for all players.
    """
    if rules.grader is None:
        return None, 0
    columns, tokens = [], 0
    for depth, started in enumerate(prefixes):
        written = _sample(player, started, rules, 1, FINISH + depth)
        texts = [rules.decode(w.ids.tolist()) for w in written]
        columns.append(_right(texts, [p.answer for p in started], rules))
        tokens += _tokens(written)
    return np.stack(columns, 1), tokens


def _tokens(rollouts: Sequence[Rollout]) -> int:
    return sum(map(len, rollouts))


def _right(texts: Sequence[str], answers: Sequence[str | None], rules: Rules) -> np.ndarray:
    assert rules.grader is not None
    grades = rules.grader.grade(list(texts), [a or "" for a in answers])
    return np.array([float(g.correct) for g in grades])
