"""Extraction of an answer from text, and parsing of numbers.

Text comes from models, so every step is linear in its length and nothing is evaluated.
"""

from __future__ import annotations

import re
import unicodedata
from collections import deque
from dataclasses import dataclass
from fractions import Fraction

MAX_ANSWER = 2000  # characters; no honest answer is longer
MAX_DIGITS = 300  # an int of more digits is an attack on arithmetic, not an answer

_BOX = "\\boxed{"
_MARK = re.compile(r"(?P<tag><answer>)|\b(?-i:ANS)\b:?|####|\banswer[*_ ]{0,4}:", re.IGNORECASE)
_NUMBER = re.compile(
    rf"(?P<sign>(?:(?<![\w)])[-+])?)\s?\$?(?:\\[dt]?frac\{{(?P<a>[0-9]{{1,{MAX_DIGITS}}})\}}"
    rf"\{{(?P<b>[0-9]{{1,{MAX_DIGITS}}})\}}"
    rf"|(?P<whole>[0-9]{{1,3}}(?:,[0-9]{{3}})+(?![0-9])|[0-9]{{1,{MAX_DIGITS}}})?"
    rf"(?P<dec>\.[0-9]{{1,{MAX_DIGITS}}})?(?:[eE](?P<exp>[-+]?[0-9]{{1,3}})(?![0-9A-Za-z]))?"
    rf"(?:\s?/\s?(?P<den>[0-9]{{1,{MAX_DIGITS}}}))?)(?P<percent>\s?%)?"
)
_WORDS = re.compile(r"(?:[A-Za-z\s,:;'\"*~$€£]|\.(?![0-9]))*")
_WORD = r"[A-Za-z]+(?:\^?\{?[0-9]\}?)?"  # of a unit: cm, m^2
_UNIT = re.compile(rf"(?:\s+{_WORD}|[A-Za-z]{_WORD})?(?:[\s/]+{_WORD})*[°\s.*$;,]*")
_WRAPPED = re.compile(r"\\(?:text|mathrm|textbf|mathbf|mbox)\s?\{([^{}]*)\}")


@dataclass(frozen=True, slots=True)
class ExtractedAnswer:
    """The answer in a completion; `marked` tells whether a marker announced it."""

    text: str
    marked: bool


def extract_answer(text: str) -> ExtractedAnswer:
    r"""Extract the answer from a completion: what the last marker announces, else the last line.

    Markers: `\boxed{..}`, `<answer>..</answer>`, `Answer: ..`, `ANS ..` and `#### ..` (the rest
    of the line). The one that starts last counts.
    """
    box = _last_box(text)
    marks = deque(_MARK.finditer(text, 0 if box is None else box[0]), maxlen=1)
    mark = marks[0] if marks else None
    if mark is not None and (box is None or mark.start() > box[0]):
        return ExtractedAnswer(_text_after(mark), True)
    if box is not None:
        return ExtractedAnswer(box[1], True)
    lines = text.rstrip().rsplit("\n", 1)
    return ExtractedAnswer(lines[-1].strip()[-MAX_ANSWER:], False)


def final_answer(text: str) -> str:
    r"""The bare answer of a ground truth that is a worked solution (`#### 72`, `\boxed{72}`)."""
    if _BOX in text or "####" in text:
        answer = extract_answer(text)
        if answer.marked and answer.text:
            return answer.text
    return text.strip()


def _last_box(text: str) -> tuple[int, str] | None:
    """Start and content of the last complete box; a box cut off by the length limit has none."""
    end = len(text)
    for _ in range(4):
        start = text.rfind(_BOX, 0, end)
        if start < 0:
            return None
        depth, content = 1, start + len(_BOX)
        for i in range(content, min(len(text), content + MAX_ANSWER)):
            depth += {"{": 1, "}": -1}.get(text[i], 0)
            if depth == 0:
                return start, text[content:i].strip()
        end = start
    return None


