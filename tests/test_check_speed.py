"""How fast a pair is, with a simulated clock: a GPU begins each call with graphs."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from opd.commands.check import speed
from opd.types import Prompt, Rollout

BEGIN, TOKEN, ROW = 0.3, 0.008, 1e-6  # seconds: of a call, of a step, and of a row in it
SCORED, FIRST = 2e-6, 1.5  # seconds of a token, and of what a process does once


@pytest.fixture
def clock(monkeypatch):
    """Seconds that have passed on a machine with a GPU."""
    now = [0.0]

    class Sampler:
        def __init__(self, lm, decoding, **options) -> None:
            self.longest = decoding.max_new_tokens

        def sample(self, prompts, *, n, key, limit):
            assert limit <= self.longest
            now[0] += BEGIN + limit * (TOKEN + n * ROW)
            return [Rollout.of_ids(prompts[0], np.full(limit, 5, np.int32)) for _ in range(n)]

    class Teacher:
        def __init__(self, lm) -> None:
            pass

        def score(self, rollouts, want):
            now[0] += SCORED * sum(len(r.prompt.ids) + len(r) for r in rollouts)
            now[0] += FIRST if not lm.warm else 0.0
            lm.warm = True

    def time_call(work):
        before = now[0]
        return work(), now[0] - before

    lm = SimpleNamespace(device=torch.device("cuda", 0), warm=False)
    monkeypatch.setattr(speed, "HFSampler", Sampler)
    monkeypatch.setattr(speed, "LocalTeacher", Teacher)
    monkeypatch.setattr(speed, "time_call", time_call)
    return lm


def test_the_speed_of_a_gpu_is_that_of_many_rows_without_what_a_call_begins_with(clock):
    prompt = Prompt(0, (3, 4, 5), "")
    found = speed._measure_model(clock, prompt)
    for rows, tokens in ((8, 100), (128, 100), (512, 1000)):
        seconds = tokens * (TOKEN * max(1, rows / 128) + rows * ROW)
        assert found.decoding(rows, tokens) == pytest.approx(seconds, rel=0.05)
    assert found.forward == pytest.approx(SCORED, rel=0.01)
