"""E18 on a real model: SmolLM2 with a hint teaches itself to sort, against a fine-tuned teacher.

`python -m opd_lab.hint_trial --cache DIR --write docs/lab-hints.md`, with the folder of the weights
in `OPD_SMOLLM2`. Models and runs are kept in the cache, so that a trial that was stopped goes on.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from opd import config
from opd.alarms import replay
from opd.commands.eval import evaluate_config
from opd.config import Alarms, Optim
from opd.core import stats
from opd.data.prompts import load_prompts
from opd.data.readers import Row
from opd.data.sft_examples import make_example
from opd.data.teacher_prompts import fill_in
from opd.models.lm import load_lm
from opd.models.saving import save_final
from opd.models.tokenizers import load_tokenizer
from opd.recipes.sft import sft
from opd.run.jsonl import read_jsonl
from opd_lab.pairs.real import FOLDERS, problems
from opd_lab.runs import one_thread, only_errors
from opd_lab.teachers_tables import HINT_ALARMS
from opd_lab.tokenizers_trial import correct, trained

ANSWER = "{prompt}\n\nReference answer: {answer}"
WORKED = "{prompt}\n\nA similar problem, solved: {demonstration}"
TRAIN, TEST, STEPS, EVERY, TUNED = 400, 128, 24, 6, 24
PROMPTS, RESPONSES, TOKENS, LR = 16, 2, 32, 3e-5

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Arm:
    """A student and who teaches it.

    Attributes:
        label: of its row.
        student: "base", or "follows": fine-tuned on right answers with `ANSWER` in the prompt.
        hint: template of the student's own hint; None: a teacher that was fine-tuned on right
            answers without a hint.
    """

    label: str
    student: str
    hint: str | None


ARMS = {
    "answer": Arm("as it is, itself with the answer", "base", ANSWER),
    "worked": Arm("as it is, itself with a worked example", "base", WORKED),
    "follows": Arm("that follows hints, itself with the answer", "follows", ANSWER),
    "external": Arm("as it is, a fine-tuned teacher", "base", None),
}


def rows(split: str, hint: str | None = None) -> list[dict[str, Any]]:
    """Problems with their answer and another problem, solved; in the hint's words if there is one.

    Args:
        split: train, sft or heldout; no problem of one of the first two is a held-out one.
        hint: template; None: the bare problem.
    """
    count = TEST if split == "heldout" else TRAIN
    others = problems("sort", "sft" if split != "sft" else "train", count)
    made = []
    for i, (question, answer) in enumerate(problems("sort", split, count)):
        shown = {"answer": answer, "demonstration": "\n".join(others[i])}
        text = fill_in(hint, Row(i, split, shown), question, "hint") if hint else question
        chat = [{"role": "system", "content": ""}, {"role": "user", "content": text}]
        made.append({"prompt": chat, **shown})
    return made


def prompt_file(split: str, cache: Path, hint: str | None = None) -> Path:
    """`rows` as a prompt file, written if absent."""
    kind = {None: "bare", ANSWER: "answer", WORKED: "worked"}[hint]
    path = cache / f"hints-{split}-{kind}.jsonl"
    if not path.exists():
        cache.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows(split, hint)), "utf-8")
    return path


def student(name: str, cache: Path) -> Path:
    """Folder of a model: the base, or fine-tuned on right answers after the hint or without one.

    Args:
        name: "base", "follows" (with the hint `ANSWER`) or "right" (without one).
        cache: where fine-tuned ones are kept.
    """
    base, folder = Path(os.environ[FOLDERS["smollm2"]]), cache / f"smollm2-{name}"
    if name == "base" or folder.is_dir():
        return base if name == "base" else folder
    tokenizer, model = load_tokenizer(str(base)), load_lm(str(base), dtype="float32")
    path = prompt_file("sft", cache, ANSWER if name == "follows" else None)
    prompts = load_prompts(str(path), tokenizer, template=None, chat={}, max_tokens=256).prompts
    examples = [
        make_example(p.index, p.ids, [*tokenizer(p.answer).input_ids, tokenizer.eos_token_id])
        for p in prompts
    ]
    optim = Optim(lr=1e-4, warmup=3)
    with one_thread():
        for step, loss in enumerate(
            sft(model, examples, steps=TUNED, batch=16, optim=optim, schedule="cosine"), start=1
        ):
            logger.info("%s step %d: %.3f", name, step, loss)
    made = folder.with_name(f".{folder.name}")
    shutil.rmtree(made, ignore_errors=True)
    save_final(model, tokenizer, made)
    made.rename(folder)
    return folder


def settings(arm: Arm, seed: int, cache: Path) -> dict[str, Any]:
    """The run.yaml of an arm, but for its folder."""
    teacher: dict[str, Any] = {"from": "student", "weights": "frozen", "prompt": arm.hint}
    if arm.hint is None:
        teacher = {"model": str(student("right", cache)), "dtype": "bfloat16"}
    return {
        "student": {"model": str(student(arm.student, cache)), "precision": "bf16_mixed"},
        "teacher": teacher,
        "prompts": {"path": str(prompt_file("train", cache))},
        "rollout": {"n": RESPONSES, "max_new_tokens": TOKENS},
        "optim": {"lr": LR, "warmup": 2},
        "train": {"steps": STEPS, "prompts_per_step": PROMPTS, "seed": seed},
        "eval": [
            {"path": str(prompt_file("heldout", cache)), "name": "task", "n": 1, "every": EVERY,
             "grader": "exact"},
        ],
        "alarms": {"action": "off"},
    }  # fmt: skip


def own_answers(arm: Arm, cache: Path) -> np.ndarray:
    """Which held-out problems the teacher of an arm answers right, with its hint if it has one."""
    name = arm.student if arm.hint else "right"
    heldout = prompt_file("heldout", cache, arm.hint)
    out = cache / f"own-{name}-{heldout.stem}.json"
    if not out.exists():
        data = settings(arm, 0, cache)
        data["student"] |= {"model": str(student(name, cache))}
        data["eval"][0] |= {"path": str(heldout)}
        data |= {"teacher": None, "loss": {"terms": {"outcome_weight": 1}}}
        data |= {"output": {"dir": str(cache / "unused")}}
        with one_thread():
            (result,) = evaluate_config(config.parse(data), "quiet")
        out.write_text(json.dumps(result.student.correct.mean(1).tolist()))
    return np.array(json.loads(out.read_text()))


def fraction(values: np.ndarray) -> str:
    """A mean of right answers with its 95 % interval."""
    mean = stats.mean_fraction(values)
    return f"{mean.value:.2f} [{mean.low:.2f}, {mean.high:.2f}]"


def measured(name: str, seed: int, cache: Path) -> tuple[str, str]:
    """The rows of an arm in the two tables, trained if its run is absent.

    Args:
        name: of an arm in `ARMS`.
        seed: of the run.
        cache: where models and runs are kept.
    """
    arm = ARMS[name]
    logger.info("%s seed %d", name, seed)
    run = trained(f"hint-{name}-{seed}", settings(arm, seed, cache), cache, EVERY)
    label = f"{arm.label}, seed {seed}"
    cells = [fraction(own_answers(arm, cache))]
    cells += [fraction(correct(run, step)) for step in range(0, STEPS + 1, EVERY)]
    logged = [r for r in read_jsonl(run / "metrics.jsonl") if "train/loss" in r]
    watched = []
    for metric in ("length", "entropy", "distinct", "hint_quoted", "truncated"):
        values = [r[f"rollout/{metric}"] for r in logged if f"rollout/{metric}" in r]
        parts = (np.mean(values[:6]), np.mean(values[-6:])) if values else ()
        watched.append(" -> ".join(f"{x:.2f}" for x in parts) or "-")
    rows_ = list(read_jsonl(run / "metrics.jsonl"))
    alarms = sorted({alarm.name for alarm in replay(rows_, Alarms(), STEPS)})
    watched.append(", ".join(alarms) or "none")
    return f"| {label} | {' | '.join(cells)} |", f"| {label} | {' | '.join(watched)} |"


def page(names: Sequence[str], seeds: int, cache: Path) -> str:
    """docs/lab-hints.md.

    Args:
        names: of arms.
        seeds: number of them.
        cache: where models and runs are kept.
    """
    pairs = [measured(name, seed, cache) for name in names for seed in range(seeds)]
    steps = range(0, STEPS + 1, EVERY)
    accuracies = "\n".join(row for row, _ in pairs)
    watched = "\n".join(row for _, row in pairs)
    return f"""# A real model as its own teacher, with a hint

