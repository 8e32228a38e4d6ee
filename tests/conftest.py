"""Fixtures everyone uses: a tiny random model pair with its tokenizer, made in a moment."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Matrices here are tiny: threads would only wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

VOCAB = 40


def tiny_model(
    seed: int, *, dtype: torch.dtype = torch.float64, vocab: int = VOCAB, tie: bool = True
):
    """A 2-layer random Qwen3 of width 16: big logits, so that distributions are not flat."""
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


def tiny_tokenizer(vocab: int = VOCAB):
    """Word-level tokenizer: word wN is token N; pad is the end token."""
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


@pytest.fixture
def make_lm():
    """Factory of `opd.models.lm.LM` around a tiny random model."""
    from opd.models.lm import LM

    def make(seed: int = 0, **kwargs) -> LM:
        model = tiny_model(seed, **kwargs)
        return LM(model, model.config.vocab_size, f"tiny-{seed}")

    return make


@pytest.fixture
def make_prompts():
    """Factory of prompts of given lengths over the tiny vocabulary."""
    import numpy as np

    from opd.types import Prompt

    def make(*lengths: int, seed: int = 0):
        rng = np.random.default_rng(seed)
        return [
            Prompt(i, tuple(rng.integers(3, VOCAB, n).tolist()), f"prompt {i}")
            for i, n in enumerate(lengths)
        ]

    return make
