"""The host memory of weights, gradients and moments, from the headers of files: no torch, at once.

`opd.setup.memory_plan` plans every phase, and needs torch and transformers for it. A start refuses
what these parts alone exceed; here are a lower and an upper bound of them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from pathlib import Path

from opd.config import Run, SelfTeacher
from opd.errors import UserError
from opd.models.model_files import count_elements, stored_bytes, weight_shapes
from opd.run.devices import may_have_gpu
from opd.run.disk import human_size
from opd.run.host_memory import free_host_bytes
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
# Of an adapter's weight: itself, gradient, two moments.
ADAPTERS = dict.fromkeys(FULL_TRAINING, 16) | {"float64": 32}
STORED = {"bfloat16": 2, "float16": 2, "float32": 4, "float64": 8}  # dtype of config.json
SPARE = 2**26  # of an upper bound: buffers, tensors that a file does not have


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
    if free is None or not _names_modules(cfg, student):
        return False
    folders = list(teachers)
    return free > most_bytes(cfg, student, folders) or free < least_bytes(cfg, student, folders)


def _names_modules(cfg: Run, student: Path) -> bool:
    """Whether adapters go on modules of the student, as far as its weights' names say."""
    wanted = "all-linear" if cfg.student.lora is None else cfg.student.lora.target_modules
    if isinstance(wanted, str):
        return wanted == "all-linear"
    there = {name.removesuffix(".weight").rpartition(".")[2] for name in weight_shapes(student)}
    return bool(wanted) and there.issuperset(wanted)


def least_bytes(cfg: Run, student: Path, teachers: Iterable[Path]) -> float:
    """Bytes of weights, gradients and moments that a run on a CPU has in memory at once.

    Args:
        cfg: a run that trains.
        student: folder of its model.
        teachers: folders of those in this process.
    """
    needed = _student_bytes(cfg, count_elements(student))
    if cfg.teacher is not None and getattr(cfg.teacher, "offload", "none") == "none":
        dtype = getattr(cfg.teacher, "dtype", "auto")
        needed += sum(_least_teacher(folder, dtype) for folder in teachers)
    return needed


def _least_teacher(folder: Path, dtype: str) -> float:
    """Bytes of a teacher: a checkpoint of few bits a weight takes no more than its file."""
    least = TEACHER[dtype] * count_elements(folder)
    return min(least, stored_bytes(folder)) if dtype == "auto" else least


def most_bytes(cfg: Run, student: Path, teachers: Iterable[Path]) -> float:
    """Bytes that weights, gradients and moments of a run on a CPU cannot exceed.

    Args:
        cfg: a run that trains.
        student: folder of its model.
        teachers: folders of those in this process.
    """
    shapes, precision, lora = weight_shapes(student), cfg.student.precision, cfg.student.lora
    weights = sum(map(math.prod, shapes.values()))
    if lora is None:
        needed: float = FULL_TRAINING[precision] * weights
    else:
        adapters = lora.rank * sum(sum(shape) for shape in shapes.values() if len(shape) == 2)
        needed = FROZEN[precision] * weights + ADAPTERS[precision] * adapters
    specs = [spec for spec in (cfg.teacher, *cfg.teachers.values()) if spec is not None]
    named = max((TEACHER[getattr(spec, "dtype", "auto")] for spec in specs), default=0)
    needed += sum(_most_frozen(folder, named) for folder in teachers)
    if cfg.loss.terms.reference is not None:
        needed += _most_frozen(Path(cfg.loss.terms.reference).expanduser(), 0)
    copies = sum(isinstance(spec, SelfTeacher) for spec in specs)
    return needed + copies * FROZEN[precision] * weights + SPARE


def _most_frozen(folder: Path, itemsize: float) -> float:
    """Bytes of a model that is read, in the stored dtype or one of so many bytes a weight."""
    elements = count_elements(folder)
    return max(itemsize, _stored_itemsize(folder)) * elements if elements else math.inf


def _stored_itemsize(folder: Path) -> int:
    """Bytes of a weight in the dtype that a model's configuration names."""
    data = json.loads((folder / "config.json").read_bytes())
    sections = [data, data.get("text_config") or {}]
    names = [section.get(key) for section in sections for key in ("dtype", "torch_dtype")]
    sizes = [STORED.get(str(name), STORED["float64"]) for name in names if name is not None]
    return max(sizes, default=STORED["float32"])


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
