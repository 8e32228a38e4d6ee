"""Tokenizers and tiny models of another family than the demo's."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from opd.testing import tiny_model

TEXTS = (
    "sum pig gnu jay ox so pig 1 gnu 2 jay 3 ANS 6",
    "The quick brown fox jumps over the lazy dog; don't, it's naïve: Straße.",
    "你好世界 こんにちは 🙂👩‍👩‍👧 ½ 3.14159 1,000,000\n\n\tdef f(x):\n    return x",
)


def byte_tokenizer(
    texts: Sequence[str] = TEXTS,
    *,
    vocab: int = 320,
    special: Sequence[str] = ("<|begin|>", "<|end|>"),
    splits: bool = True,
    lower: bool = False,
    template: str | None = None,
) -> Any:
    """A byte-level BPE: its merges are those of `texts`; without `splits` they may cross spaces."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=splits)
    backend.decoder = decoders.ByteLevel()
    if lower:
        backend.normalizer = normalizers.Lowercase()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=list(special),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(list(texts), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=special[0],
        eos_token=special[1],
        pad_token=special[1],
        chat_template=template,
    )


def foreign_model(folder: Path, tokenizer: Any, seed: int = 3) -> Path:
    """A random model of a tokenizer, as a folder."""
    model = tiny_model(seed, vocab=len(tokenizer))
    model.config.eos_token_id = model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.config.bos_token_id = model.generation_config.bos_token_id = tokenizer.bos_token_id
    model.float().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
