"""`python -m opd.gpu_check`: run every section, print findings and a table."""

from __future__ import annotations

import argparse
import logging
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import torch

from opd.gpu_check import correctness, layouts, memory, quantised, runs, speed, transfer
from opd.gpu_check.harness import Device
from opd.training.deterministic import prepare_deterministic

SECTIONS: tuple[tuple[Callable[[Device], object], float], ...] = (  # most important first; seconds
    (speed.ceilings, 10),
    (correctness.parity, 30),
    (memory.attention, 10),
    (correctness.precision, 15),
    (correctness.determinism, 25),
    (correctness.fsdp, 15),
    (layouts.layouts, 25),
    (transfer.weight_transfer_ipc, 40),
    (transfer.weight_transfer_nccl, 40),
    (speed.synchronizations, 15),
    (memory.out_of_memory, 30),
    (speed.decoding, 60),
    (speed.whole_step, 40),
    (memory.full_fine_tuning, 60),
    (quantised.int8_moments, 10),
    (quantised.quantised_teacher, 25),
    (quantised.adapters_with_large_teacher, 60),
    (speed.trl_step, 50),
    (speed.scoring, 15),
    (speed.updates, 40),
    (runs.resume, 90),
)


def main(arguments: list[str] | None = None) -> int:
    """Run the check; 1 if something failed."""
    parser = argparse.ArgumentParser(prog="opd.gpu_check", description=__doc__)
    kinds = ("cuda", "cpu")  # memory is measured, and limited, on the first card that is visible
    parser.add_argument(
        "--device",
        choices=kinds,
        default=kinds[0] if torch.cuda.is_available() else kinds[1],
        help="another card than the first: CUDA_VISIBLE_DEVICES=1",
    )
    parser.add_argument("--tiny", action="store_true", help="tiny shapes: does it run")
    parser.add_argument("--deadline", type=float, default=570.0, help="seconds for everything")
    parser.add_argument("--out", type=Path, default=Path("build/gpu-check"))
    parser.add_argument("--only", default="", help="names of sections, separated by commas")
    args = parser.parse_args(arguments)
    chosen, names = set(filter(None, args.only.split(","))), [s.__name__ for s, _ in SECTIONS]
    if unknown := chosen - set(names):
        parser.error(f"--only {', '.join(sorted(unknown))}: the sections are {', '.join(names)}")
    prepare_deterministic()
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    tiny = args.tiny or args.device == "cpu"
    device = Device(torch.device(args.device), tiny, args.deadline, args.out)
    for section, seconds in SECTIONS:
        device.section = section.__name__
        if chosen and device.section not in chosen:
            continue
        if device.seconds_left < seconds and not tiny:
            device.report("SKIP", f"{device.seconds_left:.0f} s left, it needs about {seconds:.0f}")
            continue
        try:
            section(device)
        except Exception as error:  # noqa: BLE001 - one section must not end the others
            traceback.print_exc(limit=8)
            device.require(False, f"broke: {type(error).__name__}: {str(error)[:300]}")
        device.reset_memory()
    counts = ", ".join(f"{device.count(level)} {level}" for level in ("PASS", "FAIL", "SKIP"))
    print(f"{counts}. Table: {args.out / 'gpu_check.md'}")  # noqa: T201
    return 1 if device.count("FAIL") else 0


if __name__ == "__main__":
    sys.exit(main())
