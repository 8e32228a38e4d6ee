"""A teacher of another tokenizer: completions are compared as text, chunk by chunk.

The student's tokens are spelled once, and the teacher scores that text in its own tokens, after its
own rendering of the prompt. Where both cut the text at the same byte a chunk ends; a chunk's
advantage goes to each of the student's tokens in it (`opd.core.alignment`). Positions of one token
on either side can be compared on the tokens that both vocabularies have.
Shapes: T student tokens, U teacher tokens, K support.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import numpy as np

from opd.core.alignment import (
    Chunk,
    align,
    chunk_of_tokens,
    effective_logq,
)
from opd.data.teacher_prompts import TeacherPrompts
from opd.errors import UserError
from opd.models.spelling import Speller, ends_of, longest_text
from opd.teachers.remote import TeacherDown
from opd.types import Kind, Rollout, Scores, Teacher, Want

MAX_CHUNK: Final = 32  # tokens on either side, beyond which nobody knows which of them to credit
MIN_SHARED: Final = 2  # tokens of a support; one renormalised on itself has no gradient


@dataclass(frozen=True, eq=False)
class Reading:
    """A completion in the teacher's tokens.

    Attributes:
        ids: (U,) of the teacher.
        chunks: of both sides; those that cannot be compared are left out.
    """

    ids: np.ndarray
    chunks: Sequence[Chunk]


class Translator:
    """From the student's tokens to the teacher's, by the bytes that they spell."""

    def __init__(self, student: Any, teacher: Any, stop: Iterable[int], *, vocab: int) -> None:
        """Make a translator.

        Args:
            student: its tokenizer.
            teacher: its tokenizer.
            stop: ids that end the student's completions.
            vocab: ids that the student uses.

        Raises:
            UserError: the teacher has no end token.
        """
        self.student, self.teacher = Speller(student), Speller(teacher)
        self.stop, self.vocab = frozenset(stop), vocab
        if teacher.eos_token_id is None:
            raise UserError(
                "teacher.tokenizer: it has no end token, so the end of a completion cannot be "
                "scored. Set eos_token in its tokenizer_config.json."
            )
        self.end = int(teacher.eos_token_id)

    @cached_property
    def same_token(self) -> np.ndarray:
        """(V,) int64: the teacher's token of the same bytes, by the student's id; -1: none."""
        by_bytes: dict[bytes, int] = {}
        for token in sorted(self.teacher.tokenizer.get_vocab().values()):
            piece = self.teacher.vocabulary_piece(token)
            if piece and token not in self.teacher.special:
                by_bytes.setdefault(piece, token)
        same = np.full(self.vocab, -1, np.int64)
        special = {text: token for token, text in self.teacher.special.items()}
        for token in range(self.vocab):
            if token in self.stop:
                same[token] = self.end
            elif token in self.student.special:
                same[token] = special.get(self.student.special[token], -1)
            elif piece := self.student.vocabulary_piece(token):
                same[token] = by_bytes.get(piece, -1)
        return same

    def read(self, ids: Sequence[int], *, ended: bool) -> Reading:
        """A completion in the teacher's tokens, with the chunks of both sides.

        Special tokens that the teacher has too are one of its own tokens; text after bytes that are
        no text is left out, and so is the last chunk of a completion that was cut off, which the
        teacher would have spelled otherwise had it gone on.

        Args:
            ids: (T,) of the student, the end token included.
            ended: whether the last of them is an end token.

        Raises:
            UserError: the teacher's tokens do not spell the text.
        """
        body = list(ids[:-1] if ended else ids)
        teacher_ids: list[int] = []
        teacher_ends: list[int] = []
        student_ends: list[int] = []
        begin, whole = 0, True
        for piece in self._segments(body):
            if isinstance(piece, int):
                begin += 1  # a special token counts as one byte, on either side
                teacher_ids.append(int(self.same_token[piece]))
                teacher_ends.append(begin)
                student_ends.append(begin)
                continue
            pieces = self.student.pieces(piece)
            text, count = longest_text(pieces)
            new_ids, new_ends = self._encode(text)
            teacher_ids += new_ids
            teacher_ends += [begin + end for end in new_ends]
            student_ends += [begin + end for end in ends_of(pieces[:count])]
            begin += len(text.encode())
            if count < len(piece):
                whole = False
                break
        chunks = align(student_ends, teacher_ends) if student_ends and teacher_ends else []
        if ended and whole:
            count = len(teacher_ids)
            teacher_ids.append(self.end)
            chunks.append(Chunk(slice(len(body), len(body) + 1), slice(count, count + 1)))
        elif whole:
            chunks = chunks[:-1]
        kept = [c for c in chunks if all(part.stop - part.start <= MAX_CHUNK for part in c)]
        return Reading(np.array(teacher_ids, np.int32), kept)

    def _segments(self, ids: Sequence[int]) -> Iterable[int | list[int]]:
        """Runs of ordinary tokens, and special tokens that the teacher has too."""
        run: list[int] = []
        for token in ids:
            if int(token) in self.student.special and self.same_token[int(token)] >= 0:
                if run:
                    yield run
                    run = []
                yield int(token)
            else:
                run.append(int(token))
        if run:
            yield run

    def _encode(self, text: str) -> tuple[list[int], list[int]]:
        try:
            return self.teacher.encode(text)
        except ValueError as error:
            raise UserError(
                f"teacher.tokenizer: {error}, because it changes the text (lower case, spaces or "
                "accents), so nothing aligns with what the student wrote. Take a teacher whose "
                "tokenizer keeps the text."
            ) from None

    def support_of(self, rollout: Rollout, reading: Reading) -> tuple[np.ndarray, np.ndarray]:
        """Teacher ids (U, K) to score, and which of the student's top tokens they are, (T, K).

        Only at chunks of one token on either side that are the same token, and where at least two
        of the student's top tokens are the teacher's too. Elsewhere the teacher's own token fills
        up, and is never looked at.
        """
        width = rollout.topk_ids.shape[1]
        ids = np.repeat(reading.ids[:, None], width, 1).astype(np.int32)
        shared = np.zeros((len(rollout), width), np.int32)
        for chunk in reading.chunks:
            t, u = chunk.student.start, chunk.teacher.start
            if not chunk.one_to_one or self.same_token[rollout.ids[t]] != reading.ids[u]:
                continue
            same = self.same_token[rollout.topk_ids[t]]
            if (same >= 0).sum() >= MIN_SHARED:
                shared[t] = same >= 0
                ids[u] = np.where(same >= 0, same, ids[u])
        return ids, shared


class TranslatedTeacher:
    """`opd.types.Teacher` that scores the student's text in its own tokens."""

    def __init__(
        self,
        teacher: Teacher,
        translator: Translator,
        prompts: TeacherPrompts,
        *,
        context: int | None = None,
    ) -> None:
        """Make a teacher.

        Args:
            teacher: scores its own tokens.
            translator: from the student's.
            prompts: what it sees, in its own tokens.
            context: longest sequence that it takes; None: any.
        """
        self.teacher, self.translator, self.prompts = teacher, translator, prompts
        self.name, self.context = teacher.name, context
        self.kinds = teacher.kinds & {Kind.SAMPLED, Kind.SUPPORT}

    def score(self, rollouts: Sequence[Rollout], want: Want) -> list[Scores]:
        """See `opd.types.Teacher.score`; `sampled` is `opd.core.alignment.effective_logq`.

        Raises:
            UserError: no token aligns, or a completion is beyond the teacher's context.
            TeacherDown: it stays away; what it scored is in it.
        """
        stop = self.translator.stop
        ended = [r.finish == "stop" and int(r.ids[-1]) in stop for r in rollouts]
        readings = [
            self.translator.read(r.ids.tolist(), ended=e)
            for r, e in zip(rollouts, ended, strict=True)
        ]
        self._require_alignment(rollouts, readings)
        theirs, shared = [], []
        for rollout, reading in zip(rollouts, readings, strict=True):
            ids, marks = self.translator.support_of(rollout, reading)
            prompt = self.prompts.of(rollout.prompt)
            self._require_context(len(prompt.ids) + len(reading.ids))
            support = ids if want.support else None
            theirs.append(Rollout.of_ids(prompt, reading.ids, topk_ids=support))
            shared.append(marks if want.support else np.zeros_like(marks))
        asked = [i for i, reading in enumerate(readings) if len(reading.ids)]

        def translate(answers: Sequence[Scores | None]) -> list[Scores | None]:
            known = dict(zip(asked, answers, strict=False))
            none = np.zeros(0, np.float32)
            nothing = Scores(none, none[:, None], none) if want.support else Scores(none)
            return [
                _translate(r, reading, marks, answer)
                if (answer := known.get(i) if len(reading.ids) else nothing) is not None
                else None
                for i, (r, reading, marks) in enumerate(
                    zip(rollouts, readings, shared, strict=True)
                )
            ]

        request = Want(sampled=True, support=want.support)
        try:
            answers = translate(self.teacher.score([theirs[i] for i in asked], request))
        except TeacherDown as down:
            raise TeacherDown(str(down), translate(down.partial)) from None
        return [answer for answer in answers if answer is not None]

    def _require_alignment(self, rollouts: Sequence[Rollout], readings: Sequence[Reading]) -> None:
        tokens = sum(map(len, rollouts))
        aligned = sum(c.student.stop - c.student.start for r in readings for c in r.chunks)
        if tokens >= MAX_CHUNK and not aligned:
            raise UserError(
                f"teacher.tokenizer: none of the {tokens} tokens of {len(rollouts)} completions "
                "aligns with tokens of the teacher: the two cut the text at no common place within "
                f"{MAX_CHUNK} tokens, or the student's bytes are no text. Look at the rollouts; "
                "take a teacher of a similar tokenizer."
            )

    def _require_context(self, length: int) -> None:
        if self.context is not None and length > self.context:
            raise UserError(
                f"Prompt and completion have {length} tokens for the teacher {self.name}, whose "
                f"context is {self.context}. Lower rollout.max_new_tokens or prompts.max_tokens."
            )


