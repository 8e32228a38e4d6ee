"""Each of several teachers in the report: a mean over all would hide the one that fails."""

from __future__ import annotations

from statistics import fmean

from opd.reports.document import Cell, Number, Section, Table
from opd.reports.formatting import percent, plain
from opd.reports.read import RunData, Series

PREFIX = "teachers/"
ENDS = 10  # a tenth of the steps at either end is averaged
_ROWS = (
    ("train/loss", "loss"),
    ("diag/reverse_kl", "reverse KL, nats"),
    ("diag/overlap_ratio", "overlap ratio"),
    ("diag/top1_agreement", "top-1 agreement"),
    ("rollout/reward", "reward"),
    ("rollout/length", "tokens per response"),
    ("rollout/truncated", "truncated"),
)


def teacher_names(run: RunData) -> list[str]:
    """The teachers whose metrics were logged one by one, in order of name."""
    names = (n.removeprefix(PREFIX).partition("/")[0] for n in run.names() if _is_own(n))
    return sorted(set(names))


def teachers_section(run: RunData) -> list[Section]:
    """First and last tenth of the steps of every teacher's metrics; nothing for one teacher."""
    names = teacher_names(run)
    if not names:
        return []
    rows: list[list[Cell]] = []
    for teacher in names:
        share = run.series(f"{PREFIX}{teacher}/token_share")
        rows.append([teacher, "fraction of the tokens", *_ends(share, percentages=True)])
        for metric, label in _ROWS:
            series = run.series(f"{PREFIX}{teacher}/{metric}")
            if len(series):
                rows.append([teacher, label, *_ends(series)])
        about = f"teacher {teacher}:"
        alarms = sum(about in alarm.message for alarm in run.alarms)
        rows.append([teacher, "alarms on its prompts", "", Number(alarms, str(alarms))])
    table = Table("By teacher", ("teacher", "metric", "first steps", "last steps"), rows)
    lead = (
        "Each teacher on its own prompts: means over the first and the last tenth of the steps. "
        "The curves of this report are over all prompts together."
    )
    return [Section("teachers", "Teacher by teacher", [table], lead)]


def _is_own(name: str) -> bool:
    return name.startswith(PREFIX) and name.count("/") >= 2


def _ends(series: Series, *, percentages: bool = False) -> list[Cell]:
    values = series.values.tolist()
    if not values:
        return ["", ""]
    count = max(1, len(values) // ENDS)
    show = percent if percentages else plain
    return [show(fmean(values[:count])), show(fmean(values[-count:]))]
