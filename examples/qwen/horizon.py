"""How far into a long answer does a teacher help? Sums of many numbers, one after the other.

    python examples/qwen/horizon.py [models] [gain] [train] [--limits N ...] [--seeds N ...]

Teacher and student are the 0.5B, fine-tuned on such sums for many and for few steps. `gain` lets
both go on from the student's own beginnings; `train` trains the student with responses cut off at
64 to 512 tokens, as many tokens in all. Without names all three. A second call goes on; tables are
kept in `horizon.json` and printed.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from prepare import DEFAULT, prepare
from tasks import ONLY, Row, write_jsonl

from opd.config import Optim
from opd.core import stats
from opd.data.graders import make_grader
from opd.data.prompts import PromptSet
from opd.data.sft_examples import make_example
from opd.errors import UserError
from opd.models.lm import LM, load_lm
from opd.models.saved_folder import replaced_folder
from opd.models.saving import save_merged
from opd.models.tokenizers import eos_ids, load_tokenizer, make_decoder
from opd.recipes.sft import sft
from opd.samplers.decoding import Decoding
from opd.samplers.hf import HFSampler
from opd.types import Prompt, Rollout
from teachers import BATCH, fine_tune, prompt_set, with_adapters

COUNTS = (5, 10, 20, 40)  # numbers to add
LONGEST = 600  # tokens
SPLITS = {"train": 0, "heldout": 1, "sft": 2}
CHECKPOINTS, LR = (3, 8), 3e-4  # steps of fine-tuning
MORE, LR_MORE = 16, 2e-4  # the teacher's, from the last of them on, at a rate that falls to 0
STUDENT, TEACHER = 3, 8 + MORE
HELD_OUT = 24  # problems of each count
BEGUN = 72  # answers of the student that both go on with
DEPTHS = (0, 64, 128, 192, 256, 320)  # tokens of them
NEXT, NEXT_TOKENS = 4, 72  # sums that are looked at then
LIMITS, STEPS, TOKENS = (64, 128, 256, 512), 8, 4096  # tokens of a step, whatever the limit


def problem(count: int, rng: np.random.Generator) -> Row:
    """Add numbers of one digit."""
    numbers = rng.integers(1, 10, count).tolist()
    question = f"What is {' + '.join(map(str, numbers))}?"
    return {"problem": question + ONLY, "answer": str(sum(numbers))}


def rows(split: str, counts: Sequence[int], seed: int = 0) -> list[Row]:
    """A problem for each of some counts."""
    made = []
    for index, count in enumerate(counts):
        key = np.random.SeedSequence((seed, SPLITS[split], index))
        made.append(problem(count, np.random.Generator(np.random.Philox(key))))
    return made


def numbers_of(problem: str) -> list[int]:
    """What a problem adds."""
    (terms,) = re.findall(r"What is ([0-9 +]+)\?", problem)
    return [int(part) for part in terms.split(" + ")]


def working(row: Row) -> str:
    """The sums of a problem, a line each."""
    numbers = numbers_of(row["problem"])
    totals = list(accumulate(numbers))
    lines = zip(totals, numbers[1:], totals[1:], strict=False)
    return "\n".join(f"{a} + {b} = {c}" for a, b, c in lines)


def folder(steps: int, base: Path) -> Path:
    """Of the model after some steps of fine-tuning."""
    return base / f"running-{steps}"


def make_models(base: Path) -> None:
    """Fine-tune the 0.5B on sums of every length; what was saved is kept."""
    if not all(folder(steps, base).exists() for steps in CHECKPOINTS):
        tokenizer, lm = load_tokenizer(str(base / "0.5b")), with_adapters(base / "0.5b")
        made = examples(max(CHECKPOINTS), 0, base, tokenizer)
        for steps in fine_tune(lm, made, LR, CHECKPOINTS):
            save(lm, tokenizer, folder(steps, base))
    if not folder(TEACHER, base).exists():
        source = folder(max(CHECKPOINTS), base)
        tokenizer, lm = load_tokenizer(str(source)), with_adapters(source)
        made, optim = examples(MORE, 1, base, tokenizer), Optim(lr=LR_MORE, warmup=2)
        for loss in sft(lm, made, steps=MORE, batch=BATCH, optim=optim, schedule="cosine"):
            print(f"  {loss:.3f}", flush=True)
        save(lm, tokenizer, folder(TEACHER, base))


def examples(steps: int, seed: int, base: Path, tokenizer: Any) -> list[Rollout]:
    """Problems of every length with their sums."""
    made = rows("sft", [COUNTS[i % len(COUNTS)] for i in range(BATCH * steps)], seed)
    prompts = prompt_set(made, base / "data" / f"running-sft-{seed}.jsonl", tokenizer).prompts
    return [
        make_example(p.index, p.ids, [*tokenizer(working(row)).input_ids, tokenizer.eos_token_id])
        for p, row in zip(prompts, made, strict=True)
    ]


def save(lm: LM, tokenizer: Any, place: Path) -> None:
    """Save a fine-tuned model, merged."""
    with replaced_folder(place) as unfinished:
        save_merged(lm, tokenizer, unfinished)


def held_out(count: int, base: Path, tokenizer: object, problems: int = HELD_OUT) -> PromptSet:
    """Held-out problems of a count."""
    path = base / "data" / f"running-heldout-{count}.jsonl"
    return prompt_set(rows("heldout", [count] * problems, seed=count), path, tokenizer)


def answer(
    lm: LM, tokenizer: object, prompts: Sequence[Prompt], stream: int, limit: int = LONGEST
) -> list[Rollout]:
    """One answer a prompt, as evaluations sample."""
    stop = eos_ids(tokenizer, lm.causal.generation_config)
    sampler = HFSampler(lm, Decoding(limit, 0.7, 0.95), stop=stop, capture=1)
    return sampler.sample(prompts, n=1, key=(0, stream))


def right(tokenizer: object, rollouts: Sequence[Rollout]) -> list[Any]:
    """Whether answers end with the sum."""
    texts = [make_decoder(tokenizer)(r.ids.tolist()) for r in rollouts]
    answers = [r.prompt.answer or "" for r in rollouts]
    return [g.correct for g in make_grader("number", answers).grade(texts, answers)]


def next_sums(problem: str, begun: str, text: str) -> float:
    """Which fraction of the `NEXT` sums after those that were begun are right.

    A sum is right if it adds the problem's next number to the last total that was written. The one
    that `begun` breaks off in is not counted, and one that is missing is wrong. NaN: none is left.
    """
    numbers = numbers_of(problem)
    lines, first = text.split("\n"), begun.count("\n") + (1 if begun else 0)
    correct, asked = 0, range(first, min(first + NEXT, len(numbers) - 1))
    for i in asked[: max(0, len(lines) - first)]:
        total = numbers[0] if i == 0 else int((re.findall(r"\d+", lines[i - 1]) or [-1])[-1])
        wanted = f"{total} + {numbers[i + 1]} = {total + numbers[i + 1]}"
        correct += lines[i].strip() == wanted
    return correct / len(asked) if asked else np.nan


def accuracies(model: Path, base: Path) -> dict[str, Any]:
    """Of a model by count, and mean tokens."""
    tokenizer, lm = load_tokenizer(str(model)), load_lm(str(model), dtype="bfloat16", device="cpu")
    tables = {}
    sets = [(count, held_out(count, base, tokenizer).prompts) for count in COUNTS]
    every = [replace(p, index=i) for i, p in enumerate(p for _, some in sets for p in some)]
    rollouts = answer(lm, tokenizer, every, 0)
    for i, count in enumerate(COUNTS):
        part = rollouts[i * HELD_OUT : (i + 1) * HELD_OUT]
        correct = right(tokenizer, part)
        tables[str(count)] = asdict(stats.avg_at_n([[c] for c in correct])) | {
            "tokens": float(np.mean([len(r) for r in part])),
            "cut off": float(np.mean([r.finish == "length" for r in part])),
        }
    return tables


def gain_by_depth(base: Path) -> dict[str, Any]:
    """Right among the next sums of both, going on from the student's first tokens, and the gain."""
    tokenizer = load_tokenizer(str(folder(STUDENT, base)))
    prompts = held_out(max(COUNTS), base, tokenizer, BEGUN).prompts
    models = {
        name: load_lm(str(folder(steps, base)), dtype="bfloat16", device="cpu")
        for name, steps in (("student", STUDENT), ("teacher", TEACHER))
    }
    first = answer(models["student"], tokenizer, prompts, 1)
    table = {}
    for depth in DEPTHS:
        begun = [r for r in first if len(r) > depth + NEXT_TOKENS]
        if len(begun) < len(first) / 2:
            break  # the student has ended most of its answers
        values = {name: go_on(lm, tokenizer, begun, depth) for name, lm in models.items()}
        left = np.isfinite(values["student"])  # some have begun their last sum
        values = {name: v[left] for name, v in values.items()}
        course = np.array([on_course(tokenizer, r, depth) for r in begun])[left]
        table[str(depth)] = {name: asdict(stats.mean(v)) for name, v in values.items()} | {
            "gain": asdict(stats.mean(values["teacher"] - values["student"])),
            "on course": float(np.mean(course)),
            "by course": {
                name: [float(v[part].mean()) if part.any() else None for part in (course, ~course)]
                for name, v in values.items()
            },
        }
        print(depth, table[str(depth)], flush=True)
    return table