def _translate(rollout: Rollout, reading: Reading, shared: np.ndarray, answer: Scores) -> Scores:
    """The teacher's scores of its own tokens (U,) as scores of the student's (T,)."""
    assert answer.sampled is not None
    logp = rollout.logp
    logq = effective_logq(reading.chunks, logp, answer.sampled).astype(np.float32)
    support = None
    if answer.support is not None and answer.log_z is not None:
        theirs = answer.support - answer.log_z[:, None]
        support = np.zeros(shared.shape, np.float32)
        for chunk in reading.chunks:
            t, u = chunk.student.start, chunk.teacher.start
            if shared[t].any():
                support[t] = np.where(shared[t] > 0, theirs[u], 0.0)
    return Scores(
        sampled=logq,
        support=support,
        log_z=np.zeros(len(rollout), np.float32),
        chunk=chunk_of_tokens(reading.chunks, len(rollout)),
        shared=shared,
    )


def aligned_fraction(readings: Sequence[tuple[int, Reading]]) -> tuple[float, float]:
    """Fractions of the student's tokens in chunks of one token on either side, and in none.

    Args:
        readings: number of tokens, and reading, of each text.
    """
    total = max(1, sum(count for count, _ in readings))
    alone = sum(c.one_to_one for _, reading in readings for c in reading.chunks)
    inside = sum(c.student.stop - c.student.start for _, r in readings for c in r.chunks)
    return alone / total, 1 - inside / total
