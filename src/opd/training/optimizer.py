"""The optimizer and the end of every step: check, clip, schedule, update."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch

from opd.config import Optim
from opd.errors import UserError
from opd.models.fsdp import full_tensor
from opd.models.lm import LM
from opd.models.master_weights import copy_masters_to_model, fraction_that_cannot_move
from opd.training.int8_moments import moment_dtypes, new_state, step_weight

Schedule = Literal["constant", "cosine"]
BETAS = (0.9, 0.999)  # of the paper, and what torch and TRL take unasked
MAX_STUCK = 0.1  # fraction of the weights that may be rounded back to where they were


class NonFiniteStep(Exception):
    """The loss or the gradient norm is NaN or infinite; the optimizer has not moved."""


class MasterAdamW(torch.optim.AdamW):
    """AdamW over a student's weights, which may be float32 masters of a bf16 model.

    Gradients are those of the model's own parameters. After each step the masters are copied into
    the model. Without masters this is plain AdamW.
    """

    def __init__(self, student: LM, optim: Optim) -> None:
        """Decay matrices only; step in torch's fused form.

        Unfused, torch holds another copy of its largest matrix (on a CPU) or of all weights (on a
        GPU) while it steps.
        """
        self._student, self._int8 = student, optim.moments == "int8"
        weights = student.weights().values()
        groups = [
            {"params": [w for w in weights if w.ndim >= 2], "weight_decay": optim.weight_decay},
            {"params": [w for w in weights if w.ndim < 2], "weight_decay": 0.0},
        ]
        sharded_on_cpu = student.sharded is not None and student.device.type == "cpu"
        super().__init__(
            [g for g in groups if g["params"]],
            lr=optim.lr,
            betas=BETAS,
            fused=None if sharded_on_cpu or self._int8 else True,
        )

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Update the weights from the model's gradients."""
        working = self._student.parameters()
        for name, master in self._student.masters.items():
            _move_gradient(working[name], master)
        result = None
        if self._int8:
            self._step_int8()
        else:
            result = super().step(closure)
        copy_masters_to_model(self._student)
        return result

    def _step_int8(self) -> None:
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    state = self.state[weight] or new_state(weight)
                    self.state[weight] = state
                    step_weight(weight, weight.grad, state, group)

    def moment_dtype(self, weight: torch.Tensor, moment: str) -> torch.dtype:
        """The dtype of exp_avg or exp_avg_sq of a weight, as checkpoints hold it."""
        return moment_dtypes(weight)[moment] if self._int8 else weight.dtype

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop the gradients of the model and of the masters."""
        super().zero_grad(set_to_none)
        for parameter in self._student.parameters().values():
            parameter.grad = None


def _move_gradient(parameter: torch.nn.Parameter, master: torch.nn.Parameter) -> None:
    """Give a master its parameter's gradient, on the master's device."""
    gradient = parameter.grad
    if gradient is None or gradient.device == master.device:
        master.grad = gradient
        return
    if master.grad is None:
        master.grad = torch.empty_like(master, pin_memory=master.is_pinned())
    master.grad.copy_(gradient)


def make_optimizer(student: LM, optim: Optim) -> MasterAdamW:
    """AdamW over the student's weights.

    Raises:
        UserError: low-precision weights without masters, at a rate that they round away.
    """
    stuck = fraction_that_cannot_move(student.weights().values(), optim.lr)
    if stuck > MAX_STUCK:
        raise UserError(
            f"optim.lr={optim.lr:g} with weights in bf16 and no float32 masters: {stuck:.0%} of "
            "them would not move, because an update of that size is rounded away. Set "
            "student.precision=bf16_mixed (bf16 arithmetic, float32 master weights), or float32."
        )
    return MasterAdamW(student, optim)


def finish_step(
    student: LM, optimizer: torch.optim.Optimizer, loss: float, *, lr: float, grad_clip: float
) -> float:
    """Clip the accumulated gradient and step; leaves no gradient behind.

    Args:
        student: holds the gradient of the whole step.
        optimizer: over its trainable parameters.
        loss: of the whole step.
        lr: rate of this step.
        grad_clip: largest gradient norm.

    Returns:
        The gradient norm before clipping.

    Raises:
        NonFiniteStep: loss or norm is NaN or infinite; nothing was changed.
    """
    parameters = student.parameters().values()
    norm = full_tensor(torch.nn.utils.clip_grad_norm_(parameters, grad_clip)).item()
    if not (math.isfinite(loss) and math.isfinite(norm)):
        optimizer.zero_grad(set_to_none=True)
        raise NonFiniteStep(f"loss {loss}, gradient norm {norm}")
    for group in optimizer.param_groups:
        group["lr"] = lr
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return norm


def learning_rate(
    peak: float, step: int, warmup: int, schedule: Schedule = "constant", steps: int = 0
) -> float:
    """The rate of a step: linear warm-up, then constant or cosine to zero at `steps`.

    Args:
        peak: largest rate.
        step: number of updates made so far.
        warmup: steps until the peak.
        schedule: after the warm-up.
        steps: of the whole training; read by cosine alone.
    """
    if step < warmup:
        return peak * ((step + 1) / warmup)
    if schedule == "constant":
        return peak
    return peak * (0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup))))
