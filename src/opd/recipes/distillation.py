"""A whole run: cold start, loop, end. The only place that knows phases."""

from __future__ import annotations

from typing import Any

from opd.recipes.coldstart import CompletionSource, before_training, during_training
from opd.training.evaluations import evaluate_teacher
from opd.training.finish import finish
from opd.training.loop import End, train
from opd.training.session import Session


def distill(session: Session, completions: CompletionSource | None = None) -> dict[str, Any]:
    """Run a session to its end.

    Args:
        session: of `opd.setup.session.build`.
        completions: of a cold start, before the first step or when an alarm asks for one.

    Returns:
        The summary that ends the run (see `opd.training.finish.summarise`).

    Raises:
        UserError: too many non-finite steps in a row; nothing worth imitating.
        TeacherDown: the teacher stays away; the step is saved.
        KeyboardInterrupt: `session.stop` was set; the step is saved.
    """
    cold_start = session.cfg.coldstart
    if completions is not None and cold_start is not None and cold_start.when == "start":
        session = before_training(session, completions)
    evaluate_teacher(session)
    end, step = train(session)
    while end is End.COLD_START_DUE:
        assert completions is not None
        session = during_training(session, completions, step)
        end, step = train(session)
    if end is End.INTERRUPTED:
        raise KeyboardInterrupt("saved")
    return finish(session, step)
