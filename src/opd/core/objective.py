"""The loss of a run as one object: which divergence, on which support, with which added terms.

It asks a `Distribution` only for what the formula needs, and gives one value per position; the
caller sums and divides by the completion-token count of the whole optimizer step. Being additive
over positions, it may be applied to any chunk of them.

Temperatures: sampling, student-loss and teacher-loss temperature are three things. The
distributions already apply the two loss temperatures; the sampling temperature is given here only
to refuse a biased combination.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from opd.core import losses
from opd.core.distributions import Distribution, logp
from opd.core.losses import Weights
from opd.core.precision import at_least_float32
from opd.core.supports import candidates
from opd.errors import UserError
from opd.types import Divergence, Estimator, Mode, Support, Want


class CompletionTokens(NamedTuple):
    """The completion tokens of a micro-batch, flat, on the model's device.

    Attributes:
        targets: (N,) ids of the sampled tokens.
        student_topk: (N, K) ids from the sampler, most probable first; K >= the objective's k.
        teacher_topk: (N, K) ids, if the objective wants them.
        sampler_logp: (N,) log-prob of the target when it was sampled.
        position: (N,) index in the completion, from 0.
        teacher_entropy: (N,) nats, if the objective wants it.
        advantage: (N,) outcome advantage of the token's rollout.
        shared: (N, K) for a teacher of another tokenizer: 1 for those of student_topk that it has
            too, all 0 at positions that are not one token on either side. None: one tokenizer.
        weight: (N,) 1 normally; 0 where nothing is to be learned, such as masked special tokens.
            The objective applies its own `position_decay` on top.
    """

    targets: Tensor
    student_topk: Tensor
    teacher_topk: Tensor | None
    sampler_logp: Tensor
    position: Tensor
    teacher_entropy: Tensor | None
    advantage: Tensor | None
    weight: Tensor
    shared: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class Objective:
    """What the student minimises at each position.

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

    def per_position(
        self,
        student: Distribution,
        teacher: Distribution | None,
        tokens: CompletionTokens,
        reference: Distribution | None = None,
    ) -> Tensor:
        """Weighted loss (N,) at each position, in nats, differentiable in the student.

        With `paper` mode and no terms it asks the student for `scores` alone. Without a teacher
        only the outcome term remains (REINFORCE with group-normalised advantages).

        Args:
            student: distribution at loss.student_temperature.
            teacher: distribution at loss.teacher_temperature, with scores on one common scale per
                position; treated as data, without gradient.
            tokens: the N completion tokens.
            reference: distribution of the model that reward_scale extrapolates from.

        Returns:
            (N,); positions of weight 0 give 0 with zero gradient.
        """
        total = torch.zeros_like(tokens.targets, dtype=torch.float32)
        if teacher is not None:
            total = total + self._distillation(student, teacher, tokens, reference)
            if self.entropy_forward_kl is not None:
                total = total + self._entropy_term(
                    student, teacher, tokens, self.entropy_forward_kl
                )
        if self.outcome_weight > 0:
            total = total + self.outcome_weight * self._outcome_term(student, tokens)
        if self.position_decay is not None:
            total = total * losses.position_decay(tokens.position, self.position_decay)
        return total * tokens.weight

    def _distillation(
        self,
        student: Distribution,
        teacher: Distribution,
        tokens: CompletionTokens,
        reference: Distribution | None,
    ) -> Tensor:
        if tokens.shared is not None:
            return self._compare_text(student, teacher, tokens, tokens.shared)
        if self.support == "full":
            p, q = student.log_probs(), teacher.log_probs()
            if reference is not None and self.needs_reference:
                q = losses.extrapolate(q, reference.log_probs(), self.reward_scale)
                q = losses.renormalise(q)
            p, q = _zero_ignored(tokens, p), _zero_ignored(tokens, q).detach()
            return losses.reference_topk(p, q) if self.mode == "reference" else self._compare(p, q)
        student_topk = tokens.student_topk[:, : self.k]
        teacher_topk = None if tokens.teacher_topk is None else tokens.teacher_topk[:, : self.k]
        ids, valid = candidates(self.support, tokens.targets, student_topk, teacher_topk)
        if not self._normalised:
            p, q = student.scores(ids), teacher.scores(ids)
            if reference is not None and self.needs_reference:
                q = losses.extrapolate(q, reference.scores(ids), self.reward_scale)
            p, q = _zero_ignored(tokens, p), _zero_ignored(tokens, q).detach()
            return self._compare(losses.renormalise(p, valid), losses.renormalise(q, valid))
        p, q = logp(student, ids), logp(teacher, ids)
        if reference is not None and self.needs_reference:
            q = losses.extrapolate(q, logp(reference, ids), self.reward_scale)
        p, q = _zero_ignored(tokens, p), _zero_ignored(tokens, q).detach()
        if self.support == "sampled":
            return self._estimate(p[:, 0], q[:, 0])
        if self.mode == "reference":
            normal = self.support != "symmetric_difference" or self.normalize
            return losses.reference_topk(p, q, valid, weights=self.weights, normalize=normal)
        return self._compare(losses.with_tail(p, valid), losses.with_tail(q, valid))

    def _compare_text(
        self, student: Distribution, teacher: Distribution, tokens: CompletionTokens, shared: Tensor
    ) -> Tensor:
        """k1 on chunk advantages; where tokens are one to one, the divergence on shared tokens."""
        own = tokens.targets[:, None]
        p, q = _zero_ignored(tokens, logp(student, own)), _zero_ignored(tokens, logp(teacher, own))
        chunks = losses.k1(p[:, 0], q[:, 0].detach())
        if self.support == "sampled":
            return chunks
        ids, valid = tokens.student_topk[:, : self.k], shared[:, : self.k] > 0
        p = _zero_ignored(tokens, logp(student, ids))
        q = _zero_ignored(tokens, logp(teacher, ids)).detach()
        narrow = losses.with_tail if self.mode == "tail" else losses.renormalise
        return torch.where(valid.any(1), self._compare(narrow(p, valid), narrow(q, valid)), chunks)

    def _compare(self, p: Tensor, q: Tensor) -> Tensor:
        match self.divergence:
            case "reverse_kl":
                return losses.reverse_kl(p, q)
            case "forward_kl":
                return losses.forward_kl(p, q)
            case "jsd":
                return losses.jsd(p, q, beta=self.beta)
            case "skew_kl":
                return losses.skew_kl(p, q, beta=self.beta)

    def _estimate(self, p: Tensor, q: Tensor) -> Tensor:
        match self.estimator:
            case "k1":
                return losses.k1(p, q)
            case "k2":
                return losses.k2(p, q)
            case "k3_forward":
                return losses.k3_forward(p, q)

    def _entropy_term(
        self,
        student: Distribution,
        teacher: Distribution,
        tokens: CompletionTokens,
        threshold: float,
    ) -> Tensor:
        if tokens.teacher_topk is None or tokens.teacher_entropy is None:
            raise ValueError("the entropy-aware term needs teacher_topk and teacher_entropy")
        ids = tokens.teacher_topk[:, : self.k]
        p, q = (
            _zero_ignored(tokens, logp(student, ids)),
            _zero_ignored(tokens, logp(teacher, ids)).detach(),
        )
        return losses.entropy_aware(p, q, tokens.teacher_entropy, threshold)

    def _outcome_term(self, student: Distribution, tokens: CompletionTokens) -> Tensor:
        if tokens.advantage is None:
            raise ValueError("outcome_weight > 0 needs the rollouts' outcome advantages")
        return losses.score_function(tokens.advantage, logp(student, tokens.targets[:, None])[:, 0])


def _zero_ignored(tokens: CompletionTokens, values: Tensor) -> Tensor:
    """`values` (N, W) with 0 at positions of weight 0, where an infinity would give 0 * inf = NaN.

    A teacher may well exclude a special token that was sampled; such tokens are the masked ones.
    """
    used, values = tokens.weight != 0, at_least_float32(values)
    return values if bool(used.all()) else torch.where(used[:, None], values, 0.0)
