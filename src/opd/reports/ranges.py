"""Charts of the paper's picture, and the ranges that docs/metrics.md has a source for.

A test compares the ranges with that page. No range here without a source there.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Healthy:
    """A range that somebody published, or that follows from the formula."""

    low: float
    high: float
    source: str


# The paper's good run stayed at 0.97-0.99; both masses are at most 1, and more is no worse.
HEALTHY = {
    "diag/overlap_mass_student": Healthy(0.97, 1.0, "paper B.1"),
    "diag/overlap_mass_teacher": Healthy(0.97, 1.0, "paper B.1"),
    "coldstart/overlap_mass_student": Healthy(0.97, 1.0, "paper B.1"),
    "diag/support_mass": Healthy(0.97, 1.0, "follows from Eq. 9"),
}


@dataclass(frozen=True)
class Picture:
    """One chart of curves: names of metrics.jsonl with their legends, and how to read them."""

    title: str
    lines: tuple[tuple[str, str], ...]
    note: str
    percent: bool = False
    marked: bool = True  # with the run's alarms and phases; its x axis is the run's steps


PICTURES = (
    Picture(
        "Overlap ratio (Eq. 6)",
        (("diag/overlap_ratio", "overlap ratio"),),
        "Should rise; its level says little (paper 4.2).",
    ),
    Picture(
        "Overlap mass (Eq. 9, 10)",
        (
            ("diag/overlap_mass_student", "of the student"),
            ("diag/overlap_mass_teacher", "of the teacher"),
        ),
        "Probability on the tokens both rank in their top k.",
    ),
    Picture(
        "Overlap-token advantage (Eq. 7)",
        (("diag/overlap_advantage", "nats"),),
        "Rises to 0 from below (paper 4.2). Ignores everything outside the overlap.",
    ),
    Picture(
        "Entropy gap (Eq. 8)",
        (("diag/entropy_gap_abs", "mean of |H(q) \u2013 H(p)|, nats"),),
        "Narrows in a good run (paper 4.2).",
    ),
    Picture(
        "Entropy",
        (("diag/student_entropy", "student"), ("diag/teacher_entropy", "teacher")),
        "Both on the student's own text, nats.",
    ),
    Picture(
        "Reverse KL",
        (("diag/reverse_kl", "whole vocabulary, nats"),),
        "Falls. Small from the start and flat is the failing run (paper B.2).",
    ),
    Picture(
        "Support mass",
        (
            ("diag/support_mass", "student's top k, of the student"),
            ("diag/teacher_support_mass", "student's top k, of the teacher"),
        ),
        "What a loss on the top k can see.",
    ),
    Picture(
        "Gradient norm",
        (("train/grad_norm", "before clipping"),),
        "Large and sustained in a good run (paper B.2).",
    ),
    Picture(
        "Training loss",
        (("train/loss", "per completion token"),),
        "Starts large, falls, flattens (paper B.2).",
    ),
)

# Bounds stand in where a teacher gives its top k alone, under their own names.
BOUNDS = (
    Picture(
        "Reverse KL, lower bound",
        (("bound/reverse_kl_lower", "nats"),),
        "From two top-k lists; the full value is at least this.",
    ),
    Picture(
        "Teacher's mass on the student's top k",
        (
            ("bound/teacher_support_mass_lower", "at least"),
            ("bound/teacher_support_mass_upper", "at most"),
        ),
        "Bounds from the teacher's top k.",
    ),
)

ROLLOUTS = (
    Picture("Length", (("rollout/length", "completion tokens"),), "Mean of the step's rollouts."),
    Picture(
        "Cut by the token limit",
        (("rollout/truncated", "share of rollouts"),),
        "Rising: the student forgets to stop.",
        percent=True,
    ),
    Picture(
        "Repetition",
        (("rollout/repetition", "repeated 4-grams"),),
        "Rising with length: degenerate loops.",
        percent=True,
    ),
    Picture(
        "Right answers while training",
        (("rollout/reward", "share of rollouts"),),
        "On training prompts, sampled as trained.",
        percent=True,
    ),
)

COLDSTART = (
    Picture(
        "Overlap mass",
        (("coldstart/overlap_mass_student", "of the student, on its own rollouts"),),
        "Should rise: then on-policy training has something to work on.",
        marked=False,
    ),
    Picture(
        "Top-1 agreement",
        (("coldstart/top1_agreement", "share of positions"),),
        "On the same rollouts as the overlap mass.",
        percent=True,
        marked=False,
    ),
    Picture(
        "Imitation loss",
        (("coldstart/loss", "cross-entropy per token"),),
        "On the teacher's completions.",
        marked=False,
    ),
)

HORIZON = (
    Picture(
        "Longest rollout allowed",
        (("horizon/limit", "tokens"), ("horizon/reach", "tokens that carry weight")),
        "Nothing beyond it is written, scored or trained.",
    ),
    Picture(
        "Cut by the horizon",
        (("horizon/cut", "share of rollouts"),),
        "Their answers are missing: right answers while training count them as wrong.",
        percent=True,
    ),
    Picture(
        "Weight left by pruning",
        (("horizon/weight", "mean of a token"),),
        "Near 0, nearly nothing is trained.",
    ),
)

HEAT = (
    ("diag/student_entropy", "Student entropy, nats"),
    ("diag/teacher_entropy", "Teacher entropy, nats"),
    ("diag/overlap_ratio", "Overlap ratio"),
    ("diag/reverse_kl", "Reverse KL, nats"),
    ("diag/gradient_share", "Share of the gradient"),
)
