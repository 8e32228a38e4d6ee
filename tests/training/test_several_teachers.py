"""Several teachers: routes, exact mixtures, shares of prompts and tokens, metrics of each."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from opd import config
from opd.alarms import replay
from opd.config import Alarms
from opd.data.order import Share, mixed_indices
from opd.data.routes import Route
from opd.demo.run_config import PAIR
from opd.errors import UserError
from opd.run.console import Console
from opd.run.jsonl import read_jsonl
from opd.setup.preflight import read_inputs
from opd.teachers.local import LocalTeacher
from opd.teachers.remote import TeacherDown
from opd.teachers.routed import MixedTeacher, RoutedTeacher, mixed_logits
from opd.training.per_teacher import equalise_tokens
from opd.types import Prompt, Rollout, Want
from support.everyday import everyday
from support.runs import digest, run_to_end
from support.teacher_runs import several


def made_rollouts(count=6, length=5, vocab=40):
    rng = np.random.default_rng(0)
    made = []
    for i in range(count):
        prompt = Prompt(i, tuple(rng.integers(3, vocab, 3 + i).tolist()), "")
        ids = rng.integers(3, vocab, length).astype(np.int32)
        topk = np.stack([rng.permutation(vocab)[:4] for _ in ids]).astype(np.int32)
        made.append(Rollout.of_ids(prompt, ids, topk_ids=topk))
    return made


def one(name):
    return Route(((name, 1.0),))


def test_each_rollout_is_scored_by_the_teacher_of_its_prompt(make_lm):
    teachers = {"a": LocalTeacher(make_lm(1)), "b": LocalTeacher(make_lm(2))}
    rollouts = made_rollouts()
    routes = {r.prompt.index: one("ab"[r.prompt.index % 2]) for r in rollouts}
    want = Want(sampled=True, support=True, topk=2, full=[np.arange(5)] * 6)
    for parallel in (False, True):
        scores = RoutedTeacher(teachers, routes, parallel=parallel).score(rollouts, want)
        for i, (rollout, score) in enumerate(zip(rollouts, scores, strict=True)):
            name = "ab"[rollout.prompt.index % 2]
            alone = teachers[name].score([rollout], want.of_rollouts([i]))[0]
            assert np.allclose(score.sampled, alone.sampled, atol=1e-5)
            assert np.array_equal(score.topk_ids, alone.topk_ids)
            assert torch.allclose(score.hidden, alone.hidden, atol=1e-5)


class Away:
    """A teacher that scores its first rollout and goes away."""

    name = "away"

    def __init__(self, teacher):
        self.teacher, self.kinds = teacher, teacher.kinds

    def score(self, rollouts, want):
        first = self.teacher.score(rollouts[:1], want)
        raise TeacherDown("away", [*first, *[None] * (len(rollouts) - 1)])


def test_what_the_others_scored_is_kept_when_one_goes_away(make_lm):
    teachers = {"a": Away(LocalTeacher(make_lm(1))), "b": LocalTeacher(make_lm(2))}
    rollouts = made_rollouts()
    routes = {r.prompt.index: one("ab"[r.prompt.index % 2]) for r in rollouts}
    with pytest.raises(TeacherDown) as down:
        RoutedTeacher(teachers, routes).score(rollouts, Want(sampled=True))
    there = [score is not None for score in down.value.partial]
    assert there == [True, True, False, True, False, True]


@pytest.mark.parametrize("away", [0, 1])
def test_a_mixture_keeps_no_score_of_one_teacher_alone_when_another_goes_away(make_lm, away):
    """A step that is resumed would train on it as if it were the mixture's."""
    parts = [LocalTeacher(make_lm(1)), LocalTeacher(make_lm(2))]
    rollouts, want = made_rollouts(3), Want(sampled=True)
    exact = MixedTeacher("m", [(0.5, part) for part in parts]).score(rollouts, want)
    parts[away] = Away(parts[away])
    with pytest.raises(TeacherDown) as down:
        MixedTeacher("m", [(0.5, part) for part in parts]).score(rollouts, want)
    first, *others = down.value.partial
    assert others == [None, None]
    assert first is None if away == 0 else np.array_equal(first.sampled, exact[0].sampled)


