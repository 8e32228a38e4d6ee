"""The files of a tokenizer in a Hugging Face folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from opd.errors import UserError
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


TEMPLATE, SETTINGS = "chat_template.jinja", "tokenizer_config.json"
OTHER_TEMPLATES = "additional_chat_templates"


def find_tokenizer(path: str, key: str) -> Path | None:
    """The local folder of a tokenizer; None for a name on the hub.

    Args:
        path: folder or hub name, without revision.
        key: configuration key named in errors.

    Raises:
        UserError: no such folder, or a folder without tokenizer.
    """
    folder = Path(path).expanduser()
    if folder.is_dir():
        if any((folder / name).is_file() for name in TOKENIZER_FILES):
            return folder
        raise UserError(
            f"{key}={path}: the folder has no tokenizer (looked for {', '.join(TOKENIZER_FILES)}). "
            "Save one there with tokenizer.save_pretrained(folder)."
        )
    if folder.exists():
        raise UserError(f"{key}={path} is a file; give the folder that holds it, or a hub name.")
    if path.startswith((".", "/", "~")) or path.count("/") > 1:
        raise UserError(f"{key}={path}: no such folder.")
    return None


def have_same_ids(a: str, b: str) -> bool:
    """Whether two local folders have the same tokenizer, byte for byte, but for its chat template.

    A folder with several chat templates is never like another.
    """
    folders = [Path(split_revision(name)[0]).expanduser() for name in (a, b)]
    if not all(folder.is_dir() for folder in folders):
        return False
    if any((folder / OTHER_TEMPLATES).exists() for folder in folders):
        return False
    names = [n for n in (*TOKENIZER_FILES, *TOKENIZER_SETTINGS) if n not in (TEMPLATE, SETTINGS)]
    if any(_bytes(folders[0] / name) != _bytes(folders[1] / name) for name in names):
        return False
    settings = [_settings(folder) for folder in folders]
    return settings[0] is not None and settings[0] == settings[1]


def read_template(folder: Path) -> str | None:
    """The chat template of a tokenizer's folder; its own file comes before the settings."""
    own = _bytes(folder / TEMPLATE)
    if own is not None:
        return own.decode("utf-8", "replace")
    settings = json.loads(_bytes(folder / SETTINGS) or b"{}")
    return settings.get("chat_template")  # type: ignore[no-any-return]


def _settings(folder: Path) -> dict[str, Any] | None:
    """What decides a tokenizer beside its files of tokens; None if it cannot be compared."""
    try:
        settings = json.loads(_bytes(folder / SETTINGS) or b"{}")
        kind = json.loads(_bytes(folder / "config.json") or b"{}").get("model_type")
    except (ValueError, AttributeError):
        return None
    if not isinstance(settings, dict):
        return None
    settings["model_type"] = kind
    template = settings.pop("chat_template", None)
    return settings if template is None or isinstance(template, str) else None


def _bytes(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None
