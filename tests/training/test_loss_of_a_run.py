"""The loss and gradient that a run logs are those of the formulas, for every kind of loss.

The formulas stand here once more, over whole distributions of the two models in float64 and in
probability space, on the rollouts that the run left behind.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from opd.demo.run_config import PAIR
from opd.run.jsonl import read_jsonl
from opd.run.rollouts import read_step
from opd.types import Rollout
from support.runs import run_config, run_to_end

K = 16
EXACT = {"student": {"precision": "float64"}, "teacher": {"dtype": "float64"}}
TOLERANCE = 1e-5  # the norms of the pair are float32 whatever the dtype

Formula = Callable[[Tensor, Tensor, list[Rollout]], Tensor]  # log p, log q (N, V) -> loss (N,)


def in_top(log_probs: Tensor) -> Tensor:
    """(N, V) whether a token is among the K most probable."""
    return torch.zeros_like(log_probs).scatter(1, log_probs.topk(K).indices, 1).bool()


def only(log_probs: Tensor, support: Tensor) -> Tensor:
    """Probabilities renormalised on a support; 0 outside."""
    p = log_probs.exp() * support
    return p / p.sum(1, keepdim=True)


def kl(a: Tensor, b: Tensor) -> Tensor:
    """KL(a || b) of probabilities; 0 log 0 is 0."""
    inside = a > 0
    ratio = torch.where(inside, a, 1) / torch.where(inside, b, 1)
    return (a * ratio.log()).sum(1)


def student_topk(p: Tensor, q: Tensor, _: object) -> Tensor:
    return kl(only(p, in_top(p)), only(q, in_top(p)))


def scaled_reward(p: Tensor, q: Tensor, _: object) -> Tensor:
    reference = p.detach()  # the untrained student, which is the student of the first step
    return kl(only(p, in_top(p)), only(1.25 * q - 0.25 * reference, in_top(p)))


def with_forward_kl_where_uncertain(p: Tensor, q: Tensor, rollouts: list[Rollout]) -> Tensor:
    uncertain = -(q.exp() * q).sum(1) > 0.1
    assert uncertain.any()
    assert not uncertain.all()
    forward = (q.exp() * (q - p) * in_top(q)).sum(1)
    return student_topk(p, q, rollouts) + uncertain * forward


def decayed(p: Tensor, q: Tensor, rollouts: list[Rollout]) -> Tensor:
    position = torch.cat([torch.arange(len(r)) for r in rollouts])
    return 0.5**position * student_topk(p, q, rollouts)


def skewed(p: Tensor, q: Tensor, _: object) -> Tensor:
    a, b = only(p, in_top(p)), only(q, in_top(p))
    return kl(b, 0.1 * b + 0.9 * a)


def union_with_tail(p: Tensor, q: Tensor, _: object) -> Tensor:
    support = in_top(p) | in_top(q)
    inside = [x.exp() * support for x in (p, q)]
    rest = [(x.exp() * ~support).sum(1, keepdim=True) for x in (p, q)]
    a, b = (torch.cat(parts, 1) for parts in zip(inside, rest, strict=True))
    return kl(a, b)


def surrogate_on_difference(p: Tensor, q: Tensor, _: object) -> Tensor:
    advantage = (p.exp() * (q - p) * (in_top(p) ^ in_top(q))).detach()
    return -(advantage * (1 + p - p.detach())).sum(1)  # value -A, gradient -A grad log p


def squared(p: Tensor, q: Tensor, rollouts: list[Rollout]) -> Tensor:
    sampled = torch.cat([torch.as_tensor(r.ids).long() for r in rollouts])[:, None]
    return ((p - q).gather(1, sampled) ** 2 / 2)[:, 0]


def at_temperature_two(p: Tensor, q: Tensor, rollouts: list[Rollout]) -> Tensor:
    return student_topk((p / 2).log_softmax(1), (q / 2).log_softmax(1), rollouts)


def whole_vocabulary(p: Tensor, q: Tensor, _: object) -> Tensor:
    return kl(p.exp(), q.exp())


SCALED = {"reward_scale": 1.25, "reference": str(PAIR / "student")}
DIFFERENCE = {"support": "symmetric_difference", "mode": "reference"}
LOSSES: dict[str, tuple[Formula, dict]] = {
    "default": (student_topk, {}),
    "reward scale": (scaled_reward, {"loss": {"terms": SCALED}}),
    "entropy": (
        with_forward_kl_where_uncertain,
        {"loss": {"terms": {"entropy_forward_kl": 0.1}}},
    ),
    "decay": (decayed, {"loss": {"terms": {"position_decay": 0.5}}}),
    # The demo's completions hold no special token but the stop token, which keeps its loss.
    "special": (student_topk, {"loss": {"terms": {"mask_special_tokens": True}}}),
    "skew": (skewed, {"loss": {"divergence": "skew_kl", "beta": 0.1}}),
    "union tail": (union_with_tail, {"loss": {"support": "union", "mode": "tail"}}),
    "difference": (surrogate_on_difference, {"loss": DIFFERENCE}),
    "k2": (squared, {"loss": {"support": "sampled", "estimator": "k2"}}),
    "temperatures": (
        at_temperature_two,
        {"loss": {"student_temperature": 2.0, "teacher_temperature": 2.0}},
    ),
    "full": (whole_vocabulary, {"loss": {"support": "full"}}),
    "checkpointing": (
        student_topk,
        {"student": EXACT["student"] | {"gradient_checkpointing": True}},
    ),
    "no diagnostics": (student_topk, {"diagnostics": {"positions": 0}}),
}


def logged(folder, **changes) -> tuple[dict[str, float], list[Rollout]]:
    """Metrics and rollouts of a run of one step."""
    data = run_config(folder, steps=1, **changes)
    data["output"] |= {"rollout_sample": 1000}
    run_to_end(data | {"eval": []})
    (metrics,) = read_jsonl(folder / "metrics.jsonl")
    rollouts, _ = read_step(next((folder / "rollouts").glob("*.parquet")))
    return metrics, rollouts


def log_probs(model: PreTrainedModel, rollouts: list[Rollout]) -> Tensor:
    """(N, V) of the model at every completion token, one row after the other."""
    rows = []
    for rollout in rollouts:
        prompt, completion = (torch.as_tensor(ids) for ids in (rollout.prompt.ids, rollout.ids))
        logits = model(torch.cat([prompt, completion])[None]).logits[0]
        rows.append(logits[len(prompt) - 1 : -1])
    return torch.cat(rows).log_softmax(1)


@pytest.mark.parametrize("name", LOSSES)
def test_loss_and_gradient_are_those_of_the_formula(tmp_path, name):
    formula, changes = LOSSES[name]
    metrics, rollouts = logged(tmp_path / "run", **(EXACT | changes))
    assert len(rollouts) == 16
    student, teacher = (
        AutoModelForCausalLM.from_pretrained(PAIR / side, dtype=torch.float64)
        for side in ("student", "teacher")
    )
    with torch.no_grad():
        q = log_probs(teacher, rollouts)
    loss = formula(log_probs(student, rollouts), q, rollouts).sum() / sum(map(len, rollouts))
    loss.backward()
    norm = torch.stack([w.grad.norm() for w in student.parameters()]).norm()
    assert metrics["train/loss"] == pytest.approx(loss.item(), rel=TOLERANCE)
    assert metrics["train/grad_norm"] == pytest.approx(norm.item(), rel=TOLERANCE)
    assert norm > 0


@pytest.mark.parametrize(
    ("changes", "tolerance"),
    [
        ({"student": {"precision": "bf16_mixed"}, "teacher": {"dtype": "bfloat16"}}, 0.05),
        ({"student": {"gradient_checkpointing": True, "lora": {"rank": 2}}}, 1e-4),
    ],
    ids=["bf16", "lora checkpointing"],
)
def test_precision_and_adapters_change_the_loss_by_rounding_alone(tmp_path, changes, tolerance):
    plain, rollouts = logged(tmp_path / "plain", **EXACT)
    changed, others = logged(tmp_path / "changed", **changes)
    same = [a.ids.tolist() == b.ids.tolist() for a, b in zip(rollouts, others, strict=True)]
    assert sum(same) >= 14  # an adapter begins at zero; a rounding may flip a sampled token
    assert changed["train/loss"] == pytest.approx(plain["train/loss"], rel=tolerance)
    assert changed["train/grad_norm"] > 0
