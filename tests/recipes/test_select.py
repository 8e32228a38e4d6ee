"""Selection: each measure against a naive reference, the choice, and the whole command."""

from __future__ import annotations

import itertools
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import betabinom
from transformers import AutoTokenizer

from opd import config
from opd.commands.select import run_select
from opd.core.stats import pass_at_k_values
from opd.data.graders import make_grader
from opd.data.prompts import load_prompts
from opd.demo.run_config import PAIR, demo_config
from opd.errors import UserError
from opd.models.tokenizers import make_decoder
from opd.recipes.select import (
    Measurements,
    MeasurementSetup,
    Ranking,
    choose_prompts,
    compare_templates,
    measure_prompts,
    mixed_probability,
    mixture_entropy,
    rank_prompts,
    shrink,
)
from opd.reports.select_page import select_document
from opd.samplers.decoding import Decoding
from opd.samplers.hf import HFSampler
from opd.setup.pair import load_pair
from opd.teachers.local import LocalTeacher

FLOAT32_SUM = 1e-5  # a float32 model read twice, in batches of other shapes


@pytest.mark.parametrize("right", range(6))
@pytest.mark.parametrize("k", [1, 2, 5])
def test_pass_and_mixed_are_fractions_of_all_draws(right, k):
    outcomes = [1] * right + [0] * (5 - right)
    draws = [sum(d) for d in itertools.combinations(outcomes, k)]
    given = np.array([float(right)])
    assert pass_at_k_values(given, 5, k)[0] == pytest.approx(np.mean([d > 0 for d in draws]))
    assert mixed_probability(given, 5, k)[0] == pytest.approx(np.mean([0 < d < k for d in draws]))


def test_shrinkage_is_that_of_the_prior_the_prompts_came_from():
    a, b, n = 1.5, 3.0, 8
    right = betabinom.rvs(n, a, b, size=4000, random_state=0).astype(float)
    expected = (right + a) / (n + a + b)
    # moments of 4,000 prompts give the prior's strength to a few per cent
    np.testing.assert_allclose(shrink(right, n), expected, atol=0.02)


def test_shrinkage_at_its_limits():
    rng = np.random.default_rng(0)
    same = rng.binomial(8, 0.3, 500).astype(float)
    spread = shrink(same, 8)
    assert np.ptp(spread) < 0.15 < np.ptp(same / 8)  # prompts alike: almost all is noise
    apart = np.repeat([0.0, 8.0], 50)
    np.testing.assert_allclose(shrink(apart, 8), apart / 8, atol=0.02)
    assert shrink(np.full(10, 8.0), 8).tolist() == [1.0] * 10
    assert np.allclose(shrink(np.array([4.0, 4.0, 4.0, 4.0]), 8), 0.5)  # less than chance


N = 8  # completions per prompt


def measured(count=6, **changes):
    base = {
        "student_correct": np.array([0.0, 2, 4, 6, 8, 0])[:count],
        "teacher_correct": np.array([8.0, 8, 8, 8, 8, 0])[:count],
        "overlap_mass": np.array([0.9, 0.8, 0.7, 0.6, 0.5, 0.99])[:count],
        "student_entropy": np.full(count, 0.5),
        "teacher_entropy": np.array([0.1, 0.2, 0.3, 0.4, 0.5, 0.6])[:count],
    }
    return Measurements(**base | changes)


def test_each_weight_ranks_by_its_own_measure():
    only = {"advantage": 0.0, "learnability": 0.0, "alignment": 0.0}
    by_advantage = rank_prompts(measured(), N, only | {"advantage": 1.0})
    assert np.argmax(by_advantage.score) == 0
    by_mixed = rank_prompts(measured(), N, only | {"learnability": 1.0})
    assert np.argmax(by_mixed.score) == 2
    by_mass = rank_prompts(
        measured(teacher_entropy=np.full(6, np.nan)), N, only | {"alignment": 1.0}
    )
    assert np.argsort(-by_mass.score).tolist() == [5, 0, 1, 2, 3, 4]
    both = rank_prompts(measured(), N, only | {"alignment": 1.0})
    assert np.argmax(both.score) == 0  # entropy pulls the sixth down


def test_a_missing_measure_has_no_part_in_the_score():
    unknown = np.full(6, np.nan)
    ungraded = measured(student_correct=unknown, teacher_correct=unknown)
    ranking = rank_prompts(ungraded, N)
    assert np.isnan(ranking.advantage).all()
    assert np.isnan(ranking.mixed).all()
    assert np.isnan(ranking.pass_at_k).all()
    alone = rank_prompts(measured(), N, {"advantage": 0.0, "learnability": 0.0, "alignment": 0.5})
    np.testing.assert_allclose(ranking.score, alone.score)


