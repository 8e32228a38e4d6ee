"""`opd eval`: accuracy of student and teacher on the held-out sets."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from opd import config
from opd.commands.look import look
from opd.config import Run
from opd.errors import UserError
from opd.run.console import Console


def evaluate_target(target: Path, overrides: Sequence[str], json_lines: bool) -> None:
    """Evaluate the student of a run.yaml, or the final student of a run folder."""
    console = Console("json" if json_lines else "plain")
    cfg = _config_of(target, overrides)
    look(cfg)
    from opd.models.tokenizers import make_decoder
    from opd.setup.pair import load_pair
    from opd.setup.preflight import read_inputs
    from opd.setup.prompts import load_eval_task
    from opd.setup.samplers import eval_sampler
    from opd.training.evaluate import evaluate

    read_inputs(cfg, console, trains=False)
    pair = load_pair(cfg, trains=False)
    decode = make_decoder(pair.tokenizer)
    models = [("student", pair.student, pair.stop)]
    if pair.teacher is not None:
        models.append(("teacher", pair.teacher, pair.teacher_stop))
    for index, spec in enumerate(cfg.eval):
        task = load_eval_task(cfg, spec, index, pair)
        for who, lm, stop in models:
            sampler = eval_sampler(cfg, lm, stop)(task)
            accuracy = evaluate(sampler, task, decode, seed=cfg.train.seed).accuracy
            console.show_evaluation(0, task.label, accuracy, who=who)


def _config_of(target: Path, overrides: Sequence[str]) -> Run:
    if not target.is_dir():
        cfg = config.load(target, overrides)
    else:
        path = target / "config.json"
        if not (target / "final").is_dir() or not path.is_file():
            raise UserError(
                f"{target} is no finished run: it needs config.json and final/. "
                f"Finish it with `opd train ... --resume`, or give a run.yaml."
            )
        data = json.loads(path.read_text("utf-8"))
        stored = config.parse_stored(data, where=str(path))
        data["student"] = {"model": str(target / "final"), "precision": stored.student.precision}
        cfg = config.parse_stored(data, overrides, where=str(path))
    if not cfg.eval:
        raise UserError(f"{target} has no `eval` sets; add at least one path with answers.")
    return cfg
