"""How long the configured run takes: one step of it, timed, at a learning rate of zero."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from opd import rng
from opd.commands.check.candidates import Candidate
from opd.config import Run
from opd.core.batch import Batch
from opd.data.prompts import PromptSet
from opd.models.lm import LM
from opd.models.tokenizers import make_decoder
from opd.recipes.check import cost
from opd.recipes.check.cost import Evaluations, Plan, StepTime
from opd.rng import Stream
from opd.setup.disk_estimate import bytes_needed, checkpoint_bytes
from opd.setup.pair import Pair
from opd.setup.session import (
    eval_sampler,
    load_eval_task,
    local_teacher,
    make_learner,
    make_objective,
    student_sampler,
)
from opd.training.evaluate import EvalTask
from opd.training.experience import Source, ask
from opd.training.step import make_optimizer, update
from opd.types import Rollout, Sampler, Scores

FIRST = 2  # prompts of the first, unhurried step: it also warms everything up
EVAL_PROMPTS = 16  # of a held-out set, to time it first
CHEAP = 5.0  # seconds: what takes less is timed whole, or again
REPEATS = 3


class Timer:
    """One step of a run, as often and as large as asked."""

    def __init__(self, who: Candidate, prompts: PromptSet, scratch: Path) -> None:
        """Make what a step needs; the student is the candidate's own, and stays as it is."""
        assert who.pair is not None
        self.cfg, self.pair = who.cfg, who.pair
        self.objective = make_objective(who.cfg)
        learner = make_learner(
            who.cfg, who.pair, self.objective, make_optimizer(who.pair.student, who.cfg.optim)
        )
        # Nothing is learned, everything is paid: AdamW multiplies by 1 and adds 0.
        self.learner = replace(learner, optim=who.cfg.optim.model_copy(update={"lr": 0.0}))
        self.source = Source(
            prompts=prompts,
            sampler=student_sampler(who.cfg, who.pair, scratch),
            teacher=who.server or local_teacher(who.cfg, who.pair),
            reference=None,
            judge=None,
            special=None,
            stop=torch.tensor(sorted(who.pair.stop), dtype=torch.int32),
            gold=[],
            decode=make_decoder(who.pair.tokenizer),
        )

    def step(self, count: int) -> StepTime:
        """Take a step of `count` prompts."""
        cfg = self.cfg
        count = min(count, len(self.source.prompts.prompts))
        chosen = self.source.prompts.batch(
            0, count, seed=cfg.train.seed, shuffle=cfg.prompts.shuffle
        )
        rollouts: list[Rollout] = []
        key = rng.key(cfg.train.seed, Stream.TIMING)
        sampling = cost.timed(
            lambda: rollouts.extend(self.source.sampler.sample(chosen, n=cfg.rollout.n, key=key))
        )
        scores: list[Scores] = []
        scoring = cost.timed(
            lambda: scores.extend(ask(self.source, cfg, self.objective, 0, rollouts, None))
        )
        batch = Batch(rollouts, scores)
        updating = cost.timed(lambda: update(self.learner, batch, 0))
        share = count / cfg.train.prompts_per_step
        return StepTime(sampling, scoring, updating, batch.num_tokens, share)

    def steady(self, count: int) -> StepTime:
        """The median of a few steps where they are cheap, else one."""
        steps = [self.step(count)]
        while len(steps) < REPEATS and sum(s.seconds * s.share for s in steps) < CHEAP:
            steps.append(self.step(count))
        return sorted(steps, key=lambda s: s.seconds)[len(steps) // 2]


def plan(who: Candidate, step: StepTime, evaluated: Sequence[Evaluations]) -> Plan:
    """What the run will take, if completions stay as long as the student's now.

    Args:
        who: the teacher it is planned with.
        step: timed.
        evaluated: of each held-out set.
    """
    assert who.pair is not None
    cfg, student, teacher = who.cfg, who.pair.student, who.pair.teacher
    per_step = step.tokens / step.share
    saves = -(-cfg.train.steps // cfg.output.save_every)
    return Plan(
        parameters=cost.parameters(student, teacher),
        memory=cost.memory(student, teacher),
        peak=cost.peak(),
        disk=bytes_needed(cfg, student, teacher),
        tokens=per_step * cfg.train.steps,
        steps=cfg.train.steps,
        step=step.seconds,
        evaluation=sum(e.seconds for e in evaluated),
        saving=saves * checkpoint_bytes(student) / cost.write_speed(Path(cfg.output.dir)),
        teacher_calls=cfg.train.steps * cfg.train.prompts_per_step * cfg.rollout.n,
    )


def evaluations(cfg: Run, pair: Pair) -> list[Evaluations]:
    """How often each held-out set is answered, and what a completion of it takes, timed now."""
    found = []
    for place, spec in enumerate(cfg.eval):
        task = load_eval_task(cfg, spec, place, pair)
        times = 2 + ((cfg.train.steps - 1) // spec.every if spec.every else 0)
        seconds = [
            0.0 if lm is None else _writing(cfg, lm, stop, task)
            for lm, stop in ((pair.student, pair.stop), (pair.teacher, pair.teacher_stop))
        ]
        completions = len(task.prompts.prompts) * spec.n
        found.append(Evaluations(task.label, times, completions, seconds[0], seconds[1]))
    return found


def _writing(cfg: Run, lm: LM, stop: frozenset[int], task: EvalTask) -> float:
    """Seconds a completion, from one batch of the set as the run would write it."""
    sampler = eval_sampler(cfg, lm, stop)(task)
    whole = min(len(task.prompts.prompts), max(1, cfg.rollout.batch // task.n))
    count = min(whole, EVAL_PROMPTS)
    took = cost.timed(lambda: _sample(sampler, task, count))
    if count < whole and took * whole / count < CHEAP:  # rows decoded together cost less each
        count, took = whole, cost.timed(lambda: _sample(sampler, task, whole))
    return took / (count * task.n)


def _sample(sampler: Sampler, task: EvalTask, count: int) -> None:
    sampler.sample(task.prompts.prompts[:count], n=task.n, key=rng.key(0, Stream.TIMING))
