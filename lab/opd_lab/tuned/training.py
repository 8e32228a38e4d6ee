"""One arm at one rate: training, with the held-out sets evaluated along the way.

Seconds are those of this process on the processor, not of the clock on the wall: the machine may do
other work. Evaluations count neither as seconds nor as tokens.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from pathlib import Path
from statistics import fmean
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

from opd import config
from opd.config import Optim
from opd.data.prompts import PromptSet, load_prompts
from opd.recipes.distillation import distill
from opd.recipes.sft import sft
from opd.rng import key
from opd.run import clock
from opd.run.console import Console
from opd.setup.session import build
from opd.types import Rollout
from opd_lab import zoo
from opd_lab.probes import Model, evaluate_model
from opd_lab.runs import EXTRA_TOKENS, RunResult, Task, run_config
from opd_lab.streams import LabStream
from opd_lab.tuned.regimes import BASE, OPD_RATES, RESPONSES, SFT_RATES, WORLD, Arm, Regime
from opd_lab.worlds import Problem, write_prompts

SIZES = {"validation": 256, "test": 512, "other-depth": 128, "echo": 128}  # of the held-out sets
SFT_SHARE = 2  # "SFT, then OPD": one half of the steps each
EVALUATIONS = 16  # of its on-policy half
PARTS = 8  # of the tokens, at which SFT is evaluated
QUIET = Console("quiet")


@dataclass(frozen=True)
class Point:
    """A student on its way.

    Attributes:
        step: optimizer steps so far.
        tokens: completion tokens it has been trained on; with a recipe all that were sampled.
        seconds: of this process, evaluations left out.
        teacher_seconds: those of them that the teacher took, sampling or scoring.
        accuracy: by held-out set.
        check_seconds: those of `seconds` that the check of `recipe: auto` took.
        budget: the only one that the run was for; "": it counts at each that it is within.
    """

    step: int
    tokens: float
    seconds: float
    teacher_seconds: float
    accuracy: dict[str, float]
    check_seconds: float = 0.0
    budget: str = ""


@dataclass(frozen=True)
class Setting:
    """What is trained: everything that a record is named by."""

    regime: str
    arm: Arm
    setting: int  # number of the rate
    seed: int

    @property
    def rate(self) -> float:
        """Learning rate; of the supervised part where there are two."""
        rates = SFT_RATES if self.arm in ("SFT", "SFT, then OPD") else OPD_RATES
        return rates[self.setting]


@dataclass(frozen=True)
class Budget:
    """What an arm may spend.

    Attributes:
        tokens: completion tokens.
        seconds: of this process, evaluations left out.
    """

    tokens: float = float("inf")
    seconds: float = float("inf")


@dataclass
class Place:
    """Files and models of one regime and seed.

    Attributes:
        regime: what is compared.
        seed: of prompts and rollouts.
        models: seed of the checkpoints.
        cache: where checkpoints are kept.
        folder: for prompt files and runs; it may be deleted afterwards.
    """

    regime: Regime
    seed: int
    models: int
    cache: Path
    folder: Path
    files: dict[str, Path] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Write the prompt files: training problems, and held-out ones that are all different."""
        for name, problems in self._problems().items():
            self.files[name] = self.folder / f"{name}.jsonl"
            write_prompts(self.files[name], problems)

    def _problems(self) -> dict[str, list[Problem]]:
        depth, seed = self.regime.depth, self.seed
        wanted = SIZES["validation"] + SIZES["test"]
        distinct = dict.fromkeys(WORLD.problems(2 * wanted, seed, depth=depth, held_out=True))
        held_out = list(distinct)[:wanted]
        return {
            "train": WORLD.problems(self.regime.prompts, seed, depth=depth),
            "validation": held_out[: SIZES["validation"]],
            "test": held_out[SIZES["validation"] :],
            "other-depth": WORLD.problems(
                SIZES["other-depth"], seed, depth=self.regime.other_depth, held_out=True
            ),
            "echo": WORLD.off_task(SIZES["echo"], seed, held_out=True),
        }

    @property
    def student(self) -> Path:
        """The student's checkpoint."""
        return zoo.build(BASE, self.models, self.cache)

    @property
    def teacher(self) -> Path:
        """The teacher's."""
        return zoo.build(self.regime.teacher, self.models, self.cache)

    @cached_property
    def start(self) -> Point:
        """The student before training."""
        return Point(0, 0.0, 0.0, 0.0, self.evaluate(Model.load(self.student)))

    @property
    def max_new_tokens(self) -> int:
        """Longest completion, of training and of evaluations."""
        return WORLD.max_tokens(self.regime.depth) + EXTRA_TOKENS

    def tokens_of(self, name: str) -> int:
        """Longest completion on one of the held-out sets."""
        depth = self.regime.other_depth if name == "other-depth" else self.regime.depth
        return WORLD.max_tokens(depth) + EXTRA_TOKENS

    def prompts(self, name: str, model: Model) -> PromptSet:
        """One of the prompt files, tokenized."""
        path = str(self.files[name])
        return load_prompts(path, model.tokenizer, template=None, chat={}, max_tokens=128)

    def evaluate(self, model: Model) -> dict[str, float]:
        """Accuracy on every held-out set."""
        return {
            name: evaluate_model(
                model, self.prompts(name, model), self.tokens_of(name), 1, self.seed
            ).accuracy.value
            for name in SIZES
        }


