"""The page of metrics and the names in the code are the same set."""

import ast
import re
from pathlib import Path

import numpy as np
import pytest

from opd.core.stats import Estimate
from opd.recipes.check.features import DEFINITIONS
from opd.recipes.check.pilot_features import (
    PART_DEFINITIONS,
    PILOT_DEFINITIONS,
    STRETCH_DEFINITIONS,
)
from opd.run import metric_names
from opd.training.evaluate import Evaluation

ROOT = Path(__file__).parents[2]
GROUPS = (
    "diag",
    "bound",
    "reference",
    "verl",
    "drift",
    "train",
    "rollout",
    "horizon",
    "align",
    "eval",
    "coldstart",
    "time",
    "memory",
)
CHECK = "## Numbers of `opd check`"
NAME = re.compile(rf"(?:{'|'.join(GROUPS)})/[a-z0-9_@]+")


def documented():
    page = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8").split(CHECK)[0]
    rows = [line for line in page.splitlines() if line.startswith("| `")]
    for row in rows:
        cells = re.split(r"(?<!\\)\|", row)[1:-1]
        assert len(cells) == 5, f"a row has 5 cells: {row}"
        assert all(cell.strip() for cell in cells), f"empty cell: {row}"
    return [re.match(r"\| `([^`]+)`", row).group(1) for row in rows]


def written_in_the_source():
    """Whole string literals of the package that look like a metric's name."""
    listed = ROOT / "src" / "opd" / "run" / "metric_names.py"
    for path in sorted(p for p in (ROOT / "src").rglob("*.py") if p != listed):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            value = node.value if isinstance(node, ast.Constant) else None
            # clocks are named after the loop's phases: time/<phase>_s
            clock = isinstance(value, str) and re.fullmatch(r"time/[a-z]+_s", value)
            if isinstance(value, str) and NAME.fullmatch(value) and not clock:
                yield value, path.name


def test_page_and_code_name_the_same_metrics():
    names = documented()
    assert len(names) == len(set(names))
    assert set(names) == set(metric_names.METRICS)


def test_every_name_the_code_writes_is_a_known_one():
    found = list(written_in_the_source())
    assert len(found) > 30
    unknown = {(n, where) for n, where in found if n not in metric_names.METRICS}
    assert not unknown, f"add them to opd.run.metric_names and docs/metrics.md: {unknown}"


def test_an_evaluation_logs_the_listed_names_and_no_other():
    one = Estimate(0.5, 0.4, 0.6, 2)
    evaluation = Evaluation("sum", one, {2: one}, one, 0.0, one, np.ones((2, 2), bool), [])
    logged = {n.replace("/sum/", "/<set>/").replace("@2", "@<k>") for n in evaluation.values()}
    assert logged == {n for n in metric_names.METRICS if n.startswith("eval/")}


@pytest.mark.parametrize("name", metric_names.POSITIONAL)
def test_positional_names_are_diagnostics(name):
    assert name in metric_names.FULL + metric_names.OVERLAP


def test_every_number_of_the_check_is_on_the_page_with_its_definition():
    definitions = DEFINITIONS | PILOT_DEFINITIONS | STRETCH_DEFINITIONS | PART_DEFINITIONS
    section = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8").split(CHECK)[1]
    rows = [line for line in section.splitlines() if line.startswith("| `")]
    expected = [
        f"| `{n}` | {text.replace('|', chr(92) + '|')} |" for n, text in definitions.items()
    ]
    assert rows == expected
