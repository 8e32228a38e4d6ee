"""`recipe: auto` against plain training and the best rescue by hand, at equally many tokens.

`python -m opd_lab.auto_trial OUT.jsonl [--cache FOLDER]` trains every arm of the pairs
`FAILING` and `HEALTHY`, writes a line a pair, and goes on where it was interrupted; with `--tell`
it only prints the table.

Every token counts that a model writes for an arm: for the check, the selection, the cold start and
its looks, and the rollouts. Evaluations do not: they are the ruler, not the method.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from threading import Event
from typing import Any, Literal
from unittest.mock import patch

import numpy as np
import typer

from opd import config
from opd.commands.auto import prepare
from opd.commands.select import run_select
from opd.config import Run
from opd.core import stats
from opd.errors import UserError
from opd.rng import Stream
from opd.run.console import Console
from opd.run.jsonl import read_jsonl
from opd.samplers.hf import HFSampler
from opd.setup.session import build
from opd.training.evaluate import evaluate
from opd.training.loop import Parts, train
from opd.types import Rollout
from opd_lab import zoo
from opd_lab.calibration.grid import PREFIX, WORLDS
from opd_lab.commands import CACHE
from opd_lab.runs import Task, one_thread, run_config

Arm = Literal["plain", "cold start", "select", "horizon", "auto"]
Kind = Literal["failing", "healthy"]
Pair = tuple[str, str, str]  # world, student, teacher
RESCUES: tuple[Arm, ...] = ("cold start", "select", "horizon")
ARMS: tuple[Arm, ...] = ("plain", *RESCUES, "auto")
QUIET = Console("quiet")
# Fixed before any of them was trained on the seeds that are told of: strangers to the teacher (on
# other seeds plain training recovers nothing there), and pairs that work.
# Seeds 40 to 44 and route weak 40 are spent: the recipe was mended after they were seen.
FAILING: tuple[tuple[int, Pair], ...] = (
    *((seed, ("chain", who, "other-clean")) for seed in (45, 46, 47) for who in ("base", "weak")),
    (41, ("route", "weak", "other-clean")),
)
HEALTHY: tuple[tuple[int, Pair], ...] = tuple(
    (40, pair)
    for pair in (
        ("chain", "base", "clean"),
        ("chain", "base", "rl"),
        ("chain", "half-clean", "large-clean"),
        ("chain", "mix20", "other-clean"),
        ("chain", "mix05", "clean"),
        ("ledger", "base", "clean"),
        ("ledger", "half-clean", "clean"),
        ("ledger", "mix05", "clean"),
        ("route", "base", "clean"),
        ("route", "half-clean", "large-clean"),
    )
)
STEPS = {"failing": 240, "healthy": 160}  # of plain training; its tokens are everybody's
PAIRS: dict[Kind, tuple[tuple[int, Pair], ...]] = {"failing": FAILING, "healthy": HEALTHY}
PROMPTS = 20_000


@dataclass
class Meter:
    """Tokens written so far, and the bell to ring when there are enough."""

    budget: float = float("inf")
    tokens: int = 0
    stop: Event | None = None

    def read(self, rollouts: Sequence[Rollout]) -> None:
        """Count some completions."""
        self.tokens += sum(len(r.ids) for r in rollouts)
        if self.stop is not None and self.tokens >= self.budget:
            self.stop.set()


@contextmanager
def metered(budget: float) -> Iterator[Meter]:
    """Count what any sampler of this process writes, evaluations left out."""
    meter, sample = Meter(budget), HFSampler.sample

    def counted(self: HFSampler, prompts: Any, *, n: int, key: Any, **rest: Any) -> list[Rollout]:
        written = sample(self, prompts, n=n, key=key, **rest)
        if len(key) < 2 or key[1] != Stream.EVALUATION:
            meter.read(written)
        return written

    with patch.object(HFSampler, "sample", counted):
        yield meter


def settings(arm: Arm, data: dict[str, Any], scratch: Path) -> Run:
    """The configuration of an arm; every number that is not here is the product's default."""
    match arm:
        case "cold start":
            data |= {"coldstart": {"lr": 4 * data["optim"]["lr"]}}
        case "select":
            data |= {"select": {"output": str(scratch / "kept.jsonl"), "limit": 256, "n": 4}}
        case "horizon":
            prune = {"k": 1, "threshold": 1.0, "drop": 0.34, "quantile": 0.75}
            data |= {"horizon": {"least": 9, "prune": prune}}  # as in E13
        case "auto":
            data |= {"recipe": "auto"}
        case "plain":
            pass
    return config.parse(data)


def play(
    arm: Arm, pair: Pair, seed: int, cache: Path, *, steps: int, budget: float = float("inf")
) -> dict[str, Any]:
    """Train one arm until its tokens are spent, or its steps.

    Returns:
        Held-out accuracy after (and before, and the teacher's, if plain), tokens, steps, decisions.
    """
    world, *kinds = pair
    student, teacher = (zoo.build(f"{PREFIX}{world}-{kind}", seed, cache) for kind in kinds)
    task = Task(WORLDS[world], train=PROMPTS, test=384)
    with tempfile.TemporaryDirectory() as folder, metered(budget) as meter, one_thread():
        scratch = Path(folder)
        data = run_config(student, teacher, task, seed, cache, scratch / "run")
        data["train"]["steps"] = steps
        data["eval"][0] |= {"n": 2, "every": 40}
        try:
            cfg = decided(arm, data, scratch)
        except UserError as error:
            why = " ".join(str(error).split())[:200]
            return {"refused": why, "tokens": meter.tokens, "steps": 0}
        spent = meter.tokens
        parts = build(cfg, resume=False, overwrite=False, console=QUIET)
        meter.stop = parts.stop
        meter.read(())  # the budget may be gone already
        try:
            summary = train(parts)["sets"]["task"]
            after = summary["after"]["value"]
        except KeyboardInterrupt:
            after = measured(parts)
        finally:
            parts.trackers.close()
            parts.folder.close()
        rows = read_jsonl(parts.folder.path / "metrics.jsonl")
        begun = parts.folder.path / "coldstart.json"
        cold = json.loads(begun.read_text("utf-8")) if begun.is_file() else None
        alarms = read_jsonl(parts.folder.path / "alarms.jsonl")
        return {
            **(whole(parts.folder.path) if arm == "plain" else {}),
            "after": after,
            "tokens": meter.tokens,
            "prepared": spent,
            "steps": rows[-1]["step"] if rows else 0,
            "cold_rounds": None if cold is None else cold["rounds"],
            "alarms": [f"{alarm['name']} at {alarm['step']}" for alarm in alarms],
        }


