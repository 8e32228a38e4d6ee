"""Losses, one function per formula: log-probs in, one value per position out.

No reduction over positions, no models, no configuration. Shapes: `...` positions, W candidate
tokens (a support, or the whole vocabulary), n rollouts of a prompt. p is the student's
distribution, q the teacher's.

Conventions shared by all functions here:

- Inputs are log-probs (`renormalise` makes them from log-scores), converted to at least fp32.
- `where` marks the entries that exist. Everything else may hold -inf, NaN or garbage: inputs are
  masked before any arithmetic, so neither value nor gradient depends on it.
- An entry of probability 0 adds 0. A teacher that excludes (-inf) a token the student can produce
  gives +inf: that is the true divergence.
- Gradient flows into the student argument; the teacher argument is treated as data by the caller.
- No valid entry, or no position at all, gives 0 with a graph.

Formulas, directions and measured gradients: docs/math.md.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from opd.core.loss_settings import Weights
from opd.core.precision import accumulation_dtype, at_least_float32

_LOG_HALF = -math.log(2.0)


def _masked(x: Tensor, where: Tensor | None, fill: float) -> Tensor:
    x = at_least_float32(x)
    return x if where is None else torch.where(where, x, fill)


def _possible(logp: Tensor, where: Tensor | None) -> Tensor:
    """Entries that exist and have probability above 0 (NaN counts, so that it stays visible)."""
    possible = logp != -torch.inf
    return possible if where is None else possible & where


def all_possible(logp: Tensor) -> bool:
    """Whether every entry of log-probs (..., W) is finite: then nothing needs a mask."""
    return bool(torch.isfinite(logp.amin())) if logp.numel() else False


def renormalise(scores: Tensor, where: Tensor | None = None) -> Tensor:
    """Log-softmax over the valid entries: p-bar of paper Eq. 5.

    Args:
        scores: (..., W) log-probs or log-scores; a constant per position does not matter.
        where: (..., W) bool, valid entries; None: all.

    Returns:
        (..., W) log-probs summing to 1 over the valid entries; -inf elsewhere (everywhere in a
        position without valid entries).
    """
    possible = _possible(scores, where)
    # A finite value instead of -inf: log-softmax over -inf alone has NaN gradients.
    floor = torch.finfo(accumulation_dtype(scores.dtype)).min / 4
    normal = torch.log_softmax(_masked(scores, possible, floor), -1)
    return torch.where(possible, normal, -torch.inf)


def with_tail(logp: Tensor, where: Tensor | None = None) -> Tensor:
    """Append one bucket holding all the mass outside the support: an exact coarser distribution.

    log(1 - sum p) is computed by log1p or expm1, whichever keeps digits. A sum of floats is known
    to one unit of rounding, so the tail's mass is never smaller than that: otherwise a peaked
    teacher's tail, rounded to 0, would cost +inf. (Tail bucket: TA-OPD, arXiv 2608.14728.)

    Args:
        logp: (..., W) log-probs normalised over the whole vocabulary, not over the support.
        where: (..., W) bool, valid entries; None: all.

    Returns:
        (..., W + 1) log-probs; invalid entries -inf. Without valid entries the tail has all mass.
    """
    possible = _possible(logp, where)
    finfo = torch.finfo(accumulation_dtype(logp.dtype))
    inside = torch.logsumexp(_masked(logp, possible, finfo.min / 4), -1, keepdim=True)
    inside = inside.clamp(max=-finfo.eps)
    near = inside > _LOG_HALF  # each branch gets safe inputs: where() alone would leak NaN
    by_expm1 = torch.log(-torch.expm1(torch.where(near, inside, -1.0)))
    by_log1p = torch.log1p(-torch.exp(torch.where(near, -1.0, inside)))
    tail = torch.where(near, by_expm1, by_log1p)
    return torch.cat([_masked(logp, possible, -torch.inf), tail], -1)


def reverse_kl(student: Tensor, teacher: Tensor, where: Tensor | None = None) -> Tensor:
    """KL(p || q) = sum_v p (log p - log q), per position. Paper Eq. 4; Eq. 5 on p-bar, q-bar.

    Args:
        student: (..., W) log p, normalised over the valid entries.
        teacher: (..., W) log q, likewise.
        where: (..., W) bool, valid entries; None: all.

    Returns:
        (...) nats. The gradient is that of the value; nothing is detached.
    """
    if where is None and all_possible(student):  # half the passes over memory
        p, q = at_least_float32(student), at_least_float32(teacher)
        divergence: Tensor = torch.linalg.vecdot(p.exp(), p - q)
        return divergence
    live = _possible(student, where)
    p, q = _masked(student, live, 0.0), _masked(teacher, live, 0.0)
    return torch.where(live, p.exp() * (p - q), 0.0).sum(-1)


def forward_kl(student: Tensor, teacher: Tensor, where: Tensor | None = None) -> Tensor:
    """KL(q || p) = sum_v q (log q - log p), per position; arguments as in `reverse_kl`."""
    return reverse_kl(teacher, student, where)


def _mixture(student: Tensor, teacher: Tensor, where: Tensor | None, beta: float) -> Tensor:
    """Log of m = beta q + (1 - beta) p; 0 where both are impossible."""
    live = _possible(student, where) | _possible(teacher, where)
    p, q = _masked(student, live, 0.0), _masked(teacher, live, 0.0)
    return torch.logaddexp(p + math.log1p(-beta), q + math.log(beta))


def jsd(
    student: Tensor, teacher: Tensor, where: Tensor | None = None, *, beta: float = 0.5
) -> Tensor:
    """Generalised Jensen-Shannon: beta KL(q || m) + (1 - beta) KL(p || m), m = beta q + (1-beta) p.

    From GKD (arXiv 2306.13649). beta = 0.5 is the symmetric JSD. As beta -> 0, JSD/beta tends to
    forward KL; as beta -> 1, JSD/(1 - beta) tends to reverse KL. Arguments as in `reverse_kl`,
    0 < beta < 1.
    """
    mix = _mixture(student, teacher, where, beta)
    of_teacher, of_student = reverse_kl(teacher, mix, where), reverse_kl(student, mix, where)
    return beta * of_teacher + (1 - beta) * of_student


def skew_kl(
    student: Tensor, teacher: Tensor, where: Tensor | None = None, *, beta: float = 0.1
) -> Tensor:
    """Skew forward KL: KL(q || beta q + (1 - beta) p), from DistiLLM (arXiv 2402.03898).

    Never above -log(beta), tends to forward KL as beta -> 0. Arguments as in `reverse_kl`,
    0 < beta < 1.
    """
    return reverse_kl(teacher, _mixture(student, teacher, where, beta), where)


def score_function(advantage: Tensor, logp: Tensor) -> Tensor:
    """Policy-gradient surrogate: value -A, gradient -A grad log p, with A detached.

    The importance ratio is 1 by construction (one optimizer step a rollout batch), so a clipped
    objective has the same gradient. Its value is an estimate, not a divergence.

    Args:
        advantage: (...) A of each token.
        logp: (...) normalised log p of the same tokens.
    """
    logp = at_least_float32(logp)
    return -at_least_float32(advantage).detach() * torch.exp(logp - logp.detach())


def k1(logp: Tensor, teacher_logp: Tensor) -> Tensor:
    """Sampled-token reverse KL by score function; paper Eq. 3.

    For a token sampled from p at the same temperature, untruncated: value log p - log q, whose
    expectation is the reverse KL; expected gradient exactly the reverse KL's at that position.
    (Backpropagating through log p - log q itself would have expected gradient 0.)

    Args:
        logp: (...) log p of the sampled token; differentiable.
        teacher_logp: (...) log q of the sampled token.
    """
    return score_function(at_least_float32(teacher_logp) - at_least_float32(logp), logp)


def k2(logp: Tensor, teacher_logp: Tensor) -> Tensor:
    """Sampled (log p - log q)^2 / 2, differentiated through.

    Expected gradient: that of the reverse KL (on-policy only). The value's expectation is not the
    reverse KL, only close to it when p is close to q. Arguments as in `k1`.
    """
    return (at_least_float32(logp) - at_least_float32(teacher_logp)).square() / 2


def k3_forward(logp: Tensor, teacher_logp: Tensor) -> Tensor:
    """Sampled q/p - 1 - log(q/p), differentiated through: expected gradient of the FORWARD KL.

    The value is a low-variance unbiased estimate of the reverse KL, hence often mistaken for a
    reverse-KL loss; the gradient is -(q/p) grad log p in expectation, i.e. forward KL, with weights
    q/p that are heavy-tailed. Arguments as in `k1`.
    """
    ratio = at_least_float32(teacher_logp) - at_least_float32(logp)
    return torch.expm1(ratio) - ratio


def reference_topk(
    student: Tensor,
    teacher: Tensor,
    where: Tensor | None = None,
    *,
    weights: Weights = "student_p",
    normalize: bool = True,
) -> Tensor:
    """The published code's top-k reverse KL: log-ratios as detached advantages times log p.

    A(v) = w(v) (log q(v) - log p(v)) with full-vocabulary log-probs, loss = sum_v of
    `score_function`(A(v), log p(v)). With `student_p` normalised on S the gradient is
    grad KL(p-bar || q-bar) + M grad log P_S, with P_S the student's mass on S and
    M = sum p-bar (log p - log q); on the whole vocabulary it is the reverse KL's. The value
    (-sum A) is a surrogate and may be negative.

    Args:
        student: (..., W) log p normalised over the whole vocabulary; differentiable.
        teacher: (..., W) log q, likewise.
        where: (..., W) bool, the support; None: all.
        weights: w is p, q, or 1/|S|.
        normalize: p or q renormalised on S; False: raw, as the code does for the symmetric
            difference.
    """
    valid = torch.ones_like(student, dtype=torch.bool) if where is None else where
    with torch.no_grad():
        chosen = teacher if weights == "teacher_p" else student
        if weights == "none":
            w = valid.to(accumulation_dtype(student.dtype)) / valid.sum(-1, keepdim=True).clamp(
                min=1
            )
        else:
            w = (renormalise(chosen, valid) if normalize else _masked(chosen, valid, 0.0)).exp()
        live = _possible(student, valid) & (w != 0)
    p, q = _masked(student, live, 0.0), _masked(teacher, live, 0.0)
    return torch.where(live, score_function(w * (q - p), p), 0.0).sum(-1)


def extrapolate(teacher: Tensor, reference: Tensor, scale: float) -> Tensor:
    """Log-scores of the reward-scaled teacher q^scale ref^(1 - scale): G-OPD / ExOPD, 2602.12125.

    Maximising scale * E_p[log q/ref] - KL(p || ref) is minimising KL(p || q^scale ref^(1-scale)),
    whose normaliser does not depend on the student. So with a sampled token the advantage becomes
    (log q - log p) + (scale - 1)(log q - log ref), as published; scale = 1 is plain OPD.

    Args:
        teacher: (..., W) log-scores of the teacher.
        reference: (..., W) log-scores of the model it is pushed away from.
        scale: lambda.
    """
    q, ref = at_least_float32(teacher), at_least_float32(reference)
    return torch.where(q == -torch.inf, -torch.inf, q + (scale - 1) * (q - ref))


def entropy_aware(
    student: Tensor, teacher: Tensor, teacher_entropy: Tensor, threshold: float
) -> Tensor:
    """Forward KL on the teacher's top k where the teacher is uncertain: EOPD, arXiv 2603.07079.

    1[H(q) > threshold] sum_{v in teacher top k} q (log q - log p), with full-vocabulary log-probs
    (not renormalised, so the value may be negative); added to the reverse-KL loss.

    Args:
        student: (..., K) log p on the teacher's top-k ids; differentiable.
        teacher: (..., K) log q there.
        teacher_entropy: (...) H(q) over the whole vocabulary, nats.
        threshold: nats (EOPD: 0.8).
    """
    return torch.where(teacher_entropy > threshold, forward_kl(student, teacher), 0.0)


def cross_entropy(logp: Tensor) -> Tensor:
    """SFT on given tokens: -log p of each; value and gradient. For mixing in given completions."""
    return -at_least_float32(logp)


def group_advantage(rewards: Tensor, *, eps: float = 1e-6) -> Tensor:
    """Outcome rewards (..., n) of one prompt's rollouts as z-scores within the group (GRPO).

    (r - mean) / (std + eps) with the unbiased std; all rewards equal, or one rollout: 0.
    """
    if rewards.shape[-1] < 2:
        return torch.zeros_like(rewards)
    mean, std = rewards.mean(-1, keepdim=True), rewards.std(-1, keepdim=True)
    return (rewards - mean) / (std + eps)


def position_decay(position: Tensor, decay: float) -> Tensor:
    """Weight decay**t of completion position t (from 0), fp32.

    For the observation that early tokens teach most: arXiv 2606.22600.
    """
    return torch.pow(decay, position.float())


def ordinary_tokens(targets: Tensor, special: Tensor, stop: Tensor) -> Tensor:
    """Bool mask like `targets`: False on special tokens other than stop tokens.

    Student and teacher often disagree about special tokens for reasons of template, not skill
    (Revisiting OPD, arXiv 2603.25562); when to stop is skill, so stop tokens keep their loss.

    Args:
        targets: (...) token ids.
        special: (s,) ids of all special tokens.
        stop: (e,) ids that end a completion.
    """
    return ~torch.isin(targets, special) | torch.isin(targets, stop)
