"""A model's configuration, read without its weights."""

from __future__ import annotations

from typing import Any

import transformers

from opd.errors import UserError
from opd.models.hub_name import split_revision


def read_config(name: str, *, key: str = "student.model") -> Any:
    """The transformers configuration of a model.

    Args:
        name: local folder or hub name, with @revision if it is not the newest.
        key: configuration key named in errors.

    Raises:
        UserError: it cannot be read.
    """
    path, revision = split_revision(name)
    try:
        return transformers.AutoConfig.from_pretrained(
            path, revision=revision, trust_remote_code=False
        )
    except (OSError, ValueError) as error:
        first = str(error).strip().splitlines()[0]
        raise UserError(f"{key}={name}: its configuration cannot be read: {first}") from None
