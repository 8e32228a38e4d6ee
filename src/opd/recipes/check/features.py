"""From a probe to numbers with intervals: what `opd check` reports and the forecast is made of.

Every feature is a mean over prompts, so its interval is over prompts; `DEFINITIONS` says of what
(`others_accuracy` is of other candidates).
Shapes: P prompts, n student samples and m teacher samples per prompt, D depths.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from opd.core import stats
from opd.core.stats import Estimate
from opd.recipes.check.diagnose import QUARTERS, Diagnosis
from opd.recipes.check.probe import DEPTHS, StudentSide, TeacherSide
from opd.recipes.check.weights import effective_samples, temper

TILT = 0.3  # exponent of the ratio q/p with which student samples are reweighted
MIN_DISTANCE = 1e-3  # nats: smaller distances are the same to any probe
LIKELIHOOD_EXPONENT = 4.0  # a teacher sample a nat per token less likely weighs e**-4
ON_STUDENT = {  # on the student's rollouts
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
FRACTIONS = {  # of the diagnostics; the others have no upper end
    "diag/overlap_mass_student",
    "diag/overlap_mass_teacher",
    "diag/overlap_ratio",
    "diag/top1_agreement",
}
ON_TEACHER = {  # on the teacher's rollouts: there the teacher is the diagnostics' "student"
    "offpolicy_overlap_mass": "diag/overlap_mass_teacher",
    "offpolicy_top1_agreement": "diag/top1_agreement",
    "offpolicy_kl": "diag/reverse_kl",
}


DEFINITIONS = {
    **{name: f"{metric} on the student's rollouts" for name, metric in ON_STUDENT.items()},
    **{
        name: f"{metric} on the teacher's rollouts, where the teacher takes the student's role"
        for name, metric in ON_TEACHER.items()
    },
    "distance": "the smaller of reverse_kl and offpolicy_kl, nats per token",
    "log_distance": f"log distance, at least log {MIN_DISTANCE:g}",
    "max_reward": "largest mean log q - log p per token among a prompt's student rollouts",
    "student_length": "tokens of a student rollout",
    "teacher_length": "tokens of a teacher answer",
    "student_accuracy": "fraction of the student's answers that are correct, sampled as the run's "
    "first held-out set is (without one, as its rollouts)",
    "teacher_accuracy": "likewise of the teacher's answers",
    "greedy_accuracy": "fraction of the student's answers at temperature 0 that are correct",
    "slips": "greedy_accuracy - student_accuracy: what sampling costs, which needs no learning",
    "student_truncated": "fraction of the student's answers that are cut off at the limit",
    "teacher_truncated": "likewise of the teacher's",
    "gap": "teacher_accuracy - student_accuracy, paired by prompt",
    "weighted_teacher_accuracy": "teacher_accuracy, answers weighted by exp("
    f"{LIKELIHOOD_EXPONENT:g} r), r their mean log p - log q per token: what is likely under the "
    "student counts more; weights are raised to an exponent below 1 where one answer would count "
    "more than four average ones",
    "weighted_ess": "effective number of answers behind it",
    "weighted_gap": "weighted_teacher_accuracy - student_accuracy",
    "pass_at_n": "fraction of prompts with a correct rollout of the student",
    "headroom": "accuracy of the teacher on a prompt beyond that of the student's best rollout, 0 "
    "where it is not beyond it",
    **{
        f"gain@{depth:g}": f"accuracy of the teacher's continuation of the first {depth:.0%} of a "
        "student rollout, minus that of the student's own continuation"
        for depth in DEPTHS
    },
    "continuation_gain": "mean of the gains at all depths",
    "auroc": "AUROC of the mean log q - log p per token of a student rollout for its correctness",
    "tilt_gain": f"accuracy of student rollouts reweighted by (q/p)^{TILT:g}, at least half of a "
    "prompt's counting, minus their accuracy",
}
"""What each feature is; p is the student, q the teacher, diag/ names are those of metrics.md."""


def compute_features(student: StudentSide, teacher: TeacherSide) -> dict[str, Estimate]:
    """Every number of a pair, by name; those that need answers are left out where there are none.

    Returns:
        Names of `DEFINITIONS`. A teacher server determines those of `ON_STUDENT` and `ON_TEACHER`
        that need no more than its top tokens, with distances estimated from the sampled tokens; one
        that only scores, none of the teacher's answers.
    """
    groups = len(student.prompts)
    features = {
        name: _prompt_mean(teacher.on_student, metric, groups)
        for name, metric in ON_STUDENT.items()
        if metric in teacher.on_student.mean
    }
    features["max_reward"] = stats.mean(teacher.reward.max(1))
    features["student_length"] = stats.mean(_lengths(student).mean(1))
    features["student_truncated"] = stats.mean_fraction(student.answers.truncated.mean(1))
    if teacher.answers is not None:
        features["teacher_length"] = stats.mean(teacher.answers.lengths.mean(1))
        features["teacher_truncated"] = stats.mean_fraction(teacher.answers.truncated.mean(1))
    if teacher.on_teacher is not None:
        features |= {
            name: _prompt_mean(teacher.on_teacher, metric, groups)
            for name, metric in ON_TEACHER.items()
            if metric in teacher.on_teacher.mean
        }
        known = [features[n] for n in ("reverse_kl", "offpolicy_kl") if n in features]
        if known:
            features["distance"] = min(known, key=lambda e: e.value)
            features["log_distance"] = _log(features["distance"])
    if student.correct is not None:
        features |= _answer_features(student, student.correct, teacher)
    return features


def others_accuracy(others: Sequence[TeacherSide]) -> dict[str, Estimate]:
    """Highest accuracy of the other candidates' answers, by its name; empty without any."""
    correct = [t.answers.correct for t in others if t.answers is not None]
    known = [stats.avg_at_n(c) for c in correct if c is not None]
    return {"others_accuracy": max(known, key=lambda e: e.value)} if known else {}


