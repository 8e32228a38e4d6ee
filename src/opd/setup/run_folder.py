"""Whether a run folder may be written, continued or replaced; needs no torch."""

from __future__ import annotations

from pathlib import Path

from opd import config
from opd.config import Run
from opd.errors import UserError
from opd.run.manifest import list_checkpoints
from opd.run.outputs import require_writable_parent
from opd.run.preflight import check_folder, check_name


def require_run_folder(cfg: Run, *, resume: bool, overwrite: bool) -> None:
    """Check that the run folder may be written, before anything is loaded.

    Raises:
        UserError: as `opd.run.folder.RunFolder.create`; nothing to resume.
    """
    folder = Path(cfg.output.dir)
    if not cfg.output.dir.strip():
        raise UserError("output.dir is empty; name a folder for the run.")
    require_flags(resume=resume, overwrite=overwrite)
    done = 0
    try:
        check_name(folder)
        require_writable_parent(folder, "output.dir")
        if cfg.loss.support != "auto" or not resume:  # else it depends on the teacher
            check_folder(folder, config.dump(cfg), resume, overwrite)
        done = max((step for step, _ in list_checkpoints(folder / "checkpoints")), default=0)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"output.dir={str(folder)[:80]!r} cannot be a run folder: {reason}."
        ) from None
    if resume:
        _require_steps_left(cfg, done)


def _require_steps_left(cfg: Run, done: int) -> None:
    if done > cfg.train.steps:
        raise UserError(
            f"train.steps={cfg.train.steps}, but the run in {cfg.output.dir} has a checkpoint of "
            f"step {done}. Set train.steps to {done} or more, or start over with --overwrite."
        )


def require_flags(*, resume: bool, overwrite: bool) -> None:
    """Refuse to continue a run and to start it over at once."""
    if resume and overwrite:
        raise UserError("--resume and --overwrite exclude each other: continue, or start over?")


def require_resumable(cfg: Run) -> None:
    """Refuse `--resume` where no run has begun: a typing error would start a new one.

    A start that was killed before it wrote anything of value has left a folder, and begins again.

    Raises:
        UserError: naming the folder.
    """
    folder = Path(cfg.output.dir)
    if not folder.is_dir() or not any(folder.iterdir()):
        raise UserError(
            f"--resume: there is no run in output.dir={folder} to go on with. Check the name, or "
            "start it without --resume."
        )
