"""Which charts a report has, and the healthy ranges with a source in docs/metrics.md.

A test compares the ranges with that document: no range here without a source there.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class HealthyRange:
    """A range that was published, or that follows from the formula."""

    low: float
    high: float
    source: str


# The paper's good run stayed at 0.97-0.99; both masses are at most 1, and higher is no worse.
HEALTHY_RANGES = {
    "diag/overlap_mass_student": HealthyRange(0.97, 1.0, "paper B.1"),
    "diag/overlap_mass_teacher": HealthyRange(0.97, 1.0, "paper B.1"),
    "coldstart/overlap_mass_student": HealthyRange(0.97, 1.0, "paper B.1"),
    "diag/support_mass": HealthyRange(0.97, 1.0, "follows from Eq. 9"),
}


@dataclass(frozen=True)
class ChartSpec:
    """One line chart.

    Attributes:
        title: of the chart.
        lines: metric names with their legends.
        note: how to read it.
        percent: whether the y axis is in percent.
        marked: whether alarms and phases of the run are marked: its x axis is the run's steps.
    """

    title: str
    lines: tuple[tuple[str, str], ...]
    note: str
    percent: bool = False
    marked: bool = True


DIAGNOSTIC_CHARTS = (
    ChartSpec(
        "Overlap ratio (Eq. 6)",
        (("diag/overlap_ratio", "overlap ratio"),),
        "Rose in the paper's good run (4.2), stayed flat in the lab's. Its level says little.",
    ),
    ChartSpec(
        "Overlap mass (Eq. 9, 10)",
        (
            ("diag/overlap_mass_student", "of the student"),
            ("diag/overlap_mass_teacher", "of the teacher"),
        ),
        "Probability of the tokens that both models rank in their top k.",
    ),
    ChartSpec(
        "Overlap-token advantage (Eq. 7)",
        (("diag/overlap_advantage", "nats"),),
        "Rises to 0 from below (paper 4.2). Ignores everything outside the overlap.",
    ),
    ChartSpec(
        "Entropy gap (Eq. 8)",
        (("diag/entropy_gap_abs", "mean of |H(q) \u2013 H(p)|, nats"),),
        "Narrows in a good run (paper 4.2).",
    ),
    ChartSpec(
        "Entropy",
        (("diag/student_entropy", "student"), ("diag/teacher_entropy", "teacher")),
        "Both on the student's own completions, nats.",
    ),
    ChartSpec(
        "Reverse KL",
        (("diag/reverse_kl", "whole vocabulary, nats"),),
        "Should fall. In the failing run it is small from the start and flat (paper B.2).",
    ),
    ChartSpec(
        "Support mass",
        (
            ("diag/support_mass", "student's top k, of the student"),
            ("diag/teacher_support_mass", "student's top k, of the teacher"),
        ),
        "Probability that a loss on the top k covers.",
    ),
    ChartSpec(
        "Gradient norm",
        (("train/grad_norm", "before clipping"),),
        "Large and sustained in a good run (paper B.2).",
    ),
    ChartSpec(
        "Training loss",
        (("train/loss", "per completion token"),),
        "Starts large, falls, flattens (paper B.2).",
    ),
)

# Bounds replace values where a teacher returns only its top k; they have names of their own.
BOUND_CHARTS = (
    ChartSpec(
        "Reverse KL, lower bound",
        (("bound/reverse_kl_lower", "nats"),),
        "From two top-k lists; the full value is at least this.",
    ),
    ChartSpec(
        "Teacher's mass on the student's top k",
        (
            ("bound/teacher_support_mass_lower", "at least"),
            ("bound/teacher_support_mass_upper", "at most"),
        ),
        "Bounds from the teacher's top k.",
    ),
)

ROLLOUT_CHARTS = (
    ChartSpec("Length", (("rollout/length", "completion tokens"),), "Mean of the step's rollouts."),
    ChartSpec(
        "Truncated by the token limit",
        (("rollout/truncated", "fraction of rollouts"),),
        "Rising: the student no longer ends its completions.",
        percent=True,
    ),
    ChartSpec(
        "Repetition",
        (("rollout/repetition", "repeated 4-grams"),),
        "Rising with length: degenerate loops.",
        percent=True,
    ),
    ChartSpec(
        "Accuracy on training prompts",
        (("rollout/reward", "fraction of rollouts"),),
        "Of the rollouts that are trained on.",
        percent=True,
    ),
)

COLDSTART_CHARTS = (
    ChartSpec(
        "Overlap mass",
        (("coldstart/overlap_mass_student", "of the student, on its own rollouts"),),
        "Should rise: on-policy training needs tokens that both models rank high.",
        marked=False,
    ),
    ChartSpec(
        "Top-1 agreement",
        (("coldstart/top1_agreement", "fraction of positions"),),
        "On the same rollouts as the overlap mass.",
        percent=True,
        marked=False,
    ),
    ChartSpec(
        "Imitation loss",
        (("coldstart/loss", "cross-entropy per token"),),
        "On the teacher's completions.",
        marked=False,
    ),
)

HORIZON_CHARTS = (
    ChartSpec(
        "Maximum rollout length",
        (("horizon/limit", "tokens"), ("horizon/reach", "tokens with a weight above 0")),
        "Nothing beyond it is generated, scored or trained.",
    ),
    ChartSpec(
        "Truncated by the horizon",
        (("horizon/cut", "fraction of rollouts"),),
        "Their answers are missing: accuracy on training prompts counts them as wrong.",
        percent=True,
    ),
    ChartSpec(
        "Weight after pruning",
        (("horizon/weight", "mean over tokens"),),
        "Near 0 almost nothing is trained.",
    ),
)

HEATMAPS = (
    ("diag/student_entropy", "Student entropy, nats"),
    ("diag/teacher_entropy", "Teacher entropy, nats"),
    ("diag/overlap_ratio", "Overlap ratio"),
    ("diag/reverse_kl", "Reverse KL, nats"),
    ("diag/gradient_share", "Fraction of the gradient"),
)
