"""A real pair of two tokenizers: SmolLM2 learns from Qwen2.5-Coder, against SmolLM2 from itself.

`python -m opd_lab.tokenizers_trial --cache DIR --write docs/lab-tokenizers.md`, with the weights'
folders in `OPD_SMOLLM2` and `OPD_QWEN_SMALL`. Either teacher is fine-tuned a little on answers of
a task; models and runs are kept in the cache, so that a run that was stopped goes on. Where TRL is
installed, its GOLD trains the same student from the same teacher.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from opd import config
from opd.commands.eval import evaluate_config
from opd.config import Optim, Run
from opd.core import stats
from opd.data.prompts import load_prompts
from opd.data.sft_examples import make_example
from opd.models.lm import load_lm
from opd.models.master_weights import add_master_weights
from opd.models.saving import save_final
from opd.models.tokenizers import load_tokenizer
from opd.recipes.distillation import distill
from opd.recipes.sft import sft
from opd.rng import generator
from opd.run import evals
from opd.run.console import Console
from opd.run.jsonl import read_jsonl
from opd.setup.session import build
from opd_lab.gold_arm import gold_settings, gold_student, has_gold
from opd_lab.pairs.real import FOLDERS, SPLITS, problems
from opd_lab.runs import one_thread, only_errors
from opd_lab.streams import WorldStream

TASKS = ("sort", "words")
# fmt: off
WORDS = (  # each of which the two tokenizers cut differently
    "parsnip", "tundra", "bramble", "saffron", "yacht", "trombone", "accordion", "raccoon",
    "octopus", "papaya", "asparagus", "aubergine", "fennel", "coriander", "cardamom", "turmeric",
    "weasel", "ostrich", "peacock", "kingfisher", "woodpecker", "nightingale", "sparrow", "oboe",
    "cello", "xylophone", "tambourine", "piccolo", "chisel", "mallet", "wheelbarrow", "fjord",
)
# fmt: on
TRAIN, TEST = 400, 128
TEACHERS = {"smollm2": 24, "qwen-0.5b": 12}  # supervised steps of 16 answers
STEPS, PROMPTS, RESPONSES, TOKENS = 16, 8, 2, 32
LR = 5e-5

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Arm:
    """One trained student.

    Attributes:
        label: of its row.
        task: one of `TASKS`.
        teacher: one of `TEACHERS`.
        before: whether each held-out problem was solved before, as a fraction of the answers.
        after: likewise afterwards.
        aligned: fraction of its last tokens that are one token for the teacher too; None: all.
        minutes: that training took.
    """

    label: str
    task: str
    teacher: str
    before: np.ndarray
    after: np.ndarray
    aligned: float | None
    minutes: float


def questions(task: str, split: str, count: int) -> list[tuple[str, str]]:
    """`count` problems and answers; no problem of training is a held-out one."""
    if task == "sort":
        return problems(task, split, count)
    made: dict[str, str] = {}
    for index in range(100 * count):
        rng = generator(SPLITS[split], WorldStream.PROBLEMS, 1000 + index)
        words = [WORDS[i] for i in rng.choice(len(WORDS), 3, replace=False)]
        question = f"Write these words in reverse order: {', '.join(words)}."
        held_out = int(hashlib.sha256(question.encode()).hexdigest(), 16) % 4 == 0
        if held_out == (split == "heldout"):
            made.setdefault(question, ", ".join(words[::-1]))
        if len(made) == count:
            break
    return list(made.items())


def prompt_file(task: str, split: str, cache: Path) -> Path:
    """Problems of a task as a prompt file, written if absent."""
    path = cache / f"{task}-{split}.jsonl"
    if not path.exists():
        cache.mkdir(parents=True, exist_ok=True)
        system = {"role": "system", "content": ""}
        rows = [
            {"prompt": [system, {"role": "user", "content": question}], "answer": answer}
            for question, answer in questions(task, split, TEST if split == "heldout" else TRAIN)
        ]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def teacher(name: str, task: str, cache: Path) -> Path:
    """Folder of a teacher: real weights after a short fine-tuning on answers, made if absent."""
    folder, base = cache / f"teacher-{task}-{name}", os.environ[FOLDERS[name]]
    if folder.is_dir():
        return folder
    tokenizer, model = load_tokenizer(base), load_lm(base, dtype="float32")
    add_master_weights(model)
    prompts = load_prompts(
        str(prompt_file(task, "sft", cache)), tokenizer, template=None, chat={}, max_tokens=128
    ).prompts
    examples = [
        make_example(p.index, p.ids, [*tokenizer(p.answer).input_ids, tokenizer.eos_token_id])
        for p in prompts
    ]
    optim = Optim(lr=1e-4 if name == "smollm2" else 2e-5, warmup=3)
    with one_thread():
        steps = sft(model, examples, steps=TEACHERS[name], batch=16, optim=optim)
        for step, loss in enumerate(steps, start=1):
            logger.info("%s step %d: %.3f", name, step, loss)
    made = folder.with_name(f".{folder.name}")
    shutil.rmtree(made, ignore_errors=True)
    save_final(model, tokenizer, made)
    made.rename(folder)
    return folder


def settings(
    student: str, section: dict[str, Any], task: str, seed: int, cache: Path
) -> dict[str, Any]:
    """The run.yaml of an arm, but for its folder."""
    return {
        "student": {"model": student, "precision": "bf16_mixed"},
        "teacher": section,
        "prompts": {"path": str(prompt_file(task, "train", cache))},
        "rollout": {"n": RESPONSES, "max_new_tokens": TOKENS},
        "loss": {"support": "student_topk"},
        "optim": {"lr": LR, "warmup": 1},
        "train": {"steps": STEPS, "prompts_per_step": PROMPTS, "seed": seed},
        "eval": [
            {"path": str(prompt_file(task, "heldout", cache)), "name": "task", "n": 1, "every": 0,
             "grader": "exact"},
        ],
        "alarms": {"action": "off"},
    }  # fmt: skip


def trained(name: str, data: dict[str, Any], cache: Path, save_every: int = 1000) -> Path:
    """The run folder of an arm, trained if its summary is absent, from its last checkpoint on.

    Args:
        name: of the arm.
        data: its run.yaml, but for the folder.
        cache: where runs are kept.
        save_every: steps from checkpoint to checkpoint.
    """
    out = cache / f"run-{name}"
    if (out / "summary.json").exists():
        return out
    output = {"dir": str(out), "save_every": save_every, "keep": 1}
    begun = any((out / "checkpoints").glob("step-*"))
    cfg: Run = config.parse(data | {"output": output})
    began = time.monotonic()
    with one_thread():
        session, completions = build(
            cfg, resume=begun, overwrite=not begun, console=Console("quiet")
        )
        try:
            distill(session, completions)
        finally:
            session.folder.close()
    logger.info("%s: %.1f minutes", name, (time.monotonic() - began) / 60)
    return out


def correct(folder: Path, step: int, name: str = "task") -> np.ndarray:
    """Fraction of right answers to each held-out prompt."""
    path = folder / "eval" / f"step-{step}-{name}.json"
    saved = evals.load(path, json.loads(path.read_text("utf-8"))["key"])
    assert saved is not None, f"{path} is damaged"
    right: np.ndarray = np.array(saved[0]["correct"], dtype=float).mean(1)
    return right


def own_answers(name: str, folder: Path, task: str, cache: Path) -> np.ndarray:
    """What a model answers right by itself, in its own tokens, by the students' evaluation.

    Args:
        name: that the result is kept under.
        folder: of its weights.
        task: one of `TASKS`.
        cache: where results are kept.
    """
    out = cache / f"own-{task}-{name}.json"
    if not out.exists():
        data = settings(str(folder), {"model": str(folder)}, task, 0, cache)
        data |= {"teacher": None, "loss": {"terms": {"outcome_weight": 1}}}
        data |= {"output": {"dir": str(cache / "unused")}}
        with one_thread():
            (result,) = evaluate_config(config.parse(data), "quiet")
        out.write_text(json.dumps(result.student.correct.mean(1).tolist()))
    return np.array(json.loads(out.read_text()))


def distilled(task: str, seed: int, cache: Path) -> list[Arm]:
    """The arms that opd trains."""
    made = []
    for label, name in (("other tokenizer", "qwen-0.5b"), ("same tokenizer", "smollm2")):
        folder = str(teacher(name, task, cache))
        section = {"model": folder, "dtype": "bfloat16"}
        if name != "smollm2":
            section["tokenizer"] = folder
        data = settings(os.environ[FOLDERS["smollm2"]], section, task, seed, cache)
        run = trained(f"{task}-{name}-{seed}", data, cache)
        rows = [r for r in read_jsonl(run / "metrics.jsonl") if "train/loss" in r]
        seconds = sum(r.get("time/step_s", 0) for r in read_jsonl(run / "timings.jsonl"))
        results = correct(run, 0), correct(run, STEPS)
        shared = rows[-1].get("align/shared")
        made.append(Arm(f"{label}, seed {seed}", task, name, *results, shared, seconds / 60))
    return made


def of_gold(task: str, before: np.ndarray, cache: Path) -> Arm:
    """The arm that GOLD trains.

    Args:
        task: one of `TASKS`.
        before: held-out problems that the student solved before.
        cache: where the student is kept.
    """
    student, own = os.environ[FOLDERS["smollm2"]], teacher("qwen-0.5b", task, cache)
    name = f"gold-{task}"
    chosen = gold_settings(STEPS, PROMPTS, RESPONSES, TOKENS, LR)
    prompts = prompt_file(task, "train", cache)
    minutes = gold_student(student, own, prompts, chosen, cache / name)
    after = own_answers(name, cache / name, task, cache)
    return Arm("other tokenizer, GOLD", task, "qwen-0.5b", before, after, None, minutes)


def table(arms: Sequence[Arm], cache: Path) -> str:
    """One row per arm: accuracies, and the part of the gap that was recovered."""
    lines = [
        "| task | teacher | student before | after | teacher | gap recovered | aligned | minutes |",
        "|---" * 8 + "|",
    ]
    for arm in arms:
        folder = teacher(arm.teacher, arm.task, cache)
        top = own_answers(arm.teacher, folder, arm.task, cache)
        recovered = stats.gap_recovery(arm.before, arm.after, top)
        cells = [f"{x.mean():.3f}" for x in (arm.before, arm.after, top)]
        cells += [f"{recovered.value:.2f} [{recovered.low:.2f}, {recovered.high:.2f}]"]
        cells += ["-" if arm.aligned is None else f"{arm.aligned:.1%}", f"{arm.minutes:.0f}"]
        lines.append(f"| {arm.task} | {arm.label} | {' | '.join(cells)} |")
    return "\n".join(lines)


def page(tasks: Sequence[str], seeds: int, cache: Path) -> str:
    """docs/lab-tokenizers.md.

    Args:
        tasks: of `TASKS`.
        seeds: number of them, of opd's arms.
        cache: where models and runs are kept.
    """
    tuned = ", ".join(f"{name} {steps}" for name, steps in TEACHERS.items())
    arms: list[Arm] = []
    for task in tasks:
        arms += [arm for seed in range(seeds) for arm in distilled(task, seed, cache)]
        if has_gold() or (cache / f"gold-{task}").is_dir():
            before = arms[-1].before
            arms.append(of_gold(task, before, cache))
    gold = f"""GOLD is that of TRL: hybrid loss with its own weights, exact chunk probabilities,
