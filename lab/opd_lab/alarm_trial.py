"""Do the alarms notice what goes wrong? Their rules replayed over finished runs.

`python -m opd_lab.alarm_trial FOLDER... [--having TEXT]` judges the run folders in FOLDER whose
config.json contains TEXT.

A run goes wrong if accuracy fell, or if less than a fifth of a gap was recovered. It is healthy if
it recovered at least half of a gap. Runs between, and runs without a gap whose accuracy did not
fall either, are counted apart and judge nothing.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median
from typing import Annotated, Any, Literal

import typer

from opd import config
from opd.alarms import Alarm, replay
from opd.config import Alarms
from opd.core import stats
from opd.reports.document import Document, Note, Part, Section, Table
from opd.reports.markdown import render_markdown
from opd.run.jsonl import json_restore, read_jsonl

Outcome = Literal["wrong", "healthy", "between", "no gap"]
MIN_GAP = 0.1  # accuracy by which the teacher must be better
MIN_FALL = 0.05  # of accuracy, to count as a fall
# Rules that use answers; the others would notice the same without answers.
RULES_WITH_ANSWERS = ("reverse-distillation", "accuracy-falling")


@dataclass(frozen=True)
class JudgedRun:
    """One finished run.

    Attributes:
        path: its folder.
        student: name of its student.
        teacher: name of its teacher.
        outcome: how it ended.
        before: held-out accuracy at the start, mean over its sets; likewise `after`, `best` (of
            the teacher).
        visible_at: step whose evaluation first shows that it goes wrong; None if it does not.
        alarms: in the order of their steps.
    """

    path: Path
    student: str
    teacher: str
    outcome: Outcome
    before: float
    after: float
    best: float
    visible_at: int | None
    alarms: list[Alarm]

    @property
    def first_alarm(self) -> int | None:
        """Step of the first alarm."""
        return self.alarms[0].step if self.alarms else None

    @property
    def misjudged(self) -> bool:
        """Whether the alarms missed it, or were false."""
        return self.outcome in ("wrong", "healthy") and (self.outcome == "wrong") != bool(
            self.alarms
        )


def judge(path: Path, settings: Alarms) -> JudgedRun | None:
    """Replay one run folder; None if it is unfinished, has no teacher or no evaluations."""
    if not (path / "summary.json").is_file():
        return None
    cfg = config.parse_stored(json.loads((path / "config.json").read_text("utf-8")))
    sets = json.loads((path / "summary.json").read_text("utf-8"))["sets"]
    complete = [s for s in sets.values() if {"before", "after", "teacher"} <= s.keys()]
    if cfg.teacher is None or not complete:
        return None
    before, after, best = (
        fmean(s[who]["value"] for s in complete) for who in ("before", "after", "teacher")
    )
    rows = [json_restore(row) for row in read_jsonl(path / "metrics.jsonl")]
    outcome = outcome_of(before, after, best)
    return JudgedRun(
        path=path,
        student=Path(cfg.student.model).name,
        teacher=Path(cfg.teacher.model).name,
        outcome=outcome,
        before=before,
        after=after,
        best=best,
        visible_at=first_visible_step(rows, cfg.train.steps) if outcome == "wrong" else None,
        alarms=replay(rows, settings, cfg.train.steps),
    )


def outcome_of(before: float, after: float, best: float) -> Outcome:
    """How a run ended, by mean held-out accuracy of the student and of the teacher (`best`)."""
    gap, gain = best - before, after - before
    if -gain >= MIN_FALL or (gap >= MIN_GAP and gain < 0.2 * gap):
        return "wrong"
    if gap < MIN_GAP:
        return "no gap"
    return "healthy" if gain >= 0.5 * gap else "between"


def first_visible_step(rows: Sequence[dict[str, Any]], last_step: int) -> int:
    """First step at which an accuracy's interval lies below that of the start, else the last step.

    That nothing was gained is known only when the run is over.
    """
    first_low: dict[str, float] = {}
    for row in rows:
        for name, value in row.items():
            if name.startswith("eval/") and name.endswith("/accuracy_low"):
                label = name.split("/")[1]
                first_low.setdefault(label, value)
                if row[f"eval/{label}/accuracy_high"] < first_low[label]:
                    return int(row["step"])
    return last_step


def judge_all(folders: Iterable[Path], settings: Alarms, having: str = "") -> list[JudgedRun]:
    """Every finished run in some folders whose config.json contains a text."""
    paths = (path for folder in folders for path in sorted(folder.iterdir()) if path.is_dir())
    chosen = (path for path in paths if having in _config_text(path))
    return [run for path in chosen if (run := judge(path, settings)) is not None]


def _config_text(run: Path) -> str:
    path = run / "config.json"
    return path.read_text("utf-8") if path.is_file() else ""


def render_runs(runs: Sequence[JudgedRun]) -> str:
    """Recall, false alarms and the steps gained over evaluations, as Markdown."""
    parts: list[Part] = [_rates(runs)]
    wrong = [run for run in runs if run.outcome == "wrong" and run.alarms]
    if wrong:
        parts.append(Note(_lead_over_evaluations(wrong)))
    if misjudged := [run for run in runs if run.misjudged]:
        parts.append(_misjudged(misjudged))
    return render_markdown(Document("", "", [Section("alarms", "", parts)]))


def _rates(runs: Sequence[JudgedRun]) -> Table:
    rows = []
    for outcome in ("wrong", "healthy", "between", "no gap"):
        group = [run for run in runs if run.outcome == outcome]
        by_rule = Counter(name for run in group for name in {alarm.name for alarm in run.alarms})
        without_answers = [
            any(alarm.name not in RULES_WITH_ANSWERS for alarm in run.alarms) for run in group
        ]
        counts = ", ".join(f"{name} {n}" for name, n in by_rule.most_common())
        alarmed = _rate([bool(run.alarms) for run in group])
        rows.append([outcome, str(len(group)), alarmed, _rate(without_answers), counts or "-"])
    columns = ("runs", "number", "alarmed", "by rules without answers", "by rule")
    return Table("", columns, rows)


def _rate(alarmed: Sequence[bool]) -> str:
    if not alarmed:
        return "-"
    rate = stats.avg_at_n([[value] for value in alarmed])
    return f"{sum(alarmed)}: {rate.value:.2f} [{rate.low:.2f}, {rate.high:.2f}]"


def _lead_over_evaluations(wrong: Sequence[JudgedRun]) -> str:
    leads = [
        run.visible_at - run.first_alarm for run in wrong if run.visible_at and run.first_alarm
    ]
    return (
        f"First alarm at step {median(run.first_alarm or 0 for run in wrong):g} (median); accuracy "
        f"shows it at step {median(run.visible_at or 0 for run in wrong):g}. The alarm is "
        f"{median(leads):g} steps earlier (median), earlier in {sum(x > 0 for x in leads)}, at the "
        f"same step in {sum(x == 0 for x in leads)}, later in {sum(x < 0 for x in leads)} of "
        f"{len(leads)}."
    )


def _misjudged(runs: Sequence[JudgedRun]) -> Table:
    rows = [
        [
            "missed" if run.outcome == "wrong" else "false alarm",
            f"{run.student} from {run.teacher}",
            f"{run.before:.2f} to {run.after:.2f}",
            f"{run.best:.2f}",
            ", ".join(f"{alarm.name} at {alarm.step}" for alarm in run.alarms),
        ]
        for run in runs
    ]
    return Table("", ("misjudged", "pair", "accuracy", "of the teacher", "alarms"), rows)


def main(
    folders: list[Path],
    having: Annotated[str, typer.Option(help="Text that config.json must contain.")] = "",
) -> None:
    """See the module."""
    sys.stdout.write(render_runs(judge_all(folders, Alarms(), having)))


if __name__ == "__main__":
    typer.run(main)
