"""The token view: which rollouts are shown, and the teacher's advantage of every token."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from opd.reports.document import Legend, ShownRollout, Tokens, TokenSpan
from opd.reports.formatting import minus, percent
from opd.reports.read import RunData
from opd.reports.sanitize import visible
from opd.reports.scored_rollouts import (
    Floats,
    ScoredRollout,
    renormalised,
    scored_rollouts,
    whole_vocabulary,
)

STEPS_PER_PART = 5  # of the early, middle and late part from which rollouts are selected
END_TOKENS = 180  # shown with their top tokens at each end of a long completion
PANEL_ROWS = 8  # tokens of each model in the panel
EDGES = (0.1, 0.5, 2.0)  # nats: where the colours change
SHADES = ("n3", "n2", "n1", "z", "p1", "p2", "p3")

EXACT = "log q \u2013 log p of the token, both over the whole vocabulary"
ON_SUPPORT = (
    "log q \u2013 log p of the token, both renormalised on the student's top k wherever the "
    "teacher's normaliser was not kept"
)
LOW_MASS = 0.5  # of the teacher on the student's top k: below it, a token is hatched


def rollouts_by_part(run: RunData) -> dict[str, list[ScoredRollout]]:
    """Scored rollouts of a few early, middle and late steps."""
    return {
        part: [r for step in steps for r in scored_rollouts(run, step)]
        for part, steps in _parts(run.rollout_steps()).items()
    }


def token_view(run: RunData, parts: dict[str, list[ScoredRollout]] | None = None) -> Tokens | None:
    """Worst, median and best rollouts of early, middle and late steps; None without scores.

    Args:
        run: the run.
        parts: its `rollouts_by_part`, if they were read already.
    """
    selected = []
    for part, candidates in (rollouts_by_part(run) if parts is None else parts).items():
        ranked = sorted((r for r in candidates if np.isfinite(r.mean)), key=lambda r: r.mean)
        selected += [(f"{part}, {rank}", r) for rank, r in _worst_median_best(ranked)]
    if not selected:
        return None
    texts: dict[str, str] = {}
    items = [_shown(title, scored, run.token_texts, texts) for title, scored in selected]
    exact = all(scored.exact for _, scored in selected)
    note = (
        f"Colour is the teacher's advantage, {EXACT if exact else ON_SUPPORT}, in nats. Selected "
        "by its mean over the rollout, among the rollouts that are in the run folder."
    )
    masses = [r.teacher_mass for _, r in selected if r.teacher_mass is not None]
    if masses:
        low = float((np.concatenate(masses) < LOW_MASS).mean())
        note += (
            f" Hatched, {percent(low).text} of these tokens: less than half of the teacher's "
            f"probability lies on the student's top k{_meaning_of_hatch(run)}."
            if low
            else " No token is hatched: at least half of the teacher's probability lies on the "
            "student's top k everywhere."
        )
    legend = _legend(exact=exact, hatched=bool(masses))
    return Tokens(items, legend, texts, note, LOW_MASS, EDGES)


def _meaning_of_hatch(run: RunData) -> str:
    """What the loss of the run makes of tokens outside the student's top k."""
    mode, support = run.setting("loss", "mode"), run.setting("loss", "support")
    if mode == "paper" and support == "student_topk":
        return ", and the loss, renormalised there, teaches something else than the teacher"
    return ""


def _parts(steps: Sequence[int]) -> dict[str, Sequence[int]]:
    """Early, middle and late steps; all steps where there are few."""
    if not steps:
        return {}
    if len(steps) < 3 * STEPS_PER_PART:
        return {"All steps": steps}
    middle, half = len(steps) // 2, STEPS_PER_PART // 2
    return {
        "Early": steps[:STEPS_PER_PART],
        "Middle": steps[middle - half : middle + half + 1],
        "Late": steps[-STEPS_PER_PART:],
    }


