"""The token view: which rollouts are shown, and what the teacher thought of each token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from opd.reports.document import Legend, ShownRollout, Tokens, TokenSpan
from opd.reports.formatting import minus, plain
from opd.reports.read import RunData
from opd.reports.sanitize import visible
from opd.types import Rollout, Scores

Floats = NDArray[np.float64]

WINDOW = 5  # steps of each part of the run that rollouts are picked from
ENDS = 180  # tokens shown at each end of a long completion
ROWS = 8  # tokens of each model in the panel
EDGES = (0.1, 0.5, 2.0)  # nats: where the colours change
SHADES = ("n3", "n2", "n1", "z", "p1", "p2", "p3")

EXACT = "log q \u2013 log p of the token, whole vocabulary"
ON_SUPPORT = "log q \u2013 log p of the token, both renormalised on the student's top k"


@dataclass(frozen=True)
class Scored:
    """A rollout with the teacher's advantage (T,), NaN where it cannot be known."""

    step: int
    rollout: Rollout
    scores: Scores
    text: str
    advantage: Floats
    exact: bool

    @property
    def mean(self) -> float:
        """Mean advantage over the tokens where it is known; NaN without any."""
        known = self.advantage[np.isfinite(self.advantage)]
        return float(known.mean()) if len(known) else float("nan")


def token_view(run: RunData) -> Tokens | None:
    """Worst, median and best rollouts of early, middle and late steps; None without scores."""
    steps = run.rollout_steps()
    shown, seen = [], set[int]()
    for part, chosen in _parts(steps).items():
        ranked = [s for step in chosen if step not in seen for s in scored(run, step)]
        seen |= set(chosen)
        ranked = sorted((s for s in ranked if np.isfinite(s.mean)), key=lambda s: s.mean)
        for rank, one in _ends_and_middle(ranked):
            shown.append((f"{part}, {rank}", one))
    if not shown:
        return None
    texts: dict[str, str] = {}
    items = [_shown(title, one, run.tokens, texts) for title, one in shown]
    exact = all(one.exact for _, one in shown)
    note = (
        f"Colour is the teacher's advantage, {EXACT if exact else ON_SUPPORT}, in nats. Picked by "
        "their mean over the rollout, among those that stayed in the run folder."
    )
    return Tokens(items, _legend(), texts, note)


