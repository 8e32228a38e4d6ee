"""A run as a page: verdict first, then the accuracy, the paper's picture, tokens, cost, set-up."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from opd import config
from opd.errors import UserError
from opd.reports.alarms import Alarm
from opd.reports.check_page import check_section
from opd.reports.coldstart_section import coldstart_sections
from opd.reports.cost import cost_sections
from opd.reports.document import (
    Cell,
    Chart,
    Charts,
    Code,
    Document,
    Example,
    Examples,
    Legend,
    Note,
    Number,
    Part,
    Section,
    Sentence,
    Table,
)
from opd.reports.figures import heat_maps, mark_legend, marks, pictures
from opd.reports.formatting import NONE, estimate, length, percent
from opd.reports.outcome import Outcome, answers, outcome
from opd.reports.plots import OUTER, Line, curves
from opd.reports.ranges import BOUNDS, HORIZON, PICTURES, ROLLOUTS
from opd.reports.read import EvalSet, RunData
from opd.reports.sanitize import short_name
from opd.reports.token_view import token_view
from opd.reports.verdict import verdict
from opd.run.jsonl import flatten

REFRESH_S = 20
FLIPS = 3  # examples shown of each kind
ALARMS = 100  # shown


def document(run: RunData) -> Document:
    """The whole page of a run, finished or not."""
    steps = f"{run.done:,} of {run.planned:,} steps"
    sections = [
        Section("verdict", "Did it work?", [verdict(run)]),
        *_accuracy(run),
        *([] if run.check is None else [check_section(run.check)]),
        *coldstart_sections(run),
        *_picture(run),
        *_heat(run),
        *_tokens(run),
        *_rollouts(run),
        *cost_sections(run),
        _setup(run),
    ]
    return Document(
        title=run.name,
        subtitle=f"{_pair(run.config)} \u00b7 {steps}, {run.state}",
        sections=sections,
        refresh_seconds=REFRESH_S if run.alive else None,
    )


def _pair(settings: dict[str, Any]) -> str:
    teacher = settings.get("teacher") or {}
    names = [str(settings["student"]["model"]), str(teacher.get("model", "no teacher"))]
    return " learns from ".join(short_name(name) for name in names)


def _accuracy(run: RunData) -> list[Section]:
    found = [o for task in run.evals if (o := outcome(task)) is not None]
    parts: list[Part] = []
    if found:
        parts.append(Charts([_accuracy_chart(run, o.task) for o in found]))
    for place, one in enumerate(found):
        parts.append(_accuracy_table(one, main=place == 0))
    for one in found:
        parts += _flips(one.task)
    if not parts:
        parts = [Note("No held-out set was evaluated; add one under `eval` in run.yaml.")]
    lead = (
        "The first set is the task that the verdict speaks of; the others show what else changed."
        if len(found) > 1
        else ""
    )
    return [Section("accuracy", "Accuracy before, during, after", parts, lead)]


def _accuracy_chart(run: RunData, task: EvalSet) -> Chart:
    from numpy import array

    found = task.student
    warmed = task.warmed
    if warmed is not None:  # its step twice: before, and after the cold start
        earlier = [e for e in found if e.step <= warmed.step]
        found = [*earlier, warmed, *found[len(earlier) :]]
    steps, values = array([e.step for e in found]), array([e.accuracy.value for e in found])
    low, high = (array([getattr(e.accuracy, end) for e in found]) for end in ("low", "high"))
    level = None if task.teacher is None else task.teacher.accuracy.value
    svg = curves(
        f"accuracy-{task.label}",
        [Line(steps, values, low=low, high=high, points=True)],
        level=level,
        marks=marks(run),
        percent=True,
    )
    data = {"steps": steps.tolist(), "accuracy": values.tolist(), "teacher": level}
    data |= {"low": low.tolist(), "high": high.tolist()}
    legend = [Legend("line-1", "student, 95% interval")]
    legend += [] if level is None else [Legend("level", "teacher")]
    legend += mark_legend(run)
    return Chart(f"Accuracy on {task.label}", svg, data, legend, "over steps")


def _accuracy_table(one: Outcome, *, main: bool) -> Table:
    task = one.task
    first, last = task.student[0], task.last
    shown = [("before", first)]
    shown += [] if task.warmed is None else [("after the cold start", task.warmed)]
    shown += [(f"after {last.step} steps", last)] if last.step > first.step else []
    shown += [] if task.teacher is None else [("teacher", task.teacher)]
    found = [e for _, e in shown]
    rows: list[list[Cell]] = [["accuracy", *(estimate(e.accuracy) for e in found)]]
    for k in last.pass_at:
        rows.append([f"pass@{k}", *(estimate(e.pass_at[k]) for e in found)])
    rows.append(["length, tokens", *(length(e.length) for e in found)])
    rows.append(["cut by the limit", *(percent(e.truncated) for e in found)])
    settings = task.settings
    note = (
        f"{first.accuracy.n:,} prompts, {answers(task)} at temperature "
        f"{settings.get('temperature')}, top_p {settings.get('top_p')}; grader: "
        f"{task.grader}. 95% intervals, the prompt as the unit."
    )
    if main and one.share is not None and one.lead is not None:
        share = estimate(one.share)
        clear = one.lead.difference.low > 0
        note += f" Of the gap to the teacher, {share.text} was recovered ({share.note})." * clear
        note += " The teacher's lead is within the noise." * (not clear)
    caption = f"{task.label} ({'the task' if main else 'also measured'})"
    return Table(caption, ["", *(who for who, _ in shown)], rows, note)


def _flips(task: EvalSet) -> list[Part]:
    first, last = task.student[0], task.last
    if first.step == last.step:
        return []
    before = {(g.prompt_index, g.sample): g for g in first.graded}
    prompts = {
        g.prompt_index: g.extra for e in (first, last) for g in e.graded if "prompt" in g.extra
    }
    parts: list[Part] = []
    for right, words in ((True, "flipped right"), (False, "flipped wrong")):
        found = [
            (before[g.prompt_index, g.sample], g)
            for g in last.graded
            if (g.prompt_index, g.sample) in before
            and g.correct is right
            and before[g.prompt_index, g.sample].correct is not right
        ]
        items = [
            Example(
                prompt=str(prompts.get(b.prompt_index, {}).get("prompt", "")),
                answer=str(prompts.get(b.prompt_index, {}).get("answer", "")),
                before=_shorten(b.text),
                after=_shorten(a.text),
                title=f"prompt {b.prompt_index}, sample {b.sample}",
            )
            for b, a in found[:FLIPS]
        ]
        count = f"{len(found):,} of {len(last.graded):,} answers on {task.label} {words}"
        parts.append(Examples(count, items, "" if items else "None."))
    return parts


def _shorten(text: str, limit: int = 1200) -> str:
    if len(text) <= limit:
        return text
    half = limit // 2
    return f"{text[:half]}\n[{len(text) - limit:,} characters left out]\n{text[-half:]}"


def _picture(run: RunData) -> list[Section]:
    charts = pictures(run, (*PICTURES, *BOUNDS))
    parts: list[Part] = [Charts(charts)] if charts else [Note("Nothing was diagnosed yet.")]
    if run.alarms:
        parts.append(_alarm_table(run.alarms))
    lead = (
        "Measured on the student's own completions. Faint: every step; strong: moving mean. "
        "A shaded range has a published source; where none is shaded, nobody has published one."
    )
    return [Section("picture", "How close the two models are", parts, lead)]


def _alarm_table(found: Sequence[Alarm]) -> Table:
    rows: list[list[Cell]] = []
    for alarm in found[:ALARMS]:
        did = alarm.acted or "warned"
        seen = Sentence(alarm.message, alarm.evidence)
        step = Number(alarm.step, f"{alarm.step:,}")
        rows.append([step, alarm.name, seen, alarm.remedy, did])
    columns = ("step", "alarm", "what it saw", "what helps", "what the run did")
    left = len(found) - len(rows)
    note = f"{left:,} more in alarms.jsonl." if left else ""
    return Table("Alarms", columns, rows, note)


def _heat(run: RunData) -> list[Section]:
    charts = heat_maps(run)
    if not charts:
        return []
    lead = (
        "Up: position in the completion, in tokens. Right: step. Empty cells had no tokens. "
        f"Colours end at the {OUTER[0]}nd and {OUTER[1]}th percentile of the cells."
    )
    return [Section("positions", "Where in the completion", [Charts(charts)], lead)]


def _tokens(run: RunData) -> list[Section]:
    view = token_view(run)
    parts: list[Part] = [view] if view else [Note("No rollouts with teacher scores are on disk.")]
    return [Section("tokens", "What the teacher says of every token", parts)]


def _rollouts(run: RunData) -> list[Section]:
    charts = pictures(run, (*ROLLOUTS, *HORIZON))
    return [Section("rollouts", "The rollouts", [Charts(charts)])] if charts else []


def _setup(run: RunData) -> Section:
    command = [str(word) for word in run.env.get("command", [])]
    if command:
        command[0] = Path(command[0]).name
    parts: list[Part] = [
        Code("Command that made this run", shlex.join(command)),
        Code("Or from its resolved configuration", shlex.join(_again(run))),
        _config_table(run.config),
        _environment_table(run.env),
    ]
    parts += [Note(gap) for gap in run.gaps]
    return Section("setup", "Reproduce it", parts)


def _again(run: RunData) -> list[str]:
    folder = str(run.config["output"]["dir"])
    return ["opd", "train", f"{folder}/config.json", f"output.dir={folder}-again"]


def _config_table(settings: dict[str, Any]) -> Table:
    columns = ("key", "this run", "default")
    try:
        rows = config_rows(settings)
    except (UserError, KeyError, TypeError, AttributeError) as error:
        note = f"Defaults of this version of opd do not fit this configuration: {error}"
        rows = [[k, _value(v), ""] for k, v in flatten(settings).items()]
        return Table("Configuration", columns, rows, note)
    return Table("Configuration: what differs from the defaults", columns, rows)


def config_rows(settings: dict[str, Any]) -> list[list[Cell]]:
    """Keys that a run set, with the value and the default ("required" where there is none)."""
    required = {
        "student": {"model": settings["student"]["model"]},
        "teacher": None
        if settings["teacher"] is None
        else {k: settings["teacher"][k] for k in ("model", "url") if k in settings["teacher"]},
        "prompts": {"path": settings["prompts"]["path"]},
        "eval": [{"path": e["path"], "name": e.get("name")} for e in settings["eval"]],
        "output": {"dir": settings["output"]["dir"]},
    }
    defaults = flatten(config.dump(config.parse(required)))
    given = flatten(required)
    rows: list[list[Cell]] = []
    for key, value in flatten(settings).items():
        if key in given and given[key] is not None:
            rows.append([key, _value(value), "required"])
        elif defaults.get(key, ...) != value:
            rows.append([key, _value(value), _value(defaults[key]) if key in defaults else "unset"])
    return rows


def _value(value: Any) -> Cell:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return Number(value, f"{value:g}" if isinstance(value, float) else str(value))


def _environment_table(env: dict[str, Any]) -> Table:
    flat = {k: v for k, v in flatten(env).items() if not k.startswith("command")}
    rows = [[key, NONE if value is None else _value(value)] for key, value in flat.items()]
    return Table("Environment", ("", ""), rows, folded=True)
