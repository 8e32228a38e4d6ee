"""Comparisons of mathematical expressions, remembered: nothing is paid for twice.

An expression such as `9^{9^{9}}` runs into the time limit with whatever it is compared with. It is
tried once; from then on it fails at once, whether a ground truth or a completion holds it.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from functools import lru_cache
from typing import Generic, NamedTuple, TypeVar

from opd.data.answers import parse_number
from opd.data.math_sandbox import DIED, EQUAL, NOT_EQUAL, MathProcess

MAX_COMPARISONS = 2**16  # of expressions of at most MAX_ANSWER characters
MAX_HOSTILE = 2**14
HARMLESS = "1"  # what an expression is compared with to learn whether it is hostile by itself

K = TypeVar("K")
V = TypeVar("V")


class Comparison(NamedTuple):
    """Whether two expressions are equal, and the reason."""

    equal: bool
    reason: str


class Suspect(NamedTuple):
    """An expression that ran into the limit once, and the reason.

    Attributes:
        reason: of the comparison that failed.
        hostile: whether it does so by itself; None: not known, it stood beside another expression.
    """

    reason: str
    hostile: bool | None


class _Recent(Generic[K, V]):
    """A mapping of bounded size; the entry unused for longest goes first."""

    def __init__(self, size: int) -> None:
        self.size, self._entries = size, OrderedDict[K, V]()

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: K) -> V | None:
        if key not in self._entries:
            return None
        self._entries.move_to_end(key)
        return self._entries[key]

    def put(self, key: K, value: V) -> None:
        self._entries[key] = value
        self._entries.move_to_end(key)
        while len(self._entries) > self.size:
            self._entries.popitem(last=False)


class ComparisonMemory:
    """Comparisons made so far, and expressions that ran into the limit whatever stood beside them.

    Attributes:
        comparisons: by text, answer and whether the text was marked.
        answers: ground truths that ran into the limit once, by what is known of them.
        texts: texts of completions, by text and mark, likewise.
    """

    def __init__(self) -> None:
        self.comparisons = _Recent[tuple[str, str, bool], Comparison](MAX_COMPARISONS)
        self.answers = _Recent[str, Suspect](MAX_HOSTILE)
        self.texts = _Recent[tuple[str, bool], Suspect](MAX_HOSTILE)


@lru_cache(maxsize=8)
def shared_memory(limit: float) -> ComparisonMemory:
    """The memory of all graders of this process with one time limit."""
    return ComparisonMemory()


class MathComparer:
    """Compares expressions in a child process, and asks it nothing that is known."""

    def __init__(self, limit: float, memory: ComparisonMemory | None = None) -> None:
        """Make a comparer; the child starts when it is first needed.

        Args:
            limit: seconds for one comparison.
            memory: of earlier comparisons; None: that of this process.
        """
        self.process = MathProcess(limit)
        self.memory = shared_memory(limit) if memory is None else memory

    def compare(self, text: str, answer: str, *, marked: bool) -> Comparison:
        """Compare two expressions; arguments as of `MathProcess.compare`."""
        memory = self.memory
        key = (text, answer, marked)
        if (known := memory.comparisons.get(key)) is not None:
            return known
        if (reason := self._hostile(memory.answers, answer, HARMLESS, answer, True)) is not None:
            return Comparison(False, f"{reason}, as before with this ground truth")
        named = (text, marked)
        if (reason := self._hostile(memory.texts, named, text, HARMLESS, marked)) is not None:
            return Comparison(False, f"{reason}, as before with this text")
        comparison, exhausted = self._run(text, answer, marked=marked)
        if exhausted:
            self._suspect(text, answer, marked, comparison.reason)
        memory.comparisons.put(key, comparison)
        return comparison

    def _hostile(
        self, suspects: _Recent[K, Suspect], key: K, text: str, answer: str, marked: bool
    ) -> str | None:
        """The reason not to try an expression again; a suspect is first tried beside one."""
        if (suspect := suspects.get(key)) is None:
            return None
        if suspect.hostile is None:
            suspect = suspect._replace(hostile=self._run(text, answer, marked=marked)[1])
            suspects.put(key, suspect)
        return suspect.reason if suspect.hostile else None

    def _suspect(self, text: str, answer: str, marked: bool, reason: str) -> None:
        """Remember which of two expressions may be hostile by itself: a plain number never is."""
        numbers = parse_number(text) is not None, parse_number(answer) is not None
        if not numbers[1] and self.memory.answers.get(answer) is None:
            self.memory.answers.put(answer, Suspect(reason, hostile=numbers[0] or None))
        if not numbers[0] and self.memory.texts.get((text, marked)) is None:
            self.memory.texts.put((text, marked), Suspect(reason, hostile=numbers[1] or None))

    def close(self) -> None:
        """End the child process, if there is one."""
        self.process.close()

    def _run(self, text: str, answer: str, *, marked: bool) -> tuple[Comparison, bool]:
        """One comparison by the child, and whether it cost its time or the child's life.

        A child that died early may have been killed from outside: a second one is asked.
        """
        comparison, seconds, died = self._run_once(text, answer, marked)
        if died and seconds < self.process.limit / 2:
            comparison, seconds, died = self._run_once(text, answer, marked)
        decided = comparison.reason in (EQUAL, NOT_EQUAL)
        return comparison, died or (seconds > self.process.limit / 2 and not decided)

    def _run_once(self, text: str, answer: str, marked: bool) -> tuple[Comparison, float, bool]:
        self.process.start()  # not part of the time that is measured
        started = time.monotonic()
        comparison = Comparison(*self.process.compare(text, answer, marked=marked))
        return comparison, time.monotonic() - started, comparison.reason.startswith(DIED)