def test_few_completions_per_prompt_have_a_smaller_k():
    few = measured(student_correct=np.array([0.0, 1, 2, 0, 1, 2]))
    ranking = rank_prompts(few, 2)
    assert ranking.pass_at_k.tolist() == [0, 1, 1, 0, 1, 1]
    assert ranking.mixed.tolist() == [0, 1, 0, 0, 1, 0]


def ranked(scores, advantage):
    values = np.array(scores, dtype=float)
    return Ranking(np.array(advantage, dtype=float), values, values, values)


def test_the_choice_keeps_its_fractions_and_never_calls_a_worse_teacher_aligned():
    scores = np.arange(40) / 40
    advantage = np.where(np.arange(40) % 4 == 3, -0.1, 0.5)
    aligned, others = choose_prompts(ranked(scores, advantage), 0.5, seed=0)
    assert (len(aligned), len(others)) == (15, 5)
    assert all(advantage[i] > 0 for i in aligned)
    assert aligned == sorted(aligned, key=lambda i: -scores[i])
    assert aligned[0] == 38
    assert not set(aligned) & set(others)
    assert choose_prompts(ranked(scores, advantage), 0.5, seed=0)[1] == others
    assert choose_prompts(ranked(scores, advantage), 0.5, seed=1)[1] != others
    whole, none = choose_prompts(ranked(scores, advantage), 1.0, seed=0, others_fraction=0.0)
    assert (len(whole), none) == (30, [])
    assert choose_prompts(ranked(scores, -np.ones(40)), 0.5, seed=0) == ([], [])


def test_entropy_of_a_mixture_is_between_its_parts():
    mixture = mixture_entropy(measured(), [0, 1], [0.0, 0.5, 1.0])
    assert mixture.teacher == pytest.approx([0.15, 0.3, 0.45])
    assert mixture.student == pytest.approx([0.5, 0.5, 0.5])


def test_a_template_is_changed_only_beyond_noise():
    base = measured(
        60,
        student_correct=np.full(60, 2.0),
        teacher_correct=np.tile([3.0, 4.0, 5.0], 20),
        overlap_mass=np.tile([0.79, 0.81], 30),
        student_entropy=np.full(60, 0.5),
        teacher_entropy=np.full(60, 0.5),
    )
    noise = np.tile([1.0, -1.0, 0.0, 0.0, 1.0, -1.0], 10)
    same = replace(
        base,
        teacher_correct=base.teacher_correct + noise,
        overlap_mass=base.overlap_mass + noise / 50,
    )
    closer = replace(base, overlap_mass=base.overlap_mass + 0.1)
    better = replace(
        base, teacher_correct=base.teacher_correct + 2 + noise, overlap_mass=base.overlap_mass - 0.3
    )
    worse = replace(
        base,
        teacher_correct=base.teacher_correct - 2 + noise,
        overlap_mass=base.overlap_mass + 0.15,
    )
    for others, expected in (
        ({"same": same}, "now"),
        ({"closer": closer}, "closer"),
        ({"worse": worse}, "now"),
        ({"closer": closer, "better": better, "worse": worse}, "better"),
    ):
        name, results = compare_templates({"now": base, **others}, 8)
        assert name == expected
        assert [t.name for t in results] == ["now", *others]
        assert results[0].accuracy_difference.value == results[0].overlap_difference.value == 0


def run_config(folder, **changes):
    data = demo_config(folder / "run")
    chosen = {"output": str(folder / "sel.jsonl"), "limit": 24, "n": 4}
    return data | {"select": chosen | changes}


def rows_in(path):
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def test_measures_are_those_of_each_prompt_alone(tmp_path):
    cfg = config.parse(run_config(tmp_path))
    pair = load_pair(cfg)
    prompts = load_prompts(
        cfg.prompts.path, pair.tokenizer, template=None, chat={}, max_tokens=32, limit=3
    ).prompts
    student = HFSampler(pair.student, Decoding(24), stop=pair.stop, capture=4)
    setup = MeasurementSetup(
        student=student,
        teacher_sampler=HFSampler(pair.teacher, Decoding(24), stop=pair.teacher_stop, capture=1),
        teacher=LocalTeacher(pair.teacher),
        grader=make_grader("exact", [p.answer for p in prompts]),
        decode=make_decoder(pair.tokenizer),
        n=2,
        k=4,
    )
    measurements = measure_prompts(setup, prompts, (0, 9))
    for index, prompt in enumerate(prompts):
        rollouts = student.sample([prompt], n=2, key=(0, 9))
        masses, entropies = [], []
        for r in rollouts:
            ids = torch.tensor([[*prompt.ids, *r.ids.tolist()]])
            logits = pair.teacher.model(input_ids=ids).logits[0, len(prompt.ids) - 1 : -1]
            theirs = logits[:, : pair.teacher.vocab].double().softmax(-1)
            top = theirs.topk(4).indices.tolist()
            for t in range(len(r)):
                shared = [j for j, i in enumerate(r.topk_ids[t].tolist()) if i in top[t]]
                masses.append(sum(np.exp(float(r.topk_logp[t, j])) for j in shared))
            entropies += (-(theirs * theirs.log()).sum(-1)).tolist()
        assert measurements.overlap_mass[index] == pytest.approx(np.mean(masses), abs=FLOAT32_SUM)
        assert measurements.teacher_entropy[index] == pytest.approx(
            np.mean(entropies), abs=FLOAT32_SUM
        )
        right = [setup.decode(r.ids.tolist()).split()[-1] == prompt.answer for r in rollouts]
        assert measurements.student_correct[index] == sum(right)
    assert (measurements.teacher_correct == 2).all()  # the demo's teacher answers 98.8 %


