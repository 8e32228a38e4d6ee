"""Student and teacher of a configuration, opened the same way by every command.

The order matters: a server says what it can score before the loss is settled, and the loss is
settled before anything is loaded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from opd.config import LocalTeacher as LocalTeacherSection
from opd.config import Run
from opd.core.objective import Objective
from opd.data.prompts import PromptSet
from opd.data.teacher_prompts import TeacherPrompts
from opd.models.lm import LM
from opd.models.self_weights import SelfWeights
from opd.models.tokenizers import vocab_size
from opd.run.clock import Clock
from opd.run.console import Console
from opd.samplers.sampling import MakeSampler
from opd.setup.foreign import translated
from opd.setup.joined_teachers import join_logits, join_teachers
from opd.setup.objective import make_objective, resolve_support
from opd.setup.own_tokenizer import own_tokenizer
from opd.setup.pair import Pair, load_pair
from opd.setup.prompts import load_teacher_prompts
from opd.setup.remote_teacher import ServedTeacher, TeacherSource, find_remote_teacher
from opd.setup.routing import naming, prompts_of, require_mixable, same_for_all
from opd.setup.samplers import eval_sampler, local_samplers, routed_eval_sampler
from opd.setup.self_teacher import make_self_weights
from opd.setup.token_budget import token_budget
from opd.teachers.local import LocalTeacher
from opd.teachers.prompted import PromptedTeacher, StudentAsTeacher
from opd.teachers.routed import LogitsOf
from opd.training.deterministic import prepare_deterministic
from opd.training.distributed import SINGLE, Ranks
from opd.training.eval_task import EvalTask
from opd.types import Kind, Sampler, Teacher


@dataclass(frozen=True)
class Models:
    """Student and teacher, with the loss that this teacher can serve.

    Attributes:
        cfg: the configuration, its loss.support resolved.
        objective: of its loss section.
        pair: student and, if it is in this process, teacher.
        remote: the teacher if it is not in this process.
        teacher_prompts: what the teacher sees, where that is not the student's prompt.
        own: the weights of a teacher that is the student itself.
        members: the same for each of several teachers, by name; their student is one.
        prompts: of the run, with their routes to the members.
    """

    cfg: Run
    objective: Objective
    pair: Pair
    remote: TeacherSource | None
    teacher_prompts: TeacherPrompts | None = None
    own: SelfWeights | None = None
    members: Mapping[str, Models] = field(default_factory=dict)
    prompts: PromptSet | None = None

    def for_prompts(self, prompts: PromptSet) -> Models:
        """The same for a run on these prompts: its teacher may have prompts of its own.

        Raises:
            UserError: a prompt of the teacher's that cannot be made, or is too long.
        """
        if self.members:
            require_mixable(prompts, self.objective, _prunes(self.cfg))
            members = {}
            for name, member in self.members.items():
                with naming(name):
                    members[name] = member.for_prompts(prompts_of(prompts, name))
            return replace(self, members=members, prompts=prompts)
        seen = load_teacher_prompts(self.cfg, self.pair, prompts)
        return self if seen is None else replace(self, teacher_prompts=seen)

    def with_own_weights(self) -> Models:
        """The same with the weights of a teacher that is the student, as it is now."""
        members = {name: member.with_own_weights() for name, member in self.members.items()}
        owns = [m.own for m in members.values() if m.own is not None]
        averaged = [own for own in owns if own.average]
        own = make_self_weights(self.cfg, self.pair) if not members else None
        return replace(self, own=averaged[0] if averaged else own, members=members)

    def handshake(self, prompts: PromptSet) -> None:
        """Probe a remote teacher for this run; nothing to do for one in this process.

        Raises:
            UserError: a loss it cannot serve, or every probe that failed, with its fix.
        """
        for name, member in self.members.items():
            with naming(name):
                member.handshake(prompts_of(prompts, name))
        if self.remote is not None:
            if self.teacher_prompts is not None:
                prompts = self.teacher_prompts.of_set(prompts)
            vocab, tokenizer = self._vocabulary()
            self.remote.handshake(self.cfg, self.objective, vocab, tokenizer, prompts)

    def _vocabulary(self) -> tuple[int, Any]:
        """Size and tokenizer of what the teacher is asked about."""
        own = own_tokenizer(self.cfg)
        if own is not None:
            return vocab_size(own), own
        return self.pair.student.vocab, self.pair.tokenizer

    def teacher(self, folder: Path, console: Console, clock: Clock) -> Teacher | None:
        """The teacher of the run, after its handshake; None without one.

        Args:
            folder: where a server's identity is recorded.
            console: shows when a server goes away and comes back.
            clock: takes numbers of a server's requests.
        """
        teacher: Teacher | None
        if self.members:
            return self._joined_teachers(folder, console, clock)
        if self.remote is not None:
            vocab, _ = self._vocabulary()
            teacher = self.remote.teacher(self.cfg, vocab, folder, console, clock)
        else:
            teacher = self._teacher_here()
        if isinstance(teacher, LocalTeacher):
            teacher.record = clock.note
        if teacher is None or self.teacher_prompts is None:
            return teacher
        own, pair = own_tokenizer(self.cfg), self.pair
        if own is not None:
            seen = self.teacher_prompts
            return translated(teacher, pair.student, pair.tokenizer, own, seen, pair.stop)
        return PromptedTeacher(teacher, self.teacher_prompts)

    def _joined_teachers(self, folder: Path, console: Console, clock: Clock) -> Teacher:
        assert self.prompts is not None, "for_prompts first"
        teachers = {}
        for name, member in self.members.items():
            if isinstance(member.remote, ServedTeacher):
                member.remote.record_file = f"teacher-{name}.json"
            with naming(name):
                teacher = member.teacher(folder, console, clock)
            assert teacher is not None
            teachers[name] = teacher
        served = all(member.remote is not None for member in self.members.values())
        return join_teachers(teachers, self.prompts, self.objective, parallel=served)

    @property
    def routed_logits(self) -> dict[str, LogitsOf | None]:
        """Hidden states to logits for every route of several teachers; empty for one."""
        if not self.members or self.prompts is None:
            return {}
        heads = {name: (m.model, m.teacher_logits) for name, m in self.members.items()}
        return join_logits(heads, self.prompts)

    @property
    def model(self) -> LM | None:
        """The teacher's model; None for one not in this process."""
        return self.pair.teacher if self.own is None else self.own.lm

    def _teacher_here(self) -> LocalTeacher | None:
        own = self.own or make_self_weights(self.cfg, self.pair)
        if own is None:
            return local_teacher(self.cfg, self.pair)
        size, temperature = token_budget(self.cfg), self.cfg.loss.teacher_temperature
        return StudentAsTeacher(own, tokens_per_batch=size, temperature=temperature)

    @property
    def teacher_logits(self) -> Callable[[torch.Tensor], torch.Tensor] | None:
        """The teacher's head as a function of hidden states; None for one not in this process."""
        own = self.own
        if own is not None:
            return lambda hidden: own.head.logits(hidden)
        return None if self.pair.teacher is None else teacher_logits(self.pair.teacher)

    def teacher_samplers(self, ranks: Ranks = SINGLE) -> MakeSampler | None:
        """What generates with the teacher; None without a teacher that can.

        Args:
            ranks: the processes that share the work.
        """
        if self.cfg.compares_text:  # it does not know the student's tokens
            return None
        return teacher_samplers(self.pair, self.remote, ranks)

    def teacher_eval_sampler(
        self, ranks: Ranks = SINGLE
    ) -> Callable[[EvalTask], Sampler | None] | None:
        """What answers held-out prompts as the teacher; None where nothing can.

        Args:
            ranks: the processes that share the work.
        """
        if self.members:
            made = {name: m.teacher_samplers(ranks) for name, m in self.members.items()}
            return routed_eval_sampler({name: make for name, make in made.items() if make})
        make = self.teacher_samplers(ranks)
        return None if make is None else eval_sampler(make)


