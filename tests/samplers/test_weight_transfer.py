"""Weights handed over without files, to a receiver of our own: in this process and in another."""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest
import torch

from opd.http import Endpoint, Http, Limits, Transient
from opd.samplers import weight_chunks, weight_transfer
from opd.samplers.weight_chunks import SharedBuffer, split_chunks, weights_to_send
from opd.samplers.weight_transfer import (
    UPDATE,
    BroadcastTransfer,
    IpcTransfer,
    TransferFailed,
)
from opd.testing.weight_receiver import CHECKER, WeightReceiver, checksums, read_handles

CPU = torch.device("cpu")
LIMIT = 380  # bytes of a chunk: several of them
WAYS = {"ipc": IpcTransfer, "nccl": BroadcastTransfer}


def some_weights(seed=0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"embed": (17, 8), "layer.0": (8, 8), "norm": (8,), "layer.1": (3, 8), "last": (1,)}
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def client(url, transport=None) -> Http:
    endpoint = Endpoint(url, "rollout server", "rollout.url")
    limits = Limits(answer=20.0, attempts=2, wait_initial=0.01)
    return Http(endpoint, limits=limits, transport=transport)


def receiver(backend) -> tuple[WeightReceiver, Http]:
    made = WeightReceiver(backend, CPU)
    return made, client("http://rollouts.test", made)


def way_to(http, backend, seconds=2.0):
    options = {"seconds": seconds} if backend == "nccl" else {}
    return WAYS[backend](http, CPU, LIMIT, **options)


def in_bf16(weights) -> dict[str, torch.Tensor]:
    return {name: tensor.bfloat16() for name, tensor in weights.items()}


@pytest.mark.parametrize("backend", WAYS)
def test_weights_arrive_with_the_same_bytes_each_time(backend):
    there, http = receiver(backend)
    way = way_to(http, backend)
    for seed in (0, 1):
        weights = some_weights(seed)
        way.send(weights, torch.bfloat16)
        assert checksums(there.weights) == checksums(in_bf16(weights))
    weights = some_weights(2)
    way.send(weights, None)
    assert checksums(there.weights) == checksums(weights)
    way.reset()


def test_chunks_end_after_the_tensor_that_exceeds_the_limit():
    chunks = split_chunks(some_weights(), torch.float32, LIMIT)
    assert [chunk.names for chunk in chunks] == [
        ["embed"],
        ["layer.0", "norm", "layer.1"],
        ["last"],
    ]
    assert chunks[1].sizes == [256, 32, 96]
    assert split_chunks(some_weights(), torch.bfloat16, 10**6)[0].sizes == [272, 128, 16, 48, 2]


def test_a_tied_head_is_sent_once_unless_the_server_has_it_as_its_own(make_lm):
    model = make_lm().model
    tied = weights_to_send(model)
    assert "lm_head.weight" not in tied
    both = weights_to_send(model, untied=True)
    assert both.keys() - tied.keys() == {"lm_head.weight"}
    assert torch.equal(both["lm_head.weight"], tied["model.embed_tokens.weight"])


def test_a_handle_is_a_mapping_from_the_device_to_what_opens_the_buffer():
    with SharedBuffer(CPU, 16) as buffer:
        (where,) = read_handles(base64.b64decode(buffer.handle())).values()
        assert where[1] == 16
        assert os.path.exists(where[0])
    assert not os.path.exists(where[0])


def test_a_pickle_that_would_run_code_is_not_a_handle():
    hostile = b"\x80\x04\x8c\x05posix\x8c\x06system\x93\x8c\x04true\x85R."
    with pytest.raises(ValueError, match="something else"):
        read_handles(hostile)


@pytest.mark.parametrize("backend", WAYS)
@pytest.mark.parametrize("route", ["/start_weight_update", UPDATE, "/finish_weight_update"])
def test_an_error_of_the_server_is_named_and_the_next_push_is_whole(backend, route):
    """A broadcast of gloo that nobody takes ends by its time."""
    there, http = receiver(backend)
    way = way_to(http, backend, seconds=1.0)
    way.send(some_weights(0), None)
    before = checksums(there.weights)
    errors = ["out of memory"]

    def fault(asked, body):
        if asked == route and errors:
            raise RuntimeError(errors.pop())

    there.fault = fault
    began = time.monotonic()
    with pytest.raises(TransferFailed, match="out of memory") as caught:
        way.send(some_weights(1), None)
    assert time.monotonic() - began < 15
    assert not caught.value.stuck
    if route != "/finish_weight_update":
        assert checksums(there.weights) == before
    way.send(some_weights(1), None)
    assert checksums(there.weights) == checksums(some_weights(1))


