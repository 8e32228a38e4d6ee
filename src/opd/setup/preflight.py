"""Everything that can be wrong with a run and is known before weights are loaded, all at once.

Configurations, tokenizers and files are read, no weights: seconds, on the largest pair. Whatever is
found wrong is in one message, and nothing has been written.
"""

from __future__ import annotations

import importlib.util
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from opd import config
from opd.config import LocalTeacher, Run
from opd.data.prompts import PromptSet
from opd.data.readers import read_rows
from opd.data.teacher_prompts import TeacherPrompts
from opd.errors import MissingDependency, UserError
from opd.models import tokenizers
from opd.models.lm import resolve_device
from opd.models.model_files import ModelFacts, read_facts
from opd.models.tokenizer_files import have_same_files
from opd.run.console import Console
from opd.run.layout import INPUTS
from opd.run.manifest import list_checkpoints
from opd.run.outputs import require_folders_apart, require_writable_parent
from opd.run.preflight import check_folder, check_name, require_safe_name
from opd.samplers.replay import read_rollouts
from opd.setup.chat_template import choose_template
from opd.setup.coldstart_source import given_completions
from opd.setup.notes import Overlap, find_notes, find_overlaps
from opd.setup.objective import make_objective
from opd.setup.prompts import (
    load_eval_task,
    load_sft_examples,
    load_teacher_prompts,
    load_training_prompts,
    training_grader,
)
from opd.setup.samplers import require_rollout_server
from opd.training.evaluate import EvalTask

log = logging.getLogger(__name__)

T = TypeVar("T")
TRACKERS = {"tensorboard": "tensorboard", "wandb": "wandb", "trackio": "trackio"}


class Problems:
    """What is wrong, collected: one message at the end."""

    def __init__(self) -> None:
        self.messages: list[str] = []

    def attempt(self, check: Callable[..., T], *args: Any, **kwargs: Any) -> T | None:
        """The result of a check, or None after noting what it found wrong."""
        try:
            return check(*args, **kwargs)
        except UserError as error:
            if str(error) not in self.messages:
                self.messages.append(str(error))
            return None

    def raise_all(self) -> None:
        """Raise UserError if there are any."""
        if len(self.messages) == 1:
            raise UserError(self.messages[0])
        if self.messages:
            listed = "\n".join(f"{i}. {m}" for i, m in enumerate(self.messages, 1))
            raise UserError(f"{len(self.messages)} things are wrong:\n{listed}")


@dataclass(frozen=True)
class TokenizedPair:
    """Tokenizer and sizes of a pair whose weights are not loaded.

    Attributes:
        tokenizer: the student's.
        student: of its configuration.
        teacher: of its configuration; None without one in this process.
        templates: chat templates of the two, as they came.
    """

    tokenizer: Any
    student: ModelFacts
    teacher: ModelFacts | None
    templates: tuple[Any, Any]

    def models(self) -> dict[str, ModelFacts]:
        """The models by the key that names them."""
        both = {"student.model": self.student, "teacher.model": self.teacher}
        return {key: facts for key, facts in both.items() if facts is not None}


@dataclass
class Inputs:
    """What a run reads beside weights.

    Attributes:
        prompts: of training.
        evals: held-out sets.
        overlaps: held-out sets that share questions with the training prompts.
        notes: to be said, nothing to be refused.
        models: identity of student and teacher.
        teacher_prompts: what the teacher sees, where that is not the student's prompt.
    """

    prompts: PromptSet | None = None
    evals: list[EvalTask] = field(default_factory=list)
    overlaps: list[Overlap] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    models: dict[str, str] = field(default_factory=dict)
    teacher_prompts: TeacherPrompts | None = None

    def record(self) -> dict[str, Any]:
        """Plain values for `inputs.json`."""
        assert self.prompts is not None
        seen = self.teacher_prompts
        return {
            "hashes": {
                "prompts": self.prompts.digest,
                **({} if seen is None else {"teacher.prompt": seen.digest}),
                **{f"eval {task.label}": task.prompts.digest for task in self.evals},
                **self.models,
            },
            "overlaps": [overlap.record() for overlap in self.overlaps],
            "notes": self.notes,
        }


def read_inputs(
    cfg: Run, console: Console, *, trains: bool = True, judges_pair: bool = False
) -> Inputs:
    """Read and check all that a run reads beside weights.

    Args:
        cfg: the run.
        console: shows how many prompts are too long.
        trains: False for commands that write no run folder.
        judges_pair: the command itself judges whether the two fit together.

    Raises:
        UserError: with everything that is wrong.
    """
    problems, inputs = Problems(), Inputs()
    problems.attempt(require_folders_apart, config.dump(cfg))
    if trains:
        for tracker in cfg.output.trackers:
            problems.attempt(require_package, tracker)
    for i, spec in enumerate(cfg.eval):
        problems.attempt(require_safe_name, spec.label, "held-out set", f"eval.{i}.name")
    pair = read_pair(cfg, problems, judges_pair=judges_pair)
    if cfg.loss.support != "auto":
        problems.attempt(make_objective, cfg)
    _read_files(cfg, problems)
    if pair is None:
        for path in (cfg.prompts.path, *(e.path for e in cfg.eval)):
            problems.attempt(read_rows, path)
    else:
        _read_prompts(cfg, pair, problems, inputs, console)
    problems.raise_all()
    assert pair is not None
    assert inputs.prompts is not None
    inputs.models = {r: f.identity for r, f in pair.models().items()}
    inputs.overlaps = find_overlaps(cfg, [p.index for p in inputs.prompts.prompts])
    inputs.notes = find_notes(cfg, inputs.prompts, pair.templates)
    for note in (*map(str, inputs.overlaps), *inputs.notes):
        log.warning(note)
    return inputs


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