def _parts(steps: Sequence[int]) -> dict[str, Sequence[int]]:
    if not steps:
        return {}
    middle = len(steps) // 2
    around = slice(max(0, middle - WINDOW // 2), middle + WINDOW // 2 + 1)
    parts = {"Early": steps[:WINDOW], "Middle": steps[around], "Late": steps[-WINDOW:]}
    return parts if len(steps) >= 3 * WINDOW else {"All steps": steps}


def _ends_and_middle(ranked: Sequence[Scored]) -> list[tuple[str, Scored]]:
    if len(ranked) < 3:
        return [("only", one) for one in ranked]
    return [("worst", ranked[0]), ("median", ranked[len(ranked) // 2]), ("best", ranked[-1])]


def scored(run: RunData, step: int) -> list[Scored]:
    """The rollouts of a step with their advantages; none when the teacher's scores are not there.

    Args:
        run: where they are read from.
        step: its number, from 1.
    """
    file = run.rollout_file(step)
    if file is None:
        return []
    texts = file.texts or [""] * len(file.batch)
    found = []
    for rollout, scores, text in zip(file.batch, file.scores, texts, strict=True):
        advantage = advantages(rollout, scores)
        if advantage is not None and len(rollout):
            exact = scores.sampled is not None
            found.append(Scored(step, rollout, scores, text, advantage, exact))
    return found


def advantages(rollout: Rollout, scores: Scores) -> Floats | None:
    """The teacher's log q - log p of each drawn token, (T,), in nats.

    Exact where the teacher gave normalised log-probs; else both sides are renormalised on the
    student's top k, and a token outside it is NaN.
    """
    if scores.sampled is not None:
        return scores.sampled.astype(np.float64) - rollout.logp.astype(np.float64)
    if scores.support is None:
        return None
    p, q = on_support(rollout.topk_logp), on_support(scores.support)
    drawn = rollout.topk_ids == rollout.ids[:, None]
    found: Floats = np.where(drawn.any(1), np.where(drawn, q - p, 0.0).sum(1), np.nan)
    return found


def on_support(scores: NDArray[Any]) -> Floats:
    """Log-scores (T, K) as log-probabilities renormalised over K."""
    wide = scores.astype(np.float64)
    top = wide.max(1, keepdims=True)
    found: Floats = wide - top - np.log(np.exp(wide - top).sum(1, keepdims=True))
    return found


def _shown(
    title: str, one: Scored, names: Sequence[str] | None, texts: dict[str, str]
) -> ShownRollout:
    length = len(one.rollout)
    kept = list(range(length))
    if length > 2 * ENDS:
        kept = [*range(ENDS), *range(length - ENDS, length)]
    spans = []
    for i in kept:
        value = one.advantage[i]
        known = bool(np.isfinite(value))
        said = minus(f"{value:+.2f} nats") if known else "outside the student's top k"
        text = _text(int(one.rollout.ids[i]), names).replace("\n", "\u23ce\n")
        spans.append(TokenSpan(text, shade(value), said, i))
    note = (
        f"step {one.step}, mean advantage {plain(one.mean).text} nats, {length:,} tokens"
        f"{', cut by the token limit' if one.rollout.finish == 'length' else ''}"
    )
    details = [_details(one, i, names, texts) for i in kept]
    prompt = one.rollout.prompt.text
    return ShownRollout(title, note, prompt, spans, length - len(kept), details)


def shade(value: float) -> str:
    """The colour class of an advantage."""
    if not np.isfinite(value):
        return "out"
    size = sum(abs(value) >= edge for edge in EDGES)
    return "z" if size == 0 else f"{'p' if value > 0 else 'n'}{size}"


def _legend() -> list[Legend]:
    a, b, c = EDGES
    words = (
        f"the teacher likes it less: {c:g} nats or more",
        f"{b:g} to {c:g}",
        f"{a:g} to {b:g}",
        f"less than {a:g} either way",
        f"{a:g} to {b:g}",
        f"{b:g} to {c:g}",
        f"the teacher likes it more: {c:g} or more",
    )
    return [
        *(Legend(s, w) for s, w in zip(SHADES, words, strict=True)),
        Legend("out", "not in the student's top k: unknown"),
    ]


def _details(
    one: Scored, i: int, names: Sequence[str] | None, texts: dict[str, str]
) -> dict[str, Any]:
    """What the panel shows for one token; probabilities with four decimals."""
    rollout, scores = one.rollout, one.scores
    student = np.exp(rollout.topk_logp[i].astype(np.float64))
    row: dict[str, Any] = {
        "i": i,
        "t": int(rollout.ids[i]),
        "a": _rounded(one.advantage[i]),
        "p": _rounded(float(np.exp(rollout.logp[i]))),
        "h": _rounded(float(rollout.entropy[i])),
    }
    if scores.topk_ids is not None and scores.topk_logp is not None:
        row["s"] = _top(rollout.topk_ids[i], student)
        row["q"] = _top(scores.topk_ids[i], np.exp(scores.topk_logp[i].astype(np.float64)))
    elif scores.support is not None:
        both = (on_support(rollout.topk_logp[i : i + 1]), on_support(scores.support[i : i + 1]))
        row["s"], row["q"] = (_top(rollout.topk_ids[i], np.exp(side[0])) for side in both)
        row["m"] = _rounded(float(student.sum()))  # what the renormalised student stands for
    else:
        row["s"] = _top(rollout.topk_ids[i], student)
    for token in {row["t"], *(pair[0] for key in ("s", "q") for pair in row.get(key, ()))}:
        texts[str(token)] = visible(_text(token, names))
    return row


def _top(ids: NDArray[Any], probabilities: Floats) -> list[list[float]]:
    order = np.argsort(-probabilities, kind="stable")[:ROWS]
    return [[int(ids[j]), _rounded(float(probabilities[j])) or 0.0] for j in order]


def _rounded(value: float) -> float | None:
    return round(float(value), 4) if np.isfinite(value) else None


def _text(token: int, names: Sequence[str] | None) -> str:
    if names is None or token >= len(names):
        return f"#{token}"
    return names[token]
