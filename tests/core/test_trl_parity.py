"""Value and gradient against TRL's loss functions, wherever both define the same thing.

Run as a script, it prints the table. TRL is not a dependency: without it everything here skips.
"""

import os
import sys
from dataclasses import dataclass

import pytest
import torch

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
trl = pytest.importorskip("trl")

from trl.experimental.gkd.gkd_trainer import GKDTrainer  # noqa: E402
from trl.experimental.iw_opd.iw_opd_trainer import IWOPDTrainer  # noqa: E402
from trl.experimental.sdpo import loss_utils as sdpo  # noqa: E402
from trl.trainer.distillation_trainer import _chunked_divergence_loss  # noqa: E402

from opd.core import losses  # noqa: E402
from opd.core.distributions import DenseDistribution  # noqa: E402
from opd.core.objective import CompletionTokens, Objective  # noqa: E402

N, V, H, K = 12, 30, 8, 4
AGREEMENT = 1e-6


def _random(seed, *shape):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


STUDENT = 2 * _random(0, N, V)
TEACHER = STUDENT + 1.5 * _random(1, N, V)
TARGETS = torch.arange(N) % V


@dataclass(frozen=True)
class Row:
    theirs: str
    ours: str
    value: float
    gradient: float


def positions():
    n = torch.zeros(N, dtype=torch.float64)
    top = STUDENT.topk(K).indices, TEACHER.topk(K).indices
    return CompletionTokens(TARGETS, *top, n, torch.arange(N), None, None, torch.ones_like(n))


def compare(theirs, ours, of_trl, objective, *, temperature=1.0, value=True):
    """Largest difference of values and of gradients, on one input.

    Per position where TRL gives that; else of the mean over positions.
    """
    a, b = STUDENT.clone().requires_grad_(), STUDENT.clone().requires_grad_()
    expected = of_trl(a)
    teacher = DenseDistribution(TEACHER, temperature)
    got = objective.per_position(DenseDistribution(b, temperature), teacher, positions())
    if expected.dim() == 0:
        got = got.mean()
    expected.sum().backward()
    got.sum().backward()
    assert a.grad.abs().max() > 1e-2
    apart = (got - expected).abs().max().item() if value else float("nan")
    return Row(theirs, ours, apart, (a.grad - b.grad).abs().max().item())


def ours_for(beta):
    if beta in (0, 1):
        return {"divergence": "reverse_kl" if beta else "forward_kl"}
    return {"divergence": "jsd", "beta": beta}


def full_rows():
    for beta, temperature in [(0, 1.0), (0.1, 1.0), (0.5, 1.0), (0.9, 2.0), (1, 1.0), (1, 0.7)]:
        kind = ours_for(beta)

        def gkd(x, beta=beta, temperature=temperature):
            return GKDTrainer.generalized_jsd_loss(
                x, TEACHER, beta=beta, temperature=temperature, reduction="none"
            ).sum(-1)

        yield compare(
            f"GKD generalized_jsd_loss, beta={beta}, temperature={temperature}",
            f"full {kind['divergence']}",
            gkd,
            Objective(support="full", **kind),
            temperature=temperature,
        )


def chunked_rows():
    """The stable trainer's loss, fp32 inside, on hidden states: an identity head."""
    eye = torch.eye(V, dtype=torch.float64)
    for beta in (0.0, 0.5, 1.0):

        def stable(x, beta=beta):
            mask = torch.ones(1, N)
            loss, _, _ = _chunked_divergence_loss(
                x[None], TEACHER[None], eye, eye, mask, beta, num_items_in_batch=N
            )
            return loss

        kind = ours_for(beta)
        yield compare(
            f"DistillationTrainer chunked divergence, beta={beta}",
            f"full {kind['divergence']}",
            stable,
            Objective(support="full", **kind),
        )


def topk_rows():
    supports = {0: "teacher_topk", 0.5: "union", 1: "student_topk"}
    for beta, support in supports.items():
        for tail in (True, False):
            kind, mode = ours_for(beta), "tail" if tail else "paper"

            def iw(x, beta=beta, tail=tail):
                return IWOPDTrainer.generalized_jsd_loss(
                    x, TEACHER, beta=beta, top_k=K, add_tail=tail, reduction="none"
                ).sum(-1)

            yield compare(
                f"IW-OPD top_k={K}, beta={beta}, add_tail={tail}",
                f"{support} {kind['divergence']}, mode {mode}",
                iw,
                Objective(support=support, k=K, mode=mode, **kind),
            )
    for alpha in (0.0, 0.3, 1.0):
        for tail in (True, False):
            kind, mode = ours_for(alpha), "tail" if tail else "paper"

            def self_distillation(x, alpha=alpha, tail=tail):
                return sdpo.compute_topk_self_distillation_loss(
                    x,
                    TEACHER,
                    distillation_topk=K,
                    distillation_alpha=alpha,
                    distillation_add_tail=tail,
                )

            yield compare(
                f"SDPO top-k, alpha={alpha}, add_tail={tail}",
                f"student_topk {kind['divergence']}, mode {mode}",
                self_distillation,
                Objective(k=K, mode=mode, **kind),
            )


def sampled_row():
    def sampled(x):
        return sdpo.compute_sampled_token_self_distillation_loss(
            x[None], TEACHER[None], TARGETS[None], distillation_alpha=1.0
        )[0]

    return compare(
        "SDPO sampled_token (gradient; its value is not a KL)",
        "sampled, k1",
        sampled,
        Objective(support="sampled"),
        value=False,
    )


def rows():
    return [*full_rows(), *chunked_rows(), *topk_rows(), sampled_row()]


def test_values_and_gradients_agree():
    table = rows()
    assert len(table) == 22
    for row in table:
        assert not row.value > AGREEMENT, row
        assert row.gradient < AGREEMENT, row


def test_tail_bucket_agrees():
    logp = STUDENT.log_softmax(-1)[:, :K]
    apart = (losses.with_tail(logp) - sdpo.add_tail_bucket(logp)).abs().max()
    assert apart < AGREEMENT


def test_a_wrong_direction_would_be_noticed():
    wrong = compare(
        "reverse",
        "forward",
        lambda x: GKDTrainer.generalized_jsd_loss(x, TEACHER, beta=1, reduction="none").sum(-1),
        Objective(support="full", divergence="forward_kl"),
    )
    assert wrong.value > 1e-2
    assert wrong.gradient > 1e-2


def table():
    lines = [f"| TRL {trl.__version__} | opd | value differs by | gradient differs by |"]
    lines.append("|---|---|---|---|")
    for row in rows():
        value = "-" if row.value != row.value else f"{row.value:.1e}"
        lines.append(f"| {row.theirs} | {row.ours} | {value} | {row.gradient:.1e} |")
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    sys.stdout.write(table())
