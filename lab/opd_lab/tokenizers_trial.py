"""A real pair of two tokenizers: SmolLM2 learns from Qwen2.5-Coder, against SmolLM2 from itself.

`python -m opd_lab.tokenizers_trial --cache DIR --write docs/lab-tokenizers.md`, with the weights'
folders in `OPD_SMOLLM2` and `OPD_QWEN_SMALL`. Either teacher is fine-tuned a little on answers of
the task; models and runs are kept in the cache, so that a run that was stopped goes on.
Both teachers were fine-tuned once; the two distillations have not been run to their end yet.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from opd import config
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
from opd.run import evals
from opd.run.console import Console
from opd.run.jsonl import read_jsonl
from opd.setup.session import build
from opd_lab.pairs.real import FOLDERS, problems
from opd_lab.runs import one_thread

TASK, TRAIN, TEST = "sort", 400, 128
TEACHERS = {"smollm2": 24, "qwen-0.5b": 12}  # supervised steps of 16 answers
STEPS, PROMPTS = 16, 8

logger = logging.getLogger(__name__)


def prompt_file(split: str, cache: Path) -> Path:
    """Problems of the task as a prompt file, written if absent."""
    path = cache / f"{TASK}-{split}.jsonl"
    if not path.exists():
        cache.mkdir(parents=True, exist_ok=True)
        system = {"role": "system", "content": ""}
        rows = [
            {"prompt": [system, {"role": "user", "content": question}], "answer": answer}
            for question, answer in problems(TASK, split, TEST if split == "heldout" else TRAIN)
        ]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def teacher(name: str, cache: Path) -> Path:
    """Folder of a teacher: real weights after a short fine-tuning on answers, made if absent."""
    folder, base = cache / f"teacher-{name}", os.environ[FOLDERS[name]]
    if folder.is_dir():
        return folder
    tokenizer, model = load_tokenizer(base), load_lm(base, dtype="float32")
    add_master_weights(model)
    prompts = load_prompts(
        str(prompt_file("sft", cache)), tokenizer, template=None, chat={}, max_tokens=128
    ).prompts
    examples = [
        make_example(p.index, p.ids, [*tokenizer(p.answer).input_ids, tokenizer.eos_token_id])
        for p in prompts
    ]
    settings = Optim(lr=1e-4 if name == "smollm2" else 2e-5, warmup=3)
    with one_thread():
        steps = sft(model, examples, steps=TEACHERS[name], batch=16, optim=settings)
        for step, loss in enumerate(steps, start=1):
            logger.info("%s step %d: %.3f", name, step, loss)
    made = folder.with_name(f".{folder.name}")
    shutil.rmtree(made, ignore_errors=True)
    save_final(model, tokenizer, made)
    made.rename(folder)
    return folder


def settings(student: str, section: dict[str, Any], support: str, cache: Path) -> dict[str, Any]:
    """The run.yaml of an arm, but for its folder."""
    return {
        "student": {"model": student, "precision": "bf16_mixed"},
        "teacher": section,
        "prompts": {"path": str(prompt_file("train", cache))},
        "rollout": {"n": 2, "max_new_tokens": 32},
        "loss": {"support": support},
        "optim": {"lr": 5e-5, "warmup": 1},
        "train": {"steps": STEPS, "prompts_per_step": PROMPTS, "seed": 0},
        "eval": [
            {"path": str(prompt_file("heldout", cache)), "name": "task", "n": 1, "every": 0,
             "grader": "exact"},
        ],
        "alarms": {"action": "off"},
    }  # fmt: skip


def trained(name: str, data: dict[str, Any], cache: Path) -> Path:
    """The run folder of an arm, trained if its summary is absent."""
    out = cache / f"run-{name}"
    if (out / "summary.json").exists():
        return out
    output = {"dir": str(out), "save_every": 1000, "keep": 1}
    cfg: Run = config.parse(data | {"output": output})
    began = time.monotonic()
    with one_thread():
        session, completions = build(cfg, resume=False, overwrite=True, console=Console("quiet"))
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


def teachers_own(name: str, folder: Path, cache: Path) -> np.ndarray:
    """What a teacher answers right by itself, in its own tokens, by the student's evaluation."""
    out = cache / f"own-{name}.json"
    if not out.exists():
        from opd.commands.eval import evaluate_config

        data = settings(str(folder), {"model": str(folder)}, "student_topk", cache)
        data |= {"teacher": None, "loss": {"terms": {"outcome_weight": 1}}}
        with one_thread():
            (result,) = evaluate_config(
                config.parse(data | {"output": {"dir": str(cache / "unused")}}), "quiet"
            )
        out.write_text(json.dumps(result.student.correct.mean(1).tolist()))
    return np.array(json.loads(out.read_text()))


