"""Twelve probes of a teacher server before a run: can its numbers be trained on?

About ten requests. Each probe states what any correct language model must answer, so a failure is
a fact about the server, with the fix named. What passes leaves a noise floor and a canary by which
the teacher is known again.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from opd.errors import UserError
from opd.http import Refusal, clean
from opd.rng import Stream, generator
from opd.teachers.remote import Canary, Dialect
from opd.teachers.validate import WrongAnswer, check
from opd.types import Kind, Rollout, Scores, Want

logger = logging.getLogger(__name__)

MARGIN = 1.0  # nats a token by which text must beat its own shuffle
NOISE = 0.03  # mean nats a token between two answers to one question
OWN_TOKENS = 12
QUOTED = 200  # bytes of a wrong answer shown
FLOOR = 0.01  # smallest tolerance of the canary
TEXTS = (
    "The water in the river was cold and clear, and the children of the village came down to it "
    "every morning before school to wash their faces and to fill the buckets for their mothers.",
    "If a train leaves the station at nine in the morning and travels for three hours at sixty "
    "miles an hour, then it has gone one hundred and eighty miles by noon.",
)
HARD = (
    "Hello world",
    " leading space",
    "two  spaces   three",
    "tab\tand\nnewline\r\n\n",
    "don't WON'T it's",
    "1234567890 3.14159 -0.5",
    "1,000,000 2^{10} 50%",
    "\\frac{a}{b} $x_1^2$ \\boxed{42}",
    "def f(x):\n    return {'a': [1, 2]}",
    "你好世界",
    "こんにちは 안녕하세요",
    "Привет мир",
    "مرحبا",
    "naïve Straße É",
    "e\u0301 combining",
    "🙂 family 👩‍👩‍👧",
    "\u00a0nbsp \u200bzero",
    "½ Ⅳ ﬁ",
    "<b>html</b> &amp;",
    "https://example.org/a?b=c#d",
    "aaaaaaaaaaaaaaaaaaaaaaaa",
    "!!!???...---",
    "CamelCaseAndsnake_case",
    "x",
)

Level = Literal["ok", "note", "fatal"]


@dataclass(frozen=True, slots=True)
class Probe:
    """What one probe found."""

    name: str
    level: Level
    found: str


@dataclass
class Handshake:
    """What the probes found together."""

    identity: str = ""
    probes: list[Probe] = field(default_factory=list)
    noise_mean: float = 0.0
    noise_max: float = 0.0
    canary: Canary | None = None

    def add(self, name: str, level: Level, found: str) -> None:
        """Record one probe."""
        self.probes.append(Probe(name, level, found))

    def passed(self, name: str) -> bool:
        """Whether a probe was made and found nothing to say against the teacher."""
        return any(p.name == name and p.level == "ok" for p in self.probes)

    @property
    def fatal(self) -> list[Probe]:
        """Probes that forbid training."""
        return [p for p in self.probes if p.level == "fatal"]

    def require(self, url: str) -> None:
        """Refuse a teacher that failed a probe.

        Raises:
            UserError: every failure with its fix.
        """
        if self.fatal:
            lines = "\n".join(f"  {p.name}: {p.found}" for p in self.fatal)
            raise UserError(f"The teacher at {url} is not fit to teach:\n{lines}")


def shake_hands(
    dialect: Dialect,
    *,
    vocab: int,
    encode: Callable[[str], list[int]],
    material: Sequence[Sequence[int]] = (),
    topk: int = 0,
    longest: int | None = None,
    ends: Sequence[int] = (),
) -> Handshake:
    """Probe a teacher server.

    Args:
        dialect: the server.
        vocab: token ids in use.
        encode: the student's tokenizer, no special tokens.
        material: token ids of text the teacher should know, such as training prompts.
        topk: most top tokens the run will ask for.
        longest: longest prompt + completion of the run.
        ends: ids that end a completion; one stands inside a probed text, where it must count.

    Raises:
        Transient: the server does not answer.
        UserError: the server refuses a plain request.
    """
    result = Handshake(identity=dialect.identity())
    result.add("model", "ok", result.identity)
    texts = [ids[:96] for ids in (*map(list, material[:4]), *map(encode, TEXTS))]
    texts = [ids for ids in texts if len(ids) >= 12 and max(ids) < vocab]
    asker = _Asker(result, dialect, vocab, ends=tuple(ends[:1]))
    # Before all else, so that whatever is swapped in afterwards is found out at the end.
    canary = text_rollout(texts[-1]) if texts else None
    first = None if canary is None else _first(asker, canary)
    _tokenizer(result, dialect, encode)
    _context(result, dialect, longest)
    if canary is None:
        result.add("material", "fatal", "no text of 12 tokens or more to probe with")
    if canary is None or not _topk(result, asker, texts[0], topk):
        return result
    if first is None and not result.fatal:
        first = asker.ask([canary], Want(sampled=True))
    steps: list[Callable[[_Asker, Sequence[Sequence[int]]], None]] = [_signal, _noise, _position]
    for step in steps:
        step(asker, texts)
        if result.fatal:
            return result
    last = asker.ask([canary], Want(sampled=True))
    if first is not None and last is not None:
        result.canary = _canary(result, canary, first[0], last[0])
    return result


def _first(asker: _Asker, canary: Rollout) -> list[Scores] | None:
    """The first answer to the known text; None when it is refused, which later probes explain."""
    try:
        return asker.ask([canary], Want(sampled=True))
    except Refusal:
        return None


def _canary(result: Handshake, rollout: Rollout, first: Scores, last: Scores) -> Canary:
    """One sequence asked before and after the other probes: it must be one teacher throughout."""
    assert first.sampled is not None
    tolerance = max(FLOOR, 4 * result.noise_mean)
    canary = Canary(rollout, first.sampled.astype(np.float64), tolerance)
    gap = canary.gap(last)
    if gap > tolerance:
        result.add(
            "same teacher",
            "fatal",
            f"one text scored {gap:.3f} nats a token differently at the end of the handshake than "
            "at its beginning: the server was restarted with another model meanwhile. Try again.",
        )
    return canary


@dataclass
class _Asker:
    """Asks, checks the answer, and turns a wrong one into a failed probe."""

    result: Handshake
    dialect: Dialect
    vocab: int
    topk: int = 0
    ends: tuple[int, ...] = ()

    def ask(self, rollouts: list[Rollout], want: Want) -> list[Scores] | None:
        parts = self.dialect.batches(rollouts)
        answer: list[Scores] = []
        with self.dialect.http.capture() as heard:
            try:
                for part in parts:
                    chosen = [rollouts[i] for i in part]
                    given = self.dialect.score(chosen, want)
                    if len(given) != len(chosen):
                        raise WrongAnswer(f"{len(given)} answers for {len(chosen)} sequences")
                    for rollout, scores in zip(chosen, given, strict=True):
                        check(scores, rollout, want, self.vocab)
                    answer += given
            except WrongAnswer as error:
                self._refuse(error, heard[-1][2] if heard else b"")
                return None
        order = np.argsort([i for part in parts for i in part])
        return [answer[i] for i in order]

    def _refuse(self, error: WrongAnswer, said: bytes) -> None:
        """There is no run folder yet to keep the answer in, so the beginning of it is quoted."""
        quote = f" It said: {clean(said[:QUOTED])}" if said.lstrip()[:1] in (b"{", b"[") else ""
        fix = "Nothing can be trained on that; vLLM and `opd serve-teacher` give good scores."
        self.result.add("answers", "fatal", f"{error}. {fix}{quote}")

    def sampled(self, sequences: Sequence[Sequence[int]]) -> list[np.ndarray] | None:
        """Log-probs of all tokens but the first, with the top tokens if there are any."""
        want = Want(sampled=True, topk=self.topk)
        scores = self.ask([text_rollout(s) for s in sequences], want)
        if scores is None:
            return None
        return [s.sampled.astype(np.float64) for s in scores if s.sampled is not None]


def _tokenizer(result: Handshake, dialect: Dialect, encode: Callable[[str], list[int]]) -> None:
    """The server's tokenizer must give the student's ids, where it can be asked."""
    for text in HARD:
        theirs = dialect.tokenize(text)
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
    result.add("tokenizer", "ok", f"{len(HARD)} hard strings become the same ids")


def _context(result: Handshake, dialect: Dialect, longest: int | None) -> None:
    if dialect.context is None or longest is None:
        return
    level: Level = "ok" if longest <= dialect.context else "fatal"
    told = f"the teacher reads {dialect.context} tokens, the run's longest sequence has {longest}"
    fix = "" if level == "ok" else ". Lower rollout.max_new_tokens, or raise --max-model-len"
    result.add("context", level, told + fix)


def _topk(result: Handshake, asker: _Asker, text: Sequence[int], k: int) -> bool:
    """The server must give as many top tokens as the run asks for, the drawn one always there."""
    if k == 0:
        return True
    try:
        scores = asker.ask([text_rollout(text)], Want(sampled=True, topk=k))
    except Refusal as error:
        result.add(
            "top-k",
            "fatal",
            f"{k} top tokens are refused: {error} Start vLLM with --max-logprobs {k}, or lower "
            "loss.k and diagnostics.k.",
        )
        return False
    if scores is None:
        return False
    asker.topk = k
    result.add("top-k", "ok", f"{k} top tokens, sorted and normalised")
    return True


def _signal(asker: _Asker, texts: Sequence[Sequence[int]]) -> None:
    """Text must beat the same tokens in another order: chance and zeros do not."""
    rng = generator(0, Stream.HANDSHAKE, 1)
    mixed = [[t[0], *rng.permutation(np.array(t[1:])).tolist()] for t in texts]
    scores = asker.sampled([*texts, *mixed])
    if scores is None:
        return
    real, shuffled = scores[: len(texts)], scores[len(texts) :]
    if any(np.ptp(s) < 1e-3 for s in real):
        asker.result.add(
            "signal", "fatal", f"every token of a text gets the same score ({real[0][0]:.3f})"
        )
        return
    margins = [float(r.mean() - s.mean()) for r, s in zip(real, shuffled, strict=True)]
    best = max(margins)
    told = f"text beats its own tokens shuffled by {best:.2f} nats a token at best"
    if best >= MARGIN:
        asker.result.add("signal", "ok", told)
    elif (own := _own_writing(asker, texts)) >= MARGIN and asker.result.passed("tokenizer"):
        asker.result.add(
            "signal",
            "note",
            f"{told}, which is little; but the tokenizer is the student's, and what the teacher "
            f"would write itself beats other tokens by {own:.2f}: a teacher of something special",
        )
    else:
        asker.result.add(
            "signal",
            "fatal",
            f"{told} ({MARGIN:g} is the least): these are scores of something else, or of an "
            "untrained model. Check the server's model, and that it scores the prompt it is given.",
        )
        return
    seen = np.concatenate(real)
    if np.array_equal(seen.astype(np.float16).astype(np.float64), seen):
        asker.result.add(
            "precision", "note", "scores are rounded to 16 bits; differences of 0.004 nats vanish"
        )


def _own_writing(asker: _Asker, texts: Sequence[Sequence[int]]) -> float:
    """Nats a token by which the teacher's own greedy continuation beats random tokens."""
    begun = list(texts[0][:8])
    written: list[int] = []
    for _ in range(OWN_TOKENS):
        end = text_rollout([*begun, *written, begun[-1]])  # the last token only asks for a row
        scores = asker.ask([end], Want(sampled=True, topk=max(1, asker.topk)))
        if scores is None or scores[0].topk_ids is None:
            return 0.0
        written.append(int(scores[0].topk_ids[-1, 0]))
    known = sorted({t for ids in texts for t in ids})
    rng = generator(0, Stream.HANDSHAKE, 2)
    other = [known[i] for i in rng.integers(0, len(known), OWN_TOKENS)]
    found = asker.sampled([[*begun, *written], [*begun, *other]])
    if found is None:
        return 0.0
    own, chance = (scores[-OWN_TOKENS:].mean() for scores in found)
    return float(own - chance)


