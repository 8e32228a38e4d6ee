"""What is known of a pair before its run: the numbers a forecast starts from, as a record."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from opd.commands.check.measure import measure_pair
from opd.core.stats import Estimate
from opd.errors import UserError
from opd_lab.pairs.outcomes import AnyRun, configure_any
from opd_lab.pairs.real import PROMPTS as REAL_PROMPTS
from opd_lab.pairs.real import RealRun
from opd_lab.runs import one_thread

PROMPTS = 128
PILOT_STEPS, STRETCH_STEPS = 4, 4
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
    try:
        with one_thread():
            measured = measure_pair(
                cfg,
                folder,
                prompts=REAL_PROMPTS if isinstance(run, RealRun) else PROMPTS,
                pilot_steps=PILOT_STEPS,
                stretch_steps=STRETCH_STEPS,
            )
        facts |= {
            "features": _compact(measured.features),
            "moments": [
                {name: _round(e.value) for name, e in moment.items()} for moment in measured.moments
            ],
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
