"""The objective: what it asks for, what it refuses, and that it treats positions independently."""

import itertools
import math

import pytest
import torch

from opd.core import losses
from opd.core.distributions import DenseDistribution, KnownScores
from opd.core.objective import CompletionTokens, Objective
from opd.errors import UserError
from opd.types import Want

N, V, K = 6, 9, 3
EXACT = 1e-12
MODES = ["paper", "reference", "tail"]
SUPPORTS = ["student_topk", "teacher_topk", "intersection", "union", "symmetric_difference"]


def logits(seed):
    generator = torch.Generator().manual_seed(seed)
    return 2 * torch.randn(N, V, generator=generator, dtype=torch.float64)


STUDENT, REFERENCE = logits(0), logits(2)
TEACHER = 0.7 * STUDENT + 0.7 * logits(1)  # related, so that supports overlap in part


def positions(student=STUDENT, teacher=TEACHER, **changes):
    fields = {
        "targets": torch.arange(N) % V,
        "student_topk": student.topk(K + 1).indices,
        "teacher_topk": teacher.topk(K + 1).indices,
        "sampler_logp": student.log_softmax(-1)[torch.arange(N), torch.arange(N) % V],
        "position": torch.arange(N),
        "teacher_entropy": -(teacher.softmax(-1) * teacher.log_softmax(-1)).sum(-1),
        "advantage": torch.linspace(-1, 1, N, dtype=torch.float64),
        "weight": torch.ones(N, dtype=torch.float64),
    }
    return CompletionTokens(**(fields | changes))


class RowsOnly:
    """A view that can give scores and nothing else: the vocabulary-free step."""

    def __init__(self, values):
        self.values = values

    def scores(self, ids):
        return self.values.gather(1, ids)

    def log_z(self):
        raise AssertionError("asked for a normaliser")

    def log_probs(self):
        raise AssertionError("asked for a whole row")


def every_objective():
    for support, mode in itertools.product(SUPPORTS, MODES):
        kinds = ["reverse_kl"] if mode == "reference" else ["reverse_kl", "forward_kl", "jsd"]
        for divergence in kinds:
            yield Objective(support=support, mode=mode, divergence=divergence, k=K)
    for estimator in ("k1", "k2", "k3_forward"):
        yield Objective(support="sampled", estimator=estimator)
    for divergence in ("reverse_kl", "forward_kl", "jsd", "skew_kl"):
        yield Objective(support="full", divergence=divergence)
    yield Objective(support="symmetric_difference", mode="reference", normalize=True, k=K)
    yield Objective(support="full", mode="reference")
    yield Objective(k=K, reward_scale=1.25)
    yield Objective(k=K, reward_scale=1.25, mode="reference")
    yield Objective(support="sampled", reward_scale=1.25)
    yield Objective(k=K, entropy_forward_kl=0.8, position_decay=0.9, outcome_weight=0.5)


def label(objective):
    parts = [objective.support, objective.mode, objective.divergence, objective.estimator]
    return "-".join([*parts, str(objective.reward_scale), str(objective.normalize)])


ALL = [pytest.param(objective, id=label(objective)) for objective in every_objective()]
GIVEN = [  # those a teacher without whole rows can serve
    pytest.param(objective, id=label(objective))
    for objective in every_objective()
    if not objective.needs_full_teacher and not objective.needs_reference
]


def run(objective, student, tokens, teacher=TEACHER):
    return objective.per_position(
        DenseDistribution(student), DenseDistribution(teacher), tokens, DenseDistribution(REFERENCE)
    )


@pytest.mark.parametrize("objective", ALL)
def test_any_split_of_positions_gives_the_same_values_and_gradient(objective):
    whole = STUDENT.clone().requires_grad_()
    tokens = positions()
    out = run(objective, whole, tokens)
    out.sum().backward()
    pieces = STUDENT.clone().requires_grad_()
    values = []
    for part in (slice(0, 1), slice(1, 4), slice(4, 4), slice(4, N)):
        chunk = CompletionTokens(*(None if x is None else x[part] for x in tokens))
        value = objective.per_position(
            DenseDistribution(pieces[part]),
            DenseDistribution(TEACHER[part]),
            chunk,
            DenseDistribution(REFERENCE[part]),
        )
        value.sum().backward()
        values.append(value)
    torch.testing.assert_close(torch.cat(values), out, atol=EXACT, rtol=0)
    torch.testing.assert_close(pieces.grad, whole.grad, atol=EXACT, rtol=0)
    assert out.dtype == torch.float64
    assert whole.grad.abs().max() > 1e-3


