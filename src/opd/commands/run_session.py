"""Open a run, work on it, close it: shared by the commands that write a run folder."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass
from threading import Event
from types import FrameType
from typing import TYPE_CHECKING, Any

from opd.config import Run
from opd.run.console import Console, Style

if TYPE_CHECKING:
    from opd.recipes.coldstart import CompletionSource
    from opd.training.session import Session

Work = Callable[["Session", "CompletionSource | None"], dict[str, Any]]


@dataclass(frozen=True)
class RunOptions:
    """How a command treats an existing run folder, and what it prints.

    Attributes:
        resume: continue the run in output.dir.
        overwrite: replace it.
        style: auto, plain, json or quiet.
    """

    resume: bool = False
    overwrite: bool = False
    style: Style = "auto"


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
    handlers = stop_after_step(session.stop, console)
    try:
        result = work(session, completions)
    except KeyboardInterrupt as reason:
        console.close()
        saved = "This step is saved" if reason.args else "Nothing is lost"
        console.print(
            f"Stopped. {saved}: `opd {command} ... --resume` continues {session.folder.path} from "
            "its last checkpoint and reuses the rollouts that are on disk."
        )
        raise
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        console.close()
        session.trackers.close()
        session.folder.close()
        destroy_ranks()
    return console if ranks.is_main else None, result


def stop_after_step(stop: Event, console: Console) -> dict[signal.Signals, Any]:
    """Let Ctrl-C and SIGTERM end the run after the step; a second one ends it at once.

    Returns:
        The handlers that were there before; none off the main thread, which gets no signals.
    """

    def interrupt(number: int, frame: FrameType | None) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()
        console.print("Finishing this step and saving it. Once more stops at once.")

    if threading.current_thread() is not threading.main_thread():
        return {}
    return {n: signal.signal(n, interrupt) for n in (signal.SIGINT, signal.SIGTERM)}
