"""AdamW with moments of 8 bits against the one in float32; its state comes back bit for bit."""

from __future__ import annotations

import pytest
import torch

from opd import config
from opd.config import Optim
from opd.demo.run_config import demo_config
from opd.errors import UserError
from opd.models.lm import LM
from opd.models.master_weights import add_master_weights
from opd.run.optimizer import flatten_optimizer, restore_optimizer
from opd.testing import tiny_model
from opd.training import int8_moments
from opd.training.int8_moments import (
    BLOCK,
    SMALLEST,
    dequantise,
    new_state,
    quantise,
    state_bytes,
    step_weight,
)
from opd.training.optimizer import make_optimizer

SIZE = 8192
GROUP = {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.01}


def normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def changes(steps: int, gradient_at, *, size: int = SIZE):
    """The change of a weight after some steps: torch's AdamW in float32, ours in 8 bits."""
    start = 0.02 * normal(0, size)
    reference, ours = torch.nn.Parameter(start.clone()), start.clone()
    optimizer, state = torch.optim.AdamW([reference], **GROUP), new_state(ours)
    for step in range(steps):
        reference.grad = gradient_at(step)
        step_weight(ours, reference.grad.clone(), state, GROUP)
        optimizer.step()
    return reference.detach() - start, ours - start, optimizer.state[reference], state


def noisy(step: int) -> torch.Tensor:
    """Gradients with a mean, whose sizes differ by orders of magnitude within a block."""
    return (2 * normal(1, SIZE)).exp() * (0.3 * normal(2, SIZE) + normal(100 + step, SIZE))


@pytest.mark.parametrize("steps", [1, 20, 400])
def test_it_follows_adamw(steps):
    expected, change, _, _ = changes(steps, noisy)
    assert torch.nn.functional.cosine_similarity(change, expected, dim=0) > 0.99
    assert change.norm() == pytest.approx(expected.norm().item(), rel=0.03)
    assert torch.equal(change != 0, expected != 0)


def test_the_second_moment_falls_when_gradients_do():
    """Rounding to the nearest level would keep it: a step changes it by a thousandth."""
    fall = torch.where(torch.arange(SIZE) % 2 == 0, 1.0, 0.03)  # half of each block

    def falling(step: int) -> torch.Tensor:
        return normal(step, SIZE) * (1.0 if step < 100 else fall)

    expected, change, reference, state = changes(2000, falling)
    square = dequantise(state["exp_avg_sq"], state["exp_avg_sq_scale"])
    ratio = square / reference["exp_avg_sq"]
    assert 0.9 < ratio.median() < 1.1
    assert ratio.quantile(0.02) > 0.3
    assert ratio.quantile(0.98) < 2
    assert torch.nn.functional.cosine_similarity(change, expected, dim=0) > 0.97


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8], ids=["int8", "uint8"])
def test_a_level_is_near_and_right_in_the_mean(dtype):
    values = normal(3, 3 * BLOCK - 7)
    values = values.abs() if dtype == torch.uint8 else values
    values[5] = 0.0
    levels, scales = torch.empty(len(values), dtype=dtype), torch.empty(3)
    total = torch.zeros_like(values)
    for step in range(400):
        quantise(values, levels, scales, step)
        total += dequantise(levels, scales)
    assert levels[5] == 0
    assert ((levels == 0) == (values == 0)).all()
    torch.testing.assert_close(dequantise(levels, scales), values, rtol=0.13, atol=0)
    torch.testing.assert_close(total / 400, values, rtol=2e-3, atol=0)


def test_a_tensor_in_chunks_is_the_same(monkeypatch):
    _, whole, _, _ = changes(5, noisy)
    monkeypatch.setattr(int8_moments, "CHUNK", 4 * BLOCK)
    _, parts, _, _ = changes(5, noisy)
    assert torch.equal(whole, parts)


def test_small_tensors_keep_float32_moments():
    small = SMALLEST - 1
    expected, change, _, state = changes(20, lambda step: normal(step, small), size=small)
    assert state["exp_avg"].dtype == torch.float32
    torch.testing.assert_close(change, expected, rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("count", [10, SMALLEST, SIZE, SIZE + 1])
def test_the_state_takes_what_is_planned(count):
    state = new_state(torch.zeros(count))
    assert sum(t.nbytes for name, t in state.items() if name != "step") == state_bytes(count)


def student(*, masters: bool) -> LM:
    lm = LM(tiny_model(0, dtype=torch.float32, vocab=300), 300, "tiny")
    if masters:
        add_master_weights(lm)
    return lm


def advance(lm: LM, optimizer, steps) -> None:
    for step in steps:
        for i, parameter in enumerate(lm.parameters().values()):
            parameter.grad = normal(1000 * step + i, *parameter.shape)
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("masters", [False, True], ids=["float32", "bf16_mixed"])
def test_a_resumed_optimizer_gives_the_same_bits(masters):
    optim = Optim(lr=1e-3, moments="int8")
    straight = student(masters=masters)
    straight_optimizer = make_optimizer(straight, optim)
    advance(straight, straight_optimizer, range(3))
    names = {w: n for n, w in straight.weights().items()}
    saved = {n: t.clone() for n, t in flatten_optimizer(straight_optimizer, names).items()}
    weights = {n: w.detach().clone() for n, w in straight.weights().items()}
    assert saved["exp_avg_sq/model.embed_tokens.weight"].dtype == torch.uint8

    again = student(masters=masters)
    with torch.no_grad():
        for name, weight in again.weights().items():
            weight.copy_(weights[name])
    again_optimizer = make_optimizer(again, optim)
    again_names = {w: n for n, w in again.weights().items()}
    restore_optimizer(again_optimizer, again_names, saved)
    for lm, optimizer in ((straight, straight_optimizer), (again, again_optimizer)):
        advance(lm, optimizer, range(3, 6))
    for name, weight in straight.weights().items():
        assert torch.equal(weight, again.weights()[name]), name
    want = flatten_optimizer(straight_optimizer, names)
    have = flatten_optimizer(again_optimizer, again_names)
    assert want.keys() == have.keys()
    assert all(torch.equal(want[n], have[n]) for n in want)


def test_state_of_the_other_kind_is_refused():
    lm = student(masters=False)
    optimizer = make_optimizer(lm, Optim(lr=1e-3, moments="int8"))
    advance(lm, optimizer, range(1))
    names = {w: n for n, w in lm.weights().items()}
    saved = flatten_optimizer(optimizer, names)
    with pytest.raises(ValueError, match="exp_avg"):
        restore_optimizer(make_optimizer(lm, Optim(lr=1e-3)), names, saved)


def test_shards_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"optim\.moments=int8"):
        config.parse(demo_config(tmp_path / "run"), ["optim.moments=int8", "student.shard=fsdp2"])
