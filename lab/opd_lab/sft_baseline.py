"""Supervised training on a teacher's own rollouts: the baseline of on-policy distillation."""

from __future__ import annotations

import json
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

from opd.config import Optim
from opd.data.prompts import load_prompts
from opd.recipes.sft import sft
from opd.rng import key
from opd.types import Rollout
from opd_lab.cache_key import digest, source_hash
from opd_lab.probes import Model, evaluate_model, load_task
from opd_lab.runs import Task, one_thread, publish
from opd_lab.streams import LabStream

CURVE = "sft_curve.json"


@dataclass(frozen=True)
class SFTSettings:
    """How a student is trained.

    Attributes:
        steps: optimizer steps.
        batch: examples per step; an on-policy step of the lab trains on 64 as well.
        lr: constant learning rate.
        every: steps between evaluations.
    """

    steps: int
    batch: int = 64
    lr: float = 1e-3
    every: int = 10


@dataclass(frozen=True)
class SFTCurve:
    """Evaluations of a supervised run, the first one before training.

    Attributes:
        steps: optimizer steps taken by then.
        accuracy: on the task's held-out problems.
        tokens: completion tokens the teacher had sampled for it by then.
        seconds: sampling and training until then, evaluations left out.
    """

    steps: list[float] = field(default_factory=list)
    accuracy: list[float] = field(default_factory=list)
    tokens: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    def add(self, *, step: int, accuracy: float, tokens: float, seconds: float) -> None:
        """One more evaluation."""
        self.steps.append(float(step))
        self.accuracy.append(accuracy)
        self.tokens.append(tokens)
        self.seconds.append(seconds)


@dataclass(frozen=True)
class SFTResult:
    """A finished supervised run: the folder of the trained student, and its evaluations."""

    path: Path
    curve: SFTCurve


def run_sft(
    student: Path, teacher: Path, task: Task, settings: SFTSettings, *, seed: int, cache: Path
) -> SFTResult:
    """Train on one teacher rollout per training problem and pass, each used once.

    Args:
        student: checkpoint that training starts from; its folder stays as it is.
        teacher: samples the examples at temperature 1.
        task: training and held-out problems.
        settings: length and rate of training.
        seed: of rollouts and order.
        cache: where the result is kept.
    """
    names = (student.name, teacher.name, repr(task), settings, seed)
    folder = cache / "runs" / f"sft-{digest(repr(names), source_hash())}"
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(prefix="making-", dir=folder.parent))
        model = Model.load(student)
        curve = _train(model, Model.load(teacher), task, settings, seed, cache)
        model.lm.causal.save_pretrained(made)
        model.tokenizer.save_pretrained(made)
        (made / CURVE).write_text(json.dumps(asdict(curve)) + "\n")
        publish(made, folder)
    return SFTResult(folder, SFTCurve(**json.loads((folder / CURVE).read_text())))


def _train(
    student: Model, teacher: Model, task: Task, settings: SFTSettings, seed: int, cache: Path
) -> SFTCurve:
    """Train the student in place; return its evaluations."""
    held_out, curve = load_task(task, student, seed, cache), SFTCurve()

    def evaluate(step: int, tokens: float, seconds: float) -> None:
        accuracy = evaluate_model(student, held_out, task.max_new_tokens, 1, seed).accuracy.value
        curve.add(step=step, accuracy=accuracy, tokens=tokens, seconds=seconds)

    evaluate(0, 0.0, 0.0)
    with one_thread():
        began = time.monotonic()
        examples = _sample_examples(teacher, task, settings, seed, cache)
        # Only some of the examples are trained on; the others' time does not count.
        sampling_per_step = (time.monotonic() - began) * settings.batch / len(examples)
        tokens_per_step = settings.batch * sum(map(len, examples)) / len(examples)
        student.lm.model.requires_grad_(True)
        optim = Optim(lr=settings.lr)
        training = sft(
            student.lm,
            examples,
            steps=settings.steps,
            batch=settings.batch,
            optim=optim,
            seed=seed,
        )
        training_seconds = 0.0
        for step in range(1, settings.steps + 1):
            began = time.monotonic()
            next(training)
            training_seconds += time.monotonic() - began
            if step % settings.every == 0 or step == settings.steps:
                seconds = training_seconds + step * sampling_per_step
                evaluate(step, step * tokens_per_step, seconds)
    return curve


def _sample_examples(
    teacher: Model, task: Task, settings: SFTSettings, seed: int, cache: Path
) -> list[Rollout]:
    """As many teacher rollouts of each training problem as there are passes."""
    path = task.files(seed, cache)["train"]
    prompts = load_prompts(
        str(path), teacher.tokenizer, template=None, chat={}, max_tokens=128
    ).prompts
    passes = -(-settings.steps * settings.batch // len(prompts))
    sampler = teacher.sampler(task.max_new_tokens)
    return sampler.sample(prompts, n=passes, key=key(seed, LabStream.TEACHER))
