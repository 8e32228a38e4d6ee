"""Whether a server answers with the weights it was sent: its log-probs against the student's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from opd.core.distributions import DenseDistribution
from opd.models.lm import LM
from opd.samplers.completions import WrongRollout
from opd.samplers.sampling_server import SamplingServer

# Mean |log p of the server - log p of the trainer| of the server's own tokens, nats, beyond which
# these are other weights: measured 2e-5 in float32 and about 0.02 in bfloat16.
MAX_GAP = 0.05
# Growth of the difference on the fixed text, and the least difference, from which on a part of the
# weights is older: a tied head that reloads miss is 1.4e-3 nats off after five steps at 1e-5.
MAX_GROWTH, MIN_GAP = 8.0, 2e-4
TOKENS = 32  # generated for a check
TEXT = (
    "The river was wide and slow. In 1849 two engineers measured it, and the older one wrote: "
    "at noon the water stood at 3.5 metres."
)


@torch.no_grad()
def token_logp(lm: LM, ids: Sequence[int]) -> np.ndarray:
    """Log-probs (L - 1,) that a model gives to each of L tokens but the first."""
    tokens = torch.tensor([list(ids)], device=lm.device)
    logp = DenseDistribution(lm.head.logits(lm.local_hidden(tokens)[0, :-1])).log_probs()
    scored: np.ndarray = logp.gather(1, tokens[0, 1:, None]).squeeze(1).double().cpu().numpy()
    return scored


class StaleWeights(Exception):
    """The server answers with other weights than it was sent."""


class PartlyStale(StaleWeights):
    """Nearly the weights that were sent: a part of them, such as a tied head, is older."""


@dataclass(frozen=True)
class _Reading:
    """Log-probs of the fixed text (P,), and of what the server made of it (G,)."""

    text: np.ndarray
    made: np.ndarray


class WeightCheck:
    """Compares server and student on a fixed text, and remembers the weights before.

    The tokens that the server generates show weights that are quite wrong. The fixed text, which is
    scored before and after, also shows a step that is small: the server's scores are then nearer
    to those of the weights before it than to those of the weights that were sent.
    """

    def __init__(self, server: SamplingServer, tokenizer: Any) -> None:
        """Nothing is asked yet.

        Args:
            server: what is checked.
            tokenizer: encodes the text.
        """
        self.server, self.tokenizer = server, tokenizer
        self._before: np.ndarray | None = None  # the student's scores of the text, last accepted
        self._now: np.ndarray | None = None
        self._noise: float | None = None  # of the fixed text, when weights were sent first

    def require_near(self, student: LM) -> tuple[_Reading, _Reading]:
        """Check the server against the student as it is, whatever was sent before.

        Returns:
            What the student and the server say of the fixed text and of the server's tokens.

        Raises:
            StaleWeights: they differ by more than arithmetic does.
            Transient: the server does not answer.
        """
        ids = self._text(student)
        generated, theirs = self._ask(ids)
        scored = token_logp(student, [*ids, *generated])
        ours = _Reading(scored[: len(ids) - 1], scored[len(ids) - 1 :])
        gap = float(np.abs(theirs.made - ours.made).mean())
        if not gap <= MAX_GAP:
            raise StaleWeights(
                f"its log-probs differ from the student's by {gap:.3g} nats per token (at most "
                f"{MAX_GAP:g})"
            )
        return ours, theirs

    def require(self, student: LM) -> None:
        """Check the server against the student, and against the weights that were sent before.

        Raises:
            StaleWeights: they differ.
            Transient: the server does not answer.
        """
        ours, theirs = self.require_near(student)
        self._require_moved(theirs.text, ours.text)
        self._now = ours.text
        near = float(np.abs(theirs.text - ours.text).mean())
        if self._noise is None:  # the first push of a resumed run may lack a part already
            exact = self.server.dtype == torch.float32
            self._noise = min(near, MIN_GAP / MAX_GROWTH) if exact else near
        if near > max(MAX_GROWTH * self._noise, MIN_GAP):
            raise PartlyStale(
                f"its scores are {near:.1e} nats per token from the student's, and "
                f"{self._noise:.1e} when weights were sent first: a part of them did not arrive"
            )

    def _require_moved(self, theirs: np.ndarray, ours: np.ndarray) -> None:
        near = float(np.abs(theirs - ours).mean())
        if self._before is not None:
            step = float(np.abs(ours - self._before).mean())
            old = float(np.abs(theirs - self._before).mean())
            if step > 4 * (self._noise or 0.0) and old < near / 2:
                raise StaleWeights(
                    f"its scores are {old:.1e} nats per token from the weights before, and "
                    f"{near:.1e} from those that were sent"
                )

    def accept(self) -> None:
        """Take what was checked last as the weights before the next ones."""
        self._before = self._now

    def _text(self, student: LM) -> list[int]:
        ids: list[int] = []
        if self.tokenizer is not None:
            ids = list(self.tokenizer.encode(TEXT, add_special_tokens=False))[:TOKENS]
        ids = [i for i in ids if i < student.vocab]
        return ids if len(ids) > 1 else list(range(min(TOKENS, student.vocab)))

    def _ask(self, ids: list[int]) -> tuple[list[int], _Reading]:
        """Tokens that the server generates after the text, and its scores of both."""
        try:
            scores = self.server.score_text(ids, TOKENS)
        except WrongRollout as error:
            raise StaleWeights(f"its answer to a check of them is not whole ({error})") from None
        vocab = self.server.vocab
        outside = next((token for token in scores.generated if not 0 <= token < vocab), None)
        if outside is not None:
            raise StaleWeights(f"it generated token {outside}; the student has 0 to {vocab - 1}")
        return scores.generated, _Reading(scores.text, scores.made)
