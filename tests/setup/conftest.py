"""Fixtures of the tests of what is planned and built before a run."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def memory_table():
    """The benchmark of that name as a module."""
    spec = importlib.util.spec_from_file_location(
        "memory_table", ROOT / "benchmarks" / "memory_table.py"
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module
