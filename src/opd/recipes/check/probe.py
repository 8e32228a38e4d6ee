"""The probe of a pair without training: samples, continuations, diagnostics on shared rollouts.

The student generates once; any number of teachers are compared on the same rollouts. Everything is
paired by prompt, and rounds of prompts are added up until the budget is spent.
Shapes: P prompts, n student samples and m teacher samples per prompt, D depths.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from opd.core import diagnostics
from opd.core.diagnostics import Measure, TopK
from opd.data.graders import Grader, grade_rollouts
from opd.models.lm import LM
from opd.recipes.check.diagnose import Diagnosis, diagnose, diagnosis_of_measures
from opd.rng import Stream, key
from opd.samplers.hf import Decoding, HFSampler
from opd.types import Kind, Prompt, Rollout, Scores, Teacher, Want

DEPTHS = (0.25, 0.5, 0.75)  # fractions of a student rollout after which both models continue it
TAIL = 3  # last tokens of a rollout that no prefix contains: the answer is usually there
# Indices of the random stream; continuations take one per depth.
STUDENT_SAMPLES, TEACHER_SAMPLES, CONTINUATIONS, STUDENT_ANSWERS = 0, 1, 2, 9


@dataclass(frozen=True)
class ProbeModel:
    """A model that generates, and scores what the other one generated.

    Attributes:
        lm: the model.
        stop: token ids that end its completions.
    """

    lm: LM
    stop: frozenset[int]


@dataclass(frozen=True)
class ProbeConfig:
    """Settings of the probe.

    Attributes:
        decoding: of the student's rollouts, on which the models are compared: the run's own.
        decode: token ids to text, special tokens left out.
        grader: None where the prompts have no answers.
        n: student rollouts per prompt.
        m: answers of each model per prompt.
        k: support size of the diagnostics.
        tokens_per_batch: padded tokens per forward pass of the diagnostics.
        seed: of all samples.
        evaluation: decoding of the answers that accuracies are of, the teacher's samples and the
            continuations: that of the run's evaluation; None: as the rollouts.
        greedy: whether the student also answers at temperature 0.
        continuations: whether both models continue the student's prefixes.
    """

    decoding: Decoding
    decode: Callable[[Sequence[int]], str]
    grader: Grader | None
    n: int = 4
    m: int = 2
    k: int = 16
    tokens_per_batch: int = 8192
    seed: int = 0
    evaluation: Decoding | None = None
    greedy: bool = True
    continuations: bool = True

    @property
    def answering(self) -> Decoding:
        """How answers are sampled."""
        return self.evaluation or self.decoding


@dataclass(frozen=True)
class Answers:
    """A model's answers as the run's evaluation samples them.

    Attributes:
        correct: (P, m) of 0/1, or None without a grader.
        lengths: (P, m) tokens.
        truncated: (P, m) of 0/1, cut off at the limit.
    """

    correct: np.ndarray | None
    lengths: np.ndarray
    truncated: np.ndarray

    def __add__(self, other: Answers) -> Answers:
        """Both rounds together."""
        return Answers(
            _concatenate(self.correct, other.correct),
            np.concatenate([self.lengths, other.lengths]),
            np.concatenate([self.truncated, other.truncated]),
        )


@dataclass(frozen=True)
class StudentSide:
    """The student's half of the probe, shared by all teachers.

    Attributes:
        prompts: (P,) in order.
        rollouts: P x n, grouped by prompt.
        correct: (P, n) of 0/1, or None without a grader.
        answers: m per prompt.
        greedy: one per prompt at temperature 0; None without a grader.
        prefixes: D lists of P prompts that end inside the first rollout of each prompt.
        continued: (P, D) whether the student's continuation of its prefix is correct, or None.
        tokens: generated, in all of these.
    """

    prompts: tuple[Prompt, ...]
    rollouts: tuple[Rollout, ...]
    correct: np.ndarray | None
    answers: Answers
    greedy: Answers | None
    prefixes: tuple[tuple[Prompt, ...], ...]
    continued: np.ndarray | None
    tokens: int

    def __add__(self, other: StudentSide) -> StudentSide:
        """Both rounds together."""
        return StudentSide(
            self.prompts + other.prompts,
            self.rollouts + other.rollouts,
            _concatenate(self.correct, other.correct),
            self.answers + other.answers,
            None if self.greedy is None or other.greedy is None else self.greedy + other.greedy,
            tuple(a + b for a, b in zip(self.prefixes, other.prefixes, strict=True)),
            _concatenate(self.continued, other.continued),
            self.tokens + other.tokens,
        )


@dataclass(frozen=True)
class TeacherSide:
    """One teacher's half of the probe.

    Attributes:
        on_student: diagnostics on the student's P n rollouts.
        reward: (P, n) mean log q - log p per token of the student's rollouts.
        answers: m per prompt, or None if it cannot generate.
        samples: the P m rollouts that these are; none if it cannot generate.
        continued: (P, D) whether its continuation of the student's prefix is correct, or None.
        on_teacher: diagnostics on its own P m rollouts, scored by the student, or None.
        tokens: generated, in samples and continuations.
    """

    on_student: Diagnosis
    reward: np.ndarray
    answers: Answers | None = None
    samples: tuple[Rollout, ...] = ()
    continued: np.ndarray | None = None
    on_teacher: Diagnosis | None = None
    tokens: int = 0

    def __add__(self, other: TeacherSide) -> TeacherSide:
        """Both rounds together."""
        answers, on_teacher = None, None
        if self.answers is not None and other.answers is not None:
            answers = self.answers + other.answers
        if self.on_teacher is not None and other.on_teacher is not None:
            on_teacher = self.on_teacher + other.on_teacher
        return TeacherSide(
            self.on_student + other.on_student,
            np.concatenate([self.reward, other.reward]),
            answers,
            self.samples + other.samples,
            _concatenate(self.continued, other.continued),
            on_teacher,
            self.tokens + other.tokens,
        )


def _concatenate(a: np.ndarray | None, b: np.ndarray | None) -> np.ndarray | None:
    return None if a is None or b is None else np.concatenate([a, b])


def probe_student(
    student: ProbeModel, prompts: Sequence[Prompt], config: ProbeConfig
) -> StudentSide:
    """Sample and grade the student, and let it continue its own prefixes."""
    rollouts = _sample(student, prompts, config, config.n, STUDENT_SAMPLES)
    answers, tokens = answer(student, prompts, config)
    greedy = None
    if config.grader is not None and config.greedy:
        at_zero = replace(config, m=1, evaluation=replace(config.answering, temperature=0.0))
        greedy, more = answer(student, prompts, at_zero)
        tokens += more
    firsts = rollouts[:: config.n]
    prefixes = tuple(tuple(prefix_prompt(r, depth) for r in firsts) for depth in DEPTHS)
    continued, more = _continue(student, prefixes, config)
    return StudentSide(
        tuple(prompts),
        tuple(rollouts),
        _correct(rollouts, config),
        answers,
        greedy,
        prefixes,
        continued,
        _count_tokens(rollouts) + tokens + more,
    )


def answer(
    model: ProbeModel, prompts: Sequence[Prompt], config: ProbeConfig
) -> tuple[Answers, int]:
    """The student's answers and the tokens generated; the same random numbers at every call."""
    samples = _sample(model, prompts, config, config.m, STUDENT_ANSWERS, config.answering)
    return _answers(samples, config), _count_tokens(samples)


