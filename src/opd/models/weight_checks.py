"""Refuses a model some of whose weights are not those of its files, or no numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from opd.errors import UserError


def require_all_weights(loading: Mapping[str, Any], model: str) -> None:
    """Check that every weight came from the files, in its shape.

    transformers draws missing weights at random and goes on; such a model is another one.

    Args:
        loading: its loading info.
        model: key and name, for the message.

    Raises:
        UserError: naming the weights.
    """
    missing = sorted(loading.get("missing_keys") or ())
    if missing:
        raise UserError(
            f"{model}: {len(missing)} weights are not in its files: {', '.join(missing[:4])}"
            f"{' ...' if len(missing) > 4 else ''}. They would be random numbers. Save or download "
            "the model again."
        )
    wrong = sorted(loading.get("mismatched_keys") or (), key=str)
    if wrong:
        shown = "; ".join(_describe_mismatch(each) for each in wrong[:4])
        raise UserError(
            f"{model}: {len(wrong)} weights have another shape than its config.json says: {shown}. "
            "Are the files of two models mixed up?"
        )


def _describe_mismatch(entry: Any) -> str:
    if not isinstance(entry, tuple | list) or len(entry) != 3:
        return str(entry)
    name, saved, expected = entry
    return f"{name} is {tuple(saved)}, expected {tuple(expected)}"


def require_finite_weights(module: nn.Module, model: str) -> None:
    """Check that no weight is NaN or infinite.

    Args:
        module: the model.
        model: key and name, for the message.

    Raises:
        UserError: naming the first that are.
    """
    numbers = [(n, p) for n, p in module.named_parameters() if p.is_floating_point()]
    broken = [n for n, p in numbers if not torch.isfinite(p).all()]
    if broken:
        raise UserError(
            f"{model}: {len(broken)} weights hold NaN or inf: {', '.join(broken[:4])}. Was "
            "its training broken, or its file damaged?"
        )
