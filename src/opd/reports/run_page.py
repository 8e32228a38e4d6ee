"""The report of a run: verdict, accuracy, diagnostics, tokens, cost, set-up."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from opd.reports.alarm_log import AlarmText
from opd.reports.answers import training_rollouts
from opd.reports.chart_specs import (
    BOUND_CHARTS,
    DIAGNOSTIC_CHARTS,
    HORIZON_CHARTS,
    ROLLOUT_CHARTS,
)
from opd.reports.charts import heatmaps, line_charts
from opd.reports.check_page import check_section
from opd.reports.coldstart_section import coldstart_sections
from opd.reports.config_table import config_table, environment_table
from opd.reports.cost import cost_sections
from opd.reports.differences import difference_tables, position_lines
from opd.reports.document import (
    Cell,
    Charts,
    Code,
    Document,
    Note,
    Number,
    Part,
    Section,
    Sentence,
    Table,
)
from opd.reports.eval_section import eval_section
from opd.reports.plots import COLOUR_PERCENTILES
from opd.reports.read import RunData
from opd.reports.sanitize import short_name
from opd.reports.scored_rollouts import ScoredRollout
from opd.reports.teachers_section import teachers_section
from opd.reports.token_view import rollouts_by_part, token_view
from opd.reports.verdict import verdict

REFRESH_SECONDS = 20
MAX_ALARMS = 100  # rows of the table


def run_document(run: RunData) -> Document:
    """The report of a run, finished or not; that of a running one reloads itself."""
    parts = rollouts_by_part(run)
    sections = [
        Section("verdict", "Did it work?", [verdict(run)]),
        eval_section(run),
        *([] if run.check is None else [check_section(run.check)]),
        *coldstart_sections(run),
        _diagnostics(run),
        *teachers_section(run),
        *_positions(run),
        *_differences(run, parts),
        _tokens(run, parts),
        *_rollouts(run, parts),
        *cost_sections(run),
        _setup(run),
    ]
    return Document(
        title=run.name,
        subtitle=f"{_pair(run.config)} \u00b7 {run.done:,} of {run.planned:,} steps, {run.state}",
        sections=sections,
        refresh_seconds=REFRESH_SECONDS if run.is_running else None,
    )


def _pair(config: dict[str, Any]) -> str:
    teacher, several = config.get("teacher") or {}, config.get("teachers") or {}
    nobody = "the student itself" if "from" in teacher else ", ".join(several) or "no teacher"
    names = [str(config["student"]["model"]), str(teacher.get("model", nobody))]
    return " learns from ".join(short_name(name) for name in names)


def _diagnostics(run: RunData) -> Section:
    charts = line_charts(run, (*DIAGNOSTIC_CHARTS, *BOUND_CHARTS))
    parts: list[Part] = [Charts(charts)] if charts else [Note("There are no diagnostics yet.")]
    if run.alarms:
        parts.append(_alarm_table(run.alarms, run.replayed))
    lead = (
        "Measured on the student's own completions. Faint: every step; strong: moving mean. "
        "A shaded range has a published source; where none is shaded, nobody has published one."
    )
    return Section("picture", "How close the two models are", parts, lead)


def _alarm_table(alarms: Sequence[AlarmText], replayed: bool) -> Table:
    rows: list[list[Cell]] = []
    for alarm in alarms[:MAX_ALARMS]:
        observation = Sentence(alarm.message, alarm.evidence)
        action = "alarms were off" if replayed else alarm.intervention or "warned"
        step = Number(alarm.step, f"{alarm.step:,}")
        rows.append([step, alarm.name, observation, alarm.remedy, action])
    columns = ("step", "alarm", "observation", "remedy", "action of the run")
    notes = []
    if replayed:
        notes.append("The alarms of the run were off: the rules were replayed over its metrics.")
    if len(alarms) > len(rows):
        notes.append(f"{len(alarms) - len(rows):,} more in alarms.jsonl.")
    return Table("Alarms", columns, rows, " ".join(notes))


def _positions(run: RunData) -> list[Section]:
    charts = heatmaps(run)
    if not charts:
        return []
    low, high = COLOUR_PERCENTILES
    lead = (
        "Maps: y axis, position in the completion in tokens; x axis, step. Empty cells had no "
        "tokens. "
        f"Colours end at the {low}nd and {high}th percentile of the cells."
    )
    lines = position_lines(run)
    parts = [Charts(lines)] if lines else []
    return [Section("positions", "By position in the completion", [*parts, Charts(charts)], lead)]


def _differences(run: RunData, parts: dict[str, list[ScoredRollout]]) -> list[Section]:
    tables = difference_tables(run, parts)
    return [Section("differences", "Where do they differ?", tables)] if tables else []


def _tokens(run: RunData, parts: dict[str, list[ScoredRollout]]) -> Section:
    view = token_view(run, parts)
    shown: Part = view or Note("No rollouts with teacher scores are on disk.")
    return Section("tokens", "The teacher's advantage of every token", [shown])


def _rollouts(run: RunData, parts: dict[str, list[ScoredRollout]]) -> list[Section]:
    charts = line_charts(run, (*ROLLOUT_CHARTS, *HORIZON_CHARTS))
    kept = training_rollouts([r for rollouts in parts.values() for r in rollouts])
    shown: list[Part] = [*([Charts(charts)] if charts else []), *([] if kept is None else [kept])]
    return [Section("rollouts", "Rollouts", shown)] if shown else []


def _setup(run: RunData) -> Section:
    command = [str(word) for word in run.env.get("command", [])]
    if command:
        program = Path(command[0])
        is_module = (program.parent.name, program.name) == ("opd", "__main__.py")
        command[0] = "opd" if is_module else program.name
    folder = str(run.config["output"]["dir"])
    rerun = ["opd", "train", f"{folder}/config.json", f"output.dir={folder}-again"]
    parts: list[Part] = [
        Code("Command that made this run", shlex.join(command)),
        Code("Or from its resolved configuration", shlex.join(rerun)),
        config_table(run.config),
        environment_table(run.env),
        *(Note(problem) for problem in run.problems),
    ]
    return Section("setup", "Reproduce it", parts)
