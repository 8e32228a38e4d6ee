"""Advantages, the choice of rollouts, and runs compared prompt by prompt."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from opd.commands.report import compare
from opd.core import stats
from opd.errors import UserError
from opd.reports.compare_page import compare_document, cumulative
from opd.reports.eval_sets import why_not_comparable
from opd.reports.read import read_run
from opd.reports.scored_rollouts import scored_rollouts
from opd.reports.token_view import EDGES, SHADES, shade, token_view
from opd.run.rollouts import decode, encode
from opd.types import Scores


def test_advantage_on_the_support_against_a_loop(good):
    for scored in scored_rollouts(read_run(good), 4):
        rollout, scores = scored.rollout, scored.scores
        for t, token in enumerate(rollout.ids):
            where = [i for i, v in enumerate(rollout.topk_ids[t]) if v == token]
            if not where:
                assert np.isnan(scored.advantage[t])
                continue
            p = np.exp(rollout.topk_logp[t].astype(float))
            q = np.exp(scores.support[t].astype(float))
            expected = np.log(q[where[0]] / q.sum()) - np.log(p[where[0]] / p.sum())
            assert scored.advantage[t] == pytest.approx(expected, abs=1e-9)


def test_advantage_is_exact_where_the_teacher_was_normalised(make_run):
    scored = scored_rollouts(read_run(make_run(sampled=True)), 1)[0]
    assert scored.exact
    np.testing.assert_allclose(
        scored.advantage, scored.scores.sampled.astype(float) - scored.rollout.logp.astype(float)
    )


def test_rollouts_without_scores_are_left_out(make_run):
    path = make_run()
    file = path / "rollouts" / "step-1.parquet"
    step = decode(file.read_bytes())
    file.write_bytes(encode(replace(step, scores=[Scores(), *step.scores[1:]])))
    assert len(scored_rollouts(read_run(path), 1)) == len(step.batch) - 1


def test_view_shows_worst_median_and_best_of_early_middle_and_late(good):
    run = read_run(good)
    view = token_view(run)
    assert [r.title for r in view.items] == [
        f"{part}, {rank}"
        for part in ("Early", "Middle", "Late")
        for rank in ("worst", "median", "best")
    ]
    early = [s.mean for step in range(1, 6) for s in scored_rollouts(run, step)]
    assert f"{min(early):.3g}".replace("-", "\u2212") in view.items[0].note
    assert f"{max(early):.3g}".replace("-", "\u2212") in view.items[2].note


@pytest.mark.parametrize("value", [0.0, 0.09, 0.1, 0.5, 2.0, 9.0, -0.1, -0.5, -2.0, -0.01])
def test_shade_is_symmetric_and_monotone(value):
    order = {name: i for i, name in enumerate(SHADES)}
    assert order[shade(value)] + order[shade(-value)] == 2 * order["z"]
    assert (order[shade(value)] > order["z"]) == (value >= EDGES[0])
    assert shade(float("nan")) == "out"


def test_paired_difference_is_that_of_core_stats(make_run, tmp_path):
    a, b = (read_run(make_run(n, accuracy={0: 0.2, 20: x})) for n, x in (("a", 0.4), ("b", 0.7)))
    verdict = compare_document([a, b]).record()["sections"]["verdict"]["parts"][0]
    expected = stats.paired(
        a.evals[0].student[-1].per_prompt, b.evals[0].student[-1].per_prompt
    ).difference
    values = verdict["sentences"][0]["values"]
    assert (values["difference"], values["low"]) == (expected.value, expected.low)
    assert verdict["headline"] == "b is better than a on task."


@pytest.mark.parametrize(
    ("ends", "tone", "headline"),
    [
        ((0.4, 0.7, 0.8), "good", "c is better than a on task."),
        ((0.8, 0.4, 0.4), "good", "a is better than the other 2 on task."),
        ((0.8, 0.4, 0.8), "unclear", "No measurable difference between a and c on task."),
        ((0.8, 0.4), "bad", "b is worse than a on task."),
    ],
)
def test_the_headline_is_about_all_runs(make_run, ends, tone, headline):
    runs = [
        read_run(make_run(name, accuracy={0: 0.2, 20: end}))
        for name, end in zip("abc", ends, strict=False)
    ]
    verdict = compare_document(runs).record()["sections"]["verdict"]["parts"][0]
    assert (verdict["tone"], verdict["headline"]) == (tone, headline)


def test_runs_without_an_evaluation_have_no_verdict(good):
    run = read_run(good)
    empty = replace(run, metrics=[], timings=[], evals=[replace(run.evals[0], student=[])])
    document = compare_document([empty, replace(empty, path=run.path.with_name("other"))])
    assert document.sections[0].parts[0].headline == "No set could be compared prompt by prompt."


def test_students_that_began_apart_are_named_and_gains_shown(make_run):
    runs = [read_run(make_run(n, accuracy={0: x, 20: 0.8})) for n, x in (("a", 0.2), ("b", 0.6))]
    sections = compare_document(runs).record()["sections"]
    texts = [s["text"] for s in sections["verdict"]["parts"][0]["sentences"]]
    assert "b started with another student than a: compare the gains." in texts
    gained = [row[4]["shown"] for row in sections["accuracy"]["parts"][0]["rows"]]
    assert gained == ["+60.0 points", "+20.0 points"]


def test_sets_of_other_prompts_are_not_paired(make_run):
    a, b = (read_run(make_run(n)) for n in ("a", "b"))
    assert why_not_comparable(a.evals[0], b.evals[0]) is None
    for e in b.evals[0].student:
        e.key["prompts"] = "another digest"
    assert why_not_comparable(a.evals[0], b.evals[0]) == "the prompts differ"


def test_cost_is_counted_up_to_the_step(good):
    run = read_run(good)
    np.testing.assert_allclose(
        cumulative(run, "train/tokens", np.array([0.0, 5.0, 20.0])), [0, 500, 2000]
    )


def test_comparison_lists_differing_keys_only(make_run, tmp_path):
    paths = [make_run("a"), make_run("b", seed=1)]
    sidecar = compare(paths, tmp_path / "c.html").with_suffix(".json")
    rows = json.loads(sidecar.read_text())["sections"]["setup"]["parts"][0]["rows"]
    keys = [row[0] for row in rows]
    assert "train.seed" in keys
    assert "loss.k" not in keys


def test_one_run_is_nothing_to_compare(good):
    with pytest.raises(UserError, match="2 to 6 run folders"):
        compare_document([read_run(good)])


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(UserError, match="is no run folder"):
        read_run(tmp_path)
