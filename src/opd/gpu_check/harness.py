"""Findings of a check, clocks and memory of its device."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from opd.run.jsonl import json_safe

Level = Literal["PASS", "FAIL", "INFO", "SKIP"]
GIB = 2**30


@dataclass(frozen=True)
class Finding:
    """One line of the result.

    Attributes:
        section: that found it.
        level: PASS or FAIL for what must hold, INFO for a measurement, SKIP for what did not run.
        text: what was checked.
        numbers: measured values by name.
    """

    section: str
    level: Level
    text: str
    numbers: dict[str, Any]

    def line(self) -> str:
        """The finding as text."""
        values = " ".join(f"{name}={_short(value)}" for name, value in self.numbers.items())
        return f"{self.level:<4} {self.section:<13} {self.text}  {values}".rstrip()


@dataclass
class Device:
    """The device under test and the size of what runs on it.

    Attributes:
        at: torch's name of it.
        tiny: shapes for a dry run.
        deadline: seconds that the whole check may take.
        out: folder of the result.
    """

    at: torch.device
    tiny: bool
    deadline: float
    out: Path
    findings: list[Finding] = field(default_factory=list)
    section: str = ""
    started: float = field(default_factory=time.monotonic)

    @property
    def is_cuda(self) -> bool:
        """Whether it is an NVIDIA GPU."""
        return self.at.type == "cuda"

    @property
    def seconds_left(self) -> float:
        """Seconds until the deadline."""
        return self.deadline - (time.monotonic() - self.started)

    def synchronize(self) -> None:
        """Wait for the device."""
        if self.is_cuda:
            torch.cuda.synchronize()

    def reset_memory(self) -> None:
        """Release cached memory and begin a new peak."""
        if self.is_cuda:
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def allocated(self) -> float:
        """GiB allocated now."""
        return torch.cuda.memory_allocated() / GIB if self.is_cuda else 0.0

    def peak(self) -> float:
        """GiB allocated at most since `reset_memory`."""
        return torch.cuda.max_memory_allocated() / GIB if self.is_cuda else 0.0

    def time(self, work: Callable[[], object], repeats: int = 1) -> float:
        """Seconds of one call of `work`, averaged."""
        self.synchronize()
        begin = time.perf_counter()
        for _ in range(repeats):
            work()
        self.synchronize()
        return (time.perf_counter() - begin) / repeats

    def report(self, level: Level, text: str, **numbers: Any) -> None:
        """Add a finding, print it and write the result file."""
        finding = Finding(self.section, level, text, numbers)
        self.findings.append(finding)
        elapsed = time.monotonic() - self.started
        print(f"[{elapsed:4.0f} s] {finding.line()}", flush=True)  # noqa: T201
        self.write()

    def require(self, condition: bool, text: str, **numbers: Any) -> None:
        """Report PASS or FAIL."""
        self.report("PASS" if condition else "FAIL", text, **numbers)

    def measure(self, text: str, **numbers: Any) -> None:
        """Report a measurement."""
        self.report("INFO", text, **numbers)

    def write(self) -> None:
        """Write gpu_check.json and the table gpu_check.md."""
        self.out.mkdir(parents=True, exist_ok=True)
        rows = [json_safe(vars(finding)) for finding in self.findings]
        (self.out / "gpu_check.json").write_text(json.dumps(rows, indent=1, default=str) + "\n")
        head = "| section | | what | numbers |\n|---|---|---|---|\n"
        (self.out / "gpu_check.md").write_text(head + "".join(map(_row, self.findings)))

    def count(self, level: Level) -> int:
        """Findings of a level."""
        return sum(finding.level == level for finding in self.findings)


def _row(finding: Finding) -> str:
    numbers = ", ".join(f"{name} {_short(value)}" for name, value in finding.numbers.items())
    cells = (finding.section, finding.level, finding.text, numbers)
    plain = [" ".join(cell.split()).replace("|", "\\|") for cell in cells]
    return f"| {' | '.join(plain)} |\n"


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
