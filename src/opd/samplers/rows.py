"""The rows that decode together: where each stands, on the device.

A decoding step reads and writes these tensors and nothing else, without branches and without the
host, so that it can be captured as a CUDA graph.
Shapes: R rows of a step, H hidden size, T maximum tokens of a completion.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from opd.core.precision import accumulation_dtype
from opd.errors import UserError
from opd.models.cached_forward import to_device
from opd.models.lm import LM
from opd.samplers.decoding import Decoding
from opd.samplers.sampling import sample_tokens, uniform
from opd.samplers.tape import Tape
from opd.types import Prompt, Rollout

# What is known of a row, in this order: the token to be fed, the column of the cache where it goes
# (its position in the sequence), the row's slot in the tape, tokens sampled so far, whether it is
# alive, the index of its request.
TOKEN, POSITION, SLOT, SAMPLED, ALIVE, REQUEST = range(6)
FIELDS = 6

# Changes logits (R, V) given the (R,) requests and the (R,) index of the token in its completion.
LogitsHook = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Request:
    """One completion to sample; `index` is its place in the answer."""

    index: int
    prompt: Prompt
    sample: int


@dataclass(frozen=True)
class Job:
    """What one call of `sample` asks of a decoder.

    Attributes:
        lm: the model.
        decoding: temperature and truncation.
        stop: token ids that end a completion.
        capture: K, top tokens to record per position.
        key: of the random numbers.
        limit: maximum tokens of a completion.
        version: of the weights, for the record.
        hook: changes logits before they are sampled from.
    """

    lm: LM
    decoding: Decoding
    stop: frozenset[int]
    capture: int
    key: tuple[int, ...]
    limit: int
    version: int
    hook: LogitsHook | None = None


class Rows:
    """State of at most `count` rows, their random numbers and the tokens they have sampled."""

    def __init__(self, job: Job, count: int) -> None:
        """Allocate for `count` rows, none of them alive."""
        self.job, self.device = job, job.lm.device
        self.head = job.lm.head
        dtype = accumulation_dtype(job.lm.causal.dtype)
        self.tape = Tape(count, job.limit, job.capture, dtype, self.device)
        self.uniforms = torch.zeros(count + 1, job.limit, dtype=torch.float64, device=self.device)
        self.state = torch.zeros(FIELDS, count, dtype=torch.int64, device=self.device)
        self.state[SLOT] = self.tape.unused
        self.stop = torch.tensor(sorted(job.stop), dtype=torch.int64, device=self.device)

    def new_rows(self, requests: Sequence[Request], slots: Sequence[int]) -> Tensor:
        """State (FIELDS, N) of requests whose prompts have been read, before their first token."""
        fields = np.zeros((FIELDS, len(requests)), dtype=np.int64)
        fields[POSITION] = [len(r.prompt.ids) - 1 for r in requests]
        fields[SLOT], fields[ALIVE] = slots, 1
        fields[REQUEST] = [r.index for r in requests]
        state = to_device(fields, self.device)
        key, limit = self.job.key, self.job.limit
        numbers = np.stack([uniform(key, r.prompt.index, r.sample, limit) for r in requests])
        self.uniforms[state[SLOT]] = to_device(numbers, self.device)
        return state

    def sample(self, state: Tensor, hidden: Tensor) -> None:
        """Sample and record the next token of each row that is alive; `state` moves on in place.

        Args:
            state: (FIELDS, R), a view of `self.state` or of `new_rows`.
            hidden: (R, H) of each row's last token.
        """
        job = self.job
        tokens, positions, slots, sampled, alive, requests = state
        going = alive.bool()
        logits = self.head.logits(hidden)
        if job.hook is not None:
            logits = job.hook(logits, requests, sampled)
        numbers = self.uniforms[slots, sampled]
        token = sample_tokens(logits, numbers, job.decoding, job.capture)
        self.tape.write(torch.where(going, slots, self.tape.unused), sampled, token)
        stopped = (token.ids[:, None] == self.stop).any(-1)
        going = going & ~stopped & (sampled + 1 < job.limit)
        tokens.copy_(token.ids)
        alive.copy_(going)
        sampled.add_(going)
        positions.add_(going)

    def move(self, source: Tensor, target: Tensor) -> None:
        """Rows `source` go on as rows `target`."""
        self.state[:, target] = self.state[:, source]
        self.state[ALIVE].index_fill_(0, source, 0)


def finished_rollout(job: Job, tape: Tape, request: Request, words: np.ndarray) -> Rollout:
    """The rollout of a request that has finished.

    Args:
        job: the call of `sample`.
        tape: that holds its tokens.
        request: what was asked.
        words: (T, W) of the tape; T may go beyond the completion's end.

    Raises:
        UserError: a log-prob that is not finite.
    """
    ids, *statistics = tape.unpack(words)
    ends = np.isin(ids, np.fromiter(job.stop, dtype=np.int64, count=len(job.stop)))
    stopped = bool(ends.any())
    length = int(ends.argmax()) + 1 if stopped else len(ids)
    logp, entropy, topk_ids, topk_logp = (x[:length].copy() for x in statistics)
    if not np.isfinite(logp).all():
        raise UserError(
            "The model's logits are not finite on some prompt, so tokens sampled from them are "
            "meaningless. Check the model (student.precision, a diverged checkpoint)."
        )
    return Rollout(
        request.prompt,
        request.sample,
        ids[:length].copy(),
        logp,
        entropy,
        topk_ids,
        topk_logp,
        "stop" if stopped else "length",
        job.version,
    )
