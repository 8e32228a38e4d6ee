"""`opd verify`: the invariants of the mathematics, checked on the configured pair."""

from __future__ import annotations

import json
import tempfile
import time
from dataclasses import asdict, replace
from pathlib import Path

from opd.config import Run, ServerTeacher
from opd.errors import UserError
from opd.recipes.invariants import Subject, check_invariants
from opd.run.clock import Clock
from opd.run.console import Console
from opd.setup.models import open_models
from opd.setup.precision import prepare_weights
from opd.setup.preflight import read_inputs
from opd.setup.prompts import load_training_prompts
from opd.setup.self_teacher import require_ordinary_teacher
from opd.setup.session import make_learner
from opd.training.optimizer import make_optimizer


def load_subject(cfg: Run, local: str | None = None) -> Subject:
    """The configured pair with its shortest prompts; no run folder is made.

    Args:
        cfg: the run.
        local: folder of the model a teacher server serves, to compare its scores with.

    Raises:
        UserError: as `opd.setup.models.open_models`; a run without a teacher; a server without
            `local`.
    """
    if isinstance(cfg.teacher, ServerTeacher) and local is None:
        raise UserError(
            "The teacher is a server. Give the same model as a folder, so that its scores can "
            "be compared: opd verify run.yaml --local FOLDER"
        )
    if local is not None and not isinstance(cfg.teacher, ServerTeacher):
        raise UserError(
            f"--local={local} is compared with a teacher server, and this run's teacher is not "
            "a server. Leave it out, or set teacher.url."
        )
    require_ordinary_teacher(cfg, "opd verify")
    read_inputs(cfg, Console("quiet"), trains=False)
    models = open_models(cfg, Console("quiet"), local=local)
    cfg, pair = models.cfg, models.pair
    if pair.teacher is None:
        raise UserError("opd verify needs a teacher model; teacher is null.")
    prompts = load_training_prompts(cfg, pair, Console("quiet"))
    prepare_weights(cfg, pair.student)
    learner = make_learner(models, make_optimizer(pair.student, cfg.optim))
    shortest = sorted(prompts.prompts, key=lambda p: (len(p.ids), p.index))
    subject = Subject(learner, pair.teacher, shortest, pair.stop)
    if models.remote is None:
        return subject
    models.handshake(prompts)
    with tempfile.TemporaryDirectory() as folder:
        server = models.teacher(Path(folder), Console("quiet"), Clock())
    return replace(subject, server=server)


def run_verify(cfg: Run, *, json_lines: bool = False, local: str | None = None) -> bool:
    """Check the invariants on the configured pair and print the results.

    Args:
        cfg: the run.
        json_lines: print a line of JSON instead of text.
        local: see `load_subject`.

    Returns:
        Whether all of them hold.

    Raises:
        UserError: as `load_subject`.
    """
    console = Console("json" if json_lines else "plain")
    subject = load_subject(cfg, local)
    started = time.monotonic()
    results = check_invariants(subject)
    holding = sum(r.holds for r in results)
    if json_lines:
        records = [asdict(r) | {"holds": r.holds} for r in results]
        console.out.print_json(json.dumps(records), indent=None)
        return holding == len(results)
    for r in results:
        console.print(f"{'holds ' if r.holds else 'BROKEN'}  {r.name}")
        console.print(f"        {r.measured:.3g}, allowed {r.allowed:.3g}: {r.meaning}")
    seconds = time.monotonic() - started
    console.print(f"{holding} of {len(results)} invariants hold on this pair ({seconds:.0f} s).")
    return holding == len(results)
