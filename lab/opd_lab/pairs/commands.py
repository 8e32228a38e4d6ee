"""What `opd lab outcomes`, `opd lab records` and `opd lab judge` do."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging as transformers_logging

from opd.errors import UserError
from opd.recipes.check.forecast_model import MODEL_FILE, load_model
from opd.reports.markdown import render_markdown
from opd.run.console import Console
from opd_lab.forecast_fit import fit_forecast
from opd_lab.pairs.design import FITTED, REPEAT, plan
from opd_lab.pairs.features import measure_features
from opd_lab.pairs.figure import draw_judgement
from opd_lab.pairs.judging import fit_rows, judge_outcomes, leave_worlds_out
from opd_lab.pairs.outcomes import AnyRun, measure_outcome
from opd_lab.pairs.page import Findings, ablate, check_document
from opd_lab.pairs.part_outcomes import (
    leave_worlds_out_with_parts,
    measured_halves,
    measured_wholes,
    repeated_parts,
)
from opd_lab.pairs.queue import work
from opd_lab.pairs.real import BLOCK, PART_BLOCK, PART_RUNS, RUNS
from opd_lab.pairs.real import FITTED as FITTED_REAL
from opd_lab.pairs.records import Outcome, count_trainings, load_outcomes, pack, worlds_of
from opd_lab.pairs.repeats import load_repeats
from opd_lab.pairs.world_count import by_world_count

FIGURE = (
    "\n## Forecasts and coverage of worlds left out\n\n"
    "![Predicted against real change, and coverage of the intervals](forecasts.png)\n"
)
PARTS = {"outcomes": measure_outcome, "features": measure_features}


def run_outcomes(block: str, first: int, count: int, cache: Path) -> None:
    """Train and measure the pairs of the design that have no record yet.

    Call it again for a second process, or to go on.
    """
    _one_quiet_process()
    console = Console("plain")
    parts = {"outcomes": measure_outcome} if block == REPEAT else PARTS  # it has its fit's features
    for index in range(first, first + count):
        run = _run_of(block, index)
        for part, measure in parts.items():
            measure_here = partial(measure, cache=cache, scratch=cache / "scratch")
            for record in work([] if run is None else [run], measure_here, cache / part):
                console.print(_line(record))


def _run_of(block: str, index: int) -> AnyRun | None:
    """Run `index` of a block; None for a real pair whose weights are not named, or beyond them."""
    if block not in (BLOCK, PART_BLOCK):
        return plan(block, index)
    runs = RUNS if block == BLOCK else PART_RUNS
    return runs[index] if index < len(runs) and runs[index].available else None


def _line(record: dict[str, Any]) -> str:
    values = {name: a[0] for name, a in record.get("accuracy", {}).items()}
    seconds = {name: value for name, value in record.items() if name.endswith("_seconds")}
    return (
        f"{record['block']} {record['index']:>4} {record['world']}: {record['student']} <- "
        f"{record['teacher']} {values or record.get('error', '')} {seconds}"
    )


def _one_quiet_process() -> None:
    torch.set_num_threads(1)
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()


def pack_records(cache: Path) -> None:
    """Put the records of a cache into the repository, compressed."""
    console = Console("plain")
    for block, count in pack(cache).items():
        console.print(f"{block}: {count} runs")


def judge_forecast(out: Path, *, refit: bool) -> None:
    """Write the page from the packed records; with `refit`, the package's model, and stop there.

    Args:
        out: folder of the page.
        refit: fit on the first runs of the study and of real models, and the earlier calibration.
            Later runs and fresh seeds are for another call, after the model has been committed.

    Raises:
        UserError: there are no records.
    """
    console = Console("plain")
    study, earlier, fresh, real = (
        load_outcomes(block) for block in ("fit", "calibration", "fresh", BLOCK)
    )
    seen = [o for o in real if o.facts["index"] < FITTED_REAL]
    fitted = earlier + [o for o in study if o.facts["index"] < FITTED] + seen
    if not study:
        raise UserError("There are no records; run opd lab outcomes, then opd lab records.")
    if refit:
        console.print(f"Wrote {_write_model(fitted)}. Commit it before fresh seeds judge it.")
        return
    model = load_model()
    unseen = [o for o in study if o.facts["index"] >= FITTED] + fresh
    known = earlier + study + seen
    left_out = leave_worlds_out(known)
    findings = Findings(
        known,
        left_out,
        judge_outcomes(model, unseen),
        model,
        {
            "Command": "opd lab judge",
            "Shipped model": f"fitted on {model.fitted_on}",
            "Study": _describe(study),
            "Of the earlier calibration (40 steps at 1e-3, no pilot)": _describe(earlier),
            "Fresh seeds": _describe(fresh),
            "Fresh seeds, with half of each run made": _describe(measured_halves()),
            "Fresh seeds, with the whole run made": _describe(measured_wholes()),
            "Real models": _describe(real),
            "Real models, with the whole run made": _describe(measured_wholes(block=PART_BLOCK)),
        },
        judge_outcomes(model, [o for o in real if o not in seen]),
        ablate(known),
        load_repeats(left_out),
        by_world_count(study),
        judge_outcomes(model, measured_wholes()),
        judge_outcomes(model, measured_halves()),
        leave_worlds_out_with_parts(known, repeated_parts(study)),
        judge_outcomes(model, measured_wholes(block=PART_BLOCK)),
        judge_outcomes(model, measured_halves(block=PART_BLOCK)),
    )
    path = out / "check.md"
    path.parent.mkdir(parents=True, exist_ok=True)
    draw_judgement(left_out, path.with_name("forecasts.png"))
    text = render_markdown(check_document(findings)) + FIGURE
    path.write_text(text, encoding="utf-8")
    console.print(f"Page: {path}")


def _describe(outcomes: list[Outcome]) -> str:
    if not outcomes:
        return "none"
    worlds = ", ".join(worlds_of(outcomes))
    return f"{len(outcomes)} runs ({count_trainings(outcomes)} trainings) of {worlds}"


def _write_model(fitted: list[Outcome]) -> Path:
    """Fit the forecast and put it into the package; return its path."""
    parts = fit_rows(repeated_parts(fitted))
    model = fit_forecast(fit_rows(fitted), fitted_on=_describe(fitted), part_rows=parts)
    path = Path(sys.modules["opd.recipes.check"].__path__[0]) / MODEL_FILE
    path.write_text(json.dumps(asdict(model), indent=1) + "\n", encoding="utf-8")
    return path
