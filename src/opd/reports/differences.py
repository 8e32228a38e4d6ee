"""Where teacher and student differ: tokens and classes of tokens with the largest total KL."""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from opd.reports.charts import by_position
from opd.reports.document import Cell, Chart, Legend, Number, Part, Sentence, Table
from opd.reports.formatting import NONE, minus, percent
from opd.reports.plots import Line, curves
from opd.reports.read import RunData
from opd.reports.sanitize import visible
from opd.reports.scored_rollouts import ScoredRollout

MAX_TOKENS = 15  # rows of the table of tokens
TENTH = 0.1  # of the steps: begin, middle and end of the lines by position

WORD, PIECE = "letters after a space", "letters"
DIGITS, SYMBOLS = "digits", "punctuation and symbols"
SPACE, STOP = "spaces and line breaks", "end of the answer"

BY_POSITION = (
    ("diag/reverse_kl", "Reverse KL, nats"),
    ("diag/overlap_ratio", "Overlap ratio"),
    ("diag/entropy_gap_abs", "Entropy gap, nats"),
)


@dataclass
class Total:
    """Occurrences of a token or class, and the sum of log p - log q over them in nats."""

    count: int = 0
    nats: float = 0.0


def difference_tables(run: RunData, parts: Mapping[str, Sequence[ScoredRollout]]) -> list[Part]:
    """Tokens and token classes by their share of the KL, early against late steps.

    The KL of a token is log p - log q at the sampled token: its mean over samples of the student as
    it is is the reverse KL (the estimator k1), single values may be negative.

    Args:
        run: the run.
        parts: see `token_view.rollouts_by_part`.
    """
    names = [name for name in parts if parts[name]]
    names = names if len(names) < 2 else [names[0], names[-1]]
    totals = {name: _totals(run, parts[name]) for name in names}
    if not totals or not any(by_token for by_token, _ in totals.values()):
        return []
    tokens = {name: by_token for name, (by_token, _) in totals.items()}
    classes = {name: by_class for name, (_, by_class) in totals.items()}
    is_exact = all(r.exact for name in names for r in parts[name])
    note = (
        f"KL of a sampled token: log p \u2013 log q, {_mean_of_samples(run)}. From "
        f"{_counts(parts, names)}. Shares are of the sum over all tokens, and left out where that "
        "is not positive."
    )
    if not is_exact:
        note += " Both models renormalised on the student's top k; tokens outside it not counted."
    return [
        _table("By class of token", "class", classes, [WORD, PIECE, DIGITS, SYMBOLS, SPACE, STOP]),
        _table("Tokens with the largest total KL", "token", tokens, None, note),
    ]


def _mean_of_samples(run: RunData) -> str:
    """What the mean over the sampled tokens is, in words."""
    keys = (("rollout", "temperature"), ("rollout", "top_p"), ("loss", "teacher_temperature"))
    values = {f"{section}.{key}": run.setting(section, key) for section, key in keys}
    changed = [f"{key}={value:g}" for key, value in values.items() if value not in (None, 1)]
    if not changed:
        return "whose mean over the student's own samples is the reverse KL"
    return f"whose mean is not the reverse KL of the two models, because of {', '.join(changed)}"


def _counts(parts: Mapping[str, Sequence[ScoredRollout]], names: Sequence[str]) -> str:
    texts = []
    for name in names:
        steps = sorted({r.step for r in parts[name]})
        span = f"step {steps[0]}" if len(steps) == 1 else f"steps {steps[0]} to {steps[-1]}"
        count = len(parts[name])
        texts.append(f"{count:,} rollout{'' if count == 1 else 's'} of {span} ({name.lower()})")
    return " and ".join(texts)


def _totals(
    run: RunData, rollouts: Sequence[ScoredRollout]
) -> tuple[dict[str, Total], dict[str, Total]]:
    """Totals by token text and by class."""
    tokens: dict[str, Total] = defaultdict(Total)
    classes: dict[str, Total] = defaultdict(Total)
    for scored in rollouts:
        ends = scored.rollout.finish == "stop"
        last = len(scored.rollout) - 1
        for i, (token, advantage) in enumerate(
            zip(scored.rollout.ids.tolist(), scored.advantage.tolist(), strict=True)
        ):
            if not math.isfinite(advantage):
                continue
            text = _token_text(run, token)
            kind = STOP if ends and i == last else token_class(text)
            for total in (tokens[text], classes[kind]):
                total.count += 1
                total.nats -= advantage
    return tokens, classes


