"""Text of models and servers made safe to show: no invisible characters, no terminal commands."""

from __future__ import annotations

import re
import unicodedata
from pathlib import PurePath

# CSI, OSC (with its text, up to BEL or ST), the other string commands, and two-byte escapes.
_TERMINAL = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]"
    r"|(?:\x1b[\]PX^_]|[\x90\x98\x9d-\x9f])[^\x07\x1b\x9c]*(?:\x07|\x1b\\|\x9c)?"
    r"|\x1b[ -/]*[0-~]"
)
_KEPT = "\n\t"
_HIDDEN = frozenset(("Cc", "Cf", "Cn", "Co", "Cs", "Zl", "Zp"))


def visible(text: str) -> str:
    """The text with every invisible character replaced by a visible one.

    Control characters become control pictures (U+2400 on), others such as bidi overrides,
    zero-width and unassigned characters their code point in brackets. New lines and tabs stay.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(c if c in _KEPT else _visible_char(c) for c in text)


def _visible_char(char: str) -> str:
    if unicodedata.category(char) not in _HIDDEN:
        return char
    code = ord(char)
    if code < 0x20:
        return chr(0x2400 + code)
    return "\u2421" if code == 0x7F else f"\u27e8U+{code:04X}\u27e9"


def for_terminal(text: str) -> str:
    """The text as one line without terminal commands and invisible characters."""
    return "".join(_visible_char(c) for c in _TERMINAL.sub("", text))


def short_name(model: str) -> str:
    """A hub name unchanged, the last part of a local path."""
    return PurePath(model).name if model.startswith(("/", ".", "~")) else model
