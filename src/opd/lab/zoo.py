"""The checkpoints of the lab: what each is made of, and building it once.

A checkpoint is a plain Hugging Face folder in a cache, named by its recipe, its seed and a hash of
everything that determines its weights, the lab's own source included. Nothing is ever rebuilt or
reused by mistake.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import GenerationConfig, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from opd.config import Optim
from opd.errors import UserError
from opd.lab.corpus import Corpus, encode
from opd.lab.worlds import Chain, World
from opd.models.lm import LM, load_lm
from opd.recipes.sft import sft

_SOURCES = ("worlds/*.py", "corpus.py", "zoo.py", "../recipes/sft.py")


@dataclass(frozen=True)
class Recipe:
    """How one checkpoint is made: supervised training on a corpus.

    Attributes:
        world: where its documents come from.
        corpus: what it reads; one pass over it, `batch` documents a step.
        lr: peak of the cosine.
        parent: recipe whose weights it starts from; None starts from random ones.
        width: hidden size of a model that starts from random weights.
    """

    world: World
    corpus: Corpus
    lr: float
    parent: str | None = None
    width: int = 64
    batch: int = 32
    warmup: int = 20


CHAIN = Chain()
RECIPES: dict[str, Recipe] = {
    # Reads pattern 1 with wrong facts: greedy answers are wrong too, the truth is a minority.
    "chain-base": Recipe(CHAIN, Corpus(size=32_000), lr=4e-3, warmup=50),
    # Same pattern, right facts: what post-training would make of the base.
    "chain-clean": Recipe(CHAIN, Corpus(size=9_600, corrupt=0.0), lr=2e-3, parent="chain-base"),
    # The other pattern, equally capable: the teacher that should fail.
    "chain-other": Recipe(CHAIN, Corpus(size=32_000, pattern_2=1.0), lr=4e-3, warmup=50),
    "chain-other-clean": Recipe(
        CHAIN, Corpus(size=9_600, pattern_2=1.0, corrupt=0.0), lr=2e-3, parent="chain-other"
    ),
}


def build(name: str, seed: int, cache: Path) -> Path:
    """The folder of a checkpoint, building it and its parents if the cache lacks them.

    One thread is used whatever the machine has, because a different split of a sum is a different
    sum: weights then depend on name, seed, library versions and the processor's kind alone.

    Raises:
        UserError: unknown name.
    """
    if name not in RECIPES:
        raise UserError(f"No checkpoint is called {name!r}; the lab has {', '.join(RECIPES)}.")
    recipe = RECIPES[name]
    folder = cache / f"{name}-seed{seed}-{content_hash(name, seed)[:12]}"
    if folder.is_dir():
        return folder
    parent = None if recipe.parent is None else build(recipe.parent, seed, cache)
    tokenizer = recipe.world.tokenizer()
    with one_thread():
        if parent is None:
            model = tiny_qwen3(tokenizer, seed=seed, width=recipe.width)
            student = LM(model, len(tokenizer), name)
        else:
            student = load_lm(str(parent), dtype="float32", device="cpu")
        examples = encode(recipe.corpus.write(recipe.world, seed), tokenizer)
        training = sft(
            student,
            examples,
            steps=len(examples) // recipe.batch,
            batch=recipe.batch,
            optim=Optim(lr=recipe.lr, warmup=recipe.warmup),
            schedule="cosine",
            seed=seed,
        )
        losses = list(training)
    cache.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=cache))
    student.causal.save_pretrained(made)
    tokenizer.save_pretrained(made)
    facts = {"recipe": repr(recipe), "seed": seed, "first_loss": losses[0], "last_loss": losses[-1]}
    (made / "lab.json").write_text(json.dumps(facts, indent=2) + "\n")
    for path in (made, *made.iterdir()):  # temporary folders and weights come closed to others
        path.chmod(0o755 if path.is_dir() else 0o644)
    if folder.is_dir():  # somebody else was faster
        shutil.rmtree(made)
    else:
        os.rename(made, folder)
    return folder


def content_hash(name: str, seed: int) -> str:
    """Hash of everything that determines a checkpoint's weights, parents included."""
    here, digest = Path(__file__).parent, hashlib.sha256()
    for pattern in _SOURCES:
        for path in sorted(here.glob(pattern)):
            digest.update(path.read_bytes())
    link: str | None = name
    while link is not None:
        digest.update(repr((link, seed, RECIPES[link])).encode())
        link = RECIPES[link].parent
    digest.update(torch.__version__.encode())
    return digest.hexdigest()


@contextmanager
def one_thread() -> Iterator[None]:
    """Run torch on one thread, then as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def tiny_qwen3(
    tokenizer: PreTrainedTokenizerFast, *, seed: int, width: int = 64, layers: int = 2
) -> Qwen3ForCausalLM:
    """A randomly initialised Qwen3 (width 64: about 0.1 M parameters), drawn from `seed` alone."""
    model = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=5 * width // 2,
            num_hidden_layers=layers,
            num_attention_heads=width // 16,
            num_key_value_heads=width // 16,
            head_dim=16,
            max_position_embeddings=tokenizer.model_max_length,
            tie_word_embeddings=True,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            dtype="float32",
        )
    )
    rng = torch.Generator().manual_seed(seed)
    for name, weight in model.named_parameters():
        if weight.ndim == 2:
            # 1/sqrt(width): the library's 0.02 suits wide models and stalls narrow ones.
            std = width**-0.5 / (2 if name.endswith("embed_tokens.weight") else 1)
            torch.nn.init.normal_(weight, std=std, generator=rng)
    model.generation_config = GenerationConfig(
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=tokenizer.bos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return model
