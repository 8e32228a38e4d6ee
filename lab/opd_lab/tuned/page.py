"""The page of the study: docs/opd-or-sft.md and its figure, made from the records alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import median

import numpy as np

from opd.core import stats
from opd.reports.document import Cell, Document, Note, Number, Part, Section, Table
from opd.reports.formatting import minus
from opd.reports.markdown import render_markdown
from opd_lab.experiments.experiment import Curve
from opd_lab.experiments.results import SeedResult
from opd_lab.figure import draw_figure
from opd_lab.tuned.choice import (
    BUDGETS,
    PRICES,
    Budget,
    before,
    choose,
    difference,
    over_seeds,
    plain_budget,
    seeds_of,
    teacher_accuracy,
    trained_regimes,
)
from opd_lab.tuned.regimes import ARMS, OPD_RATES, REGIMES, Arm
from opd_lab.tuned.study import Record

NAME = "opd-or-sft"
SMALL = 0.01  # a difference in accuracy below this is called none, whatever its interval
DESIGN = (
    "A base model of 0.1 million parameters knows how to add hidden values step by step and has "
    "half of the values wrong; teachers know them. Each arm is trained at three learning rates, a "
    "factor of two apart, and the best is chosen per seed by 256 validation problems, of equals "
    "the lowest; accuracy is on other held-out problems, 450 or more, at temperature 1. Every step "
    "of every arm has 64 answers, of a cold start 32. Tokens are those trained on, in the last two "
    "arms all that were sampled. Seconds are CPU time of the process, one thread, evaluations left "
    "out; other work on the machine makes equal runs differ by up to a half. Intervals are "
    "Student's over seeds, 95 %; which of them retrained the models stands at the end. Lines of "
    "the figure connect evaluations: of OPD two, of SFT eighths of the tokens, of SFT then OPD "
    "sixteenths of its on-policy steps; of the last two arms the end of a run for each budget. "
    "Cold start by hand: `coldstart` in run.yaml, at four times the rate of the on-policy steps, "
    "until the overlap suffices or rises no more."
)


def write_page(records: Sequence[Record], out: Path, facts: dict[str, str]) -> Path:
    """Write the page and its figure under `out`; the path of the page."""
    figure = out / NAME / "accuracy.png"
    draw_figure(figure_data(records), figure)
    document = page(records, facts)
    path = out / f"{NAME}.md"
    text = render_markdown(document, {})
    image = f"![Accuracy by thousand tokens]({NAME}/accuracy.png)"
    first = text.index("\n## ", text.index("\n## ") + 1)
    path.write_text(f"{text[:first]}\n{image}\n{text[first:]}", encoding="utf-8")
    return path


def page(records: Sequence[Record], facts: dict[str, str]) -> Document:
    """The page as a document."""
    regimes = trained_regimes(records)
    verdicts: list[Part] = [
        Note("Every arm at its own best rate. OPD minus SFT, in accuracy:"),
        differences(records, regimes),
        kept(records, regimes),
        Note(DESIGN),
    ]
    sections = [Section("answer", "When is on-policy distillation worth it?", verdicts)]
    for budget in BUDGETS:
        name = budget.replace(" ", "-")
        parts: list[Part] = [accuracies(records, regimes, budget)]
        if budget == "equal seconds" and (note := check_note(records)):
            parts.append(note)
        sections.append(Section(name, f"At {budget}", parts))
    sections += [
        Section("price", "An expensive teacher", [prices(records, regimes), Note(PRICE_NOTE)]),
        Section("other", "What was not trained", [others(records, regimes), Note(OTHER_NOTE)]),
        Section("rates", "Rates that were chosen", [rates(records, regimes), Note(RATE_NOTE)]),
        Section(
            "made", "How it was made", [Table("", ("", ""), [[k, v] for k, v in facts.items()])]
        ),
    ]
    title = "On-policy distillation or supervised training?"
    return Document(title, "opd lab tuned", sections, source="lab/opd_lab/records/tuned.jsonl")


PRICE_NOTE = (
    "Equal cost, where a second of the teacher costs so many seconds of the student: the same "
    "runs, each cut where plain distillation at that price would end. Scoring takes the teacher"
    " one pass over an answer, writing one pass for every token. With `64 prompts, one teacher "
    "answer each` supervised training pays for 64 answers and goes over them again and again. "
    "`recipe: auto` and its check are left out: their teacher time was not measured apart."
)
OTHER_NOTE = (
    "Other depth: problems of 6 steps where 3 were trained, and the other way round, which base"
    " and teacher both know. Echo: an unrelated skill of the base (repeat three words)."
)
RATE_NOTE = (
    "Marked *: the smallest or the largest rate that was tried, so a better one may lie "
    "outside. With `SFT, then OPD` the rate is that of the supervised half; the other half has "
    "the OPD rate of the same rank."
)


def estimate_text(values: Sequence[float]) -> Cell:
    """Mean over seeds with its interval; a dash where nothing was measured."""
    if not values:
        return "not measured"
    estimate = stats.mean(np.array(values))
    each = ", ".join(f"{value:.3f}" for value in values)
    return Number(estimate.value, f"{estimate.value:.3f}", each)


def interval_text(estimate: stats.Estimate | None) -> str:
    """A difference with its interval."""
    if estimate is None:
        return "not measured"
    if not np.isfinite(estimate.low):
        return minus(f"{estimate.value:+.3f} (one seed)")
    return minus(f"{estimate.value:+.3f} ({estimate.low:+.3f} to {estimate.high:+.3f})")


def differences(records: Sequence[Record], regimes: Sequence[str]) -> Table:
    """OPD against SFT in every regime."""
    rows: list[list[Cell]] = []
    for regime in regimes:
        each = [difference(records, regime, budget) for budget in BUDGETS]
        cells: list[Cell] = [f"{interval_text(one)}, {word(one)}" for one in each]
        rows.append([REGIMES[regime].title, *cells])
    return Table("OPD minus SFT", ("regime", *BUDGETS), rows)


def kept(records: Sequence[Record], regimes: Sequence[str]) -> Table:
    """What each method keeps of what is not trained, at equal tokens."""
    rows: list[list[Cell]] = []
    for regime in regimes:
        cells: list[Cell] = []
        for name in ("other-depth", "echo"):
            each = difference(records, regime, "equal tokens", name=name)
            cells.append(f"{interval_text(each)}, {word(each)}")
        rows.append([REGIMES[regime].title, *cells])
    return Table("OPD minus SFT, not trained", ("regime", "other depth", "echo"), rows)


def word(estimate: stats.Estimate | None) -> str:
    """What a difference shows."""
    if estimate is None or not np.isfinite(estimate.low):
        return "not known"
    if estimate.low > 0 and estimate.value >= SMALL:
        return "OPD ahead"
    if estimate.high < 0 and estimate.value <= -SMALL:
        return "SFT ahead"
    return "no difference shown"


def accuracies(records: Sequence[Record], regimes: Sequence[str], budget: Budget) -> Table:
    """Every arm at a budget."""
    rows: list[list[Cell]] = []
    for regime in regimes:
        arms = [estimate_text(over_seeds(records, regime, arm, budget)) for arm in ARMS]
        ends = [estimate_text(f(records, regime)) for f in (before, teacher_accuracy)]
        rows.append([REGIMES[regime].title, ends[0], *arms, ends[1]])
    columns = ("regime", "before", *ARMS, "teacher")
    return Table(f"Accuracy, mean over seeds (each seed), {budget}", columns, rows)


def check_note(records: Sequence[Record]) -> Note | None:
    """What the check of `recipe: auto` took of the seconds of plain training, if that was kept."""
    taken, shares = [], []
    for record in records:
        setting = record.setting
        for point in record.points:
            if setting.arm == "recipe: auto" and point.budget == "equal seconds":
                plain = plain_budget(records, setting.regime, setting.seed, 1.0)
                taken.append(point.check_seconds)
                shares.append(point.check_seconds / plain)
    if not taken:
        return None
    return Note(
        f"`recipe: auto` pays for its check here, {min(taken):.1f} to {max(taken):.1f} s of runs "
        f"that take seconds ({min(shares):.0%} to {max(shares):.0%} of plain training's, median "
        f"{median(shares):.0%}): it loads models and prompts by itself, and samples for 32 prompts "
        "or 2 % of the run's tokens, whichever is more; once more, for longer, where it says "
        "no-go at first. Longer runs were not measured here."
    )


def prices(records: Sequence[Record], regimes: Sequence[str]) -> Table:
    """OPD against SFT when the teacher's seconds are dear."""
    rows: list[list[Cell]] = []
    for regime in regimes:
        cells: list[Cell] = []
        for price in PRICES:
            each = difference(records, regime, "equal seconds", price=price)
            cells.append(f"{interval_text(each)}, {word(each)}")
        rows.append([REGIMES[regime].title, *cells])
    return Table("OPD minus SFT", ("regime", *(f"price {price}" for price in PRICES)), rows)


