"""`recipe: auto`: the check decides what a run begins with.

check -> select, if there is a `select` section -> cold start, if the check advises one ->
on-policy training with alarms that act. What was decided is in the run folder's config.json, and a
resumed run takes it from there instead of deciding again.
"""

from __future__ import annotations

import json
import math
import os
import tempfile
from pathlib import Path
from typing import Any

from opd import config
from opd.commands.check import output
from opd.commands.check.result import CheckResult
from opd.commands.check.rounds import Budget
from opd.commands.check.run import check
from opd.commands.select import run_select
from opd.config import Run
from opd.errors import UserError
from opd.recipes.check.settings import begins_cold
from opd.recipes.check.verdict import NO_GO
from opd.run.console import Console
from opd.run.layout import CONFIG
from opd.setup.launch import start_servers

TOKEN_FRACTION = 0.02  # of the run's tokens that the check may sample; at least for 32 prompts


def prepare(cfg: Run, *, resume: bool, console: Console) -> Run:
    """The configuration with what the recipe decides; unchanged unless `recipe: auto`.

    Raises:
        UserError: the check says no-go; several processes.
    """
    if cfg.recipe is None:
        return cfg
    stored = Path(cfg.output.dir) / CONFIG
    if resume and stored.is_file():
        return restore_decisions(
            cfg, config.upgrade(json.loads(stored.read_text("utf-8")), where=str(stored))
        )
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError(
            "recipe=auto checks the pair in one process first. Begin the run with one; once it has "
            "a checkpoint, --resume goes on with any number. Or run `opd check run.yaml --apply "
            "best.yaml` alone, then train best.yaml with recipe=null."
        )
    console.print("recipe: auto. Checking the pair ...")
    checked = check_pair(cfg, TOKEN_FRACTION)
    if is_refused(checked):
        console.print("recipe: auto. No-go on few prompts: checking again with the full budget ...")
        checked = check_pair(cfg, math.inf)
    output.save_record(cfg, output.to_record(checked), console)
    refuse(checked)
    decided = decide(cfg, checked, console)
    if decided.select is not None:
        chosen = run_select(decided)
        decided = _with(decided, {"prompts": {"path": chosen["output"]}})
    return decided


def check_pair(cfg: Run, token_fraction: float) -> CheckResult:
    """Run the check, sampling at most a fraction of the run's tokens.

    Raises:
        KeyboardInterrupt: Ctrl-C, which gives `opd check` the verdict so far, and ends a run.
    """
    with (
        tempfile.TemporaryDirectory() as scratch,
        start_servers([cfg], Console("plain"), Path(scratch, "check")),
    ):
        limits = Budget(token_fraction=token_fraction)
        checked = check("recipe: auto", [cfg], limits, Path(scratch))
    if checked.interrupted:
        raise KeyboardInterrupt
    return checked


def is_refused(checked: CheckResult) -> bool:
    """Whether the run is not expected to gain anything, with a cold start or without."""
    best = checked.best
    return best.verdict == NO_GO and not any("coldstart" in one.set for one in best.advice)


def refuse(checked: CheckResult) -> None:
    """Stop here if the run is not expected to gain anything.

    Raises:
        UserError: with the reasons of the check.
    """
    best = checked.best
    if is_refused(checked):
        why = "\n".join(f"  {r.text}. {r.evidence}" for r in best.reasons)
        raise UserError(
            f"recipe=auto does not start this run: the check says no-go.\n{why}\n"
            "Set recipe=null to train all the same."
        )


def decide(cfg: Run, checked: CheckResult, console: Console) -> Run:
    """Cold start if the check advises one; alarms that act."""
    changes: dict[str, Any] = {}
    for one in checked.best.advice:
        if "coldstart" in one.set:
            changes["coldstart"] = one.set["coldstart"]
    begins = "a cold start" if "coldstart" in changes or begins_cold(cfg) else "on-policy training"
    if cfg.alarms.action == "warn":
        changes["alarms"] = {"action": "act"}
    best = checked.best
    verdict = "no-go" if best.verdict == NO_GO else best.verdict
    console.print(f"recipe: auto. The check says {verdict}; the run begins with {begins}.")
    return _with(cfg, changes)


def restore_decisions(cfg: Run, stored: dict[str, Any]) -> Run:
    """The configuration with what was decided for an interrupted run.

    Of what the file says now only that is replaced: another key that changed is for the run to
    accept or refuse, as without this recipe.
    """
    changes: dict[str, Any] = {}
    if cfg.select is not None:
        changes["prompts"] = {"path": stored["prompts"]["path"]}
    if (cold := stored.get("coldstart")) is not None:
        changes["coldstart"] = cold if cfg.coldstart is None else {"when": cold["when"]}
    if cfg.alarms.action == "warn" and stored["alarms"].get("action") == "act":
        changes["alarms"] = {"action": "act"}
    return _with(cfg, changes)


def _with(cfg: Run, changes: dict[str, Any]) -> Run:
    """A configuration with sections changed key by key, validated anew."""
    data = config.dump(cfg)
    for name, section in changes.items():
        data[name] = (data.get(name) or {}) | section if isinstance(section, dict) else section
    return config.parse(data, where="recipe: auto")
