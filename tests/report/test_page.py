"""HTML report and JSON sidecar: order, numbers, ranges, live runs, what is not imported."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from opd.commands.report import report, report_after_training
from opd.config import dump, parse
from opd.errors import UserError
from opd.reports.chart_specs import DIAGNOSTIC_CHARTS, HEALTHY_RANGES
from opd.reports.charts import by_position
from opd.reports.config_table import config_rows
from opd.reports.formatting import p_value
from opd.reports.html import TEMPLATES, render_html
from opd.reports.plots import Line, _figure, _svg, _y_limits, curves, heatmap, moving_mean
from opd.reports.read import read_run
from opd.reports.run_page import run_document
from opd.run.folder import RunFolder
from support.html_reports import (
    check_html,
    not_in_sidecar,
    panel_rollouts,
    sidecar_rollouts,
    visible_numbers,
)

DOCS = Path(__file__).parents[2] / "docs"
METRICS_DOC, GALLERY = DOCS / "metrics.md", DOCS / "gallery"


@pytest.fixture(scope="module")
def page(good) -> tuple[str, dict]:
    html = report(good).read_text("utf-8")
    return html, json.loads((good / "report.json").read_text("utf-8"))


def test_verdict_comes_first_then_accuracy_and_the_rest(page):
    html, _ = page
    names = re.findall(r'<section id="([a-z]+)">', html)
    assert names == [
        *("verdict", "accuracy", "check", "picture", "positions", "differences"),
        *("tokens", "rollouts", "cost", "setup"),
    ]


def test_every_number_shown_is_in_the_sidecar(page):
    html, sidecar = page
    assert len(visible_numbers(html)) > 100
    assert not not_in_sidecar(html, sidecar)
    assert panel_rollouts(html) == sidecar_rollouts(sidecar) != []


def test_a_number_that_only_the_html_has_is_detected(page):
    html, sidecar = page
    assert not_in_sidecar(html.replace("<h2", "<p>12.3456</p><h2", 1), sidecar) == {"12.3456"}
    assert not_in_sidecar(html.replace('title="', 'title="98765 ', 1), sidecar) == {"98765"}


PAGES = sorted(GALLERY.glob("*.html"))


@pytest.mark.parametrize("path", PAGES, ids=[p.stem for p in PAGES])
def test_every_number_of_the_gallery_is_in_its_sidecar(path):
    html = path.read_text("utf-8")
    sidecar = json.loads(path.with_suffix(".json").read_text("utf-8"))
    assert not not_in_sidecar(html, sidecar)
    assert panel_rollouts(html) == sidecar_rollouts(sidecar)
    check_html(html)


def test_the_gallery_has_every_kind_of_run():
    names = {"success", "incompatible-teacher", "reverse", "smollm2", "compare"}
    assert {p.stem for p in PAGES} >= names


def test_sidecar_has_the_curves_themselves(page, good):
    _, sidecar = page
    run = read_run(good)
    charts = {
        c["name"]: c["data"]
        for part in sidecar["sections"]["picture"]["parts"]
        if part["kind"] == "charts"
        for c in part["charts"]
    }
    curve = charts["diag/reverse_kl"]["diag/reverse_kl"]
    assert curve["values"] == run.series("diag/reverse_kl").values.tolist()


@pytest.mark.parametrize("name", HEALTHY_RANGES)
def test_a_range_is_shaded_only_with_the_source_docs_give(name):
    row = next(
        r for r in METRICS_DOC.read_text("utf-8").splitlines() if r.startswith(f"| `{name}`")
    )
    cells = row.replace("\\|", "").split("|")
    assert f"{HEALTHY_RANGES[name].low:g}" in cells[4]
    assert HEALTHY_RANGES[name].source in cells[4]


def test_every_chart_is_of_a_documented_name():
    text = METRICS_DOC.read_text("utf-8")
    for picture in DIAGNOSTIC_CHARTS:
        for name, _ in picture.lines:
            assert f"`{name}`" in text


def test_page_reloads_itself_only_while_the_run_is_in_progress(good, make_run):
    assert 'http-equiv="refresh"' not in render_html(run_document(read_run(good)))
    path = make_run("live", planned=40)
    settings = json.loads((path / "config.json").read_text("utf-8"))
    with RunFolder.create(path, settings, resume=True):
        run = read_run(path)
        assert run.is_running
        assert 'http-equiv="refresh"' in render_html(run_document(run))
    assert not read_run(path).is_running
    assert 'http-equiv="refresh"' not in render_html(run_document(read_run(path)))


def test_a_damaged_folder_is_still_reported_and_lists_what_is_missing(make_run):
    path = make_run()
    (path / "tokens.parquet").write_bytes(b"broken")
    (path / "rollouts" / "step-3.parquet").write_bytes(b"broken")
    (path / "eval" / "step-20-task.parquet").write_bytes(b"broken")
    with (path / "metrics.jsonl").open("a") as file:
        file.write('{"half a line')
    html = render_html(run_document(read_run(path)))
    assert "step-20-task.json is damaged" in html
    assert "tokens.parquet is absent or damaged" in html


def edit(path, change) -> None:
    for name in ("config", "env"):
        file = path / f"{name}.json"
        record = json.loads(file.read_text("utf-8"))
        change(name, record)
        file.write_text(json.dumps(record))


def test_a_run_of_another_version_is_shown_and_named_as_one(make_run):
    def older(name, record):
        if name == "env":
            record["versions"]["opd"] = "0.0.3"
        else:
            record |= {"removed_section": {"x": 1}, "rollout": {"temperature": 1.0}}
            del record["diagnostics"]

    path = make_run()
    edit(path, older)
    html = render_html(run_document(read_run(path)))
    assert "Made by opd 0.0.3" in html
    assert "removed_section.x" in html
    assert "scored by the teacher" not in html  # nobody knows how many answers a prompt had


@pytest.mark.parametrize("key", ["student", "train", "output"])
def test_a_folder_without_required_keys_is_refused_by_name(make_run, key):
    path = make_run()
    edit(path, lambda _, record: record.pop(key, None))
    with pytest.raises(UserError, match=rf"has no {key}\."):
        read_run(path)


def test_paths_that_are_no_run_are_distinguished(good, tmp_path):
    for path, words in (
        (tmp_path / "absent", "there is no such folder"),
        (tmp_path, "it has no config.json"),
        (good / "metrics.jsonl", "is a file. Give the run folder"),
    ):
        with pytest.raises(UserError, match=words):
            read_run(path)


def test_an_empty_run_has_a_page(make_run):
    path = make_run(steps=0, accuracy={0: 0.2})
    assert "Too early to say" in render_html(run_document(read_run(path)))


def test_a_report_that_fails_is_reported_and_nothing_is_raised(tmp_path):
    lines: list[str] = []
    report_after_training(tmp_path / "absent", lines.append)
    assert "No report was written" in lines[0]


def test_report_needs_no_torch(good, tmp_path):
    code = (
        "import sys; from pathlib import Path; from opd.commands import report as commands;"
        "commands.report(Path(sys.argv[1]));"
        "sys.exit(sorted({'torch', 'transformers'} & sys.modules.keys()) != [])"
    )
    assert subprocess.run([sys.executable, "-c", code, str(good)], check=False).returncode == 0


def test_size_of_300_steps_stays_below_3_mb(make_run):
    rng = np.random.default_rng(0)
    names = [name for picture in DIAGNOSTIC_CHARTS for name, _ in picture.lines]
    names += ["rollout/length", "rollout/truncated", "rollout/repetition", "rollout/reward"]
    heat_names = ("student_entropy", "teacher_entropy", "overlap_ratio", "reverse_kl")
    names += [f"diag/{n}@pos{a}-{a + 9}" for n in heat_names for a in range(0, 80, 10)]
    table = rng.normal(size=(301, len(names)))
    series = {n: (lambda s, i=i: float(table[s, i])) for i, n in enumerate(names)}
    path = make_run(series=series, steps=300, planned=300)
    size = report(path).stat().st_size
    assert size <= 3_000_000


def test_config_rows_list_what_differs_and_the_default(tmp_path):
    raw = {
        "student": {"model": "s"},
        "teacher": {"model": "t"},
        "prompts": {"path": "p"},
        "loss": {"k": 8},
        "output": {"dir": "o"},
    }
    rows = {row[0]: row for row in config_rows(dump(parse(raw)))}
    assert rows["student.model"][2] == "required"
    assert (rows["loss.k"][1].value, rows["loss.k"][2].value) == (8, 16)
    assert "optim.lr" not in rows


def test_position_matrix_has_gaps_where_nothing_was_logged(good):
    binned = by_position(read_run(good), "diag/student_entropy")
    assert binned is not None
    matrix, steps, edges = binned
    assert edges == [0, 3, 6]
    np.testing.assert_allclose(matrix[0], 0.5 + 0.01 * steps)


def test_drawings_are_the_same_twice_and_use_the_pages_colours():
    x = np.arange(30.0)
    draw = lambda: curves("a", [Line(x, x)], band=(0.0, 10.0), level=3.0)  # noqa: E731
    assert draw() == draw()
    assert "var(--healthy)" in draw()
    assert "#" not in re.sub(r"url\(#|\"#|&#", "", draw())
    assert "data:image/png" in heatmap("b", np.ones((2, 30)), x, [0, 5, 10])


def test_moving_mean_against_a_loop():
    values = np.random.default_rng(0).normal(size=50)
    for window in (1, 4, 7):
        half = window // 2
        loop = [values[max(0, i - half) : i + half + 1].mean() for i in range(50)]
        np.testing.assert_allclose(moving_mean(values, window), loop, atol=1e-12)


@pytest.mark.parametrize(
    ("value", "shown"), [(0.0002, "p < 0.001"), (0.00099, "p < 0.001"), (0.0123, "p = 0.012")]
)
def test_no_p_value_below_what_permutations_can_tell(value, shown):
    assert p_value(value) == shown


def test_the_axis_shows_where_a_healthy_range_ends():
    """A range that fills the whole picture would say nothing."""
    x = np.arange(10.0)
    near, far = (Line(x, np.full(10, 0.999)), Line(x, np.full(10, 0.2)))
    for lines in ([near], [far], [near, far]):
        low, high = _y_limits(lines, [0.97, 1.0])
        assert low < min(0.97, *(line.y.min() for line in lines))
        assert high > 1.0
    assert _y_limits([Line(x, np.zeros(10))], []) == (-1.0, 1.0)


def luminance(colour: str) -> float:
    """Relative luminance of WCAG 2."""
    full = "".join(c * 2 for c in colour[1:]) if len(colour) == 4 else colour[1:7]
    parts = [int(full[i : i + 2], 16) / 255 for i in (0, 2, 4)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(a: str, b: str) -> float:
    low, high = sorted((luminance(a), luminance(b)))
    return (high + 0.05) / (low + 0.05)


def test_contrast_measure():
    assert contrast("#000", "#ffffff") == pytest.approx(21)
    assert contrast("#777", "#fff") == pytest.approx(4.48, abs=0.01)


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_text_and_lines_can_be_seen(theme):
    """WCAG 2 AA: text 4.5, lines 3; tokens on each of their colours."""
    style = (TEMPLATES / "report.css").read_text("utf-8")
    block = re.findall(r":root \{(.*?)\n\s*\}", style, re.DOTALL)[theme]
    colours = dict(re.findall(r"--([\w-]+): (#[0-9a-f]+)", block))
    for back in ("paper", "card", "p1", "p2", "p3", "n1", "n2", "n3"):
        assert contrast(colours["ink"], colours[back]) >= 4.5, back
    for text in ("muted", "good", "bad", "unclear", "line-1"):
        assert contrast(colours[text], colours["paper"]) >= 4.5, text
    for drawn in (*(f"line-{i}" for i in range(1, 7)), "alarm", "phase"):
        assert contrast(colours[drawn], colours["paper"]) >= 3, drawn


def test_a_drawing_is_laid_out_as_savefig_does_it():
    """The layout is made apart, so that nothing is drawn twice."""
    places = []
    for save in (
        lambda figure: _svg(figure, "a"),
        lambda figure: figure.savefig(io.BytesIO(), format="svg"),
    ):
        figure, axes = _figure()
        axes.plot([0, 3], [-12345.5, 0.25])
        before = axes.get_position().bounds
        save(figure)
        places.append(axes.get_position().bounds)
        assert places[-1] != before
    assert places[0] == places[1]
