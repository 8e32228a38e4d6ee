"""What `opd lab calibrate` does: outcomes, the fit if asked, the judgement, the page."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from opd.recipes.check.forecast import MODEL_FILE, load_model
from opd.run.console import Console
from opd_lab.calibration import grid
from opd_lab.calibration.fitting import fit
from opd_lab.calibration.grid import Pair
from opd_lab.calibration.outcomes import Outcome, outcomes, save
from opd_lab.calibration.page import write_page

FEATURES = ("log_distance", "tilt_gain")
FIT = (("chain", 20), ("chain", 21), ("ledger", 20), ("ledger", 21))
HELD_OUT = (("chain", 22), ("route", 20))
AGAIN = 3  # every third pair of these is run once more, and of the first seed of each world


def wanted(groups: Sequence[tuple[str, int]]) -> list[Pair]:
    """The pairs of some worlds and seeds, and the re-runs."""
    found = []
    for world, seed in groups:
        pairs = grid.pairs(world, seed)
        found += pairs
        if (world, seed) in HELD_OUT or seed == 20:
            found += [replace(p, again=1) for p in pairs[::AGAIN]]
    return found


def calibrate(*, refit: bool, jobs: int, cache: Path, out: Path) -> None:
    """Run what is missing, and write the page; with `refit` fit the model anew first.

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
        first = [o for o in fitted if not o.pair.again]
        told = f"{len(first)} pairs of " + ", ".join(f"{w} (seed {s})" for w, s in FIT)
        model = fit(first, FEATURES, fitted_on=told)
        path = Path(sys.modules["opd.recipes.check"].__path__[0]) / MODEL_FILE
        path.write_text(json.dumps(asdict(model), indent=1) + "\n", encoding="utf-8")
        console.say(f"Wrote {path}. Commit it, then run without --refit.")
        return
    held_out = _outcomes(HELD_OUT, cache, jobs, console)
    facts = {
        "Command": "`opd lab calibrate`",
        "Fitted on": ", ".join(f"{w} seed {s}" for w, s in FIT),
        "Held out": ", ".join(f"{w} seed {s}" for w, s in HELD_OUT)
        + " (no pair of the world route was ever fitted on)",
        "Runs": f"{len(fitted) + len(held_out)}, "
        f"{sum(o.seconds for o in fitted + held_out) / 60:.0f} minutes of steps",
        "Time of this call": f"{(time.monotonic() - began) / 60:.1f} minutes, {jobs} process(es), "
        "what was in the cache left out",
    }
    page = write_page(out / "check.md", load_model(), fitted, held_out, facts)
    console.say(f"Page: {page}")


def _outcomes(
    groups: Sequence[tuple[str, int]], cache: Path, jobs: int, console: Console
) -> list[Outcome]:
    pairs = wanted(groups)
    found = []
    for outcome in outcomes(pairs, cache, jobs):
        found.append(outcome)
        console.say(
            f"{len(found):>4} of {len(pairs)}  {outcome.pair.name}: {outcome.before:.2f} -> "
            f"{outcome.after:.2f} (teacher {outcome.teacher:.2f})"
        )
    save(found, cache / "outcomes" / f"{'-'.join(f'{w}{s}' for w, s in groups)}.json")
    return sorted(found, key=lambda o: o.pair.name)