def require_same_inputs(cfg: Run, inputs: Inputs) -> None:
    """Refuse to resume a run whose prompts or models have changed since it began.

    Raises:
        UserError: naming what changed.
    """
    path = Path(cfg.output.dir) / INPUTS
    try:
        before = json.loads(path.read_bytes())["hashes"]
    except FileNotFoundError:
        return  # a run of an earlier version
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"{path} is damaged. Remove it to resume without comparing.") from None
    now = inputs.record()["hashes"]
    changed = [k for k in now if k in before and before[k] != now[k]]
    if changed:
        raise UserError(
            f"Since the run in {cfg.output.dir} began, this has changed: {', '.join(changed)}. "
            "Going on would mix two runs. Put the old files back, or start a new run (another "
            "output.dir)."
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


def read_pair(cfg: Run, problems: Problems, *, judges_pair: bool = False) -> TokenizedPair | None:
    """Tokenizers and configurations of the pair; None if the student's cannot be read."""
    student = problems.attempt(read_facts, cfg.student.model, "student.model")
    tokenizer = None
    if student is not None:
        tokenizer = problems.attempt(
            tokenizers.load_tokenizer, cfg.student.model, key="student.model"
        )
    teacher, teacher_tok = None, None
    if isinstance(cfg.teacher, LocalTeacher) and not is_offline(cfg):
        problems.attempt(resolve_device, cfg.teacher.device, "teacher.device")
        teacher = problems.attempt(read_facts, cfg.teacher.model, "teacher.model")
        same = teacher is not None and tokenizer is not None
        same = same and have_same_files(cfg.student.model, cfg.teacher.model)
        if same:
            teacher_tok = tokenizer
        elif teacher is not None:
            teacher_tok = problems.attempt(
                tokenizers.load_tokenizer, cfg.teacher.model, key="teacher.model"
            )
    others = {"loss.terms.reference": cfg.loss.terms.reference, "check.origin": cfg.check.origin}
    for key, name in others.items():
        if name is not None:
            problems.attempt(read_facts, name, key)
    if student is None or tokenizer is None:
        return None
    templates = [t and t.chat_template for t in (tokenizer, teacher_tok)]
    if not judges_pair:
        problems.attempt(choose_template, cfg, tokenizer, teacher_tok)
    ends = problems.attempt(_end_tokens, tokenizer, student, "student.model")
    if teacher is not None and teacher_tok is not None and not judges_pair:
        teacher_ends = problems.attempt(_end_tokens, teacher_tok, teacher, "teacher.model")
        if teacher_tok is not tokenizer:
            problems.attempt(
                tokenizers.require_same,
                tokenizer,
                teacher_tok,
                student_vocab=student.vocab,
                teacher_vocab=teacher.vocab,
            )
        if ends is not None and teacher_ends is not None:
            problems.attempt(
                tokenizers.resolve_stop, tokenizer, ends, teacher_ends, cfg.rollout.stop
            )
    problems.attempt(require_k, cfg, tokenizers.vocab_size(tokenizer))
    return TokenizedPair(tokenizer, student, teacher, (templates[0], templates[1]))


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


def _end_tokens(tokenizer: Any, facts: ModelFacts, key: str) -> frozenset[int]:
    try:
        return tokenizers.eos_ids(tokenizer, facts.end_tokens)
    except UserError as error:
        raise UserError(f"{key}={facts.name}: {error}") from None


def _read_files(cfg: Run, problems: Problems) -> None:
    """Files that need no tokenizer."""
    if cfg.rollout.url is not None:
        problems.attempt(require_rollout_server, cfg)
    if cfg.rollout.path is not None:
        problems.attempt(read_rollouts, Path(cfg.rollout.path))
    for key, path in _row_files(cfg):
        problems.attempt(_named, key, read_rows, path)
    if cfg.teacher is not None and is_offline(cfg):
        problems.attempt(_require_cache, cfg)


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


def _read_prompts(
    cfg: Run, pair: TokenizedPair, problems: Problems, inputs: Inputs, console: Console
) -> None:
    inputs.prompts = problems.attempt(load_training_prompts, cfg, pair, console)
    for i, spec in enumerate(cfg.eval):
        task = problems.attempt(load_eval_task, cfg, spec, i, pair)
        if task is not None:
            inputs.evals.append(task)
    if inputs.prompts is not None:
        problems.attempt(training_grader, cfg, inputs.prompts)
        inputs.teacher_prompts = problems.attempt(load_teacher_prompts, cfg, pair, inputs.prompts)
    if cfg.loss.terms.sft_path is not None:
        problems.attempt(load_sft_examples, cfg, pair)
    if cfg.coldstart is not None and cfg.coldstart.path is not None:
        problems.attempt(given_completions, cfg, pair.tokenizer, cfg.coldstart)
