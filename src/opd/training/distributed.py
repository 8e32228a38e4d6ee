"""Several processes, one run: sharded work, summed gradients, one writer.

Started by torchrun or accelerate launch, one process a device (gloo on CPUs, the accelerator's own
backend elsewhere).
Prompts are sharded for sampling, rollouts for scoring, micro-batches for the update; after each of
the three every process holds the same whole. What crosses between processes is array bytes and
JSON, never pickled objects.
"""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from itertools import islice
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from opd.errors import UserError
from opd.models.fsdp import gather_model, unsharded
from opd.models.lm import LM, default_device
from opd.run.folder import RunFolder
from opd.run.rollouts import StepFile, decode, encode
from opd.samplers.vllm import VllmSampler
from opd.teachers.remote import TeacherDown
from opd.types import (
    Kind,
    Mean,
    Metrics,
    Prompt,
    Rollout,
    Sampler,
    Scores,
    Teacher,
    Want,
    add_means,
)

logger = logging.getLogger(__name__)

BUCKET_ELEMENTS = 32 * 2**20  # of gradients summed in one collective
TIMEOUT = timedelta(minutes=60)  # longest one process may be ahead of another in a collective
# ... and while rank zero waits for a server, which may sample a held-out set for hours. A process
# that ends is noticed at once.
PATIENCE = timedelta(days=7)


