"""Outcomes of runs of which a part was made and measured before: what a longer check knows."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from opd.core.stats import Estimate
from opd.recipes.check.forecast import PART, STRETCH
from opd_lab.forecast_fit import fit_forecast
from opd_lab.pairs.design import HALF, REPEAT
from opd_lab.pairs.features import PROMPTS
from opd_lab.pairs.judging import Case, fit_rows, judge_outcomes
from opd_lab.pairs.real import PROMPTS as REAL_PROMPTS
from opd_lab.pairs.records import FOLDER, Outcome, load_rows, outcomes_of, worlds_of

LEAST, HALF_OF_RUN, WHOLE_RUN = 0.25, 0.5, 1.0  # of a run's steps, that the part has


def repeated_parts(outcomes: Sequence[Outcome], folder: Path = FOLDER) -> list[Outcome]:
    """Runs of the study with parts of each, as they went when the run was made a second time.

    The part has other prompts, samples and held-out prompts than the run. In a check it has the
    first two in common with it, so that errors here are rather too large.

    Args:
        outcomes: of the study.
        folder: of the records.
    """
    rows = {r["index"]: r["accuracy"] for r in load_rows(REPEAT, folder) if "accuracy" in r}
    of_study = [o for o in outcomes if o.facts["block"] == "fit" and o.facts["index"] in rows]
    return [
        _with_part(outcome, steps, _change(rows[outcome.facts["index"]], steps))
        for outcome in of_study
        for steps in _measured_steps(rows[outcome.facts["index"]])
        if LEAST <= steps / outcome.run.steps <= WHOLE_RUN
    ]


def _measured_steps(accuracy: Mapping[str, Any]) -> list[int]:
    return sorted(int(moment) for moment in accuracy if moment.isdigit())


def _change(accuracy: Mapping[str, Sequence[float]], steps: int) -> Estimate:
    """Of accuracy by so many steps, of two independent measurements."""
    (before, *low_high), (after, *later) = accuracy["before"], accuracy[str(steps)]
    half = math.hypot(low_high[1] - low_high[0], later[1] - later[0]) / 2
    change = after - before
    return Estimate(change, change - half, change + half, n=0)


def _with_part(outcome: Outcome, steps: int, change: Estimate) -> Outcome:
    path = outcome.run.path(steps) / outcome.run.path()
    part = {f"{PART}_path": Estimate(path, path, path, 1), f"{PART}_resampled": change}
    part[f"{PART}_steps"] = Estimate(steps, steps, steps, 1)
    return replace(outcome, features=_without_stretch(outcome.features) | part)


def steps_made(outcome: Outcome) -> float:
    """Steps of the part, as a fraction of the run's."""
    return outcome.features[f"{PART}_steps"].value / outcome.run.steps


def _without_stretch(features: Mapping[str, Estimate]) -> dict[str, Estimate]:
    """A check makes the one or the other."""
    return {name: e for name, e in features.items() if not name.startswith(f"{STRETCH}_")}


def measured_parts(
    least: float, most: float, folder: Path = FOLDER, block: str = HALF
) -> list[Outcome]:
    """Runs of a block, each with its largest part between two fractions of it."""
    rows = load_rows(block, folder)
    return [outcome for row in rows for outcome in _with_largest_part(row, least, most)]


def measured_halves(folder: Path = FOLDER, block: str = HALF) -> list[Outcome]:
    """Runs of a block, each with the largest part that is no more than half of it."""
    return measured_parts(LEAST, HALF_OF_RUN, folder, block)


def measured_wholes(folder: Path = FOLDER, block: str = HALF) -> list[Outcome]:
    """Runs of a block that were made whole on a copy before."""
    return measured_parts(WHOLE_RUN, WHOLE_RUN, folder, block)


def _with_largest_part(row: Mapping[str, Any], least: float, most: float) -> Iterator[Outcome]:
    if "accuracy" not in row or not row.get("parts"):
        return
    parts = {round(part["part_steps"][0]): part for part in row["parts"]}
    for outcome in outcomes_of(row):
        whole = outcome.run.steps
        usable = [steps for steps in parts if least <= steps / whole <= most]
        if not usable:
            continue
        part = parts[max(usable)]
        prompts = PROMPTS if row["block"] == HALF else REAL_PROMPTS
        measured = {name: Estimate(v, low, high, prompts) for name, (v, low, high) in part.items()}
        path = outcome.run.path(max(usable)) / outcome.run.path()
        measured[f"{PART}_path"] = Estimate(path, path, path, 1)
        yield replace(outcome, features=_without_stretch(outcome.features) | measured)


def leave_worlds_out_with_parts(
    outcomes: Sequence[Outcome], parts: Sequence[Outcome]
) -> list[Case]:
    """Every run with a part judged by a model that was fitted on the other worlds.

    Args:
        outcomes: of the study and what else the forecast is fitted on.
        parts: runs with a part, of some of its worlds.
    """
    cases: list[Case] = []
    for world in worlds_of(parts):
        others, other_parts = (
            fit_rows([o for o in some if o.world != world]) for some in (outcomes, parts)
        )
        model = fit_forecast(others, part_rows=other_parts)
        cases += judge_outcomes(model, [o for o in parts if o.world == world])
    return cases