def probe_teacher(
    teacher: ProbeModel, student: ProbeModel, side: StudentSide, config: ProbeConfig
) -> TeacherSide:
    """Let a local teacher score the student's rollouts, answer, and continue the prefixes."""
    k, tokens_per_batch = config.k, config.tokens_per_batch
    on_student = diagnose(
        student.lm, teacher.lm, side.rollouts, k=k, tokens_per_batch=tokens_per_batch
    )
    samples = _sample(teacher, side.prompts, config, config.m, TEACHER_SAMPLES, config.answering)
    continued, tokens = _continue(teacher, side.prefixes, config)
    return TeacherSide(
        on_student,
        on_student.mean["diag/token_reward"].reshape(len(side.prompts), -1),
        _answers(samples, config),
        tuple(samples),
        continued,
        diagnose(teacher.lm, student.lm, samples, k=k, tokens_per_batch=tokens_per_batch),
        _count_tokens(samples) + tokens,
    )


def probe_server(teacher: Teacher, side: StudentSide, config: ProbeConfig) -> TeacherSide:
    """Let a teacher server score the student's rollouts.

    It generates nothing, so there is no accuracy and no continuation gain.
    """
    topk = config.k if Kind.TOPK in teacher.kinds else 0
    scores = teacher.score(side.rollouts, Want(sampled=True, topk=topk))
    measures = [_server_measures(r, s) for r, s in zip(side.rollouts, scores, strict=True)]
    rewards = [m["diag/token_reward"].total.numpy().mean() for m in measures]
    return TeacherSide(
        diagnosis_of_measures(measures),
        np.array(rewards).reshape(len(side.prompts), -1),
    )


