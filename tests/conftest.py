"""Fixtures everyone uses: a tiny random model pair with its tokenizer, made in a moment."""

from __future__ import annotations

import gc
import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Matrices here are tiny: threads would only wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest

# `OPD_TEST_DEVICE=cuda pytest`: what tests make without naming a device is made there.
if device := os.environ.get("OPD_TEST_DEVICE"):
    from support.default_device import DefaultDevice

    DefaultDevice(device).__enter__()


def pytest_collection_finish() -> None:
    """The modules and tests stay: no collection of garbage goes through them again."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def make_lm():
    """Factory of `opd.models.lm.LM` around a tiny random model."""
    from opd.testing import tiny_lm

    return tiny_lm


@pytest.fixture
def make_prompts():
    """Factory of prompts of given lengths over the tiny vocabulary."""
    import numpy as np

    from opd.testing import TINY_VOCAB
    from opd.types import Prompt

    def make(*lengths: int, seed: int = 0):
        rng = np.random.default_rng(seed)
        return [
            Prompt(i, tuple(rng.integers(3, TINY_VOCAB, n).tolist()), f"prompt {i}")
            for i, n in enumerate(lengths)
        ]

    return make


@pytest.fixture
def retries_at_once():
    """HTTP requests that fail are tried again as often as always, without a wait in between."""
    import stamina

    with stamina.set_testing(True, attempts=100, cap=True):
        yield
