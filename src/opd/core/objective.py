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
from opd.core.loss_settings import LossSettings
from opd.core.precision import at_least_float32
from opd.core.supports import candidates


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
class Objective(LossSettings):
    """What the student minimises at each position, as the settings say."""

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
