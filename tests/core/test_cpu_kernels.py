"""`opd.core.cpu_kernels`: the same numbers as torch's own functions."""

import math
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import linear

from opd.core import cpu_kernels

randn = partial(torch.randn, device="cpu")  # whatever OPD_TEST_DEVICE is

N, H = 5, 7


@pytest.mark.parametrize("vocab", [cpu_kernels.MIN_VOCAB, 9000, 10_241])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("count", [1, cpu_kernels.MIN_ROWS - 1, cpu_kernels.MIN_ROWS])
def test_projecting_by_tiles_is_linear(vocab, biased, count):
    torch.manual_seed(0)
    hidden, weight, bias = (
        randn(*s, dtype=torch.float64) for s in ((count, H), (vocab, H), (vocab,))
    )
    bias = bias if biased else None
    projected = cpu_kernels.project(hidden, weight, bias)
    torch.testing.assert_close(projected, linear(hidden, weight, bias), rtol=1e-12, atol=1e-12)


class Sharded(torch.Tensor):
    """Stands for a DTensor: a weight that is sharded over processes."""


@pytest.mark.parametrize(
    ("hidden", "weight"),
    [
        (randn(N, H), randn(9000, H).as_subclass(Sharded)),
        (randn(N, H), randn(9000, H, requires_grad=True)),
        (randn(cpu_kernels.MAX_ROWS + 1, H), randn(9000, H)),
        (randn(1, H), randn(9000, H)),
        (randn(2, N, H), randn(9000, H)),
        (randn(N, H), randn(cpu_kernels.MIN_VOCAB - 1, H)),
        (randn(N, H).bfloat16(), randn(9000, H).bfloat16()),
    ],
)
def test_everything_else_goes_torchs_way(hidden, weight, monkeypatch):
    monkeypatch.setattr(torch, "mm", lambda *_, **__: pytest.fail("by tiles"))
    torch.testing.assert_close(
        torch.Tensor(cpu_kernels.project(hidden, weight).detach()),
        torch.Tensor(linear(hidden, weight).detach()),
    )


@pytest.mark.parametrize("count", [N, cpu_kernels.MIN_ROWS])
def test_tiles_of_any_size_give_the_whole_product(count, monkeypatch):
    products, mm = [], torch.mm

    def counted(*args, **kwargs):
        products.append(mm(*args, **kwargs))
        return products[-1]

    monkeypatch.setattr(torch, "mm", counted)
    monkeypatch.setattr(cpu_kernels, "TILE_BYTES", 700 * H * 4)
    hidden, weight = randn(count, H), randn(9000, H)
    torch.testing.assert_close(
        cpu_kernels.project(hidden, weight), linear(hidden, weight), rtol=1e-4, atol=1e-4
    )
    assert len(products) == math.ceil(9000 / (700 * torch.get_num_threads()))


def test_where_a_gradient_is_wanted_there_is_one():
    hidden, weight = randn(N, H, requires_grad=True), randn(9000, H, requires_grad=True)
    cpu_kernels.project(hidden, weight).sum().backward()
    torch.testing.assert_close(
        hidden.grad, weight.detach().sum(0).expand(N, -1), rtol=1e-4, atol=1e-3
    )
    with torch.no_grad():
        assert not cpu_kernels.project(hidden, weight).requires_grad


def test_no_positions_give_no_logits():
    assert cpu_kernels.project(randn(0, H), randn(9000, H)).shape == (0, 9000)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**20), k=st.integers(1, 16), vocab=st.sampled_from([8192, 8200, 9001]))
def test_the_largest_by_blocks_are_the_largest(seed, k, vocab):
    torch.manual_seed(seed)
    values = randn(3, vocab).mul(4).round() if seed % 2 else randn(3, vocab)
    values[0, -3:] = 99.0  # what no whole block holds
    values[1, :-2] = -torch.inf  # as many impossible tokens as can be
    best, indices = cpu_kernels.topk(values, k)
    torch.testing.assert_close(best, values.topk(k).values)
    torch.testing.assert_close(values.gather(1, indices), best)
    assert all(len(set(row)) == k for row in indices.tolist())


def test_a_nan_is_seen():
    values = randn(2, 9000)
    values[1, 4321] = torch.nan
    assert cpu_kernels.topk(values, 4)[0].isnan().any(1).tolist() == [False, True]
