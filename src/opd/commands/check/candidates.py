"""The teachers of a check: loaded beside one student, each checked for compatibility."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers

from opd.commands.check.memory import MemoryCheck, check_seats
from opd.commands.check.slow_products import slow_products
from opd.config import LocalTeacher, Run, SelfTeacher
from opd.data.duplicates import load_questions
from opd.data.prompts import PromptSet, load_prompts
from opd.errors import UserError
from opd.models.configs import context_length_of, read_config
from opd.models.hub_name import split_revision
from opd.models.lm import LM
from opd.models.tokenizers import eos_ids, load_tokenizer
from opd.recipes.check import compatibility
from opd.recipes.check.compatibility import Finding
from opd.run.clock import Clock
from opd.run.console import Console
from opd.samplers.sampling import MakeSampler
from opd.setup.foreign import describe_alignment
from opd.setup.models import Models, open_models
from opd.setup.own_tokenizer import own_tokenizer
from opd.setup.pair import Pair
from opd.setup.prompts import load_training_prompts
from opd.setup.remote_teacher import ServedTeacher
from opd.setup.samplers import require_rollout_server, rollout_decoding, student_samplers
from opd.teachers.translate import Translator
from opd.types import Teacher

PROMPT_ROWS = 256  # of the prompt file, for templates and lengths
SHOWN_PROMPT = 600  # characters


@dataclass(frozen=True)
class Candidate:
    """A teacher in question.

    Attributes:
        label: its model name or folder.
        cfg: the run with this teacher.
        findings: on the compatibility of tokens and prompts.
        pair: student and teacher, or None if they are incompatible.
        server: the teacher, if it is a server.
        memory: plan of the run's memory, if it could be made.
        student_samplers: what generates with the student.
        teacher_samplers: what generates with the teacher; None if it only scores.
        context: tokens that both models read, completions included; None: unknown.
    """

    label: str
    cfg: Run
    findings: list[Finding]
    pair: Pair | None
    server: Teacher | None = None
    memory: MemoryCheck | None = None
    student_samplers: MakeSampler | None = None
    teacher_samplers: MakeSampler | None = None
    context: int | None = None

    @property
    def compatible(self) -> bool:
        """Whether no finding is a failure."""
        return self.pair is not None and not any(f.level == "failure" for f in self.findings)


def teacher_labels(cfgs: Sequence[Run]) -> list[str]:
    """Names of the teachers, without folders if they stay distinct."""
    names = [str(cfg.teacher.model) if cfg.teacher is not None else "none" for cfg in cfgs]
    short = [Path(name).name for name in names]
    return short if len(set(short)) == len(short) else names


def load_candidate(
    cfg: Run,
    label: str,
    student: LM | None,
    scratch: Path,
    *,
    memory: MemoryCheck | None = None,
) -> Candidate:
    """Load one teacher and check its compatibility with the student.

    Nothing is loaded where tokenizers do not match or the run does not fit into memory.

    Args:
        cfg: the run.
        label: its name.
        student: of an earlier candidate, to be used again.
        scratch: folder for what a server's fingerprint needs.
        memory: its plan, made before anything was loaded.

    Raises:
        UserError: a model or file that cannot be read, or a server that does not answer.
    """
    findings = [] if memory is None else [memory.finding]
    if (seated := check_seats(cfg)) is not None:
        findings.append(seated)
    if (slow := slow_products(cfg)) is not None:
        findings.append(Finding("precision", "warning", slow))
    if isinstance(cfg.teacher, LocalTeacher) and not cfg.compares_text:
        findings = _check_tokenizers(cfg, cfg.teacher) + findings
    elif cfg.teacher is None:
        raise UserError("opd check needs a teacher; teacher is null.")
    if any(f.level == "failure" for f in findings):
        return Candidate(label, cfg, findings, None, memory=memory)
    models = open_models(cfg, Console("quiet"), student=student)
    cfg, pair = models.cfg, models.pair
    sees_more = cfg.teacher is not None and cfg.teacher.prompt is not None
    if sees_more or cfg.compares_text:
        models = models.for_prompts(load_training_prompts(cfg, pair, Console("quiet")))
        findings.append(_shown_prompt(models))
    if cfg.compares_text:
        findings.append(_shown_alignment(models))
    frozen = pair.teacher or pair.foreign
    if frozen is not None and frozen.noise is not None:
        findings.append(Finding("quantised", "note", str(frozen.noise)))
    own = isinstance(cfg.teacher, SelfTeacher)
    if own or (models.teacher_prompts is not None and models.remote is None):
        scorer = models.teacher(scratch, Console("quiet"), Clock())
        return _with_samplers(
            Candidate(label, cfg, findings, pair, scorer, memory), models, scratch, answers=False
        )
    if pair.teacher is not None:
        findings.append(compatibility.check_distinct(same_weights(pair.student, pair.teacher)))
        return _with_samplers(Candidate(label, cfg, findings, pair, memory=memory), models, scratch)
    models.handshake(_prompts(cfg, pair.tokenizer, cfg.prompts.chat))
    server = models.teacher(scratch, Console("quiet"), Clock())
    whose = "its tokenizer" if cfg.compares_text else "the student"
    message = f"the server encodes known texts as {whose} does"
    findings.insert(0, Finding("tokens", "ok", message))
    return _with_samplers(Candidate(label, cfg, findings, pair, server, memory), models, scratch)


def _with_samplers(
    candidate: Candidate, models: Models, scratch: Path, *, answers: bool = True
) -> Candidate:
    """The candidate with what generates: servers where the run has them, else this process.

    A teacher that sees more than the student is not asked for answers: it would only read them out.
    """
    make = student_samplers(models.cfg, models.pair, scratch)
    # A rollout server may hold anything: the student's weights are sent before it is asked.
    make(rollout_decoding(models.cfg), None).sync(0)
    generating = models.teacher_samplers() if answers and models.teacher_prompts is None else None
    return replace(
        candidate,
        student_samplers=make,
        teacher_samplers=generating,
        context=shortest_context(models),
    )


def shortest_context(models: Models) -> int | None:
    """Of the student and the teacher, be they here or behind servers that tell."""
    lengths = [lm.context_length for lm in (models.pair.student, models.pair.teacher) if lm]
    if models.cfg.rollout.engine == "vllm":
        lengths.append(require_rollout_server(models.cfg).tokens)
    if isinstance(models.remote, ServedTeacher):
        lengths.append(models.remote.dialect.context)
    return min((length for length in lengths if length is not None), default=None)


def _shown_prompt(models: Models) -> Finding:
    """One prompt as the teacher sees it: a hint in the wrong place shows at a glance."""
    seen = models.teacher_prompts
    assert seen is not None
    index, ids = next(iter(seen.ids.items()))
    text = str((own_tokenizer(models.cfg) or models.pair.tokenizer).decode(ids))
    if len(text) > SHOWN_PROMPT:
        text = f"{text[: SHOWN_PROMPT // 2]} ... {text[-SHOWN_PROMPT // 2 :]}"
    message = f"the teacher sees, for row {index + 1}: {text}"
    return Finding("teacher prompt", "ok", message)


def _shown_alignment(models: Models) -> Finding:
    """What two tokenizers have in common; a failure where the teacher's changes the text."""
    cfg, pair = models.cfg, models.pair
    own = own_tokenizer(cfg)
    translator = Translator(pair.tokenizer, own, pair.stop, vocab=pair.student.vocab)
    texts = [q.text for q in load_questions(cfg.prompts.source)]
    try:
        return Finding("alignment", "ok", describe_alignment(translator, texts))
    except UserError as error:
        return Finding("alignment", "failure", str(error))