def test_a_handle_that_cannot_be_opened_is_named(monkeypatch):
    monkeypatch.setattr(weight_chunks, "device_identity", lambda device: "GPU-of-another")
    there, http = receiver("ipc")
    with pytest.raises(TransferFailed, match="GPU-of-another"):
        way_to(http, "ipc").send(some_weights(), None)
    assert not there.weights


def test_a_server_that_takes_no_part_in_a_broadcast_is_not_waited_for():
    there, http = receiver("nccl")
    way = way_to(http, "nccl", seconds=0.5)
    way.send(some_weights(), None)
    there.fault = lambda route, body: time.sleep(1.5) if route == UPDATE else None
    began = time.monotonic()
    with pytest.raises(TransferFailed) as caught:
        way.send(some_weights(1), None)
    assert caught.value.stuck
    assert time.monotonic() - began < 1.4


@pytest.mark.slow
@pytest.mark.parametrize("backend", WAYS)
def test_weights_reach_another_process_and_its_death_is_noticed(backend):
    program = [sys.executable, "-m", "opd.testing.weight_receiver", "--backend", backend]
    process = subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        http = client(process.stdout.readline().strip())
        way = way_to(http, backend, seconds=5.0)
        for seed in (0, 1):
            way.send(some_weights(seed), torch.bfloat16)
            there = http.post_json(CHECKER, {"action": "checksum"})["checksums"]
            assert there == checksums(in_bf16(some_weights(seed)))
        if backend == "nccl":  # in the middle of a push
            in_background = weight_transfer.in_background
            weight_transfer.in_background = lambda call: (
                os.kill(process.pid, signal.SIGKILL),
                in_background(call),
            )[1]
        else:
            os.kill(process.pid, signal.SIGKILL)
        began = time.monotonic()
        try:
            with pytest.raises(Transient):
                way.send(some_weights(2), None)
        finally:
            if backend == "nccl":
                weight_transfer.in_background = in_background
        assert time.monotonic() - began < 30
    finally:
        process.kill()
        process.communicate()


READS = """
    import json, sys
    from vllm.distributed.weight_transfer import ipc_engine, nccl_common, nccl_engine

    said = json.load(sys.stdin)
    ipc, nccl = said["ipc"], said["nccl"]
    ipc_engine.IPCWeightTransferInitInfo(**ipc["/init_weight_transfer_engine"]["init_info"])
    info = ipc_engine.IPCWeightTransferUpdateInfo(**ipc["/update_weights"]["update_info"])
    (where,) = info.ipc_handles.values()
    assert where[1] == sum(info.tensor_sizes), where
    nccl_common.NCCLWeightTransferInitInfo(**nccl["/init_weight_transfer_engine"]["init_info"])
    nccl_engine.NCCLWeightTransferUpdateInfo(**nccl["/update_weights"]["update_info"])
    print("read")
"""


@pytest.mark.slow
@pytest.mark.skipif("OPD_VLLM_PYTHON" not in os.environ, reason="needs OPD_VLLM_PYTHON")
def test_vllm_reads_what_is_sent():
    said = {}
    for backend in WAYS:
        there, http = receiver(backend)
        bodies = said[backend] = {}
        there.fault = lambda route, body, bodies=bodies: bodies.setdefault(route, body) and None
        WAYS[backend](http, CPU).send(some_weights(), torch.bfloat16)
    read = subprocess.run(
        [os.environ["OPD_VLLM_PYTHON"], "-c", textwrap.dedent(READS)],
        input=json.dumps(said),
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": os.environ["PATH"], "VLLM_ALLOW_INSECURE_SERIALIZATION": "1"},
    )
    assert "read" in read.stdout, read.stderr[-2000:]
