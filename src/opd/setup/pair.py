"""Student and teacher, loaded and verified to share one vocabulary."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from opd.config import LocalTeacher, Run
from opd.models import tokenizers
from opd.models.away import AwayWeights
from opd.models.lm import LM, add_lora, default_device, enable_checkpointing, load_lm
from opd.setup.chat_template import choose_template
from opd.setup.precision import loading_dtype
from opd.setup.remote_teacher import TeacherSource
from opd.setup.settings import require_elsewhere
from opd.teachers.probe_texts import HARD_STRINGS, TEXTS
from opd.types import Dtype, Scheme

PROBE_TOKENS = 512  # of the text on which quantising is measured, at most


@dataclass(frozen=True)
class Pair:
    """Student and teacher, loaded and checked against each other.

    Attributes:
        student: the model that is trained.
        teacher: of the student's tokenizer, in this process.
        tokenizer: the student's.
        stop: ids that end a rollout.
        teacher_stop: ids that end the teacher's own completions.
        foreign: the teacher in this process where its tokenizer is another one.
    """

    student: LM
    teacher: LM | None
    tokenizer: Any
    stop: frozenset[int]
    teacher_stop: frozenset[int]
    foreign: LM | None = None


def load_pair(
    cfg: Run,
    remote: TeacherSource | None = None,
    student: LM | None = None,
    *,
    trains: bool = True,
    sharded: bool = False,
) -> Pair:
    """Load both models and verify that they share one vocabulary.

    Args:
        cfg: the run.
        remote: the teacher, if it is a server.
        student: the student of an earlier pair, adapters and all, to be used again.
        trains: whether it is to be trained, so that its master weights are wanted.
        sharded: leave the student in host memory, from where `shard_model` takes it.

    Raises:
        UserError: missing model or tokenizer, tokenizers that differ, end tokens that differ
            without a choice in rollout.stop.
    """
    student_tok = tokenizers.load_tokenizer(cfg.student.model, key="student.model")
    spec = cfg.teacher if remote is None and isinstance(cfg.teacher, LocalTeacher) else None
    teacher_tok = None
    text = cfg.compares_text
    if spec is not None and not text:
        teacher_tok = tokenizers.load_like(student_tok, cfg.student.model, spec.model)
    choose_template(cfg, student_tok, teacher_tok)
    given, lora = student, cfg.student.lora
    student = given or load_lm(
        cfg.student.model,
        dtype=loading_dtype(cfg, trains=trains, sharded=sharded),
        device="cpu" if sharded else None,
        key="student.model",
        quantised=_quantised(None if lora is None else lora.weights, cfg.student.model),
    )
    device = str(default_device() if sharded else student.device)
    stop = tokenizers.eos_ids(student_tok, student.causal.generation_config)
    if spec is None or teacher_tok is None:
        vocab = min(student.vocab, tokenizers.vocab_size(student_tok))
        student = replace(student, vocab=vocab)
        ends = remote.eos if remote and not text else frozenset()
        if ends:
            stop = tokenizers.resolve_stop(student_tok, stop, ends, cfg.rollout.stop)
        ready = given or prepare_student(cfg, student)
        foreign = None if spec is None else load_foreign(spec, device)
        return Pair(ready, None, student_tok, stop, ends or stop, foreign)
    teacher = load_teacher(spec, device)
    vocab = tokenizers.require_same(
        student_tok, teacher_tok, student_vocab=student.vocab, teacher_vocab=teacher.vocab
    )
    teacher_stop = tokenizers.eos_ids(teacher_tok, teacher.causal.generation_config)
    stop = tokenizers.resolve_stop(student_tok, stop, teacher_stop, cfg.rollout.stop)
    return Pair(
        given or prepare_student(cfg, replace(student, vocab=vocab)),
        replace(teacher, vocab=vocab),
        student_tok,
        stop,
        teacher_stop,
    )


def load_teacher(spec: LocalTeacher, device: str | None) -> LM:
    """A frozen teacher in this process, on its own device or else on `device`.

    Raises:
        UserError: it cannot be read; as `require_elsewhere`.
    """
    scheme, place = _scheme(spec.dtype), spec.device or device
    dtype: Dtype = "auto" if scheme is not None else spec.dtype  # type: ignore[assignment]

    def read(quantised: tuple[Scheme, Tensor | None] | None) -> LM:
        key = "teacher.model"
        return load_lm(spec.model, dtype=dtype, device=place, key=key, quantised=quantised)

    def read_again() -> nn.Module:
        return read(None if scheme is None else (scheme, None)).model

    teacher = read(_quantised(spec.dtype, spec.model))
    for parameter in teacher.model.parameters():
        parameter.requires_grad_(False)
    require_elsewhere(spec, teacher.device.type)
    if spec.offload != "none":
        again = read_again if spec.offload == "disk" else None
        teacher = replace(teacher, away=AwayWeights(teacher.model, again))
        teacher.release()
    return teacher


def _scheme(dtype: str | None) -> Scheme | None:
    return dtype if dtype in ("int8", "nf4") else None  # type: ignore[return-value]


def _quantised(dtype: str | None, model: str) -> tuple[Scheme, Tensor] | None:
    """What `load_lm` needs to quantise: the scheme, and a text in the model's own tokens."""
    scheme = _scheme(dtype)
    if scheme is None:
        return None
    tokenizer = tokenizers.load_tokenizer(model, key="model")
    text = "\n".join((*TEXTS, *HARD_STRINGS))
    length = min(PROBE_TOKENS, tokenizer.model_max_length)
    ids = tokenizer.encode(text, add_special_tokens=False, truncation=True, max_length=length)
    return scheme, torch.tensor([ids])


def load_foreign(spec: LocalTeacher, device: str) -> LM:
    """A frozen teacher that has a tokenizer of its own.

    Raises:
        UserError: model or tokenizer cannot be read.
    """
    assert spec.tokenizer is not None
    tokenizer = tokenizers.load_tokenizer(spec.tokenizer, key="teacher.tokenizer")
    teacher = load_teacher(spec, device)
    return replace(teacher, vocab=min(teacher.vocab, tokenizers.vocab_size(tokenizer)))


def prepare_student(cfg: Run, student: LM) -> LM:
    """Adapters and checkpointing, as configured."""
    if cfg.student.lora is not None:
        lora = cfg.student.lora
        student = add_lora(
            student,
            rank=lora.rank,
            alpha=lora.alpha,
            target_modules=lora.target_modules,
            seed=cfg.train.seed,
        )
    if cfg.student.gradient_checkpointing:
        enable_checkpointing(student)
    return student