def arms(cache: Path) -> list[tuple[str, str, Path]]:
    """Label, teacher and run folder of every arm."""
    student = os.environ[FOLDERS["smollm2"]]
    folders = {name: str(teacher(name, cache)) for name in TEACHERS}
    other = {"model": folders["qwen-0.5b"], "tokenizer": folders["qwen-0.5b"], "dtype": "bfloat16"}
    same = {"model": folders["smollm2"], "dtype": "bfloat16"}
    planned = (
        ("other tokenizer, `student_topk`", "qwen-0.5b", other, "student_topk"),
        ("same tokenizer, `student_topk`", "smollm2", same, "student_topk"),
    )
    made = []
    for label, name, section, support in planned:
        data = settings(student, section, support, cache)
        made.append((label, name, trained(f"{name}-{support}", data, cache)))
    return made


def table(cache: Path) -> str:
    """One row per arm: accuracies, and the part of the gap that was recovered."""
    lines = [
        "| teacher | student before | after | teacher | gap recovered | aligned | minutes |",
        "|---|---|---|---|---|---|---|",
    ]
    for label, name, run in arms(cache):
        before, after = correct(run, 0), correct(run, STEPS)
        top = teachers_own(name, cache / f"teacher-{name}", cache)
        recovered = stats.gap_recovery(before, after, top)
        rows = [r for r in read_jsonl(run / "metrics.jsonl") if "train/loss" in r]
        aligned = rows[-1].get("align/shared")
        minutes = sum(r.get("time/step_s", 0) for r in read_jsonl(run / "timings.jsonl")) / 60
        cells = [f"{x.mean():.3f}" for x in (before, after, top)]
        cells += [f"{recovered.value:.2f} [{recovered.low:.2f}, {recovered.high:.2f}]"]
        cells += ["-" if aligned is None else f"{aligned:.1%}", f"{minutes:.0f}"]
        lines.append(f"| {label} | {' | '.join(cells)} |")
    return "\n".join(lines)


def page(cache: Path) -> str:
    """docs/lab-tokenizers.md."""
    tuned = ", ".join(f"{name} {steps}" for name, steps in TEACHERS.items())
    return f"""# A real pair of two tokenizers

Written by `python -m opd_lab.tokenizers_trial`; not edited by hand. SmolLM2-135M-Instruct learns to
sort five numbers from Qwen2.5-Coder-0.5B-Instruct, whose tokenizer is another one, or from its own
weights; either teacher was fine-tuned on 16 right answers a step (steps: {tuned}).
{STEPS} steps of {PROMPTS} prompts x 2 responses of at most 32 tokens, `bf16_mixed`, one seed;
{TEST} held-out problems, one answer each. A teacher's accuracy is that of its own answers, in its
own tokens. 95 % intervals over prompts.

{table(cache)}

"aligned": the student's tokens of the last step that are one token for the teacher too.
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure what is missing and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--write", type=Path, default=None)
    args = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("opd").setLevel(logging.ERROR)
    text = page(args.cache)
    if args.write is None:
        logger.info("%s", text)
    else:
        args.write.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
