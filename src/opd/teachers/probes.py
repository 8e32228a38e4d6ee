"""The probes of a teacher server: each states what any correct language model must answer.

A probe records its result in the handshake; "fatal" forbids training, "note" is logged. Log-probs
and differences are in nats per token.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from opd.core.diagnostics import OVERLAP_K
from opd.http import Refusal
from opd.rng import Stream, generator
from opd.teachers.dialect import Dialect, text_rollout
from opd.teachers.probe_texts import HARD_STRINGS
from opd.teachers.prober import Handshake, Prober
from opd.types import Want

MIN_MARGIN = 1.0  # by which text must beat its own tokens shuffled
# Mean difference between two answers to one question: SmolLM2-135M in bf16 has 0.043 (two shapes of
# one batch), two replicas of different weights or new noise in every answer more than this.
MAX_NOISE = 0.08
MIN_SPREAD = 1e-3  # between the tokens of a text
GREEDY_TOKENS = 12
AT_ONCE = 8  # requests under way together: a balancer spreads them over its replicas


def probe_tokenizer(prober: Prober, encode: Callable[[str], list[int]]) -> None:
    """The server's tokenizer must give the student's ids, where it can be asked."""
    result = prober.result
    for text in HARD_STRINGS:
        theirs = prober.dialect.tokenize(text)
        if theirs is None:
            result.add("tokenizer", "note", "the server does not tokenize; not compared")
            return
        ours = encode(text)
        if theirs != ours:
            result.add(
                "tokenizer",
                "fatal",
                f"{text!r} becomes {ours[:8]} for the student and {theirs[:8]} for the teacher: "
                "the teacher would score other tokens. Serve a teacher of the student's family.",
            )
            return
    result.add("tokenizer", "ok", f"{len(HARD_STRINGS)} hard strings become the same ids")


def probe_context(prober: Prober, max_length: int | None) -> None:
    """The run's longest sequence must fit into the teacher's context, where it is known."""
    context = prober.dialect.context
    if context is None or max_length is None:
        return
    message = (
        f"the teacher's context is {context} tokens, the run's longest sequence has {max_length}"
    )
    if max_length <= context:
        prober.result.add("context", "ok", message)
    else:
        fix = "Lower rollout.max_new_tokens, or raise --max-model-len"
        prober.result.add("context", "fatal", f"{message}. {fix}")


def probe_topk(prober: Prober, text: Sequence[int], k: int) -> bool:
    """The server must return k top tokens, and the sampled one beside them.

    Returns:
        Whether the other probes can be made.
    """
    if k == 0:
        return True
    try:
        scores = prober.request([text_rollout(text)], Want(sampled=True, topk=k))
    except Refusal as error:
        prober.result.add(
            "top-k",
            "fatal",
            f"{k} top tokens are refused: {error} Start vLLM with --max-logprobs {k}, or lower "
            f"loss.k (the diagnostics take {OVERLAP_K}, unless diagnostics.positions=0).",
        )
        return False
    if scores is None:
        return False
    prober.topk = k
    prober.result.add("top-k", "ok", f"{k} top tokens, sorted and normalised")
    return True


def probe_signal(prober: Prober, texts: Sequence[Sequence[int]]) -> None:
    """Text must beat the same tokens in another order: uniform scores and zeros do not."""
    rng = generator(0, Stream.HANDSHAKE, 1)
    shuffled = [[t[0], *rng.permutation(np.array(t[1:])).tolist()] for t in texts]
    logp = prober.token_logp([*texts, *shuffled])
    if logp is None:
        return
    result = prober.result
    real, mixed = logp[: len(texts)], logp[len(texts) :]
    if any(np.ptp(s) < MIN_SPREAD for s in real):
        result.add(
            "signal", "fatal", f"every token of a text gets the same score ({real[0][0]:.3f})"
        )
        return
    margin = max(float(r.mean() - m.mean()) for r, m in zip(real, mixed, strict=True))
    message = f"text beats its own tokens shuffled by {margin:.2f} nats per token at best"
    if margin >= MIN_MARGIN:
        result.add("signal", "ok", message)
    elif (own := _greedy_margin(prober, texts)) >= MIN_MARGIN and result.passed("tokenizer"):
        result.add(
            "signal",
            "note",
            f"{message}, which is little; but the tokenizer is the student's, and the teacher's "
            f"own continuation beats other tokens by {own:.2f}: a teacher of a special domain",
        )
    else:
        result.add(
            "signal",
            "fatal",
            f"{message} (the minimum is {MIN_MARGIN:g}): these are scores of something else, or "
            "of an untrained model. Check the server's model, and that it scores the prompt it is "
            "given.",
        )
        return
    values = np.concatenate(real)
    if np.array_equal(values.astype(np.float16).astype(np.float64), values):
        result.add(
            "precision", "note", "scores are rounded to 16 bits; differences of 0.004 nats vanish"
        )


def _greedy_margin(prober: Prober, texts: Sequence[Sequence[int]]) -> float:
    """Nats per token by which the teacher's greedy continuation beats random tokens."""
    prompt = list(texts[0][:8])
    greedy: list[int] = []
    for _ in range(GREEDY_TOKENS):
        sequence = text_rollout([*prompt, *greedy, prompt[-1]])  # the last token only adds a row
        scores = prober.request([sequence], Want(sampled=True, topk=max(1, prober.topk)))
        if scores is None or scores[0].topk_ids is None:
            return 0.0
        greedy.append(int(scores[0].topk_ids[-1, 0]))
    known = sorted({t for ids in texts for t in ids})
    rng = generator(0, Stream.HANDSHAKE, 2)
    random = [known[i] for i in rng.integers(0, len(known), GREEDY_TOKENS)]
    logp = prober.token_logp([[*prompt, *greedy], [*prompt, *random]])
    if logp is None:
        return 0.0
    own, chance = (values[-GREEDY_TOKENS:].mean() for values in logp)
    return float(own - chance)


