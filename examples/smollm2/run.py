"""On-policy distillation of a real model: SmolLM2-135M learns to sort from a fine-tuned teacher.

    python examples/smollm2/run.py --seed 0 [--out FOLDER]

Prepares the base model, fine-tunes a teacher from it on correct answers, distils that teacher into
the base with `opd train`, and prints one row: accuracy before and after, the teacher's, the
fraction of the gap recovered, off-task accuracy, overlap mass, minutes of this call. A second call
continues an interrupted one.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import yaml
from prepare import DEFAULT, prepare
from tasks import facts, sorting, without, write_jsonl

from opd.errors import UserError

SFT = {"steps": 24, "batch": 16, "lr": 1.0e-4, "warmup": 3}
OPD = {"steps": 24, "prompts": 16, "n": 2, "lr": 3.0e-5}
NEW_TOKENS = 32  # a correct answer takes 19 and the end token 1


def write_prompts(folder: Path, seed: int, heldout: int, train: int) -> dict[str, Path]:
    """Prompt files of one seed; no held-out prompt is in any training file."""
    folder.mkdir(parents=True, exist_ok=True)
    held_out = sorting("heldout", heldout, seed)
    rows = {
        "heldout": held_out,
        "offtask": facts(),
        "train": without(sorting("train", train, seed), held_out),
        "teacher": without(sorting("teacher", SFT["steps"] * SFT["batch"], seed), held_out),
    }
    return {name: write_jsonl(folder / f"{name}.jsonl", split) for name, split in rows.items()}


def train_teacher(base: Path, pairs: Path, out: Path, seed: int) -> Path:
    """Fine-tune the base on (prompt, answer) pairs; an existing folder is kept."""
    if out.exists():
        return out
    from opd.config import Optim
    from opd.data.prompts import load_prompts
    from opd.data.sft_examples import make_example
    from opd.models.lm import load_lm
    from opd.models.saving import save_final
    from opd.models.tokenizers import load_tokenizer
    from opd.recipes.sft import sft

    tokenizer, model = load_tokenizer(str(base)), load_lm(str(base), dtype="float32")
    prompts = load_prompts(str(pairs), tokenizer, template=None, chat={}, max_tokens=128).prompts
    examples = [
        make_example(p.index, p.ids, [*tokenizer(p.answer).input_ids, tokenizer.eos_token_id])
        for p in prompts
    ]
    optim = Optim(lr=SFT["lr"], warmup=SFT["warmup"])
    fit = {"steps": SFT["steps"], "batch": SFT["batch"], "schedule": "cosine", "seed": seed}
    for step, loss in enumerate(sft(model, examples, optim=optim, **fit), start=1):
        print(f"teacher step {step}/{SFT['steps']}  loss {loss:.3f}", flush=True)
    save_final(model, tokenizer, out)
    return out


def run_config(
    base: Path, teacher: Path, files: dict[str, Path], out: Path, seed: int
) -> dict[str, Any]:
    """The run.yaml of one seed; everything else is opd's default."""
    return {
        "student": {"model": str(base), "precision": "float32"},
        "teacher": {"model": str(teacher), "dtype": "float32"},
        "prompts": {"path": str(files["train"])},
        "rollout": {"n": OPD["n"], "max_new_tokens": NEW_TOKENS},
        "optim": {"lr": OPD["lr"]},
        "train": {"steps": OPD["steps"], "prompts_per_step": OPD["prompts"], "seed": seed},
        "eval": [
            {"path": str(files["heldout"]), "n": 1, "every": 0, "grader": "exact"},
            {"path": str(files["offtask"]), "n": 2, "every": 0, "grader": "exact",
             "max_new_tokens": 12},
        ],
        "output": {"dir": str(out), "save_every": OPD["steps"], "keep": 1},
    }  # fmt: skip


def row(seed: int, run: Path, minutes: float) -> str:
    """One line of the table, from the run folder."""
    sets = json.loads((run / "summary.json").read_text(encoding="utf-8"))["sets"]
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    masses = [json.loads(line).get("diag/overlap_mass_student") for line in lines]
    masses = [mass for mass in masses if mass is not None]
    task, off_task = sets["heldout"], sets["offtask"]
    cells = [
        str(seed),
        *(f"{task[model]['value']:.3f}" for model in ("before", "after", "teacher")),
        "{value:.2f} [{low:.2f}, {high:.2f}]".format(**task["gap_recovery"]),
        *(f"{off_task[model]['value']:.3f}" for model in ("before", "after", "teacher")),
        f"{masses[0]:.3f} -> {masses[-1]:.3f}",
        f"{minutes:.1f}",
    ]
    return "| " + " | ".join(cells) + " |"


HEADER = """\
| seed | before | after | teacher | gap recovery [95 %] | off-task before | after | teacher | \
overlap mass | minutes |
|---|---|---|---|---|---|---|---|---|---|"""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--out", type=Path, default=None, help="default: work/seed-N beside this file"
    )
    parser.add_argument("--base", type=Path, default=DEFAULT, help="folder of the base model")
    parser.add_argument("--heldout", type=int, default=200, help="held-out prompts")
    parser.add_argument("--overwrite", action="store_true", help="delete FOLDER and start over")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="for opd train")
    args = parser.parse_args()
    began = time.monotonic()
    out = (args.out or DEFAULT.parent / f"seed-{args.seed}").resolve()
    if args.overwrite and (out / "run.yaml").is_file():
        shutil.rmtree(out)
    base = prepare(args.base.resolve())
    needed = OPD["steps"] * OPD["prompts"]
    files = write_prompts(out / "data", args.seed, args.heldout, needed)
    teacher = train_teacher(base, files["teacher"], out / "teacher", args.seed)
    cfg = run_config(base, teacher, files, out / "run", args.seed)
    (out / "run.yaml").write_text(yaml.safe_dump(cfg, sort_keys=False), encoding="utf-8")
    command = [sys.executable, "-m", "opd", "train", str(out / "run.yaml")]
    command += ["--resume"] if (out / "run").exists() else []
    if code := subprocess.run([*command, *args.overrides]).returncode:
        sys.exit(code)  # opd has printed the reason
    print(f"\n{HEADER}\n{row(args.seed, out / 'run', (time.monotonic() - began) / 60)}")


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"{error}")
