"""Runs of the demo whose teachers see a hint, are the student itself, or are several."""

from __future__ import annotations

import json
from pathlib import Path

from opd.demo.run_config import PAIR
from support.runs import run_config

HINT = "{prompt} ANS {answer}"


def self_run(folder, *, weights="frozen", lora=False, steps=4, **changes):
    data = run_config(folder, steps=steps, **changes)
    data["teacher"] = {"from": "student", "weights": weights, "prompt": HINT}
    if weights == "ema":
        data["teacher"]["decay"] = 0.5
    if lora:
        data["student"]["lora"] = {"rank": 4}
    data["eval"] = []
    return data


def several(folder, *, steps=4, by="prompts", rows=None, **changes):
    """A run of the demo on two files: one of its teacher, one of the student with a hint."""
    data = run_config(folder, steps=steps, **changes)
    path = data["prompts"]["path"]
    del data["teacher"]
    data["teachers"] = {
        "big": {"model": str(PAIR / "teacher")},
        "own": {"from": "student", "weights": "ema", "decay": 0.5, "prompt": HINT},
    }
    second = folder.parent / "second.jsonl"
    lines = Path(path).read_text().splitlines()
    second.write_text("\n".join(lines[100:130] if rows is None else map(json.dumps, rows)) + "\n")
    files = [
        {"path": path, "teacher": "big", "weight": 3},
        {"path": str(second), "teacher": "own"},
    ]
    data["prompts"] = {"files": files, "max_tokens": 32, "by": by}
    data["eval"] = []
    return data
