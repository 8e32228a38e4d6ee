"""The tables of `study.py`, from run folders and verdicts alone."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from opd.run.jsonl import read_jsonl

PREDICTED = re.compile(r"predicted change (\S+) points \((\S+) to (\S+)\)")
DIAGNOSTICS = {
    "reverse KL": "diag/reverse_kl",
    "overlap, k = 1": "diag/top1_agreement",
    "overlap, k = 16": "diag/overlap_ratio",
    "mass of the common 16": "diag/overlap_mass_student",
    "advantage on them": "diag/overlap_advantage",
    "entropy gap": "diag/entropy_gap_abs",
}
HEAD = (
    "| student and teacher | seed | rate | verdict before | predicted, points | before | after "
    "| teacher | change, points | of the gap | letters, change | minutes |\n" + "|---" * 12 + "|\n"
)


def page(labels: Mapping[str, str], imitation: str, base: Path) -> str:
    """The tables of every arm that has been trained.

    Args:
        labels: of arms by name, in the order of the rows.
        imitation: label of supervised training.
        base: folder of the models, with the runs in `study/`.
    """
    runs = [(label, run) for name, label in labels.items() for run in runs_of(name, base)]
    tables = [HEAD + "".join(row(label, run) for label, run in runs)]
    records = [(seed, path) for seed in range(10) if (path := record_of(seed, base)).is_file()]
    if records:
        rows = "".join(imitation_rows(imitation, seed, path) for seed, path in records)
        tables.append(IMITATION_HEAD + rows)
    head = "| student and teacher | seed | " + " | ".join(DIAGNOSTICS) + " |\n"
    head += "|---" * (2 + len(DIAGNOSTICS)) + "|\n"
    tables.append(head + "".join(diagnostics(label, run) for label, run in runs))
    tables.append(HALF_HEAD + "".join(half_row(label, run) for label, run in runs))
    return "\n".join(tables)


def runs_of(name: str, base: Path) -> list[Path]:
    """Finished runs of an arm, by seed and rate."""
    pattern = re.compile(rf"{re.escape(name)}-(\d.*)-(\d+)$")
    matched = [
        (int(match[2]), float(match[1]), path)
        for path in (base / "study").glob(f"{name}-*")
        if (match := pattern.match(path.name)) and (path / "summary.json").is_file()
    ]
    return [path for _, _, path in sorted(matched)]


def rate_and_seed(run: Path) -> tuple[str, str]:
    """Learning rate and seed of a run folder, as in its name: 3e-05 has a hyphen of its own."""
    matched = re.search(r"-([\d.]+(?:e-\d+)?)-(\d+)$", run.name)
    assert matched is not None, run
    return matched[1], matched[2]


def record_path(base: Path) -> Path:
    """Where `held_out.py` keeps which problems each model answers right."""
    return base / "study" / "held_out.json"


def right_of(model: Path, seed: int, base: Path) -> list[int] | None:
    """Right (1) and wrong (0) answers of a model to the held-out problems; None: not measured."""
    path = record_path(base)
    record = json.loads(path.read_text()) if path.is_file() else {}
    measured: list[int] | None = record.get(f"{model.relative_to(base)}, seed {seed}")
    return measured


def points(interval: Mapping[str, float]) -> str:
    """A difference of accuracies with its interval."""
    return "{value:+.1f} ({low:+.1f} to {high:+.1f})".format(
        **{k: 100 * interval[k] for k in ("value", "low", "high")}
    )


def percent(interval: Mapping[str, float]) -> str:
    """An accuracy with its interval."""
    return "{value:.1f}% ({low:.1f} to {high:.1f})".format(
        **{k: 100 * interval[k] for k in ("value", "low", "high")}
    )


def row(label: str, run: Path) -> str:
    """A row of the first table."""
    sets = json.loads((run / "summary.json").read_text())["sets"]
    task, off = sets["heldout"], sets["offtask"]
    lr, seed = rate_and_seed(run)
    verdict = json.loads(run.with_name(f"{run.name}.verdict.json").read_text())
    evidence = " ".join(reason["evidence"] for reason in verdict["reasons"])
    matched = PREDICTED.search(evidence)
    recovery = task["gap_recovery"]
    seconds = sum(line.get("time/step_s", 0) for line in read_jsonl(run / "timings.jsonl"))
    cells = [
        label,
        seed,
        lr,
        verdict["verdict"],
        f"{matched[1]} ({matched[2]} to {matched[3]})" if matched else "-",
        *(percent(task[moment]) for moment in ("before", "after", "teacher")),
        points(task["change"]),
        percent(recovery) if recovery and abs(recovery["value"]) < 10 else "-",
        points(off["change"]),
        f"{seconds / 60:.1f}",
    ]
    return f"| {' | '.join(cells)} |\n"


IMITATION_HEAD = (
    "| supervised | seed | rate | validation | after | letters | tokens learnt |\n"
    + "|---" * 7
    + "|\n"
)


def record_of(seed: int, base: Path) -> Path:
    """Where `imitation.imitate` keeps what it measured."""
    return base / "study" / f"imitation-{seed}.json"


def imitation_rows(label: str, seed: int, path: Path) -> str:
    """Every rate of a seed of supervised training."""
    record = json.loads(path.read_text())
    lines = []
    for lr, measured in record["rates"].items():
        cells = [
            percent(dict(zip(("value", "low", "high"), measured[name], strict=True)))
            for name in ("validation", "heldout", "offtask")
        ]
        lines.append(f"| {label} | {seed} | {lr} | {' | '.join(cells)} | {record['tokens']} |\n")
    return "".join(lines)


def diagnostics(label: str, run: Path) -> str:
    """First and last step of what was measured on the student's own answers."""
    steps: list[dict[str, Any]] = [
        line for line in read_jsonl(run / "metrics.jsonl") if "train/loss" in line
    ]
    cells = []
    for name in DIAGNOSTICS.values():
        values = [line[name] for line in steps if name in line]
        third = max(1, len(values) // 8)
        ends = [sum(part) / len(part) for part in (values[:third], values[-third:]) if part]
        cells.append(" -> ".join(f"{value:.3f}" for value in ends) or "-")
    lr, seed = rate_and_seed(run)
    return f"| {label}, {lr} | {seed} | {' | '.join(cells)} |\n"


WINDOW = 4  # steps whose samples are taken together: 64
HALF_HEAD = "| half of the gap | seed | step | tokens | minutes |\n" + "|---" * 5 + "|\n"


def half_row(label: str, run: Path) -> str:
    """When the run's own samples had half of the gap: step, tokens sampled, minutes of these steps.

    It is the first step up to which the last `WINDOW` steps were right on that fraction. They are
    sampled at temperature 1, the gap is measured at 0.7, so this is later than held-out answers.
    A cold start's own tokens and minutes are not among them.
    """
    task = json.loads((run / "summary.json").read_text())["sets"]["heldout"]
    before, teacher = (task[moment]["value"] for moment in ("before", "teacher"))
    steps = [line for line in read_jsonl(run / "metrics.jsonl") if "rollout/reward" in line]
    right = [line["rollout/reward"] for line in steps]
    means = [sum(right[i - WINDOW : i]) / WINDOW for i in range(WINDOW, len(right) + 1)]
    reached = [i for i, mean in enumerate(means) if mean >= (before + teacher) / 2]
    cells = ["-", "-", "-"]
    if reached and teacher - before > 0.1:
        count = reached[0] + WINDOW
        tokens = sum(line["train/tokens"] for line in steps[:count])
        until = steps[count - 1]["step"]
        times = [
            line["time/step_s"]
            for line in read_jsonl(run / "timings.jsonl")
            if "time/step_s" in line and 1 <= line["step"] <= until
        ]
        cells = [str(count), f"{tokens:,.0f}", f"{sum(times) / 60:.1f}"]
    lr, seed = rate_and_seed(run)
    return f"| {label}, {lr} | {seed} | {' | '.join(cells)} |\n"