def others(records: Sequence[Record], regimes: Sequence[str]) -> Table:
    """Held-out skill and forgetting, at equal tokens."""
    rows: list[list[Cell]] = []
    for regime in regimes:
        for name in ("other-depth", "echo"):
            arms = [
                estimate_text(over_seeds(records, regime, a, "equal tokens", name)) for a in ARMS
            ]
            start = estimate_text(before(records, regime, name))
            top = estimate_text(teacher_accuracy(records, regime, name))
            rows.append([REGIMES[regime].title, name.replace("-", " "), start, *arms, top])
    return Table("Equal tokens", ("regime", "set", "before", *ARMS, "teacher"), rows)


def rates(records: Sequence[Record], regimes: Sequence[str]) -> Table:
    """The chosen rate of every seed, at equal tokens."""
    rows: list[list[Cell]] = []
    for regime in regimes:
        cells: list[Cell] = []
        for arm in ARMS:
            chosen = [
                choose(records, regime, arm, seed, "equal tokens")
                for seed in seeds_of(records, regime, arm)
            ]
            texts = [f"{one.rate:g}{'*' * one.edge}" for one in chosen if one is not None]
            cells.append(", ".join(texts))
        rows.append([REGIMES[regime].title, *cells])
    tried = ", ".join(f"{rate:g}" for rate in OPD_RATES)
    return Table(f"Tried in every arm: {tried}", ("regime", *ARMS), rows)


def figure_data(records: Sequence[Record]) -> list[SeedResult]:
    """Accuracy by tokens of the rate that validation chose at equal tokens, per seed."""
    by_seed: dict[int, list[Curve]] = {}
    for regime in trained_regimes(records):
        for arm in ARMS:
            for seed in seeds_of(records, regime, arm):
                if curve := _curve(records, regime, arm, seed):
                    by_seed.setdefault(seed, []).append(curve)
    return [SeedResult(seed, 0.0, None, curves) for seed, curves in sorted(by_seed.items())]


def _curve(records: Sequence[Record], regime: str, arm: Arm, seed: int) -> Curve | None:
    chosen = choose(records, regime, arm, seed, "equal tokens")
    if chosen is None:
        return None
    for record in records:
        setting = record.setting
        if (setting.regime, setting.arm, setting.seed) == (regime, arm, seed) and (
            setting.rate == chosen.rate
        ):
            x = [point.tokens / 1000 for point in record.points]
            y = [point.accuracy["test"] for point in record.points]
            title = REGIMES[regime].title.split(",")[0]
            return Curve(f"{title}: by thousand tokens", arm, x, y)
    return None