def go_on(lm: LM, tokenizer: object, begun: Sequence[Rollout], depth: int) -> np.ndarray:
    """`next_sums` of each answer if a model goes on with it after `depth` tokens."""
    decode = make_decoder(tokenizer)
    before = [r.ids[:depth].tolist() for r in begun]
    prompts = [
        replace(r.prompt, ids=(*r.prompt.ids, *b)) for r, b in zip(begun, before, strict=True)
    ]
    after = answer(lm, tokenizer, prompts, 2 + depth, NEXT_TOKENS)
    return np.array(
        [
            next_sums(r.prompt.text, decode(b), decode([*b, *more.ids.tolist()]))
            for r, b, more in zip(begun, before, after, strict=True)
        ]
    )


def on_course(tokenizer: object, rollout: Rollout, depth: int) -> bool:
    """Whether the whole sums of an answer's first tokens are all right."""
    text = make_decoder(tokenizer)(rollout.ids[:depth].tolist())
    whole = text.split("\n")[:-1]
    return working({"problem": rollout.prompt.text}).split("\n")[: len(whole)] == whole


def train(limit: int, seed: int, base: Path) -> Path:
    """Train the student with responses of at most `limit` tokens; return its folder.

    Seeds have other problems and samples; student and teacher are the same.
    """
    name = limit_name(limit, seed, "-")
    out = base / "study" / f"horizon-{name}"
    if (out / "final").exists():
        return out / "final"
    per_step = TOKENS // limit
    some = rows("train", [max(COUNTS)] * per_step * STEPS, seed)
    prompts = write_jsonl(base / "data" / f"running-train-{name}.jsonl", some)
    student, teacher = (str(folder(steps, base)) for steps in (STUDENT, TEACHER))
    data = {
        "student": {"model": student, "precision": "bf16_mixed", "lora": {"rank": 16}},
        "teacher": {"model": teacher, "dtype": "bfloat16"},
        "prompts": {"path": str(prompts), "max_tokens": 256, "grader": "number"},
        "rollout": {"n": 1, "max_new_tokens": limit},
        "loss": {"support": "student_topk", "k": 16},
        "optim": {"lr": 1e-4},
        "train": {
            "steps": STEPS,
            "prompts_per_step": per_step,
            "seed": seed,
            "tokens_per_microbatch": 2048,
        },
        "alarms": {"action": "off"},
        "output": {"dir": str(out), "save_every": 2, "keep": 1},
    }
    file = out.with_name(f"{out.name}.yaml")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(yaml.safe_dump(data, sort_keys=False))
    command = [sys.executable, "-m", "opd", "train", str(file)]
    if code := subprocess.run([*command, *(["--resume"] if out.exists() else [])]).returncode:
        raise UserError(f"{' '.join(command[2:])} ended with {code}")
    return out / "final"


