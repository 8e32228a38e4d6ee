"""Several models that generate as one: each prompt is answered by its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from opd.types import Prompt, Rollout, Sampler


class RoutedSampler:
    """`opd.types.Sampler` that sends each prompt to the sampler of its teacher."""

    def __init__(self, samplers: Mapping[str, Sampler], routes: Mapping[int, str]) -> None:
        """Make a sampler.

        Args:
            samplers: by name.
            routes: name by `Prompt.index`.
        """
        self.samplers, self.routes = samplers, routes

    def sample(
        self, prompts: Sequence[Prompt], *, n: int, key: Sequence[int], limit: int | None = None
    ) -> list[Rollout]:
        """See `opd.types.Sampler.sample`."""
        answers: dict[int, list[Rollout]] = {}
        for name, sampler in self.samplers.items():
            places = [i for i, p in enumerate(prompts) if self.routes[p.index] == name]
            rollouts = sampler.sample([prompts[i] for i in places], n=n, key=key, limit=limit)
            for j, i in enumerate(places):
                answers[i] = rollouts[j * n : (j + 1) * n]
        return [rollout for i in range(len(prompts)) for rollout in answers[i]]

    def sync(self, version: int) -> None:
        """See `opd.types.Sampler.sync`; what is sampled here is frozen."""
        for sampler in self.samplers.values():
            sampler.sync(version)
