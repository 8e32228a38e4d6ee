"""`train.deterministic`: the update gives the same bits twice, as far as torch can."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch

logger = logging.getLogger(__name__)

CUBLAS = "CUBLAS_WORKSPACE_CONFIG"
SETTING = f"{CUBLAS}=:4096:8"
_LACKING = "does not have a deterministic implementation"  # torch's words
_TOO_LATE = "it uses CuBLAS"  # likewise: its variable is read once, at the first product
_lacking: set[str] = set()  # operations without a deterministic algorithm that were met

T = TypeVar("T")


def prepare_deterministic() -> None:
    """Set what cuBLAS reads when the process first uses a GPU: before models are loaded."""
    os.environ.setdefault(*SETTING.split("="))


def run_deterministic(enabled: bool, work: Callable[[], T]) -> T:
    """Do some work with deterministic algorithms.

    torch's strict mode comes first: only there do the fused attention kernels choose their
    deterministic backward. An operation that has no deterministic algorithm raises; it is named
    once in a warning, and the work begins again in the mode that tolerates it.
    Sampling stays outside: it is reproducible by its random keys, and its sums have no
    deterministic algorithm on a GPU.

    Args:
        enabled: `train.deterministic`.
        work: can begin again.

    Returns:
        What `work` returned.
    """
    if not enabled:
        return work()
    if not _lacking:
        try:
            with _deterministic_algorithms(warn_only=False):
                return work()
        except RuntimeError as error:
            if _TOO_LATE in str(error):
                _report(f"a matrix product without {CUBLAS}", f" In your shell: export {SETTING}")
            elif _LACKING in str(error):
                _report(str(error).split(_LACKING)[0].strip())
            else:
                raise
    with _deterministic_algorithms(warn_only=True):
        return work()


@contextmanager
def _deterministic_algorithms(*, warn_only: bool) -> Iterator[None]:
    before = torch.are_deterministic_algorithms_enabled()
    before_warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=warn_only)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=before_warn_only)


def _report(operation: str, fix: str = "") -> None:
    _lacking.add(operation)
    logger.warning(
        "train.deterministic: %s has no deterministic algorithm on this device; the update may "
        "differ in its last bits from run to run.%s",
        operation,
        fix,
    )
