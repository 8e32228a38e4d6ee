"""Probes of the distribution behind the scores: it sums to 1 and is not rounded away."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from opd.http import Refusal
from opd.teachers.dialect import text_rollout
from opd.teachers.prober import Prober
from opd.types import Kind, Rollout, Want

COARSE_STEPS = (1.0, 0.5, 0.25)  # nats: bf16 rounds a logit of 32 to a quarter, and no smaller one
MIN_DIFFERENCES = 32
ROUNDING = 1e-3  # nats by which a multiple of a coarse step is met
MASS_IDS = 1024  # tokens that one row may ask for
MASS_TOKENS = 8  # of the text after which all tokens are scored
MAX_MASS_ERROR = 0.01


def probe_rounding(prober: Prober, texts: Sequence[Sequence[int]]) -> None:
    """Differences between the top tokens are not all multiples of one coarse step."""
    if prober.topk < 2:
        return
    scores = prober.request([text_rollout(texts[0])], Want(sampled=True, topk=prober.topk))
    if scores is None:
        return
    logp = [s.topk_logp.astype(np.float64) for s in scores if s.topk_logp is not None]
    differences = np.concatenate([(x[:, :1] - x[:, 1:]).ravel() for x in logp])
    differences = differences[differences > ROUNDING]
    if len(differences) < MIN_DIFFERENCES:
        return
    for step in COARSE_STEPS:
        remainder = np.abs(differences - step * np.round(differences / step))
        if remainder.max() < ROUNDING:
            prober.result.add(
                "precision",
                "fatal",
                f"logits are rounded to multiples of {step:g}: nothing finer can be learnt. Serve "
                "the model in bf16 or float32.",
            )
            return


def probe_mass(prober: Prober, texts: Sequence[Sequence[int]]) -> None:
    """The probabilities of all tokens sum to 1, where the server scores tokens it is given.

    Scores to another base, unnormalised logits and a head that misses tokens do not.
    """
    if Kind.SUPPORT not in prober.dialect.kinds:
        return
    vocab, text = prober.vocab, list(texts[0][: MASS_TOKENS + 1])
    width = min(MASS_IDS, vocab)
    starts = [min(first, vocab - width) for first in range(0, vocab, width)]
    supports = [np.arange(s, s + width, dtype=np.int32)[None] for s in starts]
    rollouts = [Rollout.of_ids(text[:-1], text[-1:], topk_ids=ids) for ids in supports]
    try:
        scores = prober.request(rollouts, Want(sampled=True, support=True))
    except Refusal as error:
        prober.result.add("mass", "note", f"{width} chosen ids are refused ({error})")
        return
    if scores is None:
        return
    logp = np.full(vocab, -np.inf)
    for start, row in zip(starts, scores, strict=True):
        assert row.support is not None
        assert row.log_z is not None
        logp[start : start + width] = row.support[0] - row.log_z[0]
    mass = float(np.exp(logp).sum())
    message = f"the probabilities of all {vocab} tokens sum to {mass:.4f}"
    if abs(mass - 1) > MAX_MASS_ERROR:
        fix = "these are no log-probs of this vocabulary (another base, or other tokens)"
        prober.result.add("mass", "fatal", f"{message}: {fix}")
        return
    prober.result.add("mass", "ok", message)
