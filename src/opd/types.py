"""Words everyone uses: what travels from the prompt file to the loss.

Plain frozen records of numpy arrays, so that they can be written to disk bit for bit and read
without torch. Shape letters: T completion length, K support size, H hidden width, n positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

if TYPE_CHECKING:
    import numpy as np
    import torch

Finish = Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class Prompt:
    """One prompt as the student reads it.

    Attributes:
        index: place in its prompt set; part of every random key, so it never changes.
        ids: token ids after template and tokenizer, made once and never re-encoded.
        text: what those ids say, for people.
        answer: ground truth of a verifiable prompt, or None.
        source: where the row came from (a file name, or the row's own data_source).
    """

    index: int
    ids: tuple[int, ...]
    text: str
    answer: str | None = None
    source: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class Rollout:
    """One completion written by the student, with what the sampler knew while writing it.

    `logp`, `entropy` and `topk_logp` are of the untruncated distribution at the sampling
    temperature, in nats. `ids` includes the stop token when `finish` is "stop".
    """

    prompt: Prompt
    sample: int
    ids: np.ndarray  # int32 (T,)
    logp: np.ndarray  # float32 (T,)
    entropy: np.ndarray  # float32 (T,)
    topk_ids: np.ndarray  # int32 (T, K), most probable first
    topk_logp: np.ndarray  # float32 (T, K)
    finish: Finish
    version: int = 0  # student version (number of optimizer steps) that wrote it

    def __len__(self) -> int:
        return len(self.ids)


class Kind(StrEnum):
    """What a teacher can give for a position; a loss names the kinds it needs."""

    SAMPLED = "sampled"  # normalised log-prob of the token the student drew
    SUPPORT = "support"  # log-scores of token ids the student chose
    TOPK = "topk"  # the teacher's own most probable tokens, normalised
    FULL = "full"  # the whole distribution (hidden state and head, never a stored [T, V] tensor)


class Want(NamedTuple):
    """What one scoring request asks of a teacher."""

    sampled: bool = False
    support: bool = False  # log-scores on each rollout's topk_ids
    topk: int = 0  # how many of the teacher's own top tokens; 0 for none
    full: Sequence[np.ndarray] | None = None  # positions per rollout given the full treatment

    @property
    def normaliser(self) -> bool:
        """Whether the teacher must look at its whole vocabulary at every position."""
        return self.sampled or self.topk > 0


@dataclass(frozen=True, slots=True, eq=False)
class Scores:
    """A teacher's view of one rollout: one row a completion token, prompt never scored.

    `support` holds log-scores: log-probs up to a constant per position, which is `log_z` where the
    teacher computed it (`logq = support - log_z[:, None]`); a loss renormalised on the support
    needs no normaliser, so `log_z` may be None.
    """

    sampled: np.ndarray | None = None  # float32 (T,), normalised
    support: np.ndarray | None = None  # float32 (T, K) on rollout.topk_ids
    log_z: np.ndarray | None = None  # float32 (T,)
    entropy: np.ndarray | None = None  # float32 (T,)
    topk_ids: np.ndarray | None = None  # int32 (T, K')
    topk_logp: np.ndarray | None = None  # float32 (T, K'), normalised
    positions: np.ndarray | None = None  # int32 (n,), where `hidden` was taken
    hidden: torch.Tensor | None = None  # (n, H) in the teacher's dtype, for a local teacher


class Sampler(Protocol):
    """Writes completions with the student."""

    def sample(
        self, prompts: Sequence[Prompt], *, n: int, key: Sequence[int], limit: int | None = None
    ) -> list[Rollout]:
        """Return n rollouts a prompt, grouped in the order of `prompts`.

        The tokens depend on (key, prompt.index, sample) and the student alone, never on which
        other prompts share the call. With a `limit` below the sampler's own, rollouts are the
        first `limit` tokens of what they would have been, and the rest is never written.
        """
        ...

    def sync(self, version: int) -> None:
        """Make the next `sample` use the student's current weights, known as `version`."""
        ...


class Teacher(Protocol):
    """Scores token ids it did not write."""

    name: str
    kinds: frozenset[Kind]

    def score(self, rollouts: Sequence[Rollout], want: Want) -> list[Scores]:
        """Return one Scores a rollout, in order, holding at least what `want` asks."""
        ...


@dataclass(frozen=True, slots=True)
class Mean:
    """An exact running mean: merges over micro-batches, ranks and steps without weighting error."""

    total: float
    count: float

    def __add__(self, other: Mean) -> Mean:
        return Mean(self.total + other.total, self.count + other.count)

    @property
    def value(self) -> float:
        """The mean, NaN when nothing was counted."""
        return self.total / self.count if self.count else float("nan")


Metrics = dict[str, Mean]


@dataclass(frozen=True, slots=True)
class Graded:
    """One graded completion of an evaluation."""

    prompt_index: int
    sample: int
    correct: bool
    length: int
    finish: Finish
    text: str = ""
    extra: dict[str, Any] = field(default_factory=dict)
