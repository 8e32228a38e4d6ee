"""Whether several teachers pull a student the same way: their gradients on the same rollouts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import torch
from torch import Tensor

from opd.commands.check.watch import Watch
from opd.config import Run
from opd.core.batch import Batch
from opd.data.prompts import PromptSet
from opd.errors import UserError
from opd.rng import Stream, key
from opd.run.clock import Clock
from opd.run.console import Console
from opd.samplers.hf import HFSampler
from opd.setup.models import Models, open_models
from opd.setup.precision import prepare_weights
from opd.setup.routing import naming
from opd.setup.samplers import rollout_decoding
from opd.setup.session import make_learner
from opd.training.alignment import leave_out_unaligned
from opd.training.gradient import accumulate
from opd.training.optimizer import make_optimizer
from opd.types import Rollout

PROMPTS, RESPONSES = 16, 2
SHARED_ROLLOUTS = 90  # index of the random stream


def compare_gradients(
    cfg: Run,
    prompts: PromptSet,
    scratch: Path,
    watch: Watch | None = None,
    seconds: float = math.inf,
) -> dict[str, float]:
    """Cosine of the gradients of every two teachers, by "A, B", on the same rollouts.

    Sampled in this process from the student as it is, on prompts spread over all files; each
    teacher scores all of them, whosever they are.

    Args:
        cfg: a run of several teachers.
        prompts: of the run.
        scratch: an empty folder.
        watch: looked at before every layer of the models in this process.
        seconds: that it may take once they are loaded.

    Raises:
        UserError: a teacher that cannot score the others' prompts.
        OutOfTime: it took longer.
    """
    models = open_models(cfg, Console("quiet"))
    watch = watch or Watch(lambda line: None)
    watch.allow(watch.seconds + seconds)
    teachers = [m.pair.teacher for m in models.members.values() if m.pair.teacher is not None]
    with watch.attached([models.pair.student, *teachers]):
        return cosines(_gradients(cfg, models, prompts, scratch))


def _gradients(cfg: Run, models: Models, prompts: PromptSet, scratch: Path) -> dict[str, Tensor]:
    """The gradient of every teacher on the same rollouts, by its name."""
    student = models.pair.student
    prepare_weights(cfg, student)
    step = max(1, len(prompts.prompts) // PROMPTS)
    shared = replace(prompts, prompts=prompts.prompts[::step][:PROMPTS], shares=(), routes={})
    sampler = HFSampler(
        student, rollout_decoding(cfg), stop=models.pair.stop, capture=models.objective.k
    )
    seed = key(cfg.train.seed, Stream.CHECK, SHARED_ROLLOUTS)
    rollouts = sampler.sample(shared.prompts, n=RESPONSES, key=seed)
    gradients = {}
    for name, member in models.members.items():
        folder = scratch / name
        folder.mkdir()
        with naming(name):
            gradients[name] = _gradient(member, shared, rollouts, folder)
    return gradients


def cosines(gradients: Mapping[str, Tensor]) -> dict[str, float]:
    """Cosine of every two vectors, by "A, B"; 0 where one of them is 0."""
    return {
        f"{a}, {b}": float(torch.cosine_similarity(gradients[a], gradients[b], dim=0))
        for a, b in combinations(gradients, 2)
    }


def _gradient(models: Models, prompts: PromptSet, rollouts: list[Rollout], folder: Path) -> Tensor:
    """The gradient of a step on rollouts that one teacher has scored, as one vector."""
    models = models.for_prompts(prompts).with_own_weights()
    models.handshake(prompts)
    teacher = models.teacher(folder, Console("quiet"), Clock())
    assert teacher is not None
    objective = models.objective
    if objective.needs_full_teacher:
        raise UserError("loss.support=full: gradients of several teachers are not compared.")
    scores = teacher.score(rollouts, objective.want)
    batch = Batch(rollouts, scores, weights=leave_out_unaligned(rollouts, scores, None))
    student = models.pair.student
    learner = make_learner(models, make_optimizer(student, models.cfg.optim))
    accumulate(learner, batch, 0)
    student.model.eval()
    parts = [
        torch.zeros_like(p).flatten() if p.grad is None else p.grad.detach().flatten()
        for p in student.parameters().values()
    ]
    vector = torch.cat([part.float().cpu() for part in parts])
    learner.optimizer.zero_grad(set_to_none=True)
    return vector


def describe(cosine: Mapping[str, float]) -> list[str]:
    """A line for every two teachers."""
    lines = []
    for pair, value in cosine.items():
        how = "they pull the student apart" if value < 0 else "they pull the same way"
        about = f"Gradients of teachers {pair} on the same rollouts"
        lines.append(f"{about}: cosine {value:.2f}, {how}.")
    return lines
