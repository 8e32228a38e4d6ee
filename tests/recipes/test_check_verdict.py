"""Handshake points, the prospect's arithmetic, verdicts, advice."""

from __future__ import annotations

import math

import pytest

from conftest import tiny_tokenizer
from opd.core.stats import Estimate
from opd.recipes.check import compatibility
from opd.recipes.check.compatibility import Point
from opd.recipes.check.forecast import Prospect, ProspectModel, Term, foretell, load_model
from opd.recipes.check.probe import DEPTHS
from opd.recipes.check.verdict import (
    advice,
    chance_below,
    judge,
    origin_reason,
    reasons,
)


def estimate(value, half=0.02):
    return Estimate(value, value - half, value + half, 100)


def numbers(student, teacher, distance, **more):
    found = {
        "student_accuracy": estimate(student),
        "teacher_accuracy": estimate(teacher),
        "gap": estimate(teacher - student),
        "taught": estimate(teacher),
        "lead": estimate(teacher - student),
        "distance": estimate(distance),
        "overlap_mass": estimate(0.9),
        "auroc": estimate(0.7),
        "tilt_gain": estimate(0.1),
    }
    if "continuation_gain" in more:
        more |= {f"gain@{depth:g}": more["continuation_gain"] for depth in DEPTHS}
    return found | {name: estimate(value) for name, value in more.items()}


MODEL = ProspectModel(
    bias=1.0,
    keep=0.5,
    terms=(Term("distance", -3.0, 1.0, 0.5, 0.0, 2.0),),
    spread=2.0,
    floor=0.02,
    noise=0.1,
    fitted_on="by hand",
)


def test_after_is_the_shared_way_and_what_is_kept():
    values = {"student_accuracy": 0.2, "taught": 0.8, "distance": 1.0}
    s = 1 / (1 + math.exp(-1.0))
    assert MODEL.share(values) == pytest.approx(s)
    assert MODEL.after(values) == pytest.approx(s * 0.8 + (1 - s) * 0.5 * 0.2)
    near = values | {"distance": 0.0}
    assert MODEL.share(near) == pytest.approx(1 / (1 + math.exp(-7.0)))


def test_what_the_fit_has_not_seen_is_said_and_not_extrapolated():
    far = foretell(MODEL, numbers(0.2, 0.8, 5.0))
    assert len(far.outside) == 1
    assert "distance is 5" in far.outside[0]
    assert far.share == pytest.approx(MODEL.share({"distance": 2.0}))
    assert judge(far, numbers(0.2, 0.8, 5.0)) == "go with changes"


def test_intervals_widen_with_the_probes_own_doubt():
    sure = foretell(MODEL, numbers(0.2, 0.8, 0.1))
    found = numbers(0.2, 0.8, 0.1) | {"lead": estimate(0.6, half=0.3)}
    unsure = foretell(MODEL, found)
    assert unsure.change.high - unsure.change.low > sure.change.high - sure.change.low
    assert unsure.change.low >= -0.2
    assert unsure.change.high <= 0.8


@pytest.mark.parametrize(
    ("found", "verdict"),
    [
        (numbers(0.2, 0.8, 0.1), "go"),
        (numbers(0.2, 0.8, 1.9), "don't"),  # capable, but thinks differently
        (numbers(0.2, 0.8, 1.2), "go with changes"),  # undecided
        (numbers(0.2, 0.21, 0.1), "don't"),  # the same data in a larger model
        (numbers(0.8, 0.2, 0.1), "don't"),  # reverse
        ({"distance": estimate(0.1), "overlap_mass": estimate(0.9)}, "go with changes"),
    ],
)
def test_verdicts(found, verdict):
    assert judge(foretell(MODEL, found), found) == verdict


def test_a_doubtful_lead_is_no_plain_go():
    found = numbers(0.2, 0.8, 1.2)
    prospect = foretell(MODEL, found)
    wide = Prospect(prospect.share, Estimate(0.35, -0.3, 0.8, 100), None, ())
    assert judge(wide, found) == "go with changes"


def test_chances_are_those_of_a_normal_interval():
    assert chance_below(Estimate(0.5, 0.5 - 1.645, 0.5 + 1.645, 10), 0.5) == pytest.approx(0.5)
    assert chance_below(Estimate(0.0, -1.645, 1.645, 10), -1.645) == pytest.approx(0.05, abs=1e-3)
    assert chance_below(Estimate(0.3, 0.3, 0.3, 10), 0.2) == 0.0


def test_reasons_name_what_decides():
    good = numbers(0.2, 0.8, 0.1, continuation_gain=0.3, reverse_kl=0.4, read_mass=0.99)
    told = [r.text for r in reasons(foretell(MODEL, good), good)]
    assert told == [
        "The teacher can do what the student cannot",
        "They think alike on what the student writes",
        "The teacher's scores tell right answers from wrong ones",
    ]
    assert (
        "from 25%, 50%, 75% of it: +30, +30, +30"
        in reasons(foretell(MODEL, good), good)[0].evidence
    )
    strange = numbers(0.2, 0.8, 1.9, continuation_gain=-0.2) | {"auroc": Estimate(0.5, 0.4, 0.6, 9)}
    told = [r.text for r in reasons(foretell(MODEL, strange), strange)]
    assert told == [
        "The teacher is ahead alone, but cannot go on from what the student writes",
        "They think differently on what the student writes",
        "The teacher's scores do not tell right answers from wrong ones",
    ]


