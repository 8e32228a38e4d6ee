"""Rollouts of an earlier student, weighted: the expected gradient, by enumeration in float64."""

import numpy as np
import pytest
import torch
from estimator_table import (
    COMPLETIONS,
    INDEX,
    TABLE,
    TEACHER_TABLE,
    enumerated,
    grad,
    positions,
    probs,
    reach,
)

from opd.core.batch import Batch
from opd.core.distributions import DenseDistribution
from opd.core.importance import importance_metrics, importance_weights, prefix_log_ratios
from opd.core.objective import Objective
from opd.training.ahead import ahead_metrics, weigh
from opd.types import Rollout

EARLIER = TABLE + 0.4 * torch.randn(
    TABLE.shape, generator=torch.Generator().manual_seed(8), dtype=torch.float64
)
OBJECTIVES = [
    Objective(support="sampled"),
    Objective(support="sampled", estimator="k3_forward"),
    Objective(k=2),
    Objective(k=2, mode="tail"),
    Objective(support="full", divergence="forward_kl"),
]


def logp_of(table, y):
    rows = [table[INDEX[y[:t]]].log_softmax(-1)[y[t]] for t in range(len(y))]
    return torch.stack(rows).cpu().numpy()


def from_earlier(objective, *, clip):
    """Expected gradient over completions that the earlier student samples."""

    def loss(theta):
        frozen, total = probs(EARLIER), 0.0
        for y in COMPLETIONS:
            rows = [INDEX[y[:t]] for t in range(len(y))]
            tokens = positions(
                len(y), torch.tensor(y), TABLE[rows], TEACHER_TABLE[rows], objective.k
            )
            ratios = prefix_log_ratios(
                logp_of(TABLE, y), logp_of(EARLIER, y), own_token=objective.support == "sampled"
            )
            weight = np.exp(ratios) if clip is None else importance_weights(ratios, clip=clip)
            tokens = tokens._replace(weight=torch.tensor(weight, dtype=torch.float64))
            scored = DenseDistribution(TEACHER_TABLE[rows])
            values = objective.per_position(DenseDistribution(theta[rows]), scored, tokens)
            total = total + reach(frozen, y) * values.sum()
        return total

    return grad(loss, TABLE)


@pytest.mark.parametrize(
    "objective", OBJECTIVES, ids=lambda o: f"{o.support}-{o.mode}-{o.estimator}"
)
def test_the_gradient_from_an_earlier_student_is_that_of_the_student_itself(objective):
    want = enumerated(objective)
    assert want.abs().max() > 0.05
    assert (from_earlier(objective, clip=None) - want).abs().max() < 1e-12
    far = from_earlier(objective, clip=1e6)  # as in training: float32 weights
    assert (far - want).abs().max() < 1e-6
    unweighted = (from_earlier(objective, clip=1e-9) / 1e-9 - want).abs().max()
    assert unweighted > 1e-2  # without weights it is another one


def test_a_ratio_is_cut_from_above_alone():
    ratios = np.log(np.array([0.01, 1.0, 1.9, 2.1, 50.0]))
    assert importance_weights(ratios).tolist() == pytest.approx([0.01, 1, 1.9, 2, 2], rel=1e-6)
    metrics = importance_metrics([ratios[:2], ratios[2:]])
    assert metrics["ahead/clipped"].value == pytest.approx(0.4)
    assert metrics["ahead/weight"].value == pytest.approx((0.01 + 1 + 1.9 + 2 + 2) / 5, rel=1e-6)
    r = np.exp(ratios)
    assert metrics["ahead/ess"].value == pytest.approx(r.sum() ** 2 / (5 * (r**2).sum()))


def test_a_ratio_without_bounds_stays_finite():
    ratios = np.array([0.0, 5000.0, -5000.0])
    assert importance_weights(ratios).tolist() == [1, 2, 0]
    assert importance_metrics([ratios])["ahead/ess"].value == pytest.approx(1 / 3)
    assert importance_metrics([]) == {}


def rollout(logp, version=3):
    ids = np.arange(len(logp), dtype=np.int32)
    made = Rollout.of_ids([5], ids, topk_ids=np.zeros((len(ids), 2), np.int32), finish="stop")
    return Rollout(
        made.prompt, 0, ids, np.array(logp, np.float32), made.entropy, made.topk_ids,
        made.topk_logp, "stop", version,
    )  # fmt: skip


def test_weights_are_multiplied_into_a_batch():
    batch = Batch([rollout([-1.0, -1.0, -2.0])], weights=[np.array([1, 0, 0.5], np.float32)])
    now = [np.array([-0.5, -1.5, -2.0], np.float32)]
    by_prefix = weigh(batch, now, Objective(k=4))
    assert by_prefix.weights[0] == pytest.approx([1, 0, 0.5])
    assert by_prefix.log_ratios[0] == pytest.approx([0, 0.5, 0])
    by_token = weigh(batch, now, Objective(support="sampled"))
    assert by_token.weights[0] == pytest.approx([np.exp(0.5), 0, 0.5], rel=1e-6)
    assert ahead_metrics(by_token, 4)["ahead/steps"].value == 1
    assert ahead_metrics(batch, 4) == {}
