"""`student.precision`: the dtype a student is loaded in, and its float32 master weights."""

from __future__ import annotations

from typing import Literal

import torch

from opd.config import Run
from opd.models.configs import read_config, stored_dtype
from opd.models.fsdp import shard_model
from opd.models.lm import LM, default_device
from opd.models.master_weights import add_master_weights
from opd.training.distributed import SINGLE, Ranks
from opd.types import Dtype

ResolvedPrecision = Literal["float32", "bf16_mixed", "bfloat16", "float64"]
SHARDS: dict[ResolvedPrecision, torch.dtype] = {
    "float32": torch.float32,
    "bf16_mixed": torch.float32,
    "bfloat16": torch.bfloat16,
    "float64": torch.float64,
}


def resolve_precision(cfg: Run) -> ResolvedPrecision:
    """`auto` is bf16_mixed on a GPU that computes in bf16, else float32."""
    precision = cfg.student.precision
    if precision != "auto":
        return precision
    device = default_device()
    # Older GPUs (T4, V100) have bf16 tensors, and emulate their products many times slower.
    bf16 = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return "bf16_mixed" if bf16 else "float32"


def is_sharded(cfg: Run, ranks: Ranks) -> bool:
    """Whether each process holds a part of the student."""
    return ranks.size > 1 and cfg.student.shard == "fsdp2"


def loading_dtype(cfg: Run, *, trains: bool, sharded: bool = False) -> Dtype:
    """The dtype to load the student in.

    Full training in bf16_mixed loads float32, which becomes the masters. A LoRA student's base is
    frozen and needs none; its adapters are float32 beside a bf16 base. A student that is going to
    be sharded stays as it is stored: the processes of a machine then share one copy of its file,
    and `shard_model` converts what each of them keeps.
    """
    precision = resolve_precision(cfg)
    if sharded and cfg.student.lora is None:
        stored = stored_dtype(read_config(cfg.student.model))
        return "float32" if stored == torch.float16 else "auto"  # load_lm refuses float16
    if precision != "bf16_mixed":
        return precision
    return "float32" if trains and cfg.student.lora is None else "bfloat16"


def prepare_weights(cfg: Run, student: LM, ranks: Ranks = SINGLE) -> None:
    """Shard a student that is about to be trained, or give it master weights, as configured.

    A sharded student's own shards are float32; FSDP2 gathers them in bf16 and reduces gradients in
    float32, so it needs no masters.
    """
    mixed = resolve_precision(cfg) == "bf16_mixed"
    if is_sharded(cfg, ranks):
        dtype = None if student.is_lora else SHARDS[resolve_precision(cfg)]
        device = default_device()
        shard_model(student, ranks.size, mixed=mixed, device=device, dtype=dtype)
    elif mixed and not student.is_lora and not student.masters:
        add_master_weights(student, on_cpu=cfg.optim.offload == "cpu")
