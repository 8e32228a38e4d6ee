"""`opd check --self`: the configured pair, made ready for the invariants, and what they said."""

from __future__ import annotations

import json
import tempfile
import time
from dataclasses import asdict, replace
from pathlib import Path

from opd.config import Run, ServerTeacher
from opd.errors import UserError
from opd.recipes.invariants import Subject, self_check
from opd.run.clock import Clock
from opd.run.console import Console
from opd.setup.models import open_models
from opd.setup.prompts import load_training_prompts
from opd.setup.session import make_learner
from opd.training.optimizer import make_optimizer


def subject_of(cfg: Run, local: str | None = None) -> Subject:
    """The pair as the invariants look at it: no run folder, the shortest prompts.

    Args:
        cfg: the run.
        local: folder of the model a teacher server serves, to hold its scores against.

    Raises:
        UserError: as `opd.setup.session.build`; a run without a teacher; a server without `local`.
    """
    if isinstance(cfg.teacher, ServerTeacher) and local is None:
        raise UserError(
            "The teacher is a server. Give the same model as a folder, so that its scores can "
            "be compared: opd check run.yaml --self --local FOLDER"
        )
    models = open_models(cfg, Console("quiet"), local=local)
    cfg, pair = models.cfg, models.pair
    if pair.teacher is None:
        raise UserError("opd check --self needs a teacher model; teacher is null.")
    prompts = load_training_prompts(cfg, pair, Console("quiet"))
    learner = make_learner(models, make_optimizer(pair.student, cfg.optim))
    shortest = sorted(prompts.prompts, key=lambda p: (len(p.ids), p.index))
    subject = Subject(learner, pair.teacher, shortest, pair.stop)
    if models.remote is None:
        return subject
    models.handshake(prompts)
    with tempfile.TemporaryDirectory() as folder:
        server = models.teacher(Path(folder), Console("quiet"), Clock())
    return replace(subject, server=server)


def run_self_check(cfg: Run, json_lines: bool, local: str | None = None) -> bool:
    """Run the invariants on the configured pair and say what was found; True if all hold."""
    console = Console("json" if json_lines else "plain")
    subject = subject_of(cfg, local)
    began = time.monotonic()
    verdicts = self_check(subject)
    holding = sum(v.holds for v in verdicts)
    if json_lines:
        found = [asdict(v) | {"holds": v.holds} for v in verdicts]
        console.out.print_json(json.dumps(found), indent=None)
        return holding == len(verdicts)
    for v in verdicts:
        console.say(f"{'holds ' if v.holds else 'BROKEN'}  {v.name}")
        console.say(f"        {v.measured:.3g}, allowed {v.allowed:.3g}: {v.meaning}")
    took = time.monotonic() - began
    console.say(f"{holding} of {len(verdicts)} invariants hold on this pair ({took:.0f} s).")
    return holding == len(verdicts)
