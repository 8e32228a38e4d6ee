"""Each pair of the grid: what the probe said, and what training then did. Both kept on disk."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from functools import cache as cached
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers.utils import logging as transformers_logging

from opd.core.stats import Estimate
from opd.data.graders import make_grader
from opd.data.prompts import load_prompts
from opd.recipes.check.features import compute_features
from opd.recipes.check.probe import ProbeConfig, ProbeModel, probe_student, probe_teacher
from opd.samplers.hf import Decoding
from opd_lab import zoo
from opd_lab.cache_key import PACKAGES, digest
from opd_lab.calibration.grid import PREFIX, Pair
from opd_lab.checkpoints import RECIPES
from opd_lab.experiments.results import write_json
from opd_lab.probes import Model
from opd_lab.runs import RunResult, one_thread, run

PROMPTS = 192  # of the training set, as `opd check` takes them
CHANGES = ("eval.0.n=2", "eval.0.every=10")


@dataclass(frozen=True)
class Outcome:
    """A pair, the probe's numbers, and the run's.

    Attributes:
        pair: who learned from whom.
        probe: `opd.recipes.check.features` by name.
        before: held-out accuracy of the student.
        after: after training.
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
    def change(self) -> float:
        """Accuracy change."""
        return self.after - self.before

    @property
    def lead(self) -> float:
        """What there was to gain."""
        return self.teacher - self.before

    @property
    def recovery(self) -> float:
        """Share of the lead that was recovered; meaningless without one."""
        return self.change / self.lead if self.lead else float("nan")

    def record(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)

    @staticmethod
    def of_record(record: dict[str, Any]) -> Outcome:
        """The inverse of `record`."""
        probe = {name: Estimate(**e) for name, e in record["probe"].items()}
        pair = dict(record["pair"])
        pair["depth"] = pair.pop("horizon", None) or pair["depth"]
        return Outcome(**(record | {"pair": Pair(**pair), "probe": probe}))


def outcome(pair: Pair, cache: Path) -> Outcome:
    """Probe and run of one pair, from disk where they are there."""
    student, teacher = (
        zoo.build(f"{PREFIX}{pair.world}-{kind}", pair.seed, cache)
        for kind in (pair.student, pair.teacher)
    )
    key = pair.seed + 1000 * pair.again
    done = run(student, teacher, pair.task, seed=key, cache=cache, changes=CHANGES)
    teacher_correct = json.loads((done.path / "eval" / "step-0-teacher-task.json").read_text())
    return Outcome(
        pair,
        probed(student, teacher, pair, cache),
        float(done.correct(0).mean()),
        float(done.correct(_last(done)).mean()),
        float(np.mean(teacher_correct["correct"])),
        done.seconds(),
    )


def _last(done: RunResult) -> int:
    return int(done.metrics()[-1]["step"])


def probed(student: Path, teacher: Path, pair: Pair, cache: Path) -> dict[str, Estimate]:
    """The probe's numbers of a pair of checkpoints, measured once."""
    names = (student.name, teacher.name, pair.depth, pair.again)
    path = cache / "probes" / f"{digest(repr(names), probe_source())}.json"
    if not path.exists():
        write_json(
            path, {name: asdict(e) for name, e in measure(student, teacher, pair, cache).items()}
        )
    return {name: Estimate(**e) for name, e in json.loads(path.read_text()).items()}


def measure(student: Path, teacher: Path, pair: Pair, cache: Path) -> dict[str, Estimate]:
    """What `opd check` would see of this pair: the same functions, `PROMPTS` training prompts."""
    ours, theirs = Model.load(student), Model.load(teacher)
    key = pair.seed + 1000 * pair.again
    path = pair.task.files(key, cache)["train"]
    prompts = load_prompts(str(path), ours.tokenizer, template=None, chat={}, max_tokens=128)
    chosen = prompts.prompts[:PROMPTS]
    config = ProbeConfig(
        Decoding(pair.task.max_new_tokens),
        ours.decode,
        make_grader("exact", [p.answer or "" for p in chosen]),
        batch=512,
        seed=key,
    )
    with one_thread():
        model = ProbeModel(ours.lm, ours.stop)
        side = probe_student(model, chosen, config)
        other = ProbeModel(theirs.lm, theirs.stop)
        return compute_features(side, probe_teacher(other, model, side, config))


@cached
def probe_source() -> str:
    """Hash of the code that decides the probe's numbers."""
    parts = sorted((PACKAGES["opd"] / "recipes" / "check").glob("*.py"))
    named = ("probe.py", "diagnose.py", "features.py")
    return digest(*(p.read_text("utf-8") for p in parts if p.name in named))


def outcomes(pairs: Sequence[Pair], cache: Path, jobs: int) -> Iterator[Outcome]:
    """All outcomes, checkpoints first, as they come."""
    groups = sorted({(p.world, p.seed) for p in pairs})
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn"), initializer=_start) as pool:
        for built in as_completed([pool.submit(_build, *group, cache) for group in groups]):
            built.result()
        for done in as_completed([pool.submit(outcome, pair, cache) for pair in pairs]):
            yield done.result()


def _build(world: str, seed: int, cache: Path) -> None:
    for name in RECIPES:
        if name.startswith(f"{PREFIX}{world}-"):
            zoo.card(name, seed, cache)


def _start() -> None:
    torch.set_num_threads(1)
    transformers_logging.disable_progress_bar()


def save(found: Iterable[Outcome], path: Path) -> None:
    """All outcomes in one file, by name."""
    records = [o.record() for o in sorted(found, key=lambda o: o.pair.name)]
    write_json(path, {"outcomes": records})


def load(path: Path) -> list[Outcome]:
    """The inverse of `save`."""
    return [Outcome.of_record(r) for r in json.loads(path.read_text("utf-8"))["outcomes"]]
