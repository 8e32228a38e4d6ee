"""Duplicate questions, whatever their template and layout.

Two keys decide: letters and digits of the whole text, and those of the text without the frame that
all prompts of its set share (a template). Near duplicates are found by MinHash and decided by their
exact Jaccard similarity. Texts are only compared, never run.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from opd.data.prompts import answer_of, conversation, prompt_column
from opd.data.readers import Source, read_rows, source_name
from opd.rng import Stream, generator
from opd.types import Prompt

SHINGLE_LENGTH = 6  # letters and digits
BANDS, ROWS = 16, 4  # at a similarity of .8 all but 1 pair in 5,000 share a bucket
SKETCHED_AT_ONCE = 100_000  # characters: 64 hashes of each are held together, 50 MB
_NUMBER = re.compile(r"\d+")
_WORD = re.compile(r"\w+")


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


@dataclass(frozen=True, slots=True)
class Sketch:
    """What finds and decides near duplicates of a text.

    Attributes:
        shingles: distinct hashes of SHINGLE_LENGTH consecutive letters and digits, uint64, sorted.
        buckets: one key per band; two texts of a common key may be near duplicates.
    """

    shingles: np.ndarray
    buckets: tuple[tuple[object, ...], ...]


def sketch_texts(texts: Sequence[str]) -> list[Sketch]:
    """Make the sketches of texts: MinHash with LSH banding.

    Only texts with the same numbers in the same order share buckets: a problem with other numbers
    is another problem.
    """
    sketches: list[Sketch] = []
    block: list[str] = []
    characters = 0
    for text in texts:
        if block and characters + len(text) > SKETCHED_AT_ONCE:
            sketches += _sketch_block(block)
            block, characters = [], 0
        block.append(text)
        characters += max(len(text), SHINGLE_LENGTH)
    return sketches + (_sketch_block(block) if block else [])


def _sketch_block(texts: Sequence[str]) -> list[Sketch]:
    """`sketch_texts` for a block of texts, whose hashes fit into memory together."""
    keys = [question_key(text).ljust(SHINGLE_LENGTH, "\0") for text in texts]
    hashes = _hash_windows("".join(keys))
    lengths = np.array([len(key) for key in keys])
    counts = lengths - (SHINGLE_LENGTH - 1)  # windows that lie in one text
    starts = np.cumsum(counts) - counts
    own = np.repeat(np.cumsum(lengths) - lengths - starts, counts) + np.arange(counts.sum())
    hashes = hashes[own]
    # Multiply-shift hashing: the upper half of a product by an odd number.
    mixed = (hashes[:, None] * _multipliers()[None, :]) >> np.uint64(32)
    minima = np.minimum.reduceat(mixed, starts, axis=0).reshape(len(texts), BANDS, ROWS)
    sketches = []
    for text, values, band_rows in zip(texts, np.split(hashes, starts[1:]), minima, strict=True):
        numbers = tuple(_NUMBER.findall(text))
        buckets = tuple((band, row.tobytes(), numbers) for band, row in enumerate(band_rows))
        sketches.append(Sketch(np.unique(values), buckets))
    return sketches


def _hash_windows(text: str) -> np.ndarray:
    """Hashes of all SHINGLE_LENGTH consecutive characters of a text, uint64."""
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    windows = np.lib.stride_tricks.sliding_window_view(codes.astype(np.uint64), SHINGLE_LENGTH)
    powers = np.uint64(0x9E3779B97F4A7C15) ** np.arange(1, SHINGLE_LENGTH + 1, dtype=np.uint64)
    hashes: np.ndarray = (windows * powers).sum(1, dtype=np.uint64)
    return hashes


@cache
def _multipliers() -> np.ndarray:
    """Odd numbers, one per hash function: uint64 (BANDS * ROWS,)."""
    rng = generator(0, Stream.MINHASH)
    odd: np.ndarray = rng.integers(2**63, size=BANDS * ROWS, dtype=np.uint64) * np.uint64(2) + 1
    return odd


def similarity(a: np.ndarray, b: np.ndarray) -> float:
    """Jaccard similarity of two sets of shingles."""
    common = len(np.intersect1d(a, b, assume_unique=True))
    return common / (len(a) + len(b) - common)


class NearDuplicateIndex:
    """Questions seen so far, searched for near duplicates; their Jaccard similarity decides."""

    def __init__(self, threshold: float) -> None:
        """Duplicates have a Jaccard similarity of `threshold` or more."""
        self.threshold = threshold
        self._shingles: dict[int, np.ndarray] = {}
        self._buckets: dict[tuple[object, ...], list[int]] = {}

    def add(self, name: int, sketch: Sketch) -> None:
        """Add a question under a number."""
        self._shingles[name] = sketch.shingles
        for bucket in sketch.buckets:
            self._buckets.setdefault(bucket, []).append(name)

    def find(self, sketch: Sketch) -> int | None:
        """The number of the most similar question, the earliest of equals; None below threshold."""
        candidates = {n for bucket in sketch.buckets for n in self._buckets.get(bucket, ())}
        if not candidates:
            return None
        scores = ((similarity(sketch.shingles, self._shingles[n]), -n) for n in candidates)
        score, negative = max(scores)
        return -negative if score >= self.threshold else None


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

    Texts that agree only without their frame or their signs are no leak if their answers differ.

    Args:
        prompts: of training.
        held_out: evaluation sets by label.
        near: similarity from which questions with the same numbers count; None: only exact ones.
    """
    texts = strip_common_frame([p.text for p in prompts])
    keys = [(question_key(p.text), question_key(t)) for p, t in zip(prompts, texts, strict=True)]
    sketches = [] if near is None else sketch_texts(texts)
    leaks = []
    for label, eval_prompts in held_out:
        exact, similar = _index(eval_prompts, near)
        for i, prompt in enumerate(prompts):
            match = next((exact[k] for k in keys[i] if k in exact), None)
            is_exact = match is not None
            if match is None and similar is not None:
                match = similar.find(sketches[i])
            if match is None or (is_exact and _is_another_task(prompt, eval_prompts[match])):
                continue
            leaks.append(Leak(prompt.index, label, eval_prompts[match].index, is_exact))
    return leaks


