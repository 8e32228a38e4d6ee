"""Runs of the product from a configuration, quiet, with the folder closed afterwards."""

from __future__ import annotations

import hashlib
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from opd import config
from opd.demo.run_config import demo_config
from opd.recipes.distillation import distill
from opd.run.console import Console
from opd.setup.session import build


def open_run(data: dict[str, Any], *, resume: bool = False, overwrite: bool = False):
    """A session and its cold start's completions; close `session.folder` afterwards."""
    quiet = Console("quiet")
    return build(config.parse(data), resume=resume, overwrite=overwrite, console=quiet)


@contextmanager
def opened(data: dict[str, Any], **flags: bool):
    """As `open_run`, closed at the end."""
    session, completions = open_run(data, **flags)
    try:
        yield session, completions
    finally:
        session.folder.close()


def run_to_end(data: dict[str, Any], **flags: bool) -> dict[str, Any]:
    """A whole run; returns its summary."""
    with opened(data, **flags) as (session, completions):
        return distill(session, completions)


def short_demo(folder: Path, prompts: int = 256) -> dict:
    """The demo's run with its first prompts alone: reading 2000 takes longer than a few steps."""
    data = demo_config(folder)
    shorten_prompts(data, prompts)
    return data


def run_config(folder: Path, *, steps=6, **changes) -> dict:
    """A small run of the demo pair; `changes` are merged section by section."""
    data = short_demo(folder)
    data["train"] |= {"steps": steps, "prompts_per_step": 4}
    data["output"] |= {"save_every": 2, "rollout_sample": 2}
    data["eval"] = [e | {"limit": 8, "every": 2} for e in data["eval"]]
    for section, values in changes.items():
        data[section] = data.get(section, {}) | values
    gold = data["loss"].get("terms", {}).get("sft_path")
    if gold is not None:  # beside the run folder, where the demo puts its prompts
        path = folder.parent / gold
        path.write_text('{"prompt": "sum pig gnu jay", "completion": "so pig 1 ANS 1"}\n' * 3)
        data["loss"]["terms"]["sft_path"] = str(path)
    return data


def shorten_prompts(data: dict, count: int) -> None:
    """Keep the first prompts of a run's file alone."""
    path = Path(data["prompts"]["path"])
    short = path.with_name(f"first-{count}.jsonl")
    short.write_text("".join(path.read_text().splitlines(keepends=True)[:count]))
    data["prompts"]["path"] = str(short)


def digest(folder: Path) -> dict[str, str]:
    """What must be equal after any number of interruptions."""
    files = [folder / "metrics.jsonl", *sorted((folder / "checkpoints").rglob("*.safetensors"))]
    files += sorted((folder / "final").rglob("*.safetensors"))
    files += sorted((folder / "eval").glob("*.json")) + sorted((folder / "rollouts").glob("*"))
    return {str(f.relative_to(folder)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


class Counting:
    """A sampler or teacher that counts how often it is asked."""

    def __init__(self, inner):
        self.inner, self.calls = inner, 0

    def sync(self, version):
        self.inner.sync(version)

    def sample(self, *args, **kwargs):
        self.calls += 1
        return self.inner.sample(*args, **kwargs)

    def score(self, *args, **kwargs):
        self.calls += 1
        return self.inner.score(*args, **kwargs)
