"""The files of a tokenizer in a Hugging Face folder."""

from __future__ import annotations

from pathlib import Path

from opd.models.hub_name import split_revision

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tekken.json",
)
TOKENIZER_SETTINGS = (
    *("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "merges.txt"),
    "chat_template.jinja",
)


def have_same_files(a: str, b: str) -> bool:
    """Whether two local folders have the same tokenizer, byte for byte."""
    folders = [Path(split_revision(name)[0]).expanduser() for name in (a, b)]
    if not all(folder.is_dir() for folder in folders):
        return False
    names = (*TOKENIZER_FILES, *TOKENIZER_SETTINGS)
    return all(_bytes(folders[0] / name) == _bytes(folders[1] / name) for name in names)


def _bytes(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None
