"""Rollouts that exist already: training from files instead of from the student's own pen.

For teachers that are asked once, ahead of time. The further the student moves from whoever wrote
the rollouts, the less on-policy they are: `drift/ess` says how far.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from opd.errors import UserError
from opd.types import Prompt, Rollout


class ReplaySampler:
    """`opd.types.Sampler` that hands out recorded rollouts, prompt by prompt."""

    def __init__(self, given: Sequence[Rollout], path: Path, *, capture: int, longest: int) -> None:
        """Sort rollouts by prompt.

        Args:
            given: recorded rollouts.
            path: where they came from, for messages.
            capture: top tokens a position the loss will ask for.
            longest: most tokens of a completion (rollout.max_new_tokens).

        Raises:
            UserError: they record fewer top tokens than needed, or one is longer.
        """
        self.path, self.version = path, 0
        self.rollouts: dict[tuple[int, ...], list[Rollout]] = {}
        for rollout in given:
            if rollout.topk_ids.shape[1] < capture:
                raise UserError(
                    f"rollout.path={path}: the rollouts record {rollout.topk_ids.shape[1]} top "
                    f"tokens a position, loss.k={capture} needs more. Lower loss.k."
                )
            if len(rollout) > longest:
                most = max(map(len, given))
                raise UserError(
                    f"rollout.path={path}, rollout.max_new_tokens={longest}: a recorded completion "
                    f"has {most} tokens. Set rollout.max_new_tokens={most}; to train on the "
                    "beginnings only, set horizon.cap as well."
                )
            self.rollouts.setdefault(rollout.prompt.ids, []).append(rollout)

    def sync(self, version: int) -> None:
        """Recorded rollouts do not change; they count as written by the current student."""
        self.version = version

    def sample(
        self, prompts: Sequence[Prompt], *, n: int, key: Sequence[int], limit: int | None = None
    ) -> list[Rollout]:
        """See `opd.types.Sampler.sample`; a prompt's rollouts are taken in turn, by the key's step.

        Raises:
            UserError: a prompt without recorded rollouts.
        """
        taken = []
        for prompt in prompts:
            known = self.rollouts.get(prompt.ids)
            if known is None:
                raise UserError(
                    f"rollout.path={self.path} has no rollout of prompt {prompt.index}: "
                    f"{prompt.text[:60]!r}. Use the prompts, template and chat settings they were "
                    "made with."
                )
            first = key[-1] * n
            taken += [
                replace(
                    known[(first + i) % len(known)], prompt=prompt, sample=i, version=self.version
                )
                for i in range(n)
            ]
        return taken if limit is None else [shortened(rollout, limit) for rollout in taken]


def shortened(rollout: Rollout, limit: int) -> Rollout:
    """The first `limit` tokens of a rollout."""
    if len(rollout) <= limit:
        return rollout
    return replace(
        rollout,
        ids=rollout.ids[:limit],
        logp=rollout.logp[:limit],
        entropy=rollout.entropy[:limit],
        topk_ids=rollout.topk_ids[:limit],
        topk_logp=rollout.topk_logp[:limit],
        finish="length",
    )
