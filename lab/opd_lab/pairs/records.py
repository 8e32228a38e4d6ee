"""Records of the study: packed into the repository, and read back as outcomes of runs.

A run was evaluated several times on its way. Because its learning rate does not depend on its
length, each evaluation is the outcome of a run of as many steps, with the same pilot: a record
gives several outcomes, of which only the last is independent of the others' training.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from opd.core.stats import Estimate
from opd.recipes.check.settings import RunSettings
from opd_lab.pairs.outcomes import TEST
from opd_lab.pairs.queue import records_in

FOLDER = Path(__file__).parents[1] / "records"


@dataclass(frozen=True)
class Outcome:
    """What a run of some length did, and what was measured before it.

    Attributes:
        facts: of the run that it was part of (see `opd_lab.pairs.outcomes`).
        features: numbers measured before the run, by name.
        run: its settings.
        before: held-out accuracy before training.
        after: after all of them.
        teacher: the teacher's.
    """

    facts: Mapping[str, Any]
    features: Mapping[str, Estimate]
    run: RunSettings
    before: float
    after: float
    teacher: float

    @property
    def world(self) -> str:
        """Name of the setting."""
        return str(self.facts["world"])

    @property
    def training(self) -> tuple[str, int]:
        """What outcomes of the same training share."""
        return _key(self.facts)

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
    def name(self) -> str:
        """Short and unique."""
        f = self.facts
        return (
            f"{f['block']}-{f['index']} {f['world']}: {f['student']} <- {f['teacher']}, "
            f"{self.run.steps} steps at {self.run.lr:.2g}{' (LoRA)' * (self.run.lora_rank > 0)}"
        )


def pack(cache: Path, folder: Path = FOLDER) -> dict[str, int]:
    """Write what a cache holds to one compressed file per block; return the counts.

    Args:
        cache: with the folders `outcomes` and `features`.
        folder: of the files.
    """
    measured = {_key(r): r for r in records_in(cache / "features")}
    lines: dict[str, list[str]] = {}
    for outcome in records_in(cache / "outcomes"):
        features = measured.get(_key(outcome), {})
        if features and features["weights"] != outcome["weights"]:
            raise ValueError(f"run {_key(outcome)}: features and outcome are of different weights")
        merged = outcome | {k: v for k, v in features.items() if k not in outcome}
        line = json.dumps(merged, separators=(",", ":"))
        lines.setdefault(outcome["block"], []).append(line + "\n")
    folder.mkdir(parents=True, exist_ok=True)
    for block, rows in lines.items():
        content = gzip.compress("".join(rows).encode(), mtime=0)
        (folder / f"{block}.jsonl.gz").write_bytes(content)
    return {block: len(rows) for block, rows in lines.items()}


def _key(record: Mapping[str, Any]) -> tuple[str, int]:
    return record["block"], record["index"]


def load_outcomes(block: str, folder: Path = FOLDER) -> list[Outcome]:
    """The outcomes of a block whose features were measured; none without a file."""
    rows = load_rows(block, folder)
    complete = (row for row in rows if "accuracy" in row and "features" in row)
    return [outcome for row in complete for outcome in outcomes_of(row)]


def load_rows(block: str, folder: Path = FOLDER) -> list[dict[str, Any]]:
    """The records of a block as they were packed; none without a file."""
    path = folder / f"{block}.jsonl.gz"
    if not path.exists():
        return []
    text = gzip.decompress(path.read_bytes()).decode()
    return [json.loads(line) for line in text.splitlines()]


def outcomes_of(row: Mapping[str, Any]) -> list[Outcome]:
    """The outcomes of one record, the shortest run first."""
    features = {
        name: Estimate(value, low, high, n=TEST)
        for name, (value, low, high) in row["features"].items()
    }
    facts = {k: v for k, v in row.items() if k not in ("features", "moments", "run", "accuracy")}
    accuracy = {moment: float(values[0]) for moment, values in row["accuracy"].items()}
    before, teacher = accuracy.pop("before"), accuracy.pop("teacher")
    whole = RunSettings.of_record(row["run"])
    outcomes = []
    for steps in sorted(map(int, accuracy)):
        run = replace(whole, steps=steps)
        shorter = scale_paths(features, whole.path() / run.path())
        after = accuracy[str(steps)]
        outcomes.append(Outcome(facts, shorter, run, before, after, teacher))
    return outcomes


def scale_paths(features: Mapping[str, Estimate], ratio: float) -> dict[str, Estimate]:
    """Features of a run for a shorter one of the same rates.

    The pilot covers a larger fraction of it. A stretch that would go beyond its end is left out,
    because no check would make one.

    Args:
        features: of the longer run.
        ratio: sum of its rates over that of the shorter one.
    """
    scaled = dict(features)
    for name in ("pilot_path", "stretch_path"):
        if name in scaled:
            e = scaled[name]
            scaled[name] = replace(e, value=e.value * ratio, low=e.low * ratio, high=e.high * ratio)
    if "stretch_path" in scaled and scaled["stretch_path"].value > 1:
        scaled = {name: e for name, e in scaled.items() if not name.startswith("stretch_")}
    return scaled


def worlds_of(outcomes: Iterable[Outcome]) -> list[str]:
    """Names of the worlds of outcomes, sorted."""
    return sorted({outcome.world for outcome in outcomes})


def count_trainings(outcomes: Iterable[Outcome]) -> int:
    """How many trainings outcomes come from."""
    return len({outcome.training for outcome in outcomes})
