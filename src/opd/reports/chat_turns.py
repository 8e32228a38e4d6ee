"""A prompt as people read it: its chat turns, and of the last user turn what was asked.

A run folder has prompts as text after the chat template. Of a long one the end matters: there is
the question. Nothing is left out, only folded.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import NamedTuple

MAX_SHOWN = 1500  # characters of the last user turn; what comes before them is folded
ROLES = "system|user|assistant|human|model|tool|developer|ipython|observation"

# The beginning of a turn, its role in the first group that matches, by family of templates.
_BEGINS = re.compile(
    rf"(?:<\|im_start\|>\s*({ROLES})[^\S\n]*\n"  # ChatML: Qwen, SmolLM, Yi
    # Llama
    rf"|<\|(?:start_header_id|header_start)\|>({ROLES})<\|(?:end_header_id|header_end)\|>\n*"
    rf"|<start_of_turn>({ROLES})\n"  # Gemma
    rf"|<\|(?:start_of_role)\|>({ROLES})<\|end_of_role\|>"  # Granite
    rf"|<\|({ROLES})\|>\n?"  # Phi, Zephyr, GLM
    r"|<\uff5c(User|Assistant)\uff5c>"  # DeepSeek
    r"|\[(INST)\]\s?"  # Mistral, Llama 2
    r"|(?<=\[/INST\])()"  # its answer
    r")"
)
_ENDS = (
    *("<|im_end|>", "<|eot_id|>", "<|eot|>", "<end_of_turn>", "<|end_of_text|>", "<|end|>"),
    *("<|endoftext|>", "</s>", "[/INST]", "<\uff5cend\u2581of\u2581sentence\uff5c>"),
)
_STARTS = re.compile(
    r"^(?:<\|begin_of_text\|>|<bos>|<s>|\[gMASK\]<sop>|<\uff5cbegin\u2581of\u2581sentence\uff5c>)"
)
_NAMES = {"inst": "user", "human": "user", "model": "assistant", "": "assistant"}


class Turn(NamedTuple):
    """One turn: who speaks (empty where the prompt has no turns) and what."""

    role: str
    text: str


@dataclass(frozen=True)
class ReadablePrompt:
    """A prompt by importance.

    Attributes:
        earlier: turns before the last user turn, folded.
        start: beginning of a long last user turn, folded; empty for one that is shown whole.
        question: the last user turn, or its end.
        role: of that turn; empty where the prompt has no turns.
        later: what the template adds after it, such as the beginning of an answer.
    """

    earlier: list[Turn]
    start: str
    question: str
    role: str
    later: list[Turn]

    @property
    def earlier_roles(self) -> str:
        """Roles of the earlier turns, in order."""
        return ", ".join(turn.role for turn in self.earlier)


def chat_turns(text: str) -> list[Turn]:
    """The turns of a prompt, without the markers of its template; plain text is one turn."""
    marks = list(_BEGINS.finditer(text))
    if not marks:
        return [Turn("", text)]
    turns = []
    before = _STARTS.sub("", text[: marks[0].start()]).strip()
    if before:
        turns.append(Turn("system", before))
    ends = [*(mark.start() for mark in marks[1:]), len(text)]
    for mark, end in zip(marks, ends, strict=True):
        role = next(group for group in mark.groups() if group is not None).lower()
        content = _without_end(text[mark.end() : end])
        turns.append(Turn(_NAMES.get(role, role), content.strip("\n")))
    return turns


def _without_end(text: str) -> str:
    """A turn without the markers after it."""
    while True:
        stripped = text.rstrip()
        marker = next(filter(stripped.endswith, _ENDS), None)
        if marker is None:
            return text
        text = stripped.removesuffix(marker).rstrip(" ")


def readable_prompt(text: str) -> ReadablePrompt:
    """A prompt with the last user turn in front and the rest to unfold."""
    turns = chat_turns(text)
    users = [i for i, turn in enumerate(turns) if turn.role in ("user", "")]
    last = users[-1] if users else len(turns) - 1
    later = [turn for turn in turns[last + 1 :] if turn.text.strip()]
    start, question = _split(turns[last].text)
    return ReadablePrompt(turns[:last], start, question, turns[last].role, later)


def _split(text: str) -> tuple[str, str]:
    """The folded beginning and the shown end of a long turn, divided where a line begins."""
    if len(text) <= MAX_SHOWN:
        return "", text
    at = len(text) - MAX_SHOWN
    line = text.find("\n", at, at + MAX_SHOWN // 2)
    at = at if line < 0 else line + 1
    return text[:at], text[at:]
