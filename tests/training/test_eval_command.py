"""`opd eval`: accuracy, and pass@n where a prompt has several responses."""

from __future__ import annotations

import json

import numpy as np
import pytest

from opd.commands.eval import evaluate_target, record, summary
from opd.reports.terminal import render_text
from support.runs import run_config, run_to_end

SEVERAL = {"n": 3, "limit": 6, "temperature": 1.0, "top_p": 1.0}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run with three responses to each of six held-out prompts."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    data = run_config(folder)
    data["train"]["steps"] = 1
    data["eval"] = [data["eval"][0] | SEVERAL]
    run_to_end(data)
    return folder


def test_of_several_responses_pass_at_n_is_shown(finished):
    accuracy, any_of_three = evaluate_target(finished, [], "quiet")
    saved = json.loads((finished / "eval" / "step-0-sum.json").read_text())
    correct = np.array(saved["correct"])
    assert correct.shape == (6, 3)
    assert any_of_three.label == "sum, pass@3"
    assert accuracy.before.accuracy.value == pytest.approx(correct.mean())
    assert any_of_three.before.accuracy.value == pytest.approx(correct.any(1).mean())
    assert any_of_three.student.accuracy.value == pytest.approx(any_of_three.student.correct.mean())
    changed = any_of_three.student.correct.mean() - correct.any(1).mean()
    assert record(any_of_three)["change"]["value"] == pytest.approx(changed)
    lines = "\n".join(render_text(summary([accuracy, any_of_three])))
    assert "sum, pass@3" in lines


def test_of_one_response_there_is_accuracy_alone(finished):
    assert [r.label for r in evaluate_target(finished, ["eval.0.n=1"], "quiet")] == ["sum"]