@contextmanager
def processor_time() -> Iterator[None]:
    """Have the product's clock measure this process alone."""
    with patch.object(clock, "time", SimpleNamespace(monotonic=time.process_time)):
        yield


def train_on_policy(
    place: Place,
    rate: float,
    steps: int,
    scratch: Path,
    student: Path | None = None,
    evaluations: int = 2,
) -> list[Point]:
    """Plain on-policy distillation, evaluated so often, at equal distances, the end included."""
    data = on_policy_config(place, rate, steps, scratch, student)
    for one in data["eval"]:
        one["every"] = steps // evaluations
    cfg = config.parse(data)
    with processor_time():
        session, completions = build(cfg, resume=False, overwrite=True, console=QUIET)
        try:
            distill(replace(session, teacher_sampler=None), completions)
        finally:
            session.trackers.close()
            session.folder.close()
    return read_points(RunResult(Path(cfg.output.dir)))


def on_policy_config(
    place: Place, rate: float, steps: int, scratch: Path, student: Path | None = None
) -> dict[str, Any]:
    """The lab's run.yaml with the regime's sets; all of them are evaluated at the end alone."""
    task = Task(WORLD, place.regime.depth)
    teacher, seed = place.teacher, place.seed
    data = run_config(student or place.student, teacher, task, place.files, seed, scratch / "run")
    for one in data["eval"]:
        one |= {"every": 0, "max_new_tokens": place.tokens_of(one["name"])}
    data["optim"]["lr"], data["train"]["steps"] = rate, steps
    data["diagnostics"] = {"positions": 0}  # no part of the method, and they take time
    return data


def read_points(result: RunResult) -> list[Point]:
    """The evaluations of a run."""
    steps = [int(step) for step in result.curve("eval/test/accuracy")[0]]
    sets = {name: result.curve(f"eval/{name}/accuracy")[1] for name in SIZES}
    tokens, seconds = [0.0, *result.cumulative_tokens()], [0.0, *result.cumulative_seconds()]
    teacher = [0.0]
    for row in result.lines("timings.jsonl"):
        teacher.append(teacher[-1] + row.get("time/score_s", 0.0))
    return [
        Point(step, tokens[step], seconds[step], teacher[step], {n: v[i] for n, v in sets.items()})
        for i, step in enumerate(steps)
    ]


