"""The memory that the cost table names by part."""

import torch

from opd.models.master_weights import add_master_weights
from opd.recipes.check.cost import estimate_memory
from opd.training.int8_moments import state_bytes


def test_parts_of_mixed_precision_are_those_that_a_run_holds(make_lm):
    student = make_lm(0, dtype=torch.float32)
    count = sum(p.numel() for p in student.parameters().values())
    plain = estimate_memory(student, None)
    assert plain == {
        "student weights": 4 * count,
        "gradients": 4 * count,
        "optimizer moments": 8 * count,
    }
    add_master_weights(student)
    mixed = estimate_memory(student, None)
    assert mixed == plain | {"student weights": 2 * count, "master weights": 4 * count}
    small = estimate_memory(student, None, int8=True)["optimizer moments"]
    assert small == sum(state_bytes(w.numel()) for w in student.weights().values())
