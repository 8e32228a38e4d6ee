"""Terminal output of a run: one live line in a terminal, plain lines elsewhere."""

from __future__ import annotations

import json
import sys
import textwrap
import time
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from rich.console import Console as RichConsole
from rich.markup import escape
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
from rich.table import Column
from rich.text import Text

from opd.core.percents import percents
from opd.run.jsonl import json_safe

Style = Literal["auto", "plain", "json", "quiet"]

# (name in metrics.jsonl, label, format) of what is shown of each step.
STEP_METRICS = (
    ("diag/reverse_kl", "KL", "{:.3f}"),
    ("diag/top1_agreement", "top-1", "{:.0%}"),
    ("diag/overlap_mass_student", "mass", "{:.1%}"),
    ("diag/student_entropy", "H", "{:.2f}"),
    ("diag/teacher_entropy", "H-teacher", "{:.2f}"),
    ("rollout/length", "len", "{:.0f}"),
    ("rollout/reward", "acc", "{:.0%}"),
)
LIVE_WIDTH = 51  # columns of the live line before its numbers: step, bar, time left, phase
LIVE_LINES = 4  # lines of steps that scroll by above the live one
LIVE_METRICS = STEP_METRICS[:2]  # beside held-out accuracy: they fit into 80 columns

PHASE_LABELS = {
    "rollout": "sampling",
    "score": "scoring",
    "update": "update",
    "evaluate": "evaluation",
    "save": "checkpoint",
}
SLOW_TEACHER_S = 10.0


