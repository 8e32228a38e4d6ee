"""Student and teacher of a configuration, opened the same way by every command.

The order matters: a server says what it can score before the loss is settled, and the loss is
settled before anything is loaded.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from opd.config import LocalTeacher as LocalTeacherSection
from opd.config import Run
from opd.core.objective import Objective
from opd.data.prompts import PromptSet
from opd.models.lm import LM
from opd.run.clock import Clock
from opd.run.console import Console
from opd.samplers.hf import Decoding, HFSampler
from opd.setup.memory_plan import auto_tokens
from opd.setup.objective import make_objective, resolve_support
from opd.setup.pair import Pair, load_pair
from opd.setup.remote_teacher import ServedTeacher, TeacherSource, find_remote_teacher
from opd.teachers.local import LocalTeacher
from opd.types import Kind, Sampler, Teacher


@dataclass(frozen=True)
class Models:
    """Student and teacher, with the loss that this teacher can serve.

    Attributes:
        cfg: the configuration, its loss.support resolved.
        objective: of its loss section.
        pair: student and, if it is in this process, teacher.
        remote: the teacher if it is not in this process.
    """

    cfg: Run
    objective: Objective
    pair: Pair
    remote: TeacherSource | None

    def handshake(self, prompts: PromptSet) -> None:
        """Probe a remote teacher for this run; nothing to do for one in this process.

        Raises:
            UserError: a loss it cannot serve, or every probe that failed, with its fix.
        """
        if self.remote is not None:
            pair = self.pair
            self.remote.handshake(
                self.cfg, self.objective, pair.student.vocab, pair.tokenizer, prompts
            )

    def teacher(self, folder: Path, console: Console, clock: Clock) -> Teacher | None:
        """The teacher of the run, after its handshake; None without one.

        Args:
            folder: where a server's identity is recorded.
            console: shows when a server goes away and comes back.
            clock: takes numbers of a server's requests.
        """
        if self.remote is None:
            return local_teacher(self.cfg, self.pair)
        vocab = self.pair.student.vocab
        return self.remote.teacher(self.cfg, vocab, folder, console, clock)

    def teacher_sampler(self, decoding: Decoding) -> Sampler | None:
        """A sampler of the teacher's own completions; None without a teacher that can generate."""
        pair = self.pair
        if pair.teacher is not None:
            return HFSampler(pair.teacher, decoding, stop=pair.teacher_stop, capture=1)
        if not isinstance(self.remote, ServedTeacher) or not self.remote.generates:
            return None
        return self.remote.sampler(pair.student, pair.tokenizer, decoding, pair.stop)


def open_models(
    cfg: Run, console: Console, *, student: LM | None = None, local: str | None = None
) -> Models:
    """Contact the teacher, settle the loss, load the models.

    Args:
        cfg: the configuration.
        console: shows what loss.support: auto became.
        student: of an earlier call, adapters and all, to be used again.
        local: folder of the model a teacher server serves, loaded beside it.

    Raises:
        UserError: a server that does not answer, a loss that makes no sense, a model or tokenizer
            that cannot be read, vocabularies or end tokens that differ.
    """
    remote = find_remote_teacher(cfg)
    cfg = resolve_support(cfg, remote.kinds if remote else frozenset(Kind), console)
    objective = make_objective(cfg)
    if remote is not None and local is not None:
        beside = cfg.model_copy(update={"teacher": LocalTeacherSection(model=local)})
        return Models(cfg, objective, load_pair(beside, student=student), remote)
    return Models(cfg, objective, load_pair(cfg, remote, student), remote)


def local_teacher(cfg: Run, pair: Pair) -> LocalTeacher | None:
    """The teacher in this process, if the run has one."""
    if pair.teacher is None:
        return None
    return LocalTeacher(
        pair.teacher,
        tokens_per_batch=token_budget(cfg),
        temperature=cfg.loss.teacher_temperature,
    )


def teacher_logits(teacher: LM) -> Callable[[torch.Tensor], torch.Tensor]:
    """The teacher's head as a function of hidden states that may be on another device."""
    head = teacher.head
    return lambda hidden: head.logits(hidden.to(teacher.device)).to(hidden.device)


def token_budget(cfg: Run) -> int:
    """Padded tokens per forward-backward."""
    size = cfg.train.tokens_per_microbatch
    return auto_tokens(cfg) if size == "auto" else size
