"""Every lie of `support.lies` is found in two steps; honest teachers are not accused."""

from __future__ import annotations

import numpy as np
import pytest

from opd.errors import UserError
from opd.run.rollouts import StepFile, encode
from opd.setup.remote_teacher import remember_earlier_steps
from opd.teachers.remote import RemoteOptions, RemoteTeacher
from opd.teachers.repeats import (
    MAX_COST,
    Noise,
    RepeatChecks,
    score_differences,
    suspicion,
    topk_distances,
)
from opd.testing import LETTER_VOCAB, FakeTeacher
from opd.types import Scores, Want
from support import further_lies as further
from support import lies
from support import teacher_lies as detection
from support.more_lies import MORE_LIES, NOT_PROBED, RARE

NAMES = sorted(lies.LIES)
PROTOCOLS = ("opd", "vllm")
WANT = Want(sampled=True, topk=detection.K)


def assert_found(name, protocol, start, prompts):
    liar = detection.Liar(lies.LIES[name])
    found = detection.detect_liar(liar, protocol, start, prompts=prompts)
    if start == 0 and detection.impossible(name, protocol):
        assert found is None  # else the docs are wrong about what cannot be known
    elif name not in lies.NOISE and (liar.state.hits or not name.startswith("1 of")):
        assert found is not None


# With 16 prompts, 64 rollouts a step, 2 % of the tokens do not ask for a text of before in time.
SMALLEST = {"honest on known text, another model elsewhere": 24}


@pytest.mark.parametrize(("place", "name"), list(enumerate(NAMES)))
def test_a_lie_is_found_whenever_it_begins(place, name):
    first, second = PROTOCOLS if place % 2 else PROTOCOLS[::-1]
    prompts = SMALLEST.get(name, 16)
    assert_found(name, first, 0, prompts=prompts)
    assert_found(name, second, 2, prompts=prompts)


@pytest.mark.slow
@pytest.mark.parametrize("start", [0, 2])
@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("name", NAMES)
def test_a_lie_is_found_over_both_protocols(name, protocol, start):
    assert_found(name, protocol, start, prompts=64)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(MORE_LIES) - RARE))
def test_a_lie_of_the_second_look_is_found_at_32_rollouts_a_step(name):
    for start, protocol in ((0, "opd"), (2, "opd"), (2, "vllm")):
        liar = detection.Liar(MORE_LIES[name])
        found = detection.detect_liar(liar, protocol, start, prompts=8)
        assert (found is None) == (start == 0 and name in NOT_PROBED), (start, protocol)


def assert_further_found(name, protocol, start):
    liar = detection.Liar(further.FURTHER_LIES[name])
    prompts = 64 if name in further.LARGE_STEPS else 16
    found = detection.detect_liar(liar, protocol, start, prompts=prompts)
    hidden = further.NOT_PROBED | (further.NO_SUM if protocol == "vllm" else set())
    assert (found is None) == (name in further.NOISE or (start == 0 and name in hidden))


@pytest.mark.slow
@pytest.mark.parametrize("start", [0, 2])
@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("name", sorted(further.FURTHER_LIES))
def test_a_lie_of_the_third_look_is_found(name, protocol, start):
    assert_further_found(name, protocol, start)


@pytest.mark.parametrize(
    ("name", "start"),
    [
        ("all but the token itself mixed up", 2),  # top tokens over vLLM were compared without ids
        ("the next token leaks", 0),
        ("long sequences warmer", 0),
    ],
)
def test_what_the_third_look_found_missing(name, start):
    assert_further_found(name, "vllm", start)


def test_top_tokens_are_compared_by_their_ids():
    """Two orders of equal log-probs are no difference; another token with the same log-prob is."""

    def top(ids, logp):
        arrays = np.array([ids], np.int32), np.array([logp], np.float32)
        return Scores(topk_ids=arrays[0], topk_logp=arrays[1])

    first = top([3, 5, 8], [-0.5, -2.0, -2.0])
    assert topk_distances(first, top([3, 8, 5], [-0.5, -2.0, -2.0])).max() == 0
    assert topk_distances(first, top([3, 5, 9], [-0.5, -2.0, -2.0])).max() == 0  # a tie at the end
    swapped = topk_distances(first, top([5, 3, 8], [-0.5, -2.0, -2.0]))
    assert swapped.tolist() == [[1.5, 1.5, 0.0]]
    other = topk_distances(first, top([7, 5, 8], [-0.5, -2.0, -2.0]))
    assert other.tolist() == [[1.5, 0.0, 0.0]]
    assert score_differences(first, top([5, 3, 8], [-0.5, -2.0, -2.0])).largest == 1.5


@pytest.mark.parametrize("name", sorted(lies.CONSISTENT_VLLM))
def test_the_weights_tell_what_nothing_else_can(name):
    assert detection.detect_with_weights(name) > 0.01


@pytest.mark.parametrize("seed", range(24))
def test_honest_teachers_in_bf16_are_not_accused(seed):
    assert detection.false_alarm(seed) is None


@pytest.mark.parametrize("size", [4, 16, 32])
def test_a_short_window_is_found_in_the_noise_of_bf16(size):
    model = detection.bf16(size)

    def cut(ids):
        ends = range(1, len(ids) + 1)
        return np.stack([model(list(ids)[max(0, end - size) : end])[-1] for end in ends])

    (failed,) = detection.handshake(detection.connect(cut, "opd")).fatal
    assert failed.name == "reach"


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_five_hundred_honest_runs_in_bf16_raise_no_alarm():
    assert [a for a in map(detection.false_alarm, range(500)) if a is not None] == []


