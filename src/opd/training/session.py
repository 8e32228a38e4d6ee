"""What a run is made of: everything the loop uses, as protocols and plain values."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from threading import Event
from typing import Any

from opd.config import Run
from opd.run.checkpoint import find_newest_checkpoint
from opd.run.clock import Clock
from opd.run.console import Console
from opd.run.folder import RunFolder
from opd.run.jsonl import read_jsonl
from opd.run.layout import BEST, COLD_START
from opd.run.stop_request import take_stop_request
from opd.run.trackers import Trackers
from opd.training.ahead import LookAhead
from opd.training.answer_kl import Measure
from opd.training.checkpoints import restore_phase, write_checkpoint
from opd.training.eval_task import EvalTask
from opd.training.evaluate import Evaluation
from opd.training.experience import ExperienceSource
from opd.training.interventions import Interventions
from opd.training.learner import Learner
from opd.types import Metrics, Sampler


@dataclass(frozen=True)
class Session:
    """A run, ready to train; made by `opd.setup.session.build`.

    Attributes:
        cfg: the resolved configuration.
        folder: the run folder.
        source: where rollouts and their scores come from.
        learner: what updates the student.
        tokenizer: saved with the student.
        evals: the held-out sets.
        student_sampler: samples held-out completions of the student.
        teacher_sampler: likewise of the teacher; None if it cannot generate.
        console: what people see.
        trackers: wandb and the like.
        clock: seconds per phase of a step.
        interventions: alarms and what they have changed.
        stop: set it to save after this step and stop.
        facts: what earlier phases add to the summary.
        warm_started: a phase before the first step has trained the student.
        close: ends the servers that were started for the run.
        measure_answers: KL of held-out answers to the teacher; None: it is not measured.
        ahead: samples one step ahead; None: every step waits for its rollouts.
        evaluations: made by this process, by step and name.
    """

    cfg: Run
    folder: RunFolder
    source: ExperienceSource
    learner: Learner
    tokenizer: Any
    evals: Sequence[EvalTask]
    student_sampler: Callable[[EvalTask], Sampler]
    teacher_sampler: Callable[[EvalTask], Sampler | None] | None
    console: Console
    trackers: Trackers
    clock: Clock
    interventions: Interventions
    stop: Event = field(default_factory=Event)
    facts: Mapping[str, Any] = field(default_factory=dict)
    warm_started: bool = False
    close: Callable[[], None] = lambda: None
    measure_answers: Measure | None = None
    ahead: LookAhead | None = None
    evaluations: dict[tuple[int, str], Evaluation] = field(default_factory=dict)

    @property
    def steps(self) -> int:
        """Updates of the whole run."""
        return self.cfg.train.steps

    @property
    def current_learner(self) -> Learner:
        """The learner with the objective of the moment, which an alarm may have changed."""
        return replace(self.learner, objective=self.interventions.adjustable.objective)

    @property
    def stop_requested(self) -> bool:
        """Whether somebody asked any of the processes to stop."""
        ranks = self.learner.ranks
        asked = ranks.is_main and take_stop_request(self.folder.path)
        return ranks.any_rank(self.stop.is_set() or asked)

    def is_over(self, step: int) -> bool:
        """Whether a run has no step left, by its length or by an alarm."""
        return step >= self.steps or self.interventions.stopped_by is not None

    def needs_cold_start(self, step: int) -> bool:
        """Whether a cold start that an alarm asked for comes before the next step.

        Also if an earlier process made it: the prompts it used are still to be left out. A run that
        is over has no use for a new one.
        """
        status = self.interventions.adjustable.cold_start
        waits = status == "due" and not self.is_over(step)
        return waits or (status == "made" and "coldstart" not in self.facts)

    def resume(self) -> int:
        """Restore the newest checkpoint and cut the logs to it.

        Returns:
            The number of updates made so far.
        """
        folder = self.folder
        step, state = restore_phase(folder, self.learner, folder.checkpoints, cut=False)
        facts = state.get("facts", {})
        due = facts.get("course", {}).get("cold_start") == "due"
        # A cold start that was under way has a newer checkpoint, and cuts the logs to that.
        if not due or find_newest_checkpoint(folder.path / COLD_START / "checkpoints") is None:
            folder.truncate_logs(state.get("logs", {}), state.get("log_digests"))
        self.learner.ranks.barrier()  # logs are cut before anybody reads them
        self.interventions.restore(facts, read_jsonl(folder.path / "metrics.jsonl"), step)
        # A kill may have come between the last checkpoint and this.
        folder.thin_rollouts(step, self.cfg.output.rollout_sample)
        return step

    def log(self, step: int, metrics: Metrics) -> None:
        """One line to metrics.jsonl, one to timings.jsonl, one to the console and trackers."""
        values = {name: mean.value for name, mean in metrics.items()}
        timings = self.clock.take(metrics["rollout/length"].total)
        self.folder.log_metrics(step, values)
        self.interventions.monitor.add(values)
        self.folder.log_timings(step, timings)
        self.trackers.log(step, values | timings)
        self.console.show_step(step, values, timings["time/tokens_per_s"])

    def save_checkpoint(self, step: int) -> None:
        """Write checkpoints/step-N, prune older ones, and thin the rollouts it makes final."""
        keep, state = self.cfg.output.keep, self.interventions.state()
        with self.clock("save"):
            write_checkpoint(self.folder, self.learner, step, keep=keep, facts=state)
            self.folder.thin_rollouts(step, self.cfg.output.rollout_sample)

    def save_best(self, step: int) -> None:
        """Write the best student so far, to a folder of its own."""
        folder, state = self.folder.path / BEST, self.interventions.state()
        write_checkpoint(self.folder, self.learner, step, keep=1, folder=folder, facts=state)
