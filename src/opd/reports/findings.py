"""What limited a run: rules on trends, each with its evidence and what to try next.

Thresholds that no paper gives are named constants here and called this page's own in the text.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import stats as scipy_stats

from opd.core import stats
from opd.reports.document import Sentence
from opd.reports.formatting import minus, percent, plain, points, points_range
from opd.reports.outcome import Outcome
from opd.reports.read import RunData, Series

MOST = 0.5  # of the gap, by the interval's lower end: "most of it"
SMALL_KL = 0.05  # nats a token: hardly anything left to learn from this teacher
CUT = 0.2  # share of rollouts cut by the limit that deserves a sentence
LOOPS = 0.2  # share of repeated 4-grams that deserves a sentence
MASS = 0.97  # lowest overlap mass of the paper's good run (B.1)


@dataclass(frozen=True)
class Change:
    """First fifth of the steps against the last: means, and the interval of their difference."""

    first: float
    last: float
    low: float
    high: float

    @property
    def rose(self) -> bool:
        """Whether the whole interval is above 0."""
        return self.low > 0

    @property
    def fell(self) -> bool:
        """Whether the whole interval is below 0."""
        return self.high < 0

    def text(self) -> str:
        """For people."""
        ends = f"{plain(self.first).text} \u2192 {plain(self.last).text}"
        width = minus(f"{self.low:+.2g} to {self.high:+.2g}")
        return f"{ends}, first against last fifth of the steps, change {width}"

    def values(self) -> dict[str, float]:
        """For the JSON twin."""
        return {"first": self.first, "last": self.last, "low": self.low, "high": self.high}


def change(series: Series) -> Change | None:
    """First fifth against last fifth of a series by Welch's t; None for fewer than 10 steps.

    Steps are taken as independent given the trend, which is roughly so: each has its own prompts.
    """
    count = len(series) // 5
    if count < 2:
        return None
    first, last = series.values[:count], series.values[-count:]
    begin, end = float(first.mean()), float(last.mean())
    noise = np.array([first.var(ddof=1), last.var(ddof=1)]) / count
    if not noise.any():
        return Change(begin, end, end - begin, end - begin)
    # Welch's interval by hand: scipy's test warns of a part that is constant, as a mass of 1 is.
    freedom = noise.sum() ** 2 / (noise**2 / (count - 1)).sum()
    half = float(scipy_stats.t.ppf(0.975, freedom) * noise.sum() ** 0.5)
    return Change(begin, end, end - begin - half, end - begin + half)


Limit = tuple[Sentence, Sentence | None]


def limits(run: RunData, main: Outcome | None) -> list[Limit]:
    """What held the run back; where nothing shows, and it did well, that is said."""
    rules = (
        _alarms,
        _refused,
        _no_lead,
        _mass,
        _overlap,
        _gap,
        _nothing_left,
        _cut,
        _loops,
        _rising,
    )
    found = [limit for rule in rules if (limit := rule(run, main)) is not None]
    if found or not worked(main):
        return found
    return [(Sentence("Nothing in the numbers shows what held back the rest of the gap."), None)]


def worked(main: Outcome | None) -> bool:
    """Whether most of the gap to the teacher is surely closed."""
    return main is not None and main.share is not None and main.share.low >= MOST


def _alarms(run: RunData, main: Outcome | None) -> Limit | None:
    if not run.alarms:
        return None
    first, names = run.alarms[0], list(dict.fromkeys(a.name for a in run.alarms))
    count = f"{len(run.alarms):,} alarm{'s' if len(run.alarms) > 1 else ''}"
    shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    text = f"{count} ({shown}), the first at step {first.step}."
    acted = next((a for a in run.alarms if a.acted), None)
    if acted is not None:
        text += f" At step {acted.step} the run acted: {acted.acted}."
    values = {"alarms": len(run.alarms), "first": first.step, "names": names}
    evidence = " ".join(filter(None, [first.message, first.evidence]))
    remedy = Sentence(first.remedy, f"the alarm {first.name}") if first.remedy else None
    return Sentence(text, f"{evidence} Listed below.", values), remedy


def _refused(run: RunData, main: Outcome | None) -> Limit | None:
    refused = len(run.series("train/refused"))
    if not refused:
        return None
    return (
        Sentence(
            f"{refused} update{'s were' if refused > 1 else ' was'} refused because loss or "
            "gradient was not finite.",
            "train/refused",
            {"refused": refused},
        ),
        Sentence("Lower optim.lr, and look at the batches kept in refused/."),
    )


def _no_lead(run: RunData, main: Outcome | None) -> Limit | None:
    if main is None or main.lead is None or main.lead.difference.low > 0:
        return None
    if main.gain is None or main.gain.difference.high >= 0:
        return None
    return (
        Sentence(
            "The student was pulled to the teacher, whose answers are worse: it learns how the "
            "teacher thinks, not how well it scores (paper 3.3).",
            "accuracy moved from its own level towards the teacher's",
        ),
        Sentence("Choose a teacher that is ahead on this task; `opd check` compares several."),
    )


def _mass(run: RunData, main: Outcome | None) -> Limit | None:
    mass = change(run.series("diag/overlap_mass_student"))
    if mass is None or mass.last >= MASS:
        return None
    where = "fell" if mass.fell else "started low and rose" if mass.rose else "stayed low"
    return (
        Sentence(
            f"Part of the student's probability is where the teacher's top tokens are not: its "
            f"overlap mass {where}. The paper's good run stayed at 0.97 or more (B.1).",
            mass.text(),
            mass.values(),
        ),
        Sentence(
            "Take a teacher of the student's own pattern of thinking, or warm the student up on "
            "the teacher's completions first: `coldstart: {}` in run.yaml. loss.mode=tail also "
            "sees the mass outside the support."
        ),
    )


def _overlap(run: RunData, main: Outcome | None) -> Limit | None:
    overlap = change(run.series("diag/overlap_ratio"))
    if overlap is None or overlap.rose:
        return None
    mass = change(run.series("diag/overlap_mass_student"))
    met = run.coldstart is not None or worked(main)
    if mass is not None and mass.last >= MASS and met:
        # Nearly all probability is shared: the ratio counts the tail of two peaked distributions.
        return None
    where = "fell" if overlap.fell else "did not rise"
    return (
        Sentence(
            f"The two models' likely tokens did not come closer: the overlap ratio {where}, as in "
            "the paper's failing run (4.2).",
            overlap.text(),
            overlap.values(),
        ),
        Sentence(
            "Try a teacher of the student's own family and pattern of thinking, or prompts the "
            "teacher was trained on."
        ),
    )


def _gap(run: RunData, main: Outcome | None) -> Limit | None:
    gap = change(run.series("diag/entropy_gap_abs"))
    if gap is None or not gap.rose:
        return None
    text = "The entropy gap widened; in the paper's good run it narrows (4.2)."
    return Sentence(text, gap.text(), gap.values()), None


def _nothing_left(run: RunData, main: Outcome | None) -> Limit | None:
    kl = change(run.series("diag/reverse_kl"))
    if kl is None or kl.first > SMALL_KL or kl.fell:
        return None
    return (
        Sentence(
            f"There was little to learn from this teacher: reverse KL was below {SMALL_KL} nats a "
            "token (this page's threshold) from the start and stayed flat, as in the paper's "
            "failing run (B.2).",
            kl.text(),
            kl.values(),
        ),
        Sentence("Choose a teacher with skills beyond the student's, such as one trained with RL."),
    )


def _cut(run: RunData, main: Outcome | None) -> Limit | None:
    cut = change(run.series("rollout/truncated"))
    if cut is None or cut.last < CUT:
        return None
    return (
        Sentence(
            f"{percent(cut.last).text} of the last rollouts were cut by the token limit.",
            cut.text(),
            cut.values(),
        ),
        Sentence(
            "Raise rollout.max_new_tokens, or see whether the student forgot to stop: both models "
            "must agree on stop tokens."
        ),
    )


def _loops(run: RunData, main: Outcome | None) -> Limit | None:
    loops = change(run.series("rollout/repetition"))
    if loops is None or loops.last < LOOPS or not loops.rose:
        return None
    return (
        Sentence(
            "The student repeats itself more than at the start.", loops.text(), loops.values()
        ),
        Sentence("Shorten rollout.max_new_tokens, or mix in SFT (loss.terms.sft_weight)."),
    )


def _rising(run: RunData, main: Outcome | None) -> Limit | None:
    if main is None or len(main.task.student) < 3 or run.alive:
        return None
    earlier, last = main.task.student[-2:]
    late = stats.paired(earlier.per_prompt, last.per_prompt).difference
    if late.low <= 0:
        return None
    return (
        Sentence(
            f"Accuracy was still rising when it ended: steps {earlier.step} to {last.step} brought "
            f"{points(late.value)}.",
            points_range(late.low, late.high),
            {"difference": late.value, "low": late.low, "high": late.high},
        ),
        Sentence("Train longer: raise train.steps and `opd train ... --resume`."),
    )
