"""Chunks tile both sides; their advantages are the gradient of what docs/math.md says."""

from __future__ import annotations

from itertools import accumulate
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from core.alignment_table import TOYS, measure, table
from opd.core import losses
from opd.core.alignment import LEFT_OUT, align, chunk_of_tokens, effective_logq
from opd.core.distributions import DenseDistribution, KnownScores
from opd.core.objective import CompletionTokens, Objective
from opd.errors import UserError

LENGTHS = st.lists(st.integers(0, 4), min_size=1, max_size=12)


def both(first: list[int], second: list[int]) -> tuple[list[int], list[int]]:
    """Ends of two tokenizations of one text: the shorter gets one token for the rest."""
    total = max(sum(first), sum(second))
    return tuple(list(accumulate([*x, total - sum(x)])) for x in (first, second))


@given(LENGTHS, LENGTHS)
def test_chunks_tile_both_sides_and_none_could_be_shorter(first, second):
    student, teacher = both(first, second)
    chunks = align(student, teacher)
    for side, ends in ((0, student), (1, teacher)):
        covered = [i for chunk in chunks for i in range(chunk[side].start, chunk[side].stop)]
        assert covered == list(range(len(ends)))
    for chunk in chunks[:-1]:
        end = student[chunk.student.stop - 1]
        assert end == teacher[chunk.teacher.stop - 1]
    for chunk in chunks:
        inner = [set(ends[part.start : part.stop - 1]) for ends, part in
                 ((student, chunk.student), (teacher, chunk.teacher))]  # fmt: skip
        last = student[chunk.student.stop - 1]
        start = student[chunk.student.start - 1] if chunk.student.start else 0
        common = {e for e in inner[0] & inner[1] if start < e < last}
        assert not common
    numbers = chunk_of_tokens(chunks, len(student) + 2)
    assert (numbers[-2:] == LEFT_OUT).all()
    assert (np.diff(numbers[:-2]) >= 0).all()


def test_texts_of_two_lengths_are_refused():
    with pytest.raises(ValueError, match="do not spell the same text"):
        align([1, 2], [1, 3])


@given(LENGTHS, LENGTHS, st.integers(0, 2**31))
def test_the_advantages_of_all_chunks_are_the_log_ratio_of_the_text(first, second, seed):
    student, teacher = both(first, second)
    rng = np.random.default_rng(seed)
    logp, logq = -rng.random(len(student)), -rng.random(len(teacher))
    chunks = align(student, teacher)
    advantage = effective_logq(chunks, logp, logq) - logp
    each = [advantage[c.student] for c in chunks if c.student.stop > c.student.start]
    assert all(np.allclose(x, x[0]) for x in each)
    if all(c.student.stop > c.student.start for c in chunks):
        assert np.isclose(sum(x[0] for x in each), logq.sum() - logp.sum())


@pytest.mark.parametrize("toy", TOYS, ids=lambda toy: toy.name)
def test_value_and_gradient_by_enumeration(toy):
    result = measure(toy)
    assert result.value_error < 1e-12
    assert result.error < 1e-12
    assert result.own > 0.1
    assert result.later > 0.1
    causal = toy.name != "merges across chunks"
    assert (result.earlier < 1e-12) is causal
    assert (result.chunk_error is not None) is causal
    assert result.chunk_error is None or result.chunk_error < 1e-12


def test_the_page_shows_the_table_as_it_is():
    page = (Path(__file__).parents[2] / "docs" / "math.md").read_text("utf-8")
    rows = [line.split("|")[1:7] for line in table().splitlines()[2:]]
    for row in rows:
        stable = [row[0], row[1], *row[3:6]]  # errors differ in the last digit of a machine
        assert any(
            [*line.split("|")[1:3], *line.split("|")[4:7]] == stable
            for line in page.splitlines()
            if line.count("|") == 9
        ), row


def tokens_of(n: int, k: int, shared: torch.Tensor) -> CompletionTokens:
    gen = torch.Generator().manual_seed(0)
    topk = torch.stack([torch.randperm(20, generator=gen)[:k] for _ in range(n)])
    return CompletionTokens(
        targets=topk[:, 0],
        student_topk=topk,
        teacher_topk=None,
        sampler_logp=torch.zeros(n),
        position=torch.arange(n),
        teacher_entropy=None,
        advantage=None,
        weight=torch.tensor([1.0, 1.0, 1.0, 0.0])[:n],
        shared=shared,
    )


@pytest.mark.parametrize("mode", ["paper", "tail"])
def test_one_to_one_positions_get_the_divergence_on_shared_tokens_others_k1(mode):
    n, k = 4, 5
    shared = torch.tensor([[1, 0, 1, 1, 0], [0] * 5, [1] * 5, [1] * 5])
    tokens = tokens_of(n, k, shared)
    gen = torch.Generator().manual_seed(1)
    logits = torch.randn(n, 20, generator=gen, dtype=torch.float64).requires_grad_()
    support = torch.randn(n, k, generator=gen, dtype=torch.float64) - 4
    sampled = torch.randn(n, 1, generator=gen, dtype=torch.float64) - 2
    teacher = KnownScores(
        [(tokens.student_topk, support), (tokens.targets[:, None], sampled)], torch.zeros(n)
    )
    objective = Objective(k=k, mode=mode, other_tokenizer=True)
    assert objective.needs_normaliser
    assert objective.want.sampled
    got = objective.per_position(DenseDistribution(logits), teacher, tokens)
    p = logits.log_softmax(-1)
    expected = []
    for i in range(3):
        ids = tokens.student_topk[i][shared[i] > 0]
        if not len(ids):
            own = p[i, tokens.targets[i]]
            expected.append(losses.k1(own, sampled[i, 0]))
            continue
        mine, theirs = p[i, ids], support[i][shared[i] > 0]
        if mode == "paper":
            mine, theirs = mine.log_softmax(-1), theirs.log_softmax(-1)
        else:
            mine, theirs = losses.with_tail(mine), losses.with_tail(theirs)
        expected.append(losses.reverse_kl(mine, theirs))
    expected = torch.stack([*expected, torch.zeros((), dtype=torch.float64)])
    torch.testing.assert_close(got, expected)
    gradients = [
        torch.autograd.grad(x.sum(), logits, retain_graph=True)[0] for x in (got, expected)
    ]
    torch.testing.assert_close(*gradients)
    assert gradients[0][:3].abs().sum(-1).min() > 0


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"support": "union"}, "would compare tokens that the student does not have"),
        ({"mode": "reference"}, "chunks are trained by k1"),
        ({"support": "sampled", "estimator": "k2"}, "chunks are trained by k1"),
        ({"entropy_forward_kl": 0.5}, "need models of the student's tokens"),
        ({"sampling_truncated": True}, "biased when rollouts are truncated"),
    ],
)
def test_losses_that_text_cannot_give_are_refused(fields, match):
    with pytest.raises(UserError, match=match):
        Objective(**{"k": 4, "other_tokenizer": True} | fields)
