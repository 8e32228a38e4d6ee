"""What limited a run, each finding with its evidence and advice.

The alarms of the run are the findings: there is no second set of rules or thresholds. Only what is
no alarm is added here: skipped updates, a teacher without a lead, accuracy that was still rising.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from opd.alarms import RULES, History, window_size
from opd.core import stats
from opd.reports.alarm_log import AlarmText
from opd.reports.document import Sentence
from opd.reports.formatting import points, points_range
from opd.reports.outcome import Outcome
from opd.reports.read import RunData

CLOSED = 0.5  # of the gap, by the lower end of the interval: "most of the gap"
DENY_GAIN = frozenset(rule.name for rule in RULES if rule.denies_gain)
NOISE_LIMIT = 0.25  # of the last reverse KL, from which a quantised teacher's noise is advised on
MAX_ALARMS = 4  # kinds of alarms in the verdict; all of them are in the table


class Finding(NamedTuple):
    """A finding and what to do about it."""

    sentence: Sentence
    advice: Sentence | None = None


def findings(run: RunData, main: Outcome | None) -> list[Finding]:
    """What limited the run.

    Args:
        run: the run.
        main: outcome on its first held-out set.
    """
    optional = (
        _skipped_updates(run),
        _no_lead(main),
        _quantised(run),
        _still_rising(run, main),
    )
    results = [
        *_overlaps(run),
        *_alarms(run, main),
        *(finding for finding in optional if finding is not None),
    ]
    if results or not gap_closed(main):
        return results
    return [Finding(Sentence("Nothing in the metrics shows what limits the rest of the gap."))]


def _overlaps(run: RunData) -> list[Finding]:
    """Held-out sets whose accuracy also tells what was memorised."""
    return [
        Finding(
            Sentence(
                f"{o.exact + o.near} of {o.rows} questions of {o.label} are also training prompts: "
                "its accuracy tells what was memorised, too.",
                f"{o.exact} the same, {o.near} nearly",
                {"rows": o.rows, "exact": o.exact, "near": o.near},
            ),
            Sentence("Leave them out of the training prompts; `opd select` does."),
        )
        for o in run.overlaps
    ]


def _quantised(run: RunData) -> Finding | None:
    """What quantising the teacher adds, beside the signal."""
    noise = run.series("teacher/quantisation_kl").values
    signal = run.series("diag/reverse_kl").values
    if not len(noise) or not len(signal):
        return None
    added, last = float(noise[-1]), float(signal[-1])
    text = (
        f"Quantising the teacher changes its distributions by a KL of {added:.2g} nats per token; "
        f"the student was {last:.2g} nats from it at the end."
    )
    large = added > NOISE_LIMIT * last
    advice = "The rounding is part of what is learnt: a teacher of more bits (teacher.dtype)."
    return Finding(Sentence(text), Sentence(advice) if large else None)


def gap_closed(main: Outcome | None) -> bool:
    """Whether most of the gap to the teacher is closed, beyond chance."""
    return main is not None and main.recovery is not None and main.recovery.low >= CLOSED


def approached_teacher(run: RunData) -> bool:
    """Whether reverse KL has fallen beyond noise, by the windows of the alarm rules."""
    history = History(window_size(run.planned))
    for value in run.series("diag/reverse_kl").values:
        history.add({"diag/reverse_kl": float(value)})
    change = history.change("diag/reverse_kl")
    return change is not None and change.falls(0.0)


def _alarms(run: RunData, main: Outcome | None) -> list[Finding]:
    """One finding per kind of alarm, in order of its first step."""
    gained = main is not None and main.gain is not None and main.gain.difference.low > 0
    kinds: dict[str, list[AlarmText]] = {}
    for alarm in run.alarms:
        kinds.setdefault(alarm.name, []).append(alarm)
    results = [
        _alarm(alarms, run.replayed, refuted=gained and name in DENY_GAIN)
        for name, alarms in list(kinds.items())[:MAX_ALARMS]
    ]
    if len(kinds) > MAX_ALARMS:
        text = f"{len(kinds) - MAX_ALARMS} more kinds of alarms were raised, see the table below."
        results.append(Finding(Sentence(text, "", {"alarms": list(kinds)[MAX_ALARMS:]})))
    return results


def _alarm(alarms: Sequence[AlarmText], replayed: bool, *, refuted: bool) -> Finding:
    """The finding of one kind of alarm.

    Args:
        alarms: of one name, in order of steps.
        replayed: whether they were replayed from the metrics.
        refuted: whether the run gained what the alarm denies; then its remedy is no advice.
    """
    first = alarms[0]
    times = "" if len(alarms) == 1 else f", {len(alarms)} times"
    source = " (replayed from the metrics: the run's alarms were off)" if replayed else ""
    evidence = f"alarm {first.name}{source}, first at step {first.step:,}{times}"
    evidence += f": {first.evidence}" if first.evidence else ""
    intervention = next((a for a in alarms if a.intervention), None)
    if intervention is not None:
        evidence += f"; at step {intervention.step:,}: {intervention.intervention}"
    values = {"alarm": first.name, "steps": [alarm.step for alarm in alarms]}
    if refuted:
        text = f"An alarm on the way that the outcome did not bear out: {first.message}"
        return Finding(Sentence(text, evidence, values))
    advice = Sentence(first.remedy, f"for the alarm {first.name}") if first.remedy else None
    return Finding(Sentence(first.message or f"Alarm {first.name}.", evidence, values), advice)


def _skipped_updates(run: RunData) -> Finding | None:
    count = len(run.series("train/refused"))
    if not count:
        return None
    return Finding(
        Sentence(
            f"{count} update{'s were' if count > 1 else ' was'} skipped because the loss or the "
            "gradient was not finite.",
            "train/refused",
            {"refused": count},
        ),
        Sentence("Lower optim.lr, and inspect the batches kept in refused/."),
    )


def _no_lead(main: Outcome | None) -> Finding | None:
    """The student got worse towards a teacher that is not ahead."""
    if main is None or main.lead is None or main.lead.difference.low > 0:
        return None
    if main.gain is None or main.gain.difference.high >= 0:
        return None
    return Finding(
        Sentence(
            "The student moved towards a teacher whose answers are worse: it learns the teacher's "
            "distribution, not a higher accuracy (paper 3.3).",
            "accuracy moved from the student's own level towards the teacher's",
        ),
        Sentence("Choose a teacher that is ahead on this task; `opd check` compares several."),
    )


def _still_rising(run: RunData, main: Outcome | None) -> Finding | None:
    if main is None or len(main.task.student) < 3 or run.is_running:
        return None
    earlier, last = main.task.student[-2:]
    rise = stats.paired(earlier.per_prompt, last.per_prompt).difference
    if rise.low <= 0:
        return None
    return Finding(
        Sentence(
            f"Accuracy was still rising at the end: {points(rise.value)} from step {earlier.step} "
            f"to step {last.step}.",
            points_range(rise.low, rise.high),
            {"difference": rise.value, "low": rise.low, "high": rise.high},
        ),
        Sentence("Train longer: raise train.steps and `opd train ... --resume`."),
    )
