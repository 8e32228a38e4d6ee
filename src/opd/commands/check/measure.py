"""Every number of a pair and its run, of a given size: what a forecast is fitted on.

`opd check` measures the same numbers within a budget; here the caller says how much of each.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from time import monotonic
from typing import Any

from opd.commands.check.candidates import load_candidate, teacher_labels
from opd.commands.check.pilot import PilotResult, PilotSize, run_pilot
from opd.commands.check.rounds import make_probe_config, probe_prompts
from opd.config import Run
from opd.core.stats import Estimate
from opd.data.graders import grader_for
from opd.errors import UserError
from opd.recipes.check.features import compute_features
from opd.recipes.check.probe import ProbeModel, probe_student, probe_teacher
from opd.recipes.check.settings import RunSettings
from opd.run.console import Console
from opd.setup.precision import prepare_weights
from opd.setup.prompts import load_training_prompts

FITTED_SIZE = PilotSize(4, 4)  # of the pilots that the forecast was fitted on


@dataclass(frozen=True)
class Measurement:
    """Everything that is known of a pair and its run before training.

    Attributes:
        features: static ones, those of the pilot's last moment, those of the stretch or last part.
        moments: `pilot_*` features after 1, 2, 4, ... steps.
        run: the settings.
        seconds: by part: probe, pilot.
        tokens: generated, by part.
        parts: `part_*` features after each part of the run.
    """

    features: dict[str, Estimate]
    moments: tuple[dict[str, Estimate], ...]
    run: RunSettings
    seconds: dict[str, float]
    tokens: dict[str, int]
    parts: tuple[dict[str, Estimate], ...] = ()

    def record(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)

    @staticmethod
    def of_record(record: Mapping[str, Any]) -> Measurement:
        """The inverse of `record`."""
        return Measurement(
            _estimates(record["features"]),
            tuple(_estimates(moment) for moment in record["moments"]),
            RunSettings.of_record(record["run"]),
            dict(record["seconds"]),
            dict(record["tokens"]),
            tuple(_estimates(part) for part in record.get("parts", ())),
        )


def _estimates(record: Mapping[str, Any]) -> dict[str, Estimate]:
    return {name: Estimate(**e) for name, e in record.items()}


def measure_pair(
    cfg: Run,
    scratch: Path,
    *,
    prompts: int = 192,
    size: PilotSize = FITTED_SIZE,
    parts: Sequence[int] = (),
) -> Measurement:
    """Measure a pair with a teacher in this process, and a pilot of its run.

    Args:
        cfg: the run; its seed is that of every random number.
        scratch: an empty folder.
        prompts: of the probe, at most: of the training file, those of the pilot's steps last.
        size: of the pilot.
        parts: steps of the run after which answers are sampled again, rising; no stretch then.

    Raises:
        UserError: wrong input, or models that are not compatible.
    """
    began = monotonic()
    candidate = load_candidate(cfg, teacher_labels([cfg])[0], None, scratch)
    if not candidate.compatible:
        failures = [f.message for f in candidate.findings if f.level == "failure"]
        raise UserError(f"{candidate.label} cannot teach this student: {'; '.join(failures)}")
    cfg, pair = candidate.cfg, candidate.pair
    assert pair is not None
    assert pair.teacher is not None
    training = load_training_prompts(cfg, pair, Console("quiet"))
    most = max([size.steps + size.stretch, *parts])
    chosen = probe_prompts(training, cfg, most)[:prompts]
    prepare_weights(cfg, pair.student)
    with ExitStack() as stack:
        grader = grader_for(training.prompts, cfg.prompts.grader)
        if grader is not None:
            stack.enter_context(grader)
        config = make_probe_config(cfg, pair, grader)
        student, teacher = (
            ProbeModel(pair.student, pair.stop),
            ProbeModel(pair.teacher, pair.teacher_stop),
        )
        ours = probe_student(student, chosen, config)
        theirs = probe_teacher(teacher, student, ours, config)
        probed = monotonic() - began
        sides = (ours, theirs)

        def next_part(made: PilotResult) -> int:
            return next((part for part in parts if part > len(made.times)), 0)

        result = run_pilot(candidate, training, scratch, sides, config, size, next_part=next_part)
    return Measurement(
        compute_features(ours, theirs) | result.features,
        tuple(dict(moment) for moment in result.moments),
        RunSettings.of_run(cfg, pair.student),
        {"probe": probed, "pilot": result.seconds},
        {"probe": ours.tokens + theirs.tokens, "pilot": result.tokens},
        tuple(result.parts),
    )
