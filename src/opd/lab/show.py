"""`opd demo`: a whole distillation on the shipped pair, explained."""

from __future__ import annotations

from pathlib import Path

import torch

from opd import config
from opd.faces import run_train
from opd.lab.demo import demo_config
from opd.run.console import Console


def run_demo(out: Path, steps: int | None, overwrite: bool) -> None:
    """Distil the shipped pair and explain what happened.

    Args:
        out: the run folder; its prompts are written beside it.
        steps: null for the demo's own number.
        overwrite: delete an earlier demo.
    """
    torch.set_num_threads(1)  # matrices this small are faster without company
    console = Console("auto")
    console.say(
        "A tiny student that adds badly, and a teacher of the same family that has learned it. The "
        "student writes, the teacher scores every token, the student learns."
    )
    cfg = config.parse(demo_config(out))
    if steps is not None:
        cfg = config.parse(config.dump(cfg), [f"train.steps={steps}"])
    run_train(cfg, overwrite=overwrite)
    console.say(
        "`sum` is what was distilled; `echo` is another skill, watched so that forgetting shows."
    )
    console.say(f"Next: opd eval {out}   or your own models: opd init run.yaml")
