"""The handshake with a teacher server before a run: can its scores be trained on?

About seventy small requests. Each probe (`opd.teachers.probes`) states what any correct language
model must answer, so a failure is a fact about the server, and its message names the fix. A passed
handshake leaves a noise floor and a canary, by which the teacher is recognised later.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from opd.http import Refusal
from opd.teachers import probes
from opd.teachers.dependence_probes import probe_own_token, probe_position, probe_reach
from opd.teachers.dialect import Canary, Dialect, text_rollout
from opd.teachers.distribution_probes import probe_mass, probe_rounding
from opd.teachers.probe_texts import TEXTS
from opd.teachers.prober import Handshake, Prober
from opd.types import Rollout, Scores, Want

MIN_TOLERANCE = 0.01  # of the canary, in nats per token
MIN_TEXT, MAX_TEXT = 12, 96  # tokens of a probed text


@dataclass(frozen=True)
class HandshakeInputs:
    """What a run requires of its teacher, and text to probe it with.

    Attributes:
        vocab: number of token ids in use.
        encode: the student's tokenizer, without special tokens.
        material: token ids of text the teacher should know, such as training prompts.
        topk: maximum number of top tokens the run will ask for.
        max_length: maximum tokens of prompt + completion in the run; None skips this probe.
        eos: ids that end a completion; one stands inside a probed text, where it must count.
    """

    vocab: int
    encode: Callable[[str], list[int]]
    material: Sequence[Sequence[int]] = ()
    topk: int = 0
    max_length: int | None = None
    eos: Sequence[int] = ()


def run_handshake(dialect: Dialect, inputs: HandshakeInputs) -> Handshake:
    """Probe a teacher server; the probes end with the first fatal one.

    Raises:
        Transient: the server does not answer.
        UserError: the server refuses a plain request.
    """
    result = Handshake(identity=dialect.identity())
    result.add("model", "ok", result.identity)
    prober = Prober(dialect, result, inputs.vocab, eos=tuple(inputs.eos[:1]))
    texts = _texts(inputs)
    # Before all other probes, so that a teacher swapped meanwhile is noticed at the end.
    canary = text_rollout(texts[-1]) if texts else None
    first = None if canary is None else _score_canary(prober, canary)
    probes.probe_tokenizer(prober, inputs.encode)
    probes.probe_context(prober, inputs.max_length)
    if canary is None:
        result.add("material", "fatal", f"no text of {MIN_TEXT} tokens or more to probe with")
    if canary is None or not probes.probe_topk(prober, texts[0], inputs.topk):
        return result
    if first is None and not result.fatal:
        first = prober.request([canary], Want(sampled=True))
    for probe in (
        probes.probe_signal,
        probes.probe_noise,
        lambda prober, texts: probes.probe_replicas(prober, texts[0]),
        probe_position,
        probe_own_token,
        lambda prober, texts: probe_reach(prober, texts, inputs.max_length),
        probe_rounding,
        probe_mass,
    ):
        probe(prober, texts)
        if result.fatal:
            return result
    last = prober.request([canary], Want(sampled=True))
    if first is not None and last is not None:
        result.canary = _make_canary(result, canary, first[0], last[0])
    return result


def _texts(inputs: HandshakeInputs) -> list[list[int]]:
    """Token ids of up to four texts of the run, then of our own."""
    texts = [*map(list, inputs.material[:4]), *map(inputs.encode, TEXTS)]
    cut = [ids[:MAX_TEXT] for ids in texts]
    return [ids for ids in cut if len(ids) >= MIN_TEXT and max(ids) < inputs.vocab]


def _score_canary(prober: Prober, canary: Rollout) -> list[Scores] | None:
    """The first scores of the canary; None when refused, which later probes explain."""
    try:
        return prober.request([canary], Want(sampled=True))
    except Refusal:
        return None


def _make_canary(result: Handshake, rollout: Rollout, first: Scores, last: Scores) -> Canary:
    """A sequence scored before and after the other probes: both must be by one teacher."""
    assert first.sampled is not None
    tolerance = max(MIN_TOLERANCE, 4 * result.noise_mean)
    canary = Canary(rollout, first.sampled.astype(np.float64), tolerance)
    distance = canary.distance(last)
    if distance > tolerance:
        result.add(
            "same teacher",
            "fatal",
            f"one text scored {distance:.3f} nats per token differently at the end of the "
            "handshake than at its beginning: the server was restarted with another model "
            "meanwhile. Try again.",
        )
    return canary
