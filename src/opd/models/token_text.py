"""The text of single tokens, for display; completions are never decoded from these."""

from __future__ import annotations

from typing import Any

BAD = "\ufffd"
SENTENCEPIECE_SPACE = "\u2581"


def token_texts(tokenizer: Any, vocab: int) -> list[str]:
    """The text of each token id below `vocab`; a part of a character keeps its raw token.

    Args:
        tokenizer: of transformers.
        vocab: rows of the model's head; ids the tokenizer does not know give "".
    """
    known = min(vocab, len(tokenizer))
    raw = [str(t) for t in tokenizer.convert_ids_to_tokens(range(known))]
    ids = [[i] for i in range(known)]
    decoded = tokenizer.batch_decode(ids, clean_up_tokenization_spaces=False)
    texts = [_text(token, text) for token, text in zip(raw, decoded, strict=True)]
    return texts + [""] * (vocab - known)


def _text(token: str, decoded: str) -> str:
    if BAD in decoded or not decoded:
        return token
    # SentencePiece decoders drop the leading space of a first token.
    lost_space = token.startswith(SENTENCEPIECE_SPACE) and not decoded.startswith(" ")
    return " " + decoded if lost_space else decoded
