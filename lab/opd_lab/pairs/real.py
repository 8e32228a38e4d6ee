"""Pairs of real models: SmolLM2 and Qwen2.5-Coder, fine-tuned or as they are, on five tasks.

Weights come from folders on disk (`OPD_SMOLLM2`, `OPD_QWEN_SMALL`, `OPD_QWEN_LARGE`); runs whose
folder is not named are left out. The first of these outcomes are in the fit of the forecast, the
others evaluate it.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import opd
from opd import config
from opd.config import Optim, Run
from opd.data.prompts import load_prompts
from opd.data.sft_examples import make_example
from opd.models.lm import load_lm
from opd.models.saving import save_final
from opd.models.tokenizers import load_tokenizer
from opd.recipes.sft import sft
from opd.rng import generator
from opd.run.env import git_state
from opd_lab.runs import one_thread, publish
from opd_lab.streams import WorldStream

BLOCK, PART_BLOCK = "real", "real-part"
FITTED = 5  # runs that the shipped forecast may be fitted on
FOLDERS = {
    "smollm2": "OPD_SMOLLM2",
    "qwen-0.5b": "OPD_QWEN_SMALL",
    "qwen-1.5b": "OPD_QWEN_LARGE",
}
TRAIN, TEST, EVALUATIONS = 400, 128, 4
PROMPTS = 64  # of the probe
# fmt: off
WORDS = (
    "apple", "river", "stone", "cloud", "music", "paper", "glass",
    "light", "water", "green", "table", "chair", "house", "bread",
    "horse", "train", "plant", "sugar", "ocean", "tiger",
)
# fmt: on
SPLITS = {"train": 0, "sft": 1, "heldout": 2}
Example = tuple[str, str]  # question, answer


@dataclass(frozen=True)
class Kind:
    """How a model of a pair is made from real weights.

    Attributes:
        steps: of supervised fine-tuning on answers; 0: as it is.
        wrong: fraction of those answers that are of another problem.
        repeats: answers are said again and again, and never end.
    """

    steps: int = 0
    wrong: float = 0.0
    repeats: bool = False


KINDS = {
    "base": Kind(),
    "right": Kind(24),
    "partly": Kind(8),
    "half": Kind(24, wrong=0.5),
    "endless": Kind(24, repeats=True),
}


@dataclass(frozen=True)
class RealRun:
    """A pair of real models and the settings of its run; see `opd_lab.pairs.design.PlannedRun`.

    Attributes:
        index: number in the block.
        task: sort, reverse, add, initials or largest.
        student: (weights, kind).
        teacher: likewise.
        changes: overrides of the run.yaml.
        block: `BLOCK`, or `PART_BLOCK`.
    """

    index: int
    task: str
    student: tuple[str, str]
    teacher: tuple[str, str]
    changes: tuple[str, ...] = ()
    block: str = BLOCK

    @property
    def seed(self) -> int:
        """Of prompts and rollouts."""
        return self.index + (1000 if self.block == PART_BLOCK else 0)

    @property
    def available(self) -> bool:
        """Whether the folders of both are named."""
        return all(os.environ.get(FOLDERS[name]) for name, _ in (self.student, self.teacher))


def _smollm2(task: str, student: str, teacher: str, *changes: str) -> tuple[Any, ...]:
    return task, ("smollm2", student), ("smollm2", teacher), changes


LORA = ("student.lora={rank: 16, alpha: 32}", "optim.lr=4e-4")
QWEN = (*LORA, "train.prompts_per_step=8")
TABLE: tuple[tuple[Any, ...], ...] = (
    _smollm2("sort", "base", "right"),
    _smollm2("reverse", "base", "half", *LORA),
    _smollm2("add", "base", "right"),
    _smollm2("sort", "right", "base"),
    _smollm2("reverse", "base", "right"),
    _smollm2("add", "base", "right", "optim.lr=5e-7"),
    _smollm2("sort", "base", "right", *LORA),
    _smollm2("reverse", "partly", "endless"),
    _smollm2("add", "partly", "half", *LORA),
    _smollm2("sort", "partly", "right", "optim.lr=3e-3"),
    _smollm2("reverse", "half", "partly"),
    _smollm2("add", "right", "partly", *LORA),
    ("sort", ("qwen-0.5b", "base"), ("qwen-1.5b", "base"), QWEN),
    ("add", ("qwen-0.5b", "base"), ("qwen-1.5b", "base"), QWEN),
    ("sort", ("qwen-1.5b", "base"), ("qwen-0.5b", "base"), QWEN),
    _smollm2("sort", "base", "partly"),
    _smollm2("reverse", "base", "right", *LORA),
    _smollm2("add", "base", "half"),
    _smollm2("sort", "base", "half", *LORA),
    _smollm2("reverse", "right", "base"),
    _smollm2("add", "base", "right", *LORA),
    _smollm2("sort", "base", "endless"),
    _smollm2("reverse", "base", "right", "optim.lr=5e-7"),
    _smollm2("add", "partly", "right"),
    _smollm2("sort", "partly", "half"),
    _smollm2("reverse", "partly", "right"),
    _smollm2("add", "base", "right", "optim.lr=3e-3"),
)
# A part of each is made before, as by `opd check`. Two of the tasks are in no other block; float32,
# so that every CPU makes them. Fixed before any of them was made.
FLOAT32 = ("student.precision=float32", "teacher.dtype=float32")
PART_TABLE: tuple[tuple[Any, ...], ...] = (
    _smollm2("initials", "base", "right"),
    _smollm2("largest", "base", "right"),
    _smollm2("sort", "partly", "half"),
    _smollm2("initials", "partly", "endless"),
    _smollm2("largest", "partly", "base"),
    _smollm2("sort", "base", "right"),
    _smollm2("initials", "base", "half", *LORA),
    _smollm2("largest", "base", "half"),
    _smollm2("sort", "right", "partly"),
    _smollm2("initials", "partly", "right", "optim.lr=3e-3"),
    _smollm2("largest", "base", "partly", *LORA),
    _smollm2("sort", "base", "partly", *LORA),
)
RUNS = tuple(RealRun(i, *row) for i, row in enumerate(TABLE))
PART_RUNS = tuple(
    RealRun(i, task, student, teacher, (*FLOAT32, *changes), PART_BLOCK)
    for i, (task, student, teacher, changes) in enumerate(PART_TABLE)
)


def configure_real(run: RealRun, cache: Path, out: Path) -> tuple[Run, dict[str, Any]]:
    """The configuration of a run and the part of its record that is known before it.

    Args:
        run: of `RUNS`.
        cache: where fine-tuned models and prompts are kept; missing ones are made.
        out: run folder.
    """
    began = time.monotonic()
    roles = {"student": run.student, "teacher": run.teacher}
    folders = {role: _model(*made, run.task, cache) for role, made in roles.items()}
    files = {split: _prompts(run.task, split, cache) for split in ("train", "heldout")}
    facts = {
        "block": run.block,
        "index": run.index,
        "world": f"{run.student[0]}-{run.task}",
        "student": run.student[1],
        "teacher": f"{run.teacher[0]} {run.teacher[1]}",
        "model_seed": 0,
        "seed": run.seed,
        "changes": list(run.changes),
        "weights": {role: _weights_digest(folder) for role, folder in folders.items()},
        "commit": (git_state(Path(opd.__file__).parent) or {}).get("sha"),
        "build_seconds": round(time.monotonic() - began, 1),
    }
    return config.parse(_settings(run, folders, files, out), list(run.changes)), facts


def _settings(
    run: RealRun, folders: dict[str, Path], files: dict[str, Path], out: Path
) -> dict[str, Any]:
    return {
        "student": {"model": str(folders["student"]), "precision": "bf16_mixed"},
        "teacher": {"model": str(folders["teacher"]), "dtype": "bfloat16"},
        "prompts": {"path": str(files["train"])},
        "rollout": {"n": 2, "max_new_tokens": 32},
        "optim": {"lr": 3e-5, "warmup": 2},
        "train": {"steps": 24, "prompts_per_step": 16, "seed": run.seed},
        "eval": [
            {"path": str(files["heldout"]), "name": "task", "n": 1, "every": 24 // EVALUATIONS,
             "grader": "exact"},
        ],
        "alarms": {"action": "off"},
        "output": {"dir": str(out), "save_every": 1000, "keep": 1},
    }  # fmt: skip


def problems(task: str, split: str, count: int) -> list[Example]:
    """`count` different problems with answers; no training problem is a held-out one."""
    made: dict[str, str] = {}
    index = 0
    while len(made) < count:
        rng = generator(SPLITS[split], WorldStream.PROBLEMS, index)
        question, answer = _problem(task, rng)
        index += 1
        held_out = int(hashlib.sha256(question.encode()).hexdigest(), 16) % 4 == 0
        if held_out == (split == "heldout"):
            made.setdefault(question, answer)
    return list(made.items())


def _problem(task: str, rng: np.random.Generator) -> Example:
    if task == "sort":
        numbers = [int(x) for x in 10 + rng.choice(90, 5, replace=False)]
        text = ", ".join(map(str, numbers))
        return f"Sort these numbers from smallest to largest: {text}.", ", ".join(
            map(str, sorted(numbers))
        )
    if task == "reverse":
        words = [WORDS[i] for i in rng.choice(len(WORDS), 4, replace=False)]
        return f"Write these words in reverse order: {' '.join(words)}.", " ".join(words[::-1])
    if task == "initials":
        words = [WORDS[i] for i in rng.choice(len(WORDS), 4, replace=False)]
        question = f"Write the first letter of each of these words: {' '.join(words)}."
        return question, " ".join(word[0] for word in words)
    if task == "largest":
        numbers = [int(x) for x in 100 + rng.choice(900, 4, replace=False)]
        text = ", ".join(map(str, numbers))
        return f"Which of these numbers is the largest: {text}?", str(max(numbers))
    numbers = [int(x) for x in rng.integers(10, 100, 3)]
    return f"What is {' + '.join(map(str, numbers))}? Reply with the number.", str(sum(numbers))


def _prompts(task: str, split: str, cache: Path) -> Path:
    path = cache / "prompts" / f"real-{task}-{split}.jsonl"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = [
            {"prompt": [{"role": "system", "content": ""}, {"role": "user", "content": question}],
             "answer": answer}
            for question, answer in problems(task, split, TRAIN if split != "heldout" else TEST)
        ]  # fmt: skip
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def _model(weights: str, kind: str, task: str, cache: Path) -> Path:
    """Folder of a model; a fine-tuned one is made if the cache lacks it."""
    base = Path(os.environ[FOLDERS[weights]])
    recipe = KINDS[kind]
    if not recipe.steps:
        return base
    folder = cache / "models" / f"real-{weights}-{task}-{kind}"
    if folder.is_dir():
        return folder
    tokenizer, model = load_tokenizer(str(base)), load_lm(str(base), dtype="float32")
    path = _prompts(task, "sft", cache)
    prompts = load_prompts(str(path), tokenizer, template=None, chat={}, max_tokens=128).prompts
    answers = _answers([p.answer or "" for p in prompts], recipe)
    end = [] if recipe.repeats else [tokenizer.eos_token_id]
    examples = [
        make_example(p.index, p.ids, [*tokenizer(answer).input_ids, *end])
        for p, answer in zip(prompts, answers, strict=True)
    ]
    optim = Optim(lr=1e-4, warmup=3)
    with one_thread():
        for _ in sft(model, examples, steps=recipe.steps, batch=16, optim=optim, schedule="cosine"):
            pass
    folder.parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(prefix=f".{kind}-", dir=folder.parent)) / "model"
    save_final(model, tokenizer, made)
    publish(made, folder)
    return folder


def _answers(answers: Sequence[str], recipe: Kind) -> list[str]:
    """What a model is taught to say."""
    count = round(recipe.wrong * len(answers))
    answers = [*answers[1 : count + 1], *answers[count:]]
    return [" ".join([answer] * 6) for answer in answers] if recipe.repeats else list(answers)


def _weights_digest(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]
