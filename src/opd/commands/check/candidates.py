"""The teachers of a check: loaded beside one student, each with its handshake."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers

from opd.config import LocalTeacher, Run, ServerTeacher
from opd.data.prompts import PromptSet, load_prompts
from opd.errors import UserError
from opd.models.lm import LM, context_length_of
from opd.models.tokenizers import eos_ids, load_tokenizer
from opd.recipes.check import compatibility
from opd.recipes.check.compatibility import Point
from opd.run.clock import Clock
from opd.run.console import Console
from opd.setup import remote_teacher
from opd.setup.pair import Pair, load_pair
from opd.setup.session import make_objective
from opd.types import Teacher

LOOKED_AT = 256  # rows of the prompt file


@dataclass(frozen=True)
class Candidate:
    """A teacher that was asked about.

    Attributes:
        label: its model name or folder.
        cfg: the run with this teacher.
        points: of the handshake.
        pair: student and teacher, or None if they cannot work together.
        server: the teacher, if it is a server.
    """

    label: str
    cfg: Run
    points: list[Point]
    pair: Pair | None
    server: Teacher | None = None

    @property
    def fit(self) -> bool:
        """Whether training with it would at least not go wrong."""
        return self.pair is not None and not any(p.level == "failure" for p in self.points)


def labels(cfgs: Sequence[Run]) -> list[str]:
    """Names of the teachers, short where that tells them apart."""
    names = [str(cfg.teacher.model) if cfg.teacher is not None else "none" for cfg in cfgs]
    short = [Path(name).name for name in names]
    return short if len(set(short)) == len(short) else names


def candidate(cfg: Run, label: str, student: LM | None, scratch: Path) -> Candidate:
    """Load one teacher and look whether it can work with the student.

    Args:
        cfg: the run.
        label: its name.
        student: of an earlier candidate, to be used again.
        scratch: folder for what a server's fingerprint needs.

    Raises:
        UserError: a model or file that cannot be read, or a server that does not answer.
    """
    if isinstance(cfg.teacher, ServerTeacher):
        return _server(cfg, label, student, scratch)
    if not isinstance(cfg.teacher, LocalTeacher):
        raise UserError("opd check needs a teacher; teacher is null.")
    points = _of_tokenizers(cfg, cfg.teacher)
    if any(p.level == "failure" for p in points):
        return Candidate(label, cfg, points, None)
    pair = load_pair(cfg, student=student)
    assert pair.teacher is not None
    points.append(compatibility.different(same_weights(pair.student, pair.teacher)))
    return Candidate(label, cfg, points, pair)


def _server(cfg: Run, label: str, student: LM | None, scratch: Path) -> Candidate:
    remote = remote_teacher.Remote.find(cfg)
    assert remote is not None
    quiet = Console("quiet")
    cfg = remote_teacher.settle_support(cfg, remote.kinds, quiet)
    pair = load_pair(cfg, remote, student=student)
    prompts = _prompts(cfg, pair.tokenizer, cfg.prompts.chat)
    remote.greet(cfg, make_objective(cfg), pair.student.vocab, pair.tokenizer, prompts)
    server = remote.teacher(cfg, pair.student.vocab, scratch, quiet, Clock())
    seen = [Point("tokens", "ok", "the server read known texts as the student writes them")]
    return Candidate(label, cfg, seen, pair, server)


def _prompts(cfg: Run, tokenizer: Any, chat: dict[str, Any] | None) -> PromptSet:
    """The first rows of the prompt file: enough for a handshake."""
    return load_prompts(
        cfg.prompts.path,
        tokenizer,
        template=cfg.prompts.template,
        chat=chat,
        max_tokens=cfg.prompts.max_tokens,
        limit=LOOKED_AT,
    )


def _of_tokenizers(cfg: Run, spec: LocalTeacher) -> list[Point]:
    """Everything that needs no weights."""
    toks = [
        load_tokenizer(cfg.student.model, cfg.student.revision, key="student.model"),
        load_tokenizer(spec.model, spec.revision, key="teacher.model"),
    ]
    sources = (
        (cfg.student.model, cfg.student.revision, "student.model"),
        (spec.model, spec.revision, "teacher.model"),
    )
    shapes = [_shape(*source) for source in sources]
    points = compatibility.tokens(*toks, student_vocab=shapes[0][0], teacher_vocab=shapes[1][0])
    stops = [
        eos_ids(tok, _generation(*source[:2])) for tok, source in zip(toks, sources, strict=True)
    ]
    points.append(compatibility.ends(stops[0], stops[1], cfg.rollout.stop, toks[0]))
    if any(p.level == "failure" for p in points):
        return points
    rendered = [
        _prompts(cfg, tok, cfg.prompts.chat if tok.chat_template is not None else None).prompts
        for tok in toks
    ]
    points.append(compatibility.template(rendered[0][0].ids, rendered[1][0].ids, toks[0]))
    switch = compatibility.thinking(toks[0], toks[1], cfg.prompts.chat)
    longest = max(len(p.ids) for p in rendered[0])
    room = [
        compatibility.context(who, shape[1], longest, cfg.rollout.max_new_tokens)
        for who, shape in zip(("student", "teacher"), shapes, strict=True)
    ]
    return [*points, *([switch] if switch else []), *room]


def _shape(path: str, revision: str | None, key: str) -> tuple[int, int | None]:
    """Rows of the head, and longest sequence, from a model's configuration."""
    try:
        found = transformers.AutoConfig.from_pretrained(
            path, revision=revision, trust_remote_code=False
        ).get_text_config()
    except (OSError, ValueError) as error:
        first = str(error).strip().splitlines()[0]
        raise UserError(f"{key}={path}: its configuration cannot be read: {first}") from None
    return int(found.vocab_size), context_length_of(found)


def _generation(path: str, revision: str | None) -> transformers.GenerationConfig | None:
    try:
        return transformers.GenerationConfig.from_pretrained(path, revision=revision)
    except OSError:  # a model may come without one
        return None


def same_weights(a: LM, b: LM) -> bool:
    """Whether two models compute the same, judged by their weights (adapters left out)."""
    ours, theirs = (
        {n: p for n, p in lm.causal.named_parameters() if "lora_" not in n} for lm in (a, b)
    )
    if len(ours) != len(theirs):
        return False
    pairs = zip(ours.values(), theirs.values(), strict=True)
    return all(x.shape == y.shape and torch.equal(x, y.to(x)) for x, y in pairs)
