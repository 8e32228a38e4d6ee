"""The paper's diagnostics on a step's micro-batches, as far as the teacher allows.

Shapes: N completion tokens of a micro-batch, n of them diagnosed, H hidden width, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor

from opd.core import diagnostics
from opd.core.batch import MicroBatch
from opd.core.chunked import chunk_slices, row_blocks
from opd.core.cpu_kernels import topk
from opd.core.diagnostics import Measure, TopK
from opd.core.distributions import DenseDistribution, logp
from opd.run.metric_names import POSITIONAL
from opd.training.learner import Learner
from opd.types import Metrics, add_means

# The teacher's mass on the tokens on which the loss renormalises it. With little of it, the student
# is taught a preference among tokens that the teacher does not want.
LOSS_TEACHER_MASS = "diag/loss_teacher_mass"


@torch.no_grad()
def diagnose(learner: Learner, micro: MicroBatch, hidden: Tensor) -> Metrics:
    """Diagnostics of the chosen positions.

    A teacher in this process gives hidden states, hence everything; a server gives its own top k,
    hence exact overlaps, bounds for the rest, and no truncated quantity under a full one's name.

    Student hidden states (N, H) are those of the training forward, before the update: the student
    that is diagnosed is exactly the one whose gradient is taken.
    """
    metrics: Metrics = {}
    logits_of = learner.logits_of(micro.teacher_name)
    complete = micro.teacher_hidden is not None and logits_of is not None
    if not complete and not _has_topk(learner, micro):
        return metrics
    head = learner.student.head
    # Twice the vocabulary: the logits of both models are there at once.
    for part in chunk_slices(len(micro.diagnosed), 2 * head.vocab, hidden.device):
        index = micro.diagnosed[part]
        logits, teacher_logits = head.logits(hidden[index]), None
        if complete:
            assert logits_of is not None
            assert micro.teacher_hidden is not None
            teacher_logits = logits_of(micro.teacher_hidden[part])
        values = _measure(learner, micro, index, logits, teacher_logits)
        if not complete:
            values |= _known_loss_mass(learner, micro, index)
        add_means(metrics, diagnostics.overall(values))
        at = (micro.tokens.position[index], micro.length[index])
        binned = {name: values[name] for name in POSITIONAL if name in values}
        add_means(metrics, diagnostics.by_bin(binned, *at, edges=learner.position_edges))
    return metrics


def _measure(
    learner: Learner,
    micro: MicroBatch,
    index: Tensor,
    logits: Tensor,
    teacher_logits: Tensor | None,
) -> dict[str, Measure]:
    """Measures of some positions, from the student's logits and, where known, the teacher's."""
    temperature = learner.objective.sampling_temperature
    blocks = []
    for rows in row_blocks(logits):  # elementwise work in cache
        view, at = DenseDistribution(logits[rows]), index[rows]
        targets = micro.tokens.targets[at]
        if teacher_logits is None:
            values = _measure_topk(learner, micro, view.log_probs(), at)
        else:
            own = DenseDistribution(teacher_logits[rows])
            k = learner.diagnostics_k
            values = diagnostics.full_metrics(
                view.log_probs(), own.log_probs(), k=k, targets=targets
            )
            if learner.objective.renormalises_teacher:
                if learner.teacher_temperature != 1:
                    own = DenseDistribution(teacher_logits[rows], learner.teacher_temperature)
                q = logp(own, micro.tokens.student_topk[at])
                values[LOSS_TEACHER_MASS] = Measure.of(q.exp().sum(-1))
        sampling = view if temperature == 1 else DenseDistribution(logits[rows], temperature)
        sampled_logp = logp(sampling, targets[:, None]).squeeze(1)
        values |= diagnostics.drift_metrics(sampled_logp, micro.tokens.sampler_logp[at])
        blocks.append(values)
    return diagnostics.concatenate(blocks)


def _known_loss_mass(learner: Learner, micro: MicroBatch, index: Tensor) -> dict[str, Measure]:
    """`diag/loss_teacher_mass` from a server's normalised scores of the student's tokens."""
    if not learner.objective.renormalises_teacher or micro.teacher is None:
        return {}
    if micro.teacher.normaliser is None:
        return {}
    q = logp(micro.teacher, micro.tokens.student_topk)[index]
    return {LOSS_TEACHER_MASS: Measure.of(q.exp().sum(-1))}


def _has_topk(learner: Learner, micro: MicroBatch) -> bool:
    """Whether the teacher sent enough of its own top tokens, at the temperature diagnosed."""
    ids = micro.tokens.teacher_topk
    wide = ids is not None and ids.shape[1] >= learner.diagnostics_k
    return wide and learner.teacher_temperature == 1.0


def _measure_topk(
    learner: Learner, micro: MicroBatch, student: Tensor, index: Tensor
) -> dict[str, Measure]:
    """Measures from the teacher's top k, and from its exact entropies where it sent them."""
    assert micro.tokens.teacher_topk is not None
    assert micro.teacher_topk_logp is not None
    k = learner.diagnostics_k
    student_logp, student_ids = topk(student, k)
    teacher = TopK(micro.tokens.teacher_topk[index, :k], micro.teacher_topk_logp[index, :k])
    values = diagnostics.topk_metrics(TopK(student_ids, student_logp), teacher)
    entropy = diagnostics.entropy(student)
    values["diag/student_entropy"] = Measure.of(entropy)
    if micro.tokens.teacher_entropy is not None:
        teacher_entropy = micro.tokens.teacher_entropy[index]
        values["diag/teacher_entropy"] = Measure.of(teacher_entropy)
        values["diag/entropy_gap_abs"] = Measure.of((teacher_entropy - entropy).abs())
    return values
