"""Whole runs by the command line: resumed in pieces, in every precision."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from opd.gpu_check.harness import Device
from opd.gpu_check.workload import make_model
from opd.testing import tiny_tokenizer

CASES: dict[str, dict[str, Any]] = {
    "bf16_mixed": {"student": {"precision": "bf16_mixed"}},
    "bf16_mixed, offload": {
        "student": {"precision": "bf16_mixed"},
        "optim": {"offload": "cpu"},
    },
    "bf16_mixed, int8 moments": {
        "student": {"precision": "bf16_mixed"},
        "optim": {"moments": "int8"},
    },
    "LoRA": {"student": {"precision": "bf16_mixed", "lora": {"rank": 4}}},
    "LoRA on nf4": {"student": {"precision": "bf16_mixed", "lora": {"rank": 4, "weights": "nf4"}}},
    "nf4 teacher, offloaded": {"teacher": {"dtype": "nf4", "offload": "cpu"}},
}


def resume(device: Device) -> None:
    """`opd train` in one piece and in two, with train.deterministic: the same bytes?"""
    small = Device(device.at, True, device.deadline, device.out)
    folder = device.out / f"runs-{os.getpid()}"
    for name, seed in (("student", 0), ("teacher", 1)):
        lm = make_model(small, "0.6B", torch.float32, seed=seed)
        lm.model.save_pretrained(folder / name)  # type: ignore[operator]
        tiny_tokenizer(lm.vocab).save_pretrained(folder / name)
    rows = [" ".join(f"w{3 + (7 * i + j) % 8000}" for j in range(12)) for i in range(16)]
    lines = [json.dumps({"prompt": text}) + "\n" for text in rows]
    (folder / "prompts.jsonl").write_text("".join(lines))
    cases = [case for case in CASES.items() if device.is_cuda or not _needs_gpu(case[1])]
    cases = cases[: 1 if device.tiny else None]
    kinds = [
        (f"{name} {way}", sections, steps)
        for name, sections in cases
        for way, steps in (("whole", (4,)), ("pieces", (2, 4)))
    ]
    with ThreadPoolExecutor(max(1, (os.cpu_count() or 1) // 2)) as pool:
        done = list(pool.map(lambda kind: _run(folder, kind[0], kind[1], device, kind[2]), kinds))
    for (name, _), whole, pieces in zip(cases, done[::2], done[1::2], strict=True):
        text = f"a resumed run ends with the same bytes, {name}"
        if isinstance(whole, str) or isinstance(pieces, str):
            device.require(False, text, error=whole if isinstance(whole, str) else pieces)
        else:
            device.require(whole == pieces, text, metrics=whole[0] == pieces[0])


def _needs_gpu(sections: dict[str, Any]) -> bool:
    return "cpu" in sections.get("teacher", {}).values()


def _run(
    folder: Path, name: str, sections: dict[str, Any], device: Device, steps: tuple[int, ...]
) -> tuple[str, str] | str:
    """Hashes of metrics.jsonl and the final weights; what the command said if it failed."""
    out = folder / name.replace(",", "").replace(" ", "-")
    path = out.with_suffix(".yaml")  # its own: others run at the same time
    for count in steps:
        config: dict[str, Any] = {
            "student": {"model": str(folder / "student")},
            "teacher": {"model": str(folder / "teacher"), "dtype": "float32"},
            "prompts": {"path": str(folder / "prompts.jsonl"), "chat": None},
            "rollout": {"n": 4, "max_new_tokens": 32},
            "optim": {"lr": 1e-3},
            "train": {"steps": count, "prompts_per_step": 8, "deterministic": True},
            "output": {"dir": str(out), "save_every": 1},
        }
        for section, values in sections.items():
            config[section] |= values
        path.write_text(json.dumps(config))
        command = [sys.executable, "-m", "opd", "train", str(path), "--quiet"]
        more = ["--resume"] if out.exists() else []
        visible = {} if device.at.type == "cuda" else {"CUDA_VISIBLE_DEVICES": ""}
        done = subprocess.run(
            [*command, *more],
            env=os.environ | visible,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            return done.stderr[-400:]
    weights = (out / "final" / "model.safetensors").read_bytes()
    metrics = (out / "metrics.jsonl").read_bytes()
    return hashlib.sha256(metrics).hexdigest(), hashlib.sha256(weights).hexdigest()
