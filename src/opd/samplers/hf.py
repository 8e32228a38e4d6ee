"""Rollouts by the model in this process: a decode loop on its key-value cache.

Each prompt is prefilled once for all its responses; a finished row leaves the batch; the student's
statistics for loss and diagnostics (top-k ids, log-probs, entropy) are computed from the logits
that the token is sampled from, without another forward pass.
Shapes: R rows, T tokens, K captured top tokens, V vocabulary, P prompt length, H hidden size.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from opd.core.cpu_kernels import topk
from opd.core.precision import accumulation_dtype, at_least_float32
from opd.errors import UserError
from opd.models.lm import LM, free_memory, is_out_of_memory
from opd.rng import generator_of
from opd.samplers.kv import growing_cache
from opd.types import Prompt, Rollout

logger = logging.getLogger(__name__)

# Finished rows leave the batch once they are this fraction of it: removing rows copies the cache.
_COMPACT_FRACTION = 1 / 8
# Rows decoded at once. Tokens do not depend on it, only speed and memory: where the cache does not
# fit, it is halved. Short rows (the demo's have 30 tokens) may be more of them, up to SHORT_TOKENS:
# their cache is small for any model.
ROWS, SHORT_ROWS, SHORT_TOKENS = 128, 512, 32_768
_CDF_BLOCK = 128  # tokens per partial sum of `invert_cdf`


@dataclass(frozen=True)
class Decoding:
    """How tokens are sampled. Temperature 0 is greedy."""

    max_new_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0


Observer = Callable[[Sequence[Rollout], Sequence[int]], None]
_observer: ContextVar[Observer | None] = ContextVar("observer", default=None)


@contextmanager
def observe_samples(observer: Observer) -> Iterator[None]:
    """Have every `HFSampler` report what it sampled, whoever made it: to count its cost.

    Args:
        observer: gets the rollouts and the key of each call of `sample`.
    """
    token = _observer.set(observer)
    try:
        yield
    finally:
        _observer.reset(token)


class HFSampler:
    """`opd.types.Sampler` for a model in this process; it uses the current weights."""

    def __init__(
        self,
        lm: LM,
        decoding: Decoding,
        *,
        stop: frozenset[int],
        capture: int,
        batch: int | None = None,
    ) -> None:
        """Make a sampler.

        Args:
            lm: the student (or a teacher that is to be evaluated).
            decoding: temperature, truncation and length.
            stop: token ids that end a completion; they are part of it.
            capture: K, how many of the student's top tokens to record per position.
            batch: maximum rows decoded at once; None: see `batch_rows`.
        """
        for layer in growing_cache(lm.config).layers:
            if not hasattr(layer, "batch_select_indices"):
                raise UserError(
                    f"{lm.name}: its {type(layer).__name__} cache cannot drop or repeat rows, as "
                    "sampling n responses per prompt needs. Models with linear attention or state "
                    "spaces cannot be sampled here."
                )
        self.lm, self.decoding, self.batch = lm, decoding, batch
        self.stop = torch.tensor(sorted(stop), dtype=torch.int64, device=lm.device)
        self.capture = min(capture, lm.vocab)
        self.version = 0

    def sync(self, version: int) -> None:
        """Weights are shared with the student; only the version number moves."""
        self.version = version

    @torch.no_grad()
    def sample(
        self, prompts: Sequence[Prompt], *, n: int, key: Sequence[int], limit: int | None = None
    ) -> list[Rollout]:
        """See `opd.types.Sampler.sample`."""
        max_length = self.decoding.max_new_tokens
        limit = max_length if limit is None else min(limit, max_length)
        rows = batch_rows(prompts, limit) if self.batch is None else self.batch
        waiting = sorted(range(len(prompts)), key=lambda i: (len(prompts[i].ids), i))
        first = first_samples(prompts, n)
        rollouts: dict[int, list[Rollout]] = {}
        while waiting:
            batch = waiting[: max(1, rows // n)]
            try:
                decoded = self._decode(
                    [prompts[i] for i in batch], [first[i] for i in batch], n, key, limit
                )
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                reason = (str(error) or "out of memory").splitlines()[0]
            else:
                waiting = waiting[len(batch) :]
                for row, i in enumerate(batch):
                    rollouts[i] = decoded[row * n : (row + 1) * n]
                continue
            rows = self._halve_batch(reason, len(batch) * n, n)
        ordered = [rollout for i in range(len(prompts)) for rollout in rollouts[i]]
        if (observer := _observer.get()) is not None:
            observer(ordered, key)
        return ordered

    def _halve_batch(self, reason: str, rows: int, n: int) -> int:
        """Decode fewer rows at a time from now on, after memory ran out; tokens stay the same.

        Raises:
            UserError: the responses to one prompt do not fit, or weights are sharded and the other
                processes, in the middle of their own batches, cannot begin again.
        """
        free_memory()
        if rows <= n or self.lm.sharded is not None:
            raise UserError(
                f"Out of memory while {self.lm.name} sampled {rows} rows ({reason}). Set "
                "rollout.max_new_tokens or rollout.n lower, or sample on a server (rollout.url)."
            )
        self.batch = rows // 2
        logger.warning(
            "Out of memory while %s sampled (%s): it decodes %d rows at a time from now on.",
            self.lm.name,
            reason,
            self.batch,
        )
        return self.batch

    def _decode(
        self,
        prompts: Sequence[Prompt],
        first: Sequence[int],
        n: int,
        key: Sequence[int],
        limit: int,
    ) -> list[Rollout]:
        device = self.lm.device
        requests = [
            (p, sample + j) for p, sample in zip(prompts, first, strict=True) for j in range(n)
        ]
        uniforms = torch.from_numpy(
            np.stack([uniform(key, p.index, s, limit) for p, s in requests])
        ).to(device)
        dtype = accumulation_dtype(self.lm.causal.dtype)
        recorder = _Recorder(len(requests), limit, self.capture, dtype, device)
        cache = growing_cache(self.lm.config)
        hidden, mask = self._prefill(prompts, cache, n)
        position = mask.sum(1)
        active = torch.arange(len(requests), device=device)
        alive = torch.ones_like(active, dtype=torch.bool)
        mask = torch.cat([mask, mask.new_ones(len(requests), limit)], 1)
        width = mask.shape[1] - limit
        head = self.lm.head
        for t in range(limit):
            logits = head.logits(hidden)
            tokens = self._sample_tokens(
                logits, uniforms[active, t], recorder, active[alive], alive, t
            )
            alive = alive & ~torch.isin(tokens, self.stop)
            if t + 1 == limit or not alive.any():
                break
            if (~alive).sum() >= max(1, _COMPACT_FRACTION * len(alive)):
                rows = alive.nonzero().squeeze(1)
                cache.batch_select_indices(rows)
                active, tokens, position, mask = (x[rows] for x in (active, tokens, position, mask))
                alive = alive[rows]
            hidden = self.lm.hidden(
                tokens[:, None],
                attention_mask=mask[:, : width + t + 1],
                position_ids=position[:, None] + t,
                past_key_values=cache,
                use_cache=True,
            )[:, -1]
        return recorder.rollouts(requests, self.stop, self.version)

    def _prefill(self, prompts: Sequence[Prompt], cache: Any, n: int) -> tuple[Tensor, Tensor]:
        """Hidden state (R, H) of each prompt's last token and mask (R, P), repeated n times."""
        width = max(len(p.ids) for p in prompts)
        ids = torch.zeros(len(prompts), width, dtype=torch.int64)
        mask = torch.zeros(len(prompts), width, dtype=torch.int64)
        for row, prompt in enumerate(prompts):
            ids[row, width - len(prompt.ids) :] = torch.tensor(prompt.ids)
            mask[row, width - len(prompt.ids) :] = 1
        ids, mask = ids.to(self.lm.device), mask.to(self.lm.device)
        hidden = self.lm.hidden(
            ids,
            attention_mask=mask,
            position_ids=(mask.cumsum(1) - 1).clamp(min=0),
            past_key_values=cache,
            use_cache=True,
        )[:, -1]
        if n > 1:
            cache.batch_repeat_interleave(n)
        return hidden.repeat_interleave(n, 0), mask.repeat_interleave(n, 0)

    def _sample_tokens(
        self,
        logits: Tensor,
        uniforms: Tensor,
        recorder: _Recorder,
        rows: Tensor,
        alive: Tensor,
        t: int,
    ) -> Tensor:
        """Sample one token per row of logits (R, V), and record it.

        Args:
            logits: (R, V) of the rows in the batch.
            uniforms: (R,) one uniform number per row.
            recorder: takes tokens and statistics of the rows that go on.
            rows: the recorder's indices of those.
            alive: (R,) which rows of the batch they are.
            t: index of the token in its completion.

        Returns:
            Token ids (R,).
        """
        logits = at_least_float32(logits)
        temperature = self.decoding.temperature
        scaled = logits / temperature if temperature not in (0.0, 1.0) else logits
        logp = torch.log_softmax(scaled, -1)
        probs = logp.exp()
        if temperature == 0:
            tokens = logp.argmax(-1)
        else:
            tokens = invert_cdf(truncate(probs, self.decoding), uniforms)
        entropy = -(probs * logp).sum(-1)
        topk_logp, topk_ids = topk(logp, self.capture)
        sampled = logp.gather(1, tokens[:, None]).squeeze(1)
        statistics = (tokens, sampled, entropy, topk_ids, topk_logp)
        recorder.write(rows, t, _Statistics(*(x[alive] for x in statistics)))
        return tokens