def _text_after(mark: re.Match[str]) -> str:
    """The answer that follows a marker: up to the closing tag, or the rest of the line."""
    rest = mark.string[mark.end() : mark.end() + MAX_ANSWER]
    if mark["tag"]:
        return re.split(r"</answer>", rest, maxsplit=1, flags=re.IGNORECASE)[0].strip()
    rest = rest.lstrip(" *_\t\r\n")
    return rest.split("\n", 1)[0].strip()


def normalise(text: str) -> str:
    r"""Remove differences of formatting: case, spaces, `$`, `\text`, full stop."""
    text = unicodedata.normalize("NFC", text[:MAX_ANSWER]).replace("\u2212", "-")
    text = re.sub(r"\\(?:left|right|displaystyle|[,;:! ])(?![a-zA-Z])", "", text)
    text = re.sub(r"\\[dt]frac(?![a-zA-Z])", r"\\frac", text)
    text = _WRAPPED.sub(r"\1", text)
    text = text.strip().strip("$").strip("*").removesuffix(".").strip("$")
    return re.sub(r"\s+", "", text).casefold()


@dataclass(frozen=True, slots=True)
class Number:
    """A number as written; a percent sign is separate, because it is often dropped."""

    text: str
    value: Fraction
    percent: bool

    def equals(self, other: Number) -> bool:
        """Exact equality; `50`, `50%` and `0.5` agree where a percent sign is involved."""
        if self.value == other.value:
            return True
        if self.percent == other.percent:
            return False
        return self._fraction() == other._fraction()

    def _fraction(self) -> Fraction:
        return self.value / 100 if self.percent else self.value


def parse_number(text: str) -> Number | None:
    r"""Parse a text that is one number, words and units aside; None for anything else.

    `x = 1,234`, `\frac{3}{4}`, `-0.5 cm`, `$12`, `50\%`; never `\sqrt{3}`, `2^3` or `3 or 5`.
    """
    if len(text) > MAX_ANSWER:
        return None
    text = _plain_digits(text).rsplit("=", 1)[-1]
    start = _end_of_words(text)
    match = _NUMBER.match(text, start)
    if match is None or not _has_digits(match) or text[max(0, start - 1) : start].isalpha():
        return None
    unit = _UNIT.fullmatch(text, match.end())
    return None if unit is None else _to_number(match)


def last_number(text: str) -> Number | None:
    """The last number anywhere in a text."""
    number = None
    for match in _NUMBER.finditer(_plain_digits(text[-MAX_ANSWER:])):
        if _has_digits(match):
            number = _to_number(match) or number
    return number


def _plain_digits(text: str) -> str:
    """Text without LaTeX around numbers, signs and units."""
    text = unicodedata.normalize("NFC", text).replace("\u2212", "-")
    text = text.replace("\\%", "%").replace("{,}", ",").replace("\\,", "").replace("\\!", "")
    text = text.replace("\\$", "$").replace("^\\circ", "°").replace("^{\\circ}", "°")
    return _WRAPPED.sub(r" \1", text)


def _end_of_words(text: str) -> int:
    """Where words before a number end."""
    words = _WORDS.match(text)
    return 0 if words is None else words.end()


def _has_digits(match: re.Match[str]) -> bool:
    return any(match[part] is not None for part in ("a", "whole", "dec"))


def _to_number(match: re.Match[str]) -> Number | None:
    if match["a"] is not None:
        top, bottom = Fraction(int(match["a"])), int(match["b"])
    else:
        digits = (match["whole"] or "0").replace(",", "") + (match["dec"] or "")
        top = Fraction(digits) * Fraction(10) ** int(match["exp"] or 0)
        bottom = int(match["den"] or 1)
    if bottom == 0:
        return None
    value = top / bottom
    signed = -value if match["sign"] == "-" else value
    return Number(match[0].strip(), signed, match["percent"] is not None)
