"""Measures what every estimator's gradient really is, by enumerating everything in float64.

Two levels. A position: vocabulary of 7, the expectation over the sampled token is a sum of 7 terms.
A sequence: a tabular policy over 3 tokens (0 ends), completions of up to 3 tokens, all 15 of them.
The claimed gradients are computed here in probability space and share no code with the package.

Run as a script, it prints the table of docs/math.md.
"""

import sys
from dataclasses import dataclass

import torch

from opd.core import losses
from opd.core.distributions import DenseDistribution
from opd.core.objective import CompletionTokens, Objective

V, K, LAMBDA, THRESHOLD = 7, 3, 1.25, 0.8


@dataclass(frozen=True)
class Row:
    level: str
    estimator: str
    claim: str
    got: torch.Tensor
    want: torch.Tensor

    @property
    def error(self):
        return (self.got - self.want).abs().max().item()

    @property
    def size(self):
        return self.want.abs().max().item()


def _logits(seed, *shape):
    generator = torch.Generator().manual_seed(seed)
    return 1.5 * torch.randn(*shape, generator=generator, dtype=torch.float64)


STUDENT, TEACHER, REF = _logits(1, V), _logits(2, V), _logits(3, V)
REWARD = _logits(4, V)


def grad(loss, at=STUDENT):
    theta = at.clone().requires_grad_()
    (g,) = torch.autograd.grad(loss(theta), theta)
    return g


def kl(p, q):
    return (p * (p / q).log()).sum(-1)


def probs(theta):
    return theta.softmax(-1)


def expected(per_token, draw=None):
    """Gradient of per_token(log p) (V,), averaged over the token with frozen probabilities."""
    weight = probs(STUDENT) if draw is None else draw
    return grad(lambda theta: (weight * per_token(theta.log_softmax(-1))).sum())


def positions(n, targets, student, teacher, k=K, **fields):
    q = teacher.softmax(-1)
    return CompletionTokens(
        targets=targets,
        student_topk=student.topk(min(k, student.shape[-1])).indices,
        teacher_topk=teacher.topk(min(k, teacher.shape[-1])).indices,
        sampler_logp=torch.zeros(n, dtype=torch.float64),
        position=torch.zeros(n, dtype=torch.long),
        teacher_entropy=-(q * q.log()).sum(-1),
        advantage=fields.get("advantage"),
        weight=torch.ones(n, dtype=torch.float64),
    )


def of_objective(objective):
    """Expected gradient of an objective at one position, over all V tokens that may be sampled."""

    def loss(theta):
        logits = [x.expand(V, V) for x in (theta, TEACHER, REF)]
        student, teacher, reference = (DenseDistribution(x) for x in logits)
        rows = (STUDENT.expand(V, V), TEACHER.expand(V, V))
        tokens = positions(V, torch.arange(V), *rows, objective.k, advantage=REWARD)
        values = objective.per_position(student, teacher, tokens, reference)
        return (probs(STUDENT) * values).sum()

    return grad(loss)


def on_support(ids):
    """Gradient of KL(p-bar || q-bar) with the support held fixed, and the extra M grad log P_S."""
    q = probs(TEACHER)[ids]

    def strict(theta):
        p = probs(theta)[ids]
        return kl(p / p.sum(), q / q.sum())

    p = probs(STUDENT)[ids]
    m = (p / p.sum() * (p / q).log()).sum()
    return grad(strict), m * grad(lambda theta: probs(theta)[ids].sum().log())


def coarse(theta, ids):
    p = probs(theta)[ids]
    return torch.cat([p, 1 - p.sum(-1, keepdim=True)])