def test_a_mixture_is_the_mean_of_probabilities(make_lm):
    lms, weights = [make_lm(1), make_lm(2)], [0.25, 0.75]
    mixture = MixedTeacher("m", [(w, LocalTeacher(x)) for w, x in zip(weights, lms, strict=True)])
    rollouts = made_rollouts(3)
    want = Want(sampled=True, support=True, full=[np.arange(5)] * 3)
    scores = mixture.score(rollouts, want)
    for rollout, score in zip(rollouts, scores, strict=True):
        text = torch.tensor([[*rollout.prompt.ids, *rollout.ids.tolist()]])
        first = len(rollout.prompt.ids) - 1
        with torch.no_grad():
            q = sum(
                w * lm.model(text).logits[0, first:-1, : lm.vocab].double().softmax(-1)
                for w, lm in zip(weights, lms, strict=True)
            )
        exact = q.log().cpu().numpy()
        at = np.arange(5)
        assert np.allclose(score.sampled, exact[at, rollout.ids], atol=1e-5)
        assert np.allclose(
            score.support - score.log_z[:, None],
            np.take_along_axis(exact, rollout.topk_ids, 1),
            atol=1e-5,
        )
        heads = [
            (w, lm.config.hidden_size, lm.head.logits) for w, lm in zip(weights, lms, strict=True)
        ]
        whole = mixed_logits(heads)(score.hidden).detach()
        assert np.allclose(whole.log_softmax(-1).cpu().numpy(), exact, atol=1e-5)
        assert score.topk_ids is None


@settings(max_examples=60, deadline=None)
@given(
    counts=st.lists(st.integers(1, 7), min_size=1, max_size=4),
    weights=st.lists(st.floats(0.1, 5), min_size=4, max_size=4),
    size=st.integers(1, 9),
    steps=st.integers(1, 12),
    shuffle=st.booleans(),
)
def test_every_part_has_its_share_at_every_moment(counts, weights, size, steps, shuffle):
    shares, begin = [], 0
    for count, weight in zip(counts, weights, strict=False):
        shares.append(Share(range(begin, begin + count), weight))
        begin += count
    taken = []
    for step in range(steps):
        taken += mixed_indices(shares, size, step, seed=1, shuffle=shuffle)
    assert len(taken) == size * steps
    total = sum(s.weight for s in shares)
    for share in shares:
        own = [i for i in taken if i in share.indices]
        assert abs(len(own) - len(taken) * share.weight / total) <= len(shares)
        for start in range(0, len(own) - len(share.indices) + 1, len(share.indices)):
            assert sorted(own[start : start + len(share.indices)]) == list(share.indices)


def test_a_file_of_three_times_the_weight_gives_three_of_four_prompts(tmp_path):
    run_to_end(several(tmp_path / "run", steps=2))
    rows = [r for r in read_jsonl(tmp_path / "run/metrics.jsonl") if "train/loss" in r]
    for row in rows:
        of = {n: row[f"teachers/{n}/token_share"] for n in ("big", "own")}
        assert abs(sum(of.values()) - 1) < 1e-9
        shares = [of[n] * row[f"teachers/{n}/train/loss"] for n in of]
        assert abs(sum(shares) - row["train/loss"]) < 1e-5
        assert "teachers/own/diag/reverse_kl" in row
        assert row["teachers/big/rollout/length"] > 0


@pytest.mark.parametrize("by", everyday(["prompts", "tokens"], 1))
def test_two_and_two_steps_are_four(tmp_path, by):
    run_to_end(several(tmp_path / "a", by=by))
    run_to_end(several(tmp_path / "b", by=by, steps=2))
    run_to_end(several(tmp_path / "b", by=by), resume=True)
    whole, parts = digest(tmp_path / "a"), digest(tmp_path / "b")
    assert whole == parts
    assert any(name.endswith("teacher.safetensors") for name in whole)


def test_by_tokens_each_teacher_counts_as_its_rollouts_do():
    prompt = Prompt(0, (1,), "")
    rollouts = [Rollout.of_ids(prompt, np.zeros(n, np.int32)) for n in (2, 10, 30)]
    weights = equalise_tokens(rollouts, ["a", "b", "b"], None)
    assert np.isclose(weights[0].sum(), 42 / 3)
    assert np.isclose(weights[1].sum() + weights[2].sum(), 42 * 2 / 3)
    masked = equalise_tokens(rollouts, ["a", "b", "b"], [np.zeros(n) for n in (2, 10, 30)])
    assert not any(w.any() for w in masked)


