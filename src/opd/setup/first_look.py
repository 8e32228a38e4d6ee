"""What is wrong with a run and shows without torch and transformers: nearly everything.

Importing those takes seconds, which mistakes need not wait for. The checks are those of
`opd.setup.preflight`, on configurations, tokenizers and chat templates as their files show them.
What takes transformers, a GPU or a server to know is found by `preflight`, with the rest, in one
list.
"""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from opd.config import EvalSet, LocalTeacher, Run, Teacher
from opd.data.duplicates import load_questions
from opd.data.graders import grader_for
from opd.data.readers import paths_of
from opd.models.device_names import require_device
from opd.models.file_facts import read_file_facts
from opd.models.file_tokenizer import NotInFiles, read_file_tokenizer
from opd.models.model_files import look_at_files
from opd.models.tokenizer_files import have_same_ids
from opd.models.vocabulary import read_vocabulary, require_same_tokens
from opd.run.console import Console
from opd.run.devices import may_have_gpu
from opd.setup.disk_estimate import require_space_for_weights
from opd.setup.inputs import check_inputs
from opd.setup.memory_bound import is_memory_known, require_memory_for_weights
from opd.setup.objective import loss_settings
from opd.setup.problems import Problems
from opd.setup.run_folder import require_run_folder
from opd.setup.settings import is_offline, look_at_settings, require_k, row_files
from opd.setup.tokenized_pair import Readers, read_pair

QUICK_BYTES = 2**25  # larger files of rows are read once, by what needs them
TOKENIZED_BYTES = 2**20  # of rows: half a second


class FirstLook(NamedTuple):
    """What is wrong with a run, as far as files say.

    Attributes:
        messages: as `opd.setup.preflight.read_inputs` puts them into its list.
        complete: whether `read_inputs` would find no more.
        warnings: what is not wrong and would be said.
    """

    messages: list[str]
    complete: bool
    warnings: list[str]


def _device(device: str | None, key: str) -> None:
    if device is not None and not may_have_gpu():
        require_device(device, key, gpus=0)


FROM_FILES = Readers(read_file_facts, read_file_tokenizer, _device)


def look_first(
    cfg: Run,
    *,
    trains: bool = False,
    resume: bool = False,
    overwrite: bool = False,
    judges_pair: bool = False,
) -> FirstLook:
    """What is found wrong in about a second; nothing is written.

    Args:
        cfg: the run.
        trains: False for commands that write no run folder.
        resume: continue the run in output.dir.
        overwrite: replace it.
        judges_pair: the command itself judges whether the two fit together.
    """
    problems = Problems()
    if trains:
        problems.attempt(require_run_folder, cfg, resume=resume, overwrite=overwrite)
    look_at_settings(cfg, problems, trains=trains)
    with _kept_warnings() as warnings:  # where the command goes on, it says them
        complete = _look_at_inputs(cfg, problems, judges_pair=judges_pair)
    student = problems.attempt(look_at_files, cfg.student.model, "student.model")
    if trains and student is not None:
        folders = [Problems().attempt(look_at_files, *each) for each in _local_teachers(cfg)]
        teachers = [folder for folder in folders if folder is not None]
        problems.attempt(require_space_for_weights, cfg, student)
        problems.attempt(require_memory_for_weights, cfg, student, teachers)
        complete = complete and is_memory_known(cfg, student, teachers)
    elsewhere = cfg.rollout.url is not None or cfg.recipe is not None
    alone = int(os.environ.get("WORLD_SIZE", "1")) == 1
    return FirstLook(problems.messages, complete and alone and not elsewhere, warnings)


def _look_at_inputs(cfg: Run, problems: Problems, *, judges_pair: bool) -> bool:
    """The pair and its prompts; False where files do not say all."""
    try:
        if _rows_within(cfg, TOKENIZED_BYTES):
            quiet = Console("quiet")
            pair, _ = check_inputs(
                cfg, quiet, problems, judges_pair=judges_pair, readers=FROM_FILES
            )
            if pair is None:
                _look_at_rows(cfg, problems)
            return True
        read_pair(cfg, problems, judges_pair=judges_pair, readers=FROM_FILES)
    except NotInFiles:
        _compare_files(cfg, problems, judges_pair=judges_pair)
    if cfg.loss.support != "auto":
        problems.attempt(loss_settings, cfg)
    _look_at_rows(cfg, problems)
    return False


def _compare_files(cfg: Run, problems: Problems, *, judges_pair: bool) -> None:
    """What the files of models say that are not known otherwise."""
    student = problems.attempt(look_at_files, cfg.student.model, "student.model")
    if student is not None:
        problems.attempt(_require_k_of_config, cfg, student)
    for name, key in _local_teachers(cfg):
        teacher = problems.attempt(look_at_files, name, key)
        if student is not None and teacher is not None and not judges_pair:
            problems.attempt(_require_same_tokens, student, teacher)


@contextmanager
def _kept_warnings() -> Iterator[list[str]]:
    """Warnings of the package are not printed: they are in this list."""
    logger, kept = logging.getLogger("opd"), _Kept()
    propagates = logger.propagate
    logger.addHandler(kept)
    logger.propagate = False
    try:
        yield kept.warnings
    finally:
        logger.propagate = propagates
        logger.removeHandler(kept)


class _Kept(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.warnings: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.warnings.append(record.getMessage())


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
    if all(_size(path) <= QUICK_BYTES for path in paths_of(source)):
        problems.attempt(load_questions, source)
    for i, spec in enumerate(cfg.eval):
        if _size(spec.path) <= QUICK_BYTES:
            problems.attempt(_look_at_eval, i, spec)


def _look_at_eval(index: int, spec: EvalSet) -> None:
    questions = load_questions(spec.path)[: spec.limit]
    required_by = f"eval.{index}.path={spec.path}"
    grader_for(questions, spec.grader, required_by=required_by, remedy="drop the set")


def _rows_within(cfg: Run, limit: int) -> bool:
    """Whether all files of rows together have so many bytes at most."""
    files = [*paths_of(cfg.prompts.source), *(spec.path for spec in cfg.eval)]
    files += [path for _, path in row_files(cfg)]
    return sum(map(_size, files)) <= limit


def _size(path: str) -> float:
    """Bytes of a file of rows; infinite for a data set of the hub, 0 where reading says more."""
    if path.startswith("hub:"):
        return math.inf
    try:
        return Path(path).expanduser().stat().st_size
    except (OSError, ValueError):
        return 0


def _require_k_of_config(cfg: Run, folder: Path) -> None:
    data = json.loads((folder / "config.json").read_text("utf-8"))
    text = data.get("text_config")
    vocab = (text if isinstance(text, dict) else data).get("vocab_size")
    if isinstance(vocab, int):
        require_k(cfg, vocab)


def _require_same_tokens(student: Path, teacher: Path) -> None:
    if not have_same_ids(str(student), str(teacher)):
        require_same_tokens(read_vocabulary(student), read_vocabulary(teacher))
