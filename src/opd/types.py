"""Data types shared by all packages: what travels from the prompt file to the loss.

Plain frozen records of numpy arrays, so that they can be written to disk bit for bit and read
without torch. Importing this module imports neither torch nor numpy.
Shapes: T completion length, K support size, H hidden size, n positions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, Protocol

if TYPE_CHECKING:
    import numpy as np
    import torch

Finish = Literal["stop", "length"]

# Choices of the configuration that the numerics and the models share.
Divergence = Literal["reverse_kl", "forward_kl", "jsd", "skew_kl"]
Support = Literal[
    "sampled",
    "student_topk",
    "teacher_topk",
    "intersection",
    "union",
    "symmetric_difference",
    "full",
]
Mode = Literal["paper", "reference", "tail"]
Estimator = Literal["k1", "k2", "k3_forward"]
Dtype = Literal["auto", "float32", "bfloat16", "float64"]
Scheme = Literal["int8", "nf4"]  # of quantised weights
Precision = Literal["auto", "float32", "bf16_mixed", "bfloat16", "float64"]
Stop = Literal["student", "teacher", "union"]
GraderKind = Literal["exact", "number", "math"]


@dataclass(frozen=True, slots=True)
class Prompt:
    """One prompt, tokenized for the student.

    Attributes:
        index: index in its prompt set; part of every random key, so it never changes.
        ids: token ids after template and tokenizer, made once and never re-encoded.
        text: the decoded ids, for display.
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
    """One completion sampled from the student, with the sampler's own statistics of each token.

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
    version: int = 0  # student version (number of optimizer steps) that sampled it

    def __len__(self) -> int:
        return len(self.ids)

    @classmethod
    def of_ids(
        cls,
        prompt: Prompt | Sequence[int] | np.ndarray,
        ids: Sequence[int] | np.ndarray,
        *,
        topk_ids: np.ndarray | None = None,
        finish: Finish = "length",
    ) -> Rollout:
        """A completion that was not sampled: text to score or to imitate.

        Its log-probs and entropies are zeros that are never read.

        Args:
            prompt: the prompt, or its token ids alone.
            ids: token ids (T,) of the completion.
            topk_ids: (T, K) ids to score as the student's support; None: K = 0.
            finish: "stop" if `ids` end with a stop token.
        """
        import numpy as np

        if not isinstance(prompt, Prompt):
            prompt = Prompt(0, tuple(np.asarray(prompt).tolist()), "")
        ids = np.asarray(ids, dtype=np.int32)
        support = np.zeros((len(ids), 0), np.int32) if topk_ids is None else topk_ids
        zeros = np.zeros(len(ids), np.float32)
        logp = np.zeros(support.shape, np.float32)
        return cls(prompt, 0, ids, zeros, zeros, support, logp, finish)


class Kind(StrEnum):
    """What a teacher can return for a position; a loss names the kinds it needs."""

    SAMPLED = "sampled"  # normalised log-prob of the sampled token
    SUPPORT = "support"  # log-scores of token ids the student chose
    TOPK = "topk"  # the teacher's own most probable tokens, normalised
    FULL = "full"  # the whole distribution (hidden state and head, never a stored [T, V] tensor)


class Want(NamedTuple):
    """What one scoring request asks of a teacher."""

    sampled: bool = False
    support: bool = False  # log-scores on each rollout's topk_ids
    topk: int = 0  # how many of the teacher's own top tokens; 0 for none
    full: Sequence[np.ndarray] | None = None  # per rollout: positions that need `Scores.hidden`
    view: Sequence[bool] | None = None  # per rollout: whether it needs `Scores.view`

    def of_rollouts(self, indices: Sequence[int]) -> Want:
        """The same request for some of the rollouts."""
        full = None if self.full is None else [self.full[i] for i in indices]
        view = None if self.view is None else [self.view[i] for i in indices]
        return self._replace(full=full, view=view)

    @property
    def normaliser(self) -> bool:
        """Whether the teacher must compute its whole vocabulary at every position."""
        return self.sampled or self.topk > 0

    @property
    def holds_view(self) -> bool:
        """Whether an answer without `Scores.view` holds all of `VIEW_FIELDS`."""
        return self.sampled and self.topk >= VIEW_TOPK

    @property
    def fields(self) -> tuple[str, ...]:
        """Names of the `SCORE_FIELDS` that an answer must hold."""
        sampled = ("sampled",) if self.sampled else ()
        support = ("support",) if self.support else ()
        return (*sampled, *support, *(("topk_ids", "topk_logp") if self.topk > 0 else ()))


SCORE_FIELDS: Final[Mapping[str, int]] = {
    "sampled": 1,
    "support": 2,
    "log_z": 1,
    "entropy": 1,
    "topk_ids": 2,
    "topk_logp": 2,
}
"""The per-token arrays of `Scores` and their number of dimensions: (T,) or (T, K)."""


ALIGNMENT_FIELDS: Final[Mapping[str, int]] = {"chunk": 1, "shared": 2}
"""Arrays of `Scores` that a teacher of another tokenizer has besides, made in this process."""


VIEW_FIELDS: Final = ("sampled", "log_z", "entropy", "topk_ids", "topk_logp")
"""What `Scores.view` holds: a loss renormalised on the student's tokens needs none of it."""
VIEW_TOPK: Final = 8  # tokens of the teacher's own in `Scores.view`


