"""Comparing what the check predicts with what training did, on pairs it was not fitted on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats as scipy_stats

from opd.core import stats
from opd.core.stats import Estimate
from opd.recipes.check.forecast import predict
from opd.recipes.check.forecast_model import ForecastModel
from opd.recipes.check.verdict import (
    GO,
    NEGLIGIBLE,
    NO_GO,
    UNKNOWN,
    WORTHWHILE,
    Verdict,
    judge,
)
from opd_lab.calibration.outcomes import Outcome, first_runs

MIN_GAP = 0.1  # accuracy gap from which on a recovery is meaningful


@dataclass(frozen=True)
class Judgement:
    """How right the check was.

    Attributes:
        pairs: number of pairs.
        with_gap: of them, with a gap of `MIN_GAP` or more.
        spearman: rank correlation of predicted and realised accuracy change.
        gain_spearman: of continuation gain alone.
        ceiling: of a run with its repetition on another seed, on `repeated` pairs.
        repeated: number of repeated pairs.
        auroc: of the predicted recovery for "recovers at least half".
        gap_auroc: of the benchmark gap for the same.
        coverage: fraction of changes inside their 90 % interval.
        coverage_p: two-sided binomial test against 90 %.
        error: mean |predicted - realised| change.
        verdicts: how often each was given.
        wrong_no_go: no-gos to pairs that recovered more than half.
        wrong_go: gos to pairs that recovered less than a fifth.
    """

    pairs: int
    with_gap: int
    spearman: float
    gain_spearman: float
    ceiling: float
    repeated: int
    auroc: Estimate
    gap_auroc: Estimate
    coverage: float
    coverage_p: float
    error: float
    verdicts: Mapping[str, int]
    wrong_no_go: int
    wrong_go: int

    @property
    def decided(self) -> float:
        """Fraction of pairs given a plain go or no-go."""
        return (self.verdicts[GO] + self.verdicts[NO_GO]) / self.pairs


def judge_model(model: ForecastModel, outcomes: Sequence[Outcome]) -> Judgement:
    """Judge a model on first runs; repeated ones give the noise ceiling."""
    first = first_runs(outcomes)
    forecasts = [predict(model, o.probe) for o in first]
    changes = np.array([o.change for o in first])
    intervals = [forecast.change for forecast in forecasts if forecast.change is not None]
    predicted = np.array([interval.value for interval in intervals])
    inside = [i.low <= c <= i.high for i, c in zip(intervals, changes, strict=True)]
    with_gap = [i for i, o in enumerate(first) if o.gap >= MIN_GAP]
    recovers_half = [float(first[i].recovery >= WORTHWHILE) for i in with_gap]
    verdicts = [judge(f, o.probe) for f, o in zip(forecasts, first, strict=True)]
    wrong = [v for v, o in zip(verdicts, first, strict=True) if not is_right(v, o)]
    ceiling, repeated = _ceiling(outcomes)
    return Judgement(
        pairs=len(first),
        with_gap=len(with_gap),
        spearman=_rank_correlation(predicted, changes),
        gain_spearman=_rank_correlation([o.values["continuation_gain"] for o in first], changes),
        ceiling=ceiling,
        repeated=repeated,
        # The probe's own estimate of the gap, because that is what the check divides by.
        auroc=stats.auroc(
            [predicted[i] / max(first[i].values["gap"], 0.01) for i in with_gap], recovers_half
        ),
        gap_auroc=stats.auroc([first[i].values["gap"] for i in with_gap], recovers_half),
        coverage=float(np.mean(inside)),
        coverage_p=float(scipy_stats.binomtest(sum(inside), len(inside), 0.9).pvalue),
        error=float(np.abs(predicted - changes).mean()),
        verdicts={v: verdicts.count(v) for v in (GO, UNKNOWN, NO_GO)},
        wrong_no_go=wrong.count(NO_GO),
        wrong_go=wrong.count(GO),
    )


def is_right(verdict: Verdict, outcome: Outcome) -> bool:
    """Whether a verdict was right: a go must recover something, a no-go no more than half."""
    if verdict == GO:
        return outcome.gap >= MIN_GAP and outcome.recovery >= NEGLIGIBLE
    return verdict != NO_GO or outcome.gap < MIN_GAP or outcome.recovery <= WORTHWHILE


def _ceiling(outcomes: Sequence[Outcome]) -> tuple[float, int]:
    """Rank correlation of a run with its repetition, and on how many pairs."""
    repeated = {o.pair.first_name: o.change for o in outcomes if o.pair.repetition}
    changes = [
        (o.change, repeated[o.pair.name]) for o in first_runs(outcomes) if o.pair.name in repeated
    ]
    if len(changes) < 3:
        return float("nan"), len(changes)
    return _rank_correlation(*zip(*changes, strict=True)), len(changes)


def _rank_correlation(a: Sequence[float] | np.ndarray, b: Sequence[float] | np.ndarray) -> float:
    return float(scipy_stats.spearmanr(a, b).statistic)


def judge_feature(outcomes: Sequence[Outcome], name: str) -> tuple[float, Estimate]:
    """One feature of the probe alone: Spearman with the change, AUROC for recovering half."""
    known = [o for o in first_runs(outcomes) if not np.isnan(o.values[name])]
    spearman = _rank_correlation([o.values[name] for o in known], [o.change for o in known])
    with_gap = [o for o in known if o.gap >= MIN_GAP]
    recovers_half = [float(o.recovery >= WORTHWHILE) for o in with_gap]
    return spearman, stats.auroc([o.values[name] for o in with_gap], recovers_half)
