"""The checkpoints of the lab: building each once, and measuring what it can do.

A checkpoint is a plain Hugging Face folder in a cache, named by its recipe, its seed and a hash of
everything that determines its weights. Nothing is ever rebuilt or reused by mistake. Beside it
stands a card with its accuracy; outside its window it is not used.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from opd.config import Optim
from opd.errors import UserError
from opd.models.lm import LM, load_lm
from opd.recipes.sft import sft
from opd_lab.checkpoints import CHAIN, RECIPES, Improved, Recipe, world_of
from opd_lab.corpus import Corpus, encode
from opd_lab.probes import accuracy
from opd_lab.runs import Task, keep, one_thread, run, source_hash

__all__ = ["CHAIN", "RECIPES", "Corpus", "Recipe", "build", "checkpoint", "content_hash"]

CARD_PROBLEMS = 1024
CARD_SEED = 10_007  # held-out problems of the cards are the same for every checkpoint


def checkpoint(name: str, seed: int, cache: Path) -> Path:
    """The folder of a checkpoint that can do what it is meant to.

    Raises:
        UserError: unknown name, or accuracy outside the recipe's window.
    """
    folder = build(name, seed, cache)
    card(name, seed, cache)
    return folder


def card(name: str, seed: int, cache: Path) -> dict[str, Any]:
    """What a checkpoint is and can do, measured once; kept beside its folder.

    Raises:
        UserError: accuracy outside the recipe's window.
    """
    folder, recipe = build(name, seed, cache), RECIPES[name]
    path = folder.with_suffix(".json")
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    if "accuracy" not in found:
        horizon = recipe.horizon if isinstance(recipe, Improved) else None
        measured = accuracy(
            folder, world_of(name), CARD_PROBLEMS, seed=CARD_SEED, horizon=horizon or _horizon(name)
        )
        found |= {
            "name": name,
            "seed": seed,
            "recipe": repr(recipe),
            "made_by": how(recipe),
            "accuracy": asdict(measured.accuracy),
            "pattern_2": measured.pattern_2,
            "window": list(recipe.window),
        }
        path.write_text(json.dumps(found, indent=2) + "\n")
    low, high = recipe.window
    if not low <= found["accuracy"]["value"] <= high:
        raise UserError(
            f"Checkpoint {folder.name} answers {found['accuracy']['value']:.1%} of held-out "
            f"problems; its recipe promises {low:.0%} to {high:.0%}. An experiment with it would "
            "mean nothing. Use another seed, or change its recipe in lab/checkpoints.py."
        )
    return found


def _horizon(name: str) -> int | None:
    """Where a checkpoint of several horizons is measured: where its descendants are improved."""
    children = [r for r in RECIPES.values() if isinstance(r, Improved) and r.parent == name]
    return next((child.horizon for child in children), None)


def how(recipe: Recipe | Improved) -> str:
    """How a checkpoint is made, in words."""
    if isinstance(recipe, Improved):
        return f"outcome reward, {recipe.steps} steps"
    right = "" if recipe.corpus.corrupt else " of right documents"
    return f"supervised, {recipe.corpus.size // recipe.batch} steps{right}"


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
    folder = cache / folder_name(name, seed)
    if folder.is_dir():
        return folder
    parent = None if recipe.parent is None else build(recipe.parent, seed, cache)
    cache.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=cache))
    started = time.monotonic()
    if isinstance(recipe, Improved):
        assert parent is not None
        improve(recipe, name, parent, seed, cache, made)
    else:
        read(recipe, name, parent, seed, made)
    card_path = folder.with_suffix(".json")
    card_path.write_text(json.dumps({"seconds": round(time.monotonic() - started, 1)}) + "\n")
    keep(made, folder)
    return folder


def read(recipe: Recipe, name: str, parent: Path | None, seed: int, made: Path) -> None:
    """Supervised training on the recipe's corpus."""
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
    student.causal.save_pretrained(made)
    tokenizer.save_pretrained(made)
    facts = {"recipe": repr(recipe), "seed": seed, "first_loss": losses[0], "last_loss": losses[-1]}
    (made / "lab.json").write_text(json.dumps(facts, indent=2) + "\n")


def improve(recipe: Improved, name: str, parent: Path, seed: int, cache: Path, made: Path) -> None:
    """Post-training as the product does it: its loop, no teacher, outcome reward."""
    changes = (
        "loss.support=sampled",
        "loss.terms.outcome_weight=1.0",
        f"optim.lr={recipe.lr}",
        f"rollout.n={recipe.n}",
        f"train.steps={recipe.steps}",
        "eval.0.every=20",
    )
    task = Task(world_of(name), recipe.horizon, train=4000, test=256)
    done = run(parent, None, task, seed=seed, cache=cache, changes=changes)
    shutil.copytree(done.path / "final", made, dirs_exist_ok=True)
    facts = {"recipe": repr(recipe), "seed": seed, "accuracy": done.accuracy()}
    (made / "lab.json").write_text(json.dumps(facts, indent=2) + "\n")


def folder_name(name: str, seed: int) -> str:
    """Name of a checkpoint's folder in the cache."""
    return f"{name}-seed{seed}-{content_hash(name, seed)[:12]}"


def content_hash(name: str, seed: int) -> str:
    """Hash of everything that determines a checkpoint's weights, parents included."""
    found = hashlib.sha256(source_hash().encode())
    link: str | None = name
    while link is not None:
        found.update(repr((link, seed, RECIPES[link])).encode())
        link = RECIPES[link].parent
    return found.hexdigest()


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
