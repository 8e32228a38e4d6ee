"""Servers of tests: a real `opd serve-teacher` in a thread, and what a fake one samples from."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from opd.teachers.scoring_server import TeacherServer
from opd.testing import TINY_VOCAB, NextLogp, bigram_model

STOP = 1  # the end token of `opd.testing.tiny_tokenizer`


@contextmanager
def running(server: TeacherServer) -> Iterator[int]:
    """Serve inside the block; yields the port."""
    thread = threading.Thread(target=server.serve, daemon=True)
    thread.start()
    while server.port is None:
        time.sleep(0.01)
    try:
        yield server.port
    finally:
        server.stop()
        thread.join(20)


def stopping_model() -> NextLogp:
    """A random bigram model over the tiny vocabulary that often samples STOP."""
    logits = np.random.default_rng(0).normal(0, 2, (TINY_VOCAB, TINY_VOCAB))
    logits[:, STOP] += 2
    return bigram_model(logits)
