"""A list of texts that is filtered, searched and sorted in the browser: answers, rollouts."""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from markupsafe import Markup

from opd.reports.chat_turns import readable_prompt
from opd.reports.sanitize import visible


@dataclass(frozen=True)
class BrowsedPrompt:
    """A prompt and its ground truth (empty if there is none)."""

    index: int
    text: str
    truth: str


@dataclass(frozen=True)
class BrowsedText:
    """One completion: its text, whether it is correct (None: not graded) and a remark."""

    text: str
    correct: bool | None
    note: str


@dataclass(frozen=True)
class BrowsedRow:
    """One row of the list.

    Attributes:
        name: unique in the list; the end of the row's HTML anchor.
        prompt: position in `Browse.prompts`.
        label: what tells it from other rows of its prompt, such as the sample.
        tags: the filters it belongs to.
        texts: one per column; None where there is none.
        values: by sort key.
    """

    name: str
    prompt: int
    label: str
    tags: Sequence[str]
    texts: Sequence[BrowsedText | None]
    values: dict[str, float]


@dataclass(frozen=True)
class Browse:
    """A list of rows with filters, search and sorting.

    Attributes:
        name: beginning of the HTML anchors.
        title: of the list.
        note: what is shown and what is left out.
        columns: names of the texts of a row.
        filters: tags with their labels, in order.
        sorts: sort keys with their labels; a key that begins with `-` is descending.
        prompts: prompts of the rows.
        rows: in their first order.
    """

    kind: ClassVar[str] = "browse"
    name: str
    title: str
    note: str
    columns: Sequence[str]
    filters: Sequence[tuple[str, str]]
    sorts: Sequence[tuple[str, str]]
    prompts: Sequence[BrowsedPrompt]
    rows: Sequence[BrowsedRow]

    def counts(self) -> list[tuple[str, int]]:
        """Rows of each filter, by label."""
        return [(label, sum(tag in row.tags for row in self.rows)) for tag, label in self.filters]

    def data(self) -> Markup:
        """Data for the script of the HTML page, every text made visible."""
        record = {
            "name": self.name,
            "columns": [visible(c) for c in self.columns],
            "filters": [[tag, visible(label)] for tag, label in self.filters],
            "sorts": [list(pair) for pair in self.sorts],
            "prompts": [_turns(prompt) for prompt in self.prompts],
            "rows": [
                {
                    "n": row.name,
                    "p": row.prompt,
                    "l": visible(row.label),
                    "g": list(row.tags),
                    "t": [
                        None if t is None else [visible(t.text), t.correct, visible(t.note)]
                        for t in row.texts
                    ],
                    "v": row.values,
                }
                for row in self.rows
            ],
        }
        return packed_json(record)

    def record(self) -> dict[str, Any]:
        """For the JSON sidecar."""
        return {
            "title": self.title,
            "note": self.note,
            "filters": dict(self.counts()),
            "columns": list(self.columns),
            "prompts": [{"index": p.index, "text": p.text, "truth": p.truth} for p in self.prompts],
            "rows": [
                {
                    "name": row.name,
                    "prompt": self.prompts[row.prompt].index,
                    "label": row.label,
                    "tags": list(row.tags),
                    "texts": [
                        None
                        if t is None
                        else {"text": t.text, "correct": t.correct, "note": t.note}
                        for t in row.texts
                    ],
                    "values": row.values,
                }
                for row in self.rows
            ],
        }


def packed_json(value: Any) -> Markup:
    """JSON for a script element, deflated and in base64: no letter of it can end the element."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return Markup(base64.b64encode(zlib.compress(text.encode("ascii"), 9)).decode("ascii"))


def _turns(prompt: BrowsedPrompt) -> dict[str, Any]:
    """A prompt for the script: index, truth, question, and what is folded before and after it."""
    readable = readable_prompt(prompt.text)
    turns = {"e": readable.earlier, "s": readable.later}
    return {
        "i": prompt.index,
        "a": visible(prompt.truth),
        "r": visible(readable.role or "prompt"),
        "q": visible(readable.question),
        "b": visible(readable.start),
        **{key: [[visible(t.role), visible(t.text)] for t in ts] for key, ts in turns.items()},
    }
