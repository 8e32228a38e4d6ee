"""Whether completions quote what only the teacher sees, which self-distillation is known for.

An answer that the student finds by itself is no quotation, so a short hint counts only by the words
that the template puts around it, and a long one by eight of its words in a row.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from opd.core.diagnostics import distinct_ngrams
from opd.data.teacher_prompts import PLACEHOLDER, TeacherPrompts
from opd.types import Mean, Metrics, Rollout

WORDS = 8  # of a hint in a row, that are a quotation
LETTERS = 4  # of the template's own words between two names, that are one

_WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class HintQuotes:
    """Finds words of the teacher's prompts in completions.

    Attributes:
        prompts: what the teacher sees.
        phrases: words of the template between its names, in lower case.
    """

    prompts: TeacherPrompts
    phrases: tuple[str, ...]

    @staticmethod
    def of(prompts: TeacherPrompts, view: str) -> HintQuotes:
        """A finder for the prompts that a template made."""
        parts = [_words(part) for part in PLACEHOLDER.split(view)[::2]]
        long_enough = [p for p in parts if sum(map(len, p)) >= LETTERS]
        return HintQuotes(prompts, tuple(" ".join(p) for p in long_enough))

    def find(self, rollout: Rollout, completion: str) -> bool:
        """Whether a completion has words that the student can only have from the teacher."""
        own = _spaced(_words(rollout.prompt.text))
        words = _words(completion)
        text = _spaced(words)
        if any(f" {p} " in text and f" {p} " not in own for p in self.phrases):
            return True
        hint = _spaced(_words(self.prompts.texts[rollout.prompt.index]))
        runs = (_spaced(words[i : i + WORDS]) for i in range(len(words) - WORDS + 1))
        return any(run in hint and run not in own for run in runs)


def hint_metrics(rollouts: Sequence[Rollout], quoted: np.ndarray) -> Metrics:
    """How many completions quote the hint, and how different those of one prompt are.

    Args:
        rollouts: of a step, those of a prompt together.
        quoted: (number of rollouts,) whether each quotes it.
    """
    groups: dict[int, list[np.ndarray]] = {}
    for rollout in rollouts:
        groups.setdefault(rollout.prompt.index, []).append(rollout.ids)
    shares = [distinct_ngrams(group) for group in groups.values()]
    known = [s for s in shares if s is not None]
    metrics = {"rollout/hint_quoted": Mean(float(quoted.sum()), len(rollouts))}
    if known:
        metrics["rollout/distinct"] = Mean(float(sum(known)), len(known))
    return metrics


def _words(text: str) -> list[str]:
    return _WORD.findall(text.casefold())


def _spaced(words: Sequence[str]) -> str:
    return f" {' '.join(words)} "
