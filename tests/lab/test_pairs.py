"""The study of the check: a balanced random design, models by construction, resumable records."""

import json
import os
import re
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from opd import config
from opd_lab.pairs.architectures import CONFIGS, Architecture, add_noise, random_model, scale_logits
from opd_lab.pairs.design import BLOCKS, EVALUATIONS_PER_RUN, FULL_RATES, REPEAT, plan
from opd_lab.pairs.kinds import KINDS, STUDENTS, TEACHERS
from opd_lab.pairs.queue import records_in, work
from opd_lab.pairs.setting import SETTINGS
from opd_lab.runs import Task, run_config
from opd_lab.worlds.generated import sample_world


def test_settings_are_as_broad_as_promised():
    assert len(SETTINGS) >= 10
    assert len({s.name for s in SETTINGS}) == len(SETTINGS)
    assert len({s.world.family.name for s in SETTINGS}) >= 8
    assert len({s.world.tokenization for s in SETTINGS}) >= 3
    assert len({s.architecture.kind for s in SETTINGS}) >= 3
    widths = {s.architecture.width for s in SETTINGS} | {s.large.width for s in SETTINGS}
    assert min(widths) == 64
    assert max(widths) == 256


def test_kinds_have_their_parents_and_are_used():
    assert {k.parent for k in KINDS.values() if k.parent} <= set(KINDS)
    assert set(STUDENTS) | set(TEACHERS) <= set(KINDS)


@pytest.mark.parametrize("block", BLOCKS)
def test_design_is_balanced_and_a_function_of_block_and_index(block):
    runs = [plan(block, i) for i in range(300)]
    assert runs == [plan(block, i) for i in range(300)]
    counts = Counter(run.setting.name for run in runs[:97])
    assert max(counts.values()) - min(counts.values()) <= 1
    assert all(run.student != run.teacher for run in runs)
    assert set(TEACHERS) == {run.teacher for run in runs}


def test_blocks_share_no_models_and_no_seeds(tmp_path):
    fit, fresh = ([plan(block, i) for i in range(600)] for block in ("fit", "fresh"))
    assert not {r.seed for r in fit} & {r.seed for r in fresh}
    assert {r.model_seed for r in fit} != {r.model_seed for r in fresh}
    assert [r.changes for r in fit] != [r.changes for r in fresh]


def test_a_repeated_run_differs_in_its_seed_alone():
    for index in range(40):
        fit, again = (plan(block, index) for block in ("fit", REPEAT))
        assert again.seed != fit.seed
        assert again.model_seed == fit.model_seed
        assert replace(again, block="fit") == fit


def test_settings_of_runs_cover_two_decades_and_are_accepted(tmp_path):
    task = Task(SETTINGS[0].world, train=8, test=8)
    rates, steps, adapters = [], [], 0
    for index in range(200):
        run = plan("fit", index)
        data = run_config(tmp_path, tmp_path, task, task.files(0, tmp_path), 0, tmp_path / "out")
        cfg = config.parse(data, run.changes)
        steps.append(cfg.train.steps)
        if cfg.student.lora is None:
            rates.append(cfg.optim.lr)
        else:
            adapters += 1
        assert cfg.eval[0].every * EVALUATIONS_PER_RUN == cfg.train.steps
        assert cfg.optim.warmup < cfg.eval[0].every
    assert 30 < adapters < 100
    assert min(steps) < 50
    assert max(steps) > 200
    assert FULL_RATES[0] < min(rates) < 1.5 * FULL_RATES[0]
    assert FULL_RATES[1] / 1.5 < max(rates) < FULL_RATES[1]


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda s: s.name)
def test_a_saved_tokenizer_is_loaded_as_it_was(setting, tmp_path):
    """Some model types make `AutoTokenizer` put their own tokenizer in its place."""
    tokenizer = setting.world.tokenizer()
    model = random_model(replace(setting.architecture, width=64), tokenizer, seed=0)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    for problem in setting.world.problems(5, 0):
        text = setting.world.solve(problem, 1, np.random.default_rng(0))
        ids = tokenizer(text, add_special_tokens=False).input_ids
        assert loaded(text, add_special_tokens=False).input_ids == ids
        assert loaded.decode(ids) == text


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("tied", [True, False])
def test_logits_scale_and_noise_is_noise(kind, tied):
    tokenizer = sample_world("graph", 1, "word").tokenizer()
    architecture = Architecture(kind, 64, tied=tied)
    model, same = (random_model(architecture, tokenizer, seed=3).eval() for _ in range(2))
    ids = torch.arange(3, 11)[None]
    with torch.no_grad():
        before = model(ids).logits
        assert torch.equal(same(ids).logits, before)
        scale_logits(model, 2.5)
        torch.testing.assert_close(model(ids).logits, 2.5 * before, rtol=1e-4, atol=1e-4)
        add_noise(same, 0.2, seed=1)
        assert not torch.allclose(same(ids).logits, before)


