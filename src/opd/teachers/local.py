"""A frozen teacher in this process: exact scores, of every kind.

Support scores cost K head rows per position; whatever needs a normaliser costs one chunked pass of
the head whose logits are never stored. `Want.full` returns hidden states at the positions asked
for, so that the loss or the diagnostics can apply the head chunk by chunk.
Shapes: T completion tokens, H hidden size.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from opd.core.batch import pad_rows, predicting_positions
from opd.core.chunked import chunk_slices
from opd.core.cpu_kernels import topk
from opd.core.distributions import DenseDistribution
from opd.core.microbatches import Budget, pass_overhead, plan_microbatches
from opd.errors import UserError
from opd.models.head import HeadDistribution
from opd.models.lm import LM, free_memory, is_out_of_memory
from opd.models.prefix_cache import PrefixCache, supports_prefix_cache
from opd.types import VIEW_TOPK, Kind, Rollout, Scores, Want

# Keys and values of a token in all layers, over what a pass holds of it in one: 1.4 (8B parameters,
# grouped heads) to 5 (7B, all heads).
CACHED_TOKEN = 4

logger = logging.getLogger(__name__)


class LocalTeacher:
    """`opd.types.Teacher` for a model in this process."""

    kinds = frozenset(Kind)

    def __init__(self, lm: LM, *, tokens_per_batch: int = 8192, temperature: float = 1.0) -> None:
        """Make a teacher.

        Args:
            lm: the frozen model; its weights are never changed.
            tokens_per_batch: padded tokens per forward.
            temperature: divides the logits before every score (loss.teacher_temperature).
        """
        self.lm, self.name = lm, lm.name
        self.tokens_per_batch, self.temperature = tokens_per_batch, temperature
        self.record: Callable[[str, float], object] | None = None

    @torch.no_grad()
    def score(self, rollouts: Sequence[Rollout], want: Want) -> list[Scores]:
        """See `opd.types.Teacher.score`; weights that are there for it alone go away again."""
        try:
            return self._score(rollouts, want)
        finally:
            self.lm.release()
            if self.record is not None and self.lm.noise is not None:
                self.record("teacher/quantisation_kl", self.lm.noise.kl)

    def _score(self, rollouts: Sequence[Rollout], want: Want) -> list[Scores]:
        scores: dict[int, Scores] = {}
        while len(scores) < len(rollouts):
            missing = [i for i in range(len(rollouts)) if i not in scores]
            try:
                for i, score in self._scores(rollouts, missing, want):
                    scores[i] = score
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                reason = (str(error) or "out of memory").splitlines()[0]
            else:
                break
            self._halve_batch(reason, max(len(r.prompt.ids) + len(r) for r in rollouts))
        return [scores[i] for i in range(len(rollouts))]

    def _scores(
        self, rollouts: Sequence[Rollout], indices: Sequence[int], want: Want
    ) -> Iterator[tuple[int, Scores]]:
        """Scores of some rollouts by index; hidden states are gone when this has failed."""
        for j, states in self._states([rollouts[i] for i in indices]):
            i = indices[j]
            yield i, self._score_one(rollouts[i], states, want.of_rollouts([i]))

    def _halve_batch(self, reason: str, longest: int) -> None:
        """Score fewer tokens at a time from now on, after memory ran out.

        Raises:
            UserError: single rollouts do not fit.
        """
        free_memory()
        if self.tokens_per_batch < longest:
            raise UserError(
                f"Out of memory while {self.name} scored a rollout of {longest} tokens ({reason}). "
                "Use a smaller or quantised teacher, a teacher on another device (teacher.device) "
                "or server (teacher.url), or shorter completions (rollout.max_new_tokens)."
            )
        self.tokens_per_batch //= 2
        logger.warning(
            "Out of memory while %s scored (%s): it scores %d tokens at a time from now on.",
            self.name,
            reason,
            self.tokens_per_batch,
        )

    def _states(self, rollouts: Sequence[Rollout]) -> Iterator[tuple[int, Tensor]]:
        """Each rollout's index and hidden states (T, H), in the order they are computed."""
        prompts = [r.prompt.ids for r in rollouts]
        inputs = [r.ids[:-1].tolist() for r in rollouts]
        device = self.lm.device
        groups = plan_microbatches(
            prompts,
            [len(ids) for ids in inputs],
            Budget(self.tokens_per_batch, pass_overhead(device), CACHED_TOKEN),
            share_prompts=supports_prefix_cache(self.lm),
        )
        for group in groups:
            shared = [prompts[rows[0]] for rows in group.prompt_rows]
            cache = PrefixCache(self.lm, shared) if shared else None
            for part in group.microbatches:
                if cache is not None:
                    prompt_index = torch.tensor(group.prompt_index(part), device=device)
                    ids = pad_rows([inputs[i] for i in part])
                    hidden = cache.hidden(prompt_index, ids.to(device))
                else:
                    ids = pad_rows([[*prompts[i], *inputs[i]] for i in part])
                    hidden = self.lm.hidden(ids.to(device))
                for row, i in enumerate(part):
                    # Of a shared prompt there is one state, that of its last token.
                    before = len(prompts[i]) if cache is None else 1
                    yield i, hidden[row, predicting_positions(before, len(rollouts[i]))]
            del cache  # before the next one's keys and values are computed

    def _score_one(self, rollout: Rollout, states: Tensor, want: Want) -> Scores:
        """Scores of one rollout from its hidden states (T, H)."""
        head, arrays = self.lm.head, {}
        if want.support and not want.normaliser:
            ids = torch.from_numpy(rollout.topk_ids.astype(np.int64)).to(states.device)
            arrays["support"] = _numpy(head.logits_of(states, ids) / self.temperature)
        if want.normaliser:
            arrays |= self._normalised_scores(rollout, states, want)
        positions = hidden = view = None
        if want.full is not None:
            positions = want.full[0].astype(np.int32)
            hidden = states[torch.from_numpy(positions).long().to(states.device)].clone()
            if len(positions) == len(rollout):  # for a loss over the whole vocabulary: all of them
                hidden = hidden.cpu()  # they wait for the update, which takes them back in parts
        if want.view is not None and want.view[0] and not want.holds_view:
            whole = Want(sampled=True, topk=VIEW_TOPK)
            of_view: dict[str, Any] = dict(self._normalised_scores(rollout, states, whole))
            view = Scores(**of_view)
        return Scores(**arrays, positions=positions, hidden=hidden, view=view)

    def _normalised_scores(
        self, rollout: Rollout, states: Tensor, want: Want
    ) -> dict[str, np.ndarray]:
        """One chunked head pass: log_z, entropy, the sampled token's log-prob, own top-k.

        Scores are computed in the same way as the student's will be: from whole rows of logits if
        the loss is normalised (`sampled`), else from the exact K rows of the head. In bf16 the two
        differ by rounding, which would be noise where student and teacher agree.
        """
        sampled = torch.from_numpy(rollout.ids.astype(np.int64)).to(states.device)
        support = torch.from_numpy(rollout.topk_ids.astype(np.int64)).to(states.device)
        k = max(1, min(want.topk, self.lm.vocab))
        columns: dict[str, list[Tensor]] = {}
        # one empty chunk for an empty completion, so that every column exists
        for part in chunk_slices(len(rollout), self.lm.vocab, states.device) or [slice(0, 0)]:
            dense = DenseDistribution(self.lm.head.logits(states[part]), self.temperature)
            logp = dense.log_probs()
            chunk = {
                "log_z": dense.log_z(),
                "entropy": -(logp.exp() * logp).sum(-1),
                "sampled": logp.gather(1, sampled[part, None]).squeeze(1),
            }
            scores = (
                dense.scores
                if want.sampled
                else HeadDistribution(self.lm.head, states[part], self.temperature).scores
            )
            if want.support:
                chunk["support"] = scores(support[part])
            if want.topk:
                _, ids = topk(logp, k)
                chunk |= {"topk_ids": ids.int(), "topk_logp": scores(ids) - dense.log_z()[:, None]}
            for name, values in chunk.items():
                columns.setdefault(name, []).append(values)
        return {name: _numpy(torch.cat(parts)) for name, parts in columns.items()}


def _numpy(x: Tensor) -> np.ndarray:
    return x.cpu().numpy() if x.dtype in (torch.float64, torch.int32) else x.float().cpu().numpy()
