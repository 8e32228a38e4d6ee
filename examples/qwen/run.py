"""From package names to a distilled 0.5B: models, prompts, and `opd train`.

    pip install gguf
    python examples/qwen/run.py [--task indexing] [--offtask reversal] [KEY=VALUE ...]

A second call continues an interrupted one. Overrides are those of `opd train`.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from prepare import DEFAULT, SOURCES, prepare
from tasks import TASKS, rows, without, write_jsonl

from opd.errors import UserError

CONFIG = Path(__file__).parent / "run.yaml"


def write_prompts(task: str, offtask: str, seed: int, folder: Path) -> None:
    """Training prompts, 300 held-out ones of the same task, and 100 of another."""
    held_out = rows(task, "heldout", 300, seed)
    write_jsonl(folder / "heldout.jsonl", held_out)
    write_jsonl(folder / "train.jsonl", without(rows(task, "train", 1000, seed), held_out))
    write_jsonl(folder / "offtask.jsonl", rows(offtask, "heldout", 100, seed))


def main() -> int:
    """Prepare and train."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--task", choices=list(TASKS), default="indexing")
    parser.add_argument("--offtask", choices=list(TASKS), default="reversal")
    parser.add_argument("--seed", type=int, default=0, help="of the prompts")
    parser.add_argument("overrides", nargs="*")
    asked = parser.parse_args()
    for name in SOURCES:
        print(f"{name}: {prepare(name)}")
    write_prompts(asked.task, asked.offtask, asked.seed, DEFAULT / "data")
    command = [sys.executable, "-m", "opd", "train", str(CONFIG), "--resume", *asked.overrides]
    return subprocess.run(command).returncode


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as error:
        sys.exit(f"error: {error}")
