"""Which cases of a parametrized test run every day; the others run with `make test-slow`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
from _pytest.mark import ParameterSet


def everyday(cases: Iterable[Any], *positions: int) -> list[Any]:
    """The cases, those not at `positions` marked as slow.

    A case is a value, a tuple of several arguments or a `pytest.param`.
    """
    return [case if i in positions else _slow(case) for i, case in enumerate(cases)]


def _slow(case: Any) -> ParameterSet:
    if not isinstance(case, ParameterSet):
        case = pytest.param(*case if isinstance(case, tuple) else (case,))
    return pytest.param(*case.values, id=case.id, marks=(*case.marks, pytest.mark.slow))
