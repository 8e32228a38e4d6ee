"""Rounds of the probe: the student and every teacher on the same prompts, within the budget."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from opd.commands.check.candidates import Candidate
from opd.config import Run
from opd.core.diagnostics import OVERLAP_K
from opd.data.graders import Grader, grader_for
from opd.data.prompts import PromptSet
from opd.models.tokenizers import make_decoder
from opd.recipes.check.probe import (
    ProbeConfig,
    ProbeModel,
    StudentSide,
    TeacherSide,
    probe_server,
    probe_student,
    probe_teacher,
)
from opd.recipes.check.settings import evaluation_decoding
from opd.setup.models import token_budget
from opd.setup.pair import Pair
from opd.setup.prompts import load_eval_task
from opd.setup.samplers import rollout_decoding

FIRST_ROUND = 8  # prompts; later rounds double as long as there is time
# Of training prompts, if the budget lasts: accuracies are then known to about .03, and the forecast
# itself is less exact than that.
MAX_PROMPTS = 256
ANSWERS = 2  # of each model per prompt
MIN_PROMPTS = 32  # that a verdict rests on, however few tokens may be generated


@dataclass(frozen=True)
class Budget:
    """How much a check may take.

    Attributes:
        seconds: from `started` on; None: 5 % of a run of half an hour or more, else two minutes.
        token_fraction: generated tokens, all models together, as a fraction of those of the run,
            but at least `MIN_PROMPTS` prompts. Below infinity no step is timed, so there is no cost
            estimate, and no limit of time beside `seconds`.
        started: `time.monotonic()` of the beginning.
    """

    seconds: float | None = None
    token_fraction: float = math.inf
    started: float = field(default_factory=time.monotonic)


@dataclass(frozen=True)
class Probe:
    """The result of all rounds.

    Attributes:
        student: the student's half.
        teachers: the other halves, in the order of the candidates.
        config: the settings of the probe.
        limitations: what could not be measured, and why.
    """

    student: StudentSide
    teachers: list[TeacherSide]
    config: ProbeConfig
    limitations: list[str]


def run_probe(
    candidates: Sequence[Candidate], prompts: PromptSet, deadline: float, token_fraction: float
) -> Probe:
    """Probe round by round until the deadline, the token budget, or all prompts.

    Args:
        candidates: compatible ones.
        prompts: of training.
        deadline: in terms of `time.monotonic()`; the first round runs in any case.
        token_fraction: see `Budget`.
    """
    first = candidates[0]
    assert first.pair is not None
    chosen, grader, limitations = _graded_prompts(first.cfg, first.pair, prompts)
    config = make_probe_config(first.cfg, first.pair, grader)
    model = ProbeModel(first.pair.student, first.pair.stop)
    student: StudentSide | None = None
    teachers: list[TeacherSide] = []
    done, size = 0, FIRST_ROUND
    total = min(MAX_PROMPTS, len(chosen.prompts))
    while done < total:
        started = time.monotonic()
        part = chosen.prompts[done : min(done + size, total)]
        student_round = probe_student(model, part, config)
        rounds = [_probe_candidate(c, model, student_round, config) for c in candidates]
        student = student_round if student is None else student + student_round
        teachers = [a + b for a, b in zip(teachers, rounds, strict=True)] if teachers else rounds
        done += len(part)
        seconds_per_prompt = (time.monotonic() - started) / len(part)
        in_time = int(min((deadline - time.monotonic()) / seconds_per_prompt, total))
        size = min(2 * size, in_time, _affordable(first.cfg, student, teachers, token_fraction))
        if size < 1:
            break
    assert student is not None
    return Probe(student, teachers, config, limitations)


def make_probe_config(cfg: Run, pair: Pair, grader: Grader | None) -> ProbeConfig:
    """Settings of the probe of a run."""
    evaluation = evaluation_decoding(cfg)
    return ProbeConfig(
        rollout_decoding(cfg),
        make_decoder(pair.tokenizer),
        grader,
        k=min(max(cfg.loss.k, OVERLAP_K), pair.student.vocab),
        tokens_per_batch=token_budget(cfg),
        seed=cfg.train.seed,
        m=ANSWERS if evaluation.temperature > 0 else 1,  # greedy answers are all the same
        evaluation=evaluation,
    )


def _affordable(
    cfg: Run, student: StudentSide, teachers: Sequence[TeacherSide], token_fraction: float
) -> int:
    """How many more prompts fit the token budget, by the tokens generated so far."""
    if math.isinf(token_fraction):
        return MAX_PROMPTS
    done = len(student.prompts)
    length = sum(map(len, student.rollouts)) / len(student.rollouts)
    run_tokens = cfg.train.steps * cfg.train.prompts_per_step * cfg.rollout.n * length
    tokens_per_prompt = (student.tokens + sum(side.tokens for side in teachers)) / done
    return max(int(token_fraction * run_tokens / tokens_per_prompt), MIN_PROMPTS) - done


def _probe_candidate(
    candidate: Candidate, student: ProbeModel, side: StudentSide, config: ProbeConfig
) -> TeacherSide:
    if candidate.server is not None:
        return probe_server(candidate.server, side, config)
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
