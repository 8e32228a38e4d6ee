"""Full weights with `rollout.launch` and the real vLLM: deaths of server and trainer, and the bits.

`make test-vllm` runs it. The student is SmolLM2 with noise in its weights and a head of its own:
vLLM's CPU build starts once more for a tied one (docs/scale.md).
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from opd.models.lm import load_lm
from opd.models.tokenizers import load_tokenizer
from opd.run.jsonl import read_jsonl
from opd.samplers.weight_sync import save_for_server
from support.real_vllm import NOISE, QUESTIONS, report

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(5400),
    pytest.mark.skipif(
        "OPD_VLLM_PYTHON" not in os.environ or "OPD_SMOLLM2" not in os.environ,
        reason="`make test-vllm` sets OPD_VLLM_PYTHON and OPD_SMOLLM2",
    ),
]
STEPS = 6
SAME = ("train/loss", "train/grad_norm", "rollout/length")
PROGRAM = (sys.executable, "-m", "opd", "train")


@pytest.fixture(scope="module")
def student(tmp_path_factory) -> Path:
    """The base with noise in its weights, and a head of its own."""
    folder = tmp_path_factory.mktemp("launch") / "student"
    lm = load_lm(os.environ["OPD_SMOLLM2"], dtype="float32")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in lm.model.parameters():
            if p.ndim >= 2:
                p += NOISE * p.std() * torch.randn(p.shape, generator=generator)
    folder.mkdir()
    tokenizer = load_tokenizer(os.environ["OPD_SMOLLM2"])
    save_for_server(lm, tokenizer, folder, untied=True)
    return folder


def write_run(folder: Path, student: Path, rollout: dict) -> Path:
    """A run.yaml of six short steps, beside its run folder."""
    # Each prompt once, so that a replay uses its rollouts in the same step.
    texts = [*QUESTIONS, *(f"{text} Answer briefly." for text in QUESTIONS)][: 2 * STEPS]
    assert len(set(texts)) == 2 * STEPS
    rows = [{"prompt": [{"role": "user", "content": text}]} for text in texts]
    prompts = folder / "prompts.jsonl"
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {
        "student": {"model": str(student)},
        "teacher": {"model": os.environ["OPD_SMOLLM2"]},
        "prompts": {"path": str(prompts), "max_tokens": 64},
        "rollout": {"n": 2, "max_new_tokens": 12, **rollout},
        "loss": {"k": 16},
        "optim": {"lr": 1e-5},
        "train": {"steps": STEPS, "prompts_per_step": 2},
        "eval": [],
        "output": {"dir": str(folder / "run"), "save_every": 2},
    }
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(data))
    return path


def start(path: Path, *flags: str) -> subprocess.Popen:
    environment = os.environ | {"VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    with (path.parent / "log").open("ab") as log:
        return subprocess.Popen(
            [*PROGRAM, str(path), *flags], stdout=log, stderr=log, env=environment
        )


def steps_of(folder: Path) -> list[dict]:
    """Metrics of the steps so far."""
    path = folder / "run" / "metrics.jsonl"
    rows = read_jsonl(path) if path.exists() else []
    return [row for row in rows if "train/loss" in row]


def processes_of(folder: Path) -> dict[int, str]:
    """Processes of servers that this run has started, with their command lines."""
    kept = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if b"OPD_KEPT_BY=" in (process / "environ").read_bytes():
                kept[int(process.name)] = (process / "cmdline").read_text().replace("\0", " ")
        except OSError:
            continue
    return {pid: line for pid, line in kept.items() if line}


def wait_until(condition: Callable[[], bool], trainer: subprocess.Popen | None = None) -> None:
    while not condition():
        assert trainer is None or trainer.poll() is None, "the trainer has ended"
        time.sleep(0.5)


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    (file,) = (folder / "run").glob("final/*.safetensors")
    return load_file(file)


def test_six_steps_survive_server_and_trainer_and_are_those_of_their_rollouts(student, tmp_path):
    launch = {"python": os.environ["OPD_VLLM_PYTHON"], "args": {"enforce-eager": True}}
    (tmp_path / "served").mkdir()
    path = write_run(tmp_path / "served", student, {"launch": launch})
    began = time.monotonic()

    def tell(text: str) -> None:
        report(f"{time.monotonic() - began:5.0f} s  {text}")

    trainer = start(path)
    try:
        wait_until(lambda: len(steps_of(path.parent)) >= 3, trainer)
        (server,) = (p for p, c in processes_of(path.parent).items() if "api_server" in c)
        os.kill(server, signal.SIGKILL)
        tell("3 steps; the server was killed")
        wait_until(lambda: len(steps_of(path.parent)) >= 5, trainer)
        fifth = steps_of(path.parent)[4]
    finally:
        trainer.kill()
        trainer.wait()
    tell("5 steps; the trainer was killed")
    gone = time.monotonic()
    wait_until(lambda: not processes_of(path.parent))
    seconds = time.monotonic() - gone
    tell(f"nothing of the server was left after {seconds:.1f} s")
    assert seconds < 60
    assert start(path, "--resume").wait() == 0
    steps = steps_of(path.parent)
    gaps = ", ".join(f"{s['drift/logp_gap']:.1e}" for s in steps)
    tell(f"resumed and ended; nats per token between server and trainer: {gaps}")
    assert steps[4] == fifth
    assert [s["step"] for s in steps] == [*range(1, STEPS + 1)]
    assert max(s["drift/logp_gap"] for s in steps) < 1e-4
    wait_until(lambda: not processes_of(path.parent))

    (tmp_path / "replayed").mkdir()
    recorded = {"path": str(path.parent / "run" / "rollouts")}
    again = write_run(tmp_path / "replayed", student, recorded)
    assert start(again).wait() == 0
    for ours, theirs in zip(steps, steps_of(again.parent), strict=True):
        assert {name: ours[name] for name in SAME} == {name: theirs[name] for name in SAME}
    ours, theirs = weights_of(path.parent), weights_of(again.parent)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    tell("an uninterrupted run on the recorded rollouts has the same metrics and final weights")
