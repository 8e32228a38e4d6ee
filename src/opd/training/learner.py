"""What updates the student: model, optimizer, objective, and the settings of a step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from opd.config import Optim
from opd.core.microbatches import MicroBatchGroup
from opd.core.objective import Objective
from opd.models.lm import LM
from opd.models.self_weights import SelfWeights
from opd.training.distributed import SINGLE, Ranks

LogitsOf = Callable[[Tensor], Tensor]  # teacher hidden states (n, H) to logits (n, V)


@dataclass
class MicroBatchSplits:
    """How often micro-batches were halved because memory ran out; kept for later steps."""

    halvings: int = 0

    def apply(self, groups: Sequence[MicroBatchGroup]) -> list[MicroBatchGroup]:
        """Micro-batches of a step, each halved `halvings` times, as far as they have rows."""
        parts = list(groups)
        for _ in range(self.halvings):
            parts = [half for group in parts for half in group.split()]
        return parts


@dataclass(frozen=True)
class Learner:
    """Everything an update needs and a step never changes.

    Attributes:
        student: the model that is trained.
        optimizer: over its trainable parameters.
        objective: the loss of a position.
        optim: rate, warm-up, clipping.
        tokens_per_microbatch: padded tokens per forward-backward; memory only.
        teacher_logits: for full-vocabulary losses and diagnostics; None if the teacher gives no
            hidden states.
        teacher_temperature: divides the teacher's logits.
        diagnostics_k: support size of overlap ratio and mass.
        position_edges: bins of the diagnostics by position.
        seed: train.seed.
        sft_weight: of cross-entropy on given completions beside the distillation.
        ranks: the processes that divide the micro-batches among them.
        splits: how often micro-batches were halved because memory ran out.
        deterministic: use deterministic kernels in the update (train.deterministic).
        routed_logits: as teacher_logits, by the name of each of several teachers.
        own_teacher: weights that teach and are the student's own; they may follow its updates.
    """

    student: LM
    optimizer: torch.optim.Optimizer
    objective: Objective
    optim: Optim
    tokens_per_microbatch: int
    teacher_logits: LogitsOf | None
    teacher_temperature: float
    diagnostics_k: int
    position_edges: Sequence[int]
    seed: int = 0
    sft_weight: float = 0.0
    ranks: Ranks = SINGLE
    splits: MicroBatchSplits = field(default_factory=MicroBatchSplits)
    deterministic: bool = False
    routed_logits: Mapping[str, LogitsOf | None] = field(default_factory=dict)
    own_teacher: SelfWeights | None = None

    def logits_of(self, teacher_name: str | None) -> LogitsOf | None:
        """Hidden states to logits of the one teacher, or of the named one of several."""
        return self.teacher_logits if teacher_name is None else self.routed_logits[teacher_name]

    @staticmethod
    def supervised(
        student: LM,
        optimizer: torch.optim.Optimizer,
        optim: Optim,
        *,
        tokens_per_microbatch: int,
        seed: int,
    ) -> Learner:
        """A learner for cross-entropy alone: no teacher, no diagnostics."""
        return Learner(
            student=student,
            optimizer=optimizer,
            objective=Objective(),
            optim=optim,
            tokens_per_microbatch=tokens_per_microbatch,
            teacher_logits=None,
            teacher_temperature=1.0,
            diagnostics_k=1,
            position_edges=(),
            seed=seed,
        )
