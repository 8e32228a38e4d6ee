"""The decoder of plain attention against a simple loop, and what it may not do on a GPU."""

from __future__ import annotations

import gc
import logging
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from opd.errors import UserError
from opd.models.cache_support import cache_support
from opd.models.slab_layers import AttentionSlab
from opd.samplers import graphs, hf
from opd.samplers.decoding import Decoding
from opd.samplers.graphs import StepRunner
from opd.samplers.hf import HOST_FRACTION, HFSampler
from opd.samplers.pace import CPU, CUDA
from opd.testing import tiny_lm
from support.everyday import everyday
from support.reference_sampler import reference_sample
from support.syncs import Counter
from support.updates import CPU_OOM

END = 1
# A GPU's pace in small: several looks, sizes and moves within a few tokens.
GPU = replace(CUDA, columns=8, ladder=(1, 2, 4, 6), interval=3, prefill=12, graphs=False)


@contextmanager
def pace(value) -> Iterator[None]:
    with patch.object(hf, "pace_of", lambda device: value):
        yield


def assert_same(rollouts, expected, tolerance=1e-11):
    assert len(rollouts) == len(expected)
    for ours, theirs in zip(rollouts, expected, strict=True):
        assert (ours.prompt, ours.sample, ours.finish) == (
            theirs.prompt, theirs.sample, theirs.finish,
        )  # fmt: skip
        assert ours.ids.tolist() == theirs.ids.tolist()
        assert ours.topk_ids.tolist() == theirs.topk_ids.tolist()
        for name in ("logp", "entropy", "topk_logp"):
            np.testing.assert_allclose(
                getattr(ours, name), getattr(theirs, name), atol=tolerance, rtol=0
            )
        assert ours.ids.dtype == theirs.ids.dtype == np.int32
        assert ours.logp.dtype == theirs.logp.dtype


@example(lengths=[3], n=1, batch=1, length=1, seed=0, speed=GPU, greedy=False)
@example(lengths=[9, 2, 30, 2], n=5, batch=4, length=40, seed=1, speed=GPU, greedy=False)
@example(lengths=[9, 2, 30, 2], n=3, batch=5, length=25, seed=1, speed=CPU, greedy=False)
@given(
    lengths=st.lists(st.integers(1, 20), min_size=1, max_size=6),
    n=st.integers(1, 4),
    batch=st.integers(1, 9),
    length=st.integers(1, 20),
    seed=st.integers(0, 3),
    speed=st.sampled_from([CPU, GPU, replace(GPU, interval=16, growth=8)]),
    greedy=st.booleans(),
)
@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_tokens_are_those_of_a_simple_loop(
    make_prompts, lengths, n, batch, length, seed, speed, greedy
):
    lm, prompts = tiny_lm(seed), make_prompts(*lengths, seed=seed)
    decoding = Decoding(length, 0.0 if greedy else 1.3, top_p=0.95)
    options = {"stop": frozenset({END, 5}), "capture": 3}
    with pace(speed):
        rollouts = HFSampler(lm, decoding, batch=batch, **options).sample(prompts, n=n, key=(seed,))
    assert_same(rollouts, reference_sample(lm, decoding, prompts, n=n, key=(seed,), **options))


class Forwards:
    """Shapes (rows, tokens) of a model's forwards."""

    def __init__(self, lm) -> None:
        self.shapes: list[tuple[int, ...]] = []
        lm.causal.model.register_forward_pre_hook(self._see, with_kwargs=True)

    def _see(self, module, args, kwargs) -> None:
        self.shapes.append(tuple(kwargs["input_ids"].shape))

    @property
    def decoded(self) -> list[int]:
        return [rows for rows, tokens in self.shapes if tokens == 1]


@pytest.mark.parametrize("speed", [CPU, GPU])
def test_finished_rows_are_replaced_and_the_last_ones_move_together(make_prompts, speed):
    lm = tiny_lm(0)
    prompts = make_prompts(*(4 for _ in range(12)))
    sampler = HFSampler(lm, Decoding(30), stop=frozenset({END, 2, 3}), capture=1, batch=4)
    forwards = Forwards(lm)
    with pace(speed):
        rollouts = sampler.sample(prompts, n=2, key=(0,))
    assert max(forwards.decoded) == 4
    steps = sum(len(r) - 1 for r in rollouts)  # that an ideal sampler takes, over all rows
    groups = [rollouts[i : i + 4] for i in range(0, len(rollouts), 4)]
    without = sum(4 * (max(map(len, group)) - 1) for group in groups)
    assert steps <= sum(forwards.decoded) < without
    assert forwards.decoded[-1] < 4  # the last ones decode in fewer rows


