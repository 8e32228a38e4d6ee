"""The receiving end of vLLM's weight transfer, in a process without vLLM.

    python -m opd.testing.weight_receiver --device cuda --backend ipc

It prints its address, takes weights as a vLLM 0.32 worker does, and tells their checksums. What a
trainer sends as a pickle is read opcode by opcode: nothing is unpickled.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import pickletools
import sys
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import httpx2
import torch

from opd.http.vllm import MODELS
from opd.samplers.weight_chunks import device_identity, split_chunks
from opd.samplers.weight_transfer import (
    FINISH,
    INIT,
    START,
    UPDATE,
    WORLD_SIZE,
    distributed,
)
from opd.testing.clients import json_response, serve_on_loopback

Json = dict[str, Any]
CHECKER = "/weight_checker"
CLASSES = {
    "torch Tensor": torch.Tensor,
    "torch.storage TypedStorage": torch.storage.TypedStorage,
    "torch uint8": torch.uint8,
}


class WeightReceiver(httpx2.BaseTransport):
    """Takes weights over the routes of vLLM's weight transfer.

    Attributes:
        backend: "ipc" or "nccl" (gloo on the CPU), as the server was started.
        weights: that have arrived, by name; those of a session under way are in `arriving`.
        load: called with the weights of a finished session.
        fault: called with (route, body) before it is answered; may raise.
    """

    def __init__(
        self,
        backend: str,
        device: torch.device,
        load: Callable[[dict[str, torch.Tensor]], None] = lambda weights: None,
    ) -> None:
        """Nothing has arrived.

        Args:
            backend: "ipc" or "nccl".
            device: of the weights.
            load: called with the weights of a finished session.
        """
        self.backend, self.device, self.load = backend, device, load
        self.weights: dict[str, torch.Tensor] = {}
        self.arriving: dict[str, torch.Tensor] | None = None
        self.fault: Callable[[str, Json], None] = lambda route, body: None
        self._opened: tuple[Any, torch.Tensor] | None = None
        self._group: Any = None
        self._limit = 0

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        """Answer a request; an error of the worker is a 500, as vLLM has it."""
        body = request.read()
        if request.url.path == MODELS:
            return json_response({"data": [{"id": "weights"}]})
        answer = self.answer(request.url.path, json.loads(body) if body else {})
        return json_response({"detail": "Not Found"}, 404) if answer is None else answer

    def answer(self, route: str, body: Json) -> httpx2.Response | None:
        """The answer to a request of weight transfer; None for other routes."""
        routes: dict[str, Callable[[Json], Json]] = {
            WORLD_SIZE: lambda body: {"world_size": 1},
            INIT: lambda body: self._init(body["init_info"]),
            START: self._start,
            UPDATE: lambda body: self._update(body["update_info"]),
            FINISH: self._finish,
            CHECKER: lambda body: {"checksums": checksums(self.weights)},
        }
        if route not in routes:
            return None
        try:
            self.fault(route, body)
            return json_response(routes[route](body))
        except (RuntimeError, ValueError, KeyError, TypeError, OSError) as error:
            return json_response({"error": f"{type(error).__name__}: {error}"}, 500)

    def _init(self, info: Json) -> Json:
        if self.backend == "ipc":
            if info != {"packed": True}:
                raise ValueError(f"not of IPC: {info}")
            return {}
        self._limit = info["packed_buffer_size_bytes"]
        wait = timedelta(seconds=30)
        store = distributed.TCPStore(
            info["master_address"], info["master_port"], is_master=False, timeout=wait
        )
        size = info["world_size"]
        self._group = distributed.ProcessGroupGloo(store, info["rank_offset"], size, wait)
        self._group.allreduce([torch.zeros(1)]).wait()
        return {}

    def _start(self, body: Json) -> Json:
        if self.arriving is not None:
            raise RuntimeError("a weight update is already active")
        self.arriving = {}
        return {}

    def _update(self, info: Json) -> Json:
        if self.arriving is None:
            raise RuntimeError("start_weight_update must be called before update_weights")
        try:
            take = self._open if self.backend == "ipc" else self._receive
            self.arriving |= take(info)
        except BaseException:
            self.arriving = None
            raise
        return {}

    def _finish(self, body: Json) -> Json:
        if self.arriving is None:
            raise RuntimeError("finish_weight_update without a matching start_weight_update")
        self._opened = None
        arrived, self.arriving = self.arriving, None
        self.weights |= arrived
        self.load(arrived)
        return {}

    def _open(self, info: Json) -> dict[str, torch.Tensor]:
        """Copy a chunk from the trainer's buffer."""
        handles = read_handles(base64.b64decode(info["ipc_handles_pickled"], validate=True))
        where = handles.get(device_identity(self.device))
        if where is None:
            raise ValueError(f"no handle for {device_identity(self.device)}: {list(handles)}")
        if self._opened is None or self._opened[0] != where:
            self._opened = (where, self._map(where))
        memory = self._opened[1][: sum(info["tensor_sizes"])]
        return unpack(memory, info, info["tensor_sizes"])

    def _map(self, where: tuple[Any, ...]) -> torch.Tensor:
        if self.device.type == "cpu":
            return torch.from_file(where[0], shared=True, size=where[1], dtype=torch.uint8)
        from torch.multiprocessing import reductions

        parts = list(where)
        parts[6] = self.device.index
        rebuild: Callable[..., torch.Tensor] = reductions.rebuild_cuda_tensor
        memory = rebuild(*parts)
        return memory

    def _receive(self, info: Json) -> dict[str, torch.Tensor]:
        """Take part in a broadcast for each chunk, cut as the trainer cuts them."""
        if self._group is None:
            raise RuntimeError("weight transfer is not initialized")
        described = zip(info["names"], info["shapes"], info["dtype_names"], strict=True)
        empty = {name: torch.empty(shape, dtype=getattr(torch, t)) for name, shape, t in described}
        arrived: dict[str, torch.Tensor] = {}
        for chunk in split_chunks(empty, None, self._limit):
            memory = torch.empty(sum(chunk.sizes), dtype=torch.uint8)
            self._group.broadcast(memory, 0).wait()
            arrived |= unpack(memory, chunk.describe(), chunk.sizes)
        return arrived


