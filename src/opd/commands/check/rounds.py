"""Rounds of the probe: the student and every teacher on the same prompts, within the budget."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from opd.commands.check.candidates import Candidate
from opd.config import Run
from opd.core.diagnostics import OVERLAP_K
from opd.data.graders import Grader, grader_for
from opd.data.prompts import PromptSet
from opd.models.tokenizers import make_decoder
from opd.recipes.check.probe import (
    ProbeConfig,
    ProbeModel,
    ServedTeacher,
    StudentSide,
    TeacherSide,
    probe_server,
    probe_student,
    probe_teacher,
)
from opd.recipes.check.settings import begins_cold, evaluation_decoding
from opd.setup.pair import Pair
from opd.setup.prompts import load_eval_task
from opd.setup.samplers import rollout_decoding
from opd.setup.token_budget import token_budget
from opd.types import Prompt

# Of training prompts, if the budget lasts: accuracies are then known to about .03, and the forecast
# itself is less exact than that.
MAX_PROMPTS = 192
ANSWERS = 2  # of each model per prompt
MIN_PROMPTS = 32  # that a verdict rests on, however few tokens may be generated
COLD_START_LEFT_OUT = (
    "The run begins with a cold start, which is not part of this forecast: it is of on-policy "
    "training of the student as it is. Check again with the student that the cold start makes."
)


@dataclass(frozen=True)
class Budget:
    """How much a check may take.

    Attributes:
        seconds: once the models are loaded; None: 5 % of the run's own time, two minutes at least.
        token_fraction: generated tokens of the probe, all models together, as a fraction of those
            of the run, but at least `MIN_PROMPTS` prompts. Below infinity there is no limit of
            time beside `seconds`, the pilot is as short, and there is no cost estimate.
        part: of the 5 % of the run's own time, for one of several teachers.
    """

    seconds: float | None = None
    token_fraction: float = math.inf
    part: float = 1.0


@dataclass
class Probe:
    """The rounds so far: the student and every teacher on the same prompts.

    Attributes:
        candidates: compatible ones.
        prompts: that may be used, in order.
        config: the settings of the probe.
        limitations: what could not be measured, and why.
        student: the student's half; None before the first round.
        teachers: the other halves, in the order of the candidates.
        seconds_per_prompt: of the last round.
    """

    candidates: Sequence[Candidate]
    prompts: Sequence[Prompt]
    config: ProbeConfig
    limitations: list[str]
    student: StudentSide | None = None
    teachers: list[TeacherSide] = field(default_factory=list)
    seconds_per_prompt: float = math.inf

    @property
    def done(self) -> int:
        """Prompts so far."""
        return 0 if self.student is None else len(self.student.prompts)

    @property
    def total(self) -> int:
        """Prompts at most."""
        return min(MAX_PROMPTS, len(self.prompts))

    @property
    def sides(self) -> list[tuple[StudentSide, TeacherSide]]:
        """The student's half with each of the teachers'; empty before the first round."""
        if self.student is None:
            return []
        return [(self.student, teacher) for teacher in self.teachers]

    def add(self, size: int) -> None:
        """Another round, of so many prompts; nothing is added if it is interrupted."""
        began = time.monotonic()
        model = student_model(self.candidates[0])
        part = self.prompts[self.done : min(self.done + size, self.total)]
        ours = probe_student(model, part, self.config)
        theirs = [_probe_candidate(c, model, ours, self.config) for c in self.candidates]
        if self.student is not None:
            theirs = [a + b for a, b in zip(self.teachers, theirs, strict=True)]
            ours = self.student + ours
        self.student, self.teachers = ours, theirs  # together: Ctrl-C may come at any moment
        self.seconds_per_prompt = (time.monotonic() - began) / len(part)

    def affordable(self, token_fraction: float) -> int:
        """How many more prompts fit the token budget, by the tokens generated so far."""
        if math.isinf(token_fraction) or self.student is None:
            return MAX_PROMPTS
        cfg, student = self.candidates[0].cfg, self.student
        length = sum(map(len, student.rollouts)) / len(student.rollouts)
        run_tokens = cfg.train.steps * cfg.train.prompts_per_step * cfg.rollout.n * length
        per_prompt = (student.tokens + sum(side.tokens for side in self.teachers)) / self.done
        return max(int(token_fraction * run_tokens / per_prompt), MIN_PROMPTS) - self.done


def make_probe(candidates: Sequence[Candidate], training: PromptSet, steps: int) -> Probe:
    """A probe without any rounds.

    Args:
        candidates: compatible ones.
        training: prompts of the run.
        steps: of a pilot, whose prompts come last.
    """
    first = candidates[0]
    assert first.pair is not None
    chosen, grader, limitations = _graded_prompts(first.cfg, first.pair, training)
    if begins_cold(first.cfg):
        limitations = [*limitations, COLD_START_LEFT_OUT]
    prompts = probe_prompts(chosen, first.cfg, steps) if chosen is training else chosen.prompts
    known = [each.context for each in candidates if each.context is not None]
    config = replace(
        make_probe_config(first.cfg, first.pair, grader), context=min(known, default=None)
    )
    return Probe(candidates, prompts, config, limitations)


def probe_prompts(training: PromptSet, cfg: Run, steps: int) -> list[Prompt]:
    """The training prompts, those of the run's first steps moved to the end, the first step's last.

    Args:
        training: prompts of the run.
        cfg: the run.
        steps: whose prompts are moved.
    """
    size, first_used = cfg.train.prompts_per_step, dict[int, int]()
    for step in range(steps):
        for prompt in training.batch(step, size, seed=cfg.train.seed, shuffle=cfg.prompts.shuffle):
            first_used.setdefault(prompt.index, step)
        if len(first_used) == len(training.prompts):
            break
    return sorted(training.prompts, key=lambda prompt: -first_used.get(prompt.index, steps))


def count_trained_on(prompts: Sequence[Prompt], training: PromptSet, cfg: Run, steps: int) -> int:
    """How many of some prompts are among those of the run's first steps.

    Args:
        prompts: of the probe.
        training: prompts of the run.
        cfg: the run.
        steps: that were made.
    """
    size, seed, shuffle = cfg.train.prompts_per_step, cfg.train.seed, cfg.prompts.shuffle
    batches = (training.batch(step, size, seed=seed, shuffle=shuffle) for step in range(steps))
    used = {prompt.ids for batch in batches for prompt in batch}
    return sum(prompt.ids in used for prompt in prompts)


def make_probe_config(cfg: Run, pair: Pair, grader: Grader | None) -> ProbeConfig:
    """Settings of the probe of a run."""
    evaluation = evaluation_decoding(cfg)
    return ProbeConfig(
        rollout_decoding(cfg),
        make_decoder(pair.tokenizer),
        grader,
        k=min(OVERLAP_K, pair.student.vocab),
        recorded=min(cfg.loss.k, pair.student.vocab),
        tokens_per_batch=token_budget(cfg),
        seed=cfg.train.seed,
        m=ANSWERS if evaluation.temperature > 0 else 1,  # greedy answers are all the same
        evaluation=evaluation,
    )


def student_model(candidate: Candidate) -> ProbeModel:
    """The student, sampled where the run samples it."""
    assert candidate.pair is not None
    return ProbeModel(candidate.pair.student, candidate.pair.stop, candidate.student_samplers)


def _probe_candidate(
    candidate: Candidate, student: ProbeModel, side: StudentSide, config: ProbeConfig
) -> TeacherSide:
    if candidate.server is not None:
        served = ServedTeacher(candidate.server, candidate.teacher_samplers)
        return probe_server(served, student, side, config)
    assert candidate.pair is not None
    assert candidate.pair.teacher is not None
    teacher = ProbeModel(candidate.pair.teacher, candidate.pair.teacher_stop)
    return probe_teacher(teacher, student, side, config)


def _graded_prompts(
    cfg: Run, pair: Pair, prompts: PromptSet
) -> tuple[PromptSet, Grader | None, list[str]]:
    """The prompts of the probe, their grader, and what cannot be measured without answers."""
    grader = grader_for(prompts.prompts, cfg.prompts.grader)
    if grader is not None:
        return prompts, grader, []
    if cfg.eval:
        task = load_eval_task(cfg, cfg.eval[0], 0, pair)
        limitation = (
            f"The training prompts have no answers; those of {task.label} are used instead."
        )
        return task.prompts, task.grader, [limitation]
    return (
        prompts,
        None,
        [
            "No prompt has an answer, so the teacher's accuracy, the continuation gain and the "
            "change of accuracy are unknown: the verdict rests on compatibility alone. Give "
            "prompts.path an `answer` column, or an eval set."
        ],
    )
