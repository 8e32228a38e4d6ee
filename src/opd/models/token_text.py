"""The text of single tokens, for people; completions are never put together from these."""

from __future__ import annotations

from typing import Any

BAD = "\ufffd"
SENTENCEPIECE_SPACE = "\u2581"


def token_texts(tokenizer: Any, vocab: int) -> list[str]:
    """What each token id below `vocab` says alone; a piece of a character keeps its raw spelling.

    Args:
        tokenizer: of transformers.
        vocab: width of the model's head; ids the tokenizer does not know give "".
    """
    known = min(vocab, len(tokenizer))
    raw = [str(t) for t in tokenizer.convert_ids_to_tokens(range(known))]
    said = tokenizer.batch_decode([[i] for i in range(known)], clean_up_tokenization_spaces=False)
    texts = [_text(r, s) for r, s in zip(raw, said, strict=True)]
    return texts + [""] * (vocab - known)


def _text(raw: str, said: str) -> str:
    if BAD in said or not said:
        return raw
    # SentencePiece decoders drop the space that a first token begins with.
    return " " + said if raw.startswith(SENTENCEPIECE_SPACE) and not said.startswith(" ") else said
