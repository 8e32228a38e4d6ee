"""The time of the configured run, from steps of it at a learning rate of zero."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from opd import rng
from opd.commands.check.candidates import Candidate
from opd.commands.check.speed import Speed
from opd.core.batch import Batch
from opd.data.prompts import PromptSet
from opd.models.tokenizers import make_decoder
from opd.recipes.check import cost
from opd.recipes.check.cost import EvaluationCost, RunCost, StepTime
from opd.rng import Stream
from opd.samplers.hf import batch_rows
from opd.samplers.sampling import MakeSampler
from opd.setup.disk_estimate import bytes_needed, checkpoint_bytes
from opd.setup.models import Models, local_teacher
from opd.setup.objective import make_objective
from opd.setup.precision import prepare_weights
from opd.setup.prompts import load_eval_task
from opd.setup.samplers import training_sampler
from opd.setup.session import make_learner, step_size
from opd.training.eval_task import EvalTask
from opd.training.experience import ExperienceSource, request_scores
from opd.training.optimizer import make_optimizer
from opd.training.step import update
from opd.types import Sampler

FIRST = 2  # prompts of the first step, which also warms everything up
EVAL_PROMPTS = 16  # of a held-out set, in its first timing
CHEAP = 5.0  # seconds: what takes less is timed whole, or again
REPEATS = 3


class StepTimer:
    """Times a step of a run, as often and with as many prompts as asked."""

    def __init__(self, candidate: Candidate, prompts: PromptSet, scratch: Path) -> None:
        """Make what a step needs; the student is the candidate's own, and does not change."""
        assert candidate.pair is not None
        cfg, pair, make = candidate.cfg, candidate.pair, candidate.student_samplers
        assert make is not None
        self.cfg, self.objective = cfg, make_objective(cfg)
        prepare_weights(cfg, pair.student)
        models = Models(cfg, self.objective, pair, None)
        learner = make_learner(models, make_optimizer(pair.student, cfg.optim))
        # Nothing is learned, everything is measured: AdamW multiplies by 1 and adds 0.
        self.learner = replace(learner, optim=cfg.optim.model_copy(update={"lr": 0.0}))
        self.source = ExperienceSource(
            prompts=prompts,
            sampler=training_sampler(cfg, make, pair.student),
            teacher=candidate.server or local_teacher(cfg, pair),
            reference=None,
            grader=None,
            special=None,
            stop=torch.tensor(sorted(pair.stop), dtype=torch.int32),
            sft_examples=[],
            decode=make_decoder(pair.tokenizer),
            size=step_size(cfg),
        )

    def step(self, count: int) -> StepTime:
        """Time a step of `count` prompts."""
        cfg = self.cfg
        count = min(count, len(self.source.prompts.prompts))
        chosen = self.source.prompts.batch(
            0, count, seed=cfg.train.seed, shuffle=cfg.prompts.shuffle
        )
        key = rng.key(cfg.train.seed, Stream.TIMING)
        rollouts, sampling = cost.time_call(
            lambda: self.source.sampler.sample(chosen, n=cfg.rollout.n, key=key)
        )
        scores, scoring = cost.time_call(
            lambda: request_scores(self.source, self.objective, 0, rollouts, None)
        )
        batch = Batch(rollouts, scores)
        _, updating = cost.time_call(lambda: update(self.learner, batch, 0))
        fraction = count / cfg.train.prompts_per_step
        return StepTime(sampling, scoring, updating, batch.num_tokens, fraction)

    def median_step(self, count: int) -> StepTime:
        """The median of a few steps where they are cheap, else one."""
        steps = [self.step(count)]
        while len(steps) < REPEATS and sum(s.seconds * s.fraction for s in steps) < CHEAP:
            steps.append(self.step(count))
        return sorted(steps, key=lambda s: s.seconds)[len(steps) // 2]


def run_cost(
    candidate: Candidate, step: StepTime, evaluations: Sequence[EvaluationCost]
) -> RunCost:
    """The cost of the run, if completions stay as long as the student's are now.

    Args:
        candidate: the teacher of the run.
        step: timed.
        evaluations: of each held-out set.
    """
    assert candidate.pair is not None
    cfg, student, teacher = candidate.cfg, candidate.pair.student, candidate.pair.teacher
    tokens_per_step = step.tokens / step.fraction
    saves = -(-cfg.train.steps // cfg.output.save_every)
    return RunCost(
        parameters=cost.count_parameters(student, teacher),
        memory=cost.estimate_memory(student, teacher, int8=cfg.optim.moments == "int8"),
        peak=cost.peak_memory(),
        disk=bytes_needed(cfg, student, teacher),
        tokens=tokens_per_step * cfg.train.steps,
        steps=cfg.train.steps,
        step=step.seconds,
        evaluation=sum(e.seconds for e in evaluations),
        saving=saves * checkpoint_bytes(student) / cost.write_speed(Path(cfg.output.dir)),
        teacher_calls=cfg.train.steps * cfg.train.prompts_per_step * cfg.rollout.n,
    )


def time_evaluations(candidate: Candidate, speed: Speed | None = None) -> list[EvaluationCost]:
    """How often each held-out set is evaluated, and the seconds per completion.

    Args:
        candidate: the pair and what generates with it.
        speed: of the pair, to estimate seconds by; None: they are timed now.
    """
    costs: list[EvaluationCost] = []
    cfg, pair = candidate.cfg, candidate.pair
    assert pair is not None
    makers = candidate.student_samplers, candidate.teacher_samplers
    for i, spec in enumerate(cfg.eval):
        task = load_eval_task(cfg, spec, i, pair)
        times = 2 + ((cfg.train.steps - 1) // spec.every if spec.every else 0)
        if speed is None:
            seconds = [
                0.0 if make is None else _seconds_per_completion(make, task) for make in makers
            ]
        else:
            seconds = [
                m.decoding(m.rows, speed.length) / m.rows
                for m in (speed.student, *speed.teachers[:1])
            ]
        completions = len(task.prompts.prompts) * spec.n
        teacher = seconds[1] if len(seconds) > 1 else 0.0
        costs.append(EvaluationCost(task.label, times, completions, seconds[0], teacher))
    return costs


def _seconds_per_completion(make: MakeSampler, task: EvalTask) -> float:
    """From one batch of the set, decoded as the run would."""
    sampler = make(task.decoding, None)
    rows = batch_rows(task.prompts.prompts, task.decoding.max_new_tokens)
    whole = min(len(task.prompts.prompts), max(1, rows // task.n))
    count = min(whole, EVAL_PROMPTS)
    seconds = _time_samples(sampler, task, count)
    if count < whole and seconds * whole / count < CHEAP:  # larger batches cost less per row
        count, seconds = whole, _time_samples(sampler, task, whole)
    return seconds / (count * task.n)


def _time_samples(sampler: Sampler, task: EvalTask, count: int) -> float:
    prompts, key = task.prompts.prompts[:count], rng.key(0, Stream.TIMING)
    return cost.time_call(lambda: sampler.sample(prompts, n=task.n, key=key))[1]