def test_a_prompt_is_read_once_for_all_its_responses(make_prompts):
    lm, prompts = tiny_lm(0), make_prompts(6, 3, 9, 4)
    sampler = HFSampler(lm, Decoding(8), stop=frozenset({END}), capture=1, batch=12)
    forwards = Forwards(lm)
    sampler.sample(prompts, n=3, key=(0,))
    assert sum(rows for rows, tokens in forwards.shapes if tokens > 1) == 4


def test_the_host_waits_once_in_sixteen_tokens(make_prompts):
    # Prompts wait, rows finish, are replaced and move: everything that happens on a GPU.
    lm, prompts = tiny_lm(0), make_prompts(*range(3, 11))
    sampler = HFSampler(lm, Decoding(110), stop=frozenset({END}), capture=4, batch=6)
    forwards = Forwards(lm)
    with pace(replace(CUDA, graphs=False)), Counter() as counter:
        rollouts = sampler.sample(prompts, n=2, key=(0,))
    tokens = len(forwards.decoded)
    assert tokens > 200
    assert {r.finish for r in rollouts} == {"stop", "length"}
    # Numbers of tokens are multiples of 16 but for rows that reach the limit within them.
    assert len(counter.waits) <= tokens / 16 + 5, counter.waits


def test_a_step_waits_for_nothing(make_prompts):
    lm = tiny_lm(0)
    sampler = HFSampler(lm, Decoding(65), stop=frozenset(), capture=4)
    with pace(replace(CUDA, graphs=False)), Counter() as counter:
        sampler.sample(make_prompts(4, 9), n=4, key=(0,))
    assert len(counter.waits) == 4  # 64 tokens after the first


def test_buffers_are_freed_without_the_garbage_collector(make_prompts):
    held = []
    store = AttentionSlab.update

    def update(self, keys, values, *args, **kwargs):
        out = store(self, keys, values, *args, **kwargs)
        held.extend(weakref.ref(slab) for slab in self.slabs)
        return out

    sampler = HFSampler(tiny_lm(0), Decoding(4), stop=frozenset(), capture=1)
    gc.collect()
    gc.disable()
    try:
        with patch.object(AttentionSlab, "update", update):
            sampler.sample(make_prompts(4), n=2, key=(0,))
        assert held
        assert all(reference() is None for reference in held)
    finally:
        gc.enable()


@pytest.mark.parametrize("tokens", everyday(["prompts", "decoding"], 1))
@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory."), CPU_OOM])
def test_fewer_rows_where_memory_runs_out(make_prompts, caplog, error, tokens):
    error = RuntimeError(error) if isinstance(error, str) else error
    lm, prompts = tiny_lm(0), make_prompts(5, 3, 8, 4)
    decoding, options = Decoding(12), {"stop": frozenset({END}), "capture": 3}
    sampler = HFSampler(lm, decoding, batch=8, **options)

    def fail(module, args, kwargs) -> None:
        rows, width = kwargs["input_ids"].shape
        fits = rows <= 2 if (width == 1) == (tokens == "decoding") else True
        if not fits:
            raise error

    hook = lm.causal.model.register_forward_pre_hook(fail, with_kwargs=True)
    with caplog.at_level(logging.WARNING):
        rollouts = sampler.sample(prompts, n=2, key=(0,))
    assert caplog.text.count("sampled 8 rows") == 1
    assert f"decodes {sampler.batch} rows at a time from now on" in caplog.text
    assert sampler.batch == (4 if tokens == "prompts" else 2)
    expected = reference_sample(tiny_lm(0), decoding, prompts, n=2, key=(0,), **options)
    assert_same(rollouts, expected)
    caplog.clear()
    sampler.sample(prompts, n=2, key=(1,))
    assert "Out of memory" not in caplog.text  # the size is kept
    hook.remove()


