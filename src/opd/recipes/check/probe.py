"""The probe of a pair without training: samples, continuations, diagnostics on shared rollouts.

The student generates once; any number of teachers are compared on the same rollouts. Everything is
paired by prompt, and rounds of prompts are added up until the budget is spent.
Shapes: P prompts, n student samples and m teacher samples per prompt, D depths.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from opd.data.graders import Grader, grade_for_accuracy
from opd.models.lm import LM
from opd.recipes.check.diagnose import Diagnosis, diagnose, diagnosis_of_scores
from opd.recipes.check.room import prefix_prompt, sample_in_room
from opd.rng import Stream, key
from opd.samplers.decoding import Decoding
from opd.samplers.hf import HFSampler
from opd.samplers.sampling import MakeSampler
from opd.teachers.local import LocalTeacher
from opd.types import Kind, Prompt, Rollout, Scores, Teacher, Want

DEPTHS = (0.25, 0.5, 0.75)  # fractions of a student rollout after which both models continue it
# Indices of the random stream; continuations take one per depth.
STUDENT_SAMPLES, TEACHER_SAMPLES, CONTINUATIONS, STUDENT_ANSWERS = 0, 1, 2, 9


@dataclass(frozen=True)
class ProbeModel:
    """A model that generates, and scores what the other one generated.

    Attributes:
        lm: the model.
        stop: token ids that end its completions.
        make: its samplers; None: it samples in this process.
    """

    lm: LM
    stop: frozenset[int]
    make: MakeSampler | None = None

    @property
    def samplers(self) -> MakeSampler:
        """Makes samplers of the model."""
        if self.make is not None:
            return self.make
        return lambda decoding, k: HFSampler(self.lm, decoding, stop=self.stop, capture=k or 1)


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
        recorded: top tokens at each position of the student's rollouts, where more than k.
        tokens_per_batch: padded tokens per forward pass of the diagnostics.
        seed: of all samples.
        evaluation: decoding of the answers that accuracies are of, the teacher's samples and the
            continuations: that of the run's evaluation; None: as the rollouts.
        greedy: whether the student also answers at temperature 0.
        continuations: whether both models continue the student's prefixes.
        context: tokens that all models read, completions included; None: unknown.
    """

    decoding: Decoding
    decode: Callable[[Sequence[int]], str]
    grader: Grader | None
    n: int = 4
    m: int = 2
    k: int = 16
    recorded: int = 0
    tokens_per_batch: int = 8192
    seed: int = 0
    evaluation: Decoding | None = None
    greedy: bool = True
    continuations: bool = True
    context: int | None = None

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
        scores: of the student's P n rollouts, of a server; none of a teacher in this process.
    """

    on_student: Diagnosis
    reward: np.ndarray
    answers: Answers | None = None
    samples: tuple[Rollout, ...] = ()
    continued: np.ndarray | None = None
    on_teacher: Diagnosis | None = None
    tokens: int = 0
    scores: tuple[Scores, ...] = ()

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
            self.scores + other.scores,
        )


def _concatenate(a: np.ndarray | None, b: np.ndarray | None) -> np.ndarray | None:
    return None if a is None or b is None else np.concatenate([a, b])


def probe_student(
    student: ProbeModel, prompts: Sequence[Prompt], config: ProbeConfig
) -> StudentSide:
    """Sample and grade the student, and let it continue its own prefixes."""
    rollouts = sample_in_room(
        student.samplers(config.decoding, max(config.k, config.recorded)),
        prompts,
        n=config.n,
        key=_key(config, STUDENT_SAMPLES),
        limit=config.decoding.max_new_tokens,
        context=config.context,
    )
    answers, tokens = answer(student, prompts, config)
    greedy = None
    if config.grader is not None and config.greedy:
        at_zero = replace(config, m=1, evaluation=replace(config.answering, temperature=0.0))
        greedy, more = answer(student, prompts, at_zero)
        tokens += more
    firsts = rollouts[:: config.n]
    prefixes = tuple(tuple(prefix_prompt(r, depth) for r in firsts) for depth in DEPTHS)
    continued, more = _continue(student.samplers, prefixes, config)
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
    samples = _sample(model.samplers, prompts, config, config.m, STUDENT_ANSWERS)
    return _answers(samples, config), _count_tokens(samples)


def probe_teacher(
    teacher: ProbeModel, student: ProbeModel, side: StudentSide, config: ProbeConfig
) -> TeacherSide:
    """Let a local teacher score the student's rollouts, answer, and continue the prefixes."""
    k, tokens_per_batch = config.k, config.tokens_per_batch
    on_student = diagnose(
        student.lm, teacher.lm, side.rollouts, k=k, tokens_per_batch=tokens_per_batch
    )
    make = teacher.samplers
    samples = _sample(make, side.prompts, config, config.m, TEACHER_SAMPLES)
    continued, tokens = _continue(make, side.prefixes, config)
    return TeacherSide(
        on_student,
        on_student.mean["diag/token_reward"].reshape(len(side.prompts), -1),
        _answers(samples, config),
        tuple(samples),
        continued,
        diagnose(teacher.lm, student.lm, samples, k=k, tokens_per_batch=tokens_per_batch),
        _count_tokens(samples) + tokens,
    )


