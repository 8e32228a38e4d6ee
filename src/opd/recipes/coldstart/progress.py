"""What a cold start has done so far, and when it should stop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from opd import rng
from opd.config import Coldstart
from opd.data.filters import REASONS
from opd.recipes.coldstart.completions import CompletionSource
from opd.recipes.measure import measure
from opd.rng import Stream
from opd.run.layout import COLD_START
from opd.training.session import Session

MASS, TOP1 = "diag/overlap_mass_student", "diag/top1_agreement"
# Top-1 agreement that must be reached beside coldstart.mass. Measured (E6), it is there seven
# rounds before the mass, which decides; alone, mass can be high where both models only share many
# tokens.
TOP1_TARGET = 0.8
# The phase ends when neither has risen by more than MIN_RISE in so many rounds. The first may fall,
# so one round without a rise says nothing. A slower rise is not worth its off-policy tokens.
PATIENCE, MIN_RISE = 3, 0.005


@dataclass(frozen=True)
class Overlap:
    """Overlap with the teacher on the student's own rollouts."""

    mass: float
    top1: float


@dataclass(frozen=True)
class Progress:
    """What the phase has done; part of its checkpoints, and of coldstart.json."""

    rounds: int = 0
    steps: int = 0
    tokens: int = 0  # completion tokens learned from
    written_tokens: int = 0  # of all completions, those left out included
    probe_tokens: int = 0  # that the student sampled to be measured
    completions: int = 0
    left_out: dict[str, int] = field(default_factory=lambda: dict.fromkeys(REASONS, 0))
    looks: tuple[Overlap, ...] = ()

    @staticmethod
    def of_record(record: dict[str, Any]) -> Progress:
        """The inverse of `asdict`."""
        return Progress(**record | {"looks": tuple(Overlap(**look) for look in record["looks"])})


def measure_overlap(session: Session, source: CompletionSource, progress: Progress) -> Progress:
    """Progress with one more measurement: the same prompts and random numbers each time."""
    teacher, sampler = session.source.teacher, session.source.sampler
    assert teacher is not None
    sampler.sync(progress.steps)
    with session.clock("score"):
        stream = rng.key(session.cfg.train.seed, Stream.COLDSTART_PROBE)
        rollouts = sampler.sample(source.probe, n=1, key=stream)
        k = min(session.learner.diagnostics_k, session.learner.objective.k)
        metrics = measure(rollouts, teacher=teacher, k=k)
    overlap = Overlap(metrics[MASS].value, metrics[TOP1].value)
    return replace(
        progress,
        looks=(*progress.looks, overlap),
        probe_tokens=progress.probe_tokens + sum(map(len, rollouts)),
    )


def reason_to_stop(overlaps: Sequence[Overlap], cfg: Coldstart) -> str | None:
    """Why the phase should end now, or None.

    Measurements are compared by their best so far, so one noisy one neither ends nor prolongs it.
    """
    last = overlaps[-1]
    if last.mass >= cfg.mass and last.top1 >= TOP1_TARGET:
        return (
            f"overlap mass {last.mass:.3f} and top-1 agreement {last.top1:.3f} have reached "
            f"coldstart.mass={cfg.mass:g} and {TOP1_TARGET:g}"
        )
    if len(overlaps) <= PATIENCE:
        return None
    before, since = overlaps[:-PATIENCE], overlaps[-PATIENCE:]
    values: list[Callable[[Overlap], float]] = [lambda x: x.mass, lambda x: x.top1]
    if any(max(map(of, since)) > max(map(of, before)) + MIN_RISE for of in values):
        return None
    return (
        f"neither overlap mass ({last.mass:.3f}) nor top-1 agreement ({last.top1:.3f}) has risen "
        f"by more than {MIN_RISE:g} in {PATIENCE} rounds"
    )


def report_progress(session: Session, progress: Progress, cfg: Coldstart, after_step: int) -> None:
    """A round for metrics.jsonl, timings.jsonl and the console."""
    overlap, left_out = progress.looks[-1], sum(progress.left_out.values())
    session.folder.log_metrics(
        after_step,
        {
            "phase": COLD_START,
            "coldstart/step": progress.steps,
            "coldstart/overlap_mass_student": overlap.mass,
            "coldstart/top1_agreement": overlap.top1,
            "coldstart/tokens": progress.tokens,
            "coldstart/completions": progress.completions,
            "coldstart/left_out": left_out,
        },
    )
    timings = session.clock.take(progress.tokens) | {"phase": COLD_START}
    session.folder.log_timings(after_step, timings)
    session.console.print(
        f"cold start, round {progress.rounds}: {progress.completions} completions learned, "
        f"{left_out} left out, {progress.tokens} tokens; overlap mass {overlap.mass:.3f} of "
        f"{cfg.mass:g}, top-1 {overlap.top1:.3f} of {TOP1_TARGET:g}"
    )