class Console:
    """Progress of one run; text from models is never printed through it."""

    def __init__(self, style: Style = "auto") -> None:
        """Pick a style: `auto` is live in a terminal and plain when piped."""
        self.out = RichConsole(highlight=False)
        self.style = style
        self.live = style == "auto" and self.out.is_terminal
        self._progress: Progress | None = None
        self._start = (0.0, 0)  # time and step
        self._evaluating = 0.0  # seconds since then that no step took
        self._steps = 0
        self._phase = PhaseColumn()
        self._accuracy = ""

    def print(self, text: str) -> None:
        """Print a line, unless the style is for machines or quiet."""
        if self.style not in ("json", "quiet"):
            lines = wrapped(text, self.out.width) if self.live else [text]
            self.out.print(escape("\n".join(lines)), soft_wrap=True)

    def note(self, text: str) -> None:
        """Print a line of progress to standard error, so that results stay alone on the other."""
        if self.style != "quiet":
            sys.stderr.write(f"{text}\n")
            sys.stderr.flush()

    def start(self, step: int, steps: int) -> None:
        """Begin at `step` of `steps`."""
        self._start, self._steps = (time.monotonic(), step), steps
        self._evaluating = 0.0
        if self.live:
            self._progress = Progress(
                _text_column("[bold]step {task.completed}/{task.total}"),
                BarColumn(bar_width=10),
                _text_column("{task.fields[left]}"),
                self._phase,
                _text_column("{task.description}"),
                console=self.out,
                transient=True,
            )
            self._task = self._progress.add_task("", total=steps, completed=step, left="")
            self._progress.start()

    def show_step(
        self, step: int, values: Mapping[str, float | None], tokens_per_second: float
    ) -> None:
        """Show one finished step."""
        if self.style == "quiet":
            return
        if self.style == "json":
            self._json({"step": step} | dict(values) | {"tokens_per_s": tokens_per_second})
            return
        parts, short = (
            [
                f"{label} {form.format(value)}"
                for name, label, form in metrics
                if (value := values.get(name)) is not None
            ]
            for metrics in (STEP_METRICS, LIVE_METRICS)
        )
        left = self._time_left(step)
        if self._phase.teacher_seconds is not None:
            parts.append(f"teacher {self._phase.teacher_seconds:.2g} s")
        shown = short if self.live else parts
        line = "  ".join([*shown, f"{tokens_per_second:,.0f} tok/s", self._accuracy]).rstrip()
        if self._progress is not None:
            live = escape(self._fitting([*short, self._accuracy]))
            self._progress.update(self._task, completed=step, description=live, left=left)
        every = max(1, self._steps // (LIVE_LINES if self.live else 10))
        if not self.live or step == 1 or step % every == 0:
            remaining = "" if self.live else f"  {left} left"
            self.print(f"step {step:>4}/{self._steps}  {line}{remaining}")

    def show_evaluation(
        self, step: int | None, label: str, accuracy: Any, who: str = "student"
    ) -> None:
        """Show one evaluation: `accuracy` has value, low, high, n; step None: outside a run."""
        if self.style == "json":
            record: dict[str, Any] = {} if step is None else {"step": step}
            record |= {"eval": label, "who": who, "accuracy": accuracy.value}
            self._json(record | {"low": accuracy.low, "high": accuracy.high, "n": accuracy.n})
            return
        if who == "student" and (not self._accuracy or self._accuracy.startswith(f"{label} ")):
            self._accuracy = f"{label} {percents(accuracy.value)}%"
        if self._progress is not None:  # the live line shows it, and every line of a step
            return
        where = f"step {step:>4}/{self._steps}  " if self._steps and step is not None else ""
        self.print(
            f"{where}{who} accuracy on {label}: {percents(accuracy.value)}%"
            f"  (95% interval {percents(accuracy.low)} to {percents(accuracy.high)}%,"
            f" {accuracy.n:,} prompts)"
        )

    def show_alarm(self, record: Mapping[str, Any]) -> None:
        """Show a line of alarms.jsonl."""
        if self.style == "json":
            self._json({"alarm": record["name"]} | dict(record))
            return
        evidence = ", ".join(f"{name} {value:.4g}" for name, value in record["evidence"].items())
        title = f"step {record['step']:>4}  ALARM {record['name']}"
        self.print(f"{title}: {record['message']} ({evidence})")
        self.print(f"           Helps: {record['remedy']} Action: {record['action']}.")

    def show_phase(self, name: str, seconds: float | None) -> None:
        """Show a phase of the step that begins (`seconds` is None) or has ended; see `Clock`."""
        self._phase.update(name, seconds)
        if name == "evaluate" and seconds is not None:
            self._evaluating += seconds

    def show_record(self, record: Mapping[str, Any]) -> None:
        """Print a result as one JSON object, in the style for machines alone."""
        if self.style == "json":
            self._json(record)

    def _json(self, record: Mapping[str, Any]) -> None:
        self.out.print_json(json.dumps(json_safe(record)), indent=None)

    def close(self) -> None:
        """Leave the terminal as it was."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def _fitting(self, parts: Sequence[str]) -> str:
        """As many of the parts as there is room for beside step, bar, time left and phase."""
        text = ""
        for part in filter(None, parts):
            longer = f"{text} {part}" if text else part
            if len(longer) > self.out.width - LIVE_WIDTH:
                break
            text = longer
        return text

    def _time_left(self, step: int) -> str:
        """Time of the steps to come, by those that were made; evaluations are not counted."""
        started, first = self._start
        spent = time.monotonic() - started - self._evaluating
        seconds = spent / max(1, step - first) * (self._steps - step)
        minutes, rest = divmod(round(seconds), 60)
        hours, minutes = divmod(minutes, 60)
        if hours:
            return f"{hours}h{minutes:02d}m"
        return f"{minutes}m{rest:02d}s" if minutes else f"{rest}s"


def wrapped(text: str, width: int) -> list[str]:
    """Lines of a text, broken between words alone; a word such as a long path stays whole.

    Args:
        text: its lines are broken each, and continued further in than they begin.
        width: columns of the terminal.
    """
    lines: list[str] = []
    for line in text.split("\n"):
        indent = " " * (len(line) - len(line.lstrip()))
        lines += textwrap.wrap(
            line,
            width,
            subsequent_indent=indent + "  " if indent else "",
            break_long_words=False,
            break_on_hyphens=False,
        ) or [""]
    return lines


def _text_column(text: str) -> TextColumn:
    """A column that is cut off, never wrapped, where the terminal is narrow."""
    return TextColumn(text, table_column=Column(no_wrap=True, overflow="crop"))


class PhaseColumn(ProgressColumn):
    """The phase a step is in and its seconds so far; a slow teacher is highlighted."""

    def __init__(self) -> None:
        super().__init__(table_column=Column(no_wrap=True, overflow="crop"))
        self.max_refresh = 0.5
        self.teacher_seconds: float | None = None
        self._phase = ""
        self._since = time.monotonic()

    def update(self, name: str, seconds: float | None) -> None:
        """See `Console.show_phase`."""
        if seconds is None:
            self._phase, self._since = name, time.monotonic()
            return
        self._phase = ""
        if name == "score":
            self.teacher_seconds = seconds

    def render(self, task: Task) -> Text:
        """See `rich.progress.ProgressColumn.render`."""
        if not self._phase:
            return Text("")
        seconds = time.monotonic() - self._since
        is_slow = self._phase == "score" and seconds > SLOW_TEACHER_S
        label = f"{PHASE_LABELS.get(self._phase, self._phase)} {seconds:.0f} s"
        return Text(label, style="yellow" if is_slow else "dim")