def _prompts(cfg: Run, tokenizer: Any, chat: dict[str, Any] | None) -> PromptSet:
    """The first rows of the prompt file: enough for templates and lengths."""
    return load_prompts(
        cfg.prompts.source,
        tokenizer,
        template=cfg.prompts.template,
        chat=chat,
        max_tokens=cfg.prompts.max_tokens,
        limit=PROMPT_ROWS,
    )


def _check_tokenizers(cfg: Run, teacher: LocalTeacher) -> list[Finding]:
    """Every check that needs no weights."""
    sources = ((cfg.student.model, "student.model"), (teacher.model, "teacher.model"))
    toks = [load_tokenizer(name, key=key) for name, key in sources]
    shapes = [_model_shape(*source) for source in sources]
    findings = compatibility.check_tokens(
        *toks, student_vocab=shapes[0].vocab, teacher_vocab=shapes[1].vocab
    )
    ends = [
        eos_ids(tok, _generation_config(name)) for tok, (name, _) in zip(toks, sources, strict=True)
    ]
    findings.append(compatibility.check_end_tokens(ends[0], ends[1], cfg.rollout.stop, toks[0]))
    if any(f.level == "failure" for f in findings):
        return findings
    student, teacher_prompts = (
        _prompts(cfg, tok, cfg.prompts.chat if tok.chat_template is not None else None).prompts
        for tok in toks
    )
    findings.append(compatibility.check_template(student[0].ids, teacher_prompts[0].ids, toks[0]))
    thinking = compatibility.check_thinking(toks[0], toks[1], cfg.prompts.chat)
    if thinking is not None:
        findings.append(thinking)
    max_prompt = max(len(p.ids) for p in student)
    return findings + [
        compatibility.check_context(role, shape.context, max_prompt, cfg.rollout.max_new_tokens)
        for role, shape in zip(("student", "teacher"), shapes, strict=True)
    ]


class _Shape(NamedTuple):
    vocab: int  # rows of the head
    context: int | None  # maximum sequence length, where known


def _model_shape(name: str, key: str) -> _Shape:
    """Head and context of a model, from its configuration."""
    config = read_config(name, key=key).get_text_config()
    return _Shape(int(config.vocab_size), context_length_of(config))


def _generation_config(name: str) -> transformers.GenerationConfig | None:
    path, revision = split_revision(name)
    try:
        return transformers.GenerationConfig.from_pretrained(path, revision=revision)
    except OSError:  # a model may come without one
        return None


def same_weights(a: LM, b: LM) -> bool:
    """Whether two models have equal weights, adapters left out."""
    a_weights, b_weights = (
        {n: p for n, p in lm.causal.named_parameters() if "lora_" not in n} for lm in (a, b)
    )
    if len(a_weights) != len(b_weights):
        return False
    pairs = zip(a_weights.values(), b_weights.values(), strict=True)
    return all(x.shape == y.shape and torch.equal(x, y.to(x)) for x, y in pairs)
