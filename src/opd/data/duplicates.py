"""When two prompts ask the same question, however they are dressed.

Two keys tell: letters and digits of the whole text, and those of what is left of it without the
frame that all prompts of its set share (a template). Nearly equal questions are found by MinHash
and judged by their exact similarity. Texts are only compared, never run.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from opd.data.prompts import answer_of, conversation, prompt_column
from opd.data.readers import read_rows
from opd.rng import Stream, generator
from opd.types import Prompt

RUN = 6  # letters and digits a shingle
BANDS, ROWS = 16, 4  # at a similarity of .8 all but 1 pair in 5,000 meets in a band
_NUMBER = re.compile(r"\d+")


def question_key(text: str) -> str:
    """Letters and digits of a text, case folded: equal for questions that differ in layout alone.

    A text without any letter or digit is its own key.
    """
    return "".join(c for c in text.casefold() if c.isalnum()) or text


def questions_of(path: str) -> list[Prompt]:
    """What the rows of a prompt file ask, before any template: their last user turns, not encoded.

    Raises:
        UserError: as `opd.data.prompts.load_prompts`, for what concerns rows.
    """
    rows = read_rows(path)
    column = prompt_column(path, rows)
    return [
        Prompt(row.index, (), conversation(row, column)[-1]["content"], answer_of(row))
        for row in rows
    ]


def without(prompts: Sequence[Prompt], used: Iterable[Prompt]) -> tuple[Prompt, ...]:
    """The prompts whose question is none of the used ones'."""
    keys = {question_key(p.text) for p in used}
    return tuple(p for p in prompts if question_key(p.text) not in keys)


def unframed(texts: Sequence[str], *, least: int = 8) -> list[str]:
    """Texts without the beginning and the end that all of them share, cut between words.

    Fewer than `least` different texts may share more than a frame, and are left alone.
    """
    if len(set(texts)) < max(2, least):
        return list(texts)
    start = _common(texts)
    end = _common([t[len(start) :][::-1] for t in texts])[::-1]
    head = len(start) - len(re.split(r"\s", start)[-1])
    tail = len(end) - len(re.split(r"\s", end)[0])
    return [t[head : len(t) - tail] for t in texts]


def _common(texts: Sequence[str]) -> str:
    """The longest beginning of all texts: that of the first and last in order."""
    first, last = min(texts), max(texts)
    same = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), None)
    return first[:same] if same is not None else min(first, last, key=len)


def shingles(key: str) -> np.ndarray:
    """Distinct hashes of all runs of RUN characters of a key, uint64 (n,); sorted."""
    codes = np.frombuffer(key.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    wide = np.pad(codes, (0, max(0, RUN - len(codes)))).astype(np.uint64)
    windows = np.lib.stride_tricks.sliding_window_view(wide, RUN)
    powers = np.uint64(0x9E3779B97F4A7C15) ** np.arange(1, RUN + 1, dtype=np.uint64)
    return np.unique((windows * powers).sum(1, dtype=np.uint64))


def similarity(a: np.ndarray, b: np.ndarray) -> float:
    """Jaccard similarity of two sets of shingles."""
    common = len(np.intersect1d(a, b, assume_unique=True))
    return common / (len(a) + len(b) - common)


class Near:
    """Questions met so far, to be asked for a near duplicate.

    Only questions with the same numbers in the same order can be duplicates: a problem with other
    numbers is another problem.
    """

    def __init__(self, threshold: float) -> None:
        """Hold duplicates to be at least `threshold` similar."""
        rng = generator(0, Stream.MINHASH)
        odd = rng.integers(2**63, size=BANDS * ROWS, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
        self._multipliers, self.threshold = odd, threshold
        self._shingles: dict[int, np.ndarray] = {}
        self._buckets: dict[tuple[object, ...], list[int]] = {}

    def add(self, name: int, text: str) -> None:
        """Remember a question under a number."""
        found = shingles(question_key(text))
        self._shingles[name] = found
        for bucket in self._places(text, found):
            self._buckets.setdefault(bucket, []).append(name)

    def find(self, text: str) -> int | None:
        """The most similar question met so far, if it is similar enough."""
        mine = shingles(question_key(text))
        met = {n for place in self._places(text, mine) for n in self._buckets.get(place, ())}
        best = max(((similarity(mine, self._shingles[n]), -n) for n in met), default=(0.0, 0))
        return -best[1] if met and best[0] >= self.threshold else None

    def _places(self, text: str, found: np.ndarray) -> list[tuple[object, ...]]:
        # Multiply-shift hashing: the upper half of a product by an odd number.
        mixed = (found[:, None] * self._multipliers[None, :]) >> np.uint64(32)
        least = mixed.min(0).reshape(BANDS, ROWS)
        numbers = tuple(_NUMBER.findall(text))
        return [(band, row.tobytes(), numbers) for band, row in enumerate(least)]


@dataclass(frozen=True)
class Leak:
    """A training prompt that asks what an evaluation set asks.

    Attributes:
        row: index of the training prompt.
        label: the evaluation set.
        eval_row: index of its prompt.
        exact: letters and digits agree; else the texts are merely similar.
    """

    row: int
    label: str
    eval_row: int
    exact: bool


def leaks(
    prompts: Sequence[Prompt], held_out: Sequence[tuple[str, Sequence[Prompt]]], *, near: float
) -> list[Leak]:
    """Training prompts whose question stands in an evaluation set, one entry a prompt and set.

    Args:
        prompts: of training.
        held_out: evaluation sets by label.
        near: similarity from which questions with the same numbers count.
    """
    bare = unframed([p.text for p in prompts])
    found = []
    for label, others in held_out:
        theirs = unframed([p.text for p in others])
        keys: dict[str, int] = {}
        index = Near(near)
        for place, (prompt, text) in enumerate(zip(others, theirs, strict=True)):
            for key in (question_key(prompt.text), question_key(text)):
                keys.setdefault(key, place)
            index.add(place, text)
        for prompt, text in zip(prompts, bare, strict=True):
            at = [keys[k] for k in map(question_key, (prompt.text, text)) if k in keys]
            meant = at[0] if at else index.find(text)
            if meant is not None:
                found.append(Leak(prompt.index, label, others[meant].index, bool(at)))
    return found


def repeats(prompts: Sequence[Prompt], *, near: float) -> dict[int, int]:
    """Prompts that ask what an earlier one asks: {index: index of the earlier one}.

    Never of another ground truth: two answers to one question are two questions to a grader.
    """
    index, firsts = Near(near), {}
    seen: dict[tuple[str, str | None], int] = {}
    bare = unframed([p.text for p in prompts])
    for place, (prompt, text) in enumerate(zip(prompts, bare, strict=True)):
        key = (question_key(text), prompt.answer)
        earlier = seen.get(key)
        if earlier is None:
            earlier = index.find(text)
            if earlier is not None and prompts[earlier].answer != prompt.answer:
                earlier = None
        if earlier is None:
            seen[key] = place
            index.add(place, text)
        else:
            firsts[prompt.index] = prompts[earlier].index
    return firsts
