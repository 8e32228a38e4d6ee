"""`opd compare` with groups of seeds: which runs are one arm, and a verdict over seeds."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy import stats as scipy_stats

from opd.commands.report import compare_and_write, comparison_text
from opd.core.stats import difference_of_means
from opd.errors import UserError
from opd.reports.compare_page import compare_document
from opd.reports.read import read_run
from opd.reports.seed_groups import arms, mean_line
from support.html_reports import check_html


@pytest.fixture
def six_runs(make_run):
    """Three seeds of a learning rate, three of another that is better."""
    runs = []
    for lr, rights in ((1e-6, (0.4, 0.43, 0.47)), (2e-6, (0.7, 0.77, 0.8))):
        for seed, right in enumerate(rights):
            path = make_run(
                f"lr{lr:g}-{seed}",
                seed=seed,
                accuracy={0: 0.2, 20: right},
                settings={"optim": {"lr": lr}},
            )
            runs.append(path)
    return runs


def test_runs_that_differ_by_seed_alone_are_an_arm(six_runs):
    runs = [read_run(p) for p in six_runs]
    found = arms(runs, [r.name for r in runs])
    assert [len(arm.runs) for arm in found] == [3, 3]
    assert found[0].name == "lr1e-06-0 and 2 more seeds"


def test_seeds_of_one_configuration_are_compared_run_by_run(six_runs):
    runs = [read_run(p) for p in six_runs[:3]]
    assert [len(arm.runs) for arm in arms(runs, [r.name for r in runs])] == [1, 1, 1]


def test_the_verdict_is_over_seeds(six_runs, tmp_path):
    document, page = compare_and_write(six_runs, tmp_path / "c.html")
    check_html(page.read_text("utf-8"))
    verdict = document.sections[0].parts[0]
    assert verdict.tone == "good"
    assert verdict.headline.startswith("lr2e-06-0 and 2 more seeds is better than lr1e-06-0")
    finals = [[read_run(p).evals[0].final.accuracy.value for p in six_runs[i : i + 3]]
              for i in (0, 3)]  # fmt: skip
    assert verdict.sentences[0].values["value"] == pytest.approx(
        np.mean(finals[1]) - np.mean(finals[0])
    )
    text = comparison_text(document, page, as_json=False)
    assert text.splitlines()[-1] == f"Report: {page}"
    assert "Welch's interval over seeds" in text
    record = json.loads(comparison_text(document, page, as_json=True))
    assert record["verdict"][0]["headline"] == verdict.headline


def test_welch_against_scipy():
    a, b = [0.41, 0.43, 0.47], [0.7, 0.77, 0.8, 0.71]
    ours = difference_of_means(a, b)
    theirs = scipy_stats.ttest_ind(b, a, equal_var=False).confidence_interval(0.95)
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high))
    assert np.isinf(difference_of_means([1.0], b).high)


def test_mean_lines_are_over_the_steps_that_all_have():
    a = (np.array([0.0, 10, 20]), np.array([1.0, 2, 3]))
    b = (np.array([0.0, 20, 30]), np.array([3.0, 5, 7]))
    line = mean_line([a, b], 1)
    assert (line.x.tolist(), line.y.tolist()) == ([0, 20], [2, 4])
    assert (line.low.tolist(), line.high.tolist()) == ([1, 3], [3, 5])
    assert mean_line([a], 1).low is None


def test_disagreements_come_first(make_run):
    runs = [
        read_run(make_run(n, accuracy={0: 0.2, 20: x}, settings={"optim": {"lr": x / 1e6}}))
        for n, x in (("a", 0.4), ("b", 0.7))
    ]
    section = next(s for s in compare_document(runs).sections if s.name == "answers")
    browse = section.parts[0]
    differ = ["differ" in row.tags for row in browse.rows]
    assert differ == sorted(differ, reverse=True)
    assert sum(differ) == 2 * (21 - 12)
    assert dict(browse.counts())["only b right"] == sum(differ)


def test_too_many_arms_are_refused(make_run):
    runs = [
        read_run(make_run(f"r{i}", steps=6, accuracy={0: 0.2}, settings={"optim": {"lr": i / 1e6}}))
        for i in range(1, 8)
    ]
    with pytest.raises(UserError, match="2 to 6 run folders"):
        compare_document(runs)
