"""Rebuild the demo pair and its prompts: `python -m opd_lab.demo_pair --out DIR` or `--check`.

The student is the zoo's chain base, the teacher its clean descendant, both at one seed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import shutil
import sys
import tempfile
from pathlib import Path

import torch
import transformers

from opd.demo.run_config import PAIR, PROMPTS
from opd_lab import zoo
from opd_lab.checkpoints import CHAIN, RECIPES
from opd_lab.worlds import write_prompts

ROLES = {"student": "chain-base", "teacher": "chain-clean"}
SEED = 0
WORLD = CHAIN
TRAIN, HELD_OUT, OFF_TASK = 2000, 400, 200  # prompts
CARD = "PAIR.json"

logger = logging.getLogger(__name__)


def make_pair(out: Path) -> dict[str, str]:
    """Build both models under `out` (student/, teacher/, PAIR.json); return the file hashes."""
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as cache:
        for role, name in ROLES.items():
            folder = zoo.build(name, SEED, Path(cache))
            shutil.rmtree(out / role, ignore_errors=True)
            shutil.copytree(folder, out / role)
    hashes = hash_files(out)
    card = {
        "made_by": "python -m opd_lab.demo_pair",
        "seed": SEED,
        "recipes": {role: repr(RECIPES[name]) for role, name in ROLES.items()},
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "sha256": hashes,
    }
    (out / CARD).write_text(json.dumps(card, indent=2) + "\n")
    return hashes


def write_demo_prompts(out: Path) -> None:
    """Write the demo's prompt files: train, sum (held out) and echo (another skill, held out)."""
    out.mkdir(parents=True, exist_ok=True)
    sets = {
        "train": WORLD.problems(TRAIN, SEED),
        "sum": WORLD.problems(HELD_OUT, SEED, held_out=True),
        "echo": WORLD.off_task(OFF_TASK, SEED, held_out=True),
    }
    for name, problems in sets.items():
        write_prompts(out / f"{name}.jsonl", problems)


def hash_files(folder: Path) -> dict[str, str]:
    """SHA-256 of every file of both models, by path below `folder`."""
    paths = sorted(p for role in ROLES for p in (folder / role).rglob("*") if p.is_file())
    return {
        p.relative_to(folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in paths
    }


def differing_files(built: dict[str, str], recorded: dict[str, str]) -> list[str]:
    """Files whose hashes differ or that only one side has."""
    return sorted(p for p in built.keys() | recorded.keys() if built.get(p) != recorded.get(p))


def main(argv: list[str] | None = None) -> int:
    """Build the pair, or check that this code builds the shipped one.

    Returns:
        Exit code; 1 if the shipped files differ.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=PAIR, help="folder to write (the package's)")
    parser.add_argument("--check", action="store_true", help="rebuild elsewhere and compare hashes")
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if not args.check:
        write_demo_prompts(args.out / "prompts" if args.out != PAIR else PROMPTS)
        for path, value in make_pair(args.out).items():
            logger.info("%s  %s", value, path)
        return 0
    card = json.loads((PAIR / CARD).read_text())
    with tempfile.TemporaryDirectory() as folder:
        differing = differing_files(make_pair(Path(folder)), card["sha256"])
    for path in differing:
        logger.info("differs: %s", path)
    versions = f"torch {card['torch']}, transformers {card['transformers']}, {card['cpu']}"
    logger.info("%s, recorded with %s", "DIFFERENT" if differing else "identical", versions)
    return 1 if differing else 0


if __name__ == "__main__":
    sys.exit(main())
