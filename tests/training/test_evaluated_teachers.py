"""Held-out accuracy by teacher: of the student on each one's prompts, and of the teacher itself."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from opd import config
from opd.commands.eval import evaluate_target, record
from opd.data.prompts import PromptSet
from opd.demo.run_config import PAIR
from opd.errors import UserError
from opd.reports.compare_page import compare_document
from opd.reports.markdown import render_markdown
from opd.reports.read import read_run
from opd.reports.run_page import run_document
from opd.run.console import Console
from opd.run.jsonl import read_jsonl
from opd.samplers.routed import RoutedSampler
from opd.setup.preflight import read_inputs
from opd.setup.samplers import routed_eval_sampler
from opd.training.eval_task import EvalTask
from opd.types import Prompt
from support.runs import run_config, run_to_end
from support.teacher_runs import several

SETTINGS = {"n": 1, "temperature": 1.0, "top_p": 1.0, "every": 2, "grader": "exact"}


def evaluated(folder, teachers=("big", "small")):
    """Two models of this process as teachers, and a held-out set with prompts of either."""
    data = several(folder, steps=2, rollout={"max_new_tokens": 16})
    data["teachers"] = {
        name: {"model": str(PAIR / ("teacher" if name == "big" else "student"))}
        for name in ("big", "small")
    }
    data["prompts"]["files"][1]["teacher"] = "small"
    source = Path(run_config(folder)["eval"][0]["path"])
    rows = [json.loads(line) for line in source.read_text().splitlines()[:8]]
    mixed = folder.parent / "mixed.jsonl"
    named = [row | {"teacher": teachers[i % 2]} for i, row in enumerate(rows)]
    mixed.write_text("".join(json.dumps(row) + "\n" for row in named))
    data["eval"] = [
        {"path": str(mixed), "name": "mixed", **SETTINGS},
        {"path": str(source), "name": "bigs", "limit": 4, "teacher": "big", **SETTINGS},
    ]
    return data


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    return folder, run_to_end(evaluated(folder))


def right(folder, name, step=0):
    saved = json.loads((folder / "eval" / f"step-{step}-{name}.json").read_text())
    return [row[0] for row in saved["correct"]]


class Naming:
    """A sampler whose rollouts say whose they are."""

    def __init__(self, name):
        self.name = name

    def sample(self, prompts, *, n, key, limit=None):
        return [(self.name, p.index, i) for p in prompts for i in range(n)]

    def sync(self, version):
        pass


def test_each_prompt_is_answered_by_its_teacher_in_the_order_of_the_set():
    routed = RoutedSampler({"a": Naming("a"), "b": Naming("b")}, {5: "b", 7: "a", 9: "b"})
    prompts = [Prompt(index, (1,), "") for index in (7, 5, 9)]
    assert routed.sample(prompts, n=2, key=(0,)) == [
        ("a", 7, 0), ("a", 7, 1), ("b", 5, 0), ("b", 5, 1), ("b", 9, 0), ("b", 9, 1),
    ]  # fmt: skip


def test_a_set_with_prompts_of_nobody_is_not_answered():
    sampler = routed_eval_sampler({"a": lambda decoding, k: Naming("a")})
    prompts = PromptSet((Prompt(0, (1,), ""), Prompt(1, (1,), "")), 0, 2, None, "")
    task = EvalTask("set", prompts, None, None, 1, 0, ("a", "a"))
    assert sampler(task) is not None
    for teachers in (("a", ""), ("a", "mixture"), ()):
        assert sampler(replace(task, teachers=teachers)) is None


def test_metrics_summary_and_report_are_by_teacher(finished):
    folder, summary = finished
    values = {}
    for row in read_jsonl(folder / "metrics.jsonl"):
        values |= {n: v for n, v in row.items() if n.endswith("eval/mixed/accuracy")}
    last = right(folder, "mixed", step=2)
    assert values["teachers/big/eval/mixed/accuracy"] == sum(last[::2]) / 4
    assert values["teachers/small/eval/mixed/accuracy"] == sum(last[1::2]) / 4
    parts = summary["sets"]["mixed"]["teachers"]
    assert parts["small"]["after"]["value"] == sum(last[1::2]) / 4
    assert parts["big"]["teacher"]["n"] == 4
    assert "bigs" in summary["sets"]
    text = render_markdown(run_document(read_run(folder)))
    assert "mixed, prompts of big" in text
    assert "bigs, prompts of big" not in text  # they all are
    assert "All answers on mixed" in text
    assert "All answers on mixed, prompts of big" not in text  # they are shown with the whole


def test_eval_and_compare_are_by_teacher(finished, capsys):
    folder, _ = finished
    results = evaluate_target(folder, (), "quiet")
    labels = [record(r)["result"] for r in results]
    assert labels == ["mixed", "mixed, prompts of big", "mixed, prompts of small", "bigs"]
    whole, *parts, _ = results
    assert sum(p.student.accuracy.value for p in parts) / 2 == whole.student.accuracy.value
    assert parts[0].teacher.accuracy.n == 4
    text = render_markdown(compare_document([read_run(folder), read_run(folder)]))
    assert "mixed, prompts of small" in text


def test_an_unknown_teacher_of_a_held_out_row_is_named(tmp_path):
    data = evaluated(tmp_path / "run", teachers=("big", "maths"))
    with pytest.raises(UserError, match=r"mixed\.jsonl, line 2: 'maths' is no teacher.*big, small"):
        read_inputs(config.parse(data), Console("quiet"))
    alone = run_config(tmp_path / "run")
    alone["eval"][0]["teacher"] = "big"
    with pytest.raises(UserError, match=r"eval\.N\.teacher names one of `teachers`"):
        config.parse(alone)
