"""Removes secrets from what is written or sent, by key name, pattern and environment variable."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from typing import Any

HIDDEN = "***"
# Names whose value is a secret. `api_key_env` names a variable, `max_tokens` counts: both stay.
_SECRET_NAME = re.compile(
    r"(?:^|[^a-z])(?:api_?key|access_?key|private_?key|(?:auth|access|hub|hf)_?token|token|secret"
    r"|password|passwd|credentials?|authorization)$",
    re.IGNORECASE,
)
_USER_INFO = re.compile(r"(?<=://)[^/\s@]+(?=@)")
_SECRET_PATTERNS = re.compile(
    r"\b(?:hf_[A-Za-z0-9]{16,}|sk-[A-Za-z0-9_-]{16,}|gh[pousr]_[A-Za-z0-9]{20,}"
    r"|AKIA[A-Z0-9]{16}|xox[abpr]-[A-Za-z0-9-]{10,})|(?<=[Bb]earer )[^\s'\"]{8,}"
)
_MIN_SECRET_LENGTH = 8


def redact(value: Any) -> Any:
    """A copy of JSON values without secrets."""
    if isinstance(value, dict):
        return {
            k: HIDDEN if _is_secret(str(k)) and v is not None else redact(v)
            for k, v in value.items()
        }
    if isinstance(value, list | tuple):
        return [redact(v) for v in value]
    return redact_text(value) if isinstance(value, str) else value


def redact_text(text: str) -> str:
    """A string without its secrets.

    Secrets are user information in URLs, well-known patterns of keys, and the values of environment
    variables whose name says so.
    """
    for secret in _environment_secrets():
        text = text.replace(secret, HIDDEN)
    return _SECRET_PATTERNS.sub(HIDDEN, _USER_INFO.sub(HIDDEN, text))


def redact_command(argv: Sequence[str]) -> list[str]:
    """A command line without secrets, also those given as `--token X` or `api_key=X`."""
    redacted: list[str] = []
    secret_follows = False
    for argument in argv:
        key, eq, _ = argument.partition("=")
        if secret_follows:
            redacted.append(HIDDEN)
        elif eq and _is_secret(key):
            redacted.append(f"{key}={HIDDEN}")
        else:
            redacted.append(redact_text(argument))
        secret_follows = not eq and argument.startswith("-") and _is_secret(argument)
    return redacted


def _is_secret(name: str) -> bool:
    """Whether the value of a key, option or variable of this name is a secret."""
    return bool(_SECRET_NAME.search(name.replace("-", "_")))


def _environment_secrets() -> list[str]:
    """Values of variables whose name says secret, longest first; file paths are none."""
    values = {
        v
        for k, v in os.environ.items()
        if _is_secret(k) and len(v) >= _MIN_SECRET_LENGTH and not v.startswith(("/", "~", "."))
    }
    return sorted(values, key=len, reverse=True)
