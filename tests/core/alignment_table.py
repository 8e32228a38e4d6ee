"""What chunk advantages are the gradient of: enumerated on toy tokenizers over one string space.

Student: a tabular policy over tokens, with every way of spelling a string. Teacher: another tabular
model over its own tokens, and its own way to encode a string. All completions are enumerated in
float64. `python tests/core/alignment_table.py` prints the table of docs/math.md.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from itertools import accumulate

import numpy as np
import torch
from torch import Tensor

from opd.core.alignment import align, chunk_of_tokens, effective_logq
from opd.core.losses import k1

END = "$"
Encode = Callable[[str], list[str]]


@dataclass(frozen=True)
class Toy:
    """Two tokenizers over one string space."""

    name: str
    student: tuple[str, ...]
    teacher: tuple[str, ...]
    encode: Encode
    may_end: Callable[[str], bool]
    length: int = 3


def longest_match(*tokens: str) -> Encode:
    """Greedy longest match: a merge may reach across the end of a student's token."""

    def encode(text: str) -> list[str]:
        out: list[str] = []
        while text:
            token = max((t for t in tokens if text.startswith(t)), key=len)
            out.append(token)
            text = text[len(token) :]
        return out

    return encode


TOYS = (
    Toy("same tokens", ("a", "b"), ("a", "b"), longest_match("a", "b"), lambda s: True),
    Toy(
        "teacher's ends known at once",
        ("a", "b"),
        ("a", "ba", "bb"),
        longest_match("a", "ba", "bb"),
        lambda s: longest_match("a", "ba", "bb", "b")(s)[-1:] != ["b"],
        4,
    ),
    Toy("merges across chunks", ("a", "b", "ab"), ("a", "b", "ba"), longest_match("a", "b", "ba"),
        lambda s: True),
)  # fmt: skip


def completions(toy: Toy) -> list[tuple[str, ...]]:
    """Every sequence of student tokens that ends."""
    found: list[tuple[str, ...]] = []

    def grow(prefix: tuple[str, ...]) -> None:
        if toy.may_end("".join(prefix)):
            found.append((*prefix, END))
        if len(prefix) < toy.length:
            for token in toy.student:
                grow((*prefix, token))

    grow(())
    return found


class Policy:
    """The student: free logits at every prefix, of the tokens after which it can still end."""

    def __init__(self, toy: Toy, seed: int = 0) -> None:
        self.toy, self.vocab = toy, (*toy.student, END)
        self.sequences = completions(toy)
        prefixes = sorted({y[:t] for y in self.sequences for t in range(len(y))})
        self.index = {prefix: i for i, prefix in enumerate(prefixes)}
        gen = torch.Generator().manual_seed(seed)
        shape = (len(prefixes), len(self.vocab))
        self.logits = torch.randn(shape, generator=gen, dtype=torch.float64).requires_grad_()
        allowed = torch.zeros(shape, dtype=torch.bool)
        for y in self.sequences:
            for t, token in enumerate(y):
                allowed[self.index[y[:t]], self.vocab.index(token)] = True
        self.allowed = allowed

    def logp(self, y: tuple[str, ...]) -> Tensor:
        """(T,) of a completion's tokens."""
        table = self.logits.masked_fill(~self.allowed, -torch.inf).log_softmax(-1)
        rows = [self.index[y[:t]] for t in range(len(y))]
        return table[rows, [self.vocab.index(token) for token in y]]


def teacher_logq(toy: Toy, seed: int = 1) -> Callable[[tuple[str, ...]], list[float]]:
    """Log-probs of the teacher's tokens, each of its own prefix."""
    vocab = (*toy.teacher, END)

    @cache
    def row(prefix: tuple[str, ...]) -> np.ndarray:
        rng = np.random.default_rng([seed, *map(ord, "|".join(prefix))])
        logits = rng.normal(size=len(vocab))
        return np.asarray(logits - np.log(np.exp(logits).sum()))

    def score(tokens: tuple[str, ...]) -> list[float]:
        return [float(row(tokens[:u])[vocab.index(x)]) for u, x in enumerate(tokens)]

    return score


