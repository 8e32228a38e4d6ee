"""On-policy distillation of language models. Importing this package does not import torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from opd.config import load, parse
    from opd.errors import UserError
    from opd.faces import run_coldstart as coldstart
    from opd.faces import run_train as train
    from opd.selecting import run_select as select

__all__ = ["UserError", "coldstart", "load", "parse", "select", "train"]
__version__ = "0.1.0"

_PLACES = {
    "load": ("opd.config", "load"),
    "parse": ("opd.config", "parse"),
    "UserError": ("opd.errors", "UserError"),
    "train": ("opd.faces", "run_train"),
    "coldstart": ("opd.faces", "run_coldstart"),
    "select": ("opd.selecting", "run_select"),
}


def __getattr__(name: str) -> Any:
    """Public names, imported when they are asked for (PEP 562)."""
    import importlib

    if name not in _PLACES:
        raise AttributeError(f"module 'opd' has no attribute {name!r}")
    module, attribute = _PLACES[name]
    return getattr(importlib.import_module(module), attribute)
