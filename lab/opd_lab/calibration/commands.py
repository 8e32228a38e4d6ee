"""What `opd lab calibrate` does: outcomes, the fit if asked, the judgement, the page."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from opd.recipes.check.forecast_model import MODEL_FILE, load_model
from opd.run.console import Console
from opd_lab.calibration import grid
from opd_lab.calibration.grid import Pair
from opd_lab.calibration.outcomes import Outcome, first_runs, measure_outcomes, save_outcomes
from opd_lab.calibration.page import write_page
from opd_lab.forecast_fit import fit_forecast

FEATURES = ("log_distance", "tilt_gain")
Group = tuple[str, int]  # world and seed
FIT: tuple[Group, ...] = (("chain", 20), ("chain", 21), ("ledger", 20), ("ledger", 21))
HELD_OUT: tuple[Group, ...] = (("chain", 22), ("route", 20))
REPEAT_EVERY = 3  # every third pair of the held-out groups and of seed 20 is run a second time


def pairs_of(groups: Sequence[Group]) -> list[Pair]:
    """The pairs of some worlds and seeds, and the repeated ones."""
    pairs = []
    for world, seed in groups:
        first = grid.pairs(world, seed)
        pairs += first
        if (world, seed) in HELD_OUT or seed == 20:
            pairs += [replace(pair, repetition=1) for pair in first[::REPEAT_EVERY]]
    return pairs


def calibrate(*, refit: bool, jobs: int, cache: Path, out: Path) -> None:
    """Run what is missing, and write the page; with `refit`, refit the forecast instead.

    Args:
        refit: fit on the fit groups, write the package's model, and stop there: the held-out pairs
            are for a later call, after the model has been committed.
        jobs: processes of one thread.
        cache: where checkpoints, runs and probes are kept.
        out: folder of the page.
    """
    console, began = Console("plain"), time.monotonic()
    fitted = _outcomes(FIT, cache, jobs, console)
    if refit:
        path = write_model(fitted)
        console.print(f"Wrote {path}. Commit it, then run without --refit.")
        return
    held_out = _outcomes(HELD_OUT, cache, jobs, console)
    minutes = sum(o.seconds for o in fitted + held_out) / 60
    facts = {
        "Command": "opd lab calibrate",
        "Fitted on": ", ".join(f"{world} seed {seed}" for world, seed in FIT),
        "Held out": ", ".join(f"{world} seed {seed}" for world, seed in HELD_OUT)
        + " (no pair of the world route was ever fitted on)",
        "Runs": f"{len(fitted) + len(held_out)}, {minutes:.0f} minutes of steps",
        "Time of this call": f"{(time.monotonic() - began) / 60:.1f} minutes, {jobs} process(es), "
        "without cached results",
    }
    page = write_page(out / "check.md", load_model(), fitted, held_out, facts)
    console.print(f"Page: {page}")


def write_model(fitted: Sequence[Outcome]) -> Path:
    """Fit the forecast and put it into the package; return its path."""
    first = first_runs(fitted)
    groups = ", ".join(f"{world} (seed {seed})" for world, seed in FIT)
    fitted_on = f"{len(first)} pairs of {groups}"
    model = fit_forecast([o.row for o in first], FEATURES, fitted_on=fitted_on)
    path = Path(sys.modules["opd.recipes.check"].__path__[0]) / MODEL_FILE
    path.write_text(json.dumps(asdict(model), indent=1) + "\n", encoding="utf-8")
    return path


def _outcomes(groups: Sequence[Group], cache: Path, jobs: int, console: Console) -> list[Outcome]:
    pairs = pairs_of(groups)
    outcomes = []
    for outcome in measure_outcomes(pairs, cache, jobs):
        outcomes.append(outcome)
        console.print(
            f"{len(outcomes):>4} of {len(pairs)}  {outcome.pair.name}: {outcome.before:.2f} -> "
            f"{outcome.after:.2f} (teacher {outcome.teacher:.2f})"
        )
    name = "-".join(f"{world}{seed}" for world, seed in groups)
    save_outcomes(outcomes, cache / "outcomes" / f"{name}.json")
    return sorted(outcomes, key=lambda o: o.pair.name)
