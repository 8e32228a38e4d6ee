"""Where one seed's experiments happen: checkpoints, runs and probes, all cached."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from opd.core import stats
from opd.training.session import Session
from opd_lab import gradient_probe, probes, prompt_selection, runs, zoo
from opd_lab.checkpoints import world_of
from opd_lab.gradient_probe import Coherence
from opd_lab.prompt_selection import PromptSelection
from opd_lab.runs import RunResult, Task

Checkpoint = str | Path  # a name of the zoo, or the folder of a model trained here


@dataclass(frozen=True)
class Arm:
    """One run of an experiment: student, teacher, and what differs from the lab's defaults.

    Attributes:
        student: what is trained.
        teacher: what scores it.
        changes: overrides of the configuration.
        edit: a function of the lab that changes what no key does.
    """

    student: Checkpoint
    teacher: str
    changes: tuple[str, ...] = ()
    edit: Callable[[Session], Session] | None = None


@dataclass(frozen=True)
class Workspace:
    """Everything an experiment may ask for, of one seed."""

    seed: int
    cache: Path

    def model(self, checkpoint: Checkpoint) -> Path:
        """A checkpoint's folder; see `zoo.checkpoint`."""
        if isinstance(checkpoint, Path):
            return checkpoint
        return zoo.checkpoint(checkpoint, self.seed, self.cache)

    def accuracy(self, name: str) -> float:
        """A checkpoint's accuracy on its card."""
        value: float = zoo.card(name, self.seed, self.cache)["accuracy"]["value"]
        return value

    def accuracy_at(self, name: str, depth: int) -> float:
        """A checkpoint's accuracy on held-out problems of a depth that is not its card's."""
        task = Task(world_of(name), depth, train=1)
        measured = probes.measure_accuracy(self.model(name), task, seed=zoo.CARD_SEED)
        return measured.accuracy.value

    def accuracy_on(self, checkpoint: Checkpoint, task: Task) -> float:
        """A model's accuracy on the held-out problems of a task, with the key of evaluations."""
        measured = probes.measure_accuracy(self.model(checkpoint), task, seed=self.seed)
        return measured.accuracy.value

    def coherence(self, student: Checkpoint, teacher: str, task: Task) -> Coherence:
        """How gradients of single positions add up; see `gradient_probe.measure_coherence`."""
        pair = self.model(student), self.model(teacher)
        return gradient_probe.measure_coherence(*pair, task, seed=self.seed, cache=self.cache)

    def run(self, arm: Arm, task: Task) -> RunResult:
        """The run of an arm."""
        pair = self.model(arm.student), self.model(arm.teacher)
        return runs.run(
            *pair, task, seed=self.seed, cache=self.cache, changes=arm.changes, edit=arm.edit
        )

    def run_each(self, arms: Mapping[str, Arm], task: Task) -> dict[str, RunResult]:
        """The runs of several arms by label."""
        return {label: self.run(arm, task) for label, arm in arms.items()}

    def overlap(
        self, student: Checkpoint, teacher: str, task: Task, ks: Sequence[int]
    ) -> dict[int, dict[str, float]]:
        """Diagnostics by support size; see `probes.measure_overlap`."""
        pair = self.model(student), self.model(teacher)
        return probes.measure_overlap(*pair, task, ks, seed=self.seed, cache=self.cache)

    def continuation_gains(
        self, student: str, teacher: str, task: Task, cuts: Sequence[int]
    ) -> list[float]:
        """Continuation gain at several prefix lengths; see `probes.continuation_gain`."""
        pair = self.model(student), self.model(teacher)
        gains = probes.continuation_gain(*pair, task, cuts, seed=self.seed, cache=self.cache)
        return [gain.value for gain in gains]

    def reward_auroc(self, student: str, teacher: str, task: Task) -> stats.Estimate:
        """AUROC of mean sequence reward; see `probes.reward_auroc`."""
        pair = self.model(student), self.model(teacher)
        return probes.reward_auroc(*pair, task, seed=self.seed, cache=self.cache)

    def select_prompts(self, student: str, teacher: str, task: Task, limit: int) -> PromptSelection:
        """What `opd select` keeps of a task's prompts; see `prompt_selection.select_prompts`."""
        pair = self.model(student), self.model(teacher)
        return prompt_selection.select_prompts(*pair, task, limit, seed=self.seed, cache=self.cache)