def _noise(asker: _Asker, texts: Sequence[Sequence[int]]) -> None:
    """Same question, same answer: again, in company, and as the beginning of a longer text."""
    first, second = texts[0], texts[-1]
    half = first[: max(6, len(first) // 2)]
    alone = asker.sampled([first])
    again = asker.sampled([first])
    company = asker.sampled([second, first, half])
    longer = asker.sampled([[*first, *asker.ends, *second]])
    if alone is None or again is None or company is None or longer is None:
        return
    one, count = alone[0], len(alone[0])
    gaps = {
        "asked twice": np.abs(one - again[0]),
        "asked beside other sequences": np.abs(one - company[1]),
        "as the beginning of a longer text (prefix cache)": np.abs(one - longer[0][:count]),
        "as the beginning of that text": np.abs(one[: len(half) - 1] - company[2]),
    }
    asker.result.noise_mean = max(float(g.mean()) for g in gaps.values())
    asker.result.noise_max = max(float(g.max()) for g in gaps.values())
    told = f"{asker.result.noise_mean:.4f} nats mean, {asker.result.noise_max:.3f} max"
    for how, gap in gaps.items():
        if gap.mean() > NOISE:
            asker.result.add(
                "noise",
                "fatal",
                f"{how}, one text scores {gap.mean():.3f} nats a token differently ({NOISE:g} is "
                "the most). Replicas that differ, mixed-up answers or a stale cache: serve one "
                "replica, and try --no-enable-prefix-caching.",
            )
            return
    same = min(len(company[0]), count)
    if np.array_equal(company[0][:same], one[:same]) and second[:same] != first[:same]:
        asker.result.add("noise", "fatal", "two texts get one answer: a stale cache")
        return
    asker.result.add("noise", "ok", f"noise floor {told}")


def _position(asker: _Asker, texts: Sequence[Sequence[int]]) -> None:
    """The last token's score depends on the last token, and no earlier one does."""
    text = list(texts[0][:32])
    others = sorted({t for ids in texts for t in ids} - {text[-1]})[:4]
    scores = asker.sampled([text, *([*text[:-1], other] for other in others)])
    if scores is None:
        return
    early = max(float(np.abs(s[:-1] - scores[0][:-1]).mean()) for s in scores[1:])
    late = max(float(abs(s[-1] - scores[0][-1])) for s in scores[1:])
    tolerance = max(NOISE, 2 * asker.result.noise_mean)
    if early > tolerance or late <= tolerance:
        asker.result.add(
            "position",
            "fatal",
            f"changing the last token moves its own score by {late:.3f} nats and earlier ones by "
            f"{early:.3f}: scores are shifted against the tokens they belong to",
        )
        return
    asker.result.add("position", "ok", "a token's score depends on it and what stands before")


def probe_temperature(
    result: Handshake, plain: Dialect, hot: Dialect, text: Sequence[int], temperature: float
) -> None:
    """A teacher temperature must divide logits: differences within a row shrink by it.

    Args:
        result: where the finding goes.
        plain: the server at temperature 1.
        hot: the server at `temperature`.
        text: what to score.
        temperature: loss.teacher_temperature.
    """
    want = Want(sampled=True, topk=8)
    rollouts = [text_rollout(text)]
    (cold,), (warm,) = plain.score(rollouts, want), hot.score(rollouts, want)
    assert cold.topk_logp is not None
    assert warm.topk_logp is not None
    spread = cold.topk_logp[:, :1] - cold.topk_logp
    gap = float(np.abs(spread / temperature - (warm.topk_logp[:, :1] - warm.topk_logp)).mean())
    if gap > NOISE:
        result.add(
            "temperature",
            "fatal",
            f"loss.teacher_temperature={temperature} is not applied ({gap:.2f} nats off). Set it "
            "to 1, or update the server.",
        )
    else:
        result.add("temperature", "ok", f"temperature {temperature} is applied")


def text_rollout(ids: Sequence[int]) -> Rollout:
    """A text to score: its first token is the prompt, each other token is its own support."""
    rest = np.array(ids[1:], dtype=np.int32)
    return Rollout.of_ids(ids[:1], rest, topk_ids=rest[:, None])


def unknown_support(kinds: frozenset[Kind], k: int) -> str:
    """What to choose when the loss needs student-chosen ids and the server cannot score them."""
    listed = ", ".join(sorted(kinds))
    return (
        f"loss.support=student_topk asks for the teacher's scores of {k} tokens the student chose, "
        f"at every position; this server gives {listed}. Choose:\n"
        "  loss.support=sampled       one token a position: unbiased for the whole reverse KL, but "
        "noisy\n"
        f"  loss.support=teacher_topk loss.mode=tail   the teacher's own {k} tokens and one bucket "
        "for the rest: low noise, but tokens only the student likes share one signal\n"
        "  opd serve-teacher          the teacher behind opd's own server: exactly the loss you "
        "asked for\n"
        "  loss.support=auto          student_topk where the server offers it, else teacher_topk "
        "with a tail"
    )