def _server_measures(rollout: Rollout, scores: Scores) -> dict[str, Measure]:
    """What a server's scores tell at each position: the reward, and the overlap of the top k."""
    assert scores.sampled is not None
    reward = torch.from_numpy(scores.sampled - rollout.logp)
    measures = {"diag/token_reward": Measure.of(reward)}
    if scores.topk_ids is not None and scores.topk_logp is not None:
        k = min(scores.topk_ids.shape[1], rollout.topk_ids.shape[1])
        lists = (rollout.topk_ids, rollout.topk_logp), (scores.topk_ids, scores.topk_logp)
        student, teacher = (
            TopK(torch.from_numpy(ids[:, :k]).long(), torch.from_numpy(logp[:, :k]))
            for ids, logp in lists
        )
        measures |= diagnostics.topk_metrics(student, teacher)
    return measures


def prefix_prompt(rollout: Rollout, depth: float) -> Prompt:
    """The rollout's prompt followed by its first tokens: a fraction `depth`, never the last few."""
    length = max(0, min(int(depth * len(rollout)), len(rollout) - TAIL))
    return replace(rollout.prompt, ids=(*rollout.prompt.ids, *rollout.ids[:length].tolist()))


def _sample(
    model: ProbeModel,
    prompts: Sequence[Prompt],
    config: ProbeConfig,
    n: int,
    stream_index: int,
    decoding: Decoding | None = None,
) -> list[Rollout]:
    decoding = config.decoding if decoding is None else decoding
    sampler = HFSampler(model.lm, decoding, stop=model.stop, capture=config.k)
    return sampler.sample(prompts, n=n, key=key(config.seed, Stream.CHECK, stream_index))


def _continue(
    model: ProbeModel, prefixes: Sequence[Sequence[Prompt]], config: ProbeConfig
) -> tuple[np.ndarray | None, int]:
    """(P, D) whether the continuation of each prefix is correct, and the tokens generated.

    The random numbers are the same for all models.
    """
    if config.grader is None or not config.continuations:
        return None, 0
    columns, tokens = [], 0
    for depth, prompts in enumerate(prefixes):
        stream_index = CONTINUATIONS + depth
        continuations = _sample(model, prompts, config, 1, stream_index, config.answering)
        columns.append(grade_rollouts(config.grader, continuations, config.decode))
        tokens += _count_tokens(continuations)
    return np.stack(columns, 1), tokens


def _correct(rollouts: Sequence[Rollout], config: ProbeConfig) -> np.ndarray | None:
    """(P, n) of 0/1, or None without a grader."""
    if config.grader is None:
        return None
    return grade_rollouts(config.grader, rollouts, config.decode).reshape(-1, config.n)


def _answers(samples: Sequence[Rollout], config: ProbeConfig) -> Answers:
    correct = None
    if config.grader is not None:
        graded = grade_rollouts(config.grader, samples, config.decode)
        correct = graded.reshape(-1, config.m)
    truncated = np.array([float(r.finish == "length") for r in samples])
    lengths = np.array([float(len(r)) for r in samples])
    return Answers(correct, lengths.reshape(-1, config.m), truncated.reshape(-1, config.m))


def _count_tokens(rollouts: Sequence[Rollout]) -> int:
    return sum(map(len, rollouts))
