"""Results of experiments on disk: a JSON file per experiment and seed."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from opd_lab.cache_key import experiment_hash
from opd_lab.experiments.experiment import Curve, Experiment
from opd_lab.experiments.workspace import Workspace


@dataclass(frozen=True)
class SeedResult:
    """What an experiment gave on one seed.

    Attributes:
        seed: which retrained every checkpoint.
        seconds: time it took, cached results left out.
        numbers: of the experiment's own type.
        curves: of its figure.
    """

    seed: int
    seconds: float
    numbers: Any
    curves: list[Curve]


def run_experiment(experiment: Experiment[Any], workspace: Workspace) -> SeedResult:
    """Measure one seed."""
    started = time.monotonic()
    measurement = experiment.measure(workspace)
    seconds = round(time.monotonic() - started, 1)
    return SeedResult(workspace.seed, seconds, measurement.numbers, measurement.curves)


def save_result(out: Path, name: str, result: SeedResult, *, quick: bool) -> None:
    """Write a result to `out/seed-N/NAME.json`, with the hash of the code that made it."""
    record = {"name": name, "quick": quick, "source": experiment_hash(), **asdict(result)}
    write_json(out / f"seed-{result.seed}" / f"{name}.json", record)


def load_results(out: Path, experiment: Experiment[Any], *, quick: bool) -> list[SeedResult]:
    """Results of an experiment in a folder, by seed: of this code and this size alone.

    So seeds may be run apart from each other, and a page never mixes two versions.
    """
    paths = out.glob(f"seed-*/{experiment.name}.json")
    records = [json.loads(path.read_text("utf-8")) for path in paths]
    results = [
        parse_result(experiment, record)
        for record in records
        if (record["quick"], record["source"]) == (quick, experiment_hash())
    ]
    return sorted(results, key=lambda result: result.seed)


def parse_result(experiment: Experiment[Any], record: dict[str, Any]) -> SeedResult:
    """A result from its JSON record."""
    numbers = TypeAdapter(experiment.numbers).validate_python(record["numbers"])
    curves = [Curve(**curve) for curve in record["curves"]]
    return SeedResult(record["seed"], record["seconds"], numbers, curves)


def numbers_of(results: Sequence[SeedResult]) -> list[Any]:
    """The numbers of each seed."""
    return [result.numbers for result in results]


def write_json(path: Path, record: Any) -> None:
    """Write a JSON file, and its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