def _answer_features(
    student: StudentSide, correct: np.ndarray, teacher: TeacherSide
) -> dict[str, Estimate]:
    prompts, n = correct.shape
    ours = student.answers.correct
    assert ours is not None
    tilted = tilted_accuracy(correct, teacher.reward * _lengths(student))
    features = {
        "student_accuracy": stats.avg_at_n(ours),
        "pass_at_n": stats.pass_at_k(correct, n),
        "auroc": stats.auroc(
            teacher.reward.ravel(), correct.ravel(), np.repeat(np.arange(prompts), n)
        ),
        "tilt_gain": stats.paired_change(correct.mean(1), tilted),
    }
    if student.greedy is not None and student.greedy.correct is not None:
        features["greedy_accuracy"] = stats.avg_at_n(student.greedy.correct)
        features["slips"] = stats.paired_change(ours.mean(1), student.greedy.correct.mean(1))
    if teacher.answers is not None and teacher.answers.correct is not None:
        features |= _teacher_features(ours, correct, teacher, teacher.answers.correct)
    if teacher.continued is not None and student.continued is not None:
        before, after = student.continued, teacher.continued
        for column, depth in enumerate(DEPTHS):
            gain = stats.paired_change(before[:, column], after[:, column])
            features[f"gain@{depth:g}"] = gain
        features["continuation_gain"] = stats.paired_change(before.mean(1), after.mean(1))
    return features


def _teacher_features(
    ours: np.ndarray, rollouts: np.ndarray, teacher: TeacherSide, theirs: np.ndarray
) -> dict[str, Estimate]:
    """From correctness of the answers of both (P, m), and of the student's rollouts (P, n)."""
    features = {
        "teacher_accuracy": stats.avg_at_n(theirs),
        "gap": stats.paired_change(ours.mean(1), theirs.mean(1)),
        "headroom": stats.mean_fraction(np.maximum(theirs.mean(1) - rollouts.max(1), 0.0)),
    }
    if teacher.on_teacher is not None:
        reward = teacher.on_teacher.mean["diag/token_reward"].reshape(theirs.shape)
        weighted, effective = weighted_accuracy(theirs, reward)
        features["weighted_teacher_accuracy"] = stats.mean_fraction(weighted)
        features["weighted_gap"] = stats.mean(weighted - ours.mean(1))
        features["weighted_ess"] = Estimate(effective, effective, effective, theirs.size)
    return features


def tilted_accuracy(correct: np.ndarray, log_ratio: np.ndarray) -> np.ndarray:
    """Accuracy (P,) of the student's own n samples, reweighted towards the teacher.

    Self-normalised weights (q/p)^`TILT` of whole completions, tempered until at least half of a
    prompt's samples count: what a small step towards the teacher does to accuracy, from rollouts
    that exist anyway.

    Args:
        correct: (P, n) of 0/1.
        log_ratio: (P, n) log q - log p of each completion.
    """
    weights, _ = temper(TILT * log_ratio, max_weight=2.0)  # of n samples: at least n / 2 count
    accuracy: np.ndarray = (weights * correct).mean(1)
    return accuracy


def weighted_accuracy(correct: np.ndarray, reward: np.ndarray) -> tuple[np.ndarray, float]:
    """Contributions (P,) to the teacher's accuracy, weighted by the student's likelihood.

    A teacher with two solution styles teaches each student its own: samples are weighted by how
    likely they are under the student, but none more than `opd.recipes.check.weights.MAX_WEIGHT`
    average ones: one lucky sample that the student finds likely is no evidence. The mean is the
    weighted accuracy; the spread over prompts is that of a ratio, linearised.

    Args:
        correct: (P, m) of 0/1.
        reward: (P, m) mean log p_student - log q_teacher per token of each teacher sample.

    Returns:
        The contributions, and the effective number of samples.
    """
    flat, _ = temper(LIKELIHOOD_EXPONENT * reward.ravel())
    weights = flat.reshape(reward.shape)
    total = float((weights * correct).mean())
    contributions: np.ndarray = total + (weights * (correct - total)).mean(1)
    return contributions, effective_samples(flat)


def _lengths(side: StudentSide) -> np.ndarray:
    return np.array([len(r) for r in side.rollouts], dtype=float).reshape(len(side.prompts), -1)


def _prompt_mean(diagnosis: Diagnosis, metric: str, groups: int) -> Estimate:
    """Mean over prompts of a metric's mean over a prompt's rollouts; undefined ones left out."""
    values = diagnosis.mean[metric].reshape(groups, -1)
    known = values[~np.isnan(values).all(1)]
    if not len(known):
        return Estimate(np.nan, np.nan, np.nan, 0)
    estimate = stats.mean_fraction if metric in FRACTIONS else stats.mean
    return estimate(np.nanmean(known, 1))


def _log(e: Estimate) -> Estimate:
    """Natural logarithm of a positive quantity, at least that of `MIN_DISTANCE`."""
    value, low, high = (math.log(max(x, MIN_DISTANCE)) for x in (e.value, e.low, e.high))
    return Estimate(value, low, high, e.n)


def quarter_means(diagnosis: Diagnosis, metric: str) -> list[float]:
    """A metric's mean over each quarter of the rollouts, (Q,)."""
    values = diagnosis.quarter[metric]
    return [
        float(np.nanmean(values[:, q])) if not np.isnan(values[:, q]).all() else float("nan")
        for q in range(QUARTERS)
    ]
