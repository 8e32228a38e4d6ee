"""A sampler that is a Python object of the user's: `rollout.python`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from opd.config.python_objects import load_object
from opd.errors import UserError
from opd.models.fsdp import unsharded
from opd.models.lm import LM
from opd.samplers.decoding import Decoding
from opd.samplers.vllm import with_statistics
from opd.setup.pair import Pair
from opd.types import Prompt, Rollout, Sampler, SamplerFactory, Teacher, Want

CONTRACT = ("sample", "sync")


@dataclass
class CheckedSampler:
    """A user's sampler, whose rollouts are checked and get the statistics of the student.

    Attributes:
        inner: the user's object.
        name: for messages.
        decoding: what it was asked for.
        lm: the student.
        stop: token ids that end a completion.
        scorer: scores with the student; None where tokens alone are wanted.
        k: top tokens to record per position.
    """

    inner: Sampler
    name: str
    decoding: Decoding
    lm: LM
    stop: frozenset[int]
    scorer: Teacher | None
    k: int

    def sync(self, version: int) -> None:
        """See `opd.types.Sampler.sync`."""
        self.inner.sync(version)

    def sample(
        self, prompts: Sequence[Prompt], *, n: int, key: Sequence[int], limit: int | None = None
    ) -> list[Rollout]:
        """See `opd.types.Sampler.sample`.

        Raises:
            UserError: rollouts that break the contract.
        """
        longest = self.decoding.max_new_tokens
        limit = longest if limit is None else min(limit, longest)
        rollouts = list(self.inner.sample(prompts, n=n, key=key, limit=limit))
        if len(rollouts) != n * len(prompts):
            raise self._error(
                f"{len(rollouts)} rollouts for {len(prompts)} prompts, {n} of each. It must return "
                f"{n * len(prompts)}, those of a prompt together, in the order of the prompts"
            )
        own = [self._checked(r, prompts[i // n], limit) for i, r in enumerate(rollouts)]
        if self.scorer is None:
            return own
        with unsharded(self.lm):
            scores = self.scorer.score(own, Want(sampled=True, topk=self.k))
        scored = []
        for rollout, score in zip(own, scores, strict=True):
            assert score.sampled is not None
            logp = rollout.logp if rollout.logp.any() else score.sampled
            scored.append(with_statistics(replace(rollout, logp=logp), score))
        return scored

    def _checked(self, rollout: Rollout, prompt: Prompt, limit: int) -> Rollout:
        """The rollout with the types of the contract."""
        ids = np.asarray(rollout.ids)
        if rollout.prompt.index != prompt.index:
            raise self._error(
                f"a rollout of prompt {rollout.prompt.index} where one of {prompt.index} belongs"
            )
        if ids.ndim != 1 or not 1 <= len(ids) <= limit or ids.dtype.kind not in "iu":
            raise self._error(
                f"token ids of shape {ids.shape} and type {ids.dtype}; a completion is a row of 1 "
                f"to {limit} whole numbers"
            )
        if ids.min() < 0 or ids.max() >= self.lm.vocab:
            wrong = ids.min() if ids.min() < 0 else ids.max()
            raise self._error(f"token {wrong}; the student has tokens 0 to {self.lm.vocab - 1}")
        ends = int(ids[-1]) in self.stop
        if rollout.finish not in ("stop", "length") or ends != (rollout.finish == "stop"):
            raise self._error(
                f"finish={rollout.finish!r} of a completion whose last token is {ids[-1]}. It is "
                f"'stop' where that is one of {sorted(self.stop)}, else 'length'"
            )
        if self.stop & set(ids[:-1].tolist()):
            raise self._error(f"tokens after one that ends a completion ({sorted(self.stop)})")
        logp = np.asarray(rollout.logp, np.float32)
        if logp.shape != ids.shape or not (np.isfinite(logp).all() and (logp <= 1e-4).all()):
            raise self._error(
                f"logp of shape {logp.shape} for {len(ids)} tokens; they are finite, at most 0, "
                "and 0 throughout where they are not known"
            )
        return replace(rollout, prompt=prompt, ids=ids.astype(np.int32), logp=logp)

    def _error(self, what: str) -> UserError:
        return UserError(
            f"rollout.python={self.name}: sample() returned {what}. See opd.types.Sampler."
        )


def load_own_sampler(name: str) -> SamplerFactory:
    """What makes the user's samplers.

    Raises:
        UserError: it cannot be imported, or cannot be called.
    """
    factory: Any = load_object(name, key="rollout.python", group="opd.samplers")
    if not callable(factory):
        raise UserError(
            f"rollout.python={name} is a {type(factory).__name__}, which cannot be called. It "
            "makes samplers: see opd.types.SamplerFactory."
        )
    return factory  # type: ignore[no-any-return]


def own_sampler(
    name: str, pair: Pair, decoding: Decoding, scorer: Teacher, k: int | None
) -> CheckedSampler:
    """The user's sampler behind checks.

    Args:
        name: rollout.python.
        pair: of which the student is sampled.
        decoding: temperature, truncation and length.
        scorer: scores with the student.
        k: top tokens to record; None: tokens alone.

    Raises:
        UserError: it lacks a part of the contract `opd.types.Sampler`.
    """
    lm = pair.student
    made = load_own_sampler(name)(
        model=lm.model,
        tokenizer=pair.tokenizer,
        stop=pair.stop,
        max_new_tokens=decoding.max_new_tokens,
        temperature=decoding.temperature,
        top_p=decoding.top_p,
    )
    missing = [part for part in CONTRACT if not hasattr(made, part)]
    if missing:
        raise UserError(
            f"rollout.python={name} made a {type(made).__name__} without {', '.join(missing)}. A "
            "sampler has sample(prompts, n, key, limit) and sync(version); see opd.types.Sampler."
        )
    return CheckedSampler(
        made, name, decoding, lm, pair.stop, None if k is None else scorer, min(k or 0, lm.vocab)
    )