def whole(run: Path) -> dict[str, float]:
    """Held-out accuracy of student and teacher before training."""
    names = {"before": "step-0-task.json", "teacher": "step-0-teacher-task.json"}
    found = {}
    for name, file in names.items():
        correct = json.loads((run / "eval" / file).read_text("utf-8"))["correct"]
        found[name] = fmean(map(fmean, correct))
    return found


def decided(arm: Arm, data: dict[str, Any], scratch: Path) -> Run:
    """The configuration an arm trains with, whatever it took to find it.

    Raises:
        UserError: `recipe: auto` refuses the pair.
    """
    cfg = prepare(settings(arm, data, scratch), resume=False, console=QUIET)
    if arm != "select":
        return cfg
    run_select(cfg)
    data["prompts"]["path"] = str(scratch / "kept.jsonl")
    return config.parse(data | {"select": None})


def measured(parts: Parts) -> float:
    """Held-out accuracy of a student whose training was stopped."""
    task = parts.evals[0]
    found = evaluate(
        parts.student_sampler(task),
        task,
        parts.source.decode,
        seed=parts.cfg.train.seed,
    )
    return found.accuracy.value


def trial(pair: Pair, kind: Kind, seed: int, cache: Path) -> dict[str, Any]:
    """Every arm of a pair, with as many tokens as plain training has."""
    plain = play("plain", pair, seed, cache, steps=STEPS[kind])
    budget = plain["tokens"]
    arms: dict[str, Any] = {"plain": plain}
    for arm in (*(RESCUES if kind == "failing" else ()), "auto"):
        steps = STEPS[kind] * (1 if arm == "auto" else 2)  # alarms look at tenths of the plan
        arms[arm] = play(arm, pair, seed, cache, steps=steps, budget=budget)
    return {"pair": list(pair), "kind": kind, "seed": seed, "budget": budget, "arms": arms}


def told(trials: Sequence[dict[str, Any]]) -> list[str]:
    """The table, and what is claimed of it."""
    lines = ["| pair | before | teacher | " + " | ".join((*ARMS, "auto / best")) + " |"]
    lines.append("|---" * (len(ARMS) + 4) + "|")
    shares, harms = [], []
    for one in trials:
        arms, before = one["arms"], one["arms"]["plain"]["before"]
        after = {name: found.get("after", before) for name, found in arms.items()}
        gap = arms["plain"]["teacher"] - before
        gain = {name: (value - before) / max(gap, 1e-9) for name, value in after.items()}
        world, student, teacher = one["pair"]
        share = ""
        if one["kind"] == "failing":
            best = max(gain[arm] for arm in RESCUES if arm in gain)
            if gain["plain"] < 0.2 and best >= 0.5:
                shares.append(gain["auto"] / best)
                share = f"{shares[-1]:.2f}"
        else:
            harms.append(after["auto"] - after["plain"])
        cells = [f"{after[arm]:.3f}" if arm in after else "" for arm in ARMS]
        who = f"{world}: {student} <- {teacher} ({one['seed']})"
        known = [f"{before:.3f}", f"{arms['plain']['teacher']:.3f}"]
        lines.append("| " + " | ".join((who, *known, *cells, share)) + " |")
    lines.append("")
    if shares:
        good = sum(share >= 0.8 for share in shares)
        lines.append(
            f"Plain recovers less than a fifth and a rescue at least half: {len(shares)} pairs; "
            f"auto recovers at least .8 of the best rescue on {good}, {fmean(shares):.2f} on "
            f"average, {min(shares):.2f} at worst."
        )
    if harms:
        mean = stats.mean(np.array(harms))
        lines.append(
            f"Pairs that work: {len(harms)}; auto minus plain {mean.value:+.3f} [{mean.low:+.3f}, "
            f"{mean.high:+.3f}], {min(harms):+.3f} at worst."
        )
    return lines


def main(
    out: Path,
    cache: Path = CACHE,
    kinds: str = "failing,healthy",
    tell: bool = False,
) -> None:
    """See the module."""
    done = read_jsonl(out) if out.is_file() else []
    known = {(tuple(one["pair"]), one["seed"]) for one in done}
    wanted = [(kind, *each) for kind in PAIRS if kind in kinds for each in PAIRS[kind]]
    for kind, seed, pair in () if tell else wanted:
        if (pair, seed) not in known:
            done.append(trial(pair, kind, seed, cache))
            with out.open("a", encoding="utf-8") as file:
                file.write(json.dumps(done[-1]) + "\n")
            sys.stderr.write(told(done[-1:])[2] + "\n")
    sys.stdout.write("\n".join(told(done)) + "\n")


if __name__ == "__main__":
    typer.run(main)