def _is_another_task(prompt: Prompt, other: Prompt) -> bool:
    """Whether questions that agree, but for signs and what their sets share, differ in answers.

    "sum: 3 4" and "echo: 3 4", or "3 + 4" and "3 - 4", ask for different things. An answer that
    holds the other one, as "boxed 7" holds "7", is the same.
    """
    same_text = _signed_key(prompt.text) == _signed_key(other.text)
    if same_text or prompt.answer is None or other.answer is None:
        return False
    words, other_words = (
        f" {' '.join(_WORD.findall(answer.casefold()))} "
        for answer in (prompt.answer, other.answer)
    )
    return words not in other_words and other_words not in words


def _signed_key(text: str) -> str:
    """`question_key` with the signs of arithmetic."""
    return "".join(c for c in text.casefold() if c.isalnum() or c in "+-*/^=<>")


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
        for i, sketch in enumerate(sketch_texts(texts)):
            similar.add(i, sketch)
    return exact, similar


def find_repeats(prompts: Sequence[Prompt], *, near: float) -> dict[int, int]:
    """Find prompts that ask what an earlier one asks: {index: index of the earlier one}.

    Prompts of different ground truths are never repeats: a grader tells them apart.
    """
    similar, repeats = NearDuplicateIndex(near), {}
    exact: dict[tuple[str, str | None], int] = {}
    texts = strip_common_frame([p.text for p in prompts])
    for i, sketch in enumerate(sketch_texts(texts)):
        prompt, key = prompts[i], (question_key(texts[i]), prompts[i].answer)
        earlier = exact.get(key)
        if earlier is None:
            earlier = similar.find(sketch)
            if earlier is not None and prompts[earlier].answer != prompt.answer:
                earlier = None
        if earlier is None:
            exact[key] = i
            similar.add(i, sketch)
        else:
            repeats[prompt.index] = prompts[earlier].index
    return repeats