def unpack(memory: torch.Tensor, info: Json, sizes: list[int]) -> dict[str, torch.Tensor]:
    """Copies of the tensors that lie behind each other in (B,) bytes."""
    described = zip(info["names"], info["shapes"], info["dtype_names"], strict=True)
    return {
        name: part.view(getattr(torch, dtype)).view(shape).clone()
        for part, (name, shape, dtype) in zip(torch.split(memory, sizes), described, strict=True)
    }


def checksums(weights: dict[str, torch.Tensor]) -> dict[str, str]:
    """SHA-256 of the bytes of each tensor."""
    bytes_of: dict[str, Any] = {
        name: tensor.detach().contiguous().view(-1).view(torch.uint8).cpu().numpy()
        for name, tensor in weights.items()
    }
    return {name: hashlib.sha256(values).hexdigest() for name, values in bytes_of.items()}


def read_handles(data: bytes) -> dict[str, tuple[Any, ...]]:
    """Handles by device, from a pickle that holds nothing but a mapping of names to tuples.

    Raises:
        ValueError: anything else is in it.
    """
    stack: list[Any] = []
    marks: list[int] = []
    memo: list[Any] = []
    value: Any
    for opcode, value, _ in pickletools.genops(data):
        name = opcode.name
        if name in ("PROTO", "FRAME"):
            continue
        if name == "STOP":
            break
        if name == "MEMOIZE":
            memo.append(stack[-1])
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(memo[value])
        elif name == "MARK":
            marks.append(len(stack))
        elif name == "STACK_GLOBAL":
            stack[-2:] = [CLASSES.get(f"{stack[-2]} {stack[-1]}")]
            if stack[-1] is None:
                raise ValueError("it names something else than a tensor")
        elif name == "TUPLE" or name in ("TUPLE1", "TUPLE2", "TUPLE3", "EMPTY_TUPLE"):
            count = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3, "EMPTY_TUPLE": 0}.get(name)
            start = marks.pop() if count is None else len(stack) - count
            stack[start:] = [tuple(stack[start:])]
        elif name == "EMPTY_DICT":
            stack.append({})
        elif name in ("SETITEM", "SETITEMS"):
            start = marks.pop() if name == "SETITEMS" else len(stack) - 2
            stack[start - 1].update(zip(stack[start::2], stack[start + 1 :: 2], strict=True))
            del stack[start:]
        elif name in ("NEWTRUE", "NEWFALSE", "NONE"):
            stack.append({"NEWTRUE": True, "NEWFALSE": False, "NONE": None}[name])
        elif isinstance(value, int | str | bytes):
            stack.append(value)
        else:
            raise ValueError(f"{name} in it")
    if len(stack) != 1 or not isinstance(stack[0], dict):
        raise ValueError("not a mapping")
    return stack[0]


def main(arguments: list[str]) -> None:
    """Serve until the input ends."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--backend", choices=("ipc", "nccl"), default="ipc")
    args = parser.parse_args(arguments)
    device = torch.device(args.device)
    if device.type == "cuda":
        device = torch.device("cuda", 0)
    with serve_on_loopback(WeightReceiver(args.backend, device)) as url:
        print(url, flush=True)  # noqa: T201
        sys.stdin.read()


if __name__ == "__main__":
    main(sys.argv[1:])
