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
from opd.config import Select
from opd.data.graders import make_grader
from opd.data.prompts import load_prompts
from opd.demo.run_config import PAIR, demo_config
from opd.errors import UserError
from opd.models.tokenizers import make_decoder
from opd.recipes.select import (
    Bench,
    Measured,
    Ranked,
    choose,
    compare_templates,
    measure_prompts,
    mixed_at,
    mixture,
    pass_at,
    rank,
    shrunk,
)
from opd.reports.select_page import select_document
from opd.samplers.hf import Decoding, HFSampler
from opd.setup.pair import load_pair
from opd.teachers.local import LocalTeacher

FLOAT32_SUM = 1e-5  # a float32 model read twice, in batches of other shapes


@pytest.mark.parametrize("right", range(6))
@pytest.mark.parametrize("k", [1, 2, 5])
def test_pass_and_mixed_are_shares_of_all_draws(right, k):
    outcomes = [1] * right + [0] * (5 - right)
    draws = [sum(d) for d in itertools.combinations(outcomes, k)]
    given = np.array([float(right)])
    assert pass_at(given, 5, k)[0] == pytest.approx(np.mean([d > 0 for d in draws]))
    assert mixed_at(given, 5, k)[0] == pytest.approx(np.mean([0 < d < k for d in draws]))


def test_shrinkage_is_that_of_the_prior_the_prompts_came_from():
    a, b, n = 1.5, 3.0, 8
    right = betabinom.rvs(n, a, b, size=4000, random_state=0).astype(float)
    expected = (right + a) / (n + a + b)
    # moments of 4,000 prompts give the prior's strength to a few per cent
    np.testing.assert_allclose(shrunk(right, n), expected, atol=0.02)


def test_shrinkage_at_its_limits():
    rng = np.random.default_rng(0)
    same = rng.binomial(8, 0.3, 500).astype(float)
    same += 0
    spread = shrunk(same, 8)
    assert np.ptp(spread) < 0.15 < np.ptp(same / 8)  # prompts alike: almost all is noise
    apart = np.repeat([0.0, 8.0], 50)
    np.testing.assert_allclose(shrunk(apart, 8), apart / 8, atol=0.02)
    assert shrunk(np.full(10, 8.0), 8).tolist() == [1.0] * 10
    assert np.allclose(shrunk(np.array([4.0, 4.0, 4.0, 4.0]), 8), 0.5)  # less than chance


def spec(**changes):
    return Select(output="x.jsonl", **{"n": 4, "k": 2} | changes)


def measured(count=6, **changes):
    base = {
        "student": np.array([0.0, 1, 2, 3, 4, 0])[:count],
        "teacher": np.array([4.0, 4, 4, 4, 4, 0])[:count],
        "mass": np.array([0.9, 0.8, 0.7, 0.6, 0.5, 0.99])[:count],
        "student_entropy": np.full(count, 0.5),
        "teacher_entropy": np.array([0.1, 0.2, 0.3, 0.4, 0.5, 0.6])[:count],
    }
    return Measured(**base | changes)


def test_each_weight_ranks_by_its_own_measure():
    only = {"advantage": 0.0, "learnability": 0.0, "alignment": 0.0}
    by_advantage = rank(measured(), spec(**only | {"advantage": 1.0}))
    assert np.argmax(by_advantage.score) == 0
    by_mixed = rank(measured(), spec(**only | {"learnability": 1.0}))
    assert np.argmax(by_mixed.score) == 2
    by_mass = rank(measured(teacher_entropy=np.full(6, np.nan)), spec(**only | {"alignment": 1.0}))
    assert np.argsort(-by_mass.score).tolist() == [5, 0, 1, 2, 3, 4]
    both = rank(measured(), spec(**only | {"alignment": 1.0}))
    assert np.argmax(both.score) == 0  # entropy pulls the sixth down


def test_what_is_missing_has_no_part_in_the_score():
    nothing = np.full(6, np.nan)
    found = rank(measured(student=nothing, teacher=nothing), spec())
    assert np.isnan(found.advantage).all()
    alone = rank(measured(), spec(advantage=0.0, learnability=0.0))
    np.testing.assert_allclose(found.score, alone.score)


def ranked(scores, advantage):
    values = np.array(scores, dtype=float)
    return Ranked(np.array(advantage, dtype=float), values, values, values)


