"""Losses on plain tensors, for a training loop of your own; formulas in docs/math.md.

Each takes log-probs of both models, (..., W) over a vocabulary or a support, and returns one loss
per position, (...) in nats: sum over positions and divide by the tokens of the whole step. What the
paper compares by default, on the student's own top k:

>>> import torch
>>> from opd import losses
>>> mine = torch.arange(160.0).sin().reshape(5, 32).requires_grad_()  # logits at 5 positions
>>> theirs = torch.arange(160.0).cos().reshape(5, 32)
>>> support = mine.topk(8).indices
>>> p, q = (losses.renormalise(logits.gather(1, support)) for logits in (mine, theirs))
>>> loss = losses.reverse_kl(p, q).sum() / 5
>>> loss.backward()
>>> bool(loss > 0), tuple(mine.grad.shape), int((mine.grad != 0).sum())
(True, (5, 32), 40)

The exact divergence of whole distributions, and the same with a bucket for the rest:

>>> log_p, log_q = mine.detach().log_softmax(-1), theirs.log_softmax(-1)
>>> exact = losses.reverse_kl(log_p, log_q)
>>> bool(torch.allclose(exact, (log_p.exp() * (log_p - log_q)).sum(-1)))
True
>>> tail = losses.reverse_kl(*(losses.with_tail(x.gather(1, support)) for x in (log_p, log_q)))
>>> bool((tail <= exact + 1e-6).all())
True
"""

from opd.core.losses import (
    cross_entropy,
    entropy_aware,
    extrapolate,
    forward_kl,
    group_advantage,
    jsd,
    k1,
    k2,
    k3_forward,
    position_decay,
    reference_topk,
    renormalise,
    reverse_kl,
    score_function,
    skew_kl,
    with_tail,
)

__all__ = [
    "cross_entropy",
    "entropy_aware",
    "extrapolate",
    "forward_kl",
    "group_advantage",
    "jsd",
    "k1",
    "k2",
    "k3_forward",
    "position_decay",
    "reference_topk",
    "renormalise",
    "reverse_kl",
    "score_function",
    "skew_kl",
    "with_tail",
]
