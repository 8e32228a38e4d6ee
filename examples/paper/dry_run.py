"""Check the configurations of the paper's runs without their weights: `opd check` with stand-ins.

    python examples/paper/dry_run.py [E1 E4 ...] [--budget SECONDS]

Each arm in the head of a file is parsed as it stands there. Then models, prompts and lengths are
replaced by those of `opd demo` and sharding is switched off; everything else (loss, support, k,
optimizer, chat keywords, evaluation, cold start) stays, and `opd check` runs on it. So a key that
does not exist, or a combination that the product refuses, is found before a GPU is rented; what the
check says of the stand-ins means nothing for the real models.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from opd import config
from opd.commands.check import run_check
from opd.demo.run_config import PAIR, PROMPTS
from opd.errors import UserError

FOLDER = Path(__file__).parent
START = "#   torchrun --nproc_per_node 8 -m opd train examples/paper/"


def arms(file: Path) -> list[list[str]]:
    """The overrides of every arm, as the head of a file lists them."""
    commands = [
        line.removeprefix(START).split()
        for line in file.read_text("utf-8").splitlines()
        if line.startswith(START)
    ]
    return [[word for word in words if word != "--resume"] for _, *words in commands]


def stand_ins(file: Path, overrides: list[str], scratch: Path) -> list[str]:
    """The overrides of an arm and those that replace what is not here."""
    evaluations = len(config.load(str(file), overrides).eval)
    replaced = [
        f"student.model={PAIR / 'student'}",
        f"teacher.model={PAIR / 'teacher'}",
        "student.shard=none",
        "student.precision=float32",
        f"prompts.path={PROMPTS / 'train.jsonl'}",
        "rollout.max_new_tokens=24",
        f"output.dir={scratch / 'run'}",
    ]
    for number in range(evaluations):
        replaced += [f"eval.{number}.path={PROMPTS / 'sum.jsonl'}"]
        replaced += [f"eval.{number}.max_new_tokens=24", f"eval.{number}.limit=16"]
    return [*overrides, *replaced]


def files(names: list[str]) -> Iterator[Path]:
    """The named configurations; none: all."""
    there = {path.stem: path for path in sorted(FOLDER.glob("*.yaml"))}
    for name in names or there:
        if name not in there:
            raise UserError(f"There is no {name}.yaml here; there are {', '.join(there)}.")
        yield there[name]


def main() -> None:
    """Check every arm of the named files."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="such as E1; none: all")
    parser.add_argument("--budget", type=float, default=20.0, help="seconds of each check")
    asked = parser.parse_args()
    for file in files(asked.names):
        for overrides in arms(file):
            print(f"\n=== {file.name} {' '.join(overrides)}")
            with tempfile.TemporaryDirectory() as scratch:
                replaced = stand_ins(file, overrides, Path(scratch))
                run_check(file, replaced, budget=asked.budget)


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
