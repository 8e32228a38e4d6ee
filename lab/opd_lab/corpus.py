"""What tiny models read: documents of a world, as token ids."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from transformers import PreTrainedTokenizerFast

from opd.data.sft_examples import example
from opd.types import Rollout
from opd_lab.worlds.words import Problem, World, generator


@dataclass(frozen=True)
class Corpus:
    """What a model has read.

    Attributes:
        size: documents.
        pattern_2: share written in the second thinking pattern (the compatibility knob).
        corrupt: how often a hard fact takes its wrong value (the capability that is missing).
        off_task: share of documents of the unrelated skill.
        horizons: reasoning steps, drawn evenly; empty for the world's own horizon.
    """

    size: int
    pattern_2: float = 0.0
    corrupt: float = 0.6
    off_task: float = 0.1
    horizons: tuple[int, ...] = ()

    def write(self, world: World, seed: int) -> list[tuple[Problem, str]]:
        """Write the documents; never one about a held-out problem."""
        rng = generator(seed, 2)
        unrelated = int(rng.binomial(self.size, self.off_task))
        horizons = rng.choice(self.horizons or (world.horizon,), self.size - unrelated)
        # A key of its own: a prompt set drawn from the same seed must be other problems.
        key = int(rng.integers(2**62))
        problems = world.off_task(unrelated, key)
        for horizon, count in zip(*np.unique(horizons, return_counts=True), strict=True):
            problems += world.problems(int(count), key, horizon=int(horizon))
        second = rng.random(self.size) < self.pattern_2
        return [
            (problem, world.solve(problem, 2 if other else 1, rng, corrupt=self.corrupt))
            for problem, other in zip(problems, second, strict=True)
        ]


def encode(
    documents: list[tuple[Problem, str]], tokenizer: PreTrainedTokenizerFast
) -> list[Rollout]:
    """Documents as examples for `sft`: chat-templated prompt, completion with its stop token."""
    prompts = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": problem.text}], tokenize=False, add_generation_prompt=True
        )
        for problem, _ in documents
    ]
    asked = tokenizer(prompts, add_special_tokens=False).input_ids
    told = tokenizer([text for _, text in documents], add_special_tokens=False).input_ids
    return [
        example(i, prompt, [*completion, tokenizer.eos_token_id])
        for i, (prompt, completion) in enumerate(zip(asked, told, strict=True))
    ]
