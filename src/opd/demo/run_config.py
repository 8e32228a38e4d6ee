"""The embedded demo: a run on the shipped pair, small enough for two cores and a minute."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from opd.lab.worlds import Chain, Problem

PAIR = Path(__file__).parent / "pair"
WORLD = Chain()
TRAIN, HELD_OUT, OFF_TASK = 2000, 400, 200


def demo_config(out_dir: Path, *, seed: int = 0) -> dict[str, Any]:
    """Write the demo's prompts beside `out_dir` and return the run as `opd.config.parse` takes it.

    The student knows the reasoning but has learned wrong values for half of the symbols (about 17 %
    right); the teacher knows the values and reasons alike. `sum` is what is distilled, `echo` an
    unrelated skill that only evaluation asks for, so that forgetting shows.
    """
    data = out_dir.parent / "demo-data"
    data.mkdir(parents=True, exist_ok=True)
    sets = {
        "train": WORLD.problems(TRAIN, seed),
        "sum": WORLD.problems(HELD_OUT, seed, held_out=True),
        "echo": WORLD.off_task(OFF_TASK, seed, held_out=True),
    }
    for name, problems in sets.items():
        write_prompts(data / f"{name}.jsonl", problems)
    held_out = {
        # As in training: the student is judged on the distribution that is distilled.
        "temperature": 1.0,
        "top_p": 1.0,
        "every": 20,
        "grader": "exact",
    }
    return {
        "student": {"model": str(PAIR / "student")},
        "teacher": {"model": str(PAIR / "teacher")},
        "prompts": {"path": str(data / "train.jsonl"), "max_tokens": 32},
        "rollout": {"n": 4, "max_new_tokens": 24, "batch": 512},
        "loss": {"k": 16},
        "optim": {"lr": 5e-4},
        "train": {"steps": 80, "prompts_per_step": 16, "seed": seed},
        "eval": [
            {"path": str(data / "sum.jsonl"), "name": "sum", "n": 2, **held_out},
            {"path": str(data / "echo.jsonl"), "name": "echo", "n": 1, **held_out},
        ],
        "output": {"dir": str(out_dir), "save_every": 20},
    }


def write_prompts(path: Path, problems: Sequence[Problem]) -> None:
    """Write problems as a prompt file, one JSON object a line."""
    lines = [json.dumps(problem.row()) + "\n" for problem in problems]
    path.write_text("".join(lines), encoding="utf-8")
