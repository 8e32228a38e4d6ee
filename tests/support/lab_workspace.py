"""A workspace of the lab that trains nothing: its numbers are made up from what is asked for."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from opd import config
from opd.core.stats import Estimate
from opd_lab.experiments.workspace import Workspace
from opd_lab.gradient_probe import Coherence
from opd_lab.prompt_selection import PromptSelection
from opd_lab.runs import RunResult, run_config
from opd_lab.worlds.content_chain import KNOWN, OTHER


def made_up(*key) -> float:
    """A number in [0, 1) that depends on the key alone."""
    digest = hashlib.sha256(repr(key).encode()).digest()
    return int.from_bytes(digest[:6], "big") / 2**48


@dataclass(frozen=True)
class MadeUpRun(RunResult):
    """A run of any length whose metrics are made up; `key` identifies it."""

    key: tuple[str, ...] = ()

    def curve(self, name):
        steps = range(0, 401, 10) if name.startswith("eval/") else range(1, 401)
        scale = 50 if name == "train/tokens" else 1
        return [*map(float, steps)], [scale * made_up(self.key, name, step) for step in steps]

    def correct(self, step, name="task"):
        return np.array([made_up(self.key, step, name, i) for i in range(16)])

    def record(self, name):
        assert name == "coldstart.json"
        looks = [{name: made_up(self.key, name, i) for name in ("mass", "top1")} for i in range(4)]
        counts = {"rounds": 3, "tokens": 900, "written_tokens": 2000, "probe_tokens": 200}
        return {**counts, "looks": looks, "sets": {"task": {"value": made_up(self.key, name)}}}

    def metrics(self):
        parts = [f"@rel{i}-{i + 10}" for i in range(0, 100, 10)]
        names = ["train/loss", *("diag/reverse_kl" + p for p in parts)]
        names += ["diag/gradient_share" + p for p in parts]
        return [{"step": s} | {n: made_up(self.key, n, s) for n in names} for s in range(1, 21)]

    def lines(self, name):
        assert name == "timings.jsonl"
        return [{"step": step, "time/step_s": 1 + made_up(self.key, step)} for step in range(401)]


class MadeUpWorkspace(Workspace):
    """Answers every question of an experiment at once."""

    def model(self, checkpoint):
        return Path(checkpoint)

    def accuracy(self, name):
        return made_up("accuracy", name)

    def accuracy_at(self, name, depth):
        return made_up("accuracy", name, depth)

    def accuracy_on(self, checkpoint, task):
        return made_up("accuracy", str(checkpoint), repr(task))

    def coherence(self, student, teacher, task):
        return Coherence(*(made_up("coherence", student, teacher, i) for i in range(4)))

    def run(self, arm, task):
        """The arm's configuration must be one that the product accepts."""
        names = ("train", *("task" if d is None else f"n{d}" for d in task.eval_depths))
        files = {name: Path(f"{name}.jsonl") for name in names}
        pair = Path(arm.student), Path(arm.teacher)
        config.parse(run_config(*pair, task, files, self.seed, Path("run")), arm.changes)
        edit = [] if arm.edit is None else [arm.edit.__qualname__]
        names = str(arm.student), arm.teacher, *arm.changes, *edit
        return MadeUpRun(Path("run"), (*names, repr(task)))

    def overlap(self, student, teacher, task, ks):
        names = ("overlap_ratio", "overlap_mass_student", "entropy_gap_abs")
        return {k: {f"diag/{n}": made_up(str(student), teacher, k, n) for n in names} for k in ks}

    def continuation_gains(self, student, teacher, task, cuts):
        return [made_up("gain", student, teacher, cut) for cut in cuts]

    def reward_auroc(self, student, teacher, task):
        return Estimate(made_up("auroc", student, teacher), 0.0, 1.0, 3)

    def select_prompts(self, student, teacher, task, limit):
        texts = [f"sum {(KNOWN if i % 2 else OTHER)[0]}" for i in range(20)]
        names = ("score", "advantage", "mixed", "mass", "entropy")
        measures = {name: np.array([made_up(name, i) for i in range(20)]) for name in names}
        return PromptSelection(texts, [1, 2, 3], measures, Path("selected"), Path("random"))
