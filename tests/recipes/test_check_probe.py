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
from opd.recipes.check.features import (
    DEFINITIONS,
    LIKELIHOOD_EXPONENT,
    TILT,
    compute_features,
    quarter_means,
    tilted_accuracy,
    weighted_accuracy,
)
from opd.recipes.check.fixed_texts import fix_texts, read
from opd.recipes.check.probe import (
    DEPTHS,
    ProbeConfig,
    ProbeModel,
    ServedTeacher,
    probe_server,
    probe_student,
    probe_teacher,
)
from opd.recipes.check.room import TAIL, prefix_prompt
from opd.samplers.decoding import Decoding
from opd.samplers.hf import HFSampler
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
def probe_config():
    with Grader("exact") as grader:
        yield ProbeConfig(Decoding(12), words, grader, n=3, m=2, k=4, tokens_per_batch=64)


def answered(prompts):
    return [replace(p, answer=f"w{3 + i % 4}") for i, p in enumerate(prompts)]


def probe(student, teacher, prompts, config):
    """Both sides of one round."""
    side = probe_student(student, prompts, config)
    return side, probe_teacher(teacher, student, side, config)


def test_diagnosis_is_that_of_a_training_step(pair, make_prompts):
    student, teacher = pair
    sampler = HFSampler(student, Decoding(12), stop=STOP, capture=4)
    rollouts = sampler.sample(make_prompts(3, 6, 4, 5), n=2, key=(0,))
    found = diagnose(student, teacher, rollouts, k=4, tokens_per_batch=40)
    want = Want(sampled=True, full=[np.arange(len(r)) for r in rollouts])
    for i, rollout in enumerate(rollouts):
        micro = Batch([rollout], LocalTeacher(teacher).score([rollout], want._replace(
            full=[want.full[i]]))).microbatch([0], student.device, k=4)  # fmt: skip
        hidden = student.hidden(micro.input_ids)[micro.rows, micro.cols]
        p = DenseDistribution(student.head.logits(hidden)).log_probs().detach()
        q = DenseDistribution(teacher.head.logits(micro.teacher_hidden)).log_probs().detach()
        expected = diagnostics.overall(
            diagnostics.full_metrics(p, q, k=4, targets=micro.tokens.targets)
        )
        for name, mean in expected.items():
            assert found.mean[name][i] == pytest.approx(mean.value, abs=EXACT, nan_ok=True), name


def test_quarters_average_to_the_whole(pair, make_prompts):
    sampler = HFSampler(pair[0], Decoding(16), stop=frozenset(), capture=4)
    rollouts = sampler.sample(make_prompts(3, 5), n=2, key=(0,))
    found = diagnose(*pair, rollouts, k=4, tokens_per_batch=64)
    kl = "diag/reverse_kl"
    assert found.quarter[kl].shape == (4, QUARTERS)
    assert found.quarter[kl].mean(1) == pytest.approx(found.mean[kl], abs=EXACT)
    assert quarter_means(found, kl) == pytest.approx(found.quarter[kl].mean(0), abs=EXACT)


def test_the_same_model_is_at_no_distance_from_itself(pair, make_prompts, probe_config):
    model = ProbeModel(pair[0], STOP)
    sides = probe(model, model, answered(make_prompts(3, 6, 4)), probe_config)
    numbers = compute_features(*sides)
    assert numbers["distance"].value == pytest.approx(0.0, abs=EXACT)
    assert numbers["overlap_ratio"].value == 1.0
    # the sampler's log-probs are float32
    assert numbers["max_reward"].value == pytest.approx(0.0, abs=1e-5)
    assert numbers["continuation_gain"].value == 0.0
    assert numbers["tilt_gain"].value == pytest.approx(0.0, abs=1e-5)


def test_rounds_add_up_to_one_probe(pair, make_prompts, probe_config):
    student, teacher = (ProbeModel(lm, STOP) for lm in pair)
    prompts = answered(make_prompts(3, 6, 4, 5, 7))
    once = compute_features(*probe(student, teacher, prompts, probe_config))
    assert once.keys() == DEFINITIONS.keys()
    rounds = [probe(student, teacher, part, probe_config) for part in (prompts[:2], prompts[2:])]
    twice = compute_features(rounds[0][0] + rounds[1][0], rounds[0][1] + rounds[1][1])
    assert once.keys() == twice.keys()
    for name, estimate in once.items():
        assert twice[name].value == pytest.approx(estimate.value, abs=1e-6, nan_ok=True), name


