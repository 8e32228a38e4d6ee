"""Kinds of students and teachers, by construction: what each was trained on, how changed."""

from __future__ import annotations

from dataclasses import dataclass, replace

from opd_lab.corpus import Corpus

DOCUMENTS = 9_600  # of a corpus that is learned well
CORRUPT = 0.6


@dataclass(frozen=True)
class Kind:
    """How a model is made.

    Attributes:
        corpus: what it is trained on; None: no supervised training.
        parent: kind whose weights it starts from; None: random ones.
        large: has the setting's larger architecture (a child: as its parent).
        template: its prompts begin with other words than those of the run.
        repeated: fraction of its documents that go on and on.
        reward_steps: steps of reinforcement learning on the outcome.
        logits: factor on the parent's logits.
        noise: of the weights, relative to their standard deviation.
    """

    corpus: Corpus | None = None
    parent: str | None = None
    large: bool = False
    template: bool = False
    repeated: float = 0.0
    reward_steps: int = 0
    logits: float = 1.0
    noise: float = 0.0


_BASE = Corpus(DOCUMENTS, corrupt=CORRUPT)
_RIGHT = Corpus(3_200, corrupt=0.0)

KINDS: dict[str, Kind] = {
    "base": Kind(_BASE),
    "weak": Kind(replace(_BASE, size=DOCUMENTS * 2 // 5)),
    "mixed": Kind(replace(_BASE, pattern_2=0.1)),
    "large": Kind(_BASE, large=True),
    "clean": Kind(_RIGHT, parent="base"),
    "few": Kind(replace(_RIGHT, size=960), parent="base"),
    "half": Kind(replace(_RIGHT, corrupt=0.3), parent="base"),
    "rl": Kind(parent="base", reward_steps=40),
    "mixed-clean": Kind(replace(_RIGHT, pattern_2=0.1), parent="mixed"),
    "even-clean": Kind(replace(_RIGHT, pattern_2=0.5), parent="mixed"),
    "other-clean": Kind(replace(_BASE, pattern_2=1.0, corrupt=0.0)),
    "large-clean": Kind(_RIGHT, parent="large"),
    "template": Kind(replace(_RIGHT, size=6_000), parent="base", template=True),
    "endless": Kind(_RIGHT, parent="base", repeated=1.0),
    "rambling": Kind(_RIGHT, parent="base", repeated=0.5),
    "sharp": Kind(parent="clean", logits=3.0),
    "flat": Kind(parent="clean", logits=0.6),
    "noisy": Kind(parent="clean", noise=0.25),
    "noisier": Kind(parent="large-clean", noise=0.35),
}

# Weights of the random choice.
STUDENTS = {"base": 8, "mixed": 4, "weak": 3, "few": 2, "half": 2, "clean": 2}
TEACHERS = {
    "clean": 3,
    "large-clean": 4,
    "rl": 2,
    "half": 2,
    "few": 1,
    "mixed-clean": 2,
    "even-clean": 2,
    "other-clean": 3,
    "large": 2,
    "base": 2,
    "weak": 1,
    "template": 1,
    "endless": 1,
    "rambling": 1,
    "sharp": 1,
    "flat": 1,
    "noisy": 1,
    "noisier": 1,
}
