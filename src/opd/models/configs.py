"""A model's configuration, read without its weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from opd.errors import UserError
from opd.models.hub_name import split_revision

if TYPE_CHECKING:
    import torch


def read_config(name: str, *, key: str = "student.model") -> Any:
    """The transformers configuration of a model.

    Args:
        name: local folder or hub name, with @revision if it is not the newest.
        key: configuration key named in errors.

    Raises:
        UserError: it cannot be read.
    """
    import transformers  # seconds: not before a model is asked for

    path, revision = split_revision(name)
    try:
        return transformers.AutoConfig.from_pretrained(
            path, revision=revision, trust_remote_code=False
        )
    except (OSError, ValueError) as error:
        first = str(error).strip().splitlines()[0]
        raise UserError(f"{key}={name}: its configuration cannot be read: {first}") from None


def stored_dtype(config: Any) -> torch.dtype:
    """What the weights of a checkpoint are stored in, as its config says; else float32."""
    import torch  # seconds: not before a model is asked for

    stored = getattr(config, "dtype", None) or getattr(config.get_text_config(), "dtype", None)
    if isinstance(stored, str):
        stored = getattr(torch, stored)
    return stored if isinstance(stored, torch.dtype) else torch.float32


def context_length_of(config: Any) -> int | None:
    """Longest sequence that a model's config allows and computes independently of its batch.

    With longrope (Phi-3, Phi-4-mini) one row beyond the original context changes the rotation of
    every token of its call: scores would depend on the micro-batch, and decoding would use keys
    rotated in another way. So those models end at their original context here.
    """
    lengths = [getattr(config, "max_position_embeddings", None)]
    longrope = rope_parameters(config, "longrope")
    lengths += [r.get("original_max_position_embeddings") for r in longrope]
    return min((n for n in lengths if n is not None), default=None)


def rope_parameters(config: Any, *types: str) -> list[dict[str, Any]]:
    """The rotary embeddings of these types in a config; some models have one per layer type."""
    rope = getattr(config, "rope_parameters", None) or {}
    each = [rope, *(v for v in rope.values() if isinstance(v, dict))]
    return [r for r in each if r.get("rope_type") in types]
