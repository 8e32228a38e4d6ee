"""Weights between two processes on one GPU: bytes, speed, memory, and a receiver that dies."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import torch
from safetensors.torch import save_file

from opd.gpu_check.harness import Device
from opd.gpu_check.workload import make_model
from opd.http import Endpoint, Http, Limits, Transient
from opd.samplers import weight_chunks
from opd.samplers.weight_chunks import weights_to_send
from opd.samplers.weight_transfer import (
    UPDATE,
    WORLD_SIZE,
    BroadcastTransfer,
    IpcTransfer,
    TransferFailed,
)
from opd.testing.clients import json_response
from opd.testing.weight_receiver import CHECKER, checksums

PUSHES = 3
TINY_CHUNK = 2**16


def weight_transfer_ipc(device: Device) -> None:
    """CUDA IPC to another process: equal bytes twice, GB/s, memory, and three failures."""
    lm = make_model(device, "0.6B")
    limit = TINY_CHUNK if device.tiny else weight_chunks.CHUNK
    weights = weights_to_send(lm.model)
    size = sum(t.numel() * t.element_size() for t in weights.values()) / 1e9
    with receiving_process(device) as (http, process):
        way = IpcTransfer(http, device.at, limit)
        device.reset_memory()
        before = device.allocated()
        first = device.time(lambda: way.send(weights, None))
        seconds = device.time(lambda: way.send(weights, None), PUSHES)
        device.require(there(http) == checksums(weights), "bytes are equal in the other process")
        device.measure(
            f"{len(weights)} tensors over IPC",
            gb=size,
            first_s=first,
            s=seconds,
            gb_per_s=size / seconds,
            extra_gib=device.peak() - before,
            left_gib=device.allocated() - before,
        )
        with torch.no_grad():
            for tensor in weights.values():
                tensor.mul_(1.01)
        way.send(weights, None)
        device.require(there(http) == checksums(weights), "and so are those of the next step")
        _unknown_handle(device, way, weights)
        way.send(weights, None)
        device.require(there(http) == checksums(weights), "a push after a failure is whole")
        _death(device, http, process, weights, limit)
    device.reset_memory()
    device.measure("memory after all", left_gib=device.allocated() - before)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.safetensors"
        seconds = device.time(lambda: save_file({n: t.cpu() for n, t in weights.items()}, file))
    device.measure("the same as a file, written only", s=seconds, gb_per_s=size / seconds)


def _unknown_handle(device: Device, way: IpcTransfer, weights: dict[str, torch.Tensor]) -> None:
    """A handle for another GPU."""
    right = weight_chunks.device_identity
    weight_chunks.device_identity = lambda device: "GPU-of-another-machine"
    try:
        reason, seconds = failure_of(lambda: way.send(weights, None))
    finally:
        weight_chunks.device_identity = right
    named = "GPU-of-another-machine" in reason
    device.require(named, "a handle for another GPU is refused by name", s=seconds)


def _death(
    device: Device,
    http: Http,
    process: subprocess.Popen[str],
    weights: dict[str, torch.Tensor],
    limit: int,
) -> None:
    """The receiver is killed in the middle of a push."""
    left = [2]
    post = http.post_text

    def posting(path: str, value: Any, *, once: bool = False) -> str:
        if path == UPDATE:
            left[0] -= 1
            if left[0] == 0:
                os.kill(process.pid, signal.SIGKILL)
        return post(path, value, once=once)

    http.post_text = posting  # type: ignore[method-assign]
    reason, seconds = failure_of(lambda: IpcTransfer(http, device.at, limit).send(weights, None))
    device.require(
        "connection" in reason and seconds < 60,
        "a receiver that dies in a push is noticed",
        s=seconds,
        reason=reason[:80],
    )


def weight_transfer_nccl(device: Device) -> None:
    """NCCL as far as one GPU allows: a group of one opens, has an id, broadcasts, and ends."""
    if not device.is_cuda:
        device.report("SKIP", "NCCL needs a GPU")
        return
    seen: list[dict[str, Any]] = []
    http = client("http://nobody.test", _NoWorkers(seen))
    way = BroadcastTransfer(http, device.at, seconds=30.0)
    lm = make_model(device, "0.6B", layers=4)
    weights = weights_to_send(lm.model)
    reason, seconds = failure_of(lambda: way.send(weights, None))
    device.require(not reason, "a group of one broadcasts", s=seconds, reason=reason)
    if reason:
        return
    unique = next(b["init_info"].get("nccl_unique_id_b64", "") for b in seen if "init_info" in b)
    device.require(len(unique) == 172, "its id has 128 bytes", base64=len(unique))
    device.measure("the next push", s=device.time(lambda: way.send(weights, None)))
    began = time.perf_counter()
    way.reset()
    device.require(time.perf_counter() - began < 10, "the group ends")
    reason, seconds = failure_of(lambda: way.send(weights, None))
    device.require(not reason, "a new one opens after it", s=seconds, reason=reason)
    _absent_peer(device, weights)


def _absent_peer(device: Device, weights: dict[str, torch.Tensor]) -> None:
    """A peer that never joins: the wait ends, and this process lives."""
    way = BroadcastTransfer(client("http://nobody.test", _NoWorkers([], 1)), device.at, seconds=5.0)
    reason, seconds = failure_of(lambda: way.send(weights, None))
    device.require(
        bool(reason) and seconds < 30,
        "a server that does not join is not waited for",
        s=seconds,
        reason=reason[:100],
    )


class _NoWorkers(httpx2.BaseTransport):
    """Answers every route of a server that has `world` workers, none of which does anything."""

    def __init__(self, seen: list[dict[str, Any]], world: int = 0) -> None:
        self.seen, self.world = seen, world

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        """Note the body and agree."""
        body = request.read()
        self.seen.append(json.loads(body) if body else {})
        return json_response({"world_size": self.world} if request.url.path == WORLD_SIZE else {})


@contextmanager
def receiving_process(device: Device) -> Iterator[tuple[Http, subprocess.Popen[str]]]:
    """Another process on the same device that takes weights, and a client of it."""
    program = [sys.executable, "-m", "opd.testing.weight_receiver", "--device", device.at.type]
    process = subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    timer = threading.Timer(60.0, process.kill)
    timer.start()
    try:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        timer.cancel()
        yield client(url), process
    finally:
        timer.cancel()
        process.kill()
        process.communicate()


def client(url: str, transport: httpx2.BaseTransport | None = None) -> Http:
    """A client of a receiver."""
    limits = Limits(answer=60.0, attempts=1)
    endpoint = Endpoint(url, "rollout server", "rollout.url")
    return Http(endpoint, limits=limits, transport=transport)


def there(http: Http) -> Any:
    """Checksums of the weights that have arrived."""
    return http.post_json(CHECKER, {"action": "checksum"})["checksums"]


def failure_of(call: Callable[[], object]) -> tuple[str, float]:
    """Why a call failed, empty if it did not, and its seconds."""
    began = time.perf_counter()
    try:
        call()
        reason = ""
    except (TransferFailed, Transient) as error:
        reason = str(error)
    return reason, time.perf_counter() - began
