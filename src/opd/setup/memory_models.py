"""The models of a run as a memory plan sees them: sizes, devices; nothing is loaded."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Literal

import torch

from opd.config import LocalTeacher, Lora, Run, SelfTeacher, Teacher
from opd.errors import UserError
from opd.models.away import PIECE
from opd.models.configs import read_config, stored_dtype
from opd.models.fsdp import whole_gradients_fit
from opd.models.lm import default_device
from opd.models.lora_modules import WrongModules
from opd.models.model_size import FLOAT, ModelSize, model_size
from opd.run.devices import free_device_bytes, total_device_bytes
from opd.run.host_memory import free_host_bytes, total_host_bytes
from opd.setup.precision import ResolvedPrecision, resolve_precision
from opd.training.int8_moments import state_bytes
from opd.types import Scheme

HOST = "cpu"
DTYPES: Mapping[ResolvedPrecision, torch.dtype] = {
    "float32": torch.float32,
    "bf16_mixed": torch.bfloat16,
    "bfloat16": torch.bfloat16,
    "float64": torch.float64,
}
STATES = 2  # moments of AdamW per weight

ConfigReader = Callable[[str, str], Any]


@dataclass(frozen=True)
class StudentState:
    """Bytes that a student keeps from step to step, in one process.

    Attributes:
        loaded: weights as they are loaded, before masters are made; of a sharded student its shards
            and the unit that is being sharded.
        weights: working weights, or this process's shards of them.
        masters: float32 weights on the device that the optimizer updates.
        gradients: of one update, on the device.
        moments: of AdamW, on the device.
        host: masters, moments and a copy of the gradients in host memory (optim.offload).
        gathered_to_update: weights of other processes' shards that are there during an update.
        gathered_to_sample: likewise while completions are sampled.
        largest: of the float32 tensors, which a step or a checkpoint moves one by one.
        mapped: of its file, which stays in memory until its last weight has become another.
        reduced: gradients of a sharded student where whole ones would take too much of a device.
        read: host memory of the model while its weights are sharded; its pages are shared.
    """

    loaded: int
    weights: int
    masters: int
    gradients: int
    moments: int
    host: int = 0
    gathered_to_update: int = 0
    gathered_to_sample: int = 0
    largest: int = 0
    mapped: int = 0
    reduced: int = 0
    read: int = 0


@dataclass(frozen=True)
class FrozenModel:
    """A model that is only read, a teacher or a reference, and its device.

    Attributes:
        size: of its passes and weights.
        device: where it scores.
        offload: where its weights, all but the head, are at other times; none: they stay.
    """

    size: ModelSize
    device: str
    offload: Literal["none", "cpu", "disk"] = "none"

    @property
    def resident(self) -> int:
        """Bytes of weights that stay on its device."""
        head = self.size.vocab * self.size.hidden * self.size.itemsize
        return self.size.weights if self.offload == "none" else head

    @property
    def moved(self) -> int:
        """Bytes of weights that are on its device only while it scores."""
        return self.size.weights - self.resident

    @property
    def beside_while_read(self) -> int:
        """Bytes beside its weights while it is read: what is quantised or sent away later.

        On a CPU the quantised weights are made beside the file, which is left when all of them are.
        """
        beside = self.size.unpacked > 0 and self.device == HOST
        return self.size.loaded - (0 if beside else self.resident)


@dataclass(frozen=True)
class PlannedModels:
    """The models of a run, as far as they are in this process.

    Attributes:
        student: sizes of its passes.
        state: what it keeps from step to step.
        device: of the student.
        precision: of the student.
        teacher: None behind a server, from a cache, or without one.
        reference: of loss.terms.reference.
    """

    student: ModelSize
    state: StudentState
    device: str
    precision: ResolvedPrecision
    teacher: FrozenModel | None = None
    reference: FrozenModel | None = None
    others: tuple[FrozenModel, ...] = ()

    @property
    def teachers(self) -> list[FrozenModel]:
        """Those in this process."""
        return [f for f in (self.teacher, *self.others) if f is not None]

    @property
    def frozen(self) -> list[FrozenModel]:
        """Teachers and reference, as far as there are any."""
        return [f for f in (self.teacher, *self.others, self.reference) if f is not None]

    def on_device_of(self, memory: int | None) -> PlannedModels:
        """With the gradients of a sharded student on devices of so many bytes; None: not known."""
        state, count = self.state, self.student.parameters
        if not state.reduced or memory is None or whole_gradients_fit(count, memory):
            return self
        return replace(self, state=replace(state, gradients=state.reduced))

    @property
    def devices(self) -> list[str]:
        """Accelerators first, host memory last."""
        names = {HOST, self.device, *(f.device for f in self.frozen)}
        return sorted(names, key=lambda name: (name == HOST, name))

    @property
    def torch_device(self) -> torch.device:
        """Of the student."""
        return torch.device(self.device)


def plan_models(
    cfg: Run, device: str, *, processes: int = 1, read: ConfigReader | None = None
) -> PlannedModels:
    """The models of a run.

    Args:
        cfg: the run.
        device: of the student.
        processes: that train together.
        read: (model, key) -> transformers configuration; None: from folder or hub.

    Raises:
        UserError: a configuration that cannot be read or built.
    """
    read = read or (lambda name, key: read_config(name, key=key))
    section, precision = cfg.student, resolve_precision(cfg)
    config = read(section.model, "student.model")
    student = _size(config, DTYPES[precision], section.lora, device)
    if processes > 1 and section.shard == "fsdp2":
        mixed = precision == "bf16_mixed" and section.lora is None
        state = sharded_state(student, processes, mixed=mixed)
        as_stored = stored_dtype(config).itemsize * student.parameters
        file = as_stored if section.lora is None else student.loaded
        on_host = device == HOST
        state = replace(state, mapped=file if on_host else 0, read=0 if on_host else file)
    else:
        mixed = precision == "bf16_mixed" and section.lora is None
        offload = mixed and cfg.optim.offload == "cpu" and device != HOST
        int8 = cfg.optim.moments == "int8"
        state = student_state(student, mixed=mixed, offload=offload, int8=int8)
        if mixed and device == HOST and _dtype(config, "auto") == torch.float32:
            state = replace(state, mapped=state.loaded)
    specs = [cfg.teacher] if cfg.teacher is not None else list(cfg.teachers.values())
    planned = [_plan_teacher(cfg, spec, device, read) for spec in specs]
    teachers = [teacher for teacher in planned if teacher is not None]
    reference = None
    if (name := cfg.loss.terms.reference) is not None:
        config = read(name, "loss.terms.reference")
        reference = _frozen_model(config, _dtype(config, "auto"), device)
    teacher, others = (teachers[0], tuple(teachers[1:])) if teachers else (None, ())
    return PlannedModels(student, state, device, precision, teacher, reference, others)


def _plan_teacher(cfg: Run, spec: Teacher, device: str, read: ConfigReader) -> FrozenModel | None:
    """What a teacher holds in this process; None for a server and for what it shares."""
    if isinstance(spec, LocalTeacher) and spec.cache is None:
        place = device if spec.device is None else device_name(spec.device)
        config = read(spec.model, "teacher.model")
        scheme = spec.dtype if spec.dtype in ("int8", "nf4") else None
        dtype = _dtype(config, "auto" if scheme else spec.dtype)
        return replace(_frozen_model(config, dtype, place, scheme), offload=spec.offload)
    if not isinstance(spec, SelfTeacher) or spec.weights == "live" or cfg.student.lora is not None:
        return None
    config = read(cfg.student.model, "student.model")  # a copy, frozen or averaged
    return FrozenModel(_size(config, DTYPES[resolve_precision(cfg)], None, device), device)


def student_state(
    size: ModelSize, *, mixed: bool, offload: bool = False, int8: bool = False
) -> StudentState:
    """Of a student that one process holds whole.

    Args:
        size: of its working weights.
        mixed: bf16 weights that are trained have float32 masters (bf16_mixed without LoRA).
        offload: those masters and their moments are in host memory.
        int8: moments have 8 bits.
    """
    itemsize = FLOAT if mixed else size.trained_itemsize
    trained = itemsize * size.trained_elements
    largest = itemsize * max(size.trained, default=0)
    loaded = FLOAT * size.parameters if mixed else size.loaded
    masters, moments, host = trained if mixed else 0, STATES * trained, 0
    if int8:
        moments = sum(map(state_bytes, size.trained))
    if offload:  # masters and gradients are pinned
        pinned = 2 * sum(_pinned_bytes(itemsize * count) for count in size.trained)
        masters, moments, host = 0, 0, pinned + moments
    return StudentState(loaded, size.weights, masters, trained, moments, host, largest=largest)


def sharded_state(size: ModelSize, processes: int, *, mixed: bool) -> StudentState:
    """Of a student that FSDP2 shards over processes.

    Gradients add up unsharded until the end of a step where they fit, else whole ones exist of one
    unit at a time: a layer, or the embedding with the head.

    Args:
        size: of its weights as gathered for a forward.
        processes: number of them.
        mixed: shards are float32 and gathered in bf16 (bf16_mixed).
    """
    itemsize = FLOAT if mixed else size.trained_itemsize
    trained = itemsize * size.trained_elements
    loaded = FLOAT * size.parameters if mixed else size.weights
    # The head with the embedding, the layer that runs, and the next one, gathered meanwhile.
    head = 2 * size.vocab * size.hidden * size.itemsize
    layers = 2 * size.weights // max(1, size.layers)
    unit = FLOAT * max(2 * size.vocab * size.hidden, size.parameters // max(1, size.layers))
    return StudentState(
        loaded=loaded // processes + min(unit, loaded),
        weights=loaded // processes,
        masters=0,
        gradients=trained + trained // processes,
        moments=STATES * trained // processes,
        gathered_to_update=head + layers,
        gathered_to_sample=size.weights,
        largest=itemsize * max(size.trained, default=0),
        reduced=trained // processes + min(unit, trained),
    )


def device_name(device: str | None) -> str:
    """One name per device: cuda is the current one; None is where models go by default.

    Raises:
        UserError: there is no device of that kind.
    """
    try:
        chosen = default_device() if device is None else torch.device(device)
    except RuntimeError:
        raise UserError(f"{device} is no device.") from None
    if chosen.type == HOST:
        return HOST
    if str(chosen) == "cuda" and torch.cuda.is_available():
        return f"cuda:{torch.cuda.current_device()}"
    return f"{chosen.type}:{chosen.index or 0}"


@dataclass(frozen=True)
class DeviceMemory:
    """Bytes by device; those of devices that are not here are left out.

    Attributes:
        free: that it can give now.
        total: all of them, which stay the same in a run that is resumed.
    """

    free: Mapping[str, int]
    total: Mapping[str, int]

    @classmethod
    def idle(cls, sizes: Mapping[str, int]) -> DeviceMemory:
        """Devices of which all is free."""
        return cls(sizes, sizes)


def machine_memory(devices: Iterable[str]) -> DeviceMemory:
    """The memory of this machine, now."""
    names = list(devices)
    free = {x: free_host_bytes() if x == HOST else free_device_bytes(x) for x in names}
    total = {x: total_host_bytes() if x == HOST else total_device_bytes(x) for x in names}
    return DeviceMemory(_known(free), _known(total))


def _known(sizes: Mapping[str, int | None]) -> dict[str, int]:
    return {name: size for name, size in sizes.items() if size is not None}


class Unbuildable(UserError):
    """No model can be made of a configuration, or no adapters for it."""


def _frozen_model(
    config: Any, dtype: torch.dtype, device: str, scheme: Scheme | None = None
) -> FrozenModel:
    """A model that is read from a file and never written.

    On a CPU weights of the stored dtype stay in the mapped file, unless others are quantised: of an
    embedding that is not the head, too, the rows of the text's tokens are read, which is next to
    nothing.
    """
    size = _size(config, dtype, None, device, scheme)
    if scheme is None and device == HOST and dtype == _dtype(config, "auto"):
        weights, loaded = size.weights - size.lookup, size.loaded - size.lookup
        size = replace(size, weights=weights, loaded=loaded)
    return FrozenModel(size, device)


def _size(
    config: Any,
    dtype: torch.dtype,
    lora: Lora | None,
    device: str,
    scheme: Scheme | None = None,
) -> ModelSize:
    if lora is not None and lora.weights != "full":
        scheme = lora.weights
    adapters = None if lora is None else lora.model_dump_json()
    try:
        return _cached_size(_Hashable(config), dtype, adapters, device != HOST, scheme)
    except WrongModules:  # names its key itself
        raise
    except UserError as error:
        raise Unbuildable(f"config.json of {error}") from None


class _Hashable:
    """A configuration, equal to another with the same content."""

    def __init__(self, config: Any) -> None:
        self.config, self.key = config, config.to_json_string(use_diff=False)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Hashable) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)


@lru_cache(maxsize=32)
def _cached_size(
    config: _Hashable,
    dtype: torch.dtype,
    adapters: str | None,
    on_gpu: bool,
    scheme: Scheme | None,
) -> ModelSize:
    lora = None if adapters is None else Lora.model_validate_json(adapters)
    return model_size(config.config, dtype, lora=lora, on_gpu=on_gpu, scheme=scheme)


def _dtype(config: Any, dtype: str) -> torch.dtype:
    """Of a frozen model; auto is what its configuration says, else float32."""
    if dtype != "auto":
        chosen: torch.dtype = getattr(torch, dtype)
        return chosen
    return stored_dtype(config)


def pinned_pieces(size: int) -> int:
    """Bytes of pinned memory that `opd.models.away.HostCopy` takes for `size`."""
    return size // PIECE * PIECE + _pinned_bytes(size % PIECE)


def _pinned_bytes(size: int) -> int:
    """Bytes that torch's allocator of pinned memory takes: a power of two."""
    return 1 << (size - 1).bit_length() if size else 0
