"""What `opd lab outcomes` does."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging as transformers_logging

from opd.run.console import Console
from opd_lab.pairs.design import plan
from opd_lab.pairs.features import measure_features
from opd_lab.pairs.outcomes import measure_outcome
from opd_lab.pairs.queue import work

PARTS = {"outcomes": measure_outcome, "features": measure_features}


def run_outcomes(block: str, first: int, count: int, cache: Path) -> None:
    """Train and measure the pairs of the design that have no record yet.

    Call it again for a second process, or to go on.
    """
    _one_quiet_process()
    console = Console("plain")
    for index in range(first, first + count):
        for part, measure in PARTS.items():
            measure_here = partial(measure, cache=cache, scratch=cache / "scratch")
            for record in work([plan(block, index)], measure_here, cache / part):
                console.print(_line(record))


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
