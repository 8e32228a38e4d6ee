"""The token view tells what both models say, with a teacher that fits and with one that does not.

The truth is a plain forward of the teacher over the whole vocabulary.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from opd.demo.run_config import PAIR
from opd.models.lm import load_lm
from opd.reports.read import read_run
from opd.reports.scored_rollouts import scored_rollouts
from opd.reports.token_view import shade, token_view
from opd.run.jsonl import read_jsonl
from support.runs import run_config, run_to_end

STEPS = 2


def mismatched_teacher(folder):
    """A teacher that is sure of itself, and of other tokens than the student."""
    settings = AutoConfig.from_pretrained(PAIR / "teacher")
    settings.initializer_range = 1.0
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(settings).save_pretrained(folder)
    AutoTokenizer.from_pretrained(PAIR / "teacher").save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", params=["good", "mismatched"])
def pair(request, tmp_path_factory):
    """A run of each pair, and its teacher."""
    folder = tmp_path_factory.mktemp(request.param)
    good = request.param == "good"
    teacher = PAIR / "teacher" if good else mismatched_teacher(folder / "teacher")
    data = run_config(folder / "run", steps=STEPS, teacher={"model": str(teacher)})
    data["eval"] = []
    run_to_end(data)
    return request.param, folder / "run", load_lm(str(teacher))


def truth(teacher, rollout):
    """log q (T, V) in float64, from a plain forward."""
    ids = torch.tensor([[*rollout.prompt.ids, *rollout.ids.tolist()]])
    with torch.no_grad():
        logits = teacher.model(ids).logits[0, len(rollout.prompt.ids) - 1 : -1, : teacher.vocab]
    return logits.double().log_softmax(-1).cpu().numpy()


def test_colours_and_first_tokens_are_those_of_the_whole_vocabulary(pair):
    name, folder, teacher = pair
    run = read_run(folder)
    scored = [r for step in range(1, STEPS + 1) for r in scored_rollouts(run, step)]
    assert len(scored) == 2 * STEPS
    masses = []
    for each in scored:
        logq, rollout = truth(teacher, each.rollout), each.rollout
        rows = np.arange(len(rollout))
        advantage = logq[rows, rollout.ids] - rollout.logp
        assert each.exact
        np.testing.assert_allclose(each.advantage, advantage, atol=1e-4)
        assert list(map(shade, each.advantage)) == list(map(shade, advantage))
        mass = np.exp(np.take_along_axis(logq, rollout.topk_ids.astype(int), 1)).sum(1)
        np.testing.assert_allclose(each.teacher_mass, mass, atol=1e-4)
        masses += mass.tolist()
    assert np.median(masses) > 0.99 if name == "good" else np.median(masses) < 0.5


def test_the_panel_shows_true_probabilities_and_hatches_where_the_loss_misses_the_teacher(pair):
    name, folder, teacher = pair
    run = read_run(folder)
    rollouts = {
        (r.rollout.prompt.text, len(r.rollout)): r.rollout
        for step in range(1, STEPS + 1)
        for r in scored_rollouts(run, step)
    }
    view = token_view(run)
    hatched = 0
    for item in view.items:
        rollout = rollouts[item.prompt, len(item.details)]
        q = np.exp(truth(teacher, rollout))
        for span, row in zip(item.spans, item.details, strict=True):
            at = q[row["i"]]
            assert row["q"][0][0] == at.argmax()
            assert [p for _, p in row["q"]] == pytest.approx(
                sorted(-at)[:8] * np.array(-1), abs=1e-3
            )
            first = rollout.topk_logp[row["i"], 0]
            assert row["s"][0] == [
                rollout.topk_ids[row["i"], 0],
                pytest.approx(np.exp(first), abs=1e-3),
            ]
            assert ("low" in span.shade.split()) == (row["m"] < 0.5)
            hatched += row["m"] < 0.5
    assert hatched == 0 if name == "good" else hatched > 10
    assert "whole vocabulary" in view.note


def test_only_kept_rollouts_are_scored_for_the_view(tmp_path):
    data = run_config(tmp_path / "run", steps=1, output={"save_every": 10, "rollout_sample": 3})
    data["eval"] = []
    run_to_end(data)
    scores = [r.scores for r in scored_rollouts(read_run(tmp_path / "run"), 1)]
    assert all(s.view is not None and s.sampled is None for s in scores)
    assert len(scores) == 3


def test_what_the_view_adds_is_never_trained_on(tmp_path):
    """The same run with every rollout kept, and with none: the same numbers."""
    logs = []
    for keep in (0, 1000):
        folder = tmp_path / str(keep) / "run"
        data = run_config(folder, steps=STEPS, output={"rollout_sample": keep})
        data["eval"] = []
        run_to_end(data)
        logs.append(read_jsonl(folder / "metrics.jsonl"))
    assert logs[0] == logs[1]
