"""All 300 held-out problems for every student and teacher of `study.py`, one answer each.

    python examples/qwen/held_out.py [--base FOLDER] [--page FILE]

A run of the study looks at 150 of them. Right and wrong are kept in `study/held_out.json`, so that
any two models can be compared problem by problem; a second call goes on.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from itertools import chain
from pathlib import Path

import numpy as np
import yaml
from prepare import DEFAULT
from study import ARMS
from study_page import percent, points, rate_and_seed, record_of, record_path, right_of, runs_of
from tasks import write_jsonl

from opd.core import stats
from opd.data.graders import make_grader
from opd.data.prompts import load_prompts
from opd.errors import UserError
from opd.models.lm import load_lm
from opd.models.tokenizers import eos_ids, load_tokenizer, make_decoder
from opd.samplers.decoding import Decoding
from opd.samplers.hf import HFSampler
from opd.training.eval_task import EvalTask
from opd.training.evaluate import evaluate
from teachers import problems

RATE = "0.0001"  # of the arms that are compared
TEACHERS = {
    "large": 24,
    "weaker": 24,
    "small": 24,
    "working": 48,
}  # most tokens of an answer, by recipe
COMPARED = (
    ("fine-tuned", "imitation"),
    ("small", "fine-tuned"),
    ("weaker", "fine-tuned"),
    ("small", "weaker"),
    ("overlap", "fine-tuned"),
    ("rest", "fine-tuned"),
    ("working", "fine-tuned"),
    ("working-overlap", "working"),
    ("working-rest", "working"),
    ("working-cold", "working"),
    ("working-select", "working"),
    ("working-both", "working"),
)


def answer(model: Path, seed: int, tokens: int, base: Path) -> list[int]:
    """Which problems of a seed a model answers right, as 0 and 1; sampled as in its run."""
    path = base / "data" / f"held-out-{seed}.jsonl"
    write_jsonl(path, problems(seed)["heldout"])
    tokenizer, lm = load_tokenizer(str(model)), load_lm(str(model), dtype="bfloat16", device="cpu")
    prompts = load_prompts(str(path), tokenizer, template=None, chat={}, max_tokens=256)
    decoding = Decoding(tokens, 0.7, 0.95)
    stop = eos_ids(tokenizer, lm.causal.generation_config)
    sampler = HFSampler(lm, decoding, stop=stop, capture=1, batch=64)
    grader = make_grader("number", [p.answer or "" for p in prompts.prompts])
    task = EvalTask("heldout", prompts, grader, decoding, 1, 0)
    done = evaluate(sampler, task, make_decoder(tokenizer), seed=seed)
    return [int(row[0]) for row in done.correct]


def wanted(base: Path) -> list[tuple[Path, int, int]]:
    """Model, seed and most tokens of everything to be measured: student, teachers, results."""
    models = [(base / "0.5b", seed, 24) for seed in (0, 1)]
    models += [
        (folder, seed, tokens)
        for name, tokens in TEACHERS.items()
        for folder in sorted(base.glob(f"{name}-*"))
        for seed in (0, 1)
        if (folder / "config.json").is_file()
    ]
    for name, arm in ARMS.items():
        for run in runs_of(name, base):
            models.append((run / "final", int(run.name.rsplit("-", 1)[1]), arm.tokens))
    return models


def measure(base: Path) -> None:
    """Answer what has no answers yet."""
    path = record_path(base)
    for model, seed, tokens in wanted(base):
        record = json.loads(path.read_text()) if path.is_file() else {}
        name = f"{model.relative_to(base)}, seed {seed}"
        if name in record:
            continue
        record[name] = answer(model, seed, tokens, base)
        path.write_text(json.dumps(record))
        print(f"{name}: {np.mean(record[name]):.3f}", flush=True)


def teacher_rows(base: Path) -> str:
    """Accuracy of the student as it is and of every teacher, on both seeds' problems together."""
    lines = ["| model | seed 0 | seed 1 | both |", "|---" * 4 + "|"]
    names = [name.split(",")[0] for name in json.loads(record_path(base).read_text())]
    for name in dict.fromkeys(name for name in names if not name.startswith("study/")):
        parts = [right_of(base / name, seed, base) or [] for seed in (0, 1)]
        if all(parts):
            shown = [percent(of(part)) for part in (*parts, [*parts[0], *parts[1]])]
            lines.append(f"| {name} | {' | '.join(shown)} |")
    return "\n".join(lines) + "\n"


def of(right: list[int]) -> dict[str, float]:
    """An accuracy with its interval."""
    return asdict(stats.avg_at_n(np.array(right, dtype=float)[:, None]))


def result_rows(base: Path) -> str:
    """Before, after and teacher of every run on all problems."""
    lines = [
        "| student and teacher | seed | before | after | teacher | change, points | of the gap |"
    ]
    lines.append("|---" * 7 + "|")
    for name, arm in ARMS.items():
        for run in runs_of(name, base):
            lr, seed = rate_and_seed(run)
            data = yaml.safe_load(run.with_name(f"{run.name}.yaml").read_text())
            folders = (data["student"]["model"], run / "final", data["teacher"]["model"])
            three = [right_of(Path(folder), int(seed), base) or [] for folder in folders]
            if not all(three):
                continue
            before, after, teacher = (np.array(right, dtype=float) for right in three)
            change = points(asdict(stats.paired_change(before, after)))
            lead = teacher.mean() - before.mean() > 0.02
            gap = percent(asdict(stats.gap_recovery(before, after, teacher))) if lead else "-"
            shown = [percent(of(right)) for right in three]
            cells = [f"{arm.label}, {lr}", seed, *shown, change, gap]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def compared_rows(base: Path) -> str:
    """One arm minus another on the same problems, by seed and of both seeds together."""
    lines = ["| arm | minus | seed 0 | seed 1 | both |", "|---" * 5 + "|"]
    for names in COMPARED:
        pairs = [[answers_of(name, seed, base) for name in names] for seed in (0, 1)]
        known = [pair for pair in pairs if all(pair)]
        if known:
            both = [list(chain(*parts)) for parts in zip(*known, strict=True)]
            cells = [minus(*pair) if all(pair) else "-" for pair in pairs]
            cells.append(minus(*both) if len(known) == len(pairs) else "-")
            lines.append(f"| {' | '.join([*names, *cells])} |")
    return "\n".join(lines) + "\n"


def answers_of(name: str, seed: int, base: Path) -> list[int]:
    """Right (1) and wrong (0) answers after an arm, or `imitation`; empty if not measured."""
    if name != "imitation":
        return right_of(base / "study" / f"{name}-{RATE}-{seed}" / "final", seed, base) or []
    path = record_of(seed, base)
    record = json.loads(path.read_text()) if path.is_file() else {}
    right: list[int] = record.get("right", {}).get(RATE, [])
    return right


def minus(one: list[int], other: list[int]) -> str:
    """Accuracy of one minus that of another, paired by problem."""
    return points(asdict(stats.paired_change(other, one)))


def main() -> int:
    """Measure what is missing and write the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--base", type=Path, default=DEFAULT, help="folder of models and study")
    parser.add_argument("--page", type=Path, help="file to write the tables to")
    asked = parser.parse_args()
    if not (asked.base / "study").is_dir():
        raise UserError(f"no study in {asked.base}; run examples/qwen/study.py first")
    measure(asked.base)
    text = "\n".join(rows(asked.base) for rows in (teacher_rows, result_rows, compared_rows))
    if asked.page:
        asked.page.write_text(text, encoding="utf-8")
    print(text)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as error:
        sys.exit(f"error: {error}")
