"""Single characters that generated worlds are written in."""

from __future__ import annotations

DIGITS = tuple("0123456789")
LETTERS = tuple("abcdefghijklmnopqrstuvwxyz")
CAPITALS = tuple("ABCDEFGHIJKLMNOPQRSTUVWXYZ")
FILLER_CHARACTERS = tuple(".,!~^@$&*|")
HEX = tuple("0123456789abcdef")


def alias(letter: str) -> str:
    """The other notation of a letter or digit: a capital."""
    return letter.upper() if letter.isalpha() else CAPITALS[int(letter)]