def test_advice_names_keys():
    found = numbers(0.2, 0.8, 1.9)
    prospect = foretell(MODEL, found)
    given = advice(
        "go with changes",
        prospect,
        found,
        [Point("template", "warning", "templates differ", "set prompts.chat")],
        truncated=0.5,
        support_mass=0.9,
        new_tokens=100,
        cold_start={"coldstart": {}},
    )
    keys = {key: value for one in given for key, value in one.set.items()}
    assert keys == {"coldstart": {}, "rollout.max_new_tokens": 200, "loss.mode": "tail"}
    assert given[0].text == "templates differ: set prompts.chat"
    alike = numbers(0.2, 0.8, 0.1)
    assert not advice(
        "go",
        foretell(MODEL, alike),
        alike,
        [],
        truncated=0.0,
        support_mass=1.0,
        new_tokens=100,
        cold_start={"coldstart": {}},
    )


def test_a_teacher_that_is_ahead_alone_is_worth_a_cold_start():
    """Its answers are right, those the student might write are not: no OPD, but an imitation."""
    alone = numbers(0.2, 0.9, 1.9) | {"lead": estimate(-0.1), "taught": estimate(0.1)}
    level = alone | {"gap": estimate(0.1, 0.2)}
    near = alone | {"distance": estimate(0.1)}  # alike: a cold start has nothing to add
    told = []
    for found in (alone, level, near):
        prospect = foretell(MODEL, found)
        assert judge(prospect, found) == "don't"
        given = advice(
            "don't",
            prospect,
            found,
            [],
            truncated=0.0,
            support_mass=1.0,
            new_tokens=100,
            cold_start={"coldstart": {}},
        )
        told.append([one.text[:5] for one in given])
    assert told == [["Begin"], ["Choos"], ["Choos"]]


def test_a_teacher_that_is_the_past_again_is_named():
    past = origin_reason(estimate(0.001, 0.0005), estimate(0.6))
    other = origin_reason(estimate(0.5), estimate(0.6))
    assert "past again" in past.text
    assert "can be told" in other.text


def test_the_shipped_model_reads_and_is_monotone_in_distance():
    model = load_model()
    near, far = (
        {"student_accuracy": 0.2, "taught": 0.9}
        | {t.name: (t.high if (t.weight > 0) == good else t.low) for t in model.terms}
        for good in (True, False)
    )
    assert model.share(near) > 0.9
    assert model.share(far) < 0.1
    assert 0 <= model.keep <= 1


def test_tokenizers_that_differ_are_a_failure_with_a_fix():
    same = compatibility.tokens(
        tiny_tokenizer(), tiny_tokenizer(), student_vocab=40, teacher_vocab=64
    )
    assert same[0].level == "ok"
    assert {p.level for p in same} <= {"ok", "note"}
    other = compatibility.tokens(
        tiny_tokenizer(40), tiny_tokenizer(39), student_vocab=40, teacher_vocab=40
    )
    failures = [p for p in other if p.level == "failure"]
    assert failures
    assert all(p.fix for p in failures)


def test_the_first_token_two_templates_differ_in_is_shown():
    tok = tiny_tokenizer()
    point = compatibility.template([0, 5, 6], [0, 5, 7, 8], tok)
    assert point.level == "warning"
    assert "token 2" in point.message
    assert "6 'w6'" in point.message
    assert "7 'w7'" in point.message
    assert "nothing" in compatibility.template([0], [0, 5], tok).message
    assert compatibility.template([0, 5], [0, 5], tok).level == "ok"


@pytest.mark.parametrize(
    ("choice", "level"), [(None, "failure"), ("student", "note"), ("union", "note")]
)
def test_ends_that_differ_need_a_choice(choice, level):
    point = compatibility.ends(frozenset({1}), frozenset({1, 2}), choice, tiny_tokenizer())
    assert point.level == level
    assert compatibility.ends(frozenset({1}), frozenset({1}), None, tiny_tokenizer()).level == "ok"


def test_thinking_switches_are_noticed():
    plain, thinks = tiny_tokenizer(), tiny_tokenizer()
    thinks.chat_template = "{{ enable_thinking }}"
    assert compatibility.thinking(plain, plain, {}) is None
    assert compatibility.thinking(plain, thinks, {}).level == "warning"
    assert compatibility.thinking(plain, thinks, {"enable_thinking": False}).level == "ok"


@pytest.mark.parametrize(("length", "level"), [(None, "note"), (20, "ok"), (19, "failure")])
def test_room_for_prompt_and_completion(length, level):
    point = compatibility.context("teacher", length, 8, 12)
    assert point.level == level
    if level == "failure":
        assert "rollout.max_new_tokens to 11" in point.fix
