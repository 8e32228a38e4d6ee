"""Which modules of a model adapters may be put on."""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import nn

from opd.errors import UserError

EVERY = "all-linear"


def require_target_modules(model: nn.Module, wanted: str | Sequence[str]) -> None:
    """Check that every name of student.lora.target_modules is that of a module of the model.

    A name alone is a pattern of whole names, of which peft says whether it matches any.

    Args:
        model: without adapters.
        wanted: all-linear, a pattern, or names.

    Raises:
        WrongModules: naming those that are none, and what there is.
    """
    if isinstance(wanted, str):
        return
    names = [name for name, _ in model.named_modules()]
    unknown = [w for w in wanted if not any(n == w or n.endswith(f".{w}") for n in names)]
    if unknown or not wanted:
        raise _no_such_modules(model, wanted, unknown)


class WrongModules(UserError):
    """student.lora.target_modules names what the model does not have."""


def no_match(model: nn.Module, wanted: str | Sequence[str]) -> WrongModules:
    """The refusal of a pattern that no module of a model matches."""
    return _no_such_modules(model, wanted, [wanted] if isinstance(wanted, str) else [])


def _no_such_modules(
    model: nn.Module, wanted: str | Sequence[str], unknown: Sequence[str]
) -> WrongModules:
    layers = [name for name, m in model.named_modules() if isinstance(m, nn.Linear)]
    allowed = sorted({name.rpartition(".")[2] for name in layers} - {"lm_head"})
    near = [m for u in unknown for m in difflib.get_close_matches(u, allowed, n=1)]
    hint = f" Did you mean {near[0]}?" if near else ""
    what = f"{', '.join(unknown)}: no module of this model." if unknown else "no module is named."
    return WrongModules(
        f"student.lora.target_modules={wanted!r}: {what}{hint} Allowed: {EVERY}, or a list of "
        f"{', '.join(allowed)}."
    )


@contextmanager
def without_peft_warnings() -> Iterator[None]:
    """Keep from the user what peft still asks of transformers by an old name."""
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", message=".*is_gradient_checkpointing", category=FutureWarning
        )
        yield
