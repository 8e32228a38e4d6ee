"""The completions of a cold start that files give."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from opd.config import Coldstart, Run
from opd.data.sft_examples import read_sft_examples
from opd.rng import Stream, generator
from opd.samplers.replay import read_rollouts
from opd.types import Rollout


def given_completions(cfg: Run, tokenizer: Any, cold: Coldstart) -> list[Rollout]:
    """The completions of coldstart.path in random order; empty without a path."""
    if cold.path is None:
        return []
    path = Path(cold.path)
    if path.is_dir() or _is_rollout_file(path):
        completions = read_rollouts(path, key="coldstart.path")
    else:
        completions = read_sft_examples(
            cold.path,
            tokenizer,
            template=cfg.prompts.template,
            chat=cfg.prompts.chat,
            max_tokens=cfg.prompts.max_tokens,
            key="coldstart.path",
        )
    return [completions[i] for i in completion_order(len(completions), cfg.train.seed)]


def _is_rollout_file(path: Path) -> bool:
    """Whether a parquet file holds rollouts and not rows of prompt and completion."""
    if path.suffix != ".parquet" or not path.is_file():
        return False
    return {"prompt_ids", "ids", "finish"} <= set(pq.read_schema(path).names)


def completion_order(count: int, seed: int) -> list[int]:
    """The order in which prompts or completions of a cold start are used."""
    order: list[int] = generator(seed, Stream.COLDSTART_ORDER).permutation(count).tolist()
    return order
