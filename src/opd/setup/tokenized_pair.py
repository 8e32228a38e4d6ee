"""Tokenizers and configurations of a run's models, checked against each other without weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from opd.config import LocalTeacher, Run
from opd.errors import UserError
from opd.models import tokenizers
from opd.models.model_files import ModelFacts, read_facts
from opd.setup.chat_template import choose_template
from opd.setup.own_tokenizer import own_tokenizer
from opd.setup.problems import Problems
from opd.setup.routing import naming
from opd.setup.settings import is_offline, require_k


@dataclass(frozen=True)
class TokenizedPair:
    """Tokenizer and sizes of a pair whose weights are not loaded.

    Attributes:
        tokenizer: the student's.
        student: of its configuration.
        teacher: of its configuration; None without one in this process.
        templates: chat templates of the two, as they came.
        members: the same with each of several teachers, by name.
    """

    tokenizer: Any
    student: ModelFacts
    teacher: ModelFacts | None
    templates: tuple[Any, Any]
    members: Mapping[str, TokenizedPair] = field(default_factory=dict)

    def models(self) -> dict[str, ModelFacts]:
        """The models by the key that names them."""
        both = {"student.model": self.student, "teacher.model": self.teacher}
        if self.members:
            both = {"student.model": self.student}
            both |= {f"teachers.{n}.model": m.teacher for n, m in self.members.items()}
        return {key: facts for key, facts in both.items() if facts is not None}


class Readers(NamedTuple):
    """What reads models and tokenizers.

    Attributes:
        facts: of a model's name and key.
        tokenizer: of a name and `key`.
        device: checks a device's name and key.
    """

    facts: Callable[[str, str], ModelFacts]
    tokenizer: Callable[..., Any]
    device: Callable[[str | None, str], object]


def _device(device: str | None, key: str) -> None:
    from opd.models.lm import resolve_device  # torch

    resolve_device(device, key)


WITH_TRANSFORMERS = Readers(read_facts, tokenizers.load_tokenizer, _device)


def read_pair(
    cfg: Run,
    problems: Problems,
    *,
    judges_pair: bool = False,
    readers: Readers = WITH_TRANSFORMERS,
) -> TokenizedPair | None:
    """Tokenizers and configurations of the pair; None if the student's cannot be read.

    Of several teachers each is checked; `teacher` is then the one of the shortest context.
    """
    if cfg.teachers:
        return _read_members(cfg, problems, judges_pair=judges_pair, readers=readers)
    student = problems.attempt(readers.facts, cfg.student.model, "student.model")
    tokenizer = None
    if student is not None:
        tokenizer = problems.attempt(readers.tokenizer, cfg.student.model, key="student.model")
    teacher, teacher_tok = None, None
    if isinstance(cfg.teacher, LocalTeacher) and not is_offline(cfg):
        problems.attempt(readers.device, cfg.teacher.device, "teacher.device")
        teacher = problems.attempt(readers.facts, cfg.teacher.model, "teacher.model")
        if teacher is not None and tokenizer is not None and not cfg.compares_text:
            names = (cfg.student.model, cfg.teacher.model)
            teacher_tok = problems.attempt(
                tokenizers.load_like, tokenizer, *names, readers.tokenizer
            )
        elif teacher is not None and not cfg.compares_text:
            problems.attempt(readers.tokenizer, cfg.teacher.model, key="teacher.model")
    problems.attempt(own_tokenizer, cfg, readers.tokenizer)
    others = {"loss.terms.reference": cfg.loss.terms.reference, "check.origin": cfg.check.origin}
    for key, name in others.items():
        if name is not None:
            problems.attempt(readers.facts, name, key)
    if student is None or tokenizer is None:
        return None
    templates = [t and t.chat_template for t in (tokenizer, teacher_tok)]
    if not judges_pair:
        problems.attempt(choose_template, cfg, tokenizer, teacher_tok)
    ends = problems.attempt(_end_tokens, tokenizer, student, "student.model")
    if teacher is not None and teacher_tok is not None and not judges_pair:
        teacher_ends = problems.attempt(_end_tokens, teacher_tok, teacher, "teacher.model")
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


def _read_members(
    cfg: Run, problems: Problems, *, judges_pair: bool, readers: Readers
) -> TokenizedPair | None:
    members: dict[str, TokenizedPair] = {}
    for name in cfg.teachers:
        own = Problems()
        pair = read_pair(cfg.of_teacher(name), own, judges_pair=judges_pair, readers=readers)
        problems.attempt(_raise_named, name, own)
        if pair is not None:
            members[name] = pair
    if not members:
        return None
    first = next(iter(members.values()))
    contexts = [m.teacher for m in members.values() if m.teacher and m.teacher.context_length]
    shortest = min(contexts, key=lambda facts: facts.context_length or 0, default=None)
    return replace(first, teacher=shortest, members=members)


def _raise_named(name: str, own: Problems) -> None:
    with naming(name):
        own.raise_all()


def _end_tokens(tokenizer: Any, facts: ModelFacts, key: str) -> frozenset[int]:
    try:
        return tokenizers.eos_ids(tokenizer, facts.end_tokens)
    except UserError as error:
        raise UserError(f"{key}={facts.name}: {error}") from None
