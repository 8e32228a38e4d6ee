"""Every random number of the project is a function of (seed, stream, index...): this is the list.

No generator is carried from step to step, so a checkpoint holds no random state and a resumed run
replays nothing. A stream belongs to one purpose; a new use of randomness adds a member here.
"""

from __future__ import annotations

from enum import IntEnum, unique
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence


@unique
class Stream(IntEnum):
    """Purposes that draw random numbers; values 100 and above belong to opd-lab."""

    ROLLOUT = 1  # tokens of training rollouts: step, prompt, sample
    EVALUATION = 2  # tokens of held-out completions: prompt, sample; the same at every step
    PROMPT_ORDER = 3  # permutation of the training prompts: epoch, file of several
    INVARIANTS = 4  # rollouts of `opd verify`: prompt, sample
    DROPOUT = 5  # torch's generator during an on-policy update: step
    COLDSTART_COMPLETIONS = 6  # tokens of the teacher's completions: round, prompt, sample
    COLDSTART_PROBE = 7  # tokens of the student's rollouts between rounds: prompt, sample
    COLDSTART_ORDER = 8  # permutation of prompts or given completions
    SELECT_MEASURE = 9  # rollouts of `opd select`: prompt, sample
    SELECT_TEMPLATE = 10  # rollouts that compare templates: prompt, sample
    SELECT_OTHERS = 11  # which prompts are kept beside the aligned ones
    SELECT_LIMIT = 12  # which prompts are measured
    DIAGNOSTIC_POSITIONS = 13  # positions that get the full-vocabulary treatment: step
    CHECK = 14  # rollouts of `opd check`: model, prompt, sample
    TIMING = 15  # rollouts that `opd check` times: prompt, sample
    SFT_ORDER = 16  # permutation of supervised examples: epoch
    SFT_DROPOUT = 17  # torch's generator during a supervised update: step
    LORA_INIT = 18  # first weights of an adapter
    KEPT_ROLLOUTS = 19  # which rollouts of a step stay in the run folder: step, count
    HANDSHAKE = 20  # token ids a server is probed with: probe
    MINHASH = 21  # permutations of the near-duplicate hash
    BOOTSTRAP = 22  # resampled units of an interval
    PERMUTATION_TEST = 23  # sign flips of a paired test
    GPU_CHECK = 24  # random models, prompts and rollouts of the GPU check
    TEACHER_REPEATS = 25  # which rollouts a teacher server scores again: call


def key(seed: int, stream: IntEnum, *index: int) -> tuple[int, ...]:
    """A key for samplers, which append prompt and sample to it."""
    return (seed, int(stream), *index)


def generator(seed: int, stream: IntEnum, *index: int) -> np.random.Generator:
    """A numpy generator that depends on its arguments alone."""
    return generator_of(key(seed, stream, *index))


def generator_of(words: Sequence[int]) -> np.random.Generator:
    """A numpy generator of a whole key, such as a sampler's with prompt and sample appended."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(words)))


def torch_seed(seed: int, stream: IntEnum, *index: int) -> int:
    """A seed for torch's own generator, 32 bits."""
    return seed_of(key(seed, stream, *index))


def seed_of(words: Sequence[int]) -> int:
    """32 bits of a whole key."""
    return int(np.random.SeedSequence(words).generate_state(1)[0])
