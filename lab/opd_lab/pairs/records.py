"""Records of the study: packed into the repository, and read back as rows of a fit."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from opd.core.stats import Estimate
from opd_lab.pairs.outcomes import TEST
from opd_lab.pairs.queue import records_in

FOLDER = Path(__file__).parents[1] / "records"


@dataclass(frozen=True)
class Record:
    """One run: what was measured before it, and what it did.

    Attributes:
        facts: the outcome's record (see `opd_lab.pairs.outcomes`).
        features: numbers measured before the run, by name.
        moments: those of the pilot after 1, 2, 4, ... steps.
        run: settings, as `opd.recipes.check.settings.RunSettings` records them.
    """

    facts: Mapping[str, Any]
    features: Mapping[str, Estimate]
    moments: Sequence[Mapping[str, float]]
    run: Mapping[str, Any]

    def accuracy(self, moment: str) -> float:
        """Held-out accuracy `before`, at `half`, `after`, or of the `teacher`."""
        return float(self.facts["accuracy"][moment][0])

    @property
    def world(self) -> str:
        """Name of the setting."""
        return str(self.facts["world"])

    @property
    def change(self) -> float:
        """Accuracy change."""
        return self.accuracy("after") - self.accuracy("before")

    @property
    def gap(self) -> float:
        """Accuracy by which the teacher is better."""
        return self.accuracy("teacher") - self.accuracy("before")

    @property
    def recovery(self) -> float:
        """Fraction of the gap that was recovered; meaningless without a gap."""
        return self.change / self.gap if self.gap else float("nan")

    @property
    def name(self) -> str:
        """Short and unique."""
        f = self.facts
        return f"{f['block']}-{f['index']} {f['world']}: {f['student']} <- {f['teacher']}"


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


def load_records(block: str, folder: Path = FOLDER) -> list[Record]:
    """The complete records of a block: those with an outcome and features; none without a file."""
    path = folder / f"{block}.jsonl.gz"
    if not path.exists():
        return []
    rows = (json.loads(line) for line in gzip.decompress(path.read_bytes()).decode().splitlines())
    return [_record(row) for row in rows if "accuracy" in row and "features" in row]


def _record(row: Mapping[str, Any]) -> Record:
    features = {
        name: Estimate(value, low, high, n=TEST)
        for name, (value, low, high) in row["features"].items()
    }
    facts = {k: v for k, v in row.items() if k not in ("features", "moments", "run")}
    return Record(facts, features, row["moments"], row["run"])


def worlds_of(records: Iterable[Record]) -> list[str]:
    """Names of the worlds of records, sorted."""
    return sorted({record.world for record in records})
