"""Results of `opd_lab.auto_trial` as a table, with what is claimed of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any, Literal

import numpy as np
from pydantic import TypeAdapter

from opd.core import stats
from opd.reports.document import Document, Note, Part, Section, Table
from opd.reports.markdown import render_markdown

Arm = Literal["plain", "cold start", "select", "horizon", "auto"]
Kind = Literal["failing", "healthy"]
RESCUES: tuple[Arm, ...] = ("cold start", "select", "horizon")
ARMS: tuple[Arm, ...] = ("plain", *RESCUES, "auto")
PLAIN_FAILS, RESCUE_WORKS = 0.2, 0.5  # gap recovery below and above which a pair is counted
MIN_GAP = 0.05  # accuracy gap below which there is nothing to recover
AS_GOOD = 0.8  # of the best rescue's recovery


@dataclass(frozen=True)
class ArmResult:
    """One arm of a pair.

    Attributes:
        tokens: completion tokens sampled, evaluations left out.
        steps: optimizer steps taken.
        before: held-out accuracy of the student; None if the pair was refused, like those below.
        teacher: the teacher's.
        after: after training.
        prepared: tokens sampled before the run began.
        cold_rounds: rounds of the cold start, if there was one.
        alarms: name and step of each.
        refused: why `recipe: auto` did not train.
    """

    tokens: int
    steps: int
    before: float | None = None
    teacher: float | None = None
    after: float | None = None
    prepared: int = 0
    cold_rounds: int | None = None
    alarms: list[str] = field(default_factory=list)
    refused: str | None = None


@dataclass(frozen=True)
class Trial:
    """All arms of a pair; `budget`: the tokens of plain training."""

    pair: tuple[str, str, str]
    kind: Kind
    seed: int
    budget: int
    arms: dict[Arm, ArmResult]

    @staticmethod
    def parse(record: dict[str, Any]) -> Trial:
        """The inverse of `dataclasses.asdict`."""
        return TypeAdapter(Trial).validate_python(record)

    @property
    def before(self) -> float:
        """Held-out accuracy of the student before training."""
        return self.arms["plain"].before or 0.0

    @property
    def teacher(self) -> float:
        """Held-out accuracy of the teacher."""
        return self.arms["plain"].teacher or 0.0

    def after(self, arm: Arm) -> float:
        """Held-out accuracy after an arm; of a refused one that of before."""
        accuracy = self.arms[arm].after
        return self.before if accuracy is None else accuracy

    def recovery(self, arm: Arm) -> float:
        """Fraction of the gap to the teacher that an arm recovers."""
        gap = self.teacher - self.before
        return (self.after(arm) - self.before) / gap if gap >= MIN_GAP else 0.0

    @property
    def rescued(self) -> bool:
        """Whether plain training or a rescue by hand recovers half of the gap."""
        by_hand = (arm for arm in ("plain", *RESCUES) if arm in self.arms)
        return any(self.recovery(arm) >= RESCUE_WORKS for arm in by_hand)

    def relative_recovery(self) -> float | None:
        """Recovery of auto over that of the best rescue, where plain fails and a rescue works."""
        if self.kind == "healthy":
            return None
        best = max(self.recovery(arm) for arm in RESCUES if arm in self.arms)
        counts = self.recovery("plain") < PLAIN_FAILS and best >= RESCUE_WORKS
        return self.recovery("auto") / best if counts else None


def render_trials(trials: Sequence[Trial]) -> str:
    """The table and its claims, as Markdown."""
    columns = ("pair", "before", "teacher", *ARMS, "auto / best")
    parts: list[Part] = [Table("", columns, [_row(trial) for trial in trials])]
    parts += [Note(text) for text in claims(trials)]
    return render_markdown(Document("", "", [Section("trials", "", parts)]))


def _row(trial: Trial) -> list[str]:
    world, student, teacher = trial.pair
    accuracies = [f"{trial.after(arm):.3f}" if arm in trial.arms else "" for arm in ARMS]
    relative = trial.relative_recovery()
    return [
        f"{world}: {student} from {teacher} ({trial.seed})",
        f"{trial.before:.3f}",
        f"{trial.teacher:.3f}",
        *accuracies,
        "" if relative is None else f"{relative:.2f}",
    ]


def claims(trials: Sequence[Trial]) -> list[str]:
    """What the trials show: auto against the best rescue, and against plain training."""
    texts = []
    relative = [value for trial in trials if (value := trial.relative_recovery()) is not None]
    if relative:
        as_good = sum(value >= AS_GOOD for value in relative)
        texts.append(
            f"Plain training recovers less than a fifth and a rescue at least half: "
            f"{len(relative)} pairs; auto recovers at least .8 of the best rescue on {as_good}, "
            f"{fmean(relative):.2f} on average, {min(relative):.2f} at worst."
        )
    hopeless = [t for t in trials if t.kind == "failing" and not t.rescued]
    if hopeless:
        losses = [t.after("auto") - t.before for t in hopeless]
        texts.append(
            f"No arm recovers half: {len(hopeless)} pairs; auto minus before {fmean(losses):+.3f} "
            f"on average, {min(losses):+.3f} at worst; "
            f"{sum(t.arms['auto'].refused is not None for t in hopeless)} not trained."
        )
    changes = [t.after("auto") - t.after("plain") for t in trials if t.kind == "healthy"]
    if changes:
        mean = stats.mean(np.array(changes))
        texts.append(
            f"Pairs that work: {len(changes)}; auto minus plain {mean.value:+.3f} "
            f"[{mean.low:+.3f}, {mean.high:+.3f}], {min(changes):+.3f} at worst."
        )
    return texts
