"""Duplicate questions, whatever their template and layout.

Two keys decide: letters and digits of the whole text, and those of the text without the frame that
all prompts of its set share (a template). Near duplicates are found by MinHash and decided by their
exact Jaccard similarity. Texts are only compared, never run.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from opd.data.prompts import answer_of, conversation, prompt_column
from opd.data.readers import Source, read_rows, source_name
from opd.rng import Stream, generator
from opd.types import Prompt

SHINGLE_LENGTH = 6  # letters and digits
BANDS, ROWS = 16, 4  # at a similarity of .8 all but 1 pair in 5,000 share a bucket
_NUMBER = re.compile(r"\d+")


def question_key(text: str) -> str:
    """Letters and digits of a text, case folded: equal for questions of different layout.

    The key of a text without any letter or digit is the text.
    """
    return "".join(c for c in text.casefold() if c.isalnum()) or text


def load_questions(source: Source) -> list[Prompt]:
    """Read the last user turns of a prompt file, without template and not tokenized.

    Raises:
        UserError: as `opd.data.prompts.load_prompts`, for what concerns rows.
    """
    rows = read_rows(source)
    column = prompt_column(source_name(source), rows)
    return [
        Prompt(row.index, (), conversation(row, column)[-1]["content"], answer_of(row))
        for row in rows
    ]


def exclude_questions(prompts: Sequence[Prompt], used: Iterable[Prompt]) -> tuple[Prompt, ...]:
    """The prompts that ask none of the questions of `used`."""
    keys = {question_key(p.text) for p in used}
    return tuple(p for p in prompts if question_key(p.text) not in keys)


def strip_common_frame(texts: Sequence[str], *, min_texts: int = 8) -> list[str]:
    """Texts without the beginning and the end that all of them share, cut between words.

    Fewer than `min_texts` different texts may share more than a frame, and stay as they are.
    """
    if len(set(texts)) < max(2, min_texts):
        return list(texts)
    start = _common_prefix(texts)
    end = _common_prefix([t[len(start) :][::-1] for t in texts])[::-1]
    head = len(start) - len(re.split(r"\s", start)[-1])
    tail = len(end) - len(re.split(r"\s", end)[0])
    return [t[head : len(t) - tail] for t in texts]


def _common_prefix(texts: Sequence[str]) -> str:
    """The longest prefix of all texts: that of the first and last in sorted order."""
    first, last = min(texts), max(texts)
    shorter = min(len(first), len(last))
    return first[: next((i for i in range(shorter) if first[i] != last[i]), shorter)]


def shingles(key: str) -> np.ndarray:
    """Distinct hashes of all SHINGLE_LENGTH consecutive characters, uint64 (n,), sorted."""
    codes = np.frombuffer(key.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    wide = np.pad(codes, (0, max(0, SHINGLE_LENGTH - len(codes)))).astype(np.uint64)
    windows = np.lib.stride_tricks.sliding_window_view(wide, SHINGLE_LENGTH)
    powers = np.uint64(0x9E3779B97F4A7C15) ** np.arange(1, SHINGLE_LENGTH + 1, dtype=np.uint64)
    return np.unique((windows * powers).sum(1, dtype=np.uint64))


def similarity(a: np.ndarray, b: np.ndarray) -> float:
    """Jaccard similarity of two sets of shingles."""
    common = len(np.intersect1d(a, b, assume_unique=True))
    return common / (len(a) + len(b) - common)


class NearDuplicateIndex:
    """Questions seen so far, searched for near duplicates by MinHash and LSH banding.

    Only questions with the same numbers in the same order can be duplicates: a problem with other
    numbers is another problem.
    """

    def __init__(self, threshold: float) -> None:
        """Duplicates have a Jaccard similarity of `threshold` or more."""
        rng = generator(0, Stream.MINHASH)
        odd = rng.integers(2**63, size=BANDS * ROWS, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
        self._multipliers, self.threshold = odd, threshold
        self._shingles: dict[int, np.ndarray] = {}
        self._buckets: dict[tuple[object, ...], list[int]] = {}

    def add(self, name: int, text: str) -> None:
        """Add a question under a number."""
        hashes = shingles(question_key(text))
        self._shingles[name] = hashes
        for bucket in self._buckets_of(text, hashes):
            self._buckets.setdefault(bucket, []).append(name)

    def find(self, text: str) -> int | None:
        """The number of the most similar question, the earliest of equals; None below threshold."""
        hashes = shingles(question_key(text))
        buckets = self._buckets_of(text, hashes)
        candidates = {n for bucket in buckets for n in self._buckets.get(bucket, ())}
        if not candidates:
            return None
        score, negative = max((similarity(hashes, self._shingles[n]), -n) for n in candidates)
        return -negative if score >= self.threshold else None

    def _buckets_of(self, text: str, hashes: np.ndarray) -> list[tuple[object, ...]]:
        # Multiply-shift hashing: the upper half of a product by an odd number.
        mixed = (hashes[:, None] * self._multipliers[None, :]) >> np.uint64(32)
        minima = mixed.min(0).reshape(BANDS, ROWS)
        numbers = tuple(_NUMBER.findall(text))
        return [(band, row.tobytes(), numbers) for band, row in enumerate(minima)]


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


def find_leaks(
    prompts: Sequence[Prompt],
    held_out: Sequence[tuple[str, Sequence[Prompt]]],
    *,
    near: float | None,
) -> list[Leak]:
    """Find training prompts whose question is in an evaluation set, one entry per prompt and set.

    Args:
        prompts: of training.
        held_out: evaluation sets by label.
        near: similarity from which questions with the same numbers count; None: only exact ones.
    """
    texts = strip_common_frame([p.text for p in prompts])
    leaks = []
    for label, eval_prompts in held_out:
        exact, similar = _index(eval_prompts, near)
        for prompt, text in zip(prompts, texts, strict=True):
            keys = (question_key(prompt.text), question_key(text))
            match = next((exact[k] for k in keys if k in exact), None)
            is_exact = match is not None
            if match is None and similar is not None:
                match = similar.find(text)
            if match is not None:
                leaks.append(Leak(prompt.index, label, eval_prompts[match].index, is_exact))
    return leaks


def _index(
    prompts: Sequence[Prompt], near: float | None
) -> tuple[dict[str, int], NearDuplicateIndex | None]:
    """Positions of the prompts by their keys, and an index of their near duplicates."""
    exact: dict[str, int] = {}
    similar = None if near is None else NearDuplicateIndex(near)
    texts = strip_common_frame([p.text for p in prompts])
    for i, (prompt, text) in enumerate(zip(prompts, texts, strict=True)):
        for key in (question_key(prompt.text), question_key(text)):
            exact.setdefault(key, i)
        if similar is not None:
            similar.add(i, text)
    return exact, similar


def find_repeats(prompts: Sequence[Prompt], *, near: float) -> dict[int, int]:
    """Find prompts that ask what an earlier one asks: {index: index of the earlier one}.

    Prompts of different ground truths are never repeats: a grader tells them apart.
    """
    similar, repeats = NearDuplicateIndex(near), {}
    exact: dict[tuple[str, str | None], int] = {}
    texts = strip_common_frame([p.text for p in prompts])
    for i, (prompt, text) in enumerate(zip(prompts, texts, strict=True)):
        key = (question_key(text), prompt.answer)
        earlier = exact.get(key)
        if earlier is None:
            earlier = similar.find(text)
            if earlier is not None and prompts[earlier].answer != prompt.answer:
                earlier = None
        if earlier is None:
            exact[key] = i
            similar.add(i, text)
        else:
            repeats[prompt.index] = prompts[earlier].index
    return repeats
