"""Fixtures: run folders made by hand (see support/run_folders.py)."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.run_folders import write_run


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