@pytest.mark.parametrize("objective", ALL)
def test_weight_multiplies_and_zero_weight_silences_infinities(objective):
    tokens = positions(weight=torch.tensor([1.0, 1, 2, 1, 1, 0], dtype=torch.float64))
    student = STUDENT.clone().requires_grad_()
    teacher = TEACHER.clone()
    teacher[5, [5, *tokens.student_topk[5].tolist()]] = -math.inf
    out = run(objective, student, tokens, teacher)
    out.sum().backward()
    plain = run(objective, STUDENT, positions())
    torch.testing.assert_close(out[:5], plain[:5] * tokens.weight[:5], atol=EXACT, rtol=0)
    assert out[5] == 0
    assert torch.isfinite(student.grad).all()
    assert (student.grad[5] == 0).all()


@pytest.mark.parametrize("objective", ALL)
def test_shift_of_the_logits_changes_nothing(objective):
    tokens = positions()
    out = run(objective, STUDENT, tokens)
    shift = torch.linspace(-9, 9, N, dtype=torch.float64)[:, None]
    moved = run(objective, STUDENT + shift, tokens, TEACHER - 2 * shift)
    torch.testing.assert_close(moved, out, atol=1e-11, rtol=0)


@pytest.mark.parametrize("support", SUPPORTS)
def test_paper_mode_asks_for_rows_alone_and_needs_no_normaliser(support):
    objective = Objective(support=support, k=K)
    assert not objective.needs_normaliser
    tokens = positions()
    got = objective.per_position(RowsOnly(STUDENT), RowsOnly(TEACHER), tokens)
    torch.testing.assert_close(got, run(objective, STUDENT, tokens), atol=EXACT, rtol=0)


@pytest.mark.parametrize("objective", GIVEN)
def test_given_scores_equal_the_dense_teacher_and_want_says_what_was_needed(objective):
    tokens, want = positions(), objective.want
    q = TEACHER.log_softmax(-1)
    known = []
    if want.sampled:
        known.append((tokens.targets[:, None], q.gather(1, tokens.targets[:, None])))
    if want.support:
        ids = tokens.student_topk[:, :K]
        known.append((ids, (q if want.normaliser else TEACHER).gather(1, ids)))
    if want.topk:
        ids = tokens.teacher_topk[:, :K]
        known.append((ids, q.gather(1, ids)))
    given = KnownScores(known, torch.zeros(N, dtype=torch.float64) if want.normaliser else None)
    tokens = tokens._replace(
        teacher_topk=tokens.teacher_topk if want.topk else None,
        teacher_entropy=tokens.teacher_entropy if want.topk else None,
    )
    got = objective.per_position(DenseDistribution(STUDENT), given, tokens)
    torch.testing.assert_close(got, run(objective, STUDENT, positions()), atol=EXACT, rtol=0)


def test_want_of_the_default_is_support_alone():
    assert Objective().want == Want(support=True)
    assert Objective(support="sampled").want == Want(sampled=True)
    assert Objective(mode="tail").want == Want(sampled=True, support=True)
    assert Objective(support="union", k=4).want == Want(support=True, topk=4)
    assert Objective(support="full").want == Want()
    assert Objective(entropy_forward_kl=0.8, k=4).want == Want(support=True, topk=4)


def test_each_support_compares_its_own_tokens():
    tokens = CompletionTokens(*(None if x is None else x[:1] for x in positions()))
    tokens = tokens._replace(
        student_topk=torch.tensor([[0, 1, 2]]), teacher_topk=torch.tensor([[2, 1, 3]])
    )
    p = torch.tensor([[3.0, 2.0, 1.0, 0.5, -1.0, -2.0]], dtype=torch.float64)
    q = torch.tensor([[0.0, 2.5, 3.0, 2.0, -2.0, 1.0]], dtype=torch.float64)
    members = {
        "student_topk": [0, 1, 2],
        "teacher_topk": [1, 2, 3],
        "intersection": [1, 2],
        "union": [0, 1, 2, 3],
        "symmetric_difference": [0, 3],
    }
    for support, ids in members.items():
        got = Objective(support=support, k=3).per_position(
            DenseDistribution(p), DenseDistribution(q), tokens
        )
        want = losses.reverse_kl(p[:, ids].log_softmax(-1), q[:, ids].log_softmax(-1))
        torch.testing.assert_close(got, want, atol=EXACT, rtol=0)


