"""Models of real shapes with random weights, prompts and rollouts of given lengths."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import numpy as np
import torch

from opd.config import Optim
from opd.core.batch import Batch
from opd.core.objective import Objective
from opd.gpu_check.harness import Device
from opd.models.attention import use_grouped_attention
from opd.models.lm import LM
from opd.models.norms import use_fused_norms
from opd.models.prefix_cache import supports_prefix_cache
from opd.rng import Stream, generator, torch_seed
from opd.teachers.local import LocalTeacher
from opd.training.learner import Learner
from opd.training.optimizer import make_optimizer
from opd.types import Prompt, Rollout

TOP_K = 16


class Shape(NamedTuple):
    """A decoder of the Qwen3 family."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int = 128
    vocab: int = 151_936
    tied: bool = True


SHAPES = {
    "0.6B": Shape(1024, 3072, 28, 16, 8),
    "1.7B": Shape(2048, 6144, 28, 16, 8),
    "4B": Shape(2560, 9728, 36, 32, 8),
    "8B": Shape(4096, 12_288, 36, 32, 8, tied=False),
    "32B": Shape(5120, 25_600, 64, 64, 8, tied=False),
}
TINY = Shape(64, 128, 2, 4, 2, 16, 9000)  # the vocabulary is large enough for sparse gradients


def make_model(
    device: Device,
    name: str,
    dtype: torch.dtype = torch.bfloat16,
    *,
    layers: int | None = None,
    vocab: int | None = None,
    seed: int = 0,
    plain: bool = False,
) -> LM:
    """A random Qwen3 of a real shape, on the device; `plain`: as transformers makes it."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    shape = TINY if device.tiny else SHAPES[name]
    shape = shape._replace(layers=layers or shape.layers, vocab=vocab or shape.vocab)
    config = Qwen3Config(
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        vocab_size=shape.vocab,
        tie_word_embeddings=shape.tied,
        max_position_embeddings=40_960,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    torch.manual_seed(torch_seed(seed, Stream.GPU_CHECK))
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with device.at:
            model = Qwen3ForCausalLM._from_config(config, attn_implementation="sdpa")
    finally:
        torch.set_default_dtype(before)
    if not plain:
        use_grouped_attention(model)
        if device.is_cuda:
            use_fused_norms(model)
    return LM(model.eval(), shape.vocab, name)


def make_prompts(count: int, length: int, vocab: int, seed: int = 0) -> list[Prompt]:
    """Random prompts of about `length` tokens."""
    rng = generator(seed, Stream.GPU_CHECK)
    lengths = [max(4, length - i % 7) for i in range(count)]
    return [Prompt(i, tuple(rng.integers(3, vocab, n).tolist()), "") for i, n in enumerate(lengths)]


def make_rollouts(
    lm: LM, count: int, length: int, *, prompt: int = 64, n: int = 4
) -> list[Rollout]:
    """Random rollouts of a given length, without sampling."""
    rng = generator(0, Stream.GPU_CHECK, count, length)
    made = []
    for each in make_prompts(max(1, count // n), prompt, lm.vocab):
        for _ in range(n):
            ids = rng.integers(3, lm.vocab, length, dtype=np.int32)
            topk = rng.integers(3, lm.vocab, (length, TOP_K), dtype=np.int32)
            made.append(Rollout.of_ids(each, ids, topk_ids=topk))
    return made


def make_batch(teacher: LM, rollouts: list[Rollout], objective: Objective) -> Batch:
    """Rollouts with the teacher's scores, for the whole vocabulary if the objective needs it."""
    want = objective.want
    if objective.needs_full_teacher:
        want = want._replace(full=[np.arange(len(r)) for r in rollouts])
    return Batch(rollouts, LocalTeacher(teacher).score(rollouts, want))


def make_learner(
    student: LM,
    teacher: LM | None,
    objective: Objective | None = None,
    *,
    tokens: int = 8192,
    lr: float = 1e-6,
    moments: Literal["float32", "int8"] = "float32",
    **changes: Any,
) -> Learner:
    """A learner with the product's defaults."""
    optim = Optim(lr=lr, moments=moments)
    supports_prefix_cache(student)
    logits: Callable[[torch.Tensor], torch.Tensor] | None = None
    if teacher is not None:
        head = teacher.head
        logits = lambda hidden: head.logits(hidden.to(teacher.device))  # noqa: E731
    return Learner(
        student=student,
        optimizer=make_optimizer(student, optim),
        objective=objective or Objective(),
        optim=optim,
        tokens_per_microbatch=tokens,
        teacher_logits=logits,
        teacher_temperature=1.0,
        diagnostics_k=TOP_K,
        position_edges=[0, 1024, 2048, 4096, 8192, 20_000],
        **changes,
    )