def _token_text(run: RunData, token: int) -> str:
    texts = run.token_texts
    return f"#{token}" if texts is None or token >= len(texts) else texts[token]


def token_class(text: str) -> str:
    """The class of a token by its text."""
    bare = text.strip()
    if not bare:
        return SPACE
    if any(c.isalpha() for c in bare):
        return WORD if text[0].isspace() else PIECE
    return DIGITS if any(c.isdigit() for c in bare) else SYMBOLS


def _table(
    caption: str,
    first: str,
    totals: Mapping[str, Mapping[str, Total]],
    order: Sequence[str] | None,
    note: str = "",
) -> Table:
    """One row per token or class, three columns per part."""
    sums = {part: sum(t.nats for t in by_name.values()) for part, by_name in totals.items()}
    counts = {part: sum(t.count for t in by_name.values()) for part, by_name in totals.items()}
    names = {name for by_name in totals.values() for name in by_name}
    if order is not None:
        rows = [name for name in order if name in names]
    else:

        def largest(name: str) -> float:
            return max(
                by_name[name].nats / max(sums.values(), key=abs) if name in by_name else -math.inf
                for by_name in totals.values()
            )

        rows = sorted(sorted(names), key=largest, reverse=True)[:MAX_TOKENS]
    columns = [first]
    for part in totals:
        of = "" if len(totals) == 1 else f"{part.lower()}: "
        columns += [f"{of}share of tokens", f"{of}nats each", f"{of}share of the KL"]
    cells: list[list[Cell]] = []
    for name in rows:
        shown = name if order is not None else f"`{_shown(name)}`"
        row: list[Cell] = [Sentence(shown)]
        for part, by_name in totals.items():
            total = by_name.get(name)
            if total is None:
                row += [NONE, NONE, NONE]
                continue
            mean = total.nats / total.count
            share = percent(total.nats / sums[part]) if sums[part] > 0 else NONE
            row += [
                percent(total.count / counts[part]),
                Number(mean, minus(f"{round(mean, 3) + 0.0:.3f}")),
                share,
            ]
        cells.append(row)
    return Table(caption, columns, cells, note)


def _shown(text: str) -> str:
    """A token with its spaces and line breaks in sight, without the sign that marks code."""
    text = visible(text).replace(" ", "\u2423").replace("\n", "\u23ce").replace("\t", "\u21e5")
    return text.replace("`", "\u02b9")


def position_lines(run: RunData) -> list[Chart]:
    """Metrics by position, one line each for the begin, the middle and the end of the run."""
    charts = []
    for name, title in BY_POSITION:
        binned = by_position(run, name)
        if binned is None or len(binned[2]) < 3 or len(binned[1]) < 3:
            continue
        matrix, steps, edges = binned
        centres = np.array([(a + b) / 2 for a, b in itertools.pairwise(edges)])
        size = max(1, round(TENTH * len(steps)))
        middle = len(steps) // 2 - size // 2
        lines, legend, data = [], [], {}
        for style, (part, start) in enumerate(
            (("begin", 0), ("middle", middle), ("end", len(steps) - size)), 1
        ):
            block = matrix[:, start : start + size]
            known = np.isfinite(block).any(1)
            if not known.any():
                continue
            means = np.nanmean(block[known], axis=1)
            lines.append(Line(centres[known], means, style, whole=True))
            span = f"steps {steps[start]:.0f} to {steps[start + size - 1]:.0f}"
            legend.append(Legend(f"line-{style}", f"{part}, {span}"))
            data[part] = {"position": centres[known].tolist(), "values": means.tolist()}
        svg = curves(f"{name}-lines", lines)
        charts.append(Chart(f"{title}, by position", svg, data, legend, "x axis: position, tokens"))
    return charts
