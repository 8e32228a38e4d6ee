"""The tokenizer of a teacher that does not have the student's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from opd.config import LocalTeacher, Run, ServerTeacher
from opd.models.tokenizers import load_tokenizer


def own_tokenizer(cfg: Run, load: Callable[..., Any] = load_tokenizer) -> Any | None:
    """The teacher's tokenizer, where it is not the student's.

    Args:
        cfg: the run.
        load: reads a tokenizer of a name and a key.

    Raises:
        UserError: it cannot be read.
    """
    spec = cfg.teacher
    if not isinstance(spec, LocalTeacher | ServerTeacher) or spec.tokenizer is None:
        return None
    return load(spec.tokenizer, key="teacher.tokenizer")
