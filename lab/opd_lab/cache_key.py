"""Names of cached results: a hash of whatever decides their numbers, the source code included.

Every module of the product and of the lab counts, so a new one counts by itself. Only the modules
listed in `NO_EFFECT` are left out, because they cannot change a number.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path

import torch

import opd

PACKAGES = {"opd": Path(opd.__file__).parent, "opd_lab": Path(__file__).parent}
# Path prefixes of modules that cannot change a run, a checkpoint or a measurement.
NO_EFFECT = (
    "opd/__main__.py",
    "opd/cli.py",
    "opd/commands/auto.py",
    "opd/commands/check/",
    "opd/config/__main__.py",
    "opd/config/template.py",
    "opd/demo/",
    "opd/recipes/check/",
    "opd/reports/",
    "opd/run/console.py",
    "opd/run/env.py",
    "opd/run/trackers.py",
    "opd/teachers/scoring_server.py",
    "opd_lab/alarm_trial.py",
    "opd_lab/auto_trial.py",
    "opd_lab/auto_trial_table.py",
    "opd_lab/calibration/",
    "opd_lab/cli.py",
    "opd_lab/commands.py",
    "opd_lab/demo_pair.py",
    "opd_lab/figure.py",
    "opd_lab/findings_page.py",
    "opd_lab/forecast_fit.py",
    "opd_lab/pairs/",
    "opd_lab/tuned/",
    "opd_lab/worlds/generated/",
)
# These decide the numbers of experiments, but no run and no checkpoint.
EXPERIMENTS = ("opd/commands/", "opd_lab/experiments/")


def digest(*parts: str) -> str:
    """A short name for given texts."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


@cache
def source_hash() -> str:
    """Hash of all code that can change a run or a checkpoint, and of torch's version."""
    return hash_modules(read_modules(PACKAGES), left_out=(*NO_EFFECT, *EXPERIMENTS))


@cache
def experiment_hash() -> str:
    """As `source_hash`, with the code of the experiments."""
    return hash_modules(read_modules(PACKAGES), left_out=NO_EFFECT)


def read_modules(packages: Mapping[str, Path]) -> dict[str, str]:
    """Source text by module path, such as `opd/core/losses.py`, of whole packages."""
    return {
        f"{name}/{path.relative_to(folder).as_posix()}": path.read_text("utf-8")
        for name, folder in packages.items()
        for path in sorted(folder.rglob("*.py"))
    }


def hash_modules(modules: Mapping[str, str], *, left_out: Iterable[str]) -> str:
    """Hash of source code without layout, comments and docstrings, and of torch's version.

    Args:
        modules: source text by module path.
        left_out: path prefixes of modules that do not count.
    """
    prefixes = tuple(left_out)
    code = hashlib.sha256(torch.__version__.encode())
    for path in sorted(modules):
        if not path.startswith(prefixes):
            code.update(f"{path}\0{strip_comments(modules[path])}\0".encode())
    return code.hexdigest()


@cache
def strip_comments(source: str) -> str:
    """Python source without layout, comments and docstrings."""
    tree = ast.parse(source)
    documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    for node in ast.walk(tree):
        if isinstance(node, documented) and ast.get_docstring(node):
            node.body = node.body[1:] or [ast.Pass()]
    return ast.unparse(tree)
