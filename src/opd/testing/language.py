"""Language models that fit on a page: functions from token ids to next-token log-probs.

Shapes: L tokens of a sequence, T completion tokens, K support size, V vocabulary.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import numpy as np
import torch

from opd.core.batch import predicting_positions
from opd.models.lm import LM
from opd.types import Prompt, Rollout

NextLogp = Callable[[Sequence[int]], np.ndarray]
"""Token ids (L,) to log-probs (L, V) of the token after each of them, in nats."""

CORPUS = (
    "The river was cold and clear in the morning, and the children came down to the water before "
    "the school began. Their mothers filled the buckets and carried them home. If a train leaves "
    "the station at nine and travels for three hours, then it has gone a long way by noon, and the "
    "people in it want to eat. There is nothing better than bread and soup when the weather is "
    "bad. He said that he would come again in the summer and bring his brother with him. "
)
LETTERS = "abcdefghijklmnopqrstuvwxyz ,."
LETTER_UNKNOWN, LETTER_EOS = len(LETTERS), len(LETTERS) + 1
LETTER_VOCAB = len(LETTERS) + 2


def encode_letters(text: str) -> list[int]:
    """One token per letter, as `letter_model` reads them."""
    return [LETTERS.find(c) if c in LETTERS else LETTER_UNKNOWN for c in text.lower()]


def bigram_model(logits: np.ndarray) -> NextLogp:
    """A model whose next token depends on the last one alone.

    Args:
        logits: (V, V), row i for the token after token i.
    """
    shifted = logits - logits.max(1, keepdims=True)
    logp = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    table = logp.astype(np.float32).astype(np.float64)  # as a server in float32 returns them
    return lambda ids: table[np.asarray(ids)]


def letter_model(
    seed: int = 0, *, corpus: str = CORPUS, smoothing: float = 0.3, memory: float = 0.16
) -> NextLogp:
    """A bigram model of letters with a memory, which passes the handshake as a teacher of English.

    Args:
        seed: jitters the counts, so that two seeds are two models.
        corpus: text whose letters are counted.
        smoothing: added to every count.
        memory: weight of the letters seen so far in the sequence, all of them alike: as in a real
            model, every token depends on the whole text before it.
    """
    rng = np.random.default_rng(seed)
    counts = smoothing + rng.uniform(0, 0.2, (LETTER_VOCAB, LETTER_VOCAB))
    for a, b in itertools.pairwise(encode_letters(corpus)):
        counts[a, b] += 1
    bigrams = np.exp(bigram_model(np.log(counts))(list(range(LETTER_VOCAB))))

    def logp(ids: Sequence[int]) -> np.ndarray:
        tokens = np.asarray(ids)
        seen = np.cumsum(np.eye(LETTER_VOCAB)[tokens], 0)
        frequencies = seen / seen.sum(1, keepdims=True)
        values = np.log((1 - memory) * bigrams[tokens] + memory * frequencies)
        rounded: np.ndarray = values.astype(np.float32).astype(np.float64)  # as a float32 server's
        return rounded

    return logp


def model_logp(lm: LM) -> NextLogp:
    """The model's own next-token log-probs, by one plain forward of Hugging Face."""

    @torch.no_grad()
    def logp(ids: Sequence[int]) -> np.ndarray:
        inputs = torch.tensor([list(ids)], device=lm.device)
        logits = lm.causal(input_ids=inputs).logits[0, :, : lm.vocab].double()
        values: np.ndarray = logits.log_softmax(-1).cpu().numpy()
        return values

    return logp


def completion_logp(logp: NextLogp, rollout: Rollout) -> np.ndarray:
    """Log-probs (T, V) at every completion position."""
    prompt = rollout.prompt.ids
    return logp([*prompt, *rollout.ids.tolist()])[predicting_positions(len(prompt), len(rollout))]


def token_logp(logp: NextLogp, rollout: Rollout) -> np.ndarray:
    """Log-probs (T,) of a rollout's tokens."""
    rows = completion_logp(logp, rollout)
    return np.take_along_axis(rows, rollout.ids[:, None].astype(int), 1)[:, 0]


def random_rollouts(
    count: int, *, seed: int = 0, vocab: int = LETTER_VOCAB, k: int = 4, max_length: int = 12
) -> list[Rollout]:
    """Random token sequences with random supports.

    Args:
        count: number of rollouts.
        seed: of everything random in them.
        vocab: number of token ids.
        k: support size.
        max_length: maximum completion tokens; prompts have 1 to 8.
    """
    rng = np.random.default_rng(seed)
    rollouts = []
    for i in range(count):
        length = int(rng.integers(1, max_length + 1))
        prompt = Prompt(i, tuple(rng.integers(0, vocab, rng.integers(1, 9)).tolist()), "")
        ids = rng.integers(0, vocab, length).astype(np.int32)
        support = np.stack([rng.permutation(vocab)[:k] for _ in range(length)]).astype(np.int32)
        rollouts.append(Rollout.of_ids(prompt, ids, topk_ids=support))
    return rollouts
