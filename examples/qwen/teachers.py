"""Teachers made from the two sizes: fine-tuned by adapters on right answers, or on working.

A model is trained in one go and measured on a validation set after some numbers of steps; the
student of a comparison takes the checkpoint whose accuracy is nearest to the one asked for.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from prepare import DEFAULT
from tasks import Row, rows, without, write_jsonl

from opd.config import Optim
from opd.core import stats
from opd.data.graders import make_grader
from opd.data.prompts import PromptSet, load_prompts
from opd.data.sft_examples import make_example
from opd.models.lm import LM, add_lora, load_lm
from opd.models.saved_folder import replaced_folder
from opd.models.saving import save_merged
from opd.models.tokenizers import eos_ids, load_tokenizer, make_decoder
from opd.recipes.sft import sft
from opd.samplers.decoding import Decoding
from opd.samplers.hf import HFSampler
from opd.training.eval_task import EvalTask
from opd.training.evaluate import Evaluation, evaluate
from opd.types import Rollout

TASK, SEED, BATCH, VALIDATION = "addition", 100, 16, 200
LORA = {"rank": 16, "alpha": 32.0, "target_modules": "all-linear"}


@dataclass(frozen=True)
class Recipe:
    """How a teacher is made.

    Attributes:
        size: 0.5b or 1.5b.
        working: it writes the first sum before the second one, instead of the answer alone.
        lr: of the adapters.
        steps: after which it is kept, of `BATCH` examples each.
    """

    size: str
    working: bool
    lr: float
    steps: Sequence[int]


RECIPES = {
    "large": Recipe("1.5b", False, 2e-4, (8, 16)),
    "small": Recipe("0.5b", False, 3e-4, (16, 32, 64, 96)),
    "weaker": Recipe("1.5b", False, 2e-4, (4, 6)),
    "working": Recipe("0.5b", True, 3e-4, (4, 6, 8, 12)),
}


def working_of(problem: str) -> str:
    """The two sums of a problem of `addition`, one after the other."""
    a, b, c = (int(part) for part in problem.split("is ")[1].split("?")[0].split(" + "))
    return f"{a} + {b} = {a + b}\n{a + b} + {c} = {a + b + c}"


def examples(recipe: Recipe, data: Path, tokenizer: object) -> list[Rollout]:
    """Problems with what the teacher is to say; none is a held-out or a validation one."""
    heldout = [row for seed in (0, 1) for row in rows(TASK, "heldout", 300, seed)]
    held = without(rows(TASK, "train", BATCH * max(recipe.steps), SEED), [*heldout, *validation()])
    path = write_jsonl(data / f"sft-{recipe.working}.jsonl", held)
    prompts = load_prompts(str(path), tokenizer, template=None, chat={}, max_tokens=256).prompts
    texts = [working_of(row["problem"]) if recipe.working else row["answer"] for row in held]
    end = tokenizer.eos_token_id  # type: ignore[attr-defined]
    return [
        make_example(prompt.index, prompt.ids, [*tokenizer(text).input_ids, end])  # type: ignore[operator]
        for prompt, text in zip(prompts, texts, strict=True)
    ]


def validation() -> list[Row]:
    """Problems on which checkpoints and rates are chosen."""
    return rows(TASK, "search", VALIDATION, 0)


def problems(seed: int) -> dict[str, list[Row]]:
    """Rows by split; training problems are neither held out nor for validation."""
    heldout = rows(TASK, "heldout", 300, seed)
    return {
        "train": without(rows(TASK, "train", 1000, seed), [*heldout, *validation()]),
        "heldout": heldout,
        "validation": validation(),
        "offtask": rows("letters", "heldout", 100, seed),
    }


def prompt_set(some: Sequence[Row], path: Path, tokenizer: object) -> PromptSet:
    """Rows as prompts of the chat template."""
    written = write_jsonl(path, some)
    return load_prompts(str(written), tokenizer, template=None, chat={}, max_tokens=256)


def accuracy(lm: LM, tokenizer: object, prompts: PromptSet, tokens: int) -> stats.Estimate:
    """Of `answered`."""
    return answered(lm, tokenizer, prompts, tokens).accuracy


def answered(lm: LM, tokenizer: object, prompts: PromptSet, tokens: int) -> Evaluation:
    """One answer a prompt at temperature 0.7 and top_p 0.95."""
    decoding = Decoding(tokens, 0.7, 0.95)
    stop = eos_ids(tokenizer, lm.causal.generation_config)
    sampler = HFSampler(lm, decoding, stop=stop, capture=1, batch=64)
    grader = make_grader("number", [p.answer or "" for p in prompts.prompts])
    task = EvalTask(TASK, prompts, grader, decoding, 1, 0)
    return evaluate(sampler, task, make_decoder(tokenizer), seed=0)


def fine_tune(lm: LM, made: Sequence[Rollout], lr: float, steps: Sequence[int]) -> Iterator[int]:
    """Train adapters, and stop for a look after each of `steps`."""
    optim = Optim(lr=lr, warmup=4)
    trained = sft(lm, made, steps=max(steps), batch=BATCH, optim=optim, schedule="constant")
    for step, loss in enumerate(trained, start=1):
        print(f"  step {step}: {loss:.3f}", flush=True)
        if step in steps:
            yield step


def with_adapters(folder: Path, seed: int = 0) -> LM:
    """A model in bf16 with adapters."""
    return add_lora(load_lm(str(folder), dtype="bfloat16", device="cpu"), seed=seed, **LORA)  # type: ignore[arg-type]


def make_teacher(name: str, base: Path = DEFAULT) -> dict[str, float]:
    """Every checkpoint of a recipe as a folder `base/NAME-STEPS`, and their validation accuracy."""
    record = base / f"{name}.json"
    if record.is_file():
        known: dict[str, float] = json.loads(record.read_text())
        return known
    recipe = RECIPES[name]
    source = base / recipe.size
    tokenizer, lm = load_tokenizer(str(source)), with_adapters(source)
    checked = prompt_set(validation(), base / "data" / "validation.jsonl", tokenizer)
    accuracies = {}
    made = examples(recipe, base / "data", tokenizer)
    for step in fine_tune(lm, made, recipe.lr, recipe.steps):
        measured = accuracy(lm, tokenizer, checked, 48 if recipe.working else 24)
        accuracies[str(step)] = measured.value
        print(f"{name} after {step} steps: {measured.value:.3f}", flush=True)
        with replaced_folder(base / f"{name}-{step}") as folder:
            save_merged(lm, tokenizer, folder)
    record.write_text(json.dumps(accuracies))
    return accuracies


def nearest(name: str, target: float, base: Path = DEFAULT) -> Path:
    """The checkpoint of a recipe whose accuracy is nearest to `target`."""
    accuracies = make_teacher(name, base)
    return base / f"{name}-{min(accuracies, key=lambda step: abs(accuracies[step] - target))}"
