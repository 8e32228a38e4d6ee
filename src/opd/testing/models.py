"""A tiny random model and its tokenizer, made in milliseconds."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from opd.models.lm import LM
from opd.testing.language import NextLogp, model_logp

TINY_VOCAB = 40


def tiny_model(
    seed: int, *, dtype: torch.dtype = torch.float64, vocab: int = TINY_VOCAB, tie: bool = True
) -> Any:
    """A random Qwen3 of 2 layers and width 16; large logits, so that distributions are not flat.

    Args:
        seed: of the weights.
        dtype: of the weights.
        vocab: number of token ids; 0 is the begin token, 1 the end and padding token.
        tie: whether embeddings and head share weights.
    """
    from transformers import Qwen3Config, Qwen3ForCausalLM

    config = Qwen3Config(
        vocab_size=vocab,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        max_position_embeddings=256,
        tie_word_embeddings=tie,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
        initializer_range=0.4,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Qwen3ForCausalLM(config).to(dtype).eval()


def tiny_tokenizer(vocab: int = TINY_VOCAB) -> Any:
    """Word-level tokenizer of `tiny_model`: word wN is token N; padding is the end token."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<s>", "</s>", "<unk>"] + [f"w{i}" for i in range(3, vocab)]
    backend = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="</s>",
        unk_token="<unk>",
    )


def tiny_lm(seed: int = 0, **options: Any) -> LM:
    """`tiny_model` as an `opd.models.lm.LM`; options as there."""
    model = tiny_model(seed, **options)
    return LM(model, model.config.vocab_size, f"tiny-{seed}")


def load_weights_for(student: LM) -> Callable[[Path], NextLogp]:
    """What a server makes of the weights it is sent: `FakeVllmServer.load`.

    Args:
        student: whose weights are sent; its base model is that of adapters.
    """

    def load(folder: Path) -> NextLogp:
        from peft import PeftModel
        from transformers import AutoModelForCausalLM

        if not student.is_lora:
            model = AutoModelForCausalLM.from_pretrained(folder, dtype=student.causal.dtype)
        else:
            base = copy.deepcopy(student.model).unload()  # type: ignore[operator]
            model = PeftModel.from_pretrained(base, folder)
        return model_logp(LM(model.eval(), student.vocab, str(folder)))

    return load
