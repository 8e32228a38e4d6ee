"""How fast this machine is with this pair, from the first few tokens: what the check plans by.

Rough, and meant to be: the first round of the probe and the first step of the pilot are timed as
well, and everything after them is planned by those.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from opd import rng
from opd.commands.check.candidates import Candidate
from opd.config import Run
from opd.models.lm import LM
from opd.recipes.check.cost import time_call
from opd.recipes.check.probe import DEPTHS, ProbeConfig
from opd.rng import Stream
from opd.samplers.decoding import Decoding
from opd.samplers.hf import ROWS, HFSampler
from opd.samplers.sampling import MakeSampler
from opd.teachers.local import LocalTeacher
from opd.types import Prompt, Rollout, Sampler, Want

SLOW = 0.5  # seconds for one token, from which on a model is timed by as little as possible
TOKENS = 4  # sampled to see the speed of a slow model ...
FAST_TOKENS, FAST_ROWS = 8, 16  # ... and of a fast one
GPU_TOKENS = 17, 81  # on a GPU: with one look at the rows, and with several
LEAST_SHARE = 0.1  # of a call's mean time per token, that one more token takes
SEEN = 64  # prompts, of which the shortest is sampled from and the lengths are known
SMALL_BATCH, GPU_BATCH = 16, ROWS  # rows of which a step of decoding takes about as long as of one
EXPECTED_FRACTION = 0.5  # of the longest completion, that one has on average
UPDATE = 3.0  # forward passes that an update is worth


@dataclass(frozen=True)
class ModelSpeed:
    """Of one model.

    Attributes:
        decode: seconds per step of decoding a few rows.
        forward: seconds per token of a forward pass.
        rows: how many are a few.
    """

    decode: float
    forward: float
    rows: int = SMALL_BATCH

    def decoding(self, rows: int, tokens: float) -> float:
        """Seconds for so many rows of so many tokens."""
        return self.decode * tokens * max(1.0, rows / self.rows)


@dataclass(frozen=True)
class Speed:
    """Of the pair.

    Attributes:
        student: its speed.
        teachers: of those that answer; a server that only scores has none.
        prompt: tokens of a prompt.
        length: expected tokens of a completion.
    """

    student: ModelSpeed
    teachers: tuple[ModelSpeed, ...]
    prompt: int
    length: float

    def probe(self, prompts: int, config: ProbeConfig) -> float:
        """Seconds of a round of the probe, roughly."""
        rollouts, answers = prompts * config.n, prompts * config.m
        continuations = (1 - sum(DEPTHS) / len(DEPTHS)) * self.length
        tokens = (rollouts + answers) * (self.prompt + self.length)
        total = self.student.decoding(rollouts, self.length)
        for model, extra in ((self.student, config.greedy), *((t, False) for t in self.teachers)):
            total += model.decoding(answers, self.length) + model.forward * tokens
            total += model.decoding(prompts, self.length) if extra else 0.0
            if config.continuations:
                total += len(DEPTHS) * model.decoding(prompts, continuations)
        return total

    def step(self, cfg: Run) -> float:
        """Seconds of a step of the run, roughly."""
        rows = cfg.train.prompts_per_step * cfg.rollout.n
        tokens = rows * (self.prompt + self.length)
        passes = UPDATE * self.student.forward + sum(t.forward for t in self.teachers[:1])
        return self.student.decoding(rows, self.length) + tokens * passes

    def fixed_texts(self, config: ProbeConfig, prompts: int) -> float:
        """Seconds of a measurement on the fixed texts."""
        tokens = prompts * (config.n + config.m) * (self.prompt + self.length)
        return self.student.forward * tokens

    def answers(self, config: ProbeConfig, prompts: int) -> float:
        """Seconds of sampling the student's answers again."""
        return self.student.decoding(prompts * config.m, self.length)


def measure_speed(candidates: Sequence[Candidate], prompts: Sequence[Prompt]) -> Speed:
    """Sample and score a few tokens with every model.

    Args:
        candidates: compatible ones.
        prompts: of training; a short one is used.
    """
    first = candidates[0]
    assert first.pair is not None
    prompt = min(prompts[:SEEN], key=lambda each: len(each.ids))
    # A server's completions, or those of user code, may end early: the speed is a rougher guess.
    served = first.student_samplers if first.cfg.rollout.engine in ("vllm", "python") else None
    student = _measure_model(first.pair.student, prompt, served)
    teachers = [speed for c in candidates if (speed := _measure_teacher(c, prompt)) is not None]
    length = EXPECTED_FRACTION * first.cfg.rollout.max_new_tokens
    mean = sum(len(each.ids) for each in prompts[:SEEN]) // len(prompts[:SEEN])
    return Speed(student, tuple(teachers), mean, max(1.0, length))