def teacher_of_another_template(folder):
    shutil.copytree(PAIR / "teacher", folder / "teacher")
    tokenizer = AutoTokenizer.from_pretrained(folder / "teacher")
    tokenizer.chat_template = tokenizer.chat_template.replace("<user>", "<user> so")
    tokenizer.save_pretrained(folder / "teacher")
    return folder / "teacher"


def test_the_command_writes_prompts_that_say_why(tmp_path, monkeypatch):
    monkeypatch.setattr("opd.commands.select.templates.TEMPLATE_PROMPTS", 4)
    data = run_config(tmp_path, templates=["{problem} then"])
    data["teacher"]["model"] = str(teacher_of_another_template(tmp_path))
    known = rows_in(data["prompts"]["path"])
    leak = tmp_path / "leak.jsonl"
    leak.write_text(json.dumps({"problem": known[7]["problem"].upper(), "answer": "1"}) + "\n")
    data["select"]["against"] = [str(leak)]
    record = run_select(config.parse(data))
    rows = rows_in(tmp_path / "sel.jsonl")
    assert len(rows) == 12
    assert [r["why"].split(";")[0] for r in rows].count("aligned") == 9
    by_problem = {row["problem"]: row["answer"] for row in known}
    assert all(by_problem[r["problem"]] == r["answer"] for r in rows)
    assert all(r["measured"]["advantage"] > 0 for r in rows if r["why"].startswith("aligned"))
    (only,) = record["leaks"]
    assert (only["row"], only["label"], only["exact"]) == (7, "leak", True)
    tokenizer = load_pair(config.parse(data)).tokenizer
    again = load_prompts(
        str(tmp_path / "sel.jsonl"), tokenizer, template=None, chat={}, max_tokens=32
    )
    assert len(again.prompts) == 12
    names = [t["name"] for t in record["templates"]]
    assert names == ["prompts.template", "{problem} then", "the teacher's chat template"]
    page = (tmp_path / "sel.html").read_text()
    assert "{problem} then" in page
    assert "Entropy in nats by fraction" in page
    twin = json.loads((tmp_path / "sel.json").read_text())
    assert list(twin["sections"]) == ["verdict", "groups", "templates", "leaks"]


def test_parquet_and_prompts_without_answers(tmp_path):
    import pyarrow.parquet as pq

    data = run_config(tmp_path, output=str(tmp_path / "sel.parquet"))
    rows = rows_in(data["prompts"]["path"])[:20]
    bare = tmp_path / "bare.jsonl"
    bare.write_text("".join(json.dumps({"prompt": r["problem"]}) + "\n" for r in rows))
    data["prompts"]["path"] = str(bare)
    record = run_select(config.parse(data))
    table = pq.read_table(tmp_path / "sel.parquet").to_pylist()
    assert len(table) == 10
    assert "advantage" not in table[0]["measured"]
    assert table[0]["measured"]["overlap_mass"] > 0.9
    assert record["ranking"]["advantage"] == [None] * 20
    assert len(select_document(record, source="prompts.jsonl").sections) == 2


def test_nothing_to_learn_is_an_error(tmp_path):
    data = run_config(tmp_path)
    data["teacher"] = data["student"]
    rows = [r | {"answer": "never"} for r in rows_in(data["prompts"]["path"])[:20]]
    path = tmp_path / "never.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    data["prompts"]["path"] = str(path)
    with pytest.raises(UserError, match="nothing to learn from it here"):
        run_select(config.parse(data))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("select.output=x.csv", "must end in"),
    ],
)
def test_settings_that_cannot_work_are_refused(tmp_path, change, message):
    with pytest.raises(UserError, match=message):
        config.parse(run_config(tmp_path), [change])