on-policy at temperature 1, as many prompts, responses and steps, one seed, at the learning rate
{LR:g} of the other arms; no arm is tuned. It gives the teacher the student's rendering of the
prompt; opd gives it the teacher's own.
"""
    return f"""# A real pair of two tokenizers

Written by `python -m opd_lab.tokenizers_trial`; not edited by hand. SmolLM2-135M-Instruct learns a
task from Qwen2.5-Coder-0.5B-Instruct, whose tokenizer is another one, or from its own weights;
either teacher was fine-tuned on 16 right answers a step (steps: {tuned}). "sort": five
numbers of two digits, which both tokenizers cut alike. "words": three words in reverse order, each
of which the two tokenizers cut differently. {STEPS} steps of {PROMPTS} prompts x {RESPONSES}
responses of at most {TOKENS} tokens, `bf16_mixed`; {TEST} held-out problems, one answer each. A
teacher's accuracy is that of its own answers, in its own tokens. 95 % intervals over prompts.
Minutes are of a machine with other work.

{table(arms, cache)}

"aligned": the student's tokens of the last step that are one token for the teacher too.

{gold if any("GOLD" in arm.label for arm in arms) else ""}"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure what is missing and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--write", type=Path, default=None)
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--seeds", type=int, default=1)
    args = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    with only_errors():
        text = page(args.tasks, args.seeds, args.cache)
    if args.write is None:
        logger.info("%s", text)
    else:
        args.write.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
