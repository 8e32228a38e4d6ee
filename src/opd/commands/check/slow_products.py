"""A warning where bfloat16 products take many times as long as those in float32, on a CPU."""

from __future__ import annotations

import logging
import os
import time

import torch

from opd.config import Run
from opd.config.models import LocalTeacher
from opd.errors import UserError
from opd.models.configs import read_config, stored_dtype
from opd.models.lm import default_device
from opd.setup.precision import loading_dtype, resolve_precision

ROWS, WIDTH, REPEATS = 64, 512, 3  # of the products that are timed: a few milliseconds in all
MANY = 4.0  # times as slow as float32, from which on it is worth a warning

log = logging.getLogger(__name__)


def slow_products(cfg: Run) -> str | None:
    """What of a run computes in bfloat16 on a CPU that is slow at it, and the keys to change.

    None where nothing does, on a GPU, and where the products are not `MANY` times as slow.
    """
    if default_device().type != "cpu":
        return None
    keys = _keys_in_bfloat16(cfg)
    if not keys:
        return None
    ratio = bfloat16_ratio()
    if ratio < MANY:
        return None
    seen = " and ".join(f"{key}={value}" for key, value in keys)
    verb, fix = "compute" if keys[1:] else "computes", " and ".join(f"{k}=float32" for k, _ in keys)
    return (
        f"{seen} {verb} in bfloat16, and a product in bfloat16 took {ratio:.0f} times as long as "
        f"one in float32 on this processor. Set {fix}."
    )


def warn_of_slow_products(cfg: Run) -> None:
    """Log the warning, once for all processes."""
    if not int(os.environ.get("RANK", "0")) and (message := slow_products(cfg)):
        log.warning(message)


def _keys_in_bfloat16(cfg: Run) -> list[tuple[str, str]]:
    """Keys and values that let models of this process compute in bfloat16."""
    keys = []
    mixed = resolve_precision(cfg) == "bf16_mixed"
    if mixed or loading_dtype(cfg, trains=True) == "bfloat16":
        keys.append(("student.precision", str(cfg.student.precision)))
    teacher = cfg.teacher
    if isinstance(teacher, LocalTeacher):
        if teacher.dtype == "bfloat16":
            keys.append(("teacher.dtype", "bfloat16"))
        elif teacher.dtype == "auto" and _is_stored_in_bfloat16(teacher.model):
            keys.append(("teacher.dtype", "auto (stored in bfloat16)"))
    return keys


def _is_stored_in_bfloat16(model: str) -> bool:
    """False where its configuration cannot be read: loading it says why."""
    try:
        return stored_dtype(read_config(model)) == torch.bfloat16
    except UserError:
        return False


def bfloat16_ratio() -> float:
    """Seconds of a matrix product in bfloat16 over those in float32, each the best of a few."""
    return _seconds(torch.bfloat16) / _seconds(torch.float32)


def _seconds(dtype: torch.dtype) -> float:
    a, b = (torch.ones(rows, WIDTH, dtype=dtype) for rows in (ROWS, WIDTH))
    times = []
    for _ in range(REPEATS + 1):
        began = time.perf_counter()
        a @ b.T
        times.append(time.perf_counter() - began)
    return min(times[1:])
