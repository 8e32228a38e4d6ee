"""Prefixes of rollouts, and completions that end where the context of the models does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from opd.types import Prompt, Rollout, Sampler

TAIL = 3  # last tokens of a rollout that no prefix contains: the answer is usually there
PARTS = 8  # of the limit, that a completion without room for all of it may have


def prefix_prompt(rollout: Rollout, depth: float) -> Prompt:
    """The rollout's prompt followed by its first tokens: a fraction `depth`, never the last few."""
    length = max(0, min(int(depth * len(rollout)), len(rollout) - TAIL))
    return replace(rollout.prompt, ids=(*rollout.prompt.ids, *rollout.ids[:length].tolist()))


def sample_in_room(
    sampler: Sampler,
    prompts: Sequence[Prompt],
    *,
    n: int,
    key: Sequence[int],
    limit: int,
    context: int | None,
) -> list[Rollout]:
    """Completions, shorter ones where a prompt and a whole one are longer than the context.

    The run's own prompts and rollouts fit; a rollout's beginning and a whole answer after it may
    not. Random numbers are those of a prompt, so nothing changes for the others.

    Args:
        sampler: of the model.
        prompts: each of another index.
        n: completions per prompt.
        key: of the random numbers.
        limit: tokens of a completion where there is room.
        context: tokens that the models read; None: unknown.
    """
    groups: dict[int, list[int]] = {}
    for i, prompt in enumerate(prompts):
        groups.setdefault(_limit(limit, context, len(prompt.ids)), []).append(i)
    completions: dict[int, list[Rollout]] = {}
    for each, indices in groups.items():
        part = [prompts[i] for i in indices]
        shorter = {"limit": each} if each < limit else {}
        sampled = sampler.sample(part, n=n, key=key, **shorter)
        completions |= {i: sampled[j * n : (j + 1) * n] for j, i in enumerate(indices)}
    return [rollout for i in range(len(prompts)) for rollout in completions[i]]


def _limit(limit: int, context: int | None, prompt: int) -> int:
    """Tokens of a completion: of little room whole parts, so that few limits are sampled apart."""
    if context is None or prompt + limit <= context:
        return limit
    left, part = context - prompt, max(1, limit // PARTS)
    return max(1, left - left % part)
