"""What a selection begins with: prompts without leaks and repeats, the models that measure them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from opd import rng
from opd.config import Run, Select
from opd.core.diagnostics import OVERLAP_K
from opd.data.duplicates import Leak, find_leaks, find_repeats, load_questions
from opd.data.graders import grader_for
from opd.data.prompts import PromptSet
from opd.errors import UserError
from opd.models.tokenizers import make_decoder
from opd.recipes.select import MeasurementSetup
from opd.rng import Stream
from opd.run.clock import Clock
from opd.run.console import Console
from opd.setup.models import Models
from opd.setup.samplers import rollout_decoding, student_samplers
from opd.types import Prompt

# Jaccard similarity of runs of six letters and digits from which questions with the same numbers
# are duplicates. At 0.8, most of what was found between DAPO and MATH-500 was the same problem in
# other words or LaTeX (docs/recipes.md).
NEAR = 0.8


def drop_duplicates(
    cfg: Run, spec: Select, prompts: PromptSet
) -> tuple[list[Prompt], list[Leak], dict[int, int]]:
    """The usable prompts, what evaluation sets contain of them, and repeated ones.

    Raises:
        UserError: fewer than two prompts are left.
    """
    paths = [(e.label, e.path) for e in cfg.eval] + [(Path(p).stem, p) for p in spec.against]
    indices = {p.index for p in prompts.prompts}
    questions = [q for q in load_questions(cfg.prompts.source) if q.index in indices]
    held_out = [(label, load_questions(path)) for label, path in paths]
    leaked = find_leaks(questions, held_out, near=NEAR)
    leaked_rows = {leak.row for leak in leaked}
    repeated = find_repeats([q for q in questions if q.index not in leaked_rows], near=NEAR)
    usable = [p for p in prompts.prompts if p.index not in leaked_rows and p.index not in repeated]
    if len(usable) < 2:
        raise UserError(
            f"{cfg.prompts.source}: {len(usable)} prompts are left of {len(prompts.prompts)} after "
            f"{len(leaked_rows)} that evaluation sets contain and {len(repeated)} repeated ones."
        )
    return usable, leaked, repeated


def subsample(prompts: Sequence[Prompt], limit: int | None, seed: int) -> list[Prompt]:
    """At most `limit` prompts, drawn by the seed, in order."""
    if limit is None or limit >= len(prompts):
        return list(prompts)
    generator = rng.generator(seed, Stream.SELECT_LIMIT)
    indices = generator.choice(len(prompts), limit, replace=False).tolist()
    return [prompts[i] for i in sorted(indices)]


def measurement_setup(
    models: Models, spec: Select, usable: Sequence[Prompt], folder: Path, console: Console
) -> MeasurementSetup:
    """The samplers, the teacher and the grader of a selection.

    Args:
        models: student and teacher, after the handshake.
        spec: the select section.
        usable: the prompts to measure; graded if all of them have answers.
        folder: for what a server's identity needs.
        console: gets a line where the teacher only scores.

    Raises:
        UserError: no teacher, or recorded rollouts.
    """
    cfg, pair = models.cfg, models.pair
    if cfg.rollout.engine == "replay":
        raise UserError("opd select samples the student. Run it without rollout.path.")
    teacher = models.teacher(folder, console, Clock())
    if teacher is None:
        raise UserError("opd select needs a teacher; teacher is null.")
    decoding, k = rollout_decoding(cfg), min(OVERLAP_K, pair.student.vocab)
    make_teacher = models.teacher_samplers()
    if make_teacher is None:
        console.print("The teacher server only scores: prompts are ranked without its accuracy.")
    student = student_samplers(cfg, pair, folder)(decoding, k)
    student.sync(0)
    return MeasurementSetup(
        student=student,
        teacher_sampler=None if make_teacher is None else make_teacher(decoding, None),
        teacher=teacher,
        grader=grader_for(usable, cfg.prompts.grader),
        decode=make_decoder(pair.tokenizer),
        n=spec.n,
        k=k,
    )
