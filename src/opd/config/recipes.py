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
    """Prompt file of this phase. null: a part of prompts.path, which on-policy training then leaves
    out."""
    disjoint: bool = True
    """Leave this phase's prompts out of on-policy training. Paper: disjoint."""
    share: float = Field(0.5, gt=0, le=1)
    """Most of the prompts of prompts.path that may be used here; 1 only with disjoint: false."""
    n: int = Field(1, ge=1)
    """Completions a prompt. Paper: 1."""
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
    repetition: float | None = Field(None, ge=0, le=1)
    """Largest share of repeated token 4-grams, beside the published rules. null: those alone."""
    completions_per_round: int = Field(256, ge=1)
    """Completions between two looks at the student; a round is all or nothing."""
    max_rounds: int = Field(100, ge=1)
    batch: int = Field(32, ge=1)
    """Completions an optimizer step; each of its tokens weighs the same."""
    lr: float = Field(1.0e-5, gt=0)
    """Paper: 1e-5, ten times its on-policy rate; the rest of AdamW is that of optim. Constant after
    warm-up, because the end is not known beforehand (paper: cosine over one epoch)."""
    warmup: int = Field(10, ge=0)
    """Steps of linear warm-up."""
    probe_prompts: int = Field(64, ge=1)
    """Prompts on which the student writes once a round, to measure overlap with the teacher."""
    mass: float = Field(0.97, gt=0, le=1)
    """Ends when the student's overlap mass on its own rollouts has reached this (paper: .97 to .99
    for the whole of a good run) ..."""
    top1: float = Field(0.8, gt=0, le=1)
    """... and so has the share of positions with the same most likely token,"""
    patience: int = Field(3, ge=1)
    """or when for so many rounds neither of them ..."""
    min_rise: float = Field(0.005, ge=0)
    """... has risen by more than this."""

    @model_validator(mode="after")
    def _coherent(self) -> Coldstart:
        if self.path is not None and self.prompts is not None:
            raise ValueError(
                "coldstart.path brings its own prompts; remove coldstart.prompts, or let the "
                "teacher write by removing coldstart.path"
            )
        if self.share == 1 and self.disjoint and self.prompts is None and self.path is None:
            raise ValueError(
                "coldstart.share=1 with coldstart.disjoint=true leaves no prompt for on-policy "
                "training. Lower the share (0.5), or set coldstart.disjoint=false"
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
