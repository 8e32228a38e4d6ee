"""The verdict of a run: did it work, how much was recovered, what limited it, what to try next.

Every sentence rests on numbers with intervals and states them as its evidence.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from opd.alarms import RULES
from opd.reports.coldstart_section import coldstart_sentence
from opd.reports.document import Number, Sentence, Tile, Tone, Verdict
from opd.reports.findings import approached_teacher, findings, gap_closed
from opd.reports.formatting import (
    NONE,
    estimate,
    interval,
    p_value,
    percent,
    points,
    points_range,
)
from opd.reports.outcome import Outcome, outcome, samples_text
from opd.reports.read import RunData

MAX_ADVICE = 3
RESUME = "Continue where it stopped: `opd train ... --resume`, with the same run.yaml."
FORGETTING = next(rule.remedy for rule in RULES if rule.name == "forgetting")


def verdict(run: RunData) -> Verdict:
    """The verdict of a run, finished or not."""
    outcomes = [o for task in run.evals if (o := outcome(task)) is not None]
    main, others = (outcomes[0] if outcomes else None), outcomes[1:]
    tone, headline = _headline(run, main)
    results = findings(run, main)
    coldstart = coldstart_sentence(run)
    sentences = [
        *_state(run),
        *_accuracy(main),
        *_other_sets(others),
        *([] if coldstart is None else [coldstart]),
        *(finding.sentence for finding in results),
    ]
    advice = [finding.advice for finding in results if finding.advice is not None]
    if run.state == "stopped" and run.stopped_by is None:
        advice.insert(0, Sentence(RESUME))
    forgot = any(o.gain is not None and o.gain.difference.high < 0 for o in others)
    if forgot and all(sentence.text != FORGETTING for sentence in advice):
        advice.append(Sentence(FORGETTING, "for the other sets"))
    return Verdict(headline, tone, _tiles(main), sentences, advice[:MAX_ADVICE], _caption(main))


def _caption(main: Outcome | None) -> str:
    if main is None:
        return ""
    task = main.task
    return (
        f"Accuracy on {task.label}: {main.before.n:,} prompts, {samples_text(task)}; "
        f"grader: {task.grader}. The 95% interval is below each number."
    )


def _headline(run: RunData, main: Outcome | None) -> tuple[Tone, str]:
    if main is not None and run.kept_step == 0:
        label = main.task.label
        return "bad", f"No step was better on {label}: the untouched student is kept."
    if main is None or main.gain is None:
        if approached_teacher(run):
            return "unclear", "The student moved towards the teacher; accuracy was not compared."
        return "unclear", "Too early to say: no accuracy before and after to compare."
    gain, label = main.gain.difference, main.task.label
    if gain.high < 0:
        return "bad", f"It made the student worse on {label}."
    if gain.low <= 0:
        return "unclear", f"No measurable change on {label}."
    if main.recovery is None:
        return "good", f"The student improved on {label}."
    if gap_closed(main):
        return "good", f"It worked: most of the gap to the teacher on {label} is closed."
    return "good", f"It helped: part of the gap to the teacher on {label} is closed."


def _tiles(main: Outcome | None) -> list[Tile]:
    if main is None:
        return [Tile("accuracy", Number(None, NONE.text, "no held-out set was evaluated"))]
    tiles = [Tile(main.first, estimate(main.before))]
    if main.gain is not None:
        tiles.append(Tile(f"after {main.task.final.step} steps", estimate(main.after)))
    if main.task.teacher is not None:
        tiles.append(Tile("teacher", estimate(main.task.teacher.accuracy)))
    recovery = _recovery(main)
    return tiles if recovery is None else [*tiles, Tile("of the gap recovered", recovery)]


def _recovery(main: Outcome) -> Number | None:
    """Gap recovery, or why there is none; None without a teacher."""
    if main.recovery is not None:
        low, high = main.recovery.low, main.recovery.high
        bounded = math.isfinite(low) and math.isfinite(high)
        text = percent(main.recovery.value).text if bounded else "unclear"
        return Number(main.recovery.value, text, interval(low, high))
    if main.lead is None:
        return None
    not_yet = "not known before the next evaluation"
    return Number(None, NONE.text, not_yet if main.gain is None else "the teacher was not ahead")


def _state(run: RunData) -> list[Sentence]:
    steps = {"done": run.done, "planned": run.planned}
    if run.is_running:
        text = f"The run is in progress: {run.done} of {run.planned} steps."
    elif run.stopped_by is not None:
        alarm, best = run.stopped_by, "" if run.kept_step == run.done else ", the best so far,"
        text = (
            f"The alarm {alarm.name} stopped the run after {run.done} of {run.planned} steps; the "
            f"student of step {run.kept_step}{best} is kept."
        )
        evidence = " ".join(filter(None, [alarm.message, alarm.evidence]))
        return [Sentence(text, evidence, steps | {"kept": run.kept_step})]
    elif run.done < run.planned:
        text = f"The run stopped early, after {run.done} of {run.planned} steps."
    else:
        return []
    return [Sentence(text, "", steps)]


def _accuracy(main: Outcome | None) -> list[Sentence]:
    """Gain and lead on the first held-out set."""
    if main is None:
        return []
    sentences, label = [], main.task.label
    if main.first_step:
        text = (
            f"The first evaluation on {label} is that of step {main.first_step}: what was gained "
            "before it is not known."
        )
        sentences.append(Sentence(text, "", {"step": main.first_step}))
    if main.gain is not None:
        gain = main.gain.difference
        verb = "rose" if gain.value > 0 else "fell" if gain.value < 0 else "stayed"
        sentences.append(
            Sentence(
                f"Accuracy on {label} {verb} from {percent(main.before.value).text} to "
                f"{percent(main.after.value).text}.",
                f"{points(gain.value)}, {points_range(gain.low, gain.high)}, "
                f"{p_value(main.gain.p_value)}, paired over {gain.n:,} prompts",
                {"difference": gain.value, "low": gain.low, "high": gain.high, "n": gain.n}
                | {"p": main.gain.p_value},
            )
        )
    if main.lead is not None and main.lead.difference.low <= 0:
        lead = main.lead.difference
        comparison = "worse than" if lead.high < 0 else "not measurably better than"
        sentences.append(
            Sentence(
                f"The teacher was {comparison} the student on {label}: there was no gap to "
                "recover.",
                f"teacher minus student before training {points(lead.value)}, "
                f"{points_range(lead.low, lead.high)}",
                {"lead": lead.value, "low": lead.low, "high": lead.high},
            )
        )
    return sentences


def _other_sets(outcomes: Sequence[Outcome]) -> list[Sentence]:
    """Gains and losses on the other held-out sets."""
    sentences = []
    for other in outcomes:
        if other.gain is None:
            continue
        gain, label = other.gain.difference, other.task.label
        if gain.high < 0:
            text = f"Accuracy on another set fell: {label} by {-100 * gain.value:.1f} points."
        elif gain.low > 0:
            text = f"{label} improved too, by {100 * gain.value:.1f} points."
        else:
            text = f"No measurable change on {label}."
        sentences.append(
            Sentence(
                text,
                f"{percent(other.before.value).text} \u2192 {percent(other.after.value).text}, "
                f"{points(gain.value)}, {points_range(gain.low, gain.high)}, "
                f"{gain.n:,} prompts",
                {"difference": gain.value, "low": gain.low, "high": gain.high, "n": gain.n},
            )
        )
    return sentences
