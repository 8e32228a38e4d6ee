"""Which pairs are trained, and how: a random design; every prefix is balanced over worlds."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from opd.rng import generator
from opd_lab.pairs.kinds import STUDENTS, TEACHERS
from opd_lab.pairs.setting import SETTINGS, Setting
from opd_lab.streams import WorldStream

LONG_RUNS = 0.1  # fraction of runs of 100 to 400 steps; the others have 40 to 100
EVALUATIONS_PER_RUN = 4  # at equal distances: outcomes of shorter runs, too
FULL_RATES, LORA_RATES = (1e-4, 1e-2), (3e-4, 3e-2)
EVALUATIONS = ((1.0, 1.0), (0.7, 0.95))  # temperature, top_p
# What all-linear cannot find in a Gemma whose embedding is its output head too.
GEMMA_MODULES = "[q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj]"
REPEAT, HALF = "repeat", "half"
BLOCKS = {"fit": 0, "fresh": 100, REPEAT: 0, HALF: 300}
"""Blocks of runs, and the seed of their models; no fit uses the models or runs of `fresh`.

The runs of `repeat` are those of `fit` with other prompts and other samples. Of those of `half`, a
part is made and measured before (see `opd_lab.pairs.features`).
"""
RUN_SEEDS = {"fit": 0, "fresh": 100_000, REPEAT: 200_000, HALF: 300_000}
FITTED = 140
"""The shipped forecast was fitted on the first so many runs of `fit`; later ones judge it."""
HALF_SEEN = 60
"""The first so many runs of `half` were seen before the forecast from a part got its last form."""
COMPARED = 40
"""Forms of the forecast were compared on the first so many runs of `fresh`; later ones were run
after it had been frozen."""


@dataclass(frozen=True)
class PlannedRun:
    """A pair and the settings of its run.

    Attributes:
        block: name in `BLOCKS`.
        index: number in the block.
        student: kind of student.
        teacher: kind of teacher.
        changes: overrides of the lab's run.yaml, as the command line takes them.
    """

    block: str
    index: int
    student: str
    teacher: str
    changes: tuple[str, ...]

    @property
    def setting(self) -> Setting:
        """The world: in turn."""
        return SETTINGS[self.index % len(SETTINGS)]

    @property
    def seed(self) -> int:
        """Of the run: prompts and rollouts."""
        return RUN_SEEDS[self.block] + self.index

    @property
    def model_seed(self) -> int:
        """Of the models."""
        return BLOCKS[self.block]


def plan(block: str, index: int) -> PlannedRun:
    """Run `index` of a block; a function of the two."""
    rng = generator(BLOCKS[block], WorldStream.DESIGN, index)
    student = _choose(rng, STUDENTS)
    teacher = _choose(rng, {kind: w for kind, w in TEACHERS.items() if kind != student})
    long = rng.random() < LONG_RUNS
    quarter = round(_log_uniform(rng, *((100, 400) if long else (40, 100))) / EVALUATIONS_PER_RUN)
    steps = quarter * EVALUATIONS_PER_RUN
    lora = rng.random() < 0.3
    rate = _log_uniform(rng, *(LORA_RATES if lora else FULL_RATES))
    prompts, responses = (8, 2) if long else (int(rng.choice([8, 16])), int(rng.choice([2, 4])))
    temperature, top_p = EVALUATIONS[int(rng.random() < 0.4)]
    changes = [
        f"train.steps={steps}",
        f"optim.lr={rate:.3g}",
        f"optim.warmup={round(quarter * float(rng.choice([0, 0.2])))}",
        f"train.prompts_per_step={prompts}",
        f"rollout.n={responses}",
        f"eval.0.temperature={temperature}",
        f"eval.0.top_p={top_p}",
        f"eval.0.every={quarter}",
    ]
    if lora:
        rank = int(rng.choice([4, 8, 16]))
        changes.append(f"student.lora={{rank: {rank}, alpha: {2 * rank}}}")
        if SETTINGS[index % len(SETTINGS)].architecture.kind == "gemma":
            changes.append(f"student.lora.target_modules={GEMMA_MODULES}")
    return PlannedRun(block, index, student, teacher, tuple(changes))


def _choose(rng: np.random.Generator, weights: dict[str, int]) -> str:
    values = np.array(list(weights.values()), dtype=float)
    return list(weights)[int(rng.choice(len(values), p=values / values.sum()))]


def _log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))
