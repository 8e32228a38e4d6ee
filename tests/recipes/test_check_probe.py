"""The probe: diagnostics by rollout and quarter, prefixes, rounds that add up, numbers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from opd.core import diagnostics, stats
from opd.core.batch import Batch
from opd.core.distributions import DenseDistribution
from opd.data.graders import Grader
from opd.recipes.check.diagnose import QUARTERS, diagnose
from opd.recipes.check.features import TILT, by_quarter, features, tilted
from opd.recipes.check.probe import (
    DEPTHS,
    TAIL,
    Player,
    Rules,
    play_server,
    play_student,
    play_teacher,
    prefix,
)
from opd.samplers.hf import Decoding, HFSampler
from opd.teachers.local import LocalTeacher
from opd.types import Want

EXACT = 1e-9
STOP = frozenset({1})


@pytest.fixture
def pair(make_lm):
    return make_lm(0), make_lm(1)


def words(ids):
    return " ".join(f"w{i}" for i in ids if i > 2)


@pytest.fixture
def rules():
    with Grader("exact") as grader:
        yield Rules(Decoding(12), words, grader, n=3, m=2, k=4, tokens=64)


def answered(prompts):
    return [replace(p, answer=f"w{3 + i % 4}") for i, p in enumerate(prompts)]


def test_diagnosis_is_that_of_a_training_step(pair, make_prompts):
    student, teacher = pair
    sampler = HFSampler(student, Decoding(12), stop=STOP, capture=4)
    rollouts = sampler.sample(make_prompts(3, 6, 4, 5), n=2, key=(0,))
    found = diagnose(student, teacher, rollouts, k=4, tokens=40)
    want = Want(sampled=True, full=[np.arange(len(r)) for r in rollouts])
    for i, rollout in enumerate(rollouts):
        micro = Batch([rollout], LocalTeacher(teacher).score([rollout], want._replace(
            full=[want.full[i]]))).microbatch([0], student.device, k=4)  # fmt: skip
        hidden = student.hidden(micro.input_ids)[micro.rows, micro.cols]
        p = DenseDistribution(student.head.full(hidden)).log_probs().detach()
        q = DenseDistribution(teacher.head.full(micro.teacher_hidden)).log_probs().detach()
        expected = diagnostics.overall(
            diagnostics.diagnose(p, q, k=4, targets=micro.tokens.targets)
        )
        for name, mean in expected.items():
            assert found.mean[name][i] == pytest.approx(mean.value, abs=EXACT, nan_ok=True), name


def test_quarters_average_to_the_whole(pair, make_prompts):
    sampler = HFSampler(pair[0], Decoding(16), stop=frozenset(), capture=4)
    rollouts = sampler.sample(make_prompts(3, 5), n=2, key=(0,))
    found = diagnose(*pair, rollouts, k=4, tokens=64)
    kl = "diag/reverse_kl"
    assert found.quarter[kl].shape == (4, QUARTERS)
    assert found.quarter[kl].mean(1) == pytest.approx(found.mean[kl], abs=EXACT)
    assert by_quarter(found, kl) == pytest.approx(found.quarter[kl].mean(0), abs=EXACT)


def test_the_same_model_is_at_no_distance_from_itself(pair, make_prompts, rules):
    player = Player(pair[0], STOP)
    own = play_student(player, answered(make_prompts(3, 6, 4)), rules)
    numbers = features(own, play_teacher(player, player, own, rules))
    assert numbers["distance"].value == pytest.approx(0.0, abs=EXACT)
    assert numbers["overlap_ratio"].value == 1.0
    assert numbers["reach"].value == pytest.approx(0.0, abs=1e-5)  # float32 log-probs of sampler
    assert numbers["continuation_gain"].value == 0.0
    assert numbers["tilt_gain"].value == pytest.approx(0.0, abs=1e-5)


def test_rounds_add_up_to_one_probe(pair, make_prompts, rules):
    student, teacher = (Player(lm, STOP) for lm in pair)
    prompts = answered(make_prompts(3, 6, 4, 5, 7))
    whole = play_student(student, prompts, rules)
    parts = [play_student(student, prompts[:2], rules), play_student(student, prompts[2:], rules)]
    own = parts[0] + parts[1]
    against = [play_teacher(teacher, student, part, rules) for part in parts]
    once, twice = (
        features(whole, play_teacher(teacher, student, whole, rules)),
        features(own, against[0] + against[1]),
    )
    assert once.keys() == twice.keys()
    for name, estimate in once.items():
        assert twice[name].value == pytest.approx(estimate.value, abs=1e-6, nan_ok=True), name


@pytest.mark.parametrize("depth", DEPTHS)
def test_a_prefix_never_holds_the_last_tokens(pair, make_prompts, depth):
    sampler = HFSampler(pair[0], Decoding(9), stop=STOP, capture=1)
    for rollout in sampler.sample(make_prompts(3, 6, 4), n=4, key=(0,)):
        started = prefix(rollout, depth)
        given = len(started.ids) - len(rollout.prompt.ids)
        assert 0 <= given <= max(0, len(rollout) - TAIL)
        assert given <= depth * len(rollout)
        assert list(started.ids[len(rollout.prompt.ids) :]) == rollout.ids[:given].tolist()


def test_continuations_are_graded_with_what_came_before(pair, make_prompts):
    """A student that goes on from its own prefix writes the very rollout it had begun."""
    with Grader("exact") as grader:
        rules = Rules(Decoding(12, temperature=0.0), words, grader, n=1, m=1, k=4)
        player = Player(pair[0], STOP)
        prompts = make_prompts(3, 6, 4)
        greedy = HFSampler(pair[0], rules.decoding, stop=STOP, capture=1).sample(
            prompts, n=1, key=(0,)
        )
        whole = [replace(p, answer=words(r.ids.tolist())) for p, r in zip(prompts, greedy)]  # noqa: B905
        own = play_student(player, whole, rules)
    assert own.correct is not None
    assert own.correct.all()


def test_without_answers_only_likeness_is_known(pair, make_prompts, rules):
    blind = replace(rules, grader=None)
    student, teacher = (Player(lm, STOP) for lm in pair)
    own = play_student(student, make_prompts(3, 6, 4), blind)
    numbers = features(own, play_teacher(teacher, student, own, blind))
    assert {"reverse_kl", "distance", "reach"} <= numbers.keys()
    assert not {"gap", "continuation_gain", "auroc", "student_accuracy"} & numbers.keys()


def test_a_server_shows_what_a_local_teacher_would(pair, make_prompts, rules):
    student, teacher = (Player(lm, STOP) for lm in pair)
    own = play_student(student, answered(make_prompts(3, 6, 4)), rules)
    here = features(own, play_teacher(teacher, student, own, rules))
    there = features(own, play_server(LocalTeacher(pair[1]), own, rules))
    for name in ("overlap_ratio", "overlap_mass", "top1_agreement", "reach"):
        assert there[name].value == pytest.approx(here[name].value, abs=1e-5), name
    assert not {"reverse_kl", "distance", "gap"} & there.keys()


def test_tilting_is_what_reweighting_by_hand_gives():
    correct = np.array([[1.0, 0.0], [0.0, 0.0]])
    ratio = np.array([[2.0, 0.0], [5.0, -5.0]])
    heavy = np.exp(TILT * 2.0)
    assert tilted(correct, ratio) == pytest.approx([heavy / (heavy + 1), 0.0], abs=EXACT)
    assert tilted(correct, np.zeros((2, 2))) == pytest.approx(correct.mean(1), abs=EXACT)


def test_intervals_are_over_prompts(pair, make_prompts, rules):
    student, teacher = (Player(lm, STOP) for lm in pair)
    own = play_student(student, answered(make_prompts(3, 6, 4, 5)), rules)
    against = play_teacher(teacher, student, own, rules)
    by_prompt = against.forward.mean["diag/reverse_kl"].reshape(4, -1).mean(1)
    assert features(own, against)["reverse_kl"] == stats.mean(by_prompt)
    assert torch.is_grad_enabled()
