"""Training whatever is missing, one record per arm, rate, regime and seed."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from opd.run.console import Console
from opd.run.jsonl import read_jsonl
from opd_lab.cache_key import source_hash
from opd_lab.probes import Model
from opd_lab.runs import one_thread
from opd_lab.tuned.auto import train_auto, train_by_hand
from opd_lab.tuned.regimes import ARMS, OPD_RATES, REGIMES, SEEDS, TEACHER, Arm
from opd_lab.tuned.training import (
    Budget,
    Place,
    Point,
    Setting,
    as_records,
    budget_of,
    train_both,
    train_on_policy,
    train_supervised,
)

RECORDS = Path(__file__).parents[1] / "records" / "tuned.jsonl"


@dataclass(frozen=True)
class Record:
    """A trained arm.

    Attributes:
        setting: regime, arm, rate and seed.
        source: hash of the code that trained it.
        models: seed of the checkpoints.
        points: its student along the way.
    """

    setting: Setting
    source: str
    models: int
    points: tuple[Point, ...]

    @staticmethod
    def parse(row: dict[str, Any]) -> Record:
        """The inverse of `row`."""
        setting = Setting(row["regime"], row["arm"], row["setting"], row["seed"])
        return Record(
            setting, row["source"], row["models"], tuple(Point(**point) for point in row["points"])
        )

    def row(self) -> dict[str, Any]:
        """As a line of the records."""
        facts = asdict(self.setting) | {
            "rate": self.setting.rate,
            "source": self.source,
            "models": self.models,
        }
        return facts | {"points": as_records(self.points)}


def read_records(path: Path = RECORDS) -> list[Record]:
    """The records of a file; none if it is absent."""
    return [Record.parse(row) for row in read_jsonl(path)] if path.is_file() else []


def tuned(records: Path | None, cache: Path, out: Path, *, train: bool) -> None:
    """What `opd lab tuned` does.

    Args:
        records: to continue; None: those of the package.
        cache: where checkpoints are kept.
        out: folder of the page.
        train: whether missing arms are trained first.
    """
    from opd_lab.tuned.page import write_page

    path = records or RECORDS
    if train:
        run_study(path, cache)
    trained = read_records(path)
    seconds = sum(record.points[-1].seconds for record in trained)
    facts = {
        "Page": "opd lab tuned --page",
        "Runs": "opd_lab.tuned.study.run_study; opd lab tuned trains what is missing",
        "Records": f"{len(trained)} trained arms, lab/opd_lab/records/{path.name}",
        "Source": ", ".join(sorted({record.source[:16] for record in trained}))
        + " (hash of the training code; that of this comparison, lab/opd_lab/tuned, and of opd "
        "check is not in it, LOG.md names its commits)",
        "Seeds": ", ".join(map(str, sorted({record.setting.seed for record in trained})))
        + "; models of seed "
        + ", ".join(map(str, sorted({record.models for record in trained}))),
        "Time": f"{seconds / 60:.0f} minutes of processor time in training, one thread",
    }
    Console("plain").print(f"Page: {write_page(trained, out, facts)}")


def settings(
    regimes: Iterable[str], seeds: Iterable[int], arms: Sequence[Arm] = ARMS
) -> Iterator[list[Setting]]:
    """Everything to train, by regime and seed, plain training first: it gives the budgets."""
    for seed in seeds:
        for regime in regimes:
            trained = [Setting(regime, arm, n, seed) for arm in arms for n in range(len(OPD_RATES))]
            yield [Setting(regime, TEACHER, 0, seed), *trained]


def train_setting(place: Place, setting: Setting, plain: Budget) -> list[Point]:
    """Train one arm.

    Args:
        place: of its regime and seed.
        setting: arm and rate.
        plain: what plain training spent; other arms go on until both are spent.
    """
    with one_thread(), tempfile.TemporaryDirectory(dir=place.folder) as scratch:
        match setting.arm:
            case "OPD":
                return train_on_policy(place, setting.rate, place.regime.steps, Path(scratch))
            case "SFT":
                return train_supervised(place, setting.rate, plain)
            case "SFT, then OPD":
                return train_both(place, setting, plain, Path(scratch))
            case "cold start by hand":
                return train_by_hand(place, setting.rate, plain, Path(scratch))
            case "recipe: auto":
                return train_auto(place, setting.rate, plain, Path(scratch))
            case "teacher":
                return [Point(0, 0.0, 0.0, 0.0, place.evaluate(Model.load(place.teacher)))]


def run_study(
    out: Path,
    cache: Path,
    regimes: Iterable[str] = tuple(REGIMES),
    seeds: Iterable[int] = SEEDS,
    arms: Sequence[Arm] = ARMS,
    models: int | None = None,
) -> None:
    """Train what the file lacks, and append it.

    Args:
        out: the records.
        cache: where checkpoints are kept.
        regimes: names in `REGIMES`.
        seeds: of prompts and rollouts, and of the checkpoints unless `models` says otherwise.
        arms: methods.
        models: seed of the checkpoints of every run.
    """
    console, source = Console("plain"), source_hash()
    out.parent.mkdir(parents=True, exist_ok=True)
    for planned in settings(regimes, seeds, arms):
        records = {record.setting: record for record in read_records(out)}
        if all(setting in records for setting in planned):
            continue
        regime, seed = planned[0].regime, planned[0].seed
        with tempfile.TemporaryDirectory() as folder:
            checkpoints = seed if models is None else models
            place = Place(REGIMES[regime], seed, checkpoints, cache, Path(folder))
            for setting in planned:
                if setting in records:
                    continue
                plain = [
                    record.points
                    for one, record in records.items()
                    if (one.regime, one.arm, one.seed) == (regime, "OPD", seed)
                ]
                if not plain and setting.arm not in ("OPD", TEACHER):
                    raise ValueError("what OPD spends is the budget of other arms: train it first")
                budget = budget_of(plain) if plain else Budget()
                record = Record(
                    setting, source, checkpoints, tuple(train_setting(place, setting, budget))
                )
                records[setting] = record
                with out.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(record.row()) + "\n")
                last = record.points[-1]
                console.print(
                    f"{regime} {seed} {setting.arm} {setting.rate:g}: test "
                    f"{last.accuracy['test']:.3f} after {last.tokens:.0f} tokens, "
                    f"{last.seconds:.1f} s"
                )