@dataclass(frozen=True)
class Ranks:
    """This process among all of them."""

    rank: int = 0
    size: int = 1
    group: Any = None  # of gloo, for bytes and waits; None: the default one

    @property
    def is_main(self) -> bool:
        """Whether this is rank zero, the process that writes files and messages."""
        return self.rank == 0

    def shard(self, count: int) -> range:
        """Which of `count` things are this process's."""
        return range(self.rank, count, self.size)

    def idle(self, count: int) -> int:
        """How many fewer of `count` things this process has than the one with most."""
        return -(-count // self.size) - len(self.shard(count))

    def gather(self, data: bytes) -> list[bytes]:
        """Every process's bytes, in order of rank, at every process."""
        if self.size == 1:
            return [data]
        length = torch.tensor([len(data)], dtype=torch.int64)
        lengths = [torch.zeros_like(length) for _ in range(self.size)]
        dist.all_gather(lengths, length, group=self.group)
        longest = max(int(n) for n in lengths)
        mine = torch.zeros(longest, dtype=torch.uint8)
        if data:
            mine[: len(data)] = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        parts = [torch.zeros_like(mine) for _ in range(self.size)]
        dist.all_gather(parts, mine, group=self.group)
        return [part[: int(n)].numpy().tobytes() for part, n in zip(parts, lengths, strict=True)]

    def smallest(self, value: int) -> int:
        """The least of every process's numbers, at every process."""
        return min(int(part) for part in self.gather(b"%d" % value))

    def sum_gradients(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Add up every process's gradients, in place."""
        if self.size == 1:
            return
        gradients = []
        for p in parameters:
            if p.grad is None:
                p.grad = torch.zeros_like(p, dtype=p.grad_dtype)
            gradients.append(p.grad)
        for bucket in _buckets(gradients):  # a sum: losses were divided by the whole step's tokens
            flat = torch.cat([g.flatten() for g in bucket])
            dist.all_reduce(flat)
            parts = torch.split(flat, [g.numel() for g in bucket])
            for gradient, part in zip(bucket, parts, strict=True):
                gradient.copy_(part.view_as(gradient))

    def merge(self, metrics: Metrics) -> Metrics:
        """Exact means over the positions of all processes."""
        if self.size == 1:
            return metrics
        mine = json.dumps({name: [m.total, m.count] for name, m in metrics.items()})
        merged: Metrics = {}
        for part in self.gather(mine.encode()):
            means = json.loads(part).items()
            add_means(merged, {name: Mean(total, count) for name, (total, count) in means})
        return merged

    def any_rank(self, condition: bool) -> bool:
        """Whether the condition holds at any process."""
        return any(part == b"1" for part in self.gather(b"1" if condition else b"0"))

    def barrier(self) -> None:
        """Wait for all."""
        self.gather(b"")

    def run_everywhere(self, work: Callable[[], bytes]) -> list[bytes]:
        """The results of `work` at every process; a UserError at one of them is raised by all.

        Without this the others would wait for a result that never comes.
        """
        try:
            mine = b"+" + work()
        except UserError as error:
            if self.size == 1:
                raise
            mine = b"-" + str(error).encode()
        parts = self.gather(mine)
        for part in parts:
            if part[:1] == b"-":
                raise UserError(part[1:].decode())
        return [part[1:] for part in parts]


SINGLE = Ranks()


class _Waiting:
    group: Any = None  # of `Ranks.group`, once there is one


def init_ranks() -> Ranks:
    """The processes torchrun started; `SINGLE` without torchrun.

    Raises:
        UserError: torchrun's variables are there, and the processes do not find each other.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        return SINGLE
    if not dist.is_initialized():
        # Not torch's own current accelerator: that is what torch was built for, here or not.
        accelerator = default_device()
        try:
            if accelerator.type == "cpu":
                dist.init_process_group("gloo", timeout=TIMEOUT)
            else:
                set_device()
                backend = dist.get_default_backend_for_device(accelerator)
                # Gradients cross between accelerators; bytes and waits go through gloo, so that a
                # process that waits does not occupy its accelerator.
                backends = f"cpu:gloo,{accelerator.type}:{backend}"
                dist.init_process_group(backends, timeout=TIMEOUT)
            _Waiting.group = dist.new_group(backend="gloo", timeout=PATIENCE)
        except (ValueError, RuntimeError) as error:
            raise UserError(
                f"WORLD_SIZE={size}, and the processes do not find each other: {error}. Start them "
                "with torchrun --nproc_per_node N -m opd train run.yaml, or accelerate launch."
            ) from None
    return Ranks(dist.get_rank(), dist.get_world_size(), _Waiting.group)


def set_device() -> None:
    """Use this process's accelerator: the LOCAL_RANK-th, or the only one that it may see."""
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    torch.accelerator.set_device_index(local_rank % max(1, torch.accelerator.device_count()))


def check_accelerate_launcher(shard: str) -> None:
    """Bring what `accelerate launch --use_fsdp` says together with `student.shard`.

    Raises:
        UserError: the launcher wants shards and the configuration does not.
    """
    if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() not in ("true", "1", "yes"):
        return
    if shard == "none":
        raise UserError(
            "accelerate launch has --use_fsdp, and the run student.shard=none. The configuration "
            "decides: set student.shard=fsdp2, or launch with --multi_gpu."
        )
    # Or transformers would read the weights in one process only and leave the others' to chance.
    os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = "false"


def destroy_ranks() -> None:
    """Leave the process group, if there is one."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()
        _Waiting.group = None


def open_folder(
    path: str, config: Mapping[str, Any], ranks: Ranks, *, resume: bool, overwrite: bool
) -> RunFolder:
    """The run folder, written by one process; the others find what it made.

    Raises:
        UserError: see `RunFolder.create`; at every process.
    """
    made: list[RunFolder] = []

    def create() -> bytes:
        if ranks.is_main:
            made.append(RunFolder.create(path, config, resume=resume, overwrite=overwrite))
        return b""

    ranks.run_everywhere(create)
    return made[0] if made else RunFolder.read_only(path, config)


class ShardedSampler:
    """`opd.types.Sampler` whose prompts are sharded; every process gets all rollouts."""

    def __init__(self, sampler: Sampler, ranks: Ranks, lm: LM) -> None:
        """Shard the prompts of `sampler`, which every process has and which samples from `lm`."""
        self.sampler, self.ranks, self.lm = sampler, ranks, lm

    def sync(self, version: int) -> None:
        """See `opd.types.Sampler.sync`."""
        self.sampler.sync(version)

    def sample(
        self, prompts: Sequence[Prompt], *, n: int, key: Sequence[int], limit: int | None = None
    ) -> list[Rollout]:
        """See `opd.types.Sampler.sample`: a rollout depends on key, prompt and weights alone.

        A prompt that comes twice goes to one process, which gives it other completions each time.
        """
        place = {index: i for i, index in enumerate(dict.fromkeys(p.index for p in prompts))}
        rank_of = [place[prompt.index] % self.ranks.size for prompt in prompts]
        own = [p for p, rank in zip(prompts, rank_of, strict=True) if rank == self.ranks.rank]

        def work() -> bytes:
            rollouts = self.sampler.sample(own, n=n, key=key, limit=limit) if own else []
            return _packed(rollouts, None)

        with unsharded(self.lm):  # completions differ in length, so forwards do in number
            packed = self.ranks.run_everywhere(work)
        parts = [iter(_unpacked(part)[0]) for part in packed]
        return [rollout for rank in rank_of for rollout in islice(parts[rank], n)]


class RankZeroSampler:
    """`opd.types.Sampler` of a server that rank zero talks to; every process gets all rollouts."""

    def __init__(self, sampler: VllmSampler, ranks: Ranks, student: LM) -> None:
        """Let rank zero talk to the server of `sampler`."""
        self.sampler, self.ranks, self.student = sampler, ranks, student

    def sync(self, version: int) -> None:
        """See `opd.types.Sampler.sync`; a sharded student is put together for it.

        Raises:
            UserError: see `VllmSampler.sync`; at every process.
        """
        student: LM | None = self.student
        if self.student.sharded is not None:
            student = gather_model(self.student, keep=self.ranks.is_main)

        def work() -> bytes:
            if self.ranks.is_main and student is not None:
                assert self.sampler.weights is not None
                self.sampler.weights.send(version, student)
            return b""

        self.ranks.run_everywhere(work)

    def sample(
        self, prompts: Sequence[Prompt], *, n: int, key: Sequence[int], limit: int | None = None
    ) -> list[Rollout]:
        """See `opd.types.Sampler.sample`.

        Raises:
            UserError: see `VllmSampler.sample`; at every process.
        """

        def work() -> bytes:
            if not self.ranks.is_main:
                return b""
            return _packed(self.sampler.sample(prompts, n=n, key=key, limit=limit), None)

        return _unpacked(self.ranks.run_everywhere(work)[0])[0]


class ShardedTeacher:
    """`opd.types.Teacher` whose rollouts are sharded; every process gets all scores."""

    def __init__(self, teacher: Teacher, ranks: Ranks) -> None:
        """Shard the rollouts of `teacher`, which every process has or can ask."""
        self.teacher, self.ranks = teacher, ranks
        self.name, self.kinds = teacher.name, teacher.kinds

    kinds: frozenset[Kind]

    def score(self, rollouts: Sequence[Rollout], want: Want) -> list[Scores]:
        """See `opd.types.Teacher.score`.

        Raises:
            TeacherDown: at every process if one met it, with what all of them have got.
        """
        indices = self.ranks.shard(len(rollouts))
        own = [rollouts[i] for i in indices]

        def work() -> bytes:
            scores: list[Scores] = []
            reason = b""
            try:
                if own:
                    scores = self.teacher.score(own, want.of_rollouts(indices))
            except TeacherDown as down:
                scores, reason = [s or Scores() for s in down.partial], str(down).encode()
            return len(reason).to_bytes(4, "little") + reason + _packed(own, scores)

        parts, reasons = [], []
        for part in self.ranks.run_everywhere(work):
            end = 4 + int.from_bytes(part[:4], "little")
            reasons.append(part[4:end].decode())
            parts.append(_unpacked(part[end:])[1])
        size = self.ranks.size
        scores = [parts[i % size][i // size] for i in range(len(rollouts))]
        if reason := next(filter(None, reasons), None):
            raise TeacherDown(reason, list(scores))
        return scores


def _buckets(gradients: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Gradients of one dtype and device together, about `BUCKET_ELEMENTS` at a time."""
    bucket: list[Tensor] = []
    for gradient in gradients:
        kind = (gradient.dtype, gradient.device)
        full = sum(map(torch.numel, bucket)) >= BUCKET_ELEMENTS
        if bucket and (full or kind != (bucket[0].dtype, bucket[0].device)):
            yield bucket
            bucket = []
        bucket.append(gradient)
    if bucket:
        yield bucket


def _packed(rollouts: Sequence[Rollout], scores: Sequence[Scores] | None) -> bytes:
    if not rollouts:
        return b""
    given = [Scores()] * len(rollouts) if scores is None else list(scores)
    return encode(StepFile(list(rollouts), given, None, {}))


def _unpacked(data: bytes) -> tuple[list[Rollout], list[Scores]]:
    if not data:
        return [], []
    step = decode(data)
    return step.batch, step.scores


def sum_over_ranks(value: Tensor, ranks: Ranks) -> float:
    """The sum of one number over all processes, in order of rank."""
    if ranks.size == 1:
        return float(value)
    # Text, because a loss may be NaN on one of them, and must then be NaN for all.
    return math.fsum(float(part) for part in ranks.gather(repr(float(value)).encode()))
