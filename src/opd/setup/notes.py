"""What is allowed and often a mistake: said before a run begins, never refused."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from opd.config import LocalTeacher, Run, SelfTeacher
from opd.config.python_objects import PREFIX
from opd.data.duplicates import find_leaks, load_questions
from opd.data.prompts import PromptSet
from opd.data.readers import read_rows, source_name
from opd.data.routes import COLUMN
from opd.models.hub_name import same_model
from opd.setup.alarm_notes import notes_of_alarms
from opd.setup.chat_template import render_alike
from opd.training.horizon import growing_limit

# Jaccard similarity of runs of six letters and digits from which questions with the same numbers
# count as near duplicates, as in `opd select`.
NEAR = 0.8
# Beyond this product of rows near duplicates take longer than a start may: exact ones only.
MAX_NEAR_ROWS = 20_000
SHOWN = 3


@dataclass(frozen=True)
class Overlap:
    """Questions of a held-out set that are also training prompts.

    Attributes:
        label: the set.
        rows: of the set.
        exact: its rows whose letters and digits are those of a training prompt.
        near: further rows that are nearly one.
        examples: (row of the set, training row), the first few.
    """

    label: str
    rows: int
    exact: int
    near: int
    examples: tuple[tuple[int, int], ...]

    def __str__(self) -> str:
        pairs = ", ".join(f"row {e + 1} = training row {t + 1}" for e, t in self.examples)
        return (
            f"{self.exact + self.near} of {self.rows} questions of the held-out set {self.label!r} "
            f"are also training prompts ({self.exact} the same, {self.near} nearly; {pairs}). Its "
            "accuracy will tell what was memorised. `opd select` leaves such prompts out."
        )

    def record(self) -> dict[str, Any]:
        """Plain values, for the run folder."""
        return {
            "set": self.label,
            "rows": self.rows,
            "exact": self.exact,
            "near": self.near,
            "examples": [list(pair) for pair in self.examples],
        }


def find_overlaps(cfg: Run, kept: Sequence[int]) -> list[Overlap]:
    """The held-out sets that share questions with the training prompts.

    Args:
        cfg: the run; its files are readable.
        kept: row numbers of the training prompts that are used.
    """
    if not cfg.eval:
        return []
    rows = set(kept)
    training = [q for q in load_questions(cfg.prompts.source) if q.index in rows]
    held_out = [(e.label, load_questions(e.path)[: e.limit]) for e in cfg.eval]
    total = len(training) + sum(len(questions) for _, questions in held_out)
    leaks = find_leaks(training, held_out, near=NEAR if total <= MAX_NEAR_ROWS else None)
    overlaps = []
    for label, questions in held_out:
        own = [leak for leak in leaks if leak.label == label]
        exact = {leak.eval_row for leak in own if leak.exact}
        near = {leak.eval_row for leak in own} - exact
        if own:
            first = {leak.eval_row: leak.row for leak in reversed(own)}
            examples = tuple(sorted(first.items())[:SHOWN])
            overlaps.append(Overlap(label, len(questions), len(exact), len(near), examples))
    return overlaps


def find_notes(
    cfg: Run, prompts: PromptSet, templates: tuple[Any, Any], tokenizer: Any
) -> list[str]:
    """Sentences about settings that are allowed and often mistakes.

    Args:
        cfg: the run.
        prompts: of training.
        templates: chat template of student and teacher; None where it has none or is unknown.
        tokenizer: the student's.
    """
    notes = []
    count, missing = len(prompts.prompts), [p for p in prompts.prompts if p.answer is None]
    if cfg.prompts.grader.startswith(PREFIX):  # the user's own needs no answers
        missing = []
    if missing and len(missing) < count:
        notes.append(
            f"{len(missing)} of {count} training prompts have no answer (the first is row "
            f"{missing[0].index + 1}), so the accuracy of rollouts is not measured. Give every "
            "row an `answer`, or none."
        )
    size = cfg.train.prompts_per_step
    if size > count:
        notes.append(
            f"train.prompts_per_step={size}, but there are {count} training prompts: a step uses "
            "some of them several times."
        )
    if cfg.prompts.grader != "auto" and len(missing) == count:
        notes.append(
            f"prompts.grader={cfg.prompts.grader} grades nothing: no training prompt has an "
            "answer. Give rows an `answer`, or leave it out."
        )
    notes += _notes_of_settings(cfg)
    notes += notes_of_alarms(cfg, graded=count > 0 and not missing)
    if not cfg.teachers:
        notes += _notes_of_column(cfg)
    teacher = cfg.teacher
    if isinstance(teacher, LocalTeacher) and same_model(cfg.student.model, teacher.model):
        notes.append(
            f"teacher.model={teacher.model} is student.model: there is nothing to learn from it."
        )
    chat, known = cfg.prompts.chat, all(templates) and not cfg.prompts.teacher_template
    if chat is not None and known and not render_alike(tokenizer, templates, chat):
        notes.append(
            "The chat templates of student and teacher differ. Prompts are rendered with the "
            "student's; prompts.teacher_template=true takes the teacher's."
        )
    return notes


def _notes_of_settings(cfg: Run) -> Iterator[str]:
    """What settings alone say."""
    if cfg.rollout.ahead and cfg.rollout.engine == "hf" and cfg.rollout.python is None:
        yield (
            "rollout.ahead=1 without a rollout server: this process samples and learns by turns, "
            "so nothing is faster, and rollouts are a step old. Set rollout.ahead=0, or "
            "rollout.url or rollout.launch."
        )
    if cfg.student.shard != "none" and int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield (
            f"student.shard={cfg.student.shard} shards nothing in one process. Start several with "
            "torchrun, or leave it out."
        )
    if cfg.optim.warmup >= cfg.train.steps:
        yield (
            f"optim.warmup={cfg.optim.warmup} is as long as the run (train.steps="
            f"{cfg.train.steps}): the rate never stays at optim.lr={cfg.optim.lr}."
        )
    longest, grow = cfg.rollout.max_new_tokens, cfg.horizon and cfg.horizon.grow
    if grow and grow.until > cfg.train.steps:
        reached = growing_limit(grow, longest, cfg.train.steps - 1)
        yield (
            f"horizon.grow.until={grow.until} is beyond train.steps={cfg.train.steps}: rollouts "
            f"have at most {reached} of rollout.max_new_tokens={longest} tokens in the last step."
        )
    for i, spec in enumerate(cfg.eval):
        if spec.temperature == 0 and spec.n > 1:
            yield (
                f"eval.{i}.temperature=0 gives the same answer eval.{i}.n={spec.n} times. Set "
                f"eval.{i}.n=1, or a temperature."
            )
    teacher, terms = cfg.teacher, cfg.loss.terms
    says_no_more = isinstance(teacher, SelfTeacher) and (teacher.prompt or "").strip() == "{prompt}"
    if says_no_more and terms.outcome_weight == terms.sft_weight == 0:
        yield (
            "teacher.from=student with teacher.prompt={prompt} is the student itself: there is "
            "nothing to learn from it. Say more in teacher.prompt."
        )


def _notes_of_column(cfg: Run) -> Iterator[str]:
    """What becomes of a column `teacher` where there is one teacher."""
    who = "no teacher" if cfg.teacher is None else f"one ({cfg.teacher.model})"
    for source in (cfg.prompts.source, *(spec.path for spec in cfg.eval)):
        rows = read_rows(source)
        if count := sum(row.values.get(COLUMN) is not None for row in rows):
            yield (
                f"{count} of {len(rows)} rows of {source_name(source)} name a teacher in a column "
                f"`{COLUMN}`, which is not read: the run has {who}. Several are given as teachers: "
                "{NAME: {model: ...}}."
            )
