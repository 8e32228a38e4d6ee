"""Keys of the procedures around the loop; see `opd.config.schema` for the rest.

Every default carries its reason. Paper = arXiv 2604.13016, sections 5.1 and 5.2, appendix C.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from opd.config.section import Section

AnswerRule = Literal["auto", "ignore", "found", "marked", "right"]


class Check(Section):
    """What `opd check` compares the teacher with, and how much it measures."""

    origin: str | None = None
    """The student's base model, or a sibling trained on the same data. A teacher that does not
    differ from it on the student's rollouts undoes the student's training (paper section 3.3)."""


class Coldstart(Section):
    """Supervised training on the teacher's completions before the first on-policy step.

    Paper section 5.1. It ends by itself, so that no more off-policy data than needed is used.
    """

    when: Literal["start", "alarm"] = "start"
    """start: before the first step. alarm: once, when an alarm says that overlap stagnates or falls
    or that the entropy gap stays open (alarms.action: act), from the weights of that moment."""
    path: str | None = None
    """Completions to learn: rollout files (one, or a folder of them, such as another run's
    coldstart/rollouts), or rows of prompt + completion. null: the teacher writes them."""
    prompts: str | None = None
    """Prompt file of this phase. null: a part of prompts.path. On-policy training leaves out every
    question that was used here (paper: disjoint), unless none would be left."""
    temperature: float = Field(0.7, ge=0)
    """Paper: 0.7."""
    top_p: float = Field(0.95, gt=0, le=1)
    """Paper: 0.95."""
    max_new_tokens: int | None = Field(None, ge=1)
    """null: as in training. Paper: 12288, against 7168 in training."""
    answer: AnswerRule = "auto"
    """Completions without an answer are left out. found: any; marked: announced, as in \\boxed{};
    right: correct; ignore: not looked at. auto: marked for LaTeX answers (the published code
    demands a box), else found."""
    completions_per_round: int = Field(256, ge=1)
    """Completions between two measurements of the student, on a quarter as many prompts. A round is
    all or nothing."""
    max_rounds: int = Field(100, ge=1)
    """Ends after so many rounds in any case."""
    lr: float = Field(1.0e-5, gt=0, le=1)
    """Paper: 1e-5, ten times its on-policy rate; the rest of AdamW is that of optim. Constant after
    ten steps of warm-up, because the end is not known beforehand (paper: cosine over one epoch)."""
    mass: float = Field(0.97, gt=0, le=1)
    """Ends when the student's overlap mass on its own rollouts has reached this (paper: 0.97 to
    0.99 for the whole of a good run) and 0.8 of the positions have the same most probable token, or
    when neither has risen in three rounds."""

    @model_validator(mode="after")
    def _coherent(self) -> Coldstart:
        if self.path is not None and self.prompts is not None:
            raise ValueError(
                "coldstart.path brings its own prompts; remove coldstart.prompts, or let the "
                "teacher write by removing coldstart.path"
            )
        return self


class Select(Section):
    """`opd select`: training prompts on which this teacher has something to teach this student.

    Paper section 5.2.
    """

    output: str
    """Prompt file to write, .jsonl or .parquet. Beside it: a report of the measurements (.html) and
    its JSON sidecar (.json)."""
    limit: int | None = Field(2000, ge=1)
    """Maximum number of prompts to measure, drawn by train.seed; null: all. Each costs 2 n
    completions."""
    n: int = Field(8, ge=2)
    """Completions per prompt, of the student and of the teacher, sampled as in training."""
    keep: float = Field(0.5, gt=0, le=1)
    """Fraction of the usable prompts that is kept."""
    against: list[str] = []
    """Evaluation sets to leave out, beside those of eval."""
    templates: list[str] = []
    """Candidate user messages with {problem} in them, compared with prompts.template. The teacher's
    own chat template joins them if it differs from the student's."""

    @model_validator(mode="after")
    def _coherent(self) -> Select:
        if not self.output.endswith((".jsonl", ".parquet")):
            raise ValueError(f"select.output={self.output!r} must end in .jsonl or .parquet")
        return self
