"""Which teacher helps the 0.5B: the 1.5B as it is or fine-tuned, a small one, one that works aloud?

    python examples/qwen/study.py [ARM ...] [--seeds 0 1] [--page FILE]

Without arms all of them. `opd check` is asked before an arm is trained and its verdict is kept
beside the run; a second call goes on where the first one stopped.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from imitation import SIZES, imitate
from prepare import DEFAULT, prepare
from study_page import page
from tasks import write_jsonl

from opd.errors import UserError
from teachers import RECIPES, make_teacher, nearest, problems

RATES, IMITATION_RATES = (3e-5, 1e-4, 3e-4), (1e-4, 3e-4, 1e-3)
STEPS, PROMPTS, RESPONSES, BUDGET = 24, 8, 2, 120
# Both renormalised over their tokens (loss.mode: paper), so that neither has a larger scale.
COMMON = {"support": "intersection", "k": 16}
REST = {"support": "symmetric_difference", "k": 16}
COLD = {"lr": 1e-4, "completions_per_round": 128, "max_rounds": 2, "answer": "found"}


@dataclass(frozen=True)
class Arm:
    """A student and who teaches it.

    Attributes:
        label: of its row.
        teacher: "as it is", a recipe of `teachers.RECIPES`, or "student" for the 0.5B itself.
        taught: the student is the one that the arm `fine-tuned` made.
        tokens: most new tokens of a response.
        changes: of the run.yaml.
        selects: `opd select` chooses the prompts.
    """

    label: str
    teacher: str
    taught: bool = False
    tokens: int = 24
    changes: dict[str, Any] = field(default_factory=dict)
    selects: bool = False


ARMS = {
    "fine-tuned": Arm("(b) 1.5B, fine-tuned", "large"),
    "overlap": Arm(
        "(b) on the common part of both top 16",
        "large",
        changes={"loss": COMMON},
    ),
    "rest": Arm("(b) on what only one top 16 has", "large", changes={"loss": REST}),
    "weaker": Arm("(b) 1.5B, fine-tuned as far as (c)'s teacher", "weaker"),
    "small": Arm("(c) 0.5B, fine-tuned", "small"),
    "working": Arm("(d) 0.5B that writes its working", "working", tokens=48),
    "working-overlap": Arm(
        "(d) on the common part of both top 16",
        "working",
        tokens=48,
        changes={"loss": COMMON},
    ),
    "working-rest": Arm(
        "(d) on what only one top 16 has", "working", tokens=48, changes={"loss": REST}
    ),
    "working-cold": Arm(
        "(d) after a cold start", "working", tokens=48, changes={"coldstart": COLD}
    ),
    "working-select": Arm("(d) on selected prompts", "working", tokens=48, selects=True),
    "working-both": Arm(
        "(d) on selected prompts, after a cold start",
        "working",
        tokens=48,
        changes={"coldstart": COLD},
        selects=True,
    ),
    "back": Arm("(e) result of (b), taught by the 0.5B as it is", "student", taught=True),
    "as-it-is": Arm("(a) 1.5B as it is", "as it is"),
}
IMITATION = "(f) supervised training on answers of (b)'s teacher"


def teacher_of(arm: Arm, base: Path) -> Path:
    """Folder of an arm's teacher; the fine-tuned ones have nearly what the worse size reaches."""
    if arm.teacher not in RECIPES:
        return base / {"as it is": "1.5b", "student": "0.5b"}[arm.teacher]
    best = min(max(make_teacher(name, base).values()) for name in ("large", "small"))
    return nearest(arm.teacher, best, base)


def write_data(seed: int, base: Path) -> dict[str, Path]:
    """Prompt files of a seed."""
    folder = base / "data" / f"seed-{seed}"
    sets = problems(seed).items()
    return {name: write_jsonl(folder / f"{name}.jsonl", some) for name, some in sets}


