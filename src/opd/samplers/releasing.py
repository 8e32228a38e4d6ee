"""A sampler of a frozen model that sends its weights away after every call."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from opd.types import Prompt, Rollout, Sampler


class ReleasingSampler:
    """`opd.types.Sampler` around another one."""

    def __init__(self, inner: Sampler, release: Callable[[], None]) -> None:
        """Make a sampler; `release` is called when it has sampled."""
        self.inner, self.release = inner, release

    def sample(
        self, prompts: Sequence[Prompt], *, n: int, key: Sequence[int], limit: int | None = None
    ) -> list[Rollout]:
        """See `opd.types.Sampler.sample`."""
        try:
            return self.inner.sample(prompts, n=n, key=key, limit=limit)
        finally:
            self.release()

    def sync(self, version: int) -> None:
        """See `opd.types.Sampler.sync`."""
        self.inner.sync(version)
