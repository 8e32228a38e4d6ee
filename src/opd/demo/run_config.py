"""The demo's run: a shipped pair and prompts, small enough for two cores and a minute."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from opd.errors import UserError

PAIR = Path(__file__).parent / "pair"
PROMPTS = Path(__file__).parent / "prompts"


def demo_config(out_dir: Path) -> dict[str, Any]:
    """Copy the demo's prompts beside `out_dir`; return the run as `opd.config.parse` takes it.

    The student knows the reasoning but has learned wrong values for half of the symbols (about 17 %
    right); the teacher knows the values and reasons alike. `sum` is what is distilled, `echo` an
    unrelated skill that only evaluation asks for, so that forgetting shows. `python -m
    opd_lab.demo_pair` makes models and prompts.
    """
    data = out_dir.parent / "demo-data"
    data.mkdir(parents=True, exist_ok=True)
    for file in sorted(PROMPTS.glob("*.jsonl")):
        _copy(file, data / file.name)
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
        "rollout": {"n": 4, "max_new_tokens": 24},
        "loss": {"k": 16},
        "optim": {"lr": 5e-4},
        "train": {"steps": 80, "prompts_per_step": 16},
        "eval": [
            {"path": str(data / "sum.jsonl"), "name": "sum", "n": 2, **held_out},
            {"path": str(data / "echo.jsonl"), "name": "echo", "n": 1, **held_out},
        ],
        "output": {"dir": str(out_dir), "save_every": 20},
    }


def _copy(source: Path, target: Path) -> None:
    """Copy a file of the demo, unless it is there.

    Raises:
        UserError: another file is there.
    """
    content = source.read_bytes()
    if target.is_symlink() or (target.exists() and target.read_bytes() != content):
        raise UserError(
            f"{target} exists and is not the demo's; it stays as it is. Give another folder: "
            "opd demo --out other/demo"
        )
    if not target.exists():
        target.write_bytes(content)
