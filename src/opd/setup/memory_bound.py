"""The least host memory that a run can need, from the headers of weight files: no torch, at once.

`opd.setup.memory_plan` plans every phase, and needs torch and transformers for it.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from opd.config import Run
from opd.errors import UserError
from opd.models.model_files import count_elements
from opd.run.devices import free_host_bytes, may_have_gpu
from opd.run.disk import human_size
from opd.types import Scheme

# Bytes per weight: working weights, masters, gradients, two moments.
FULL_TRAINING = {"float32": 16, "float64": 32, "bf16_mixed": 18, "bfloat16": 8}
FULL_TRAINING["auto"] = FULL_TRAINING["float32"]  # on a CPU
INT8_MOMENTS = 6  # bytes per weight that they save, of float32 moments
FROZEN = {"float32": 4, "float64": 8, "bf16_mixed": 2, "bfloat16": 2, "auto": 4}
# Of linear layers; head and embedding stay as they are.
QUANTISED: dict[Scheme, float] = {"int8": 1, "nf4": 0.5}
# auto: what the file holds, at least bf16.
TEACHER: dict[str, float] = {"float32": 4, "float64": 8, "bfloat16": 2, "auto": 2}
TEACHER |= {"int8": QUANTISED["int8"], "nf4": QUANTISED["nf4"]}
# Beyond these bytes per weight, and so many more, no plan refuses a run.
MOST_TRAINED, MOST_FROZEN, SPARE = 40, 16, 2**30


def require_memory_for_weights(cfg: Run, student: Path, teachers: Iterable[Path]) -> None:
    """Refuse a run whose weights, gradients and moments alone exceed the free host memory.

    Says nothing where a GPU may hold them, where processes share them, or where free memory is
    not known.

    Args:
        cfg: a run that trains.
        student: folder of its model.
        teachers: folders of those in this process.

    Raises:
        UserError: naming needed and free bytes.
    """
    free = _free_bytes(cfg)
    if free is None:
        return
    needed = least_bytes(cfg, student, teachers)
    if needed > free:
        raise UserError(
            "Not enough memory: weights, gradients and optimizer moments take at least "
            f"{human_size(round(needed))} of host memory, of which {human_size(free)} are free. "
            "Use a smaller model, or student.lora={} (docs/memory.md)."
        )


def is_memory_known(cfg: Run, student: Path, teachers: Iterable[Path]) -> bool:
    """Whether `require_memory_for_weights` has said all that a plan of the memory would refuse.

    Args:
        cfg: a run that trains.
        student: folder of its model.
        teachers: folders of those in this process.
    """
    free = _free_bytes(cfg)
    if free is None or cfg.loss.terms.reference is not None:
        return False
    weights = sum(count_elements(folder) for folder in teachers)
    most = MOST_TRAINED * count_elements(student) + MOST_FROZEN * weights + SPARE
    return free > most or free < least_bytes(cfg, student, teachers)


def least_bytes(cfg: Run, student: Path, teachers: Iterable[Path]) -> float:
    """Bytes of weights, gradients and moments that a run on a CPU has in memory at once.

    Args:
        cfg: a run that trains.
        student: folder of its model.
        teachers: folders of those in this process.
    """
    needed = _student_bytes(cfg, count_elements(student))
    if cfg.teacher is not None and getattr(cfg.teacher, "offload", "none") == "none":
        itemsize = TEACHER[getattr(cfg.teacher, "dtype", "auto")]
        needed += sum(itemsize * count_elements(folder) for folder in teachers)
    return needed


def _free_bytes(cfg: Run) -> int | None:
    """Free host memory; None where other memory counts."""
    gpu = may_have_gpu()
    return None if gpu or cfg.student.shard != "none" else free_host_bytes()


def _student_bytes(cfg: Run, weights: int) -> float:
    lora, precision = cfg.student.lora, cfg.student.precision
    if lora is not None:
        itemsize = FROZEN[precision] if lora.weights == "full" else QUANTISED[lora.weights]
        return itemsize * weights
    saved = INT8_MOMENTS if cfg.optim.moments == "int8" else 0
    return max(1, FULL_TRAINING[precision] - saved) * weights
