"""`opd demo`: a whole distillation on the shipped pair, explained."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from opd import config
from opd.commands.train import run_train
from opd.demo.run_config import PAIR, demo_config
from opd.run.console import Console
from opd.run.preflight import check_folder, check_name


def run_demo(out: Path, steps: int | None) -> None:
    """Distil the shipped pair and explain what happened.

    Args:
        out: the run folder; its prompts are written beside it. An earlier demo there is replaced,
            any other run is refused.
        steps: null for the demo's own number.
    """
    torch.set_num_threads(1)  # matrices this small are faster without company
    console = Console("auto")
    console.print(
        "A tiny student that adds badly learns from a teacher of its family that adds well: "
        "it samples completions, and the teacher scores every token of them."
    )
    check_name(out)
    check_folder(out, {}, resume=False, overwrite=is_demo(out))
    cfg = config.parse(demo_config(out))
    if steps is not None:
        cfg = config.parse(config.dump(cfg), [f"train.steps={steps}"])
    run_train(cfg, overwrite=is_demo(out))
    console.print("`sum` was distilled; `echo` is another skill, which shows forgetting.")
    console.print(f"Next: opd eval {out}   Own models: opd init run.yaml")


def is_demo(folder: Path) -> bool:
    """Whether a folder holds an earlier demo: a run whose student is the shipped one."""
    try:
        stored = json.loads((folder / "config.json").read_text("utf-8"))
        return bool(stored["student"]["model"] == str(PAIR / "student"))
    except (OSError, ValueError, KeyError, TypeError):
        return False
