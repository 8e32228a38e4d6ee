"""Where training prompts come from, how they are rendered, and who scores them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from opd.config.section import Section
from opd.types import GraderKind

Grader = GraderKind | Literal["auto"] | Annotated[str, Field(pattern="^python:.+")]


class PromptFile(Section):
    """One of several files of training prompts."""

    path: str
    """As prompts.path."""
    teacher: str | dict[str, float] | None = None
    """Who scores them: a name of `teachers`, or names with weights for their mixture. A row's own
    column `teacher` comes first."""
    weight: float = Field(1.0, gt=0)
    """Prompts a step takes from this file, relative to the others."""


class Prompts(Section):
    """Where training prompts come from and how they are rendered."""

    path: str | None = None
    """JSONL, JSON, parquet or CSV file, or a hub dataset as hub:owner/name[:split]."""
    files: list[PromptFile] = []
    """Several files in place of path; a list under `prompts` is short for it."""
    by: Literal["prompts", "tokens"] = "prompts"
    """How several teachers share the loss. prompts: every token counts alike, so a teacher of long
    answers takes more of it; tokens: each teacher's tokens together count as its prompts do."""
    template: str | None = None
    """User message with {problem} in it; null keeps the row's own text."""
    chat: dict[str, Any] | None = {}
    """Keywords for the chat template (enable_thinking ...); null sends plain text (base models)."""
    teacher_template: bool | None = None
    """true: prompts are rendered with the teacher's chat template; false: with the student's own.
    null: with the student's, and refused where it has none and the teacher has one."""
    max_tokens: int = Field(1024, ge=1)
    """Longer prompts are dropped and counted. Paper: 1024."""
    shuffle: bool = True
    """A permutation a pass, from train.seed. The reference code keeps file order."""
    grader: Grader = "auto"
    """Grades training rollouts when every prompt has an answer; a function of your own always."""

    @property
    def source(self) -> str | tuple[str, ...]:
        """The file, or the files in order."""
        return self.path if self.path is not None else tuple(file.path for file in self.files)

    @property
    def name(self) -> str:
        """For messages and pages."""
        return self.source if isinstance(self.source, str) else ", ".join(self.source)

    @model_validator(mode="before")
    @classmethod
    def _of_list(cls, value: Any) -> Any:
        return {"files": value} if isinstance(value, list) else value

    @model_validator(mode="after")
    def _coherent(self) -> Prompts:
        if self.path is None and not self.files:
            raise ValueError("prompts.path: required, but missing")
        if self.path is not None and self.files:
            raise ValueError("prompts.path and prompts.files are the same thing: set one of them")
        return self