def test_the_loss_by_tokens_is_the_mean_of_the_teachers_means(tmp_path):
    run_to_end(several(tmp_path / "run", steps=1, by="tokens"))
    row = next(r for r in read_jsonl(tmp_path / "run/metrics.jsonl") if "train/loss" in r)
    of = {n: row[f"teachers/{n}/train/loss"] for n in ("big", "own")}
    assert abs(row["train/loss"] - (0.75 * of["big"] + 0.25 * of["own"])) < 1e-5


def refused(data, match):
    with pytest.raises(UserError, match=match):
        read_inputs(config.parse(data), Console("quiet"))


ROW = {"prompt": "sum pig gnu jay", "answer": "1"}


def test_bad_routes_are_named(tmp_path):
    for row, match in (
        (
            ROW | {"teacher": "bigg"},
            r"second\.jsonl, line 1: 'bigg' is no teacher of this run\. It ",
        ),
        (ROW | {"teacher": {"big": -1}}, r"line 1: the weight of 'big' is -1; it must be above 0"),
        (ROW | {"teacher": 7}, r"line 1: a teacher is a name, or names with weights"),
        (ROW | {"teacher": "big"}, r"teachers\.own has no prompt to score"),
        ({"prompt": "sum pig gnu"}, r"line 1: teachers\.own\.prompt needs text for \{answer\}"),
    ):
        refused(several(tmp_path / "run", rows=[row]), match)
    data = several(tmp_path / "run")
    del data["prompts"]["files"][0]["teacher"]
    refused(data, r"prompts\.files\.0\.path=.*: no teacher is named, and there are 2 \(big, own\)")
    data = several(tmp_path / "run")
    data["teachers"]["own"]["prompt"] = "{prompt}" * 40
    refused(data, r"with teachers\.own\.prompt the teacher's prompt has \d+ tokens")


def test_two_teachers_of_unlike_end_tokens_are_named(tmp_path):
    import shutil

    other = tmp_path / "other"
    shutil.copytree(PAIR / "teacher", other)
    for name in ("generation_config.json", "config.json"):
        if (other / name).exists():
            settings_ = json.loads((other / name).read_text())
            (other / name).write_text(json.dumps(settings_ | {"eos_token_id": [2, 5]}))
    if not (other / "generation_config.json").exists():
        (other / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 5]}))
    data = several(tmp_path / "run")
    data["teachers"]["other"] = {"model": str(other)}
    data["prompts"]["files"].append(data["prompts"]["files"][0] | {"teacher": "other"})
    refused(data, r"teachers\.other: The models end a completion with different tokens")


def test_a_mixture_without_its_own_top_tokens_is_refused(tmp_path):
    data = several(tmp_path / "run")
    data["prompts"]["files"][0]["teacher"] = {"big": 1, "own": 3}
    read_inputs(config.parse(data), Console("quiet"))
    data["loss"] = {"support": "teacher_topk", "mode": "tail", "k": 4}
    refused(data, r"top.* of the mixture|probable tokens of the mixture big:0\.25\+own:0\.75")


def test_a_mixture_trains(tmp_path):
    rows = [ROW | {"teacher": {"big": 1, "own": 1}}]
    run_to_end(several(tmp_path / "run", steps=2, rows=rows))
    row = next(r for r in read_jsonl(tmp_path / "run/metrics.jsonl") if "train/loss" in r)
    assert "teachers/big:0.5+own:0.5/train/loss" in row


def test_what_several_teachers_cannot_do_is_refused(tmp_path):
    data = several(tmp_path / "run")
    for change, match in (
        ({"coldstart": {}}, "coldstart needs one teacher"),
        ({"recipe": "auto"}, "recipe needs one teacher"),
        ({"teacher": {"model": "x"}}, "teacher and teachers are the same thing"),
    ):
        with pytest.raises(UserError, match=match):
            config.parse(data | change)


def test_an_alarm_about_one_teacher_names_it_and_warns():
    def row(step):
        t = step / 40
        values = {"rollout/repetition": 0.01, "teachers/a/rollout/repetition": 0.01}
        return {"step": step} | values | {"teachers/b/rollout/repetition": 0.5 * t}

    table = [row(step) for step in range(1, 41)]
    alarms = replay(table, Alarms(action="stop"), 40)
    assert [(a.name, a.action) for a in alarms] == [("repetition", "warn")]
    assert alarms[0].message.startswith("On the prompts of teacher b: responses repeat")
