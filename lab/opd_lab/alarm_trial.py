"""Do the alarms see what goes wrong? Their rules replayed over finished runs, against the outcome.

`python -m opd_lab.alarm_trial FOLDER... [--having TEXT]` tells it of the run folders in FOLDER,
those whose config.json holds TEXT.

A run goes wrong if accuracy fell, or if less than a fifth of a gap was recovered. It is healthy if
it recovered at least half of a gap. Runs between, and runs without a gap that did not lose either,
are counted apart and judge nothing.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median
from typing import Any, Literal

from opd import config
from opd.alarms import Alarm, replay
from opd.config import Alarms
from opd.core import stats
from opd.run.jsonl import json_restore, read_jsonl

Class = Literal["wrong", "healthy", "between", "no gap"]
HEADROOM = 0.1  # least accuracy by which the teacher must be ahead
# Rules that know which answers are right; the others would see the same without answers.
GRADED = ("reverse-distillation", "accuracy-falling")
FELL = 0.05  # least fall of accuracy that counts


@dataclass(frozen=True)
class Judged:
    """One finished run.

    Attributes:
        path: its folder.
        student: name of its student.
        teacher: name of its teacher.
        kind: what became of it.
        before: held-out accuracy at the start, mean over its sets; likewise `after` and `best`.
        shows: step whose evaluation first shows that it goes wrong; None where it does not.
        alarms: what the rules say, first step first.
    """

    path: Path
    student: str
    teacher: str
    kind: Class
    before: float
    after: float
    best: float
    shows: int | None
    alarms: list[Alarm]

    @property
    def first(self) -> int | None:
        """Step of the first alarm."""
        return self.alarms[0].step if self.alarms else None


def judge(path: Path, settings: Alarms, headroom: float = HEADROOM) -> Judged | None:
    """Replay one run folder; None if it is unfinished, has no teacher or no evaluations."""
    if not (path / "summary.json").is_file():
        return None
    cfg = config.parse(json.loads((path / "config.json").read_text("utf-8")))
    sets = json.loads((path / "summary.json").read_text("utf-8"))["sets"]
    found = [s for s in sets.values() if {"before", "after", "teacher"} <= s.keys()]
    if cfg.teacher is None or not found:
        return None
    before, after, best = (
        fmean(s[who]["value"] for s in found) for who in ("before", "after", "teacher")
    )
    rows = [json_restore(row) for row in read_jsonl(path / "metrics.jsonl")]
    gap = best - before
    if before - after >= FELL or (gap >= headroom and after - before < 0.2 * gap):
        kind: Class = "wrong"
    elif gap < headroom:
        kind = "no gap"
    else:
        kind = "healthy" if after - before >= 0.5 * gap else "between"
    return Judged(
        path=path,
        student=Path(cfg.student.model).name,
        teacher=Path(cfg.teacher.model).name,
        kind=kind,
        before=before,
        after=after,
        best=best,
        shows=shown_at(rows, cfg.train.steps) if kind == "wrong" else None,
        alarms=replay(rows, settings, cfg.train.steps),
    )


def shown_at(rows: Sequence[dict[str, Any]], last: int) -> int:
    """First step at which a held-out accuracy is below its start for certain; else the last step.

    That nothing was gained is known only when the run is over.
    """
    first: dict[str, float] = {}
    for row in rows:
        for name, value in row.items():
            if name.startswith("eval/") and name.endswith("/accuracy_low"):
                label = name.split("/")[1]
                first.setdefault(label, value)
                if row[f"eval/{label}/accuracy_high"] < first[label]:
                    return int(row["step"])
    return last


def judge_all(folders: Iterable[Path], settings: Alarms, having: str = "") -> list[Judged]:
    """Every finished run of some folders that hold run folders, if its config.json says so."""
    paths = (path for folder in folders for path in sorted(folder.iterdir()) if path.is_dir())
    chosen = (p for p in paths if having in _text(p / "config.json"))
    return [found for path in chosen if (found := judge(path, settings)) is not None]


def _text(path: Path) -> str:
    return path.read_text("utf-8") if path.is_file() else ""


def told(runs: Sequence[Judged]) -> list[str]:
    """Recall, false alarms and the head start over accuracy, in lines of Markdown."""
    lines = ["| runs | number | alarmed | without rules that know the answers | by rule |"]
    lines.append("|---|---|---|---|---|")
    for kind in ("wrong", "healthy", "between", "no gap"):
        some = [run for run in runs if run.kind == kind]
        by_rule = Counter(name for run in some for name in {a.name for a in run.alarms})
        ungraded = [any(a.name not in GRADED for a in run.alarms) for run in some]
        shares = [_share([bool(r.alarms) for r in some]), _share(ungraded)]
        counted = ", ".join(f"{name} {n}" for name, n in by_rule.most_common())
        lines.append(f"| {kind} | {len(some)} | {shares[0]} | {shares[1]} | {counted or '-'} |")
    wrong = [run for run in runs if run.kind == "wrong" and run.alarms]
    if wrong:
        lead = [run.shows - run.first for run in wrong if run.shows and run.first]
        firsts = median(run.first or 0 for run in wrong)
        lines += [
            "",
            f"First alarm at step {firsts:g} (median); accuracy shows it at step "
            f"{median(run.shows or 0 for run in wrong):g}. The alarm is {median(lead):g} steps "
            f"earlier (median), earlier in {sum(x > 0 for x in lead)}, at the same step in "
            f"{sum(x == 0 for x in lead)}, later in {sum(x < 0 for x in lead)} of {len(lead)}.",
        ]
    for run in runs:
        if (run.kind == "wrong") != bool(run.alarms) and run.kind in ("wrong", "healthy"):
            what = "missed" if run.kind == "wrong" else "false alarm"
            names = ", ".join(f"{a.name} at {a.step}" for a in run.alarms)
            lines.append(
                f"- {what}: {run.student} from {run.teacher}, {run.before:.2f} to {run.after:.2f} "
                f"(teacher {run.best:.2f}) {names}"
            )
    return lines


def _share(values: Sequence[bool]) -> str:
    if not values:
        return "-"
    found = stats.avg_at_n([[value] for value in values])
    return f"{sum(values)}: {found.value:.2f} [{found.low:.2f}, {found.high:.2f}]"


def main(arguments: Sequence[str]) -> None:
    """See the module."""
    having = ""
    folders = list(arguments)
    if "--having" in folders:
        place = folders.index("--having")
        having = folders[place + 1]
        del folders[place : place + 2]
    lines = told(judge_all(map(Path, folders), Alarms(), having))
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