def test_one_row_that_does_not_fit_is_an_error(make_prompts):
    lm = tiny_lm(0)
    sampler = HFSampler(lm, Decoding(12), stop=frozenset({END}), capture=3, batch=4)

    def fail(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    lm.causal.model.register_forward_pre_hook(fail)
    with pytest.raises(UserError, match=r"rollout\.max_new_tokens"):
        sampler.sample(make_prompts(4), n=4, key=(0,))


def test_rows_are_what_memory_holds(monkeypatch, make_prompts):
    lm, prompts = tiny_lm(0), make_prompts(20, 6)
    assert cache_support(lm).row_bytes(1) == 2 * 2 * 1 * 8 * 8  # layers, k and v, heads, float64
    sampler = HFSampler(lm, Decoding(12), stop=frozenset({END}), capture=3, batch=8)
    forwards = Forwards(lm)
    row = sampler._row_bytes(20, 12)
    monkeypatch.setattr(hf, "total_host_bytes", lambda: int(3.99 * row / HOST_FRACTION))
    rollouts = sampler.sample(prompts, n=4, key=(0,))
    assert max(forwards.decoded) == 3
    monkeypatch.setattr(hf, "total_host_bytes", lambda: 1)
    assert_same(sampler.sample(prompts, n=4, key=(0,)), rollouts)  # one row at a time
    monkeypatch.setattr(hf, "total_host_bytes", lambda: None)
    assert_same(sampler.sample(prompts, n=4, key=(0,)), rollouts)
    assert max(forwards.decoded) == 8  # as many as were asked for


def test_processes_of_a_host_share_its_memory(monkeypatch):
    monkeypatch.setattr(hf, "total_host_bytes", lambda: 800)
    alone = hf._row_memory(torch.device("cpu"))
    monkeypatch.setattr(hf.dist, "is_initialized", lambda: True)
    monkeypatch.setattr(hf.dist, "get_world_size", lambda: 4)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    assert (alone, hf._row_memory(torch.device("cpu"))) == (200, 50)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")  # the other two are on another host
    assert hf._row_memory(torch.device("cpu")) == 100


class FakeGraph:
    """Runs the step when it is replayed."""

    def __init__(self, step, size) -> None:
        self.step, self.size, self.replays = step, size, 0

    def replay(self) -> None:
        self.replays += 1
        self.step(*self.size)

    def reset(self) -> None:
        pass


def fake_cuda(monkeypatch, capture) -> None:
    monkeypatch.setattr(StepRunner, "_warm_up", lambda self, step, size: step(*size))
    monkeypatch.setattr(StepRunner, "_capture", capture)


def test_graphs_are_replayed_by_size(monkeypatch, make_prompts):
    captured = []

    def capture(self, step, size):
        captured.append(FakeGraph(step, size))
        return captured[-1]

    fake_cuda(monkeypatch, capture)
    lm, prompts = tiny_lm(0), make_prompts(3, 9, 5, 7)
    decoding, options = Decoding(40), {"stop": frozenset({END}), "capture": 3}
    with pace(replace(GPU, graphs=True)):
        rollouts = HFSampler(lm, decoding, batch=6, **options).sample(prompts, n=3, key=(0,))
    assert_same(rollouts, reference_sample(lm, decoding, prompts, n=3, key=(0,), **options))
    assert len({graph.size for graph in captured}) == len(captured)
    assert all(g.size[0] in GPU.ladder and g.size[1] % 8 == 0 for g in captured)
    assert sum(graph.replays for graph in captured) > 2 * len(captured)


def test_a_step_that_cannot_be_captured_runs_without_and_is_reported_once(
    monkeypatch, make_prompts, caplog
):
    def capture(self, step, size):
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    fake_cuda(monkeypatch, capture)
    monkeypatch.setattr(graphs, "_TOLD", set())
    lm, prompts = tiny_lm(0), make_prompts(3, 9)
    decoding, options = Decoding(30), {"stop": frozenset({END}), "capture": 3}
    expected = reference_sample(lm, decoding, prompts, n=3, key=(0,), **options)
    with pace(replace(GPU, graphs=True)), caplog.at_level(logging.WARNING):
        for _ in range(2):
            sampler = HFSampler(lm, decoding, **options)
            assert_same(sampler.sample(prompts, n=3, key=(0,)), expected)
    assert caplog.text.count("cannot be captured") == 1
    assert "stream is capturing" in caplog.text
    assert "more" not in caplog.text.replace("more than", "")


def test_sizes_of_steps():
    assert [CUDA.row_count(n, 128) for n in (1, 3, 17, 65, 97, 128)] == [1, 4, 32, 96, 128, 128]
    assert CUDA.row_count(100, 100) == 100
    assert [CPU.row_count(n, 128) for n in (0, 1, 77)] == [0, 1, 77]
    assert [CUDA.column_count(n) for n in (1, 128, 129, 2049)] == [128, 128, 256, 2304]
    for needed in range(1024, 40_000, 97):
        assert 7 / 8 * CUDA.column_count(needed) <= needed <= CUDA.column_count(needed)
        assert CUDA.column_count(needed) <= CUDA.column_count(needed + 1)
    assert len({CUDA.column_count(n) for n in range(1, 16_385)}) <= 40
    assert [CPU.column_count(n) for n in (1, 999, 20_000)] == [1, 999, 20_000]
