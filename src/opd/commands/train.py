"""What the commands do, for the command line and for Python users."""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from threading import Event
from types import FrameType
from typing import Any

from opd import config
from opd.config import Run
from opd.errors import UserError
from opd.run.console import Console, Style


def run_train(
    cfg: Run, *, resume: bool = False, overwrite: bool = False, style: Style = "auto"
) -> dict[str, Any]:
    """Run a whole distillation and say what it came to.

    Returns:
        The summary also found in the run folder's summary.json.

    Raises:
        UserError: what a person can mend.
        KeyboardInterrupt: Ctrl-C or SIGTERM, after the step under way was saved.
    """
    from opd.commands.auto import prepare
    from opd.training.loop import train

    cfg = prepare(cfg, resume=resume, console=Console("plain" if style == "auto" else "quiet"))
    console, summary = _run(cfg, train, "train", resume=resume, overwrite=overwrite, style=style)
    if console is None:
        return summary
    if style == "json":
        console.out.print_json(json.dumps(summary), indent=None)
    from opd.commands.report import report_after_training
    from opd.reports.terminal import render_text
    from opd.reports.training_summary import training_summary

    for line in ["", *render_text(training_summary(summary))]:
        console.say(line)

    report_after_training(Path(summary["run"]), console.say)
    return summary


def run_coldstart(
    cfg: Run, *, resume: bool = False, overwrite: bool = False, style: Style = "auto"
) -> dict[str, Any]:
    """The cold start alone; `run_train` with `resume` goes on from it.

    Returns:
        Its record, also found in the run folder's coldstart.json.

    Raises:
        UserError: no `coldstart` section.
    """
    from opd.models.lm import save_final
    from opd.training.loop import Parts

    if cfg.coldstart is None:
        raise UserError("There is no `coldstart` section. Add `coldstart: {}` for every default.")
    if cfg.coldstart.when == "alarm":
        raise UserError("coldstart.when=alarm begins in a run. For one now: coldstart.when=start.")

    def warm_up(parts: Parts) -> dict[str, Any]:
        assert parts.warm_up is not None
        record: dict[str, Any] = parts.warm_up(parts).facts["coldstart"]
        if parts.folder.writes:
            folder = parts.folder.path / "coldstart" / "student"
            save_final(parts.learner.student, parts.tokenizer, folder)
        return record | {"run": str(parts.folder.path)}

    console, record = _run(
        cfg, warm_up, "coldstart", resume=resume, overwrite=overwrite, style=style
    )
    if console is not None and style == "json":
        console.out.print_json(json.dumps(record), indent=None)
    elif console is not None:
        console.say(f"Student: {record['run']}/coldstart/student")
        console.say("`opd train ... --resume` goes on from here, on-policy.")
    return record


def _run(
    cfg: Run,
    work: Callable[[Any], dict[str, Any]],
    command: str,
    *,
    resume: bool,
    overwrite: bool,
    style: Style,
) -> tuple[Console | None, dict[str, Any]]:
    """Build a run, do the work, close it; the console is None where another process speaks.

    Raises:
        KeyboardInterrupt: Ctrl-C or SIGTERM; said, and saved if the step could be finished.
    """
    from opd.setup.session import build
    from opd.training.distributed import join, leave

    ranks = join()
    console = Console(style if ranks.leads else "quiet")
    console.say("Loading models and prompts ...")

    parts = build(cfg, resume=resume, overwrite=overwrite, console=console)
    before = _stop_gently(parts.stop, console)
    try:
        found = work(parts)
    except KeyboardInterrupt as why:
        console.close()
        saved = "This step is saved" if why.args else "Nothing is lost"
        console.say(
            f"Stopped. {saved}: `opd {command} ... --resume` continues {parts.folder.path} from "
            "its last checkpoint and reuses the rollouts that are on disk."
        )
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        console.close()
        parts.trackers.close()
        parts.folder.close()
        leave()
    return console if ranks.leads else None, found


def _stop_gently(stop: Event, console: Console) -> dict[signal.Signals, Any]:
    """Let Ctrl-C and SIGTERM end the run after the step; a second one ends it at once.

    Returns:
        The handlers that were there before; none off the main thread, which gets no signals.
    """

    def interrupt(number: int, frame: FrameType | None) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()
        console.say("Finishing this step and saving it. Once more stops at once.")

    if threading.current_thread() is not threading.main_thread():
        return {}
    return {n: signal.signal(n, interrupt) for n in (signal.SIGINT, signal.SIGTERM)}


def evaluate_target(target: Path, overrides: Sequence[str], json_lines: bool) -> None:
    """Evaluate the student of a run.yaml, or the final student of a run folder."""
    console = Console("json" if json_lines else "plain")
    cfg = _config_of(target, overrides)
    from opd.models.tokenizers import make_decoder
    from opd.setup.pair import load_pair
    from opd.setup.session import eval_sampler, load_eval_task
    from opd.training.evaluate import evaluate

    pair = load_pair(cfg)
    decode = make_decoder(pair.tokenizer)
    models = [("student", pair.student, pair.stop)]
    if pair.teacher is not None:
        models.append(("teacher", pair.teacher, pair.teacher_stop))
    for place, spec in enumerate(cfg.eval):
        task = load_eval_task(cfg, spec, place, pair)
        for who, lm, stop in models:
            found = evaluate(eval_sampler(cfg, lm, stop)(task), task, decode, seed=cfg.train.seed)
            console.evaluated(0, task.label, found.accuracy, who=who)


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
        data["student"] = {"model": str(target / "final"), "dtype": data["student"]["dtype"]}
        cfg = config.parse(data, overrides, where=str(path))
    if not cfg.eval:
        raise UserError(f"{target} has no `eval` sets; add at least one path with answers.")
    return cfg
