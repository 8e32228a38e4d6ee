"""What a pilot has changed, as numbers with intervals over prompts.

Every number compares the student after some steps with the student before, on the same texts or
with the same random numbers. Shapes: P prompts, n rollouts per prompt, M samples of the teacher.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import numpy as np

from opd.core import stats
from opd.core.stats import Estimate
from opd.recipes.check.fixed_texts import FixedTexts, Reading
from opd.recipes.check.pilot import Pilot, gradient_agreement
from opd.recipes.check.probe import Answers, StudentSide, TeacherSide
from opd.recipes.check.weights import effective_samples, temper

PILOT_DEFINITIONS = {
    "pilot_steps": "optimizer steps of the pilot",
    "pilot_path": "sum of the learning rates so far, as a fraction of that of the whole run",
    "pilot_kl_drop": "1 - KL(p_k || q) / KL(p_0 || q) at fixed positions of the student's rollouts",
    "pilot_off_gain": "(log p_k - log p_0) / (log q - log p_0) over the teacher's samples: the "
    "fraction of that distance travelled",
    "pilot_right_gain": "log p_k - log p_0 per token of the teacher's correct samples, nats",
    "pilot_change": "accuracy of the student's rollouts weighted by p_k / p_0, minus accuracy; the "
    "weights are tempered until enough rollouts count, and the change is divided by the exponent",
    "pilot_ess": "effective number of rollouts under the untempered weights, as a fraction",
    "pilot_slope": "covariance, within a prompt, of being correct and log p_k - log p_0: change of "
    "accuracy to first order",
    "pilot_contrast": "log p_k - log p_0 per token of correct rollouts, minus that of wrong "
    "ones of the same prompt",
    "pilot_auroc": "AUROC of log p_k - log p_0 per token of a rollout for its correctness",
    "pilot_drift": "log p_0 - log p_k per token of the student's rollouts",
    "pilot_loss_ratio": "loss of the last step / loss of the first",
    "pilot_grad_norm": "gradient norm of the last step, before clipping",
    "pilot_agreement": "agreement of the steps' gradients: 0 for independent noise, 1 if all equal",
    "pilot_refused": "fraction of the steps that were not made because they were not finite",
    "pilot_resampled": "accuracy of answers sampled after the pilot with the random numbers of "
    "those before it, minus theirs",
    "pilot_truncated": "fraction of the re-sampled answers that are cut off",
}
"""What each number is; p_0 is the student before, p_k after k steps, q the teacher."""
STRETCHED = (
    "path",
    "kl_drop",
    "off_gain",
    "right_gain",
    "drift",
    "resampled",
    "truncated",
)
"""The numbers `pilot_*` that are measured again, as `stretch_*`, after steps at a raised rate."""
STRETCH_DEFINITIONS = {
    f"stretch_{name}": f"pilot_{name} after a few more steps at a raised rate" for name in STRETCHED
}
PART_DEFINITIONS = {
    f"part_{name}": f"pilot_{name} after half or all of the run's own steps, or nearly"
    for name in ("steps", "refused", *STRETCHED)
}
"""Of a run that is so short that half of it, or all, fits into the time of its check."""
MIN_EXPONENT = 0.1  # of the weights, by which a change is divided


def moment_features(
    pilot: Pilot,
    run_path: float,
    texts: FixedTexts,
    before: Reading,
    after: Reading,
    sides: tuple[StudentSide, TeacherSide],
) -> dict[str, Estimate]:
    """Every number of a moment of the pilot that needs no sampling.

    Args:
        pilot: its steps so far.
        run_path: sum of the learning rates of the whole run.
        texts: the fixed texts.
        before: the student's reading of them before the pilot.
        after: now.
        sides: the probe's halves, to which the texts belong.
    """
    student, teacher = sides
    prompts = len(student.prompts)
    lengths = np.array([len(r) for r in texts.rollouts], dtype=float)
    moved = (after.rollouts - before.rollouts).reshape(prompts, -1)
    per_token = moved / lengths.reshape(prompts, -1)
    features = _step_features(pilot, run_path)
    features["pilot_drift"] = _ratio(-moved.sum(1), lengths.reshape(prompts, -1).sum(1))
    if before.kl is not None and after.kl is not None:
        parts = (x.reshape(prompts, -1).sum(1) for x in (before.kl - after.kl, before.kl))
        features["pilot_kl_drop"] = _ratio(*parts)
    if len(after.samples):
        features |= _teacher_sample_features(texts, before, after, teacher)
    if student.correct is not None:
        features |= _answer_features(student.correct, moved, per_token)
    return features


def _step_features(pilot: Pilot, run_path: float) -> dict[str, Estimate]:
    values = {
        "pilot_steps": float(pilot.steps),
        "pilot_path": pilot.path / run_path,
        "pilot_refused": pilot.refused / pilot.steps,
    }
    if pilot.losses:
        first = pilot.losses[0]
        values["pilot_loss_ratio"] = pilot.losses[-1] / first if first else math.nan
        values["pilot_grad_norm"] = pilot.grad_norms[-1]
    agreement = gradient_agreement(pilot.learner.optimizer)
    if not math.isnan(agreement):
        values["pilot_agreement"] = agreement
    return {name: Estimate(value, value, value, 1) for name, value in values.items()}


def _teacher_sample_features(
    texts: FixedTexts, before: Reading, after: Reading, teacher: TeacherSide
) -> dict[str, Estimate]:
    """How much likelier the teacher's own samples have become, (P, m) of them."""
    assert teacher.on_teacher is not None
    assert teacher.answers is not None
    correct = teacher.answers.correct
    reward = teacher.on_teacher.mean["diag/token_reward"]  # log p_0 - log q per token
    lengths = np.array([len(r) for r in texts.samples], dtype=float)
    shape = (len(teacher.reward), -1)
    moved = (after.samples - before.samples).reshape(shape)
    distance = (-reward * lengths).reshape(shape)
    features = {"pilot_off_gain": _ratio(moved.sum(1), distance.sum(1))}
    if correct is not None and correct.any():
        per_prompt = (moved * correct).sum(1), (lengths.reshape(shape) * correct).sum(1)
        features["pilot_right_gain"] = _ratio(*per_prompt)
    return features