@dataclass(frozen=True)
class ServedTeacher:
    """A teacher behind a server, as the probe asks it.

    Attributes:
        scorer: scores rollouts.
        make: its samplers; None if it only scores.
    """

    scorer: Teacher
    make: MakeSampler | None = None


def probe_server(
    teacher: ServedTeacher, student: ProbeModel, side: StudentSide, config: ProbeConfig
) -> TeacherSide:
    """Let a teacher server score the student's rollouts, and generate if it can.

    Distances are estimated from the sampled tokens, since no server gives whole distributions. From
    a server that only scores there is no accuracy and no continuation gain.
    """
    scores = teacher.scorer.score(side.rollouts, _want(teacher, config))
    ours = _own_scores(student, side.rollouts, config)
    on_student = diagnosis_of_scores(ours, scores, config.decoding)
    rewards = on_student.mean["diag/token_reward"].reshape(len(side.prompts), -1)
    if teacher.make is None:
        return TeacherSide(on_student, rewards, scores=tuple(scores))
    samples = _sample(teacher.make, side.prompts, config, config.m, TEACHER_SAMPLES)
    continued, tokens = _continue(teacher.make, side.prefixes, config)
    by_student = _score(student, samples, config)
    by_teacher = teacher.scorer.score(samples, _want(teacher, config))
    return TeacherSide(
        on_student,
        rewards,
        _answers(samples, config),
        tuple(samples),
        continued,
        diagnosis_of_scores(by_teacher, by_student, config.answering),
        _count_tokens(samples) + tokens,
        tuple(scores),
    )


def _own_scores(
    student: ProbeModel, rollouts: Sequence[Rollout], config: ProbeConfig
) -> list[Scores]:
    """At temperature 1, as the teacher's; a sampler's are of the temperature it sampled at."""
    if config.decoding.temperature != 1:
        return _score(student, rollouts, config)
    return [Scores(sampled=r.logp, topk_ids=r.topk_ids, topk_logp=r.topk_logp) for r in rollouts]


def _score(student: ProbeModel, rollouts: Sequence[Rollout], config: ProbeConfig) -> list[Scores]:
    scorer = LocalTeacher(student.lm, tokens_per_batch=config.tokens_per_batch)
    return scorer.score(rollouts, Want(sampled=True, topk=config.k))


def _want(teacher: ServedTeacher, config: ProbeConfig) -> Want:
    return Want(sampled=True, topk=config.k if Kind.TOPK in teacher.scorer.kinds else 0)


def _key(config: ProbeConfig, stream_index: int) -> tuple[int, ...]:
    return key(config.seed, Stream.CHECK, stream_index)


def _sample(
    make: MakeSampler, prompts: Sequence[Prompt], config: ProbeConfig, n: int, stream_index: int
) -> list[Rollout]:
    """Answers: completions as the run's evaluation samples them."""
    decoding = config.answering
    return sample_in_room(
        make(decoding, None),
        prompts,
        n=n,
        key=_key(config, stream_index),
        limit=decoding.max_new_tokens,
        context=config.context,
    )


def _continue(
    make: MakeSampler, prefixes: Sequence[Sequence[Prompt]], config: ProbeConfig
) -> tuple[np.ndarray | None, int]:
    """(P, D) whether the continuation of each prefix is correct, and the tokens generated.

    The random numbers are the same for all models.
    """
    if config.grader is None or not config.continuations:
        return None, 0
    columns, tokens = [], 0
    for depth, prompts in enumerate(prefixes):
        continuations = _sample(make, prompts, config, 1, CONTINUATIONS + depth)
        columns.append(grade_for_accuracy(config.grader, continuations, config.decode))
        tokens += _count_tokens(continuations)
    return np.stack(columns, 1), tokens


def _correct(rollouts: Sequence[Rollout], config: ProbeConfig) -> np.ndarray | None:
    """(P, n) of 0/1, or None without a grader."""
    if config.grader is None:
        return None
    return grade_for_accuracy(config.grader, rollouts, config.decode).reshape(-1, config.n)


def _answers(samples: Sequence[Rollout], config: ProbeConfig) -> Answers:
    correct = None
    if config.grader is not None:
        graded = grade_for_accuracy(config.grader, samples, config.decode)
        correct = graded.reshape(-1, config.m)
    truncated = np.array([float(r.finish == "length") for r in samples])
    lengths = np.array([float(len(r)) for r in samples])
    return Answers(correct, lengths.reshape(-1, config.m), truncated.reshape(-1, config.m))


def _count_tokens(rollouts: Sequence[Rollout]) -> int:
    return sum(map(len, rollouts))