@pytest.mark.parametrize("count", [1, 2, 4])
def test_intervals_of_few_prompts_stay_within_what_is_possible(
    pair, make_prompts, probe_config, count
):
    """A check of four prompts said: teacher 25 %, 95 % interval of the lead -55 to +105 points."""
    student, teacher = (ProbeModel(lm, STOP) for lm in pair)
    lengths = (3, 6, 4, 5)[:count]
    numbers = compute_features(
        *probe(student, teacher, answered(make_prompts(*lengths)), probe_config)
    )
    changes = {"gap", "slips", "tilt_gain", "continuation_gain", *(f"gain@{d:g}" for d in DEPTHS)}
    fractions = {n for n in numbers if "accuracy" in n or "overlap_" in n or "truncated" in n}
    fractions = fractions - {"overlap_advantage"} | {"headroom"}
    assert changes | fractions <= numbers.keys()
    for name in changes | fractions:
        lowest = -1 if name in changes else 0
        assert lowest <= numbers[name].low <= numbers[name].high <= 1, name


@pytest.mark.parametrize("depth", DEPTHS)
def test_a_prefix_never_holds_the_last_tokens(pair, make_prompts, depth):
    sampler = HFSampler(pair[0], Decoding(9), stop=STOP, capture=1)
    for rollout in sampler.sample(make_prompts(3, 6, 4), n=4, key=(0,)):
        started = prefix_prompt(rollout, depth)
        given = len(started.ids) - len(rollout.prompt.ids)
        assert 0 <= given <= max(0, len(rollout) - TAIL)
        assert given <= depth * len(rollout)
        assert list(started.ids[len(rollout.prompt.ids) :]) == rollout.ids[:given].tolist()


def test_a_greedy_student_continues_its_own_prefix_to_the_same_answer(pair, make_prompts):
    stop = frozenset({20, 30})  # ends two of the four greedy rollouts
    sampler = HFSampler(pair[0], Decoding(12, temperature=0.0), stop=stop, capture=1)
    rollouts = sampler.sample(make_prompts(3, 6, 4, 5), n=1, key=(0,))
    assert {r.finish for r in rollouts} == {"stop", "length"}
    prompts = [replace(r.prompt, answer=words(r.ids).split()[-1]) for r in rollouts]
    with Grader("exact") as grader:
        config = ProbeConfig(sampler.decoding, words, grader, n=1, m=1, k=4)
        side = probe_student(ProbeModel(pair[0], stop), prompts, config)
    assert side.correct.all()
    for row, rollout in enumerate(rollouts):
        for column, depth in enumerate(DEPTHS):
            started = prefix_prompt(rollout, depth)
            (rest,) = sampler.sample([started], n=1, key=(1,))
            right = words(rest.ids).split()[-1] == prompts[row].answer
            assert side.continued[row, column] == right
            if rollout.finish == "stop":
                given = len(started.ids) - len(rollout.prompt.ids)
                assert rest.ids.tolist() == rollout.ids[given:].tolist()
                assert right


def test_without_answers_only_compatibility_is_known(pair, make_prompts, probe_config):
    blind = replace(probe_config, grader=None)
    student, teacher = (ProbeModel(lm, STOP) for lm in pair)
    numbers = compute_features(*probe(student, teacher, make_prompts(3, 6, 4), blind))
    assert {"reverse_kl", "distance", "max_reward"} <= numbers.keys()
    assert not {"gap", "continuation_gain", "auroc", "student_accuracy"} & numbers.keys()


def test_a_server_shows_what_a_local_teacher_would(pair, make_prompts, probe_config):
    student, teacher = (ProbeModel(lm, STOP) for lm in pair)
    side, local = probe(student, teacher, answered(make_prompts(3, 6, 4)), probe_config)
    here = compute_features(side, local)
    scoring = ServedTeacher(LocalTeacher(pair[1]))
    there = compute_features(side, probe_server(scoring, student, side, probe_config))
    for name in ("overlap_ratio", "overlap_mass", "top1_agreement", "max_reward"):
        assert there[name].value == pytest.approx(here[name].value, abs=1e-5), name
    assert not {"distance", "gap", "continuation_gain"} & there.keys()


def test_a_served_teacher_is_compared_at_temperature_1_too(pair, make_prompts, probe_config):
    """The student's log-probs were those of the sampling temperature, the teacher's were not."""
    config = replace(probe_config, decoding=Decoding(12, 0.5))
    student, teacher = (ProbeModel(lm, STOP) for lm in pair)
    side, local = probe(student, teacher, answered(make_prompts(3, 6, 4)), config)
    here = compute_features(side, local)
    scoring = ServedTeacher(LocalTeacher(pair[1]))
    there = compute_features(side, probe_server(scoring, student, side, config))
    for name in ("overlap_mass", "overlap_advantage", "max_reward", "tilt_gain"):
        assert there[name].value == pytest.approx(here[name].value, abs=1e-5), name


