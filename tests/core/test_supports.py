"""Supports against Python sets, including empty and full overlap."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from opd.core.supports import candidates, contains

NAMES = ["student_topk", "teacher_topk", "intersection", "union", "symmetric_difference"]
OPERATIONS = {
    "student_topk": lambda s, t: s,
    "teacher_topk": lambda s, t: t,
    "intersection": lambda s, t: s & t,
    "union": lambda s, t: s | t,
    "symmetric_difference": lambda s, t: s ^ t,
}


def chosen(name, student, teacher):
    """The valid ids of each row, refusing a token that is valid twice."""
    targets = torch.zeros(len(student), dtype=torch.long)
    support = candidates(name, targets, torch.tensor(student), torch.tensor(teacher))
    rows = [ids[valid].tolist() for ids, valid in zip(*support, strict=True)]
    assert all(len(row) == len(set(row)) for row in rows)
    return [set(row) for row in rows]


@pytest.mark.parametrize("name", NAMES)
def test_hand_case_with_partial_empty_and_full_overlap(name):
    student = [[1, 2, 3], [1, 2, 3], [1, 2, 3]]
    teacher = [[3, 4, 1], [7, 8, 9], [3, 1, 2]]
    want = [OPERATIONS[name](set(s), set(t)) for s, t in zip(student, teacher, strict=True)]
    assert chosen(name, student, teacher) == want


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    name=st.sampled_from(NAMES),
    student=st.permutations(range(8)),
    teacher=st.permutations(range(8)),
    k=st.integers(1, 8),
)
def test_supports_are_set_operations(name, student, teacher, k):
    s, t = student[:k], teacher[:k]
    assert chosen(name, [s], [t]) == [OPERATIONS[name](set(s), set(t))]
    sizes = {n: len(chosen(n, [s], [t])[0]) for n in NAMES}
    assert sizes["union"] + sizes["intersection"] == 2 * k
    assert sizes["union"] - sizes["intersection"] == sizes["symmetric_difference"]


def test_sampled_is_the_drawn_token():
    ids, valid = candidates("sampled", torch.tensor([4, 2]), torch.zeros(2, 3).long(), None)
    assert ids.tolist() == [[4], [2]]
    assert valid.all()


def test_contains():
    got = contains(torch.tensor([[1, 2], [3, 4]]), torch.tensor([[2, 9, 9], [9, 9, 9]]))
    assert got.tolist() == [[False, True], [False, False]]


@pytest.mark.parametrize("name", ["full", "union"])
def test_what_has_no_candidates_is_an_error(name):
    with pytest.raises(ValueError, match=name):
        candidates(name, torch.zeros(1).long(), torch.zeros(1, 2).long(), None)
