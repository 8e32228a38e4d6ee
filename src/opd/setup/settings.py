"""Names, folders, packages and files of a run that need neither its models nor a tokenizer."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from opd import config
from opd.alarms import rules_of
from opd.config import LocalTeacher, Run, ServerTeacher
from opd.config.python_objects import PREFIX, load_object
from opd.data.readers import read_rows
from opd.errors import MissingDependency, UserError
from opd.http import check_url, read_key
from opd.run.devices import may_have_gpu
from opd.run.outputs import require_folders_apart
from opd.run.preflight import require_safe_name
from opd.samplers.replay import read_rollouts
from opd.setup.problems import Problems

T = TypeVar("T")
TRACKERS = {"tensorboard": "tensorboard", "wandb": "wandb", "trackio": "trackio"}


def look_at_settings(cfg: Run, problems: Problems, *, trains: bool) -> None:
    """Names, folders, packages and files that need no tokenizer."""
    problems.attempt(require_folders_apart, config.dump(cfg))
    if trains:
        for tracker in cfg.output.trackers:
            problems.attempt(_require_tracker, tracker)
        problems.attempt(rules_of, cfg.alarms)
        if cfg.student.precision != "auto":
            problems.attempt(require_masters, cfg, cfg.student.precision)
        elif not may_have_gpu():
            problems.attempt(require_masters, cfg, "float32")
    if cfg.rollout.python is not None:
        problems.attempt(
            load_object, cfg.rollout.python, key="rollout.python", group="opd.samplers"
        )
    for i, spec in enumerate(cfg.eval):
        problems.attempt(require_safe_name, spec.label, "held-out set", f"eval.{i}.name")
    if cfg.rollout.url is not None:
        problems.attempt(check_url, cfg.rollout.url, "rollout.url")
    if isinstance(cfg.teacher, ServerTeacher) and not is_offline(cfg):
        if cfg.teacher.url is not None:  # else its server is started by opd
            problems.attempt(check_url, cfg.teacher.url, "teacher.url")
        problems.attempt(read_key, cfg.teacher.api_key_env, "teacher.api_key_env")
    if isinstance(cfg.teacher, LocalTeacher) and not may_have_gpu():
        problems.attempt(require_elsewhere, cfg.teacher, "cpu")
    if cfg.rollout.path is not None:
        problems.attempt(read_rollouts, Path(cfg.rollout.path))
    for key, path in row_files(cfg):
        problems.attempt(_named, key, read_rows, path)
    if cfg.teacher is not None and is_offline(cfg):
        problems.attempt(_require_cache, cfg)


def require_masters(cfg: Run, precision: str, *, processes: int = 1) -> None:
    """Refuse optim.offload=cpu where there are no master weights to move.

    Args:
        cfg: a run that trains.
        precision: student.precision, resolved.
        processes: that train together.

    Raises:
        UserError: naming why there are none.
    """
    if cfg.optim.offload == "none":
        return
    why = None
    if processes > 1 and cfg.student.shard == "fsdp2":
        why = f"student.shard=fsdp2 of {processes} processes, which shards master weights instead"
    elif precision != "bf16_mixed":
        why = (
            f"student.precision={cfg.student.precision}, which is {precision} on this machine "
            "(no GPU that computes in bf16)"
        )
    if why is not None:
        raise UserError(
            f"optim.offload=cpu changes nothing with {why}. Set optim.offload=none, or "
            "student.precision=bf16_mixed in one process."
        )


def require_elsewhere(spec: LocalTeacher, device: str) -> None:
    """Refuse teacher.offload=cpu for a teacher that is on the CPU.

    Args:
        spec: the teacher.
        device: kind of the one it computes on.

    Raises:
        UserError: it has nowhere to go.
    """
    if spec.offload == "cpu" and device == "cpu":
        raise UserError(
            "teacher.offload=cpu moves the teacher's weights to host memory, where they are: this "
            "run has no GPU. Set teacher.offload=disk, or teacher.dtype=int8."
        )


def is_offline(cfg: Run) -> bool:
    """Whether the teacher's scores come from a cache alone."""
    teacher = cfg.teacher
    return teacher is not None and teacher.cache is not None and teacher.cache.offline


def require_k(cfg: Run, vocab: int) -> None:
    """Refuse a support of more tokens than there are."""
    if cfg.loss.support not in ("full", "sampled") and cfg.loss.k > vocab:
        raise UserError(
            f"loss.k={cfg.loss.k} is more than the {vocab} tokens of the vocabulary. Lower it, or "
            "use loss.support=full."
        )


def require_package(tracker: str) -> None:
    """Check that the package of a tracker is installed.

    Raises:
        MissingDependency: it is not.
    """
    if importlib.util.find_spec(TRACKERS[tracker]) is None:
        raise MissingDependency(
            TRACKERS[tracker], needed_for=f"output.trackers=[{tracker}]", extra=tracker
        )


def _require_tracker(name: str) -> None:
    """Refuse a tracker that cannot be imported."""
    if name.startswith(PREFIX):
        load_object(name.removeprefix(PREFIX), key="output.trackers", group="opd.trackers")
    else:
        require_package(name)


def row_files(cfg: Run) -> Sequence[tuple[str, str]]:
    """Key and path of further files of rows."""
    files = [("loss.terms.sft_path", cfg.loss.terms.sft_path)]
    if cfg.coldstart is not None:
        files.append(("coldstart.prompts", cfg.coldstart.prompts))
        if cfg.coldstart.path is not None and not Path(cfg.coldstart.path).exists():
            files.append(("coldstart.path", cfg.coldstart.path))
    return [(key, path) for key, path in files if path is not None]


def _named(key: str, read: Callable[[str], T], path: str) -> T:
    try:
        return read(path)
    except UserError as error:
        raise UserError(f"{key}: {error}") from None


def _require_cache(cfg: Run) -> None:
    assert cfg.teacher is not None
    assert cfg.teacher.cache is not None
    folder = Path(cfg.teacher.cache.dir)
    if not folder.is_dir() or not any(folder.iterdir()):
        raise UserError(
            f"teacher.cache.offline=true, but teacher.cache.dir={folder} holds no scores. Make "
            "them with `opd serve-teacher run.yaml --score ROLLOUTS`, or set "
            "teacher.cache.offline=false."
        )