def test_the_choice_keeps_its_shares_and_never_calls_a_worse_teacher_aligned():
    scores = np.arange(40) / 40
    advantage = np.where(np.arange(40) % 4 == 3, -0.1, 0.5)
    aligned, others = choose(ranked(scores, advantage), spec(keep=0.5, ood_share=0.25), seed=0)
    assert (len(aligned), len(others)) == (15, 5)
    assert all(advantage[i] > 0 for i in aligned)
    assert aligned == sorted(aligned, key=lambda i: -scores[i])
    assert aligned[0] == 38
    assert not set(aligned) & set(others)
    assert choose(ranked(scores, advantage), spec(keep=0.5), seed=0)[1] == others
    assert choose(ranked(scores, advantage), spec(keep=0.5), seed=1)[1] != others
    whole, none = choose(ranked(scores, advantage), spec(keep=1.0, ood_share=0.0), seed=0)
    assert (len(whole), none) == (30, [])
    assert choose(ranked(scores, -np.ones(40)), spec(), seed=0) == ([], [])


def test_entropy_of_a_mixture_is_between_its_parts():
    found = mixture(measured(), [0, 1], [0.0, 0.5, 1.0])
    assert found.teacher == pytest.approx([0.15, 0.3, 0.45])
    assert found.student == pytest.approx([0.5, 0.5, 0.5])


def test_a_template_is_changed_only_beyond_noise():
    base = measured(
        60,
        student=np.full(60, 2.0),
        teacher=np.tile([3.0, 4.0, 5.0], 20),
        mass=np.tile([0.79, 0.81], 30),
        student_entropy=np.full(60, 0.5),
        teacher_entropy=np.full(60, 0.5),
    )
    noise = np.tile([1.0, -1.0, 0.0, 0.0, 1.0, -1.0], 10)
    same = replace(base, teacher=base.teacher + noise, mass=base.mass + noise / 50)
    closer = replace(base, mass=base.mass + 0.1)
    better = replace(base, teacher=base.teacher + 2 + noise, mass=base.mass - 0.3)
    worse = replace(base, teacher=base.teacher - 2 + noise, mass=base.mass + 0.15)
    for others, picked in (
        ({"same": same}, "now"),
        ({"closer": closer}, "closer"),
        ({"worse": worse}, "now"),
        ({"closer": closer, "better": better, "worse": worse}, "better"),
    ):
        name, tried = compare_templates({"now": base, **others}, 8)
        assert name == picked
        assert [t.name for t in tried] == ["now", *others]
        assert tried[0].better.value == tried[0].closer.value == 0


def run_config(folder, **changes):
    data = demo_config(folder / "run")
    chosen = {"output": str(folder / "sel.jsonl"), "limit": 24, "n": 4, "k": 2}
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
    bench = Bench(
        student=student,
        writer=HFSampler(pair.teacher, Decoding(24), stop=pair.teacher_stop, capture=1),
        teacher=LocalTeacher(pair.teacher),
        grader=make_grader("exact", [p.answer for p in prompts]),
        decode=make_decoder(pair.tokenizer),
        n=2,
        k=4,
    )
    found = measure_prompts(bench, prompts, (0, 9))
    for place, prompt in enumerate(prompts):
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
        assert found.mass[place] == pytest.approx(np.mean(masses), abs=FLOAT32_SUM)
        assert found.teacher_entropy[place] == pytest.approx(np.mean(entropies), abs=FLOAT32_SUM)
        right = [bench.decode(r.ids.tolist()).split()[-1] == prompt.answer for r in rollouts]
        assert found.student[place] == sum(right)
    assert (found.teacher == 2).all()  # the demo's teacher answers 98.8 %


def teacher_of_another_template(folder):
    shutil.copytree(PAIR / "teacher", folder / "teacher")
    tokenizer = AutoTokenizer.from_pretrained(folder / "teacher")
    tokenizer.chat_template = tokenizer.chat_template.replace("<user>", "<user> so")
    tokenizer.save_pretrained(folder / "teacher")
    return folder / "teacher"


def test_the_command_writes_prompts_that_say_why(tmp_path):
    data = run_config(tmp_path, templates=["{problem} then"], template_prompts=4)
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


def test_nothing_to_learn_is_said(tmp_path):
    data = run_config(tmp_path)
    data["teacher"] = data["student"]
    rows = [r | {"answer": "never"} for r in rows_in(data["prompts"]["path"])[:20]]
    path = tmp_path / "never.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    data["prompts"]["path"] = str(path)
    with pytest.raises(UserError, match="nothing to learn from it here"):
        run_select(config.parse(data))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("select.output=x.csv", "must end in"),
        ("select.k=9", "as many responses"),
        ("select={output: x.jsonl, advantage: 0, learnability: 0, alignment: 0}", "all 0"),
    ],
)
def test_settings_that_cannot_work_are_refused(tmp_path, change, says):
    with pytest.raises(UserError, match=says):
        config.parse(run_config(tmp_path), [change])
