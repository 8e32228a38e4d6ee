"""Text of a server, which is not trusted: made printable, parsed strictly."""

from __future__ import annotations

import json
import re
from typing import Any

_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2066-\u2069]+")


def clean(text: str | bytes) -> str:
    """Text of a server for a message: no control or direction-changing characters, one line."""
    if isinstance(text, bytes):
        text = text.decode("utf-8", "replace")
    return " ".join(_UNPRINTABLE.sub(" ", text).split())


def parse_json(data: bytes) -> Any:
    """JSON in UTF-8, without NaN and Infinity.

    Raises:
        ValueError: it is not JSON, or nested too deeply.
    """
    try:
        return json.loads(data.decode("utf-8"), parse_constant=_refuse_constant)
    except RecursionError as error:
        raise ValueError(str(error)) from None


def error_message(data: bytes) -> str:
    """What an error answer says, from JSON or HTML, at most 500 characters; "" if nothing."""
    text = data[:4000].decode("utf-8", "replace")
    try:
        value = json.loads(text)
        error = value.get("error", value) if isinstance(value, dict) else value
        text = str(error.get("message", error)) if isinstance(error, dict) else str(error)
    except (ValueError, RecursionError):
        text = re.sub(r"<[^>]{0,200}>", " ", text)
    return clean(text)[:500]


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not a JSON number")
