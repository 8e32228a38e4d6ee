"""From a probe to numbers with intervals: what `opd check` shows and the prospect is made of.

Every number is a mean over prompts, so its interval is over prompts.
Shapes: P prompts, n student samples, m teacher samples, D depths.
"""

from __future__ import annotations

import math

import numpy as np

from opd.core import stats
from opd.core.stats import Estimate
from opd.recipes.check.diagnose import QUARTERS, Diagnosis
from opd.recipes.check.probe import DEPTHS, Against, Own

TILT = 0.3  # how far the student is tilted towards the teacher, in log space
LEAST = 1e-3  # nats: two models this near are the same to any probe
FAMILIAR = 4.0  # sharpness of `taught`: an answer a nat a token stranger weighs e**-4
SHOWN = {
    "overlap_mass": "diag/overlap_mass_student",
    "overlap_mass_teacher": "diag/overlap_mass_teacher",
    "overlap_ratio": "diag/overlap_ratio",
    "top1_agreement": "diag/top1_agreement",
    "overlap_advantage": "diag/overlap_advantage",
    "reverse_kl": "diag/reverse_kl",
    "entropy_gap": "diag/entropy_gap_abs",
    "student_entropy": "diag/student_entropy",
    "teacher_entropy": "diag/teacher_entropy",
}
READ = {  # the student reading the teacher's rollouts
    "read_mass": "diag/overlap_mass_teacher",
    "read_top1": "diag/top1_agreement",
    "read_kl": "diag/reverse_kl",
}


def features(own: Own, against: Against) -> dict[str, Estimate]:
    """Every number of a pair, by name; those that need answers are left out where there are none.

    Returns:
        `SHOWN` names (those a teacher server can tell), `reach`, lengths; of a teacher that writes
        also `READ` names and `distance` (nats the shorter way: the teacher reading the student, or
        the student the teacher); with answers also `student_accuracy`, `teacher_accuracy`, `gap`,
        `taught`, `lead`, `pass_at_n`, `headroom`, `gain@<depth>`, `continuation_gain`, `auroc`,
        `tilt_gain`.
    """
    groups = len(own.prompts)
    found = {
        name: _of(against.forward, metric, groups)
        for name, metric in SHOWN.items()
        if metric in against.forward.mean
    }
    found["reach"] = stats.mean(against.reward.max(1))
    found["student_length"] = stats.mean(_lengths(own).mean(1))
    if against.lengths is not None:
        found["teacher_length"] = stats.mean(against.lengths.mean(1))
    if against.reverse is not None:
        found |= {name: _of(against.reverse, metric, groups) for name, metric in READ.items()}
        found["distance"] = min(found["reverse_kl"], found["read_kl"], key=lambda e: e.value)
        found["log_distance"] = _log(found["distance"])
    if own.correct is not None:
        found |= _of_answers(own, own.correct, against)
    return found


def _of_answers(own: Own, correct: np.ndarray, against: Against) -> dict[str, Estimate]:
    found = {
        "student_accuracy": stats.avg_at_n(correct),
        "pass_at_n": stats.pass_at_k(correct, correct.shape[1]),
        "auroc": stats.auroc(
            against.reward.ravel(),
            correct.ravel(),
            np.repeat(np.arange(len(correct)), correct.shape[1]),
        ),
        "tilt_gain": stats.mean(tilted(correct, against.reward * _lengths(own)) - correct.mean(1)),
    }
    if against.correct is not None:
        found["teacher_accuracy"] = stats.avg_at_n(against.correct)
        found["gap"] = stats.mean(against.correct.mean(1) - correct.mean(1))
        beyond = against.correct.mean(1) - correct.max(1)
        found["headroom"] = stats.mean(np.maximum(beyond, 0.0))
        if against.reverse is not None:
            strange = against.reverse.mean["diag/token_reward"].reshape(against.correct.shape)
            told = taught(against.correct, strange)
            found["taught"] = stats.mean(told)
            found["lead"] = stats.mean(told - correct.mean(1))
    if against.finished is not None and own.finished is not None:
        gains = against.finished - own.finished
        for column, depth in enumerate(DEPTHS):
            found[f"gain@{depth:g}"] = stats.mean(gains[:, column])
        found["continuation_gain"] = stats.mean(gains.mean(1))
    return found


def tilted(correct: np.ndarray, log_ratio: np.ndarray) -> np.ndarray:
    """Accuracy (P,) if the student preferred, among its own n answers, those the teacher likes.

    Self-normalised weights (q/p)^`TILT` of whole completions: what a small step towards the teacher
    does to accuracy, from rollouts that are there anyway.

    Args:
        correct: (P, n) of 0/1.
        log_ratio: (P, n) log q - log p of each completion.
    """
    scaled = TILT * log_ratio
    weights = np.exp(scaled - scaled.max(1, keepdims=True))
    found: np.ndarray = (weights * correct).sum(1) / weights.sum(1)
    return found


def taught(correct: np.ndarray, reward: np.ndarray) -> np.ndarray:
    """Contributions (P,) to the accuracy of those answers of the teacher the student might write.

    A teacher of two ways of thinking teaches each student its own: answers are weighted by how
    familiar they are to the student. The mean is the weighted accuracy; the spread over prompts is
    that of a ratio, linearised.

    Args:
        correct: (P, m) of 0/1.
        reward: (P, m) mean log p_student - log q_teacher a token of each answer.
    """
    weights = np.exp(FAMILIAR * (reward - reward.max()))
    total = float((weights * correct).sum() / weights.sum())
    found: np.ndarray = total + (weights * (correct - total)).mean(1) / weights.mean()
    return found


def _lengths(own: Own) -> np.ndarray:
    return np.array([len(r) for r in own.rollouts], dtype=float).reshape(len(own.prompts), -1)


def _of(diagnosis: Diagnosis, metric: str, groups: int) -> Estimate:
    """Mean over prompts of a metric's mean over a prompt's rollouts; undefined ones left out."""
    values = diagnosis.mean[metric].reshape(groups, -1)
    known = values[~np.isnan(values).all(1)]
    if not len(known):
        return Estimate(np.nan, np.nan, np.nan, 0)
    return stats.mean(np.nanmean(known, 1))


def _log(e: Estimate) -> Estimate:
    """A positive quantity in factors of e; `LEAST` stands for anything nearer to 0."""
    value, low, high = (math.log(max(x, LEAST)) for x in (e.value, e.low, e.high))
    return Estimate(value, low, high, e.n)


def by_quarter(diagnosis: Diagnosis, metric: str) -> list[float]:
    """A metric's mean over each quarter of the rollouts, (Q,)."""
    values = diagnosis.quarter[metric]
    return [
        float(np.nanmean(values[:, q])) if not np.isnan(values[:, q]).all() else float("nan")
        for q in range(QUARTERS)
    ]
