"""Each pair of the grid: what the probe measured, and what training then did; kept on disk."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging as transformers_logging

from opd.core.stats import Estimate
from opd.data.graders import make_grader
from opd.data.prompts import load_prompts
from opd.recipes.check.features import compute_features
from opd.recipes.check.probe import ProbeConfig, ProbeModel, probe_student, probe_teacher
from opd.samplers.decoding import Decoding
from opd_lab import zoo
from opd_lab.cache_key import digest, source_hash
from opd_lab.calibration.grid import PREFIX, Pair
from opd_lab.checkpoints import RECIPES
from opd_lab.experiments.results import write_json
from opd_lab.forecast_fit import FitRow
from opd_lab.probes import Model
from opd_lab.runs import one_thread, run

PROMPTS = 192  # of the training set, as `opd check` takes them
CHANGES = ("eval.0.n=2", "eval.0.every=10")


@dataclass(frozen=True)
class Outcome:
    """A pair, the probe's numbers, and the run's.

    Attributes:
        pair: student and teacher.
        probe: `opd.recipes.check.features` by name.
        before: held-out accuracy of the student before training.
        after: after it.
        teacher: the teacher's.
        seconds: of the run's steps.
    """

    pair: Pair
    probe: dict[str, Estimate]
    before: float
    after: float
    teacher: float
    seconds: float

    @property
    def values(self) -> dict[str, float]:
        """The probe's numbers, without intervals."""
        return {name: estimate.value for name, estimate in self.probe.items()}

    @property
    def change(self) -> float:
        """Accuracy change."""
        return self.after - self.before

    @property
    def gap(self) -> float:
        """Accuracy by which the teacher is better."""
        return self.teacher - self.before

    @property
    def recovery(self) -> float:
        """Fraction of the gap that was recovered; meaningless without a gap."""
        return self.change / self.gap if self.gap else float("nan")

    @property
    def row(self) -> FitRow:
        """What the fit takes."""
        return FitRow(self.probe, self.before, self.after, self.teacher, self.pair.world)

    def record(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)

    @staticmethod
    def of_record(record: dict[str, Any]) -> Outcome:
        """The inverse of `record`."""
        probe = {name: Estimate(**e) for name, e in record["probe"].items()}
        return Outcome(**(record | {"pair": Pair(**record["pair"]), "probe": probe}))


def first_runs(outcomes: Iterable[Outcome]) -> list[Outcome]:
    """The outcomes of first runs, without repeated ones."""
    return [outcome for outcome in outcomes if not outcome.pair.repetition]


def measure_outcome(pair: Pair, cache: Path) -> Outcome:
    """Probe and run of one pair; cached results are loaded."""
    student, teacher = (
        zoo.build(f"{PREFIX}{pair.world}-{kind}", pair.seed, cache)
        for kind in (pair.student, pair.teacher)
    )
    result = run(student, teacher, pair.task, seed=pair.run_seed, cache=cache, changes=CHANGES)
    last_step = int(result.metrics()[-1]["step"])
    return Outcome(
        pair,
        probe_pair(student, teacher, pair, cache),
        before=float(result.correct(0).mean()),
        after=float(result.correct(last_step).mean()),
        teacher=float(result.correct(0, "teacher-task").mean()),
        seconds=result.seconds(),
    )


def probe_pair(student: Path, teacher: Path, pair: Pair, cache: Path) -> dict[str, Estimate]:
    """The probe's numbers of a pair of checkpoints, measured once."""
    names = (student.name, teacher.name, pair.depth, pair.repetition)
    path = cache / "probes" / f"{digest(repr(names), source_hash())}.json"
    if not path.exists():
        features = run_probe(student, teacher, pair, cache)
        write_json(path, {name: asdict(estimate) for name, estimate in features.items()})
    return {name: Estimate(**e) for name, e in json.loads(path.read_text()).items()}


def run_probe(student: Path, teacher: Path, pair: Pair, cache: Path) -> dict[str, Estimate]:
    """The features `opd check` computes of this pair, on `PROMPTS` training prompts."""
    models = Model.load(student), Model.load(teacher)
    path = pair.task.files(pair.run_seed, cache)["train"]
    prompts = load_prompts(
        str(path), models[0].tokenizer, template=None, chat={}, max_tokens=128
    ).prompts[:PROMPTS]
    config = ProbeConfig(
        Decoding(pair.task.max_new_tokens),
        models[0].decode,
        make_grader("exact", [p.answer or "" for p in prompts]),
        seed=pair.run_seed,
    )
    with one_thread():
        student_model, teacher_model = (ProbeModel(model.lm, model.stop) for model in models)
        student_side = probe_student(student_model, prompts, config)
        teacher_side = probe_teacher(teacher_model, student_model, student_side, config)
        return compute_features(student_side, teacher_side)


def measure_outcomes(pairs: Sequence[Pair], cache: Path, jobs: int) -> Iterator[Outcome]:
    """All outcomes as they are done; the checkpoints are built first.

    Args:
        pairs: of the grid.
        cache: where checkpoints, runs and probes are kept.
        jobs: processes of one thread.
    """
    groups = sorted({(pair.world, pair.seed) for pair in pairs})
    spawn = get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=spawn, initializer=_init_process) as pool:
        for future in as_completed([pool.submit(_build, *group, cache) for group in groups]):
            future.result()
        for done in as_completed([pool.submit(measure_outcome, pair, cache) for pair in pairs]):
            yield done.result()


def _build(world: str, seed: int, cache: Path) -> None:
    for name in RECIPES:
        if name.startswith(f"{PREFIX}{world}-"):
            zoo.card(name, seed, cache)


def _init_process() -> None:
    torch.set_num_threads(1)
    transformers_logging.disable_progress_bar()


def save_outcomes(outcomes: Iterable[Outcome], path: Path) -> None:
    """Write all outcomes to one file, by name."""
    records = [o.record() for o in sorted(outcomes, key=lambda o: o.pair.name)]
    write_json(path, {"outcomes": records})


def load_outcomes(path: Path) -> list[Outcome]:
    """The inverse of `save_outcomes`."""
    return [Outcome.of_record(r) for r in json.loads(path.read_text("utf-8"))["outcomes"]]
