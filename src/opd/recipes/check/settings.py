"""What a forecast knows of the run: length, rate, batch, adapters, evaluation, as numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from opd.config import Run
from opd.models.lm import LM
from opd.samplers.decoding import Decoding
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
        evaluated: whether there is a held-out set; without one, answers are sampled as rollouts.
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
    evaluated: bool = True

    def path(self, steps: int | None = None) -> float:
        """Sum of the learning rates of the first `steps` updates; None: of all."""
        count = self.steps if steps is None else min(steps, self.steps)
        return sum(learning_rate(self.lr, step, self.warmup) for step in range(count))

    def record(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)

    @staticmethod
    def of_run(cfg: Run, student: LM) -> RunSettings:
        """From a configuration and its loaded student."""
        lora = cfg.student.lora
        evaluation = evaluation_decoding(cfg)
        return RunSettings(
            steps=cfg.train.steps,
            lr=cfg.optim.lr,
            warmup=cfg.optim.warmup,
            prompts_per_step=cfg.train.prompts_per_step,
            responses=cfg.rollout.n,
            max_new_tokens=cfg.rollout.max_new_tokens,
            weight_decay=cfg.optim.weight_decay,
            lora_rank=0 if lora is None else lora.rank,
            parameters=student.num_parameters(),
            trained_parameters=sum(p.numel() for p in student.parameters().values()),
            rollout_temperature=cfg.rollout.temperature,
            eval_temperature=evaluation.temperature,
            eval_top_p=evaluation.top_p,
            cold_start=begins_cold(cfg),
            evaluated=bool(cfg.eval),
        )

    @staticmethod
    def of_record(record: Mapping[str, Any]) -> RunSettings:
        """The inverse of `record`."""
        return RunSettings(**record)


def begins_cold(cfg: Run) -> bool:
    """Whether the run begins with a cold start."""
    return cfg.coldstart is not None and cfg.coldstart.when == "start"


def evaluation_decoding(cfg: Run) -> Decoding:
    """How the first held-out set is sampled; the rollouts' own decoding without one."""
    rollout = cfg.rollout
    if not cfg.eval:
        return Decoding(rollout.max_new_tokens, rollout.temperature, rollout.top_p)
    first = cfg.eval[0]
    new_tokens = first.max_new_tokens or rollout.max_new_tokens
    return Decoding(new_tokens, first.temperature, first.top_p)