@cache
def teacher_answers(
    teacher: Path, prompts: Path, answers: int | None, count: int, max_new_tokens: int, seed: int
) -> tuple[list[Rollout], float]:
    """The teacher's answers to the training problems, and the seconds that each one took."""
    model = Model.load(teacher)
    rows = load_prompts(str(prompts), model.tokenizer, template=None, chat={}, max_tokens=128)
    began = time.process_time()
    n = 1 if answers is not None else -(-count // len(rows.prompts))
    sampler = model.sampler(max_new_tokens)
    rollouts = sampler.sample(rows.prompts, n=n, key=key(seed, LabStream.TEACHER))
    return rollouts, (time.process_time() - began) / len(rollouts)


def train_supervised(
    place: Place, rate: float, plain: Budget, *, steps: int | None = None, out: Path | None = None
) -> list[Point]:
    """Supervised training on the teacher's answers until both budgets are spent.

    Evaluated at `PARTS` of the tokens, and where the seconds are spent.

    Args:
        place: of the regime and the seed.
        rate: constant learning rate.
        plain: what plain training spent.
        steps: exactly so many; None: until the tokens and the seconds are spent.
        out: where the trained student is saved, if anywhere.
    """
    regime, most = place.regime, steps or 4 * place.regime.steps
    answers, per_answer = teacher_answers(
        place.teacher,
        place.files["train"],
        regime.answers,
        4 * regime.steps * RESPONSES,
        place.max_new_tokens,
        place.seed,
    )
    student = Model.load(place.student)
    points = [place.start]
    student.lm.model.requires_grad_(True)
    training = sft(
        student.lm, answers, steps=most, batch=RESPONSES, optim=Optim(lr=rate), seed=place.seed
    )
    spent, tokens_per_step = 0.0, RESPONSES * sum(map(len, answers)) / len(answers)
    enough = round(plain.tokens / tokens_per_step)
    marks = {round(enough * part / PARTS) for part in range(1, PARTS + 1)}
    for step in range(1, most + 1):
        began = time.process_time()
        next(training)
        spent += time.process_time() - began
        sampled = step * RESPONSES if regime.answers is None else regime.answers
        teacher = sampled * per_answer
        over = steps is None and step >= enough and spent + teacher >= plain.seconds
        if step not in marks | {most} and not over:
            continue
        accuracy = place.evaluate(student)
        points.append(Point(step, step * tokens_per_step, spent + teacher, teacher, accuracy))
        if over:
            break
    if out is not None:
        student.lm.causal.save_pretrained(out)
        student.tokenizer.save_pretrained(out)
    return points


def train_both(place: Place, setting: Setting, plain: Budget, scratch: Path) -> list[Point]:
    """Half of the steps supervised, then on-policy until the tokens and more are spent."""
    steps = place.regime.steps // SFT_SHARE
    first = train_supervised(place, setting.rate, plain, steps=steps, out=scratch / "student")
    rate, start = OPD_RATES[setting.setting], first[-1]
    # A supervised step is faster, so equal seconds are more steps than equal tokens; where either
    # budget ends is not known before.
    second = train_on_policy(
        place, rate, place.regime.steps, scratch, scratch / "student", evaluations=EVALUATIONS
    )
    return first + [
        Point(
            start.step + point.step,
            start.tokens + point.tokens,
            start.seconds + point.seconds,
            start.teacher_seconds + point.teacher_seconds,
            point.accuracy,
        )
        for point in second[1:]
    ]


def budget_of(curves: Sequence[Sequence[Point]]) -> Budget:
    """Tokens and seconds of plain training: means over its rates."""
    last = [points[-1] for points in curves]
    return Budget(fmean(one.tokens for one in last), fmean(one.seconds for one in last))


def as_records(points: Sequence[Point]) -> list[Mapping[str, Any]]:
    """Points as JSON."""
    return [
        {**vars(point), "accuracy": {n: round(v, 5) for n, v in point.accuracy.items()}}
        for point in points
    ]
