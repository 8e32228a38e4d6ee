"""AdamW's state as named tensors and plain JSON, and back, bit for bit.

The helpers of `torch.distributed.checkpoint.state_dict` do not fit: they step an optimizer that has
no state yet, give parameters that were never stepped a step count of 1, and hold several times the
memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from opd.models.fsdp import shard_like

SCALES = ("exp_avg_scale", "exp_avg_sq_scale")  # of moments in 8 bits
MOMENTS = ("exp_avg", "exp_avg_sq", *SCALES, "step")
LOCAL_SETTINGS = ("params", "fused", "foreach")  # of this process and device
# Numbers, booleans and pairs, all of which go to state.json.
Groups = list[dict[str, Any]]


def flatten_optimizer(
    optimizer: torch.optim.Optimizer, names: Mapping[Tensor, str]
) -> dict[str, Tensor]:
    """Name the state tensors `<moment>/<parameter name>`; parameters never stepped have none.

    Args:
        optimizer: AdamW without amsgrad.
        names: the name of every parameter in it.

    Raises:
        KeyError: for a parameter without a name, or a kind of state that is not AdamW's.
    """
    flat: dict[str, Tensor] = {}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            name = names[parameter]
            state = optimizer.state.get(parameter, {})
            unknown = set(state) - set(MOMENTS)
            if unknown:
                raise KeyError(f"optimizer state {sorted(unknown)} of {name} is not AdamW's")
            for moment, value in state.items():
                flat[f"{moment}/{name}"] = value
    return flat


def restore_optimizer(
    optimizer: torch.optim.Optimizer, names: Mapping[Tensor, str], tensors: Mapping[str, Tensor]
) -> None:
    """Give a fresh optimizer the state that `flatten_optimizer` wrote.

    Raises:
        KeyError: when `tensors` has state of a parameter the optimizer does not hold.
        ValueError: when a shape differs from the parameter's, or a dtype from the optimizer's.
    """
    remaining = dict(tensors)
    dtype_of = getattr(optimizer, "moment_dtype", lambda parameter, moment: parameter.dtype)
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            name = names[parameter]
            state = {m: remaining.pop(f"{m}/{name}") for m in MOMENTS if f"{m}/{name}" in remaining}
            if not state:
                continue
            for moment in ("exp_avg", "exp_avg_sq"):
                actual = (state[moment].shape, state[moment].dtype)
                expected = (parameter.shape, dtype_of(parameter, moment))
                if actual != expected:
                    raise ValueError(f"{moment} of {name} is {actual}, the optimizer's {expected}")
                # Clones: the optimizer updates in place, the caller's tensors stay as they are.
                state[moment] = shard_like(state[moment], parameter).clone(
                    memory_format=torch.preserve_format
                )
            state |= {m: state[m].to(parameter.device).clone() for m in SCALES if m in state}
            # AdamW keeps its counter on the CPU unless it is fused or captured.
            on_device = group["fused"] or group["capturable"]
            state["step"] = state["step"].to(parameter.device if on_device else "cpu").clone()
            optimizer.state[parameter] = state
    if remaining:
        raise KeyError(f"optimizer state of unknown parameters: {sorted(remaining)[:5]}")


def group_settings(optimizer: torch.optim.Optimizer) -> Groups:
    """The hyperparameters of every parameter group, as JSON values."""
    return [
        {k: list(v) if isinstance(v, tuple) else v for k, v in g.items() if k not in LOCAL_SETTINGS}
        for g in optimizer.param_groups
    ]


def restore_group_settings(optimizer: torch.optim.Optimizer, settings: Groups) -> None:
    """Set the hyperparameters that `group_settings` returned."""
    for group, saved in zip(optimizer.param_groups, settings, strict=True):
        for key, value in saved.items():
            if key in LOCAL_SETTINGS:  # of a checkpoint from another device
                continue
            group[key] = tuple(value) if isinstance(value, list) else value
