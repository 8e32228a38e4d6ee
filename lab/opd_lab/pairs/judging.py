"""How right the forecast is: world by world, by models that were fitted without that world."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats as scipy_stats

from opd.core import stats
from opd.recipes.check.advice import Advice, decide
from opd.recipes.check.forecast import Forecast, predict
from opd.recipes.check.forecast_model import ForecastModel
from opd.recipes.check.verdict import GO, NEGLIGIBLE, NO_GO, WORTHWHILE, Verdict
from opd.recipes.check.verdict import MIN_GAP as ASKED_GAP
from opd_lab.forecast_fit import TERMS, FitRow, fit_forecast, fit_means
from opd_lab.pairs.records import Outcome, count_trainings, worlds_of

MIN_GAP = 0.1  # accuracy gap from which on a recovery is meaningful
LEVELS = (0.5, 0.8, 0.9, 0.95)  # of central intervals
# What anybody could rank pairs by; the sign makes more of it better.
BASELINES = {
    "gap": 1,
    "overlap_mass": 1,
    "reverse_kl": -1,
    "continuation_gain": 1,
    "pilot_resampled": 1,
}


@dataclass(frozen=True)
class Case:
    """A run, what was predicted for it, and the verdict.

    Attributes:
        outcome: of the run.
        forecast: by a model that knows nothing of the run's world.
        verdict: of the command.
        changes: that would make the run a go.
    """

    outcome: Outcome
    forecast: Forecast
    verdict: Verdict
    changes: Sequence[Advice] = ()

    @property
    def predicted(self) -> float:
        """Predicted change of accuracy."""
        assert self.forecast.change is not None
        return self.forecast.change.value

    @property
    def right(self) -> bool:
        """Whether the verdict was right: a go recovers something, a no-go no more than half.

        The gap that is asked for is the verdict's own.
        """
        outcome = self.outcome
        if self.verdict == GO:
            return is_worth_a_run(outcome)
        if self.verdict == NO_GO:
            return outcome.gap < ASKED_GAP or outcome.recovery <= WORTHWHILE
        return True

    def inside(self, level: float) -> bool:
        """Whether the change lies in the central interval of a level, as `opd check` shows it."""
        distribution = self.forecast.distribution
        assert distribution is not None
        low, high = distribution.interval(level, self.outcome.features["student_accuracy"])
        return low <= self.outcome.change <= high


def is_worth_a_run(outcome: Outcome) -> bool:
    """Whether a go was right: some of a gap of at least `ASKED_GAP` was recovered."""
    return outcome.gap >= ASKED_GAP and outcome.recovery >= NEGLIGIBLE


@dataclass(frozen=True)
class Judgement:
    """How right the forecasts of some cases were.

    Attributes:
        label: world, or all of them.
        cases: how many.
        trainings: that they come from.
        spearman: rank correlation of predicted and real change.
        baselines: of each of `BASELINES` with the real change.
        auroc: of predicted recovery for "recovers at least half", with a gap of `MIN_GAP`.
        with_gap: number of those cases.
        coverage: by level of the interval: fraction of changes inside.
        bias: mean predicted minus real change.
        error: mean absolute difference of the two.
        gain_error: that of continuation gain, taken as the forecast.
        verdicts: how often each was given.
        wrong: of them, how often wrongly.
    """

    label: str
    cases: int
    trainings: int
    spearman: float
    baselines: Mapping[str, float]
    auroc: stats.Estimate
    with_gap: int
    coverage: Mapping[float, float]
    bias: float
    error: float
    gain_error: float
    verdicts: Mapping[str, int]
    wrong: Mapping[str, int]

    @property
    def decided(self) -> float:
        """Fraction of cases given a plain go or no-go."""
        return (self.verdicts.get(GO, 0) + self.verdicts.get(NO_GO, 0)) / max(self.cases, 1)


def fit_rows(outcomes: Sequence[Outcome]) -> list[FitRow]:
    """Outcomes as rows of a fit."""
    return [FitRow(o.features, o.before, o.after, o.teacher, o.world, o.training) for o in outcomes]


def leave_worlds_out(
    outcomes: Sequence[Outcome], terms: Sequence[str] = TERMS, *, widths: bool = True
) -> list[Case]:
    """Every outcome judged by a model that was fitted on the other worlds.

    Args:
        outcomes: of several worlds.
        terms: of the forecast.
        widths: fit the errors as well; without them intervals and verdicts mean nothing.
    """
    cases = []
    for world in worlds_of(outcomes):
        others = fit_rows([o for o in outcomes if o.world != world])
        model = fit_forecast(others, terms) if widths else fit_means(others, terms)
        cases += judge_outcomes(model, [o for o in outcomes if o.world == world])
    return cases


def judge_outcomes(model: ForecastModel, outcomes: Sequence[Outcome]) -> list[Case]:
    """What `opd check` says of outcomes; those without a forecast (no answers) are left out.

    Where it shows no forecast because no answer was accepted, that of the model is evaluated.
    """
    cases = []
    for outcome in outcomes:
        forecast = predict(model, outcome.features, outcome.run)
        if forecast.change is not None:
            verdict, _, changes = decide(model, outcome.features, outcome.run)
            cases.append(Case(outcome, forecast, verdict, changes))
    return cases


def by_world(cases: Sequence[Case]) -> list[Judgement]:
    """A judgement per world, the worst (by rank correlation) first."""
    worlds = worlds_of(case.outcome for case in cases)
    each = [summarise([c for c in cases if c.outcome.world == world], world) for world in worlds]
    return sorted(each, key=lambda j: (np.isnan(j.spearman), j.spearman))


def summarise(cases: Sequence[Case], label: str) -> Judgement:
    """Judge cases together."""
    changes = np.array([case.outcome.change for case in cases])
    predicted = np.array([case.predicted for case in cases])
    gains = np.array([_value(case, "continuation_gain") for case in cases])
    with_gap = [case for case in cases if case.outcome.gap >= MIN_GAP]
    return Judgement(
        label=label,
        cases=len(cases),
        trainings=count_trainings(case.outcome for case in cases),
        spearman=rank_correlation(predicted, changes),
        baselines={
            name: rank_correlation([sign * _value(c, name) for c in cases], changes)
            for name, sign in BASELINES.items()
        },
        auroc=_recovery_auroc(with_gap),
        with_gap=len(with_gap),
        coverage={x: float(np.mean([c.inside(x) for c in cases])) for x in LEVELS},
        bias=float((predicted - changes).mean()),
        error=float(np.abs(predicted - changes).mean()),
        gain_error=float(np.nanmean(np.abs(gains - changes))),
        verdicts=Counter(case.verdict for case in cases),
        wrong=Counter(case.verdict for case in cases if not case.right),
    )


def _recovery_auroc(cases: Sequence[Case]) -> stats.Estimate:
    """AUROC of predicted recovery for "recovers at least half"; NaN without cases."""
    if not cases:
        return stats.Estimate(float("nan"), float("nan"), float("nan"), 0)
    # The probe's own estimate of the gap, because that is what the check divides by.
    return stats.auroc(
        [case.predicted / max(_value(case, "gap"), 0.01) for case in cases],
        [float(case.outcome.recovery >= WORTHWHILE) for case in cases],
    )


def _value(case: Case, name: str) -> float:
    features = case.outcome.features
    return features[name].value if name in features else float("nan")


def rank_correlation(a: Sequence[float] | np.ndarray, b: Sequence[float] | np.ndarray) -> float:
    """Spearman's, of the pairs in which both are known; NaN where one of them is constant."""
    x, y = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    known = np.isfinite(x) & np.isfinite(y)
    if known.sum() < 3 or np.ptp(x[known]) == 0 or np.ptp(y[known]) == 0:
        return float("nan")
    ranks = scipy_stats.rankdata([x[known], y[known]], axis=1)  # five times as fast as spearmanr
    return float(np.corrcoef(ranks)[0, 1])