def teacher_samplers(
    pair: Pair, remote: TeacherSource | None, ranks: Ranks = SINGLE
) -> MakeSampler | None:
    """What generates with a teacher; None where none can; see `Models.teacher_samplers`."""
    if pair.teacher is not None:
        return local_samplers(pair.teacher, pair.teacher_stop, ranks)
    if not isinstance(remote, ServedTeacher) or not remote.generates:
        return None
    return remote.samplers(pair.student, pair.teacher_stop, ranks)


def open_models(
    cfg: Run,
    console: Console,
    *,
    student: LM | None = None,
    local: str | None = None,
    sharded: bool = False,
) -> Models:
    """Contact the teacher, settle the loss, load the models.

    Args:
        cfg: the configuration.
        console: shows what loss.support: auto became.
        student: of an earlier call, adapters and all, to be used again.
        local: folder of the model a teacher server serves, loaded beside it.
        sharded: as `load_pair`.

    Raises:
        UserError: a server that does not answer, a loss that makes no sense, a model or tokenizer
            that cannot be read, vocabularies or end tokens that differ.
    """
    if cfg.train.deterministic:
        prepare_deterministic()
    if cfg.teachers:
        return open_members(cfg, console, student=student, sharded=sharded)
    remote = find_remote_teacher(cfg)
    cfg = resolve_support(cfg, remote.kinds if remote else frozenset(Kind), console)
    objective = make_objective(cfg)
    if remote is not None and local is not None:
        beside = cfg.model_copy(update={"teacher": LocalTeacherSection(model=local)})
        return Models(cfg, objective, load_pair(beside, student=student), remote)
    pair = load_pair(cfg, remote, student, sharded=sharded)
    return Models(cfg, objective, pair, remote)