def test_k_takes_the_best_of_a_wider_list():
    tokens = positions()
    narrow = positions(student_topk=tokens.student_topk[:, :2])
    objective = Objective(k=2)
    assert torch.equal(run(objective, STUDENT, tokens), run(objective, STUDENT, narrow))
    assert not torch.allclose(run(objective, STUDENT, tokens), run(Objective(k=3), STUDENT, tokens))


def test_terms_add_up():
    tokens = positions()
    base = run(Objective(k=K), STUDENT, tokens)
    p, q = STUDENT.log_softmax(-1), TEACHER.log_softmax(-1)
    sampled = p.gather(1, tokens.targets[:, None])[:, 0]
    outcome = run(Objective(k=K, outcome_weight=0.5), STUDENT, tokens)
    torch.testing.assert_close(
        outcome - base, 0.5 * losses.score_function(tokens.advantage, sampled), atol=EXACT, rtol=0
    )
    ids = tokens.teacher_topk[:, :K]
    eopd = run(Objective(k=K, entropy_forward_kl=1.0), STUDENT, tokens)
    want = losses.forward_kl(p.gather(1, ids), q.gather(1, ids)) * (tokens.teacher_entropy > 1.0)
    assert 0 < (tokens.teacher_entropy > 1.0).sum() < N
    torch.testing.assert_close(eopd - base, want, atol=EXACT, rtol=0)
    decayed = run(Objective(k=K, position_decay=0.5), STUDENT, tokens)
    torch.testing.assert_close(decayed, base * 0.5 ** torch.arange(N), atol=1e-7, rtol=0)


def test_without_a_teacher_only_the_outcome_trains():
    tokens = positions()
    student = STUDENT.clone().requires_grad_()
    Objective(outcome_weight=2.0).per_position(
        DenseDistribution(student), None, tokens
    ).sum().backward()
    p = STUDENT.softmax(-1)
    one_hot = torch.nn.functional.one_hot(tokens.targets, V)
    want = -2.0 * tokens.advantage[:, None] * (one_hot - p)
    torch.testing.assert_close(student.grad, want, atol=EXACT, rtol=0)


def test_temperature_lives_in_the_view():
    tokens = positions()
    got = Objective(k=K).per_position(
        DenseDistribution(STUDENT, 2.0), DenseDistribution(TEACHER, 0.5), tokens
    )
    torch.testing.assert_close(
        got, run(Objective(k=K), STUDENT / 2, tokens, TEACHER * 2), atol=EXACT, rtol=0
    )


@pytest.mark.parametrize(
    ("fields", "fix"),
    [
        ({"k": 1}, "k>=4, loss.mode=tail or loss.support=sampled"),
        ({"k": 1, "support": "intersection"}, "k>=4, loss.mode=tail"),
        ({"k": 0, "mode": "tail"}, "at least 1"),
        ({"beta": 1.0}, "between 0 and 1"),
        ({"support": "sampled", "divergence": "jsd"}, "student_topk"),
        ({"mode": "reference", "divergence": "forward_kl"}, "paper or tail"),
        ({"mode": "tail", "support": "full"}, "student_topk"),
        ({"normalize": True}, "normalize=False"),
        ({"support": "sampled", "sampling_truncated": True}, "top_p=1"),
        ({"support": "sampled", "sampling_temperature": 0.7}, "student_temperature=1.0"),
        ({"reward_scale": 1.25, "mode": "tail"}, "reverse KL"),
        ({"reward_scale": 1.25, "divergence": "jsd"}, "reverse KL"),
        ({"reward_scale": 1.25, "support": "sampled", "estimator": "k2"}, "estimator=k1"),
        ({"reward_scale": 1.25, "support": "union"}, "student_topk"),
    ],
)
def test_refusals_name_the_fix(fields, fix):
    with pytest.raises(UserError, match=fix):
        Objective(**fields)


def test_allowed_neighbours_of_the_refusals():
    Objective(k=1, allow_zero_gradient=True)
    Objective(k=1, mode="tail")
    Objective(support="sampled", sampling_temperature=0.7, student_temperature=0.7)
    Objective(support="symmetric_difference", mode="reference", normalize=True)
    Objective(sampling_truncated=True, sampling_temperature=0.7)
