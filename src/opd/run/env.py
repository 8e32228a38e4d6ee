"""The environment of a run: versions, machine, devices, git commit, command line; no secrets."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from opd.run.devices import describe_devices
from opd.run.redact import redact_command

PACKAGES = ("opd", "torch", "transformers", "peft", "safetensors", "numpy", "pyarrow")


def environment(seed: int | None) -> dict[str, Any]:
    """Collect the content of `env.json`."""
    return {
        "versions": package_versions(),
        "platform": platform.platform(),
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
        "devices": describe_devices(),
        "git": git_state(Path.cwd()),
        "command": redact_command(sys.argv),
        "seed": seed,
    }


def git_state(folder: Path) -> dict[str, Any] | None:
    """Commit of the checkout around `folder` and whether it is dirty; None outside one."""
    sha = _git(folder, "rev-parse", "HEAD")
    if sha is None:
        return None
    changes = _git(folder, "status", "--porcelain", "--untracked-files=no")
    return {"sha": sha, "dirty": changes != ""}


def _git(folder: Path, *args: str) -> str | None:
    try:
        process = subprocess.run(
            ["git", *args], cwd=folder, capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return process.stdout.strip()


@cache
def package_versions() -> dict[str, str | None]:
    """Versions of Python and of the packages that affect numbers, without importing them."""
    return {"python": platform.python_version()} | {p: _version(p) for p in PACKAGES}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