def test_what_is_scored_again_costs_little():
    for prompts in (64, 8):
        assert 0.75 * MAX_COST <= detection.checked_fraction(prompts) <= 1.05 * MAX_COST
    small = detection.rollouts_of(1, 1)[:2]  # two sequences at least
    scores = FakeTeacher(lies.HONEST).score(small, WANT)
    assert len(RepeatChecks(Noise()).choose(small, scores)) == 2


@pytest.mark.parametrize(("count", "steps"), [(32, 2), (8, 4)])
def test_small_steps_score_both_kinds_again_by_turns(count, steps):
    checks, teacher = RepeatChecks(Noise()), FakeTeacher(lies.HONEST)
    origins = []
    for step in range(12):
        rollouts = detection.rollouts_of(1 + step % 4, 8)[:count]
        scores = teacher.score(rollouts, WANT)
        repeats = checks.choose(rollouts, scores)
        assert checks.judge(repeats, teacher.score([r.rollout for r in repeats], WANT)) is None
        checks.remember(rollouts, scores)
        origins.append({repeat.origin for repeat in repeats})
    for i in range(1, len(origins) - steps):
        assert len(set().union(*origins[i : i + steps])) == 2


def test_a_sequence_is_cut_to_what_may_be_spent():
    checks, teacher = RepeatChecks(Noise()), FakeTeacher(lies.HONEST)
    rollouts = detection.rollouts_of(1, 8)
    scores = teacher.score(rollouts, WANT)
    checks.choose(rollouts, scores)
    again = checks.choose(rollouts, scores)
    assert again
    for repeat in again:
        assert 4 <= len(repeat.rollout) < detection.LENGTH
        assert len(repeat.expected.sampled) == len(repeat.rollout)


@pytest.mark.parametrize("wrong", [lies.shuffled, lies.of_another, lies.plain(lies.uniform)])
def test_one_wrong_row_of_a_thousand_is_scored_again(wrong):
    rollouts = detection.rollouts_of(1) + detection.rollouts_of(2) + detection.rollouts_of(3)
    scores = FakeTeacher(lies.HONEST).score(rollouts, WANT)
    liar = detection.Liar(wrong)
    liar.lies = True
    (scores[321],) = FakeTeacher(liar).score([rollouts[321]], WANT)
    assert 321 in np.argsort(-suspicion(rollouts, scores))[:3]
    again = RepeatChecks(Noise()).choose(rollouts, scores)
    assert any(repeat.rollout is rollouts[321] for repeat in again)


def test_earlier_rollouts_are_scored_again_from_their_beginning():
    checks = RepeatChecks(Noise())
    first, second = detection.rollouts_of(1, 16), detection.rollouts_of(2, 16)
    teacher = FakeTeacher(lies.HONEST)
    checks.remember(first, teacher.score(first, WANT))
    repeats = checks.choose(second, teacher.score(second, WANT))
    earlier = [r for r in repeats if r.origin == "an earlier step"]
    assert earlier
    assert all(detection.LENGTH // 2 <= len(r.rollout) <= detection.LENGTH for r in earlier)
    answers = teacher.score([r.rollout for r in repeats], WANT)
    assert checks.judge(repeats, answers) is None


def test_a_resumed_run_scores_rollouts_of_earlier_steps_again(tmp_path):
    liar = detection.Liar(lies.LIES["honest on known text, another model elsewhere"])
    dialect = detection.connect(liar, "opd")
    result = detection.handshake(dialect)
    rollouts = detection.rollouts_of(1, 4)
    scores = FakeTeacher(lies.HONEST).score(rollouts, WANT)
    folder = tmp_path / "rollouts"
    folder.mkdir()
    (folder / "step-3.parquet").write_bytes(encode(StepFile(rollouts, scores, None, {})))
    (folder / "step-4.parquet").write_bytes(b"damaged")
    liar.lies = True  # the server was restarted before the run was
    teacher = RemoteTeacher(
        dialect, "m", vocab=LETTER_VOCAB, expected=result.teacher, options=RemoteOptions()
    )
    teacher.verify()  # it knows the text of the handshake
    remember_earlier_steps(tmp_path, teacher)
    with pytest.raises(UserError, match="contradicts itself: a rollout of an earlier step"):
        teacher.score(detection.rollouts_of(5, 4), WANT)


def test_noise_is_measured_in_the_first_step_and_bounded():
    rollouts = detection.rollouts_of(1, 4)
    teacher, rng = FakeTeacher(lies.HONEST), np.random.default_rng(0)

    def noisy(scale):
        scores = teacher.score([r.rollout for r in repeats], Want(sampled=True))
        for s in scores:
            s.sampled[:] += rng.normal(0, scale, len(s.sampled))
        return scores

    checks = RepeatChecks(Noise())
    repeats = checks.choose(rollouts, teacher.score(rollouts, Want(sampled=True)))
    assert checks.judge(repeats, noisy(0.02)) is None
    assert 0.005 < checks.noise.mean < 0.03
    assert checks.judge(repeats, noisy(0.02)) is None
    assert "differ" in checks.judge(repeats, noisy(0.3))
    assert RepeatChecks(Noise()).judge(repeats, noisy(0.5)) is not None
