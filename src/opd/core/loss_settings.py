"""The settings of a loss, what they exclude and what they ask for; no torch.

A wrong combination is refused at construction, before anything is loaded.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from opd.errors import UserError
from opd.types import Divergence, Estimator, Mode, Support, Want

Weights = Literal["student_p", "teacher_p", "none"]


@dataclass(frozen=True, kw_only=True)
class LossSettings:
    """Which divergence on which support, and what that asks of the models.

    Field names are those of the config's `loss` and `loss.terms`. `weights`, `normalize` and
    `allow_zero_gradient` have no key: they are variants of the published code, for comparisons.

    Modes, for a support of several tokens: `paper` renormalises both sides on it (Eq. 5),
    `reference` is the published code's surrogate (`losses.reference_topk`), `tail` adds one bucket
    for everything outside. docs/math.md has every formula.

    Raises:
        UserError: at construction, for a combination that is biased, undefined or trains nothing.
    """

    divergence: Divergence = "reverse_kl"
    support: Support = "student_topk"
    k: int = 16
    mode: Mode = "paper"
    estimator: Estimator = "k1"
    beta: float = 0.5
    weights: Weights = "student_p"
    normalize: bool = False
    allow_zero_gradient: bool = False
    reward_scale: float = 1.0
    entropy_forward_kl: float | None = None
    position_decay: float | None = None
    outcome_weight: float = 0.0
    student_temperature: float = 1.0
    sampling_temperature: float = 1.0
    sampling_truncated: bool = False  # top_p < 1 while sampling
    other_tokenizer: bool = False  # the teacher's scores are of its own tokens, chunk by chunk

    def __post_init__(self) -> None:
        for wrong, message in (*self._refusals_of_text(), *self._refusals()):
            if wrong:
                raise UserError(message)

    def _refusals(self) -> list[tuple[bool, str]]:
        sampled, divergence = self.support == "sampled" or self.other_tokenizer, self.divergence
        one_token = self.support in ("student_topk", "teacher_topk", "intersection")
        return [
            (
                self.k == 1 and self.mode == "paper" and one_token and not self.allow_zero_gradient,
                "loss.k=1 in loss.mode=paper has exactly zero gradient: one token renormalised on "
                "itself has probability 1. Use loss.k>=4, loss.mode=tail or loss.support=sampled",
            ),
            (self.k < 1, f"loss.k={self.k}: at least 1 token"),
            (not 0 < self.beta < 1, f"loss.beta={self.beta}: must lie between 0 and 1"),
            (
                self.support == "sampled" and divergence != "reverse_kl",
                f"loss.support=sampled estimates reverse KL; loss.divergence={divergence} needs "
                "several tokens, such as loss.support=student_topk",
            ),
            (
                self.mode == "reference" and divergence != "reverse_kl",
                f"loss.mode=reference is the published reverse-KL code; loss.divergence="
                f"{divergence} has no such form. Use loss.mode=paper or tail",
            ),
            (
                self.mode == "tail" and self.support in ("full", "sampled"),
                f"loss.mode=tail needs a support of several tokens and something outside it; "
                f"loss.support={self.support} has none. Use loss.support=student_topk",
            ),
            (
                self.normalize
                and not (self.mode == "reference" and self.support == "symmetric_difference"),
                "Objective(normalize=True) concerns loss.mode=reference with loss.support="
                f"symmetric_difference, not {self.mode} with {self.support}, which is always "
                "normalised its own way. Set normalize=False",
            ),
            (
                sampled and self.sampling_truncated,
                "loss.support=sampled is biased when rollouts are truncated: the sample does not "
                "come from the distribution that is trained. Set rollout.top_p=1, or use "
                "loss.support=student_topk",
            ),
            (
                sampled and self.sampling_temperature != self.student_temperature,
                f"loss.support=sampled samples at rollout.temperature={self.sampling_temperature} "
                f"but trains loss.student_temperature={self.student_temperature}: biased. Make "
                "them equal, or use loss.support=student_topk",
            ),
            (
                self.reward_scale != 1
                and (divergence != "reverse_kl" or self.mode == "tail" or self._pathwise),
                f"loss.terms.reward_scale={self.reward_scale} is defined for reverse KL with "
                f"loss.mode=paper or reference and loss.estimator=k1, not for {divergence}, "
                f"{self.mode}, {self.estimator}: elsewhere the scaled teacher's normaliser matters",
            ),
            (
                self.reward_scale != 1
                and self.support in ("teacher_topk", "union", "symmetric_difference"),
                f"loss.terms.reward_scale={self.reward_scale} with loss.support={self.support} "
                "would need the reference model on the teacher's tokens; use "
                "loss.support=student_topk, intersection, sampled or full",
            ),
        ]

    def _refusals_of_text(self) -> list[tuple[bool, str]]:
        """What a teacher of another tokenizer cannot be asked."""
        text, only = self.other_tokenizer, "with a teacher of another tokenizer (teacher.tokenizer)"
        return [
            (
                text and self.support not in ("sampled", "student_topk"),
                f"loss.support={self.support} {only} would compare tokens that the student does "
                "not have. Use loss.support=student_topk or sampled",
            ),
            (
                text and (self.mode == "reference" or self.estimator != "k1"),
                f"loss.mode={self.mode} and loss.estimator={self.estimator} {only}: chunks are "
                "trained by k1. Use loss.mode=paper or tail, and loss.estimator=k1",
            ),
            (
                text and (self.reward_scale != 1 or self.entropy_forward_kl is not None),
                f"loss.terms.reward_scale and entropy_forward_kl {only} would need models of the "
                "student's tokens. Leave them out",
            ),
        ]

    @property
    def _pathwise(self) -> bool:
        return self.support == "sampled" and self.estimator != "k1"

    @property
    def needs_full_teacher(self) -> bool:
        """Whether the loss needs the teacher's (and a reference's) whole distribution."""
        return self.support == "full"

    @property
    def _needs_teacher_topk(self) -> bool:
        in_support = self.support not in ("sampled", "student_topk", "full")
        return in_support or self.entropy_forward_kl is not None

    @property
    def _normalised(self) -> bool:
        """Whether the distillation part uses normalised log-probs on its support."""
        return self.support in ("sampled", "full") or self.mode != "paper" or self.other_tokenizer

    @property
    def renormalises_teacher(self) -> bool:
        """Whether the teacher counts on the student's top k alone, as if it had nothing else."""
        return self.support == "student_topk" and self.mode == "paper" and not self.other_tokenizer

    @property
    def needs_normaliser(self) -> bool:
        """Whether the student's log_z or whole row is needed: logits of the whole vocabulary."""
        return self._normalised or self.entropy_forward_kl is not None or self.outcome_weight > 0

    @property
    def needs_reference(self) -> bool:
        """Whether `per_position` needs the distribution of a reference model (reward scaling)."""
        return self.reward_scale != 1

    @property
    def want(self) -> Want:
        """What to ask of the teacher; `full` is for the caller, who knows the positions.

        A teacher whose log-scores on the student's ids must be normalised is asked for `sampled`
        too, which makes it compute its whole vocabulary.
        """
        on_student_ids = self.support not in ("sampled", "teacher_topk", "full")
        needs_z = not self.needs_full_teacher and self._normalised
        return Want(
            sampled=needs_z,
            support=on_student_ids,
            topk=self.k if self._needs_teacher_topk else 0,
        )
