"""Open a run, work on it, close it: shared by the commands that write a run folder."""

from __future__ import annotations

import math
import os
import shlex
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from threading import Event
from types import FrameType
from typing import TYPE_CHECKING, Any

from opd.config import Run
from opd.run.console import Console, Style
from opd.run.manifest import list_checkpoints
from opd.run.redact import redact_command
from opd.run.stop_request import take_stop_request

if TYPE_CHECKING:
    from opd.recipes.coldstart import CompletionSource
    from opd.training.session import Session

PASSED_ON = 2.0  # seconds within which a launcher passes a signal on
Work = Callable[["Session", "CompletionSource | None"], dict[str, Any]]


@dataclass(frozen=True)
class RunOptions:
    """How a command treats an existing run folder, and what it prints.

    Attributes:
        resume: continue the run in output.dir.
        overwrite: replace it.
        style: auto, plain, json or quiet.
        afterwards: called at rank zero with the session of a finished run, whose folder is closed
            and whose trackers are still open.
    """

    resume: bool = False
    overwrite: bool = False
    style: Style = "auto"
    afterwards: Callable[[Session], None] | None = None


def run_session(
    cfg: Run, work: Work, command: str, options: RunOptions
) -> tuple[Console | None, dict[str, Any]]:
    """Build a session, do the work, close it.

    Returns:
        The console, None at a process that is not rank zero; and the result of `work`.

    Raises:
        KeyboardInterrupt: Ctrl-C or SIGTERM; reported, and saved if the step could be finished.
    """
    from opd.setup.session import build
    from opd.training.distributed import destroy_ranks, init_ranks

    ranks = init_ranks()
    console = Console(options.style if ranks.is_main else "quiet")
    console.print("Loading models and prompts ...")
    session, completions = build(
        cfg, resume=options.resume, overwrite=options.overwrite, console=console
    )
    if options.resume:
        steps = [step for step, _ in list_checkpoints(session.folder.checkpoints)]
        start = f"from step {max(steps)} of {cfg.train.steps}" if steps else "from the beginning"
        console.print(f"Going on with {session.folder.path} {start}.")
    if ranks.is_main:
        take_stop_request(session.folder.path)  # of an earlier process
    handlers = stop_after_step(session.stop, console, ranks.size)
    try:
        result = work(session, completions)
        session.folder.close()
        if options.afterwards is not None and ranks.is_main:
            options.afterwards(session)
    except KeyboardInterrupt as reason:
        console.close()
        saved = "This step is saved" if reason.args else "Nothing is lost"
        console.print(
            f"Stopped. {saved}. To go on from the last checkpoint of {session.folder.path} with "
            f"the rollouts that are on disk:\n  {resume_command(command)}"
        )
        raise
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        console.close()
        session.close()
        session.trackers.close()
        session.folder.close()
        destroy_ranks()
    return console if ranks.is_main else None, result


def resume_command(command: str) -> str:
    """What to type to go on with this run: the command line of this process, and --resume."""
    words = [w for w in redact_command(sys.argv[1:]) if w not in ("--overwrite", "--resume")]
    if words[:1] != [command]:  # from Python, a test or a plugin
        return f"opd {command} ... --resume"
    return shlex.join([*_launcher(), *words, "--resume"])


def _launcher() -> list[str]:
    """What this process was started with; dots stand for the launcher's own arguments."""
    if os.environ.get("WORLD_SIZE", "1") == "1":
        return ["opd"]
    accelerate = any(name.startswith("ACCELERATE_") for name in os.environ)
    return [*(["accelerate", "launch"] if accelerate else ["torchrun"]), "...", "-m", "opd"]


def stop_after_step(stop: Event, console: Console, processes: int = 1) -> dict[signal.Signals, Any]:
    """Let Ctrl-C and SIGTERM end the run after the step; a second one ends it at once.

    Args:
        stop: is set by the first.
        console: shows it.
        processes: of the run. Where a scheduler signals all of several, the launcher passes on its
            own signal as well: both are the first.

    Returns:
        The handlers that were there before; none off the main thread, which gets no signals.
    """
    first = -math.inf

    def interrupt(number: int, frame: FrameType | None) -> None:
        nonlocal first
        now = time.monotonic()
        if stop.is_set() and (processes == 1 or now - first > PASSED_ON):
            raise KeyboardInterrupt
        if stop.is_set():
            return
        first = now
        stop.set()
        console.print("Finishing this step and saving it. Once more stops at once.")

    if threading.current_thread() is not threading.main_thread():
        return {}
    return {n: signal.signal(n, interrupt) for n in (signal.SIGINT, signal.SIGTERM)}
