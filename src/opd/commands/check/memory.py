"""The memory a run needs, before any weights are loaded."""

from __future__ import annotations

from dataclasses import dataclass

from opd.config import Run
from opd.errors import UserError
from opd.recipes.check.compatibility import Finding, Level
from opd.run.disk import human_size
from opd.setup.launch import describe_seats, describe_transfer, find_crowded, seats
from opd.setup.memory_advice import describe_need, find_shortage
from opd.setup.memory_plan import plan_memory
from opd.setup.planned_memory import MemoryPlan


@dataclass(frozen=True)
class MemoryCheck:
    """A plan and what it means; the finding is a failure where a device is too small."""

    plan: MemoryPlan
    finding: Finding


def check_memory(cfg: Run, longest_prompt: int | None = None) -> MemoryCheck | None:
    """Plan the memory of a run on this machine.

    Args:
        cfg: the run.
        longest_prompt: its tokens; None: prompts.max_tokens.

    Returns:
        None where a model's configuration cannot be read: loading it says why.
    """
    try:
        plan = plan_memory(cfg, longest_prompt=longest_prompt)
        shortage = find_shortage(cfg, plan, longest_prompt)
    except UserError:
        return None
    if shortage is None:
        return MemoryCheck(plan, Finding("memory", "ok", _summary(plan)))
    level: Level = "failure" if shortage.certain else "warning"
    return MemoryCheck(plan, Finding("memory", level, shortage.message, shortage.fix))


def check_seats(cfg: Run) -> Finding | None:
    """Who would sit on which GPU; None where no server is started."""
    seated = seats(cfg)
    if not seated:
        return None
    crowded = find_crowded(seated)
    if crowded is not None:
        return Finding(
            "devices", "warning", f"{describe_seats(seated)}{describe_transfer(cfg)}. {crowded}"
        )
    return Finding("devices", "ok", describe_seats(seated) + describe_transfer(cfg))


def _summary(plan: MemoryPlan) -> str:
    needs = []
    for device in plan.devices:
        free = plan.free.get(device)
        known = "" if free is None else f", {human_size(free)} are free"
        needs.append(describe_need(plan.peak(device)) + known)
    return "; ".join(needs)
