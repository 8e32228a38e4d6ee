"""Memory of teachers and students that do not fit: planned, and measured in short runs on a CPU.

    python benchmarks/teacher_memory.py STUDENT_FOLDER TEACHER_FOLDER [--case NAME]

Every case is a process of its own that trains for two steps. Measured is resident memory beyond
that after the imports: its peak while models are loaded, and its peak afterwards. The last column
is of the whole process, for which the plan has a fixed allowance (`memory_plan.PROCESS`).
docs/memory.md has the table.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import threading
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

LORA: dict[str, Any] = {"lora": {"rank": 8}}
CASES: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "teacher as stored (bf16)": (LORA, {}, {}),
    "`teacher.dtype: int8`": (LORA, {"dtype": "int8"}, {}),
    "`teacher.dtype: nf4`": (LORA, {"dtype": "nf4"}, {}),
    "`teacher.offload: disk`": (LORA, {"offload": "disk"}, {}),
    "`student.lora.weights: int8`": ({"lora": {"rank": 8, "weights": "int8"}}, {}, {}),
    "`student.lora.weights: nf4`": ({"lora": {"rank": 8, "weights": "nf4"}}, {}, {}),
    "full training, `optim.moments: int8`": ({}, {"offload": "disk"}, {"moments": "int8"}),
}


def configured(name: str, student: str, teacher: str, folder: Path) -> dict[str, Any]:
    """The run.yaml of a case."""
    own, other, optim = CASES[name]
    prompts = folder / "prompts.jsonl"
    rows = [{"prompt": f"What is {i} + {i + 1}? Reply with the number."} for i in range(4)]
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {
        "student": {"model": student, "precision": "bf16_mixed"} | own,
        "teacher": {"model": teacher} | other,
        "prompts": {"path": str(prompts), "max_tokens": 64},
        "rollout": {"n": 2, "max_new_tokens": 12, "stop": "union"},
        "diagnostics": {"positions": 16},
        "optim": {"lr": 1e-4 if own else 1e-5} | optim,
        "train": {"steps": 2, "prompts_per_step": 2, "tokens_per_microbatch": 128},
        "alarms": {"action": "off"},
        "output": {"dir": str(folder / "run"), "save_every": 1000, "keep": 1},
    }


class Watch(threading.Thread):
    """The largest resident memory since it was last asked."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak = 0

    def run(self) -> None:
        while True:
            self.peak = max(self.peak, resident())
            time.sleep(0.01)

    def take(self) -> int:
        """The peak, which begins anew."""
        peak, self.peak = max(self.peak, resident()), 0
        return peak


def resident() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def measure(name: str, student: str, teacher: str) -> dict[str, int]:
    """Planned and measured bytes of a case, in this process."""
    import torch

    from opd import config
    from opd.recipes.distillation import distill
    from opd.run.console import Console
    from opd.setup.memory_plan import PROCESS, plan_memory
    from opd.setup.session import build

    torch.set_num_threads(1)
    with TemporaryDirectory() as folder:
        cfg = config.parse(configured(name, student, teacher, Path(folder)))
        plan = [p for p in plan_memory(cfg).phases if p.device == "cpu"]
        planned = [p.total for p in plan if p.phase == "load"]
        planned.append(max(p.total for p in plan if p.phase != "load"))
        watch, before = Watch(), resident()
        watch.start()
        session, completions = build(cfg, resume=False, overwrite=False, console=Console("quiet"))
        loaded = watch.take() - before
        distill(session, completions)
        session.folder.close()
        return {
            "planned to load": planned[0] - PROCESS,
            "loaded": loaded,
            "planned to run": planned[1] - PROCESS,
            "run": watch.take() - before,
            "allowed for the process": PROCESS,
            "process": before,
        }


def table(student: str, teacher: str, cases: list[str]) -> None:
    """Print every case, measured in a process of its own."""
    print("| run | loading: planned, GB | measured | running: planned | measured | ratio | whole |")
    print("|---|---|---|---|---|---|---|")
    for name in cases:
        command = [sys.executable, __file__, student, teacher, "--case", name]
        output = subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout
        sizes = json.loads(output.splitlines()[-1])
        allowed, process = sizes.pop("allowed for the process"), sizes.pop("process")
        cells = [f"{size / 1e9:.2f}" for size in sizes.values()]
        cells.append(f"{sizes['run'] / sizes['planned to run']:.2f}")
        cells.append(f"{(sizes['run'] + process) / (sizes['planned to run'] + allowed):.2f}")
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


def main() -> None:
    """Measure one case, or all of them in processes of their own."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("student")
    parser.add_argument("teacher")
    parser.add_argument("--case", choices=list(CASES))
    args = parser.parse_args()
    if args.case is not None:
        print(json.dumps(measure(args.case, args.student, args.teacher)))
        return
    table(args.student, args.teacher, list(CASES))


if __name__ == "__main__":
    main()
