"""Supervised training on a teacher's own rollouts: what distillation on-policy competes with."""

from __future__ import annotations

import json
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from opd.config import Optim
from opd.data.prompts import load_prompts
from opd.recipes.sft import sft
from opd.rng import key
from opd_lab.probes import Model, graded, load_task
from opd_lab.runs import Task, digest, keep, one_thread, source_hash
from opd_lab.streams import LabStream


@dataclass(frozen=True)
class Imitation:
    """A finished supervised run.

    Attributes:
        path: the folder of the trained student.
        steps: when it was evaluated.
        accuracy: on the task's held-out problems.
        tokens: completion tokens the teacher had written for it by then.
        seconds: sampling and training until then, evaluations left out.
    """

    path: Path
    steps: list[float]
    accuracy: list[float]
    tokens: list[float]
    seconds: list[float]


def imitate(
    student: Path,
    teacher: Path,
    task: Task,
    *,
    steps: int,
    seed: int,
    cache: Path,
    batch: int = 64,
    lr: float = 1e-3,
    every: int = 10,
) -> Imitation:
    """Train on one teacher rollout a training problem and pass, each seen once, like on-policy.

    Args:
        student: checkpoint that is trained; the folder itself is not changed.
        teacher: writes the examples at temperature 1.
        task: training and held-out problems.
        steps: optimizer steps.
        seed: of rollouts and order.
        cache: where the result is kept.
        batch: examples a step; 64 are what an on-policy step of the lab trains on.
        lr: constant learning rate.
        every: steps between evaluations.
    """
    names = (student.name, teacher.name, repr(task), steps, seed, batch, lr, every)
    folder = cache / "runs" / f"sft-{digest(repr(names), source_hash())}"
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(prefix="making-", dir=folder.parent))
        curve = _train(student, teacher, task, steps, seed, cache, batch, lr, every, made)
        (made / "imitation.json").write_text(json.dumps(curve) + "\n")
        keep(made, folder)
    return Imitation(folder, **json.loads((folder / "imitation.json").read_text()))


def _train(
    student: Path,
    teacher: Path,
    task: Task,
    steps: int,
    seed: int,
    cache: Path,
    batch: int,
    lr: float,
    every: int,
    made: Path,
) -> dict[str, list[float]]:
    """The run itself; leaves the model in `made` and returns its curve."""
    mine, theirs = Model.load(student), Model.load(teacher)
    held_out = load_task(task, mine, seed, cache)
    train = load_prompts(
        str(task.files(seed, cache)["train"]),
        theirs.tokenizer,
        template=None,
        chat={},
        max_tokens=128,
    )
    curve: dict[str, list[float]] = {n: [] for n in ("steps", "accuracy", "tokens", "seconds")}

    def look(step: int, tokens: float, seconds: float) -> None:
        found = graded(mine, held_out, task.max_new_tokens, 1, seed)
        for name, value in (
            ("steps", step),
            ("accuracy", found.accuracy.value),
            ("tokens", tokens),
            ("seconds", seconds),
        ):
            curve[name].append(float(value))

    look(0, 0, 0.0)
    with one_thread():
        spent = -time.monotonic()
        passes = -(-steps * batch // len(train.prompts))
        sampler = theirs.sampler(task.max_new_tokens)
        examples = sampler.sample(train.prompts, n=passes, key=key(seed, LabStream.TEACHER))
        sampling = spent + time.monotonic()
        share = steps * batch / len(examples)  # of the examples that are trained on at all
        per_step = sampling * share / steps
        mean_length = sum(map(len, examples)) / len(examples)
        mine.lm.model.requires_grad_(True)
        training = sft(mine.lm, examples, steps=steps, batch=batch, optim=Optim(lr=lr), seed=seed)
        trained = 0.0
        for step in range(1, steps + 1):
            started = time.monotonic()
            next(training)
            trained += time.monotonic() - started
            if step % every == 0 or step == steps:
                look(step, step * batch * mean_length, trained + step * per_step)
    mine.lm.causal.save_pretrained(made)
    mine.tokenizer.save_pretrained(made)
    return curve
