"""Bytes that come and go with losses, diagnostics and a teacher's scores.

Constants are copies of logits or scores that these hold at a time, as tests count them.
Shapes: N completion positions of a micro-batch, V vocabulary, H hidden size, K tokens of a support.
"""

from __future__ import annotations

from opd.config import Run, ServerTeacher
from opd.core.chunked import ACCELERATOR_CHUNK_ELEMENTS, CHUNK_ELEMENTS, CPU_BLOCK_ELEMENTS
from opd.core.objective import Objective
from opd.models.head import GATHER_ELEMENTS, SPARSE_VOCAB
from opd.models.model_size import FLOAT, ModelSize, kept_bytes
from opd.setup.objective import make_objective
from opd.teachers.local import CACHED_TOKEN

# Tensors of a chunk's size in float32 that are alive at a time, beside the raw logits.
LOSS_COPIES, FULL_LOSS_COPIES, MIXTURE_LOSS_COPIES = 4.0, 5.0, 11.5
DIAGNOSED_COPIES = 3.5  # of the logits of both models together
SCORED_COPIES = 3
INDEX = 8  # bytes of a token id on the device
SCORE_COPIES = 6  # tensors of the size of a support in float32 that a loss on it holds
TWO_SUPPORTS = ("union", "symmetric_difference")
TOKEN_STATISTICS = 32  # bytes of a token's id, log-probs, entropies and normaliser


class LossWork:
    """Sizes of one run's losses on one kind of device."""

    def __init__(self, cfg: Run, *, on_gpu: bool) -> None:
        """Settle the loss.

        Args:
            cfg: the run.
            on_gpu: whether the student's device has the chunks and blocks of an accelerator.

        Raises:
            UserError: a loss that makes no sense.
        """
        self.cfg, self.objective = cfg, _objective(cfg)
        self.chunk = ACCELERATOR_CHUNK_ELEMENTS if on_gpu else CHUNK_ELEMENTS
        # Copies of float32 logits are blocks on a CPU and whole chunks on a GPU.
        self.block = self.chunk if on_gpu else CPU_BLOCK_ELEMENTS

    def loss_bytes(self, student: ModelSize, tokens: int) -> int:
        """Of the loss at N <= `tokens` positions, beside the student's forward."""
        item, width, vocab = student.itemsize, student.hidden, student.vocab
        hidden = 2 * tokens * width * item  # those of completion tokens, and their gradient
        if self.objective.needs_normaliser or self._imitates():
            elements = min(self.chunk, tokens * vocab)
            copied = round(self._loss_copies() * min(elements, self.block) * FLOAT)
            gradient = vocab * width * (FLOAT + item + FLOAT) if student.head_trained else 0
            raw = elements * item * (2 if self.objective.needs_full_teacher else 1)  # both models'
            return hidden + raw + copied + gradient
        candidates = self.cfg.loss.k * (2 if self.objective.support in TWO_SUPPORTS else 1)
        scores = tokens * candidates * (INDEX + SCORE_COPIES * FLOAT)
        rows = vocab if vocab < SPARSE_VOCAB else min(tokens * candidates, vocab)
        gradient = rows * width * (FLOAT + item) if student.head_trained else 0
        return hidden + scores + max(gradient, _gathered_bytes(student, tokens * candidates))

    def diagnosed_bytes(self, student: ModelSize, tokens: int) -> int:
        """Of the diagnostics after a micro-batch's backward, its hidden states included."""
        positions = min(tokens, self.cfg.diagnostics.positions)
        elements = min(self.block, 2 * student.vocab * positions)
        return tokens * student.hidden * student.itemsize + round(
            DIAGNOSED_COPIES * elements * FLOAT
        )

    def scoring_bytes(self, teacher: ModelSize, tokens: int, longest: int) -> int:
        """Of a teacher that scores micro-batches of `tokens`, beside its weights.

        Args:
            teacher: its size.
            tokens: of a forward.
            longest: completion; the head is applied to one at a time.
        """
        passed = teacher.forward * tokens + kept_bytes(
            teacher.cache.per_token, tokens // CACHED_TOKEN
        )
        states = tokens * teacher.hidden * teacher.itemsize
        want = self.objective.want
        if want.sampled or want.topk:
            elements = min(self.chunk, longest * teacher.vocab)
            scored = elements * (teacher.itemsize + SCORED_COPIES * FLOAT)
        else:
            scored = _gathered_bytes(teacher, longest * self.cfg.loss.k)
        return max(passed, states + scored)

    def token_bytes(self) -> int:
        """Host memory of a sampled token: ids, log-probs, entropies, scores."""
        return TOKEN_STATISTICS + (INDEX + FLOAT) * self.cfg.loss.k

    def _imitates(self) -> bool:
        """Whether some part of the run is cross-entropy on given completions."""
        return self.cfg.coldstart is not None or self.cfg.loss.terms.sft_weight > 0

    def _loss_copies(self) -> float:
        if self.objective.support != "full":
            return LOSS_COPIES
        mixtures = self.objective.divergence in ("jsd", "skew_kl")
        return MIXTURE_LOSS_COPIES if mixtures else FULL_LOSS_COPIES


def _gathered_bytes(size: ModelSize, count: int) -> int:
    """Rows of a head that scores of `count` tokens gather, in the head's dtype and in float32."""
    elements = min(GATHER_ELEMENTS, count * size.hidden)
    return elements * (size.itemsize if size.itemsize >= FLOAT else size.itemsize + FLOAT)


def _objective(cfg: Run) -> Objective:
    """The loss; `auto` with a server is the one that takes more memory."""
    if cfg.loss.support == "auto":
        served = isinstance(cfg.teacher, ServerTeacher)
        mode = "tail" if served and cfg.loss.mode == "paper" else cfg.loss.mode
        support = "teacher_topk" if served else "student_topk"
        loss = cfg.loss.model_copy(update={"support": support, "mode": mode})
        cfg = cfg.model_copy(update={"loss": loss})
    return make_objective(cfg)
