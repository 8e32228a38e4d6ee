"""Two tokenizations of one text: the shortest pieces that both of them cut out, and their scores.

A token ends at a byte of the text. Where a student's token and a teacher's token end at the same
byte, a chunk ends; chunks tile both sides. A token of no bytes belongs to what follows it.
Shapes: T student tokens, U teacher tokens, K support.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

LEFT_OUT = -1  # chunk of a token that the teacher cannot be compared on


class Chunk(NamedTuple):
    """Student tokens and teacher tokens that spell the same bytes."""

    student: slice
    teacher: slice

    @property
    def one_to_one(self) -> bool:
        """Whether it is one token on either side."""
        return all(part.stop - part.start == 1 for part in self)


def align(student_ends: Sequence[int], teacher_ends: Sequence[int]) -> list[Chunk]:
    """The minimal common chunks of two tokenizations.

    Args:
        student_ends: (T,) byte at which each token ends, never falling.
        teacher_ends: (U,) likewise.

    Raises:
        ValueError: the two do not spell texts of one length, or one has no tokens.
    """
    if not len(student_ends) and not len(teacher_ends):
        return []
    if not len(student_ends) or not len(teacher_ends) or student_ends[-1] != teacher_ends[-1]:
        raise ValueError("the two tokenizations do not spell the same text")
    first_student, first_teacher = _first_at(student_ends), _first_at(teacher_ends)
    common = sorted(first_student.keys() & first_teacher.keys() - {0})
    chunks, s, t = [], 0, 0
    for end in common:
        last = end == common[-1]
        next_s = len(student_ends) if last else first_student[end] + 1
        next_t = len(teacher_ends) if last else first_teacher[end] + 1
        chunks.append(Chunk(slice(s, next_s), slice(t, next_t)))
        s, t = next_s, next_t
    return chunks or [Chunk(slice(0, len(student_ends)), slice(0, len(teacher_ends)))]


def _first_at(ends: Sequence[int]) -> dict[int, int]:
    """The first token that ends at each byte."""
    first: dict[int, int] = {}
    for index, end in enumerate(ends):
        first.setdefault(int(end), index)
    return first


def chunk_of_tokens(chunks: Sequence[Chunk], count: int) -> np.ndarray:
    """(T,) int32: the number of each student token's chunk; `LEFT_OUT` beyond the last one."""
    numbers = np.full(count, LEFT_OUT, np.int32)
    for number, chunk in enumerate(chunks):
        numbers[chunk.student] = number
    return numbers


def effective_logq(
    chunks: Sequence[Chunk], student_logp: np.ndarray, teacher_logp: np.ndarray
) -> np.ndarray:
    """Teacher log-scores (T,) of the student's tokens, with the chunk's advantage at each of them.

    For a token t of chunk c: log q(c) minus log p(s) of the other tokens s of c. Minus log p(t) it
    is the advantage of the whole chunk, log q(c) - log p(c), by which the score function multiplies
    the gradient of log p(t). A chunk of one token on either side gives log q.

    Args:
        chunks: of the completion.
        student_logp: (T,) of the sampled tokens.
        teacher_logp: (U,) of the teacher's tokens.

    Returns:
        (T,); `student_logp` itself, an advantage of 0, at tokens of no chunk.
    """
    logq = student_logp.astype(np.float64)
    for chunk in chunks:
        own = student_logp[chunk.student].astype(np.float64)
        total = teacher_logp[chunk.teacher].astype(np.float64).sum()
        logq[chunk.student] = total - (own.sum() - own)
    return logq