@dataclass(frozen=True, slots=True, eq=False)
class Scores:
    """A teacher's scores of one rollout: one row per completion token, prompts are never scored.

    `support` holds log-scores: log-probs up to a constant per position, which is `log_z` where the
    teacher computed it (`logq = support - log_z[:, None]`); a loss renormalised on the support
    needs no normaliser, so `log_z` may be None. A new per-token array also goes into
    `SCORE_FIELDS`, by which it reaches files, cache, wire and checks.
    """

    sampled: np.ndarray | None = None  # float32 (T,), normalised
    support: np.ndarray | None = None  # float32 (T, K) on rollout.topk_ids
    log_z: np.ndarray | None = None  # float32 (T,)
    entropy: np.ndarray | None = None  # float32 (T,)
    topk_ids: np.ndarray | None = None  # int32 (T, K')
    topk_logp: np.ndarray | None = None  # float32 (T, K'), normalised
    positions: np.ndarray | None = None  # int32 (n,), where `hidden` was taken
    hidden: torch.Tensor | None = None  # (n, H) in the teacher's dtype, for a local teacher
    chunk: np.ndarray | None = None  # int32 (T,), of another tokenizer: -1 where none
    shared: np.ndarray | None = None  # int32 (T, K): which of rollout.topk_ids it has, where scored
    view: Scores | None = None  # `VIEW_FIELDS` alone, for people to look at; never trained on

    def arrays(self) -> dict[str, np.ndarray]:
        """The `SCORE_FIELDS` that are present, by name."""
        return {n: a for n in SCORE_FIELDS if (a := getattr(self, n)) is not None}


class Sampler(Protocol):
    """Samples completions from the student."""

    def sample(
        self, prompts: Sequence[Prompt], *, n: int, key: Sequence[int], limit: int | None = None
    ) -> list[Rollout]:
        """Return n rollouts per prompt, grouped in the order of `prompts`.

        The tokens depend on (key, prompt.index, sample) and the student alone, never on which
        other prompts share the call. With a `limit` below the sampler's own, rollouts are the
        first `limit` tokens of what they would have been, and the rest is never generated.
        """
        ...

    def sync(self, version: int) -> None:
        """Make the next `sample` use the student's current weights, known as `version`."""
        ...


class SamplerFactory(Protocol):
    """Makes samplers of the student: `rollout.python: pkg.mod:make`, called with keywords.

    The rollouts of such a sampler need `prompt`, `sample`, `ids` and `finish`; with
    `Rollout.of_ids(prompt, ids, finish=...)` the rest comes from the student in this process.
    `logp`, where given, is what the tokens were drawn with: drift is measured against it.
    """

    def __call__(
        self,
        *,
        model: Any,
        tokenizer: Any,
        stop: frozenset[int],
        max_new_tokens: int,
        temperature: float,
        top_p: float,
    ) -> Sampler:
        """A sampler for this decoding.

        Args:
            model: the student, a transformers model whose weights change with every step.
            tokenizer: the student's.
            stop: ids that end a completion, of which they are the last.
            max_new_tokens: the longest completion.
            temperature: 0 is greedy.
            top_p: 1 is off.
        """
        ...


class Teacher(Protocol):
    """Scores given token ids."""

    name: str
    kinds: frozenset[Kind]

    def score(self, rollouts: Sequence[Rollout], want: Want) -> list[Scores]:
        """Return one Scores per rollout, in order, holding at least what `want` asks."""
        ...


class Grading(Protocol):
    """Decides whether a completion is right: `prompts.grader` or `eval.N.grader: python:pkg.mod:f`.

    It runs in this process: guard it against hostile text, and let it return in bounded time.
    """

    def __call__(self, completion: str, answer: str, /) -> bool:
        """Whether `completion` is right; `answer` is the row's ground truth, "" without one."""
        ...


class Reward(Protocol):
    """A number for every training rollout; with loss.terms.outcome_weight it also trains."""

    def __call__(self, completion: str, answer: str, /) -> float:
        """A finite reward; `answer` as for `Grading`."""
        ...


@dataclass(frozen=True, slots=True)
class Mean:
    """An exact mean as (sum, count); those of micro-batches, ranks and steps can be added."""

    total: float
    count: float

    def __add__(self, other: Mean) -> Mean:
        return Mean(self.total + other.total, self.count + other.count)

    @property
    def value(self) -> float:
        """The mean; NaN if the count is 0."""
        return self.total / self.count if self.count else float("nan")


Metrics = dict[str, Mean]


def add_means(into: Metrics, more: Metrics) -> None:
    """Add exact means, name by name."""
    for name, mean in more.items():
        into[name] = into[name] + mean if name in into else mean


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
