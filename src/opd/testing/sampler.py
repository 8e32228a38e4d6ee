"""A sampler without a model: given completions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from opd.samplers.replay import truncate_rollout
from opd.testing.language import NextLogp, completion_logp
from opd.types import Prompt, Rollout


class FakeSampler:
    """`opd.types.Sampler` that returns given completions.

    Attributes:
        version: of the last `sync`.
        sampled: number of rollouts returned so far.
    """

    def __init__(
        self,
        completions: Mapping[int, Sequence[Sequence[int]]],
        *,
        stop: frozenset[int] = frozenset(),
        logp: NextLogp | None = None,
        capture: int = 0,
    ) -> None:
        """Make a sampler.

        Args:
            completions: token ids of the completions of each prompt, by `Prompt.index`; sample i
                is completion i modulo their number.
            stop: token ids that end a completion.
            logp: model whose log-probs and entropies the rollouts carry; None: zeros.
            capture: K, top tokens of `logp` to record per position.
        """
        if capture and logp is None:
            raise ValueError("capture needs logp")
        self.completions, self.stop = completions, stop
        self.logp, self.capture = logp, capture
        self.version = self.sampled = 0

    def sync(self, version: int) -> None:
        """See `opd.types.Sampler.sync`."""
        self.version = version

    def sample(
        self, prompts: Sequence[Prompt], *, n: int, key: Sequence[int], limit: int | None = None
    ) -> list[Rollout]:
        """See `opd.types.Sampler.sample`; `key` changes nothing."""
        rollouts = [self._rollout(prompt, i) for prompt in prompts for i in range(n)]
        self.sampled += len(rollouts)
        return rollouts if limit is None else [truncate_rollout(r, limit) for r in rollouts]

    def _rollout(self, prompt: Prompt, sample: int) -> Rollout:
        completions = self.completions[prompt.index]
        ids = np.array(completions[sample % len(completions)], dtype=np.int32)
        stopped = len(ids) > 0 and int(ids[-1]) in self.stop
        rollout = Rollout.of_ids(prompt, ids, finish="stop" if stopped else "length")
        rollout = replace(rollout, sample=sample, version=self.version)
        if self.logp is None:
            return rollout
        logp = completion_logp(self.logp, rollout)
        best = np.argsort(-logp, 1, kind="stable")[:, : self.capture]
        return replace(
            rollout,
            logp=np.take_along_axis(logp, ids[:, None].astype(int), 1)[:, 0].astype(np.float32),
            entropy=(-(np.exp(logp) * logp).sum(1)).astype(np.float32),
            topk_ids=best.astype(np.int32),
            topk_logp=np.take_along_axis(logp, best, 1).astype(np.float32),
        )
