"""A real vLLM server on loopback, in an environment of its own (see `make test-vllm`)."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path

STARTUP = 600.0  # seconds; 30-70 on a free core, more on a shared one
NOISE = 0.06  # of each weight's own spread
QUESTIONS = (
    "What is the capital of France?",
    "Name three colours of the rainbow.",
    "Why is the sky blue?",
    "Write one sentence about a river.",
    "What do bees make?",
    "How many days are in a week?",
    "Who wrote Romeo and Juliet?",
    "What is two plus two?",
)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def report(text: str) -> None:
    print(text, flush=True)  # noqa: T201 - figures for whoever runs it


class RealVllm:
    """One `vllm` API server process group; started, killed, started again on one port."""

    def __init__(
        self,
        python: str,
        model: Path,
        name: str,
        log: Path,
        *options: str,
        dtype: str = "float32",
    ) -> None:
        self.python, self.model, self.name, self.log = python, model, name, log
        self.dtype = dtype
        self.options, self.port = options, free_port()
        self.process: subprocess.Popen | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def start(self, model: Path | None = None) -> float:
        """Start and wait until it answers; the seconds it took."""
        command = [
            *(self.python, "-m", "vllm.entrypoints.openai.api_server"),
            *("--model", str(model or self.model), "--served-model-name", self.name),
            *("--host", "127.0.0.1", "--port", str(self.port), "--dtype", self.dtype),
            *("--max-model-len", "512", "--enforce-eager", *self.options),
        ]
        environment = os.environ | {
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True",
            "VLLM_SERVER_DEV_MODE": "1",
            "VLLM_NO_USAGE_STATS": "1",
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
        }
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                command, stdout=log, stderr=log, env=environment, start_new_session=True
            )
        began = time.monotonic()
        while time.monotonic() - began < STARTUP:
            if self.process.poll() is not None:
                tail = self.log.read_text("utf-8", "replace")[-3000:]
                raise RuntimeError(f"vLLM ended with {self.process.returncode}:\n{tail}")
            try:
                urllib.request.urlopen(f"{self.url}/models", timeout=2).close()
            except (urllib.error.URLError, OSError):
                time.sleep(0.5)
                continue
            return time.monotonic() - began
        raise RuntimeError(f"vLLM did not answer within {STARTUP:g} s; see {self.log}")

    def kill(self) -> None:
        """As a crash does it: the whole process group, at once."""
        if self.process is not None and self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(30)
        self.process = None