def open_for_evaluation(
    cfg: Run,
) -> tuple[Pair, Callable[[EvalTask], Sampler | None] | None]:
    """The pair of a run that is evaluated alone, and what answers held-out prompts as its teacher.

    Raises:
        UserError: as `open_models`.
    """

    def opened(own: Run, student: LM | None = None) -> tuple[Pair, MakeSampler | None]:
        pair = load_pair(own, student=student, trains=False)
        answers = not own.compares_text  # else it does not know the student's tokens
        return pair, teacher_samplers(pair, find_remote_teacher(own)) if answers else None

    if not cfg.teachers:
        only, make = opened(cfg)
        return only, None if make is None else eval_sampler(make)
    pair: Pair | None = None
    makers: dict[str, MakeSampler] = {}
    for name in cfg.teachers:
        with naming(name):
            own, make = opened(cfg.of_teacher(name), None if pair is None else pair.student)
        pair = pair or own
        if make is not None:
            makers[name] = make
    assert pair is not None
    return pair, routed_eval_sampler(makers)


def open_members(
    cfg: Run, console: Console, *, student: LM | None = None, sharded: bool = False
) -> Models:
    """`open_models` for several teachers beside one student.

    Raises:
        UserError: as `open_models`, with the teacher's name; end tokens or losses that differ.
    """
    members: dict[str, Models] = {}
    for name in cfg.teachers:
        with naming(name):
            members[name] = open_models(
                cfg.of_teacher(name), console, student=student, sharded=sharded
            )
        student = members[name].pair.student
    first = next(iter(members.values()))
    same_for_all(
        {name: m.cfg.compares_text for name, m in members.items()},
        lambda text: "a tokenizer of its own" if text else "the student's tokenizer",
        "Set teachers.NAME.tokenizer for all of them or for none.",
    )
    loss = same_for_all(
        {name: m.cfg.loss for name, m in members.items()},
        lambda loss: f"loss.support=auto is {loss.support}",
        "Set loss.support.",
    )
    stops = {name: m.pair.stop for name, m in members.items()}
    if cfg.rollout.stop == "union":
        stop = frozenset().union(*stops.values())
    else:
        stop = same_for_all(
            stops,
            lambda ids: f"a completion ends with {sorted(ids)}",
            "Set rollout.stop=student or union.",
        )
    pair = replace(first.pair, teacher=None, stop=stop, teacher_stop=stop)
    cfg = cfg.model_copy(update={"loss": loss})
    return Models(cfg, first.objective, pair, None, members=members)


def _prunes(cfg: Run) -> bool:
    return cfg.horizon is not None and cfg.horizon.prune is not None


def local_teacher(cfg: Run, pair: Pair) -> LocalTeacher | None:
    """The teacher in this process, if the run has one."""
    lm = pair.teacher or pair.foreign
    if lm is None:
        return None
    return LocalTeacher(
        lm,
        tokens_per_batch=token_budget(cfg),
        temperature=cfg.loss.teacher_temperature,
    )


def teacher_logits(teacher: LM) -> Callable[[torch.Tensor], torch.Tensor]:
    """The teacher's head as a function of hidden states that may be on another device."""
    head = teacher.head
    return lambda hidden: head.logits(hidden.to(teacher.device)).to(hidden.device)