def settings(name: str, seed: int, lr: float, base: Path) -> dict[str, Any]:
    """The run.yaml of an arm."""
    arm, files = ARMS[name], write_data(seed, base)
    student = base / "0.5b"
    if arm.taught:
        student = run_folder("fine-tuned", seed, chosen_rate("fine-tuned", base), base) / "final"
    chooses = name == "fine-tuned" and seed == 0  # `chosen_rate` compares these alone
    common = {"n": 1, "every": 0, "grader": "number"}
    evals = [
        {"path": str(files[split]), "name": split, "limit": SIZES[split], **common}
        for split in ("heldout", "offtask", *(["validation"] if chooses else []))
    ]
    out = run_folder(name, seed, lr, base)
    data = {
        "student": {"model": str(student), "precision": "bf16_mixed", "lora": {"rank": 16}},
        "teacher": {"model": str(teacher_of(arm, base)), "dtype": "bfloat16"},
        "prompts": {"path": str(files["train"]), "max_tokens": 256, "grader": "number"},
        "rollout": {"n": RESPONSES, "max_new_tokens": arm.tokens},
        "loss": {"support": "student_topk", "k": 16},
        "diagnostics": {"positions": 256},
        "optim": {"lr": lr},
        "train": {"steps": STEPS, "prompts_per_step": PROMPTS, "seed": seed},
        "eval": evals,
        "alarms": {"action": "off"},
        "output": {"dir": str(out), "save_every": 8, "keep": 1},
        **arm.changes,
    }
    if arm.selects:
        kept = out.with_name(f"{out.name}.kept.jsonl")
        data["select"] = {"output": str(kept), "limit": 160, "n": 2}
    return data


def run_folder(name: str, seed: int, lr: float, base: Path) -> Path:
    """Of an arm at a rate."""
    return base / "study" / f"{name}-{lr:g}-{seed}"


def opd(*arguments: str) -> str:
    """Run a command of opd; return what it printed.

    Raises:
        UserError: it failed; a no-go of `opd check` is no failure.
    """
    command = [sys.executable, "-m", "opd", *arguments]
    ended = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if ended.returncode and not (arguments[0] == "check" and ended.returncode == 1):
        raise UserError(f"opd {' '.join(arguments)} ended with {ended.returncode}")
    return ended.stdout


def train(name: str, seed: int, lr: float, base: Path) -> Path:
    """Select prompts and ask `opd check`, where there is no verdict yet, then train."""
    out = run_folder(name, seed, lr, base)
    if (out / "summary.json").is_file():
        return out
    file, verdict = out.with_name(f"{out.name}.yaml"), out.with_name(f"{out.name}.verdict.json")
    out.parent.mkdir(parents=True, exist_ok=True)
    data = settings(name, seed, lr, base)
    if "select" in data and not Path(data["select"]["output"]).exists():
        file.write_text(yaml.safe_dump(data, sort_keys=False))
        opd("select", str(file))
    if "select" in data:
        data["prompts"]["path"] = data.pop("select")["output"]
    file.write_text(yaml.safe_dump(data, sort_keys=False))
    if not verdict.exists():
        printed = opd("check", str(file), "--budget", str(BUDGET), "--json")
        verdict.write_text(printed.strip().splitlines()[-1] + "\n")
    opd("train", str(file), *(["--resume"] if out.exists() else []))
    return out


def validated(run: Path) -> float:
    """Accuracy of a run's student on the validation problems."""
    summary = json.loads((run / "summary.json").read_text())
    return float(summary["sets"]["validation"]["after"]["value"])


def chosen_rate(name: str, base: Path) -> float:
    """The rate at which seed 0 of an arm has the best validation accuracy; the others take it."""
    return max(RATES, key=lambda lr: validated(train(name, 0, lr, base)))


def run_arm(name: str, seed: int, base: Path) -> Path:
    """Train an arm at the rate that was chosen for (b)."""
    return train(name, seed, chosen_rate("fine-tuned", base), base)


def main() -> int:
    """Train what is missing and write the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("arms", nargs="*", help=f"of {', '.join([*ARMS, 'imitation'])}")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--base", type=Path, default=DEFAULT, help="folder of the two models")
    parser.add_argument("--page", type=Path, help="file to write the tables to")
    asked = parser.parse_args()
    if unknown := set(asked.arms) - {*ARMS, "imitation"}:
        raise UserError(f"no arm {sorted(unknown)[0]}; there are {', '.join([*ARMS, 'imitation'])}")
    if asked.base == DEFAULT:
        for size in ("0.5b", "1.5b"):
            prepare(size)
    for seed in asked.seeds:
        for name in asked.arms or [*ARMS, "imitation"]:
            if name == "imitation":
                imitate(
                    teacher_of(ARMS["fine-tuned"], asked.base), seed, IMITATION_RATES, asked.base
                )
            else:
                run_arm(name, seed, asked.base)
    text = page({name: arm.label for name, arm in ARMS.items()}, IMITATION, asked.base)
    if asked.page:
        asked.page.write_text(text, encoding="utf-8")
    print(text)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as error:
        sys.exit(f"error: {error}")