Written by `python -m opd_lab.hint_trial`; not edited by hand. SmolLM2-135M-Instruct learns to sort
five numbers of two digits. The hint is the answer (`Reference answer: {{answer}}` below the
problem) or another problem, solved; a frozen self sees it, the student does not. The student that
"follows hints" was fine-tuned before ({TUNED} steps of 16) on right answers to problems with the
answer in the prompt; the fine-tuned teacher on right answers without a hint, as many. {STEPS} steps
of {PROMPTS} prompts x {RESPONSES} responses of at most {TOKENS} tokens at {LR:g}, `bf16_mixed`; all
arms see the same prompts, and as many tokens at most. {TEST} held-out problems without a hint, one
answer each; "teacher" is what it answers itself, with its hint. 95 % intervals over prompts.

| student and teacher | teacher | {" | ".join(f"step {s}" for s in steps)} |
{"|---" * (len(steps) + 2)}|
{accuracies}

Means over the first and the last six steps of training, and the alarms that were raised
(`{"`, `".join(HINT_ALARMS)}` are the ones that runs with a hint have):

| student and teacher | length | entropy | distinct | hint_quoted | truncated | alarms |
|---|---|---|---|---|---|---|
{watched}
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure what is missing and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--write", type=Path, default=None)
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--seeds", type=int, default=1)
    args = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    with only_errors():
        text = page(args.arms, args.seeds, args.cache)
    if args.write is None:
        logger.info("%s", text)
    else:
        args.write.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