def _worst_median_best(ranked: Sequence[ScoredRollout]) -> list[tuple[str, ScoredRollout]]:
    if len(ranked) < 3:
        return [("only", scored) for scored in ranked]
    return [("worst", ranked[0]), ("median", ranked[len(ranked) // 2]), ("best", ranked[-1])]


def _shown(
    title: str, scored: ScoredRollout, token_texts: Sequence[str] | None, texts: dict[str, str]
) -> ShownRollout:
    """A rollout for the document; texts of the tokens it shows are added to `texts`."""
    length = len(scored.rollout)
    middle = range(END_TOKENS, max(END_TOKENS, length - END_TOKENS))
    positions = [i for i in range(length) if i not in middle]
    spans = []
    for i in positions:
        value = scored.advantage[i]
        known = bool(np.isfinite(value))
        tooltip = minus(f"{value:+.2f} nats") if known else "outside the student's top k"
        text = _text(int(scored.rollout.ids[i]), token_texts).replace("\n", "\u23ce\n")
        is_low = scored.teacher_mass is not None and scored.teacher_mass[i] < LOW_MASS
        style = f"{shade(value)} low" if is_low else shade(value)
        spans.append(TokenSpan(text, style, tooltip, i))
    truncated = scored.rollout.finish == "length"
    mean = minus(f"{scored.mean:.3f}") if math.isfinite(scored.mean) else "not a number"
    note = (
        f"step {scored.step}, mean advantage {mean} nats, {length:,} tokens"
        f"{', truncated by the token limit' if truncated else ''}"
    )
    details = [_details(scored, i, token_texts, texts) for i in positions]
    prompt = scored.rollout.prompt.text
    folded = [_folded(scored, i, token_texts, texts) for i in middle]
    return ShownRollout(title, note, prompt, spans, folded, details)


def _folded(
    scored: ScoredRollout, i: int, token_texts: Sequence[str] | None, texts: dict[str, str]
) -> list[float | None]:
    """See `ShownRollout.folded`; few decimals, since there may be thousands."""
    token = int(scored.rollout.ids[i])
    texts.setdefault(str(token), visible(_text(token, token_texts)))
    mass = None if scored.teacher_mass is None else scored.teacher_mass[i]
    return [
        token,
        _rounded(scored.advantage[i], 2),
        _rounded(float(np.exp(scored.rollout.logp[i])), 3),
        None if mass is None else _rounded(mass, 2),
    ]


def shade(value: float) -> str:
    """The colour class of an advantage."""
    if not np.isfinite(value):
        return "out"
    size = sum(abs(value) >= edge for edge in EDGES)
    return "z" if size == 0 else f"{'p' if value > 0 else 'n'}{size}"


def _legend(*, exact: bool, hatched: bool) -> list[Legend]:
    a, b, c = EDGES
    labels = (
        f"less likely under the teacher: {c:g} nats or more",
        f"{b:g} to {c:g}",
        f"{a:g} to {b:g}",
        f"less than {a:g} either way",
        f"{a:g} to {b:g}",
        f"{b:g} to {c:g}",
        f"more likely under the teacher: {c:g} or more",
    )
    return [
        *(Legend(style, label) for style, label in zip(SHADES, labels, strict=True)),
        *([] if exact else [Legend("out", "not in the student's top k: unknown")]),
        *([Legend("z low", "teacher mostly elsewhere")] if hatched else []),
    ]


def _details(
    scored: ScoredRollout, i: int, token_texts: Sequence[str] | None, texts: dict[str, str]
) -> dict[str, Any]:
    """What the panel shows for the token at position i; probabilities with four decimals."""
    rollout, scores = scored.rollout, scored.scores
    student = np.exp(rollout.topk_logp[i].astype(np.float64))
    row: dict[str, Any] = {
        "i": i,
        "t": int(rollout.ids[i]),
        "a": _rounded(scored.advantage[i]),
        "p": _rounded(float(np.exp(rollout.logp[i]))),
        "h": _rounded(float(rollout.entropy[i])),
        "s": _top(rollout.topk_ids[i], student),
    }
    whole = whole_vocabulary(scores)
    if scored.teacher_mass is not None:
        row["m"] = _rounded(scored.teacher_mass[i])
    if whole is not None and whole.topk_ids is not None and whole.topk_logp is not None:
        row["q"] = _top(whole.topk_ids[i], np.exp(whole.topk_logp[i].astype(np.float64)))
    elif whole is None and scores.support is not None:  # of versions that kept no more
        both = (renormalised(rollout.topk_logp[i : i + 1]), renormalised(scores.support[i : i + 1]))
        row["s"], row["q"] = (_top(rollout.topk_ids[i], np.exp(logp[0])) for logp in both)
        row["r"] = _rounded(float(student.sum()))  # probability on which both are renormalised
    if whole is not None and scored.on_support is not None:
        row["l"] = _rounded(scored.on_support[i])
    for token in {row["t"], *(pair[0] for key in ("s", "q") for pair in row.get(key, ()))}:
        texts[str(token)] = visible(_text(token, token_texts))
    return row


def _top(ids: NDArray[Any], probabilities: Floats) -> list[list[float]]:
    order = np.argsort(-probabilities, kind="stable")[:PANEL_ROWS]
    return [[int(ids[j]), _rounded(float(probabilities[j])) or 0.0] for j in order]


def _rounded(value: float, digits: int = 4) -> float | None:
    return round(float(value), digits) if np.isfinite(value) else None


def _text(token: int, token_texts: Sequence[str] | None) -> str:
    if token_texts is None or token >= len(token_texts):
        return f"#{token}"
    return token_texts[token]
