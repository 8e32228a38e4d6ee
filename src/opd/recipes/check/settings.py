"""What a forecast knows of the run: its length, rate, batch, adapters and evaluation, as numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from opd.training.optimizer import learning_rate


@dataclass(frozen=True)
class RunSettings:
    """The settings of a run that its outcome depends on.

    Attributes:
        steps: updates.
        lr: largest learning rate.
        warmup: steps of linear warm-up.
        prompts_per_step: prompts of an update.
        responses: rollouts per prompt.
        max_new_tokens: tokens of a rollout, at most.
        weight_decay: of AdamW.
        lora_rank: of the adapters; 0: all weights are trained.
        parameters: of the student.
        trained_parameters: of them, those that are trained.
        rollout_temperature: of the training rollouts.
        eval_temperature: of the evaluation that the forecast holds for.
        eval_top_p: likewise.
        cold_start: whether the run begins with a cold start.
    """

    steps: int
    lr: float
    warmup: int
    prompts_per_step: int
    responses: int
    max_new_tokens: int
    weight_decay: float
    lora_rank: int
    parameters: int
    trained_parameters: int
    rollout_temperature: float
    eval_temperature: float
    eval_top_p: float
    cold_start: bool = False

    def path(self, steps: int | None = None) -> float:
        """Sum of the learning rates of the first `steps` updates; None: of all."""
        count = self.steps if steps is None else min(steps, self.steps)
        return sum(learning_rate(self.lr, step, self.warmup) for step in range(count))

    def record(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)

    @staticmethod
    def of_record(record: Mapping[str, Any]) -> RunSettings:
        """The inverse of `record`."""
        return RunSettings(**record)
