"""A fake rollout server, and what sends a student's weights to it."""

from __future__ import annotations

import copy
from functools import partial

import torch

from opd.http import Endpoint, Http, Limits, Timer
from opd.samplers.decoding import Decoding
from opd.samplers.sampling_server import SamplingServer
from opd.samplers.vllm import VllmSampler
from opd.samplers.weight_sync import Destination, WeightSync
from opd.samplers.weight_transfer import BroadcastTransfer, IpcTransfer
from opd.testing import FakeVllmServer, load_weights_for, model_logp, tiny_tokenizer
from opd.testing.weight_receiver import WeightReceiver

LENGTH = 6


def server_for(lm, **options) -> FakeVllmServer:
    return FakeVllmServer(model_logp(lm), "base", load=load_weights_for(lm), **options)


WAYS = {"ipc": IpcTransfer, "nccl": partial(BroadcastTransfer, seconds=2.0)}


def taking_server(lm, backend, **options) -> FakeVllmServer:
    """A server that was started to take weights without files."""
    server = server_for(lm, **options)

    def load(arrived):
        new = copy.deepcopy(lm)
        new.model.load_state_dict(arrived, strict=False)  # a tied head comes once
        server.logp = model_logp(new)

    server.receiver = WeightReceiver(backend, torch.device("cpu"), load)
    return server


def sync_to(server, lm, tmp_path, **changes) -> WeightSync:
    """A sync whose waits pass on the server's clock."""
    http = Http(
        Endpoint("http://rollouts.test", "rollout server", "rollout.url"),
        limits=Limits(answer=30.0, attempts=2),
        timer=Timer(server.clock.now, server.clock.sleep),
        transport=server,
    )
    if (way := changes.pop("transfer", None)) is not None:
        changes["transfer"] = WAYS[way](http, torch.device("cpu"), 2000)
    destination = {k: changes.pop(k) for k in ("dtype", "restart", "transfer") if k in changes}
    sampling = SamplingServer(http, "base", concurrency=3, **changes)
    return WeightSync(sampling, lm, tiny_tokenizer(), Destination(tmp_path / "sync", **destination))


def sampler_of(weights: WeightSync) -> VllmSampler:
    return VllmSampler(
        weights.server, Decoding(LENGTH), stop=frozenset({1}), logp=True, weights=weights
    )


def train(lm, size=0.05, seed=0):
    """A change of the trainable weights, as an update makes it."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in lm.parameters().values():
            p += size * torch.randn(p.shape, generator=generator, dtype=p.dtype)


def paths(server) -> list[str]:
    return [path for path, _ in server.calls]
