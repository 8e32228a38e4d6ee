"""On-policy distillation of language models. Importing this package does not import torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from opd.commands.coldstart import run_coldstart as coldstart
    from opd.commands.library import Run, check, compare, evaluate, export, report, select
    from opd.commands.results import Result
    from opd.commands.train import run_train as train
    from opd.config import load, parse
    from opd.errors import UserError

    __version__: str

__all__ = [
    "Result",
    "Run",
    "UserError",
    "check",
    "coldstart",
    "compare",
    "evaluate",
    "export",
    "load",
    "parse",
    "report",
    "select",
    "train",
]

# The public names and where they are defined.
_HOMES = {
    "load": ("opd.config", "load"),
    "parse": ("opd.config", "parse"),
    "UserError": ("opd.errors", "UserError"),
    "train": ("opd.commands.train", "run_train"),
    "coldstart": ("opd.commands.coldstart", "run_coldstart"),
    "Result": ("opd.commands.results", "Result"),
}
_HOMES |= {
    name: ("opd.commands.library", name)
    for name in ("Run", "check", "compare", "evaluate", "export", "report", "select")
}


def __getattr__(name: str) -> Any:
    """Public names, imported when they are asked for (PEP 562)."""
    import importlib
    import importlib.metadata

    if name == "__version__":
        return importlib.metadata.version("opd")
    if name not in _HOMES:
        raise AttributeError(f"module 'opd' has no attribute {name!r}")
    module, attribute = _HOMES[name]
    return getattr(importlib.import_module(module), attribute)
