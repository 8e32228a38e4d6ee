"""Fixtures: run folders made by hand (see support/run_folders.py)."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from opd.reports import charts, compare_page, differences, eval_section, plots
from support.run_folders import write_run


def kept(draw):
    """The same, each drawing of the same values made once."""
    made = {}

    def drawn(*values, **named):
        key = pickle.dumps((values, named))
        if key not in made:
            made[key] = draw(*values, **named)
        return made[key]

    return drawn


@pytest.fixture(scope="package", autouse=True)
def drawn_once():
    """Pages of the same runs have the same charts, which are most of the time of a page."""
    with pytest.MonkeyPatch.context() as patch:
        curves, heatmap = kept(plots.curves), kept(plots.heatmap)
        for module in (charts, compare_page, differences, eval_section):
            patch.setattr(module, "curves", curves)
        patch.setattr(charts, "heatmap", heatmap)
        yield


@pytest.fixture(scope="session")
def good(tmp_path_factory) -> Path:
    """One good run, for tests that only read it."""
    path = tmp_path_factory.mktemp("runs") / "good"
    write_run(path)
    return path


@pytest.fixture
def make_run(tmp_path: Path):
    """Factory: `make_run("a", text=...)`; `accuracy` maps step to the share of right answers."""

    def make(name: str = "run", **options) -> Path:
        write_run(tmp_path / name, **options)
        return tmp_path / name

    return make
