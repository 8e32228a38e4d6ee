"""`opd eval`: accuracy of student and teacher on the held-out sets."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from opd import config
from opd.commands.look import look
from opd.config import Run
from opd.errors import UserError
from opd.run.console import Console


def evaluate_target(target: Path, overrides: Sequence[str], json_lines: bool) -> None:
    """Evaluate the student of a run.yaml, or the final student of a run folder; and the teacher.

    Each answers where it does in the run: on its server, or in this process.
    """
    console = Console("json" if json_lines else "plain")
    cfg = _config_of(target, overrides)
    look(cfg)
    from opd.models.tokenizers import make_decoder
    from opd.setup.launch import start_servers
    from opd.setup.models import teacher_samplers
    from opd.setup.pair import load_pair
    from opd.setup.preflight import read_inputs
    from opd.setup.prompts import load_eval_task
    from opd.setup.remote_teacher import find_remote_teacher
    from opd.setup.samplers import student_samplers
    from opd.training.evaluate import evaluate

    read_inputs(cfg, console, trains=False)
    with TemporaryDirectory() as scratch, start_servers([cfg], console, Path(scratch, "eval")):
        pair = load_pair(cfg, trains=False)
        decode = make_decoder(pair.tokenizer)
        makers = {
            "student": student_samplers(cfg, pair, Path(scratch)),
            "teacher": teacher_samplers(pair, find_remote_teacher(cfg)),
        }
        for index, spec in enumerate(cfg.eval):
            task = load_eval_task(cfg, spec, index, pair)
            for who, make in makers.items():
                if make is None:
                    continue
                sampler = make(task.decoding, None)
                if index == 0:
                    sampler.sync(0)
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
