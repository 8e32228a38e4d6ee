"""Building the models of a setting; each is kept on disk under a name that says what decided it."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from pathlib import Path

from opd import config
from opd.config import Optim
from opd.models.lm import LM, load_lm
from opd.recipes.distillation import distill
from opd.recipes.sft import sft
from opd.run.console import Console
from opd.setup.session import build
from opd_lab.cache_key import digest
from opd_lab.corpus import encode
from opd_lab.pairs.architectures import add_noise, random_model, scale_logits
from opd_lab.pairs.kinds import KINDS, Kind
from opd_lab.pairs.setting import Setting
from opd_lab.runs import Task, one_thread, publish, run_config
from opd_lab.worlds import PrefixedWorld, World
from opd_lab.worlds.generated.world import MARKERS
from opd_lab.worlds.rambling import RamblingWorld

VERSION = 1  # raise it when code that decides weights changes
BATCH = 32
CHILD_RATE = 2e-3


def build_model(setting: Setting, kind: str, seed: int, cache: Path) -> Path:
    """The folder of a model; it and its parents are built if the cache lacks them.

    Weights depend on setting, kind, seed, library versions and the kind of CPU (one thread is
    used). Unlike the zoo's, the name does not hash the product's source: outcomes of many hours
    must survive a commit, and every record says which weights it saw (`weights_digest`).
    """
    folder = cache / "models" / f"{setting.name}-{kind}-{seed}-{_content(setting, kind, seed)}"
    if folder.is_dir():
        return folder
    recipe = KINDS[kind]
    parent = None if recipe.parent is None else build_model(setting, recipe.parent, seed, cache)
    folder.parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(prefix=f".{kind}-", dir=folder.parent))
    with one_thread():
        if recipe.reward_steps:
            assert parent is not None
            _train_with_reward(setting, recipe, parent, seed, cache, made)
        else:
            _make(setting, recipe, parent, seed, made)
    (made / "lab.json").write_text(json.dumps({"digest": _hash_weights(made)}) + "\n")
    publish(made, folder)
    return folder


def weights_digest(folder: Path) -> str:
    """A short hash of a model's weights."""
    facts: dict[str, str] = json.loads((folder / "lab.json").read_text())
    return facts["digest"]


def _hash_weights(folder: Path) -> str:
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()[:16]


def _content(setting: Setting, kind: str, seed: int) -> str:
    """Hash of what decides a model's weights, parents included."""
    recipes, ancestor = [], kind
    while True:
        recipes.append(repr(KINDS[ancestor]))
        parent = KINDS[ancestor].parent
        if parent is None:
            return digest(repr(setting), str(seed), str(VERSION), *recipes)[:10]
        ancestor = parent


def _make(setting: Setting, recipe: Kind, parent: Path | None, seed: int, made: Path) -> None:
    tokenizer = setting.world.tokenizer()
    if parent is None:
        architecture = setting.large if recipe.large else setting.architecture
        lm = LM(random_model(architecture, tokenizer, seed=seed), len(tokenizer), "model")
        # Wider models want smaller rates.
        rate, warmup = setting.rate * (64 / architecture.width) ** 0.5, 40
    else:
        lm = load_lm(str(parent), dtype="float32", device="cpu")
        rate, warmup = CHILD_RATE, 20
    if recipe.corpus is not None:
        examples = encode(recipe.corpus.generate(_world_of(setting, recipe), seed), tokenizer)
        steps, optim = len(examples) // BATCH, Optim(lr=rate, warmup=warmup)
        for _ in sft(
            lm, examples, steps=steps, batch=BATCH, optim=optim, schedule="cosine", seed=seed
        ):
            pass
    if recipe.noise:
        add_noise(lm.causal, recipe.noise, seed=seed)
    if recipe.logits != 1:
        scale_logits(lm.causal, recipe.logits)
    lm.causal.save_pretrained(made)
    tokenizer.save_pretrained(made)


def _world_of(setting: Setting, recipe: Kind) -> World:
    world: World = setting.world
    if recipe.template:
        world = PrefixedWorld(world, " ".join(MARKERS))
    return RamblingWorld(world, recipe.repeated) if recipe.repeated else world


def _train_with_reward(
    setting: Setting, recipe: Kind, parent: Path, seed: int, cache: Path, made: Path
) -> None:
    """The product's loop without a teacher, on the outcome reward."""
    task = Task(setting.world, train=2000, test=32)
    out = made / "run"
    changes = (
        "loss.support=sampled",
        "loss.terms.outcome_weight=1.0",
        "optim.lr=6e-4",
        "rollout.n=8",
        f"train.steps={recipe.reward_steps}",
        f"eval.0.every={recipe.reward_steps}",
        "alarms.action=off",
    )
    cfg = config.parse(run_config(parent, None, task, task.files(seed, cache), seed, out), changes)
    session, completions = build(cfg, resume=False, overwrite=True, console=Console("quiet"))
    try:
        distill(session, completions)
    finally:
        session.trackers.close()
        session.folder.close()
    for path in (out / "final").iterdir():
        shutil.move(str(path), made / path.name)
    shutil.rmtree(out)