def test_work_goes_on_where_it_stopped(tmp_path):
    runs = [plan("fit", i) for i in range(4)]

    def measure(run):
        if run.index == 2:
            raise KeyboardInterrupt
        return {"index": run.index, "block": run.block}

    done = []
    with pytest.raises(KeyboardInterrupt):
        done += list(work(runs, measure, tmp_path))
    assert [r["index"] for r in records_in(tmp_path)] == [0, 1]
    claim = tmp_path / "fit-0002.claim"
    assert claim.read_text() == str(os.getpid())
    assert [r["index"] for r in work(runs, lambda r: {"index": r.index}, tmp_path)] == [3]
    claim.write_text("999999999")  # no such process
    assert [r["index"] for r in work(runs, lambda r: {"index": r.index}, tmp_path)] == [2]
    assert json.loads((tmp_path / "fit-0002.json").read_text()) == {"index": 2}
    assert not list(tmp_path.glob("*.claim"))


@pytest.mark.parametrize("task", ["sort", "reverse", "add", "initials", "largest"])
def test_real_tasks_keep_held_out_problems_apart_and_answer_them_rightly(task):
    from opd_lab.pairs.real import problems

    splits = {split: problems(task, split, 60) for split in ("train", "sft", "heldout")}
    held_out = {question for question, _ in splits["heldout"]}
    assert held_out.isdisjoint(q for split in ("train", "sft") for q, _ in splits[split])
    for question, answer in splits["train"]:
        words = re.findall(r"\w+", question.partition(": ")[2] or question)
        numbers = [int(word) for word in words if word.isdigit()]
        expected = {
            "sort": ", ".join(map(str, sorted(numbers))),
            "reverse": " ".join(words[::-1]),
            "add": str(sum(numbers)),
            "initials": " ".join(word[0] for word in words),
            "largest": str(max(numbers, default=0)),
        }
        assert answer == expected[task]


def test_real_runs_with_a_part_have_seeds_of_their_own_and_are_of_both_blocks_tasks():
    from opd_lab.pairs.commands import _run_of
    from opd_lab.pairs.real import BLOCK, PART_BLOCK, PART_RUNS, RUNS

    assert {run.block for run in PART_RUNS} == {PART_BLOCK}
    assert {run.block for run in RUNS} == {BLOCK}
    assert {run.seed for run in RUNS}.isdisjoint(run.seed for run in PART_RUNS)
    assert not {run.task for run in PART_RUNS} <= {run.task for run in RUNS}
    assert _run_of(PART_BLOCK, len(PART_RUNS)) is None


def test_a_real_run_whose_weights_are_not_named_is_left_out(monkeypatch):
    from opd_lab.pairs.real import FOLDERS, RUNS

    for name in FOLDERS.values():
        monkeypatch.delenv(name, raising=False)
    assert not any(run.available for run in RUNS)
    monkeypatch.setenv("OPD_SMOLLM2", "somewhere")
    assert {
        weights for run in RUNS if run.available for weights, _ in (run.student, run.teacher)
    } == {"smollm2"}
