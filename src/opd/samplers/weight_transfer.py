"""Weights handed to a vLLM server from GPU memory: its weight transfer over HTTP, without files.

On the trainer's own GPU the server opens a buffer of this process (CUDA IPC), on another one it
takes part in a broadcast (NCCL). Both send the same chunks: tensors behind each other as bytes,
until they exceed `CHUNK`. Protocol: docs.vllm.ai, "Weight Transfer", read against vLLM 0.32; a
process without a GPU uses a file in place of IPC and gloo in place of NCCL, which tests do.
"""

from __future__ import annotations

import base64
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any, Protocol, TypeVar

import torch
import torch.distributed

from opd.http import Http, Refusal, Transient
from opd.samplers.weight_chunks import CHUNK, Chunk, SharedBuffer, split_chunks

Result = TypeVar("Result")
distributed: Any = torch.distributed  # whose types do not name its groups and stores

INIT, WORLD_SIZE = "/init_weight_transfer_engine", "/get_world_size"
START, UPDATE, FINISH = "/start_weight_update", "/update_weights", "/finish_weight_update"
SECONDS = 120.0  # for a group to open, and for one chunk
POLL, LAST_WORD = 0.002, 5.0  # seconds
ID_KEY, ID_BYTES = "0", 128  # where torch keeps NCCL's id of a group, and its length
# A peer that dies must not end this process: torch would do that from a thread of its own.
NCCL_ENVIRONMENT = {"TORCH_NCCL_ASYNC_ERROR_HANDLING": "0", "TORCH_NCCL_ENABLE_MONITORING": "0"}


class TransferFailed(Exception):
    """Weights were not handed over in this way.

    `stuck`: the server may still wait for the rest, and answers nothing until it is started again.
    """

    def __init__(self, reason: str, *, stuck: bool = False) -> None:
        super().__init__(reason)
        self.stuck = stuck


class Transfer(Protocol):
    """A way to hand over weights."""

    def send(self, weights: Mapping[str, torch.Tensor], dtype: torch.dtype | None) -> None:
        """Hand over all weights; the server has loaded them when this returns.

        Args:
            weights: by the names that they have in files of the model.
            dtype: that they are sent in; None: their own.

        Raises:
            TransferFailed: the server has none, or a part of them.
            Transient: the server has gone away.
        """

    def reset(self) -> None:
        """Forget the connection: the server was started again."""


class IpcTransfer:
    """`Transfer` to a server on the same GPU: it copies from a buffer of this process."""

    def __init__(self, http: Http, device: torch.device, limit: int = CHUNK) -> None:
        """Nothing is sent yet.

        Args:
            http: client of the server's root.
            device: that both are on.
            limit: bytes of a chunk; see `split_chunks`.
        """
        self.http, self.device, self.limit = http, device, limit

    def send(self, weights: Mapping[str, torch.Tensor], dtype: torch.dtype | None) -> None:
        """See `Transfer.send`."""
        chunks = split_chunks(weights, dtype, self.limit)
        with named_failures(self.http):
            size = max(sum(chunk.sizes) for chunk in chunks)
            with SharedBuffer(self.device, size) as buffer:
                self.http.post_text(INIT, {"init_info": {"packed": True}})
                with update_session(self.http):
                    for chunk in chunks:
                        chunk.fill(buffer.memory)
                        if self.device.type == "cuda":
                            torch.cuda.current_stream(self.device).synchronize()
                        where = {
                            "tensor_sizes": chunk.sizes,
                            "ipc_handles_pickled": buffer.handle(),
                        }
                        info = {"update_info": chunk.describe() | where}
                        self.http.post_text(UPDATE, info, once=True)

    def reset(self) -> None:
        """See `Transfer.reset`: there is no connection."""


