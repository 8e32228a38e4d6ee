"""The run.yaml of examples/teachers: each loads, and two steps of it run on a tiny pair."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from opd.demo.run_config import PAIR
from opd.run.jsonl import read_jsonl
from support.foreign import byte_tokenizer, foreign_model
from support.runs import run_config, run_to_end

EXAMPLES = sorted((Path(__file__).parents[1] / "examples" / "teachers").glob("*.yaml"))


def tiny(name: Path, folder: Path) -> dict:
    """An example with the demo's models, prompts and sizes in place of its own."""
    data, demo = yaml.safe_load(name.read_text()), run_config(folder, steps=2)
    data["student"]["model"] = demo["student"]["model"]
    teachers = list(data.get("teachers", {}).values()) or [data["teacher"]]
    models = ("teacher", "student")
    for teacher, model in zip(teachers, models, strict=False):
        if "tokenizer" in teacher:
            other = str(foreign_model(folder.parent / "foreign", byte_tokenizer()))
            teacher |= {"model": other, "tokenizer": other}
        elif "model" in teacher:
            teacher["model"] = str(PAIR / model)
    data["prompts"] = with_paths(data["prompts"], demo["prompts"]["path"])
    data["rollout"] |= {"n": 2, "max_new_tokens": 16}
    data["train"] |= demo["train"]
    data["optim"] = demo["optim"]
    data |= {"eval": [], "output": demo["output"]}
    return data


def with_paths(prompts: dict | list, path: str) -> dict:
    """A prompts section with the demo's file in place of every one of its own."""
    section = {"files": prompts} if isinstance(prompts, list) else dict(prompts)
    if "files" in section:
        section["files"] = [file | {"path": path} for file in section["files"]]
    else:
        section["path"] = path
    return section | {"max_tokens": 32}


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda p: p.stem)
def test_two_steps_of_each_example(example, tmp_path):
    run_to_end(tiny(example, tmp_path / "run"))
    rows = [r for r in read_jsonl(tmp_path / "run" / "metrics.jsonl") if "train/loss" in r]
    assert len(rows) == 2
    assert all(row["train/grad_norm"] > 0 for row in rows)


def test_there_are_examples():
    assert {"hint", "two-teachers", "mixture", "other-tokenizer"} <= {p.stem for p in EXAMPLES}