def batch_rows(prompts: Sequence[Prompt], limit: int) -> int:
    """Rows decoded at once, unless memory runs out: more of them where they are short."""
    longest = max((len(p.ids) for p in prompts), default=0) + limit
    return max(ROWS, min(SHORT_ROWS, SHORT_TOKENS // longest))


def first_samples(prompts: Sequence[Prompt], n: int) -> list[int]:
    """Sample index of the first response of each prompt; a repeated prompt goes on counting."""
    counts: dict[int, int] = {}
    first = []
    for prompt in prompts:
        first.append(counts.get(prompt.index, 0))
        counts[prompt.index] = first[-1] + n
    return first


def uniform(key: Sequence[int], prompt: int, sample: int, count: int) -> np.ndarray:
    """Uniform numbers of one rollout, a function of (key, prompt, sample) alone."""
    return generator_of((*key, prompt, sample)).random(count)


def truncate(probs: Tensor, decoding: Decoding) -> Tensor:
    """Probabilities (R, V), unnormalised, with top-p truncation applied."""
    if decoding.top_p < 1:
        ordered, indices = torch.sort(probs.double(), dim=-1, descending=True, stable=True)
        mass_before = ordered.cumsum(-1) - ordered
        dropped = mass_before >= decoding.top_p * ordered.sum(-1, keepdim=True)
        probs = probs.double().scatter(1, indices, ordered.masked_fill(dropped, 0.0))
    return probs


def invert_cdf(probs: Tensor, uniforms: Tensor) -> Tensor:
    """Token ids (R,) where the cumulative sum of probs (R, V) first exceeds uniforms (R,).

    A row's token depends on that row alone, so batch composition cannot change it. Sums are in
    float64: in float32 the tail of a large vocabulary would be lost to rounding. First the block of
    tokens is found, then the token in it; a cumulative sum of the whole row is ten times slower.
    """
    rows, vocab = probs.shape
    if vocab % _CDF_BLOCK:
        probs = torch.nn.functional.pad(probs, (0, -vocab % _CDF_BLOCK))
    blocks = probs.reshape(rows, -1, _CDF_BLOCK)
    ends = blocks.sum(-1, dtype=torch.float64).cumsum(-1)
    target = uniforms.to(ends)[:, None] * ends[:, -1:]
    block = _first_above(ends, target)
    before = ends.gather(1, (block - 1).clamp(min=0)) * (block > 0)
    inside = blocks.gather(1, block[:, :, None].expand(-1, -1, _CDF_BLOCK)).squeeze(1)
    offset = _first_above(inside.cumsum(-1, dtype=torch.float64), target - before)
    return (block * _CDF_BLOCK + offset).squeeze(1).clamp(max=vocab - 1)


def _first_above(sums: Tensor, target: Tensor) -> Tensor:
    """Index (R, 1) of the first of rising `sums` (R, N) above target (R, 1).

    Rounding may leave none above it: then the last that rose, never an entry of probability 0.
    """
    index = torch.searchsorted(sums, target, right=True)
    last = torch.searchsorted(sums, sums[:, -1:].contiguous())
    return torch.minimum(index, last).clamp(max=sums.shape[1] - 1)  # sums that are not finite


class _Statistics(NamedTuple):
    """One token per row, with the student's statistics of it; (R,) or (R, K)."""

    ids: Tensor
    logp: Tensor
    entropy: Tensor
    topk_ids: Tensor
    topk_logp: Tensor


class _Recorder:
    """Sampled tokens and their statistics, by row and token, on the model's device."""

    def __init__(
        self, rows: int, limit: int, capture: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.length = torch.zeros(rows, dtype=torch.int64, device=device)
        self.ids = torch.zeros(rows, limit, dtype=torch.int32, device=device)
        self.logp = torch.zeros(rows, limit, dtype=dtype, device=device)
        self.entropy = torch.zeros(rows, limit, dtype=dtype, device=device)
        self.topk_ids = torch.zeros(rows, limit, capture, dtype=torch.int32, device=device)
        self.topk_logp = torch.zeros(rows, limit, capture, dtype=dtype, device=device)

    def write(self, rows: Tensor, t: int, token: _Statistics) -> None:
        self.length[rows] = t + 1
        self.ids[rows, t] = token.ids.int()
        self.logp[rows, t] = token.logp
        self.entropy[rows, t] = token.entropy
        self.topk_ids[rows, t] = token.topk_ids.int()
        self.topk_logp[rows, t] = token.topk_logp

    def rollouts(
        self, requests: Sequence[tuple[Prompt, int]], stop: Tensor, version: int
    ) -> list[Rollout]:
        lengths = self.length.tolist()
        stop_ids = set(stop.tolist())
        ids, logp, entropy, topk_ids, topk_logp = (
            x.cpu().numpy()
            for x in (self.ids, self.logp, self.entropy, self.topk_ids, self.topk_logp)
        )
        if not all(np.isfinite(logp[r, :n]).all() for r, n in enumerate(lengths)):
            raise UserError(
                "The model's logits are not finite on some prompt, so tokens sampled from them are "
                "meaningless. Check the model (student.precision, a diverged checkpoint)."
            )
        return [
            Rollout(
                prompt,
                sample,
                ids[r, :n].copy(),
                logp[r, :n].copy(),
                entropy[r, :n].copy(),
                topk_ids[r, :n].copy(),
                topk_logp[r, :n].copy(),
                "stop" if n and int(ids[r, n - 1]) in stop_ids else "length",
                version,
            )
            for r, ((prompt, sample), n) in enumerate(zip(requests, lengths, strict=True))
        ]