class BroadcastTransfer:
    """`Transfer` to a server on other GPUs: its processes and this one are a group."""

    def __init__(
        self,
        http: Http,
        device: torch.device,
        limit: int = CHUNK,
        seconds: float = SECONDS,
    ) -> None:
        """Nothing is sent yet.

        Args:
            http: client of the server's root.
            device: of this process.
            limit: bytes of a chunk; see `split_chunks`.
            seconds: to wait for the group to open, and for a chunk.
        """
        self.http, self.device, self.limit, self.seconds = http, device, limit, seconds
        self._group: Any = None
        self._store: Any = None

    def send(self, weights: Mapping[str, torch.Tensor], dtype: torch.dtype | None) -> None:
        """See `Transfer.send`."""
        chunks = split_chunks(weights, dtype, self.limit)
        try:
            with named_failures(self.http):
                if self._group is None:
                    self._open()
                with update_session(self.http):
                    self._send(chunks)
        except BaseException:
            self.reset()
            raise

    def reset(self) -> None:
        """See `Transfer.reset`."""
        group, self._group, self._store = self._group, None, None
        if group is not None:
            with suppress(RuntimeError):
                group.abort()

    def _send(self, chunks: list[Chunk]) -> None:
        described = [chunk.describe() for chunk in chunks]
        info = {key: [value for each in described for value in each[key]] for key in described[0]}
        answer = in_background(
            lambda: self.http.post_text(UPDATE, {"update_info": info}, once=True)
        )
        size = max(sum(chunk.sizes) for chunk in chunks)
        try:
            buffer = torch.empty(size, dtype=torch.uint8, device=self.device)
            for chunk in chunks:
                work = self._group.broadcast(chunk.fill(buffer), 0)
                self._wait(work.is_completed, answer, "a chunk of weights")
                work.wait()
            self._wait(answer.done, answer, "the answer to the last chunk")
            answer.result()
        except (TransferFailed, RuntimeError) as error:
            self.reset()  # which the server may notice
            deadline = time.monotonic() + min(LAST_WORD, self.seconds)
            while not answer.done() and time.monotonic() < deadline:
                time.sleep(POLL)
            failure = answer.exception() if answer.done() else None
            raise failure or TransferFailed(str(error), stuck=not answer.done()) from None

    def _open(self) -> None:
        """Open the group of this process, rank 0, and the server's."""
        answer = self.http.get_json(WORLD_SIZE)
        size = 1 + int(answer["world_size"] if isinstance(answer, dict) else 0)
        store = distributed.TCPStore(
            "127.0.0.1",
            0,
            is_master=True,
            wait_for_workers=False,
            timeout=timedelta(seconds=self.seconds),
        )
        opened = in_background(lambda: self._first_collective(store, size))
        if self.device.type == "cuda":
            self._wait(lambda: bool(store.check([ID_KEY])), opened, "the id of the NCCL group")
            unique = store.get(ID_KEY)
            if len(unique) != ID_BYTES:
                raise TransferFailed(f"this torch has an id of {len(unique)} bytes for NCCL")
            where: dict[str, Any] = {"nccl_unique_id_b64": base64.b64encode(unique).decode()}
        else:
            where = {"master_address": "127.0.0.1", "master_port": store.port}
        geometry = {"packed": True, "packed_buffer_size_bytes": self.limit, "packed_num_buffers": 2}
        info = {"init_info": where | geometry | {"rank_offset": 1, "world_size": size}}
        joined = in_background(lambda: self.http.post_text(INIT, info, once=True))
        self._wait(lambda: opened.done() and joined.done(), joined, "the server to join")
        self._group, self._store = opened.result(), store
        joined.result()

    def _first_collective(self, store: Any, size: int) -> Any:
        """The group, after the one all-reduce with which the server begins as well."""
        wait = timedelta(seconds=self.seconds)
        group: Any
        if self.device.type == "cuda":
            with environment(NCCL_ENVIRONMENT):
                group = distributed.ProcessGroupNCCL(store, 0, size)
        else:
            group = distributed.ProcessGroupGloo(store, 0, size, wait)
        group.allreduce([torch.zeros(1, device=self.device)]).wait()
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return group

    def _wait(self, done: Callable[[], bool], other: Future[Any], what: str) -> None:
        """Wait until `done`, no longer than allowed, and not after the other side has failed."""
        deadline = time.monotonic() + self.seconds
        while not done():
            if other.done() and other.exception() is not None:
                raise TransferFailed(f"the server does not take part ({other.exception()})")
            if time.monotonic() > deadline:
                raise TransferFailed(f"no end of {what} after {self.seconds:.0f} s", stuck=True)
            time.sleep(POLL)


@contextmanager
def update_session(http: Http) -> Iterator[None]:
    """One update of the server's weights; it is closed even if it was not complete."""
    http.post_text(START, {}, once=True)
    try:
        yield
        http.post_text(FINISH, {}, once=True)
    except (Transient, Refusal, TransferFailed, RuntimeError) as error:
        if not getattr(error, "stuck", False):
            with suppress(Transient, Refusal):
                http.post_text(FINISH, {}, once=True)
        raise


@contextmanager
def named_failures(http: Http) -> Iterator[None]:
    """Tell a server that refuses from one that is gone, which is waited for.

    Raises:
        TransferFailed: in place of an error of the server or of torch.
        Transient: the server does not answer.
    """
    try:
        yield
    except Refusal as error:
        raise TransferFailed(str(error)) from None
    except Transient as error:
        http.get_json("/v1/models", once=True)
        raise TransferFailed(str(error)) from None
    except (RuntimeError, ValueError, TypeError, KeyError, ImportError) as error:
        raise TransferFailed(f"{type(error).__name__}: {str(error)[:300]}") from None


def in_background(call: Callable[[], Result]) -> Future[Result]:
    """Run a call in a thread that does not keep the process from ending."""
    future: Future[Result] = Future()

    def run() -> None:
        try:
            future.set_result(call())
        except BaseException as error:  # noqa: BLE001 - whoever asks for the result gets it
            future.set_exception(error)

    threading.Thread(target=run, daemon=True, name="weight-transfer").start()
    return future


@contextmanager
def environment(values: Mapping[str, str]) -> Iterator[None]:
    """Variables of this process, inside the block."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
