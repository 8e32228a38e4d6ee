"""Whether a run fits into the memory of its devices, and which settings make it fit."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from opd import config
from opd.config import LocalTeacher, Run
from opd.errors import UserError
from opd.models.lora_modules import WrongModules
from opd.run.disk import human_size
from opd.setup.memory_models import HOST, Unbuildable
from opd.setup.memory_plan import GPU_CHOICES, plan_memory
from opd.setup.planned_memory import MemoryPlan, PhaseMemory
from opd.setup.precision import resolve_precision

logger = logging.getLogger(__name__)

Overrides = Sequence[str]
CHECKPOINTING = "student.gradient_checkpointing=true"
OFFLOAD = "optim.offload=cpu"
INT8 = "optim.moments=int8"
SERVED = "teacher={{url: http://HOST:8400/v1, model: {model}}}"
SMALLEST_BUDGET = min(GPU_CHOICES)  # tokens of a micro-batch
SMALLER_BATCHES = (f"train.tokens_per_microbatch={SMALLEST_BUDGET}",)
# Parts of a phase that are there whatever is sampled.
FIXED_PARTS = (
    *("student weights", "master weights", "optimizer moments", "gradients"),
    *("teacher weights", "reference weights", "offloaded optimizer"),
)
NAMED_PARTS = 4  # of a phase, in messages


@dataclass(frozen=True)
class Shortage:
    """A device that a run would fill.

    Attributes:
        certain: more is needed than there is; else only fragments and workspaces lack room.
        impossible: so do weights, gradients and the optimizer's state alone, whatever is sampled.
        message: what is needed, and of what.
        fix: what to set.
    """

    certain: bool
    impossible: bool
    message: str
    fix: str


def find_shortage(cfg: Run, plan: MemoryPlan, longest_prompt: int | None = None) -> Shortage | None:
    """The first device that is too small for a run; None if all have enough or are not known.

    Args:
        cfg: the run.
        plan: of it.
        longest_prompt: its tokens, as in the plan.
    """

    def plan_changed(changed: Run) -> MemoryPlan:
        return plan_memory(changed, memory=plan.memory, longest_prompt=longest_prompt)

    for device in plan.too_small:
        peak, free = plan.peak(device), plan.free[device]
        parts = sorted(peak.parts.items(), key=lambda item: -item[1])[:NAMED_PARTS]
        named = ", ".join(f"{name} {human_size(size)}" for name, size in parts)
        message = f"{describe_need(peak)}, of which {human_size(free)} are free: {named}"
        fitting = first_that_fits(cfg, plan_changed)
        fix = "use a smaller model, student.lora={} or shorter completions"
        if fitting is not None:
            fix = "set " + " ".join(fitting[0])
        impossible = fixed_bytes(plan, device) > free
        certain = peak.total > free and not (
            # A GPU that runs out of memory has its micro-batches halved.
            device != HOST and fitting is not None and fitting[0] == SMALLER_BATCHES
        )
        return Shortage(certain, impossible, message, f"{fix} (docs/memory.md)")
    return None


def describe_need(peak: PhaseMemory) -> str:
    """What a phase needs, in words."""
    device = "host memory" if peak.device == HOST else peak.device
    return f"planned: the phase {peak.phase} needs {human_size(peak.total)} of {device}"


def fixed_bytes(plan: MemoryPlan, device: str) -> int:
    """Bytes of a device that do not depend on lengths, rows and micro-batches, at most in a phase.

    Args:
        plan: of the run.
        device: one of its devices.
    """
    phases = [p for p in plan.phases if p.device == device and p.phase != "load"]
    return max(sum(p.parts.get(name, 0) for name in FIXED_PARTS) for p in phases)


def require_memory(cfg: Run, longest_prompt: int | None = None) -> None:
    """Log a warning where a run is not expected to fit; say nothing where it cannot be planned.

    Args:
        cfg: the run.
        longest_prompt: its tokens; None: prompts.max_tokens.

    Raises:
        UserError: it cannot fit, or cannot be built.
    """
    try:
        plan = plan_memory(cfg, longest_prompt=longest_prompt)
        shortage = find_shortage(cfg, plan, longest_prompt)
    except (Unbuildable, WrongModules):
        raise
    except UserError:  # loading the model says why
        return
    if shortage is not None and shortage.impossible:
        raise UserError(f"Not enough memory, {shortage.message}. To run it, {shortage.fix}.")
    if shortage is not None:
        logger.warning("Memory, %s. To avoid it, %s.", shortage.message, shortage.fix)


def first_that_fits(
    cfg: Run,
    plan: Callable[[Run], MemoryPlan],
    teachers: Sequence[Overrides] | None = None,
) -> tuple[Overrides, MemoryPlan] | None:
    """The settings that cost least speed among those that make a run fit; None if none does.

    Args:
        cfg: the run.
        plan: of a run, on the devices it shall fit.
        teachers: overrides of the teacher that may be chosen, the preferred first; None: as it is,
            or behind a server.
    """
    if teachers is None:
        teachers = [(), *_served(cfg)]
    for teacher in teachers:
        for settings in _settings(cfg):
            overrides = (*settings, *teacher)
            try:
                planned = plan(config.parse(config.dump(cfg), overrides))
            except UserError:  # settings that exclude each other
                continue
            if not planned.too_small:
                return overrides, planned
    return None


def _settings(cfg: Run) -> Iterator[Overrides]:
    """Changes of the student's training, those that cost least first."""
    checkpointing: list[Overrides] = [()]
    if not cfg.student.gradient_checkpointing:
        checkpointing.append((CHECKPOINTING,))
    optimizer: list[Overrides] = [()]
    if resolve_precision(cfg) == "bf16_mixed" and cfg.student.lora is None:
        optimizer += [] if cfg.optim.offload == "cpu" else [(OFFLOAD,)]
    if cfg.optim.moments != "int8":
        optimizer += [(*state, INT8) for state in optimizer]
    budget: list[Overrides] = [()]
    tokens = cfg.train.tokens_per_microbatch
    if tokens == "auto" or tokens > SMALLEST_BUDGET:
        budget.append(SMALLER_BATCHES)
    for state in optimizer:
        for recompute in checkpointing:
            for size in budget:
                yield (*recompute, *state, *size)


def _served(cfg: Run) -> list[Overrides]:
    if not isinstance(cfg.teacher, LocalTeacher):
        return []
    return [(SERVED.format(model=cfg.teacher.model),)]
