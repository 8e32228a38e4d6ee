"""Where teacher and student differ: totals against a loop, classes, lines by position."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from opd.reports.charts import heatmaps
from opd.reports.differences import (
    DIGITS,
    PIECE,
    SPACE,
    STOP,
    SYMBOLS,
    WORD,
    difference_tables,
    position_lines,
    token_class,
)
from opd.reports.read import read_run
from opd.reports.token_view import rollouts_by_part
from support.run_folders import good_run


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        (" word", WORD),
        ("ing", PIECE),
        ("12", DIGITS),
        (" 7", DIGITS),
        (".", SYMBOLS),
        (" (", SYMBOLS),
        ("\n\n", SPACE),
        (" ", SPACE),
        ("\u4f60", PIECE),
    ],
)
def test_classes(text, kind):
    assert token_class(text) == kind


def test_totals_are_those_of_a_loop(make_run):
    run = read_run(make_run(sampled=True))
    parts = rollouts_by_part(run)
    classes, tokens = difference_tables(run, parts)
    early = [(r, i) for r in parts["Early"] for i in range(len(r.rollout))]
    total = sum(-r.advantage[i] for r, i in early)
    by_text: dict[str, list[float]] = {}
    for r, i in early:
        by_text.setdefault(run.token_texts[r.rollout.ids[i]], []).append(-r.advantage[i])
    assert total > 0
    for row in tokens.rows:
        values = by_text[row[0].text.strip("`")]
        assert row[1].value == pytest.approx(len(values) / len(early))
        assert row[2].value == pytest.approx(np.mean(values))
        assert row[3].value == pytest.approx(sum(values) / total)
    ends = [-r.advantage[-1] for r in parts["Early"]]
    stop = next(row for row in classes.rows if row[0].text == STOP)
    assert stop[2].value == pytest.approx(np.mean(ends))


def test_scores_on_the_support_say_so(good):
    run = read_run(good)
    tables = difference_tables(run, rollouts_by_part(run))
    assert "renormalised" in tables[-1].note


@pytest.mark.parametrize(
    ("section", "values"),
    [("rollout", {"temperature": 0.7}), ("rollout", {"top_p": 0.9})],
)
def test_samples_of_another_distribution_have_no_mean_that_is_the_reverse_kl(
    make_run, section, values
):
    (key,) = values
    run = read_run(make_run(sampled=True, settings={section: values}))
    note = difference_tables(run, rollouts_by_part(run))[-1].note
    assert "is the reverse KL" not in note
    assert f"{section}.{key}={values[key]}" in note
    plain = read_run(make_run("plain", sampled=True))
    assert "is the reverse KL" in difference_tables(plain, rollouts_by_part(plain))[-1].note


def test_a_metric_by_position_that_was_never_finite_has_no_picture(good):
    run = read_run(good)
    rows = [{k: v if "@" not in k else math.nan for k, v in row.items()} for row in run.metrics]
    assert heatmaps(replace(run, metrics=rows)) == []


def test_no_scores_no_tables(good):
    assert difference_tables(read_run(good), {}) == []


def test_lines_by_position_are_means_over_a_tenth_of_the_steps(make_run):
    binned = {
        "diag/reverse_kl@pos0-2": lambda s: s,
        "diag/reverse_kl@pos3-5": lambda s: 10.0 + s,
    }
    chart = position_lines(read_run(make_run(series=good_run() | binned)))[0]
    assert chart.data["begin"]["values"] == [1.5, 11.5]  # of 20 steps: 1 and 2
    assert chart.data["end"]["values"] == [19.5, 29.5]
    assert chart.data["begin"]["position"] == [1.5, 4.5]