def limit_name(limit: int, seed: int, between: str) -> str:
    """Of a training in tables and folders; the first seed goes without."""
    return f"{limit}{between}{seed}" if seed else str(limit)


def main() -> int:
    """Do what is missing of what was asked for, and print the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("parts", nargs="*", help="of models, gain, train")
    parser.add_argument("--base", type=Path, default=DEFAULT, help="folder of the 0.5B")
    parser.add_argument("--limits", type=int, nargs="+", default=LIMITS, help="of train")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="of train")
    asked = parser.parse_args()
    parts, base = asked.parts or ["models", "gain", "train"], asked.base
    if base == DEFAULT:
        prepare("0.5b")
    record = base / "horizon.json"
    tables: dict[str, Any] = json.loads(record.read_text()) if record.is_file() else {}

    def keep(name: str, measure: Any) -> None:
        if name not in tables:
            tables[name] = measure()
            record.write_text(json.dumps(tables, indent=1))

    make_models(base)
    for steps in (STUDENT, TEACHER):
        keep(f"{steps} steps", partial(accuracies, folder(steps, base), base))
    if "gain" in parts:
        keep("gain", lambda: gain_by_depth(base))
    for seed in asked.seeds if "train" in parts else ():
        for limit in asked.limits:
            name = f"limit {limit_name(limit, seed, ', seed ')}"
            if name not in tables:
                keep(name, partial(accuracies, train(limit, seed, base), base))
    print(json.dumps(tables, indent=1))
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as error:
        sys.exit(f"error: {error}")
