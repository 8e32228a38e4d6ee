"""The chunked pass and the row-wise head against plain dense autograd."""

from __future__ import annotations

import pytest
import torch

from opd.core import chunked
from opd.core.chunked import chunked_sum
from opd.models.head import Head, HeadDistribution


def problem(seed=0, n=11, h=6, v=17, dtype=torch.float64):
    g = torch.Generator().manual_seed(seed)
    hidden = torch.randn(n, h, generator=g, dtype=dtype, requires_grad=True)
    weight = torch.randn(v, h, generator=g, dtype=dtype, requires_grad=True)
    bias = torch.randn(v, generator=g, dtype=dtype, requires_grad=True)
    return hidden, weight, bias, torch.randint(0, v, (n, 4), generator=g)


def set_chunk(monkeypatch, elements):
    """On every kind of device."""
    for name in ("CHUNK_ELEMENTS", "ACCELERATOR_CHUNK_ELEMENTS"):
        monkeypatch.setattr(chunked, name, elements)


@pytest.mark.parametrize("chunk", [1, 3, 100])
@pytest.mark.parametrize("with_bias", [True, False])
def test_chunked_sum_equals_dense_value_and_gradient(monkeypatch, chunk, with_bias):
    hidden, weight, bias, ids = problem()
    used = bias if with_bias else None
    set_chunk(monkeypatch, 17 * chunk)

    def loss(raw, part):
        logp = raw.log_softmax(-1)
        return (logp.exp() * logp).sum(-1) + logp.gather(1, ids[part]).prod(-1)

    inputs = [hidden, weight, bias] if with_bias else [hidden, weight]
    dense = loss(torch.nn.functional.linear(hidden, weight, used), slice(None)).sum()
    expected = torch.autograd.grad(3 * dense, inputs)
    value = chunked_sum(loss, hidden, weight, used)
    torch.testing.assert_close(value, dense)
    for got, want in zip(torch.autograd.grad(3 * value, inputs), expected, strict=True):
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize("block", [1, 3, 100])
def test_the_teachers_logits_are_those_of_the_rows_at_hand(monkeypatch, block):
    hidden, weight, bias, _ = problem()
    theirs = torch.randn(11, 17, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    set_chunk(monkeypatch, 17 * 4)
    monkeypatch.setattr(chunked, "CPU_BLOCK_ELEMENTS", 17 * block)
    parts, asked = [], []

    def loss(raw, part, teacher):
        parts.append(range(11)[part])
        return (raw.softmax(-1) * teacher).sum(-1)

    def teacher(part):
        asked.append(range(11)[part])
        return theirs[part]

    dense = loss(torch.nn.functional.linear(hidden, weight, bias), slice(None), theirs).sum()
    expected = torch.autograd.grad(dense, [hidden, weight, bias])
    parts.clear()
    value = chunked_sum(loss, hidden, weight, bias, teacher)
    torch.testing.assert_close(value, dense)
    for got, want in zip(torch.autograd.grad(value, [hidden, weight, bias]), expected, strict=True):
        torch.testing.assert_close(got, want)
    assert [i for part in parts for i in part] == list(range(11))
    assert [len(part) for part in asked] == [4, 4, 3], "once a chunk, however small the blocks"


def test_zero_positions_give_zero_with_a_graph():
    hidden, weight, _, _ = problem()
    value = chunked_sum(lambda raw, part: raw.sum(-1), hidden[:0], weight, None)
    assert value.item() == 0
    assert (torch.autograd.grad(value, weight)[0] == 0).all()


def test_a_frozen_head_gets_no_gradient():
    hidden, weight, _, _ = problem()
    value = chunked_sum(lambda raw, part: raw.sum(-1), hidden, weight.detach(), None)
    (grad,) = torch.autograd.grad(value, hidden)
    torch.testing.assert_close(grad, weight.detach().sum(0).expand_as(hidden))


@pytest.mark.parametrize(("scale", "softcap"), [(1.0, None), (0.3, None), (1.0, 5.0)])
@pytest.mark.parametrize("chunk", [24, 10**6])
def test_rows_equal_the_gathered_dense_logits(monkeypatch, scale, softcap, chunk):
    hidden, weight, bias, ids = problem(1)
    monkeypatch.setattr("opd.models.head.GATHER_ELEMENTS", chunk)
    head = Head(weight, bias, vocab=15, scale=scale, softcap=softcap)
    ids = ids.clamp(max=14)
    g = torch.randn(ids.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    dense = head.logits(hidden)
    assert dense.shape == (11, 15)
    want = torch.autograd.grad((g * dense.gather(1, ids)).sum(), (hidden, weight, bias))
    rows = head.logits_of(hidden, ids)
    torch.testing.assert_close(rows, dense.gather(1, ids))
    got = torch.autograd.grad((g * rows).sum(), (hidden, weight, bias))
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b)


def test_rows_of_a_bf16_head_are_computed_wide():
    hidden, weight, _, ids = problem(3, dtype=torch.float32)
    narrow = Head(weight.bfloat16(), None, vocab=17)
    rows = HeadDistribution(narrow, hidden.bfloat16()).scores(ids)
    exact = (hidden.bfloat16().double() @ weight.bfloat16().double().T).gather(1, ids)
    assert rows.dtype == torch.float32
    torch.testing.assert_close(rows.double(), exact, atol=1e-5, rtol=0)  # bf16 would be off by 1e-2
