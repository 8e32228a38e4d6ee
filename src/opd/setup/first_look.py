"""What is wrong with a run and shows without torch and transformers: files, folders, names, disk.

Importing those and reading tokenizers takes seconds on a large pair; typing errors need not wait.
What is found here is found again by `opd.setup.preflight`, with what needs them, in one list.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from opd import config
from opd.alarms import rules_of
from opd.config import EvalSet, LocalTeacher, Run, ServerTeacher, Teacher
from opd.config.python_objects import PREFIX, load_object
from opd.data.duplicates import load_questions
from opd.data.graders import grader_for
from opd.data.readers import read_rows
from opd.errors import MissingDependency, UserError
from opd.http import check_url, read_key
from opd.models.model_files import look_at_files
from opd.models.tokenizer_files import have_same_ids
from opd.models.vocabulary import read_vocabulary, require_same_tokens
from opd.run.outputs import require_folders_apart
from opd.run.preflight import require_safe_name
from opd.samplers.replay import read_rollouts
from opd.setup.disk_estimate import require_space_for_weights
from opd.setup.memory_bound import require_memory_for_weights
from opd.setup.problems import Problems
from opd.setup.run_folder import require_run_folder

T = TypeVar("T")
TRACKERS = {"tensorboard": "tensorboard", "wandb": "wandb", "trackio": "trackio"}
QUICK_BYTES = 2**25  # larger files of rows are read once, by what needs them


def look_first(
    cfg: Run,
    *,
    trains: bool = False,
    resume: bool = False,
    overwrite: bool = False,
    judges_pair: bool = False,
) -> list[str]:
    """What is found wrong in about a second; nothing is written.

    Args:
        cfg: the run.
        trains: False for commands that write no run folder.
        resume: continue the run in output.dir.
        overwrite: replace it.
        judges_pair: the command itself judges whether the two fit together.

    Returns:
        Messages, as `opd.setup.preflight.read_inputs` puts them into its list.
    """
    problems = Problems()
    if trains:
        problems.attempt(require_run_folder, cfg, resume=resume, overwrite=overwrite)
    look_at_settings(cfg, problems, trains=trains)
    student = problems.attempt(look_at_files, cfg.student.model, "student.model")
    if student is not None:
        if trains:
            problems.attempt(require_space_for_weights, cfg, student)
        problems.attempt(_require_k_of_config, cfg, student)
    teachers = []
    for name, key in _local_teachers(cfg):
        teacher = problems.attempt(look_at_files, name, key)
        teachers += [] if teacher is None else [teacher]
        if student is not None and teacher is not None and not judges_pair:
            problems.attempt(_require_same_tokens, student, teacher)
    if trains and student is not None:
        problems.attempt(require_memory_for_weights, cfg, student, teachers)
    _look_at_rows(cfg, problems)
    return problems.messages


def look_at_settings(cfg: Run, problems: Problems, *, trains: bool) -> None:
    """Names, folders, packages and files that need no tokenizer."""
    problems.attempt(require_folders_apart, config.dump(cfg))
    if trains:
        for tracker in cfg.output.trackers:
            problems.attempt(_require_tracker, tracker)
        problems.attempt(rules_of, cfg.alarms)
    if cfg.rollout.python is not None:
        problems.attempt(
            load_object, cfg.rollout.python, key="rollout.python", group="opd.samplers"
        )
    for i, spec in enumerate(cfg.eval):
        problems.attempt(require_safe_name, spec.label, "held-out set", f"eval.{i}.name")
    if isinstance(cfg.teacher, ServerTeacher) and not is_offline(cfg):
        if cfg.teacher.url is not None:  # else its server is started by opd
            problems.attempt(check_url, cfg.teacher.url, "teacher.url")
        problems.attempt(read_key, cfg.teacher.api_key_env, "teacher.api_key_env")
    if cfg.rollout.path is not None:
        problems.attempt(read_rollouts, Path(cfg.rollout.path))
    for key, path in _row_files(cfg):
        problems.attempt(_named, key, read_rows, path)
    if cfg.teacher is not None and is_offline(cfg):
        problems.attempt(_require_cache, cfg)


def _require_tracker(name: str) -> None:
    """Refuse a tracker that cannot be imported."""
    if name.startswith(PREFIX):
        load_object(name.removeprefix(PREFIX), key="output.trackers", group="opd.trackers")
    else:
        require_package(name)


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


def _local_teachers(cfg: Run) -> list[tuple[str, str]]:
    """Name and key of each teacher whose model is loaded in this process."""
    each: dict[str, Teacher | None]
    if cfg.teachers:
        each = {f"teachers.{name}.model": teacher for name, teacher in cfg.teachers.items()}
    else:
        each = {} if is_offline(cfg) else {"teacher.model": cfg.teacher}
    return [(spec.model, key) for key, spec in each.items() if isinstance(spec, LocalTeacher)]


def _look_at_rows(cfg: Run, problems: Problems) -> None:
    """Prompts and held-out sets: columns, rows, answers, graders."""
    source = cfg.prompts.source
    if all(map(_is_quick, [source] if isinstance(source, str) else source)):
        problems.attempt(load_questions, source)
    for i, spec in enumerate(cfg.eval):
        if _is_quick(spec.path):
            problems.attempt(_look_at_eval, i, spec)


def _look_at_eval(index: int, spec: EvalSet) -> None:
    questions = load_questions(spec.path)[: spec.limit]
    required_by = f"eval.{index}.path={spec.path}"
    grader_for(questions, spec.grader, required_by=required_by, remedy="drop the set")


def _is_quick(path: str) -> bool:
    """Whether rows are read at once: no data set of the hub, no large file."""
    if path.startswith("hub:"):
        return False
    try:
        return Path(path).expanduser().stat().st_size <= QUICK_BYTES
    except (OSError, ValueError):
        return True  # reading says what is wrong


def _require_k_of_config(cfg: Run, folder: Path) -> None:
    data = json.loads((folder / "config.json").read_text("utf-8"))
    text = data.get("text_config")
    vocab = (text if isinstance(text, dict) else data).get("vocab_size")
    if isinstance(vocab, int):
        require_k(cfg, vocab)


def _require_same_tokens(student: Path, teacher: Path) -> None:
    if not have_same_ids(str(student), str(teacher)):
        require_same_tokens(read_vocabulary(student), read_vocabulary(teacher))


def _row_files(cfg: Run) -> Sequence[tuple[str, str]]:
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
