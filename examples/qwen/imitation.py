"""Supervised training on a teacher's answers, as many tokens as on-policy training samples.

The teacher answers `STEPS * BATCH` training problems once, at the temperature of an evaluation, and
the 0.5B with adapters learns these completions, right or wrong, once.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from opd.data.prompts import PromptSet
from opd.models.lm import load_lm
from opd.models.tokenizers import eos_ids, load_tokenizer
from opd.rng import Stream
from opd.samplers.decoding import Decoding
from opd.samplers.hf import HFSampler
from opd.types import Rollout
from teachers import BATCH, answered, fine_tune, problems, prompt_set, with_adapters

STEPS, TOKENS = 24, 24
SIZES = {"heldout": 150, "offtask": 50, "validation": 100}  # prompts evaluated
ALL_HELD_OUT = 300  # here, as `held_out.py` evaluates what is trained on-policy


def sets(seed: int, base: Path, tokenizer: object) -> dict[str, PromptSet]:
    """Prompts by split: train, validation, heldout, offtask."""
    sizes = {**SIZES, "heldout": ALL_HELD_OUT, "train": STEPS * BATCH}
    folder = base / "data" / f"imitation-{seed}"
    return {
        name: prompt_set(some[: sizes[name]], folder / f"{name}.jsonl", tokenizer)
        for name, some in problems(seed).items()
    }


def answers(teacher: Path, prompts: PromptSet, seed: int, tokenizer: object) -> list[Rollout]:
    """What a teacher says to each prompt."""
    lm = load_lm(str(teacher), dtype="bfloat16", device="cpu")
    stop = eos_ids(tokenizer, lm.causal.generation_config)
    sampler = HFSampler(lm, Decoding(TOKENS, 0.7, 0.95), stop=stop, capture=1, batch=64)
    return sampler.sample(prompts.prompts, n=1, key=(seed, Stream.EVALUATION, 1))


def imitate(teacher: Path, seed: int, rates: Sequence[float], base: Path) -> dict[str, Any]:
    """Train at every rate; return and keep its accuracies and how many tokens were learnt."""
    record = base / "study" / f"imitation-{seed}.json"
    if record.is_file():
        known: dict[str, Any] = json.loads(record.read_text())
        return known
    student = base / "0.5b"
    tokenizer = load_tokenizer(str(student))
    prompts = sets(seed, base, tokenizer)
    completions = answers(teacher, prompts["train"], seed, tokenizer)
    outcome: dict[str, Any] = {
        "tokens": sum(map(len, completions)),
        "teacher": teacher.name,
        "rates": {},
    }
    for lr in rates:
        lm = with_adapters(student, seed)
        for _ in fine_tune(lm, completions, lr, (STEPS,)):
            measured = {
                name: answered(lm, tokenizer, prompts[name], TOKENS)
                for name in ("validation", "heldout", "offtask")
            }
        outcome["rates"][f"{lr:g}"] = {
            name: [e.accuracy.value, e.accuracy.low, e.accuracy.high]
            for name, e in measured.items()
        }
        right = measured["heldout"].correct[:, 0].astype(int)
        outcome.setdefault("right", {})[f"{lr:g}"] = right.tolist()
        print(f"imitation, seed {seed}, {lr:g}: {outcome['rates'][f'{lr:g}']}", flush=True)
    record.parent.mkdir(parents=True, exist_ok=True)
    record.write_text(json.dumps(outcome))
    return outcome