def _answer_features(
    correct: np.ndarray, moved: np.ndarray, per_token: np.ndarray
) -> dict[str, Estimate]:
    """From (P, n) correctness and log-prob changes, of rollouts and per token."""
    prompts, n = correct.shape
    features = {
        "pilot_change": weighted_change(correct, moved),
        "pilot_auroc": stats.auroc(
            per_token.ravel(), correct.ravel(), np.repeat(np.arange(prompts), n)
        ),
    }
    fraction = effective_samples(np.exp(moved - moved.max())) / moved.size
    features["pilot_ess"] = Estimate(fraction, fraction, fraction, moved.size)
    if n > 1:
        centred = (correct - correct.mean(1, keepdims=True)) * moved
        features["pilot_slope"] = stats.mean(centred.sum(1) / (n - 1))
    mixed = (correct.max(1) > 0) & (correct.min(1) < 1)
    if mixed.sum() > 1:
        right, values = correct[mixed], per_token[mixed]
        means = [(values * w).sum(1) / w.sum(1) for w in (right, 1 - right)]
        features["pilot_contrast"] = stats.mean(means[0] - means[1])
    return features


def weighted_change(correct: np.ndarray, moved: np.ndarray) -> Estimate:
    """Change of accuracy by importance weights, from rollouts of the student before.

    Args:
        correct: (P, n) of 0/1.
        moved: (P, n) log p_k - log p_0 of each rollout.

    Returns:
        Self-normalised over all rollouts, linearised interval over prompts. Where too few rollouts
        would count, weights are raised to an exponent below 1 and the change is divided by it.
    """
    flat, exponent = temper(moved.ravel())
    weights = flat.reshape(moved.shape)
    weighted = float((weights * correct).mean())
    accuracy = float(correct.mean())
    influence = weights * (correct - weighted) - (correct - accuracy)
    estimate = stats.mean(
        (weighted - accuracy + influence.mean(1)) / max(float(exponent), MIN_EXPONENT)
    )
    low, high = -accuracy, 1 - accuracy

    def possible(x: float) -> float:
        return min(max(x, low), high)

    return Estimate(
        possible(estimate.value), possible(estimate.low), possible(estimate.high), estimate.n
    )


def resampled_features(before: Answers, after: Answers) -> dict[str, Estimate]:
    """From answers (P, m) before, and those after with the same prompts and random numbers."""
    features = {"pilot_truncated": stats.mean_fraction(after.truncated.mean(1))}
    if before.correct is not None and after.correct is not None:
        difference = after.correct.mean(1) - before.correct.mean(1)
        features["pilot_resampled"] = stats.mean(difference)
    return features


def as_stretch(features: Mapping[str, Estimate]) -> dict[str, Estimate]:
    """Numbers `pilot_*` that were measured after the raised rate, under their own names."""
    return _renamed(features, STRETCH_DEFINITIONS, "stretch")


def as_part(features: Mapping[str, Estimate]) -> dict[str, Estimate]:
    """Numbers `pilot_*` that were measured after a part of the run, under their own names."""
    return _renamed(features, PART_DEFINITIONS, "part")


def _renamed(
    features: Mapping[str, Estimate], names: Iterable[str], prefix: str
) -> dict[str, Estimate]:
    known = ((name, f"pilot_{name.removeprefix(f'{prefix}_')}") for name in names)
    return {name: features[pilot] for name, pilot in known if pilot in features}


def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> Estimate:
    """Ratio of two sums over prompts, (P,) each, with a linearised interval over prompts."""
    total = float(denominator.sum())
    if total == 0 or not math.isfinite(total):
        return Estimate(math.nan, math.nan, math.nan, len(numerator))
    value = float(numerator.sum()) / total
    influence = (numerator - value * denominator) / denominator.mean()
    return stats.mean(value + influence)