def position_rows():
    q, ref = probs(TEACHER), probs(REF)
    reverse, forward = grad(lambda t: kl(probs(t), q)), grad(lambda t: kl(q, probs(t)))
    zero = torch.zeros(V, dtype=torch.float64)
    log_q = q.log()
    top, theirs = STUDENT.topk(K).indices, TEACHER.topk(K).indices
    strict, extra = on_support(top)
    strict_one, extra_one = on_support(STUDENT.topk(1).indices)
    one = STUDENT.topk(1).indices
    scaled = q**LAMBDA * ref ** (1 - LAMBDA)
    beta = 0.5

    def skewed(t):
        return kl(q, beta * q + (1 - beta) * probs(t))

    def mixed(t):
        m = beta * q + (1 - beta) * probs(t)
        return beta * kl(q, m) + (1 - beta) * kl(probs(t), m)

    uncertain = -(q * log_q).sum() > THRESHOLD
    eopd = grad(lambda t: (q * (q / probs(t)).log())[theirs].sum()) * uncertain
    entries = [
        ("sampled log p - log q, differentiated through", "0", expected(lambda p: p - log_q), zero),
        ("k1 (score function)", "reverse KL", expected(lambda p: losses.k1(p, log_q)), reverse),
        ("k2", "reverse KL", expected(lambda p: losses.k2(p, log_q)), reverse),
        ("k3_forward", "forward KL", expected(lambda p: losses.k3_forward(p, log_q)), forward),
        ("full, reverse_kl", "reverse KL", of_objective(Objective(support="full")), reverse),
        (
            "full, forward_kl",
            "forward KL",
            of_objective(Objective(support="full", divergence="forward_kl")),
            forward,
        ),
        (
            "full, jsd",
            "JSD(0.5)",
            of_objective(Objective(support="full", divergence="jsd")),
            grad(mixed),
        ),
        (
            "full, skew_kl",
            "KL(q || (p+q)/2)",
            of_objective(Objective(support="full", divergence="skew_kl")),
            grad(skewed),
        ),
        (
            "full, mode reference",
            "reverse KL",
            of_objective(Objective(support="full", mode="reference")),
            reverse,
        ),
        ("student_topk, mode paper", "KL(pS || qS)", of_objective(Objective(k=K)), strict),
        (
            "student_topk, mode reference",
            "KL(pS || qS) + M log P_S",
            of_objective(Objective(k=K, mode="reference")),
            strict + extra,
        ),
        (
            "student_topk, mode tail",
            "KL of the coarser pair",
            of_objective(Objective(k=K, mode="tail")),
            grad(lambda t: kl(coarse(t, top), coarse(TEACHER, top))),
        ),
        (
            "student_topk k=1, mode paper",
            "0",
            of_objective(Objective(k=1, allow_zero_gradient=True)),
            zero,
        ),
        (
            "student_topk k=1, mode reference",
            "M log P_S",
            of_objective(Objective(k=1, mode="reference")),
            strict_one + extra_one,
        ),
        (
            "student_topk k=1, mode tail",
            "KL of the coarser pair",
            of_objective(Objective(k=1, mode="tail")),
            grad(lambda t: kl(coarse(t, one), coarse(TEACHER, one))),
        ),
        (
            "sampled, reward_scale 1.25",
            "KL(p || q^1.25 ref^-0.25)",
            of_objective(Objective(support="sampled", reward_scale=LAMBDA)),
            grad(lambda t: kl(probs(t), scaled)),
        ),
        (
            "full, reward_scale 1.25",
            "-(1.25 E log q/ref - KL(p || ref))",
            of_objective(Objective(support="full", reward_scale=LAMBDA)),
            grad(lambda t: kl(probs(t), ref) - LAMBDA * (probs(t) * (q / ref).log()).sum()),
        ),
        (
            "sampled + outcome_weight 0.5",
            "reverse KL - 0.5 E[A]",
            of_objective(Objective(support="sampled", outcome_weight=0.5)),
            reverse - 0.5 * grad(lambda t: (probs(t) * REWARD).sum()),
        ),
        (
            "sampled + entropy_forward_kl 0.8",
            "reverse KL + forward KL on teacher top-k",
            of_objective(Objective(support="sampled", k=K, entropy_forward_kl=THRESHOLD)),
            reverse + eopd,
        ),
    ]
    return [Row("position", *entry) for entry in entries]


# The sequence level: prefixes of at most 2 tokens without the end token 0, over 3 tokens.
TOKENS, LONGEST = 3, 3
PREFIXES = [()] + [(a,) for a in (1, 2)] + [(a, b) for a in (1, 2) for b in (1, 2)]
INDEX = {prefix: i for i, prefix in enumerate(PREFIXES)}
TABLE, TEACHER_TABLE = _logits(5, len(PREFIXES), TOKENS), _logits(6, len(PREFIXES), TOKENS)


def completions(prefix=()):
    """All completions: ended by token 0, or by length."""
    for token in range(TOKENS):
        written = (*prefix, token)
        if token == 0 or len(written) == LONGEST:
            yield written
        else:
            yield from completions(written)


COMPLETIONS = list(completions())
OUTCOME = _logits(7, len(COMPLETIONS))


def reach(p, prefix):
    """Probability that the student samples this prefix, p (prefixes, tokens)."""
    total = torch.ones((), dtype=torch.float64)
    for i, token in enumerate(prefix):
        total = total * p[INDEX[prefix[:i]], token]
    return total


