"""Did it work, how much was recovered, what limited it, what to try next.

Rules on numbers with intervals, each sentence with its evidence.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from opd.core.stats import Estimate
from opd.reports.coldstart_section import coldstart_sentence
from opd.reports.document import Number, Sentence, Tile, Tone, Verdict
from opd.reports.findings import change, limits, worked
from opd.reports.formatting import (
    NONE,
    estimate,
    interval,
    p_value,
    percent,
    points,
    points_range,
)
from opd.reports.outcome import Outcome, answers, outcome
from opd.reports.read import RunData

RESUME = "Go on where it stopped: `opd train ... --resume`, with the same run.yaml."
FORGOT = (
    "To forget less elsewhere: mix other prompts into prompts.path, lower optim.lr, or stop "
    "earlier."
)


def verdict(run: RunData) -> Verdict:
    """The answer in words for a run, finished or not."""
    found = [o for task in run.evals if (o := outcome(task)) is not None]
    main = found[0] if found else None
    tone, headline = _headline(run, main)
    began = coldstart_sentence(run)
    sentences = [*_state(run), *_accuracy(main), *_forgetting(found[1:])]
    sentences += [] if began is None else [began]
    held = limits(run, main)
    sentences += [limit for limit, _ in held]
    advice = [do for _, do in held if do is not None]
    if run.state == "stopped" and run.ended_by is None:
        advice.insert(0, Sentence(RESUME))
    if any(o.gain is not None and o.gain.difference.high < 0 for o in found[1:]):
        advice.append(Sentence(FORGOT))
    return Verdict(headline, tone, _tiles(main), sentences, advice[:3], _measured(main))


def _measured(main: Outcome | None) -> str:
    if main is None:
        return ""
    task = main.task
    return (
        f"Accuracy on {task.label}: {main.before.n:,} prompts, {answers(task)}; "
        f"grader: {task.grader}. Below each number its 95% interval."
    )


def _headline(run: RunData, main: Outcome | None) -> tuple[Tone, str]:
    if main is not None and run.kept == 0:
        return "bad", f"No step made it better on {main.task.label}: the student stays as it came."
    if main is None or main.gain is None:
        kl = change(run.series("diag/reverse_kl"))
        if kl is not None and kl.fell:
            return "unclear", "The student moved towards the teacher; accuracy was not compared."
        return "unclear", "Too early to say: no accuracy before and after to compare."
    gain, label = main.gain.difference, main.task.label
    if gain.high < 0:
        return "bad", f"It made the student worse on {label}."
    if gain.low <= 0:
        return "unclear", f"No measurable change on {label}."
    if main.share is None:
        return "good", f"The student improved on {label}."
    if worked(main):
        return "good", f"It worked: most of the gap to the teacher on {label} is closed."
    return "good", f"It helped: part of the gap to the teacher on {label} is closed."


def _tiles(main: Outcome | None) -> list[Tile]:
    if main is None:
        return [Tile("accuracy", Number(None, NONE.text, "no held-out set was evaluated"))]
    last = main.task.last.step
    tiles = [_tile("before", main.before)]
    if main.gain is not None:
        tiles.append(_tile(f"after {last} steps", main.after))
    if main.task.teacher is not None:
        tiles.append(_tile("teacher", main.task.teacher.accuracy))
    if main.share is not None:
        bounded = math.isfinite(main.share.low) and math.isfinite(main.share.high)
        shown = percent(main.share.value).text if bounded else "unclear"
        width = interval(main.share.low, main.share.high)
        tiles.append(Tile("of the gap recovered", Number(main.share.value, shown, width)))
    elif main.lead is not None:
        why = "not known before the next evaluation"
        why = why if main.gain is None else "the teacher was not ahead"
        tiles.append(Tile("of the gap recovered", Number(None, NONE.text, why)))
    return tiles


def _tile(label: str, found: Estimate) -> Tile:
    return Tile(label, estimate(found))


def _state(run: RunData) -> list[Sentence]:
    steps = {"done": run.done, "planned": run.planned}
    if run.alive:
        text = f"The run is going on: {run.done} of {run.planned} steps."
    elif run.ended_by is not None:
        text = (
            f"The alarm {run.ended_by.name} ended the run after {run.done} of {run.planned} steps; "
            f"the student of step {run.kept}, the best so far, is kept."
        )
        evidence = " ".join(filter(None, [run.ended_by.message, run.ended_by.evidence]))
        return [Sentence(text, evidence, steps | {"kept": run.kept})]
    elif run.done < run.planned:
        text = f"The run stopped early, after {run.done} of {run.planned} steps."
    else:
        return []
    return [Sentence(text, "", steps)]


def _accuracy(main: Outcome | None) -> list[Sentence]:
    if main is None:
        return []
    said, label = [], main.task.label
    if main.gain is not None:
        gain = main.gain.difference
        change_of = "rose" if gain.value > 0 else "fell" if gain.value < 0 else "stayed"
        said.append(
            Sentence(
                f"Accuracy on {label} {change_of} from {percent(main.before.value).text} to "
                f"{percent(main.after.value).text}.",
                f"{points(gain.value)}, {points_range(gain.low, gain.high)}, "
                f"{p_value(main.gain.p_value)}, paired over {gain.n:,} prompts",
                {"difference": gain.value, "low": gain.low, "high": gain.high, "n": gain.n}
                | {"p": main.gain.p_value},
            )
        )
    if main.lead is not None and main.lead.difference.low <= 0:
        lead = main.lead.difference
        behind = lead.high < 0
        said.append(
            Sentence(
                f"The teacher was {'worse than' if behind else 'not measurably better than'} the "
                f"student on {label}: there was no gap to recover.",
                f"teacher minus student before training {points(lead.value)}, "
                f"{points_range(lead.low, lead.high)}",
                {"lead": lead.value, "low": lead.low, "high": lead.high},
            )
        )
    return said


def _forgetting(others: Sequence[Outcome]) -> list[Sentence]:
    said = []
    for other in others:
        if other.gain is None:
            continue
        gain, label = other.gain.difference, other.task.label
        if gain.high < 0:
            text = f"It cost something elsewhere: {label} fell by {-100 * gain.value:.1f} points."
        elif gain.low > 0:
            text = f"{label} improved too, by {100 * gain.value:.1f} points."
        else:
            text = f"No measurable change on {label}."
        said.append(
            Sentence(
                text,
                f"{percent(other.before.value).text} \u2192 {percent(other.after.value).text}, "
                f"{points(gain.value)}, {points_range(gain.low, gain.high)}, "
                f"{gain.n:,} prompts",
                {"difference": gain.value, "low": gain.low, "high": gain.high, "n": gain.n},
            )
        )
    return said