@dataclass
class Result:
    """Largest entries of the gradient's parts, and the errors of what is claimed."""

    completions: int
    value_error: float
    own: float
    earlier: float
    later: float
    error: float
    chunk_error: float | None


def measure(toy: Toy) -> Result:
    """Enumerate a toy."""
    policy, score = Policy(toy), teacher_logq(toy)
    ends = lambda tokens: list(accumulate(len(x) if x != END else 1 for x in tokens))  # noqa: E731
    value_error, loss = 0.0, torch.zeros((), dtype=torch.float64)
    parts = {name: torch.zeros((), dtype=torch.float64) for name in ("own", "earlier", "later")}
    divergence = torch.zeros((), dtype=torch.float64)
    chunks_seen: dict[tuple[tuple[str, ...], tuple[str, ...]], float] = {}
    for y in policy.sequences:
        text = "".join(y[:-1])
        tokens = (*toy.encode(text), END)
        logp, logq = policy.logp(y), np.array(score(tokens))
        p = logp.sum().exp()
        chunks = align(ends(y), ends(tokens))
        numbers = torch.from_numpy(chunk_of_tokens(chunks, len(y)))
        effective = effective_logq(chunks, logp.detach().cpu().numpy(), logq)
        advantage = torch.tensor(effective) - logp.detach()
        each = torch.tensor([advantage[c.student.start] for c in chunks], dtype=torch.float64)
        whole = float(logq.sum()) - float(logp.detach().sum())
        value_error = max(value_error, abs(float(each.sum()) - whole))
        # What the product trains on: k1 on effective log-scores.
        loss = loss + p.detach() * k1(logp, torch.tensor(effective)).sum()
        for t in range(len(y)):
            own = int(numbers[t])
            weights = {
                "own": each[own],
                "earlier": each[:own].sum(),
                "later": each[own + 1 :].sum(),
            }
            for name, weight in weights.items():
                parts[name] = parts[name] - p.detach() * weight * logp[t]
        divergence = divergence + p * (logp.sum() - float(logq.sum()))
        for chunk in chunks:
            key = y[: chunk.student.start], y[chunk.student]
            chunks_seen[key] = float(logq[chunk.teacher].sum())
    gradient = lambda x: torch.autograd.grad(x, policy.logits, retain_graph=True)[0]  # noqa: E731
    own, earlier, later = (gradient(parts[name]) for name in ("own", "earlier", "later"))
    error = float((gradient(divergence) - own - earlier - later).abs().max())
    error = max(error, float((gradient(loss) - own).abs().max()))
    causal = float(earlier.abs().max()) < 1e-12
    chunk_error = None
    if causal:
        claimed = gradient(chunk_divergence(policy, chunks_seen))
        chunk_error = float((claimed - own).abs().max())
    return Result(
        len(policy.sequences),
        value_error,
        *(float(g.abs().max()) for g in (own, earlier, later)),
        error,
        chunk_error,
    )


def chunk_divergence(
    policy: Policy, chunks: dict[tuple[tuple[str, ...], tuple[str, ...]], float]
) -> Tensor:
    """E over prefixes (data) of the reverse KL between the two distributions of the next chunk."""
    total = torch.zeros((), dtype=torch.float64)
    for (prefix, tokens), logq in chunks.items():
        reach = policy.logp(prefix).sum().exp().detach() if prefix else 1.0
        logp = policy.logp((*prefix, *tokens))[len(prefix) :].sum()
        total = total + reach * logp.exp() * (logp - logq)
    return total


def table() -> str:
    """The rows of docs/math.md."""
    lines = [
        "| tokenizers | completions | sum of advantages - log q/p | own chunk | earlier chunks | "
        "later chunks | error of the identity | error against the chunks' KL |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for toy in TOYS:
        r = measure(toy)
        chunk = "-" if r.chunk_error is None else f"{r.chunk_error:.1e}"
        lines.append(
            f"| {toy.name} | {r.completions} | {r.value_error:.1e} | {r.own:.3f} | "
            f"{r.earlier:.3f} | {r.later:.3f} | {r.error:.1e} | {chunk} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.stdout.write(table() + "\n")