def local(divergence):
    """Gradient of E over prefixes of a divergence, with the prefix distribution held fixed.

    divergence: (student row of probabilities, teacher row, support ids) -> scalar.
    """
    frozen, q = probs(TABLE), probs(TEACHER_TABLE)

    def loss(theta):
        p, total = probs(theta), 0.0
        for prefix, i in INDEX.items():
            ids = TABLE[i].topk(2).indices
            total = total + reach(frozen, prefix) * divergence(p[i], q[i], ids)
        return total

    return grad(loss, TABLE)


def strict_kl(p, q, ids):
    return kl(p[ids] / p[ids].sum(), q[ids] / q[ids].sum())


def strict_and_extra(p, q, ids):
    frozen = p.detach()[ids]
    m = (frozen / frozen.sum() * (frozen / q[ids]).log()).sum()
    return strict_kl(p, q, ids) + m * p[ids].sum().log()


def enumerated(objective, *, teacher=True):
    """Expected gradient over all completions, each weighted by its frozen probability."""

    def loss(theta):
        frozen, total = probs(TABLE), 0.0
        for number, y in enumerate(COMPLETIONS):
            rows = [INDEX[y[:t]] for t in range(len(y))]
            k = objective.k
            advantage = OUTCOME[number].expand(len(y))
            tokens = positions(
                len(y), torch.tensor(y), TABLE[rows], TEACHER_TABLE[rows], k, advantage=advantage
            )
            scored = DenseDistribution(TEACHER_TABLE[rows]) if teacher else None
            values = objective.per_position(DenseDistribution(theta[rows]), scored, tokens)
            total = total + reach(frozen, y) * values.sum()
        return total

    return grad(loss, TABLE)


def sequence_kl():
    """Gradient of KL(student || teacher) over whole completions, by its definition."""
    q = probs(TEACHER_TABLE)

    def loss(theta):
        p = probs(theta)
        pairs = ((reach(p, y), reach(q, y)) for y in COMPLETIONS)
        return sum(a * (a / b).log() for a, b in pairs)

    return grad(loss, TABLE)


def dropped_term():
    """What per-token distillation leaves out: a token's effect on which prefixes come later."""
    q = probs(TEACHER_TABLE)
    values = kl(probs(TABLE), q)

    def loss(theta):
        p = probs(theta)
        return sum(reach(p, x) * values[i] for x, i in INDEX.items())

    return grad(loss, TABLE)


def expected_outcome():
    def loss(theta):
        p = probs(theta)
        return sum(reach(p, y) * OUTCOME[i] for i, y in enumerate(COMPLETIONS))

    return grad(loss, TABLE)


def sequence_rows():
    sampled = enumerated(Objective(support="sampled"))
    reverse = local(lambda p, q, _: kl(p, q))
    entries = [
        ("k1 (score function)", "E_t reverse KL", sampled, reverse),
        (
            "k2",
            "E_t reverse KL",
            enumerated(Objective(support="sampled", estimator="k2")),
            reverse,
        ),
        (
            "k3_forward",
            "E_t forward KL",
            enumerated(Objective(support="sampled", estimator="k3_forward")),
            local(lambda p, q, _: kl(q, p)),
        ),
        ("full, reverse_kl", "E_t reverse KL", enumerated(Objective(support="full")), reverse),
        (
            "student_topk k=2, mode paper",
            "E_t KL(pS || qS)",
            enumerated(Objective(k=2)),
            local(strict_kl),
        ),
        (
            "student_topk k=2, mode reference",
            "E_t KL(pS || qS) + M log P_S",
            enumerated(Objective(k=2, mode="reference")),
            local(strict_and_extra),
        ),
        (
            "outcome_weight 1, no teacher",
            "-E reward",
            enumerated(Objective(outcome_weight=1.0), teacher=False),
            -expected_outcome(),
        ),
        (
            "k1 + the term per-token OPD drops",
            "sequence reverse KL",
            sampled + dropped_term(),
            sequence_kl(),
        ),
    ]
    return [Row("sequence", *entry) for entry in entries]


def rows():
    return position_rows() + sequence_rows()


def table():
    lines = [
        "| level | differentiate through | expected gradient is that of | largest entry | error |",
        "|---|---|---|---|---|",
    ]
    for row in rows():
        claim = row.claim.replace("|", "\\|")
        lines.append(
            f"| {row.level} | {row.estimator} | {claim} | {row.size:.3f} | {row.error:.1e} |"
        )
    dropped = dropped_term().abs().max()
    return "\n".join([*lines, "", f"Largest entry of the dropped term: {dropped:.3f}.", ""])


if __name__ == "__main__":
    sys.stdout.write(table())
