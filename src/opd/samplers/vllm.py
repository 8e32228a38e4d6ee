"""Completions by a vLLM server: `opd.types.Sampler` of the student, or of a teacher that generates.

A server is asked for token ids and, where drift is to be known, for the sampled token's log-prob.
What a loss needs beside them comes from the model in this process (`with_statistics`), so that the
support does not depend on the server's arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from opd.errors import UserError
from opd.models.fsdp import unsharded
from opd.models.lm import LM
from opd.rng import seed_of
from opd.samplers.completions import CompletionRequest, ServerLost
from opd.samplers.decoding import Decoding
from opd.samplers.sampling import first_samples
from opd.samplers.sampling_server import SamplingServer
from opd.samplers.weight_sync import WeightSync
from opd.types import Prompt, Rollout, Sampler, Scores, Teacher, Want

RECOVERIES = 3  # of a server that went away during one call of `sample`


class VllmSampler:
    """`opd.types.Sampler` for a vLLM server; entropies and top tokens are not in its rollouts."""

    def __init__(
        self,
        server: SamplingServer,
        decoding: Decoding,
        *,
        stop: frozenset[int],
        logp: bool = False,
        weights: WeightSync | None = None,
    ) -> None:
        """Make a sampler.

        Args:
            server: where completions are sampled.
            decoding: temperature, truncation and length.
            stop: token ids that end a completion; they are part of it.
            logp: whether rollouts carry the log-probs of their tokens; NaN otherwise.
            weights: sends the student's weights; None for a model that never changes.
        """
        self.server, self.decoding, self.stop = server, decoding, stop
        self.logp, self.weights = logp, weights

    def sync(self, version: int) -> None:
        """See `opd.types.Sampler.sync`.

        Raises:
            UserError: the server does not take weights; the message says how to start it.
        """
        if self.weights is not None:
            self.weights.send(version)

    def sample(
        self, prompts: Sequence[Prompt], *, n: int, key: Sequence[int], limit: int | None = None
    ) -> list[Rollout]:
        """See `opd.types.Sampler.sample`; tokens depend on the server's arithmetic too.

        Raises:
            UserError: the server does not answer, refuses, or gives wrong answers.
        """
        groups = dict(self.stream(prompts, n=n, key=key, limit=limit))
        return [rollout for i in range(len(prompts)) for rollout in groups[i]]

    def stream(
        self, prompts: Sequence[Prompt], *, n: int, key: Sequence[int], limit: int | None = None
    ) -> Iterator[tuple[int, list[Rollout]]]:
        """`sample`, a prompt's rollouts as soon as they are there, with the prompt's position.

        Those of a server that turns out to have other weights come again: the last ones count.
        """
        requests = self._requests(prompts, n, key, limit)
        results: dict[int, list[Rollout]] = {}
        for attempt in range(RECOVERIES + 1):
            try:
                for i in self.server.complete(requests, results):
                    yield i, results[i]
                self.server.sleep()
                return
            except ServerLost as error:
                if attempt == RECOVERIES:
                    raise UserError(
                        f"The {self.server.http.role} at {self.server.http.url} went away "
                        f"{attempt + 1} times during one step ({error})."
                    ) from None
                self.server.wait(str(error))
                if self.weights is not None:
                    self.weights.restore()

    def once(self) -> OnceSampler:
        """The same sampler for a thread beside an update: it sends no weights."""
        return OnceSampler(self)

    def sample_once(
        self, prompts: Sequence[Prompt], *, n: int, key: Sequence[int], limit: int | None = None
    ) -> list[Rollout]:
        """`sample`, without sending weights again to a server that has lost them.

        Raises:
            ServerLost: it went away, or has other weights.
            UserError: as `sample`.
        """
        results: dict[int, list[Rollout]] = {}
        for _ in self.server.complete(self._requests(prompts, n, key, limit), results):
            pass
        return [rollout for i in range(len(prompts)) for rollout in results[i]]

    def _requests(
        self, prompts: Sequence[Prompt], n: int, key: Sequence[int], limit: int | None
    ) -> list[CompletionRequest]:
        max_length = self.decoding.max_new_tokens
        body = self._body(max_length if limit is None else min(limit, max_length))
        return [
            CompletionRequest(prompt, first, n, body, request_seed(key, prompt.index, first))
            for prompt, first in zip(prompts, first_samples(prompts, n), strict=True)
        ]

    def _body(self, limit: int) -> dict[str, Any]:
        body: dict[str, Any] = {
            "max_tokens": limit,
            "temperature": self.decoding.temperature,
            "top_p": self.decoding.top_p,
            "top_k": -1,  # none; vLLM would take that of the model's generation_config
            "return_token_ids": True,
            "stop_token_ids": sorted(self.stop),
            "skip_special_tokens": False,
        }
        return body | ({"logprobs": 0} if self.logp else {})


class OnceSampler:
    """`VllmSampler.sample_once` as a sampler."""

    def __init__(self, sampler: VllmSampler) -> None:
        """Ask the server of `sampler`."""
        self.sampler = sampler

    def sync(self, version: int) -> None:
        """Weights are sent by the sampler itself."""

    def sample(
        self, prompts: Sequence[Prompt], *, n: int, key: Sequence[int], limit: int | None = None
    ) -> list[Rollout]:
        """See `VllmSampler.sample_once`."""
        return self.sampler.sample_once(prompts, n=n, key=key, limit=limit)


class StatisticsSampler:
    """Another sampler's rollouts, with entropies and top tokens of the model in this process."""

    def __init__(self, sampler: Sampler, lm: LM, scorer: Teacher, k: int) -> None:
        """Wrap a sampler.

        Args:
            sampler: of the same model.
            lm: the model in this process.
            scorer: scores with it.
            k: K, how many top tokens to record per position.
        """
        self.sampler, self.lm, self.scorer, self.k = sampler, lm, scorer, k
        self.arrived: Callable[[list[Rollout]], None] | None = None

    def sync(self, version: int) -> None:
        """See `opd.types.Sampler.sync`."""
        self.sampler.sync(version)

    def sample(
        self, prompts: Sequence[Prompt], *, n: int, key: Sequence[int], limit: int | None = None
    ) -> list[Rollout]:
        """See `opd.types.Sampler.sample`.

        Rollouts of a server are scored a prompt at a time, as they arrive, and given to `arrived`:
        a teacher can then score them while others are still sampled. What each number is computed
        from does not depend on the order in which they arrive.
        """
        if not isinstance(self.sampler, VllmSampler):
            return self._scored(self.sampler.sample(prompts, n=n, key=key, limit=limit))
        groups: dict[int, list[Rollout]] = {}
        for i, group in self.sampler.stream(prompts, n=n, key=key, limit=limit):
            groups[i] = self._scored(group)
            if self.arrived is not None:
                self.arrived(groups[i])
        return [rollout for i in range(len(prompts)) for rollout in groups[i]]

    def _scored(self, rollouts: list[Rollout]) -> list[Rollout]:
        with unsharded(self.lm):
            scores = self.scorer.score(rollouts, Want(sampled=True, topk=self.k))
        return [with_statistics(r, s) for r, s in zip(rollouts, scores, strict=True)]


def with_statistics(rollout: Rollout, scores: Scores) -> Rollout:
    """The rollout with entropies and top tokens of its own model's scores."""
    assert scores.entropy is not None
    assert scores.topk_ids is not None
    assert scores.topk_logp is not None
    return replace(
        rollout, entropy=scores.entropy, topk_ids=scores.topk_ids, topk_logp=scores.topk_logp
    )


def request_seed(key: Sequence[int], prompt: int, sample: int) -> int:
    """The request's seed, a function of (key, prompt, sample) alone."""
    return seed_of((*key, prompt, sample)) & 0x3FFFFFFF
