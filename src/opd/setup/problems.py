"""What is wrong with a run, collected and said at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from opd.errors import UserError

T = TypeVar("T")


class Problems:
    """What is wrong, collected: one message at the end."""

    def __init__(self) -> None:
        self.messages: list[str] = []

    def attempt(self, check: Callable[..., T], *args: Any, **kwargs: Any) -> T | None:
        """The result of a check, or None after noting what it found wrong."""
        try:
            return check(*args, **kwargs)
        except UserError as error:
            if str(error) not in self.messages:
                self.messages.append(str(error))
            return None

    def raise_all(self) -> None:
        """Raise UserError if there are any."""
        if self.messages:
            raise UserError(listed(self.messages))


def listed(messages: Sequence[str]) -> str:
    """All of them in one text, numbered if there are several."""
    if len(messages) == 1:
        return messages[0]
    numbered = "\n".join(f"{i}. {m}" for i, m in enumerate(messages, 1))
    return f"{len(messages)} things are wrong:\n{numbered}"
