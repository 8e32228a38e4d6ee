"""Which bytes of a text each token spells: what two tokenizers have in common.

Tokenizers on bytes (GPT-2 and its heirs) say it for every token by itself. Others are asked for the
text of every prefix, and for the offsets of what they encode.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from functools import cached_property
from typing import Any

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
REPLACEMENT = "\ufffd"


class Speller:
    """Bytes of the tokens of one tokenizer."""

    def __init__(self, tokenizer: Any) -> None:
        """A speller for a fast tokenizer."""
        self.tokenizer = tokenizer

    @cached_property
    def on_bytes(self) -> bool:
        """Whether every token stands for bytes of its own."""
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        decoder = None if backend is None else json.loads(backend.to_str()).get("decoder")
        return _has_byte_level(decoder)

    @cached_property
    def added(self) -> dict[int, str]:
        """Text of added tokens, special or not, by id."""
        return {int(i): str(t) for i, t in self.tokenizer.added_tokens_decoder.items()}

    @cached_property
    def special(self) -> dict[int, str]:
        """Text of special tokens by id."""
        marked = {int(i) for i, t in self.tokenizer.added_tokens_decoder.items() if t.special}
        marked |= {int(i) for i in self.tokenizer.all_special_ids}
        return {i: str(self.tokenizer.convert_ids_to_tokens(i)) for i in marked}

    def piece(self, token: int) -> bytes | None:
        """Bytes of one token; None where a tokenizer does not say it of a token alone."""
        if token in self.added:
            return self.added[token].encode()
        text = self.tokenizer.convert_ids_to_tokens(int(token))
        if text is None:
            return None
        if not self.on_bytes:
            return None
        try:
            return bytes(_BYTE_OF[c] for c in text)
        except KeyError:
            return None

    def vocabulary_piece(self, token: int) -> bytes | None:
        """Bytes of one token for comparing vocabularies; None for what is no token.

        Of a tokenizer that is not on bytes: its own text, a leading bar read as a space.
        """
        if self.on_bytes or token in self.added:
            return self.piece(token)
        text = self.tokenizer.convert_ids_to_tokens(int(token))
        if text is None:
            return None
        if match := _BYTE_TOKEN.fullmatch(text):
            return bytes([int(match[1], 16)])
        return str(text).replace("\u2581", " ").encode()

    def pieces(self, ids: Sequence[int]) -> list[bytes]:
        """Bytes of each token of a text; a token that completes a character has all of it."""
        if self.on_bytes:
            known = [self.piece(int(i)) for i in ids]
            if all(piece is not None for piece in known):
                return [piece for piece in known if piece is not None]
        parts: list[bytes] = []
        before = ""
        for count in range(1, len(ids) + 1):
            text = self._decode(ids[:count])
            if text.endswith(REPLACEMENT) or not text.startswith(before):
                parts.append(b"")  # inside a character
                continue
            parts.append(text[len(before) :].encode())
            before = text
        return parts

    def encode(self, text: str) -> tuple[list[int], list[int]]:
        """Ids of a text without special tokens, and the byte at which each ends.

        Special tokens spelled in the text are encoded as any other text.

        Raises:
            ValueError: the tokens do not spell the text: the tokenizer changes it.
        """
        encoded = self.tokenizer(
            text,
            add_special_tokens=False,
            return_offsets_mapping=not self.on_bytes,
            split_special_tokens=True,
            verbose=False,
        )
        ids = [int(i) for i in encoded["input_ids"]]
        if self.on_bytes:
            spelled = [self.piece(i) for i in ids]
            if b"".join(piece or b"" for piece in spelled) != text.encode():
                raise ValueError(f"its tokens do not spell {text[:40]!r}")
            return ids, _running([len(piece or b"") for piece in spelled])
        return ids, _ends_of_offsets(text, encoded["offset_mapping"])

    def _decode(self, ids: Sequence[int]) -> str:
        return str(
            self.tokenizer.decode(
                list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False
            )
        )


def longest_text(pieces: Sequence[bytes]) -> tuple[str, int]:
    """The longest valid text that the first tokens spell, and how many tokens that is."""
    whole = b"".join(pieces)
    try:
        whole.decode()
        valid = len(whole)
    except UnicodeDecodeError as error:
        valid = error.start
    count, length = 0, 0
    for index, end in enumerate(ends_of(pieces)):
        inside = end < valid and 0x80 <= whole[end] < 0xC0  # the next byte continues a character
        if end <= valid and not inside:
            count, length = index + 1, end
    return whole[:length].decode(), count


def ends_of(pieces: Sequence[bytes]) -> list[int]:
    """The byte at which each token ends."""
    return _running([len(piece) for piece in pieces])


def _running(lengths: Sequence[int]) -> list[int]:
    ends, end = [], 0
    for length in lengths:
        end += length
        ends.append(end)
    return ends


def _ends_of_offsets(text: str, offsets: Sequence[tuple[int, int]]) -> list[int]:
    """Ends in bytes, never falling; of tokens that share a character the last one has it.

    Raises:
        ValueError: the last token does not end the text.
    """
    at = _running([len(c.encode()) for c in text])
    ends = [0 if end == 0 else at[end - 1] for _, end in offsets]
    starts = [0 if start == 0 else at[start - 1] for start, _ in offsets]
    for i in range(len(ends) - 1):
        if starts[i] == starts[i + 1] and ends[i] == ends[i + 1]:
            ends[i] = starts[i]
    if text and (not ends or ends[-1] != at[-1]):
        raise ValueError(f"its tokens do not spell {text[:40]!r}")
    for i in range(1, len(ends)):
        ends[i] = max(ends[i], ends[i - 1])
    return ends


def _has_byte_level(decoder: Any) -> bool:
    if not isinstance(decoder, dict):
        return False
    if decoder.get("type") == "ByteLevel":
        return True
    return any(_has_byte_level(part) for part in decoder.get("decoders", ()))


def _unicode_of_bytes() -> dict[int, str]:
    """GPT-2's printable character for every byte."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    table, extra = {b: chr(b) for b in printable}, 0
    for byte in range(256):
        if byte not in table:
            table[byte] = chr(256 + extra)
            extra += 1
    return table


_BYTE_OF = {character: byte for byte, character in _unicode_of_bytes().items()}
