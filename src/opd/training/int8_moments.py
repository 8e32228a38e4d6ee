"""AdamW with moments of 8 bits: 2 bytes of state per weight instead of 8.

Moments are quantised in blocks of a float32 scale each, on logarithmic levels: AdamW divides one
moment by the root of the other, so that small ones matter as much as large ones. A step changes
the second moment by a thousandth, which rounding to the nearest level would forget each time: it
is rounded up as often as makes the mean right, by a fixed sequence of thresholds, so that a
resumed run has the same bits. Blocks as in Dettmers et al., 8-bit Optimizers via Block-wise
Quantization (arXiv 2110.02861).
Shapes: B blocks, S weights of a block.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

BLOCK = 256  # weights that share a scale
SMALLEST = 4096  # tensors with fewer weights keep float32 moments
CHUNK = 2**22  # weights that are float32 at a time
SCALE = "_scale"  # of a moment's name: that of its scales
PER_OCTAVE = {torch.int8: 6, torch.uint8: 8}  # levels; 21 octaves below a block's largest, 32
# Fractional parts of multiples of these fill the unit interval evenly.
ALONG_BLOCK, ALONG_STEPS = 0.6180339887498949, 0.7548776662466927


def moment_dtypes(weight: Tensor) -> dict[str, torch.dtype]:
    """Of the moments of a weight, by name."""
    if weight.numel() < SMALLEST:
        return dict.fromkeys(("exp_avg", "exp_avg_sq"), weight.dtype)
    return {"exp_avg": torch.int8, "exp_avg_sq": torch.uint8}


def state_bytes(count: int) -> int:
    """Bytes of both moments of a tensor of `count` weights."""
    if count < SMALLEST:
        return 2 * 4 * count
    return 2 * count + 2 * 4 * -(-count // BLOCK)


def new_state(weight: Tensor) -> dict[str, Tensor]:
    """AdamW's state of a weight before its first step."""
    state = {"step": torch.zeros((), dtype=torch.float32)}
    for name, dtype in moment_dtypes(weight).items():
        state[name] = torch.zeros_like(weight, dtype=dtype)
        if dtype != weight.dtype:
            blocks = -(-weight.numel() // BLOCK)
            state[name + SCALE] = torch.zeros(blocks, device=weight.device)
    return state


@torch.no_grad()
def step_weight(
    weight: Tensor, gradient: Tensor, state: dict[str, Tensor], group: Mapping[str, Any]
) -> None:
    """One step of AdamW, in place.

    Args:
        weight: contiguous.
        gradient: of the same shape.
        state: `new_state`, or that of the step before.
        group: lr, betas, eps and weight_decay.
    """
    state["step"] += 1
    step = int(state["step"])
    flat, flat_gradient = weight.view(-1), gradient.reshape(-1)
    for part, blocks in _chunks(weight.numel()):
        first, second = (state[name].view(-1)[part] for name in ("exp_avg", "exp_avg_sq"))
        if first.dtype == weight.dtype:
            _adamw(flat[part], flat_gradient[part], first, second, step, group)
            continue
        scales = [state[name + SCALE][blocks] for name in ("exp_avg", "exp_avg_sq")]
        mean, square = dequantise(first, scales[0]), dequantise(second, scales[1])
        _adamw(flat[part], flat_gradient[part], mean, square, step, group)
        quantise(mean, first, scales[0], step)
        quantise(square, second, scales[1], step)


def _chunks(count: int) -> Iterator[tuple[slice, slice]]:
    """Slices of weights and of their blocks."""
    for start in range(0, count, CHUNK):
        end = min(start + CHUNK, count)
        yield slice(start, end), slice(start // BLOCK, -(-end // BLOCK))


def _adamw(
    weight: Tensor,
    gradient: Tensor,
    mean: Tensor,
    square: Tensor,
    step: int,
    group: Mapping[str, Any],
) -> None:
    """As torch's: decoupled weight decay, moments corrected for their start at zero."""
    (beta1, beta2), lr = group["betas"], group["lr"]
    gradient = gradient.to(mean.dtype)
    mean.lerp_(gradient, 1 - beta1)
    square.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
    root = square.sqrt().div_((1 - beta2**step) ** 0.5).add_(group["eps"])
    weight.mul_(1 - lr * group["weight_decay"])
    weight.addcdiv_(mean, root, value=-lr / (1 - beta1**step))


def quantise(values: Tensor, out: Tensor, scales: Tensor, step: int) -> None:
    """Write values (N,) as levels k, which stand for sign(k) 2^((|k| - L) / p) of their scale.

    L is the largest k of the dtype, p the levels per octave. Zero has a level of its own, to which
    no other value falls: AdamW divides by the root of the second moment.

    Args:
        values: float32.
        out: (N,) int8, or uint8 for values >= 0.
        scales: (B,), are set.
        step: chooses the thresholds.
    """
    blocks = torch.nn.functional.pad(values, (0, -len(values) % BLOCK)).view(-1, BLOCK)
    scales.copy_(blocks.abs().amax(1))
    relative = blocks.abs() / scales.clamp(min=torch.finfo(scales.dtype).tiny)[:, None]
    largest, per_octave = torch.iinfo(out.dtype).max, PER_OCTAVE[out.dtype]
    below = (relative.log2() * per_octave).floor().clamp(1 - largest, -1)
    low = (below / per_octave).exp2()
    index = torch.arange(BLOCK, dtype=torch.float64, device=values.device)
    threshold = (index * ALONG_BLOCK + step * ALONG_STEPS).frac().float()
    above = (relative - low) / (low * (2 ** (1 / per_octave) - 1)) > threshold
    levels = (largest + below + above) * blocks.sign()
    out.copy_(levels.view(-1)[: len(out)])


def dequantise(levels: Tensor, scales: Tensor) -> Tensor:
    """The values (N,) that `quantise` wrote."""
    largest, per_octave = torch.iinfo(levels.dtype).max, PER_OCTAVE[levels.dtype]
    relative = ((levels.float().abs() - largest) / per_octave).exp2() * levels.sign()
    return relative * scales.repeat_interleave(BLOCK)[: len(levels)]


def moment_values(state: Mapping[str, Tensor], name: str) -> Tensor:
    """A moment as numbers: that of torch's AdamW as it is, one in 8 bits dequantised, (N,)."""
    moment, scales = state[name], state.get(name + SCALE)
    return moment if scales is None else dequantise(moment.view(-1), scales)
