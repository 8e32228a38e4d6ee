"""The product's recipes within a budget of plain training: of its tokens, or of its seconds.

`recipe: auto`, and a cold start that somebody sets by hand. A run for each budget, whole and by
itself: what a recipe spends on its check, its cold start and its alarms is part of it. Only
evaluations are not.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from threading import Event
from typing import Any

from opd import config
from opd.commands.auto import prepare
from opd.errors import UserError
from opd.recipes.distillation import distill
from opd.run.clock import Clock
from opd.run.jsonl import read_jsonl
from opd.run.layout import BEST
from opd.setup.session import build
from opd.training.checkpoints import load_student
from opd.training.finish import goes_back
from opd_lab.auto_trial import COLD_START_RATE, TokenMeter, evaluate_student, metered
from opd_lab.probes import Model
from opd_lab.tuned.regimes import RESPONSES, WORLD
from opd_lab.tuned.training import (
    QUIET,
    Budget,
    Place,
    Point,
    on_policy_config,
    processor_time,
)

AUTO: dict[str, Any] = {"recipe": "auto", "diagnostics": {"positions": 512}}  # for its alarms


def train_auto(place: Place, rate: float, plain: Budget, scratch: Path) -> list[Point]:
    """`recipe: auto`; see `train_at_each_budget`."""
    return train_at_each_budget(place, rate, plain, scratch, AUTO)


def train_by_hand(place: Place, rate: float, plain: Budget, scratch: Path) -> list[Point]:
    """A cold start until the student is near its teacher; see `train_at_each_budget`."""
    changes = {"coldstart": {"lr": COLD_START_RATE * rate}}
    return train_at_each_budget(place, rate, plain, scratch, changes)


def train_at_each_budget(
    place: Place, rate: float, plain: Budget, scratch: Path, changes: dict[str, Any]
) -> list[Point]:
    """The student before, and that of each of three runs in the order of their tokens.

    Args:
        place: of the regime and the seed.
        rate: of the on-policy steps.
        plain: what plain training spent.
        scratch: for the runs.
        changes: sections of run.yaml.
    """
    steps, points = place.regime.steps, []
    runs = {
        "half of the tokens": (steps // 2, Budget(tokens=plain.tokens / 2)),
        "equal tokens": (steps, Budget(tokens=plain.tokens)),
        "equal seconds": (steps, Budget(seconds=plain.seconds)),
    }
    for number, (name, (planned, budget)) in enumerate(runs.items()):
        folder = scratch / str(number)
        folder.mkdir()
        data = on_policy_config(place, rate, planned, folder) | changes
        point = train_within(place, data, budget)
        points.append(replace(point, budget=name))
    return [place.start, *sorted(points, key=lambda point: point.tokens)]


def train_within(place: Place, data: dict[str, Any], budget: Budget) -> Point:
    """One run, which ends with its steps or its budget; one that is refused trains nothing.

    Only the validation set is evaluated along the way: a recipe may go back to its best student.
    """
    for one in data["eval"]:
        one["every"] = place.regime.steps // 4 if one["name"] == "validation" else 0
    # A run ends with a whole batch: the one that ends nearest to the budget.
    half_a_batch = RESPONSES * WORLD.max_tokens(place.regime.depth) / 2
    with processor_time(), metered(budget.tokens - half_a_batch) as meter:
        began = time.process_time()
        try:
            cfg = prepare(config.parse(data), resume=False, console=QUIET)
        except UserError:
            spent = time.process_time() - began
            return Point(0, float(meter.tokens), spent, 0.0, place.start.accuracy, spent)
        prepared = time.process_time() - began
        final, seconds = finish_run(cfg, meter, budget.seconds - prepared)
    trained = len(read_jsonl(Path(cfg.output.dir) / "timings.jsonl"))
    accuracy = place.evaluate(Model.load(final))
    return Point(trained, float(meter.tokens), prepared + seconds, 0.0, accuracy, prepared)


def finish_run(cfg: config.Run, meter: TokenMeter, seconds: float) -> tuple[Path, float]:
    """Train until the end, or until a budget stops the run.

    The student is the one that the product would end with: the best so far, if the last is worse.

    Args:
        cfg: of `prepare`.
        meter: sets the session's event when its tokens are spent.
        seconds: that training may take, evaluations left out.

    Returns:
        The folder of the student, and the seconds that training took.
    """
    session, completions = build(cfg, resume=False, overwrite=False, console=QUIET)
    clock = BudgetClock(seconds, session.stop)
    if meter.stop.is_set() or seconds <= 0:  # the preparation took everything
        session.stop.set()
    meter.stop = session.stop
    session = replace(session, teacher_sampler=None, clock=clock)
    final = Path(cfg.output.dir) / "final"
    try:
        distill(session, completions)
    except KeyboardInterrupt:
        if goes_back(session.interventions, evaluate_student(session)):
            load_student(session.learner, session.folder.path / BEST)
        session.learner.student.causal.save_pretrained(final)
        session.tokenizer.save_pretrained(final)
    finally:
        session.trackers.close()
        session.folder.close()
    return final, clock.spent


class BudgetClock(Clock):
    """A clock that asks a run to stop where one step more would not fit into its seconds.

    Attributes:
        spent: seconds up to the last update, evaluations left out.
    """

    def __init__(self, seconds: float, stop: Event) -> None:
        """Start now; `stop` is set when less is left of `seconds` than the last step took."""
        super().__init__()
        self.spent, self._seconds_allowed, self._stop = 0.0, seconds, stop
        self._began, self._evaluated = time.process_time(), 0.0

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        """As the product's; without evaluations, and after an update the budget is looked at."""
        began = time.process_time()
        with super().__call__(phase):
            yield
        now = time.process_time()
        if phase == "evaluate":
            self._evaluated += now - began
        elif phase == "update":
            before, self.spent = self.spent, now - self._began - self._evaluated
            if 2 * self.spent - before > self._seconds_allowed:
                self._stop.set()
