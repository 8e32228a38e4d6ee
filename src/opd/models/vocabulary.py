"""Whether two vocabularies are one: read from tokenizer.json, compared as sets; no transformers."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from pathlib import Path

from opd.errors import UserError

SHOWN = 3  # differences shown in a message; the rest are counted


def read_vocabulary(folder: Path) -> dict[str, int] | None:
    """Id of every token, added ones included; None without a tokenizer.json that can be read."""
    import tokenizers

    file = folder / "tokenizer.json"
    if not file.is_file():
        return None
    try:
        return dict(tokenizers.Tokenizer.from_file(str(file)).get_vocab(with_added_tokens=True))
    except Exception:  # noqa: BLE001 - its plain Exception; loading the tokenizer says what is wrong
        return None


def require_same_tokens(student: dict[str, int] | None, teacher: dict[str, int] | None) -> None:
    """Check that equal ids mean equal tokens; nothing is known without both vocabularies.

    Raises:
        UserError: with how many differ and the first of them.
    """
    if student is None or teacher is None:
        return
    message = token_differences(student, teacher)
    if message is not None:
        raise other_tokenizers([message])


def other_tokenizers(differences: Sequence[str]) -> UserError:
    """The refusal of a pair whose tokenizers differ."""
    return UserError(
        "student.model and teacher.model have different tokenizers, so the teacher would score "
        "other tokens than the student sampled:\n  "
        + "\n  ".join(differences)
        + "\nChoose a teacher of the same family (student.model, teacher.model)."
    )


def join_differences(differences: list[str], count: int | None = None) -> str:
    """The first few of them in one line; the rest are counted.

    Args:
        differences: all of them, or the first.
        count: of all; None: as given.
    """
    more = (len(differences) if count is None else count) - SHOWN
    return "; ".join(differences[:SHOWN]) + (f"; and {more} more" if more > 0 else "")


def token_differences(student: dict[str, int], teacher: dict[str, int]) -> str | None:
    """A sentence about the tokens whose ids differ; None if none do.

    Args:
        student: id of every token.
        teacher: likewise.
    """
    differing = {t for t, _ in student.items() ^ teacher.items()}
    if not differing:
        return None

    def by_id(token: str) -> tuple[int, str]:
        return min(i for v in (student, teacher) if (i := v.get(token)) is not None), token

    lines = [
        f"{token!r} is {student.get(token, 'absent')} for the student and "
        f"{teacher.get(token, 'absent')} for the teacher"
        for token in heapq.nsmallest(SHOWN, differing, key=by_id)
    ]
    return (
        f"{len(differing)} tokens differ (student {len(student)}, teacher {len(teacher)} tokens): "
        + join_differences(lines, len(differing))
    )