def probe_noise(prober: Prober, texts: Sequence[Sequence[int]]) -> None:
    """One question, one answer: again, beside others, and as the beginning of a longer text."""
    first, second = texts[0], texts[-1]
    half = first[: max(6, len(first) // 2)]
    alone = prober.token_logp([first])
    again = prober.token_logp([first])
    beside = prober.token_logp([second, first, half])
    longer = prober.token_logp([[*first, *prober.eos, *second]])
    if alone is None or again is None or beside is None or longer is None:
        return
    logp, count = alone[0], len(alone[0])
    differences = {
        "asked twice": np.abs(logp - again[0]),
        "asked beside other sequences": np.abs(logp - beside[1]),
        "as the beginning of a longer text (prefix cache)": np.abs(logp - longer[0][:count]),
        "as the beginning of that text": np.abs(logp[: len(half) - 1] - beside[2]),
    }
    result = prober.result
    result.noise_mean = max(float(d.mean()) for d in differences.values())
    result.noise_max = max(float(d.max()) for d in differences.values())
    for how, difference in differences.items():
        if difference.mean() > MAX_NOISE:
            result.add(
                "noise",
                "fatal",
                f"{how}, one text scores {difference.mean():.3f} nats per token differently (the "
                f"maximum is {MAX_NOISE:g}). Replicas that differ, mixed-up answers or a stale "
                "cache: serve one replica, and try --no-enable-prefix-caching.",
            )
            return
    same = min(len(beside[0]), count)
    if np.array_equal(beside[0][:same], logp[:same]) and second[:same] != first[:same]:
        result.add("noise", "fatal", "two texts get one answer: a stale cache")
        return
    result.add(
        "noise",
        "ok",
        f"noise floor {result.noise_mean:.4f} nats mean, {result.noise_max:.3f} max",
    )


def probe_replicas(prober: Prober, text: Sequence[int]) -> None:
    """One question, `AT_ONCE` times at the same time: every replica behind the address must agree.

    Replicas that are asked in turn can hide behind a balancer that keeps a client with one of them;
    requests that are under way together are spread. They may differ by the noise of batches, never
    by so much that a different model is the simpler explanation.
    """
    with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="replica") as pool:
        asked = [pool.submit(prober.score_once, text) for _ in range(AT_ONCE)]
    answers = [answer for future in asked if (answer := future.result()) is not None]
    result = prober.result
    if len(answers) < AT_ONCE:
        result.add("replicas", "fatal", f"{len(answers)} of {AT_ONCE} requests were answered")
        return
    values = np.stack(answers)
    worst = float(np.abs(values[:, None] - values[None]).mean(-1).max())
    result.noise_mean = max(result.noise_mean, worst)
    if worst > MAX_NOISE:
        result.add(
            "replicas",
            "fatal",
            f"asked one text {AT_ONCE} times at once, two answers differ by {worst:.3f} nats per "
            f"token (the maximum is {MAX_NOISE:g}): replicas that serve different weights. Serve "
            "one replica, or the same weights behind all of them.",
        )
        return
    result.add("replicas", "ok", f"{AT_ONCE} answers at once agree within {worst:.4f} nats")


def probe_temperature(
    result: Handshake, plain: Dialect, scaled: Dialect, text: Sequence[int], temperature: float
) -> None:
    """A teacher temperature must divide logits: differences within a row shrink by it.

    Args:
        result: where the result is recorded.
        plain: the server at temperature 1.
        scaled: the server at `temperature`.
        text: token ids to score.
        temperature: loss.teacher_temperature.
    """
    want, rollout = Want(sampled=True, topk=8), text_rollout(text)
    (at_one,), (at_temperature,) = plain.score([rollout], want), scaled.score([rollout], want)
    assert at_one.topk_logp is not None
    assert at_temperature.topk_logp is not None
    expected = (at_one.topk_logp[:, :1] - at_one.topk_logp) / temperature
    spread = at_temperature.topk_logp[:, :1] - at_temperature.topk_logp
    difference = float(np.abs(expected - spread).mean())
    if difference > MAX_NOISE:
        result.add(
            "temperature",
            "fatal",
            f"loss.teacher_temperature={temperature} is not applied ({difference:.2f} nats off). "
            "Set it to 1, or update the server.",
        )
    else:
        result.add("temperature", "ok", f"temperature {temperature} is applied")