def one_teacher(speed: Speed, candidates: Sequence[Candidate], index: int) -> Speed:
    """The same with the teacher of one candidate alone."""
    timed = [_is_timed(candidate) for candidate in candidates]
    place = sum(timed[:index])
    return replace(speed, teachers=speed.teachers[place : place + 1] if timed[index] else ())


def _is_timed(candidate: Candidate) -> bool:
    here = candidate.pair is not None and candidate.pair.teacher is not None
    return here or (candidate.server is not None and candidate.teacher_samplers is not None)


def _measure_teacher(candidate: Candidate, prompt: Prompt) -> ModelSpeed | None:
    assert candidate.pair is not None
    if candidate.pair.teacher is not None:
        return _measure_model(candidate.pair.teacher, prompt)
    server, make = candidate.server, candidate.teacher_samplers
    if server is None or make is None:
        return None
    sampler, key = make(Decoding(FAST_TOKENS), None), rng.key(0, Stream.TIMING)
    sampler.sample([prompt], n=1, key=key, limit=1)  # what is first warms everything up
    rollouts, decoding = time_call(lambda: sampler.sample([prompt], n=FAST_ROWS, key=key))
    _, scoring = time_call(lambda: server.score(rollouts, Want(sampled=True)))
    longest = max(map(len, rollouts))
    tokens = sum(len(prompt.ids) + len(rollout) for rollout in rollouts)
    return ModelSpeed(decoding / longest, scoring / tokens)


def _seconds_per_token(shorter: float, longer: float, few: int, many: int) -> float:
    """By the difference of two calls; noise may not make it less than a part of the longer one."""
    return max((longer - shorter) / (many - few), LEAST_SHARE * longer / many)


def _measure_on_gpu(lm: LM, prompt: Prompt) -> ModelSpeed:
    """By a difference: a call begins with graphs, which take as long as dozens of tokens."""
    sampler = HFSampler(lm, Decoding(max(GPU_TOKENS)), stop=frozenset(), capture=1)
    key, teacher = rng.key(0, Stream.TIMING), LocalTeacher(lm)
    seconds = []
    for tokens in (GPU_TOKENS[0], *GPU_TOKENS):  # what is first warms everything up
        rollouts, each = time_call(
            lambda: sampler.sample([prompt], n=GPU_BATCH, key=key, limit=tokens)  # noqa: B023
        )
        seconds.append(each)
    teacher.score(rollouts[:1], Want(sampled=True))
    _, scoring = time_call(lambda: teacher.score(rollouts, Want(sampled=True)))
    decode = _seconds_per_token(seconds[1], seconds[2], *GPU_TOKENS)
    read = sum(len(prompt.ids) + len(rollout) for rollout in rollouts)
    return ModelSpeed(decode, scoring / read, GPU_BATCH)


def _measure_model(lm: LM, prompt: Prompt, make: MakeSampler | None = None) -> ModelSpeed:
    if make is None and lm.device.type != "cpu":
        return _measure_on_gpu(lm, prompt)
    few = Decoding(FAST_TOKENS)
    sampler: Sampler = HFSampler(lm, few, stop=frozenset(), capture=1)
    if make is not None:
        sampler = make(few, None)
    key = rng.key(0, Stream.TIMING)

    def sample(rows: int, tokens: int) -> tuple[list[Rollout], float]:
        return time_call(lambda: sampler.sample([prompt], n=rows, key=key, limit=tokens))

    _, reading = sample(1, 1)
    if reading > SLOW:
        _, longer = sample(1, 1 + TOKENS)
        decoding = _seconds_per_token(reading, longer, 1, 1 + TOKENS)
        return ModelSpeed(decoding, reading / len(prompt.ids))
    rollouts, decoding = sample(FAST_ROWS, FAST_TOKENS)  # what was first has warmed everything up
    _, scoring = time_call(lambda: LocalTeacher(lm).score(rollouts, Want(sampled=True)))
    tokens = sum(len(prompt.ids) + len(rollout) for rollout in rollouts)
    return ModelSpeed(decoding / FAST_TOKENS, scoring / tokens)
