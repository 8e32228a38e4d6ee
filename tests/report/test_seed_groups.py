"""`opd compare` with groups of seeds: which runs are one arm, and a verdict over seeds."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats as scipy_stats

from opd.commands.report import compare_and_write, comparison_text
from opd.core.stats import difference_of_means
from opd.errors import UserError
from opd.reports.compare_page import compare_document
from opd.reports.read import read_run
from opd.reports.seed_groups import arms, grouped_verdict, mean_line
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


def test_seeds_without_spread_make_no_difference_certain(make_run):
    assert np.isinf(difference_of_means([0.4, 0.4], [0.45, 0.45]).low)
    runs = []
    for lr, right in ((1e-6, 0.4), (2e-6, 0.5)):
        for seed in (0, 1):
            accuracy, settings = {0: 0.2, 20: right}, {"optim": {"lr": lr}}
            run = make_run(f"{lr}-{seed}", seed=0, accuracy=accuracy, settings=settings)
            runs.append(read_run(run))
    for seed, run in enumerate(runs):
        run.config["train"]["seed"] = seed % 2
    verdict = grouped_verdict(arms(runs, [run.name for run in runs]), [runs[0].evals[0].label])[0]
    assert verdict.tone == "unclear"
    assert "equal accuracies, so there is no interval" in verdict.sentences[0].evidence
    assert verdict.tiles[0].number.note == "2 seeds, all equal"  # not "95% interval 40.0 to 40.0%"


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


def group(good, lr: float, *tasks):
    """Runs that differ by their seed alone, one per held-out set."""
    run = read_run(good)
    optim = run.config["optim"] | {"lr": lr}
    return [
        replace(
            run,
            path=run.path.with_name(f"{lr:g}-{seed}"),
            config=run.config | {"optim": optim, "train": run.config["train"] | {"seed": seed}},
            evals=[task],
        )
        for seed, task in enumerate(tasks)
    ]


def verdict_of(runs):
    return grouped_verdict(arms(runs, [run.name for run in runs]), ["task"])[0]


@pytest.mark.parametrize("first", [True, False])
def test_a_group_that_was_never_evaluated_is_not_compared(good, first):
    task = read_run(good).evals[0]
    tasks = [replace(task, student=[]), task][:: 1 if first else -1]
    verdict = verdict_of([*group(good, 1e-6, *tasks[:1] * 2), *group(good, 2e-6, *tasks[1:] * 2)])
    assert verdict.headline == "No group could be compared on task."
    assert "no run of one of them has evaluated it" in verdict.sentences[0].text


def test_groups_with_other_prompts_are_not_compared(good):
    task = read_run(good).evals[0]
    other = replace(task, student=[replace(e, key=e.key | {"prompts": "x"}) for e in task.student])
    verdict = verdict_of([*group(good, 1e-6, task, task), *group(good, 2e-6, other, other)])
    assert verdict.headline == "No group could be compared on task."
    assert verdict.sentences[0].text.endswith("and 1 more seed: the prompts differ.")


def test_a_seed_that_is_not_as_far_as_the_others_is_named(good):
    task = read_run(good).evals[0]
    early = replace(task, student=task.student[:1])
    verdict = verdict_of([*group(good, 1e-6, task, early), *group(good, 2e-6, task, task)])
    text = " ".join(s.text for s in verdict.sentences)
    assert "were not evaluated after the same steps: 1e-06-0 after 20, 1e-06-1 after 0." in text
    assert text.count("the same steps") == 1
