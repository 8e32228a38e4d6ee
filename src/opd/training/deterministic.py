"""`train.deterministic`: the update gives the same bits twice, as far as torch can."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch

logger = logging.getLogger(__name__)

CUBLAS = "CUBLAS_WORKSPACE_CONFIG"
_reported: set[str] = set()  # operations that were named already


def prepare_deterministic() -> None:
    """Set what cuBLAS reads when the process first uses a GPU."""
    os.environ.setdefault(CUBLAS, ":4096:8")


@contextmanager
def deterministic(enabled: bool) -> Iterator[None]:
    """Use deterministic algorithms inside; operations that have none are named once in a warning.

    Sampling stays outside: it uses sums for which torch has no deterministic algorithm on a GPU,
    and is reproducible by its random keys.
    """
    if not enabled:
        yield
        return
    before = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warn_only)
        for warning in caught:
            _report(warning)


def _report(warning: warnings.WarningMessage) -> None:
    text = str(warning.message)
    if "deterministic" not in text:
        warnings.warn_explicit(
            message=warning.message,
            category=warning.category,
            filename=warning.filename,
            lineno=warning.lineno,
        )
        return
    operation = text.split(" does not have")[0].splitlines()[0]
    if operation not in _reported:
        _reported.add(operation)
        logger.warning(
            "train.deterministic: %s has no deterministic algorithm on this device; the update may "
            "differ in its last bits from run to run.",
            operation,
        )
