"""Rollouts by the model in this process.

Each prompt is read once for all its responses; the statistics for loss and diagnostics (top-k ids,
log-probs, entropy) come from the logits that the token is sampled from, without another forward.
How rows decode together depends on the model's cache: `slab_decoder`, `aligned_decoder`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar

import torch
import torch.distributed as dist
from torch.nn.attention import SDPBackend, sdpa_kernel

from opd.core.precision import accumulation_dtype
from opd.errors import UserError
from opd.models.cache_support import cache_support, require_cache
from opd.models.lm import LM, free_memory, is_out_of_memory
from opd.run.host_memory import processes_on_host, total_host_bytes
from opd.samplers.aligned_decoder import AlignedDecoder
from opd.samplers.decoding import Decoding
from opd.samplers.pace import Pace, pace_of
from opd.samplers.rows import Job, LogitsHook, Request
from opd.samplers.sampling import first_samples
from opd.samplers.slab_decoder import SlabDecoder
from opd.samplers.tape import token_words
from opd.types import Prompt, Rollout

__all__ = ["Decoding", "HFSampler", "batch_rows", "observe_samples"]

logger = logging.getLogger(__name__)

# Rows decoded at once. Tokens do not depend on it, only speed and memory. Short rows (the demo's
# have 30 tokens) may be more of them, up to SHORT_TOKENS: their cache is small for any model.
ROWS, SHORT_ROWS, SHORT_TOKENS = 128, 512, 32_768
# Of the memory that is free when a call of `sample` begins; the rest is for prompts being read.
MEMORY_FRACTION = 0.8
HOST_FRACTION = 0.25  # of all memory of a CPU's host
# Copies of a row's logits in float32 that sampling holds at the same time, and those of a graph.
_LOGIT_COPIES = 12

# cuDNN would make a plan for each size of a step, which is slow and which no capture allows.
_KERNELS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]

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

    logits_hook: LogitsHook | None = None  # for benchmarks that end completions by themselves

    def __init__(
        self,
        lm: LM,
        decoding: Decoding,
        *,
        stop: frozenset[int],
        capture: int,
        batch: int | None = None,
        pace: Pace | None = None,
    ) -> None:
        """Make a sampler.

        Args:
            lm: the student (or a teacher that is to be evaluated).
            decoding: temperature, truncation and length.
            stop: token ids that end a completion; they are part of it.
            capture: K, how many of the student's top tokens to record per position.
            batch: maximum rows decoded at once; None: see `batch_rows`. They are fewer where
                memory does not hold them: what is free of a GPU's, a quarter of a CPU's.
            pace: of the host; None: that of the model's device.

        Raises:
            UserError: a model that does not compute the same with a cache.
        """
        require_cache(lm)
        self.lm, self.decoding, self.batch, self.stop = lm, decoding, batch, stop
        self.capture = min(capture, lm.vocab)
        self._pace = pace
        self.version = 0

    @property
    def pace(self) -> Pace:
        """Of the host."""
        return self._pace or pace_of(self.lm.device)

    def sync(self, version: int) -> None:
        """Weights are shared with the student; only the version number moves."""
        self.version = version

    @torch.no_grad()
    def sample(
        self, prompts: Sequence[Prompt], *, n: int, key: Sequence[int], limit: int | None = None
    ) -> list[Rollout]:
        """See `opd.types.Sampler.sample`.

        Raises:
            UserError: logits that are not finite, or one completion alone does not fit.
        """
        max_length = self.decoding.max_new_tokens
        limit = max_length if limit is None else min(limit, max_length)
        first = first_samples(prompts, n)
        by_length = sorted(range(len(prompts)), key=lambda i: (len(prompts[i].ids), i))
        requests = [
            Request(i * n + j, prompts[i], first[i] + j) for i in by_length for j in range(n)
        ]
        job = Job(
            self.lm,
            self.decoding,
            self.stop,
            self.capture,
            tuple(key),
            limit,
            self.version,
            self.logits_hook,
        )
        rollouts: dict[int, Rollout] = {}
        while requests:
            rows = self._max_rows(requests, limit)
            reason = _decode(job, self.pace, requests, rows, rollouts)
            requests = [r for r in requests if r.index not in rollouts]
            if reason is not None:
                self._halve(rows, reason)
        ordered = [rollouts[i] for i in range(len(prompts) * n)]
        if (observer := _observer.get()) is not None:
            observer(ordered, key)
        return ordered

    def _max_rows(self, requests: Sequence[Request], limit: int) -> int:
        """Rows to decode at once: at most what memory holds."""
        rows, available = self.batch, _row_memory(self.lm.device)
        if rows is None:
            rows = batch_rows([r.prompt for r in requests], limit)
        rows = min(rows, len(requests))
        if available is None:
            return rows
        longest = max(len(r.prompt.ids) for r in requests)
        return max(1, min(rows, available // self._row_bytes(longest, limit)))

    def _row_bytes(self, longest: int, limit: int) -> int:
        """Bytes of a row: its cache, its tape and random numbers, its logits."""
        dtype = accumulation_dtype(self.lm.causal.dtype)
        cache = cache_support(self.lm).row_bytes(self.pace.column_count(longest + limit))
        return cache + record_bytes(limit, self.capture, self.lm.vocab, dtype)

    def _halve(self, rows: int, reason: str) -> None:
        if rows == 1:
            raise UserError(
                f"Out of memory while {self.lm.name} sampled one completion at a time ({reason}). "
                "Set rollout.max_new_tokens lower, or sample on a server (rollout.url)."
            )
        self.batch = (rows + 1) // 2
        logger.warning(
            "Out of memory while %s sampled %d rows (%s): unfinished ones begin again, and it "
            "decodes %d rows at a time from now on.",
            self.lm.name,
            rows,
            reason,
            self.batch,
        )


def batch_rows(prompts: Sequence[Prompt], limit: int) -> int:
    """Rows decoded at once, unless memory is short: more of them where they are short."""
    longest = max((len(p.ids) for p in prompts), default=0) + limit
    return max(ROWS, min(SHORT_ROWS, SHORT_TOKENS // longest))


def record_bytes(limit: int, capture: int, vocab: int, dtype: torch.dtype) -> int:
    """Bytes that a row takes beside its cache: its tape, random numbers and logits.

    Args:
        limit: maximum tokens of a completion.
        capture: K, top tokens that are recorded.
        vocab: V.
        dtype: of statistics, float32 or float64.
    """
    tape = (4 * token_words(capture, dtype) + 8) * limit
    return tape + _LOGIT_COPIES * dtype.itemsize * vocab


def _row_memory(device: torch.device) -> int | None:
    """Bytes for the rows that are decoded at once; None where nothing is known.

    On a GPU most of what is free, what torch holds unused included. On a CPU a part of all memory,
    which the processes share: what is free there changes, and would change a resumed run.
    """
    if device.type == "cpu":
        total, several = total_host_bytes(), dist.is_available() and dist.is_initialized()
        processes = processes_on_host(dist.get_world_size()) if several else 1
        return None if total is None else int(HOST_FRACTION * total / processes)
    if device.type != "cuda":
        return None
    free, _ = torch.cuda.mem_get_info(device)
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(MEMORY_FRACTION * (free + unused))


def _decode(
    job: Job, pace: Pace, requests: Sequence[Request], rows: int, rollouts: dict[int, Rollout]
) -> str | None:
    """Sample requests into `rollouts`; the first line of the error if memory runs out."""
    device = job.lm.device
    reason = None
    try:
        with sdpa_kernel(_KERNELS) if device.type == "cuda" else nullcontext():
            if cache_support(job.lm).layout == "slabs":
                longest = max(len(r.prompt.ids) for r in requests)
                SlabDecoder(job, rows, longest, pace).run(requests, rollouts)
            else:
                AlignedDecoder(job, rows, pace).run(requests, rollouts)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        reason = (str(error) or "out of memory").splitlines()[0]
    if reason is not None:
        free_memory()
    elif device.type == "cuda":
        torch.cuda.empty_cache()  # an update needs the memory in other pieces
    return reason