def test_a_server_that_generates_shows_all_of_it(pair, make_prompts, probe_config):
    """The same answers and continuations; distances from sampled tokens, within their noise."""
    student, teacher = (ProbeModel(lm, STOP) for lm in pair)
    prompts = answered(make_prompts(*[3, 6, 4] * 8))
    side, local = probe(student, teacher, prompts, probe_config)
    here = compute_features(side, local)
    served = ServedTeacher(LocalTeacher(pair[1]), teacher.samplers)
    there = compute_features(side, probe_server(served, student, side, probe_config))
    exact = ("teacher_accuracy", "gap", "continuation_gain", "teacher_length", "weighted_gap")
    for name in (*exact, "tilt_gain", "offpolicy_overlap_mass"):
        assert there[name].value == pytest.approx(here[name].value, abs=1e-5), name
    for name in ("reverse_kl", "offpolicy_kl"):
        assert there[name].low < here[name].value < there[name].high, name
    assert here.keys() - there.keys() == {"entropy_gap", "student_entropy", "teacher_entropy"}


def test_a_server_tells_how_far_a_student_is_from_its_top_tokens(pair, make_prompts, probe_config):
    """What a pilot's drop of the KL is computed from, as with the same teacher in process."""
    student, teacher = (ProbeModel(lm, STOP) for lm in pair)
    side, local = probe(student, teacher, answered(make_prompts(3, 6, 4)), probe_config)
    exact = read(pair[0], fix_texts(side, local, pair[1], tokens_per_batch=64, seed=0))
    scorer = LocalTeacher(pair[1])
    for k, close in ((4, None), (pair[1].vocab - 1, 1e-4)):
        served = probe_server(ServedTeacher(scorer), student, side, replace(probe_config, k=k))
        texts = fix_texts(side, served, None, tokens_per_batch=64, seed=0)
        reported = read(pair[0], texts)
        assert reported.rollouts == pytest.approx(exact.rollouts, abs=1e-4)
        assert (reported.kl > 0).all()
        assert (reported.kl <= exact.kl + 1e-5).all()
        if close is not None:
            assert reported.kl == pytest.approx(exact.kl, abs=close)
        learnt = read(pair[1], texts)
        assert learnt.kl == pytest.approx(0, abs=1e-4)
    blind = replace(served, scores=())
    assert read(pair[0], fix_texts(side, blind, None, tokens_per_batch=64, seed=0)).kl is None


def test_tilting_is_what_reweighting_by_hand_gives():
    correct, ratio = np.array([[1.0, 0.0, 0.0, 0.0]]), np.array([[2.0, 0.0, 0.0, 0.0]])
    heavy = np.exp(TILT * 2.0)
    expected = [heavy / (heavy + 3)]
    assert tilted_accuracy(correct, ratio) == pytest.approx(expected, abs=EXACT)
    assert tilted_accuracy(correct, 0 * ratio) == pytest.approx(correct.mean(1), abs=EXACT)


def test_two_rollouts_of_a_prompt_are_reweighted_too():
    """The probe of a slow pair has two; the tilt was 0 there, whatever the teacher preferred."""
    correct, ratio = np.array([[1.0, 0.0]]), np.array([[2.0, 0.0]])
    raw = np.exp(TILT * ratio)
    expected = float((raw * correct).sum() / raw.sum())
    assert tilted_accuracy(correct, ratio) == pytest.approx(expected, abs=EXACT)
    assert expected > 0.6


def test_a_weighted_accuracy_is_a_weighted_mean_over_all_samples():
    correct = np.array([[1.0, 0.0], [1.0, 1.0]])
    reward = np.array([[-0.5, -0.1], [-0.9, -0.3]])
    weights = np.exp(LIKELIHOOD_EXPONENT * reward)
    expected = (weights * correct).sum() / weights.sum()
    assert weighted_accuracy(correct, reward)[0].mean() == pytest.approx(expected, abs=EXACT)
    plain, effective = weighted_accuracy(correct, np.full((2, 2), -2.0))
    assert effective == pytest.approx(4)
    assert plain == pytest.approx(correct.mean(1), abs=EXACT)


def test_intervals_are_over_prompts(pair, make_prompts, probe_config):
    student, teacher = (ProbeModel(lm, STOP) for lm in pair)
    sides = probe(student, teacher, answered(make_prompts(3, 6, 4, 5)), probe_config)
    by_prompt = sides[1].on_student.mean["diag/reverse_kl"].reshape(4, -1).mean(1)
    assert compute_features(*sides)["reverse_kl"] == stats.mean(by_prompt)
    assert torch.is_grad_enabled()
