"""What is known of a pair before its run: the numbers a forecast starts from, as a record."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from opd.commands.check.measure import FITTED_SIZE, measure_pair
from opd.core.stats import Estimate
from opd.errors import UserError
from opd_lab.pairs.design import HALF
from opd_lab.pairs.outcomes import AnyRun, configure_any
from opd_lab.pairs.real import PART_BLOCK, RealRun
from opd_lab.pairs.real import PROMPTS as REAL_PROMPTS
from opd_lab.runs import one_thread

PROMPTS = 128
PARTS = (0.125, 0.25, 0.375, 0.5, 0.75, 1.0)
"""Of a run of the blocks `half` and `real-part`: half and all of each length that is evaluated. The
first `HALF_SEEN` of `half` were made up to half alone."""
DIGITS = 4  # significant ones


def measure_features(run: AnyRun, cache: Path, scratch: Path) -> dict[str, Any]:
    """Measure a pair and a pilot of its run; return a record.

    Features are [value, low, high]; those of the pilot's earlier moments are values alone.

    Args:
        run: of the design.
        cache: where models and prompts are kept.
        scratch: folder for what the pilot leaves, which is removed.
    """
    folder = scratch / f"features-{run.block}-{run.index}"
    cfg, facts = configure_any(run, cache, folder / "run")
    folder.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    fractions = PARTS if run.block in (HALF, PART_BLOCK) else ()
    parts = [int(fraction * cfg.train.steps) for fraction in fractions]
    try:
        with one_thread():
            measured = measure_pair(
                cfg,
                folder,
                prompts=REAL_PROMPTS if isinstance(run, RealRun) else PROMPTS,
                parts=[steps for steps in parts if steps > FITTED_SIZE.steps],
            )
        facts |= {
            "features": _compact(measured.features),
            "moments": [
                {name: _round(e.value) for name, e in moment.items()} for moment in measured.moments
            ],
            "parts": [_compact(part) for part in measured.parts],
            "run": measured.run.record(),
            "tokens": measured.tokens,
            "seconds": {part: round(s, 2) for part, s in measured.seconds.items()},
        }
    except UserError as error:
        facts["error"] = str(error)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return facts | {"features_seconds": round(time.monotonic() - began, 1)}


def _compact(features: Mapping[str, Estimate]) -> dict[str, list[float]]:
    return {name: [_round(x) for x in (e.value, e.low, e.high)] for name, e in features.items()}


def _round(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")
