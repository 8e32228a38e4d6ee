"""Fractions of 1 in percent."""

from __future__ import annotations

MOST_DIGITS = 4


def percents(value: float, digits: int = 1) -> str:
    """A fraction in percent without its sign; only 0 and 1 are 0 and 100.

    A fraction that would round to either has more digits, so that a chance or a bound of an
    interval does not read as certain: 0.9998 is 99.98.

    Args:
        value: finite.
        digits: after the point.
    """
    text = f"{100 * value:.{digits}f}"
    while 0 < value < 1 and float(text) in (0, 100) and digits < MOST_DIGITS:
        digits += 1
        text = f"{100 * value:.{digits}f}"
    if 0 < value < 1 and float(text) in (0, 100):
        nearest = 10.0**-digits
        text = f"{nearest if value < 0.5 else 100 - nearest:.{digits}f}"
    return text[1:] if text[0] == "-" and float(text) == 0 else text
