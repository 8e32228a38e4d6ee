"""Holding what the check says against what training did, on pairs nobody fitted."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats as scipy_stats

from opd.core import stats
from opd.core.stats import Estimate
from opd.recipes.check.forecast import ForecastModel, predict
from opd.recipes.check.verdict import NEGLIGIBLE, WORTHWHILE, judge
from opd_lab.calibration.fitting import values
from opd_lab.calibration.outcomes import Outcome

HEADROOM = 0.1  # a lead from which on a recovery means anything
Score = Callable[[Outcome], float]


@dataclass(frozen=True)
class Judgement:
    """How right the check was.

    Attributes:
        pairs: how many.
        headroom: of them, with a lead of `HEADROOM` or more.
        spearman: rank correlation of expected and realised accuracy change.
        gain_spearman: of continuation gain alone.
        ceiling: of a run with its re-run on another seed, on `again` pairs.
        again: how many were re-run.
        auroc: of the expected recovery for "recovers at least half".
        gap_auroc: of the benchmark gap for the same.
        covered: share of changes inside their 90 % interval, n pairs.
        coverage_p: two-sided binomial test against 90 %.
        error: mean |expected - realised| change.
        verdicts: how often each was given.
        wrong_dont: "don't" to pairs that recovered more than half.
        wrong_go: "go" to pairs that recovered less than a fifth.
    """

    pairs: int
    headroom: int
    spearman: float
    gain_spearman: float
    ceiling: float
    again: int
    auroc: Estimate
    gap_auroc: Estimate
    covered: float
    coverage_p: float
    error: float
    verdicts: Mapping[str, int]
    wrong_dont: int
    wrong_go: int

    @property
    def plain(self) -> float:
        """Share of pairs given a plain go or don't."""
        return (self.verdicts["go"] + self.verdicts["don't"]) / self.pairs


def judgement(model: ForecastModel, outcomes: Sequence[Outcome]) -> Judgement:
    """Judge a model on first runs; re-runs give the noise ceiling."""
    first = [o for o in outcomes if not o.pair.again]
    told = [predict(model, o.probe) for o in first]
    changes = np.array([o.change for o in first])
    expected = np.array([p.change.value for p in told if p.change is not None])
    inside = [
        p.change.low <= o.change <= p.change.high
        for p, o in zip(told, first, strict=True)
        if p.change is not None
    ]
    roomy = [i for i, o in enumerate(first) if o.lead >= HEADROOM]
    half = [float(first[i].recovery >= WORTHWHILE) for i in roomy]
    said = [judge(p, o.probe) for p, o in zip(told, first, strict=True)]
    again = {o.pair.name.rsplit("-again", 1)[0]: o.change for o in outcomes if o.pair.again}
    twice = [(o.change, again[o.pair.name]) for o in first if o.pair.name in again]
    return Judgement(
        pairs=len(first),
        headroom=len(roomy),
        spearman=_rank(expected, changes),
        gain_spearman=_rank([values(o)["continuation_gain"] for o in first], changes),
        ceiling=_rank(*zip(*twice, strict=True)) if len(twice) > 2 else float("nan"),
        again=len(twice),
        auroc=stats.auroc([expected[i] / _lead(first[i]) for i in roomy], half),
        gap_auroc=stats.auroc([values(first[i])["gap"] for i in roomy], half),
        covered=float(np.mean(inside)),
        coverage_p=float(scipy_stats.binomtest(sum(inside), len(inside), 0.9).pvalue),
        error=float(np.abs(expected - changes).mean()),
        verdicts={v: said.count(v) for v in ("go", "go with changes", "don't")},
        wrong_dont=sum(said[i] == "don't" and first[i].recovery > WORTHWHILE for i in roomy),
        wrong_go=sum(
            v == "go" and (o.lead < HEADROOM or o.recovery < NEGLIGIBLE)
            for v, o in zip(said, first, strict=True)
        ),
    )


def _lead(outcome: Outcome) -> float:
    """The probe's own estimate of the lead, which is what the check divides by."""
    return max(values(outcome)["gap"], 0.01)


def _rank(a: Sequence[float] | np.ndarray, b: Sequence[float] | np.ndarray) -> float:
    return float(scipy_stats.spearmanr(a, b).statistic)


def single_feature(outcomes: Sequence[Outcome], name: str) -> tuple[float, Estimate]:
    """Spearman with the change, and AUROC for recovering half, of one number of the probe alone."""
    first = [o for o in outcomes if not o.pair.again]
    found = np.array([values(o)[name] for o in first])
    known = ~np.isnan(found)
    changes = np.array([o.change for o in first])
    roomy = [i for i, o in enumerate(first) if o.lead >= HEADROOM and known[i]]
    half = [float(first[i].recovery >= WORTHWHILE) for i in roomy]
    return _rank(found[known], changes[known]), stats.auroc([found[i] for i in roomy], half)
