"""The checkpoints of the lab: building each once, and measuring its accuracy.

A checkpoint is a plain Hugging Face folder in a cache, named by its recipe, its seed and a hash of
everything that determines its weights, so nothing is built twice and nothing is reused by mistake.
Beside it stands a card with its accuracy; outside its accuracy range it is not used.
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
from opd_lab.cache_key import source_hash
from opd_lab.checkpoints import RECIPES, world_of
from opd_lab.corpus import encode
from opd_lab.probes import measure_accuracy
from opd_lab.runs import Task, one_thread, publish, run
from opd_lab.training_recipes import Recipe, RLRecipe, SupervisedRecipe

CARD_PROBLEMS = 1024
CARD_SEED = 10_007  # held-out problems of the cards are the same for every checkpoint


def checkpoint(name: str, seed: int, cache: Path) -> Path:
    """The folder of a checkpoint whose accuracy is in its range.

    Raises:
        UserError: unknown name, or accuracy outside the recipe's range.
    """
    folder = build(name, seed, cache)
    card(name, seed, cache)
    return folder


def card(name: str, seed: int, cache: Path) -> dict[str, Any]:
    """Recipe, accuracy and training time of a checkpoint, measured once; kept beside its folder.

    Raises:
        UserError: accuracy outside the recipe's range.
    """
    folder, recipe = build(name, seed, cache), RECIPES[name]
    path = folder.with_suffix(".json")
    facts: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    if "accuracy" not in facts:
        task = Task(world_of(name), _card_depth(name), test=CARD_PROBLEMS, train=1)
        measured = measure_accuracy(folder, task, seed=CARD_SEED)
        facts |= {
            "name": name,
            "seed": seed,
            "recipe": repr(recipe),
            "made_by": describe(recipe),
            "accuracy": asdict(measured.accuracy),
            "pattern_2": measured.pattern_2,
            "accuracy_range": list(recipe.accuracy_range),
        }
        path.write_text(json.dumps(facts, indent=2) + "\n")
    low, high = recipe.accuracy_range
    if not low <= facts["accuracy"]["value"] <= high:
        raise UserError(
            f"Checkpoint {folder.name} answers {facts['accuracy']['value']:.1%} of held-out "
            f"problems; its recipe promises {low:.0%} to {high:.0%}. An experiment with it would "
            "mean nothing. Use another seed, or change its recipe in opd_lab/checkpoints.py."
        )
    return facts


def _card_depth(name: str) -> int | None:
    """The depth a checkpoint is measured at: its own, else that at which RL goes on from it."""
    recipe = RECIPES[name]
    if isinstance(recipe, RLRecipe) and recipe.depth is not None:
        return recipe.depth
    children = [r for r in RECIPES.values() if isinstance(r, RLRecipe) and r.parent == name]
    return next((child.depth for child in children), None)


def describe(recipe: Recipe) -> str:
    """How a checkpoint is made, in words."""
    if isinstance(recipe, RLRecipe):
        return f"outcome reward, {recipe.steps} steps"
    documents = "" if recipe.corpus.corrupt else " on right documents"
    return f"supervised, {recipe.corpus.size // recipe.batch} steps{documents}"


def build(name: str, seed: int, cache: Path) -> Path:
    """The folder of a checkpoint; it and its parents are built if the cache lacks them.

    One thread is used on any machine, because a different split of a sum is a different sum:
    weights then depend on name, seed, library versions and the kind of CPU alone.

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
    if isinstance(recipe, RLRecipe):
        assert parent is not None
        train_with_reward(recipe, name, parent, seed, cache, made)
    else:
        train_supervised(recipe, name, parent, seed, made)
    card_path = folder.with_suffix(".json")
    card_path.write_text(json.dumps({"seconds": round(time.monotonic() - started, 1)}) + "\n")
    publish(made, folder)
    return folder


def train_supervised(
    recipe: SupervisedRecipe, name: str, parent: Path | None, seed: int, made: Path
) -> None:
    """One pass over the recipe's corpus; the checkpoint goes to `made`."""
    tokenizer = recipe.world.tokenizer()
    with one_thread():
        if parent is None:
            model = tiny_qwen3(tokenizer, seed=seed, width=recipe.width)
            student = LM(model, len(tokenizer), name)
        else:
            student = load_lm(str(parent), dtype="float32", device="cpu")
        examples = encode(recipe.corpus.generate(recipe.world, seed), tokenizer)
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


def train_with_reward(
    recipe: RLRecipe, name: str, parent: Path, seed: int, cache: Path, made: Path
) -> None:
    """The product's loop without a teacher, on the outcome reward; the result goes to `made`."""
    changes = (
        "loss.support=sampled",
        "loss.terms.outcome_weight=1.0",
        f"optim.lr={recipe.lr}",
        f"rollout.n={recipe.n}",
        f"train.steps={recipe.steps}",
        "eval.0.every=20",
    )
    task = Task(world_of(name), recipe.depth, train=4000, test=256)
    result = run(parent, None, task, seed=seed, cache=cache, changes=changes)
    shutil.copytree(result.path / "final", made, dirs_exist_ok=True)
    facts = {"recipe": repr(recipe), "seed": seed, "accuracy": result.accuracy()}
    (made / "lab.json").write_text(json.dumps(facts, indent=2) + "\n")


def folder_name(name: str, seed: int) -> str:
    """Name of a checkpoint's folder in the cache."""
    return f"{name}-seed{seed}-{content_hash(name, seed)[:12]}"


def content_hash(name: str, seed: int) -> str:
    """Hash of everything that determines a checkpoint's weights, parents included."""
    content = hashlib.sha256(source_hash().encode())
    ancestor: str | None = name
    while ancestor is not None:
        content.update(repr((ancestor, seed, RECIPES[ancestor])).encode())
        ancestor = RECIPES[ancestor].parent
    return content.hexdigest()


def tiny_qwen3(
    tokenizer: PreTrainedTokenizerFast, *, seed: int, width: int = 64, layers: int = 2
) -> Qwen3ForCausalLM:
    """A randomly initialised Qwen3 (width 64: about 0.1 M parameters); depends on `seed` alone."""
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
