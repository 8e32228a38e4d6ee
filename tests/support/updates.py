"""One optimizer step on a tiny pair: batches, learners, gradients, and memory that runs out."""

from __future__ import annotations

import copy

import numpy as np
import torch

from opd.config import Optim
from opd.core.batch import Batch
from opd.core.objective import Objective
from opd.models.lm import LM
from opd.models.prefix_cache import supports_prefix_cache
from opd.samplers.decoding import Decoding
from opd.samplers.hf import HFSampler
from opd.teachers.local import LocalTeacher
from opd.training.learner import Learner
from opd.training.optimizer import make_optimizer

CPU_OOM = "[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: 9 bytes"
FLOAT64_SUM = 1e-9  # float64 sums in another order; Adam turns a gradient of 0 into up to lr

OBJECTIVES = {
    "paper": Objective(k=4),
    "tail": Objective(k=4, mode="tail"),
    "reference": Objective(k=4, mode="reference"),
    "teacher": Objective(k=4, support="teacher_topk"),
    "union": Objective(k=4, support="union"),
    "sampled": Objective(k=4, support="sampled"),
    "full": Objective(k=4, support="full"),
    "jsd": Objective(k=4, support="full", divergence="jsd"),
    "entropy": Objective(k=4, entropy_forward_kl=0.5),
}


def experience(student, teacher, objective, prompts, seed=0):
    rollouts = HFSampler(student, Decoding(9), stop=frozenset({1}), capture=4).sample(
        prompts, n=3, key=(seed,)
    )
    full = [np.arange(len(r)) for r in rollouts]
    scores = LocalTeacher(teacher).score(rollouts, objective.want._replace(full=full))
    return Batch(rollouts, scores)


def learner_of(student, teacher, objective, *, budget=10**6, **optim):
    optim = Optim(**({"lr": 0.01} | optim))
    supports_prefix_cache(student)  # decided before the first step, as `make_learner` does
    return Learner(
        student=student,
        optimizer=make_optimizer(student, optim),
        objective=objective,
        optim=optim,
        tokens_per_microbatch=budget,
        teacher_logits=teacher.head.logits,
        teacher_temperature=1.0,
        diagnostics_k=4,
        position_edges=[0, 4, 9],
    )


def clone(lm):
    return LM(copy.deepcopy(lm.model), lm.vocab, lm.name)


def gradients(student):
    return {n: p.grad.clone() for n, p in student.parameters().items()}


def close(gradients, expected):
    assert gradients.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(gradients[name], value, atol=FLOAT64_SUM, rtol=FLOAT64_SUM)


def run_out_of_memory(student, error, rows, where):
    """Every pass with more than `rows` sequences fails, in the forward or late in the backward."""
    layer = student.causal.base_model.layers[0]
    seen = []

    def forward(module, given):
        seen.append(len(given[0]))
        if len(given[0]) > rows:
            raise error

    def backward(module, grad_input, grad_output):
        seen.append(len(grad_output[0]))
        if len(grad_output[0]) > rows:
            raise error

    if where == "forward":
        layer.register_forward_pre_hook(forward)
    else:
        layer.register_full_backward_hook(backward)
    return seen
