"""What tiny models are trained on: documents of a world, as token ids."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from transformers import PreTrainedTokenizerFast

from opd.data.sft_examples import make_example
from opd.rng import generator
from opd.types import Rollout
from opd_lab.streams import WorldStream
from opd_lab.worlds import Pattern, Problem, World

OPENING = "echo"  # a word of every world that no other document begins with


@dataclass(frozen=True)
class Corpus:
    """Documents of one world, in given fractions.

    Attributes:
        size: number of documents.
        pattern_2: fraction in the second thinking pattern (sets the compatibility).
        corrupt: probability that a hard fact takes its wrong value (the missing capability).
        off_task: fraction of documents of the unrelated skill.
        depths: reasoning steps, each equally often; empty: the world's own depth.
        corrupt_2: `corrupt` in the second pattern; None: the same.
        opened: fraction of documents that begin with `OPENING`; those are right.
    """

    size: int
    pattern_2: float = 0.0
    corrupt: float = 0.6
    off_task: float = 0.1
    depths: tuple[int, ...] = ()
    corrupt_2: float | None = None
    opened: float = 0.0

    def generate(self, world: World, seed: int) -> list[tuple[Problem, str]]:
        """Problems with their chains of thought; never a held-out problem."""
        rng = generator(seed, WorldStream.CORPUS)
        num_off_task = int(rng.binomial(self.size, self.off_task))
        depths = rng.choice(self.depths or (world.depth,), self.size - num_off_task)
        # A key of its own: a prompt set of the same seed must be other problems.
        problem_seed = int(rng.integers(2**62))
        problems = world.off_task(num_off_task, problem_seed)
        for depth, count in zip(*np.unique(depths, return_counts=True), strict=True):
            problems += world.problems(int(count), problem_seed, depth=int(depth))
        in_pattern_2 = rng.random(self.size) < self.pattern_2
        # Drawn only where it matters, so that other corpora are what they were.
        opens = rng.random(self.size) < self.opened if self.opened else np.zeros(self.size, bool)
        return [
            (problem, self._solve(world, problem, 2 if second else 1, bool(opened), rng))
            for problem, second, opened in zip(problems, in_pattern_2, opens, strict=True)
        ]

    def _solve(
        self,
        world: World,
        problem: Problem,
        pattern: Pattern,
        opened: bool,
        rng: np.random.Generator,
    ) -> str:
        """One document."""
        corrupt = self.corrupt
        if pattern == 2 and self.corrupt_2 is not None:
            corrupt = self.corrupt_2
        if not opened:
            return world.solve(problem, pattern, rng, corrupt=corrupt)
        return f"{OPENING} {world.solve(problem, pattern, rng)}"


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
    prompt_ids = tokenizer(prompts, add_special_tokens=False).input_ids
    texts = [text for _, text in documents]
    completion_ids = tokenizer(texts, add_special_tokens=False).input_ids
    return [
        make_example(i, prompt, [*completion, tokenizer.eos_token_id])
        for i, (prompt, completion) in enumerate(zip(prompt_ids, completion_ids, strict=True))
    ]
