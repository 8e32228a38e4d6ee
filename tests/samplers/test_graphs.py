"""Capturing steps as CUDA graphs, with a fake of torch's part: there is no GPU here."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from opd.samplers import graphs
from opd.samplers.decoding import Decoding
from opd.samplers.graphs import StepRunner
from opd.samplers.hf import HFSampler
from opd.samplers.pace import CUDA
from opd.samplers.rows import Job
from opd.samplers.slab_decoder import SlabDecoder
from opd.testing import tiny_lm


class Streams:
    """torch.cuda's streams and capture: a capture that fails leaves its stream as the current one.

    So does `torch.cuda.graph`: its exit ends the capture, which raises, before its stream.
    """

    def __init__(self, *, fails: bool) -> None:
        self.fails, self.current, self.made = fails, "default", 0

    def install(self, monkeypatch) -> None:
        fake = {
            "Stream": self.new,
            "current_stream": lambda device=None: self.named(self.current),
            "stream": lambda stream: _Selected(self, stream),
            "graph": lambda graph, **options: _Capture(self, options["stream"]),
            "CUDAGraph": lambda: SimpleNamespace(replay=self.replay, reset=lambda: None, pool=int),
        }
        for name, value in fake.items():
            monkeypatch.setattr(torch.cuda, name, value)

    def new(self, device) -> SimpleNamespace:
        self.made += 1
        return self.named(f"side {self.made}")

    def named(self, name: str) -> SimpleNamespace:
        return SimpleNamespace(name=name, wait_stream=lambda other: None)

    def replay(self) -> None:
        pass


class _Selected:
    def __init__(self, streams, stream) -> None:
        self.streams, self.stream = streams, stream

    def __enter__(self) -> None:
        self.before, self.streams.current = self.streams.current, self.stream.name

    def __exit__(self, *error) -> None:
        self.streams.current = self.before


class _Capture(_Selected):
    def __exit__(self, *error) -> None:
        if self.streams.fails:
            raise RuntimeError("operation failed due to a previous error during capture")
        super().__exit__(*error)


@pytest.fixture(autouse=True)
def no_stream_yet(monkeypatch):
    monkeypatch.setattr(graphs, "_streams", {}, raising=False)
    monkeypatch.setattr(graphs, "_TOLD", set())


@pytest.mark.parametrize("fails", [True, False])
def test_work_goes_on_on_the_stream_that_it_was_on(monkeypatch, fails):
    streams = Streams(fails=fails)
    streams.install(monkeypatch)
    seen = []
    runner = StepRunner(torch.device("cpu"), graphs=True, name="a model")
    runner.run(lambda rows, columns: seen.append(streams.current), (4, 8), 3)
    assert streams.current == "default"
    assert seen[:2] == ["side 1", "side 1"]  # run once before it is captured
    assert seen[2:] == (["default"] * 2 if fails else [])  # else it is replayed


def test_all_captures_of_a_device_use_one_stream(monkeypatch):
    streams = Streams(fails=False)
    streams.install(monkeypatch)
    for _ in range(3):  # cuBLAS keeps a workspace for every stream that it was ever used on
        runner = StepRunner(torch.device("cpu"), graphs=True, name="a model")
        runner.run(lambda rows, columns: None, (4, 8), 3)
        runner.release()
    assert streams.made == 1


@pytest.mark.parametrize("sharded", [True, False])
def test_steps_of_sharded_weights_are_not_captured(sharded):
    lm = tiny_lm(0)
    HFSampler(lm, Decoding(4), stop=frozenset(), capture=1)
    lm.sharded = lm.model if sharded else None
    job = Job(lm, Decoding(4), frozenset(), 1, (0,), 4, 0)
    assert SlabDecoder(job, 2, 4, CUDA).runner.capturing is not sharded
