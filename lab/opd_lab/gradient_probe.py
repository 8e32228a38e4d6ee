"""How the gradients of single positions add up: whether they agree or cancel."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from opd.core import losses
from opd.core.batch import Batch
from opd.core.distributions import DenseDistribution
from opd_lab.probes import Model, load_task, sample_and_score
from opd_lab.runs import Task, one_thread

RESPONSES = 32  # one per prompt


@dataclass(frozen=True)
class Coherence:
    """Sums of per-position gradients of the reverse KL, at the student as it is.

    Attributes:
        batch: norm of the sum over all positions / sum of their norms; 1: all point the same way.
        response: the same over the positions of one response, mean over responses.
        against_chance: norm of the sum / root of the sum of squares: 1 for orthogonal gradients,
            below 1 where they cancel.
        norm: mean norm of a position's gradient.
    """

    batch: float
    response: float
    against_chance: float
    norm: float


def measure_coherence(
    student: Path, teacher: Path, task: Task, *, seed: int, cache: Path
) -> Coherence:
    """Gradients of the full reverse KL at every position of student rollouts on held-out prompts.

    The whole distribution is compared, so that no position's gradient depends on which token was
    sampled there.

    Args:
        student: samples the rollouts; the gradient is that of its weights.
        teacher: scores them.
        task: held-out problems, of which the first `RESPONSES` are used.
        seed: of the samples.
        cache: where prompts are kept.
    """
    pair = Model.load(student), Model.load(teacher)
    prompts = load_task(task, pair[0], seed, cache).prompts[:RESPONSES]
    with one_thread():
        with torch.no_grad():
            rollouts, scores = sample_and_score(pair, prompts, task.max_new_tokens, 1, seed=seed)
        batch = Batch(rollouts, scores)
        total, norms, ratios = torch.zeros(0), list[float](), list[float]()
        for row in range(len(rollouts)):
            gradients = torch.stack([*position_gradients(pair, batch, row)])
            own = gradients.norm(dim=1)
            ratios.append(float(gradients.sum(0).norm() / own.sum()))
            norms += own.tolist()
            total = gradients.sum(0) + (total if len(total) else 0.0)
    sums, size = np.array(norms), float(total.norm())
    return Coherence(
        batch=size / float(sums.sum()),
        response=float(np.mean(ratios)),
        against_chance=size / float(np.sqrt((sums**2).sum())),
        norm=float(sums.mean()),
    )


def position_gradients(pair: tuple[Model, Model], batch: Batch, row: int) -> Iterator[Tensor]:
    """The flat gradient of each position of one rollout."""
    student, teacher = pair[0].lm, pair[1].lm
    micro = batch.microbatch([row], student.device, k=1)
    assert micro.teacher_hidden is not None
    student.model.requires_grad_(True)
    hidden = student.hidden(micro.input_ids)[micro.rows, micro.cols][micro.diagnosed]
    p = DenseDistribution(student.head.logits(hidden)).log_probs()
    with torch.no_grad():
        q = DenseDistribution(teacher.head.logits(micro.teacher_hidden)).log_probs()
    weights = [w for w in student.model.parameters() if w.requires_grad]
    for position in losses.reverse_kl(p, q):
        parts = torch.autograd.grad(position, weights, retain_graph=True, allow_unused=True)
        yield torch.cat([part.flatten() for part in parts if part is not None])
