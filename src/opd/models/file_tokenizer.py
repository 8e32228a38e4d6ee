"""A tokenizer read from its files by the `tokenizers` library: a third of a second.

For finding what is wrong with a run before anything heavy is imported. What a run trains on is
tokenized by transformers; a test holds the two against each other. A tokenizer of which the files
do not say all, or a template out of the ordinary, is left to transformers: `NotInFiles`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from datetime import datetime
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from opd.models.hub_name import split_revision
from opd.models.tokenizer_files import (
    OTHER_TEMPLATES,
    SETTINGS,
    find_tokenizer,
    read_template,
)

NAMED = ("bos_token", "eos_token", "unk_token", "pad_token")
_QWEN = {"unk_token": "<|endoftext|>", "eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}
# Classes whose tokens are those of tokenizer.json, and their special tokens where none are given.
CLASSES: Mapping[str, Mapping[str, str]] = {
    "TokenizersBackend": {},
    "PreTrainedTokenizerFast": {},
    "Qwen2Tokenizer": _QWEN,
    "Qwen2TokenizerFast": _QWEN,
}
# transformers keeps templates from more than Jinja's sandbox does; these are left to it.
_UNUSUAL = re.compile(r"__|\._|\|\s*attr|\bdict\b|\{%-?\s*(end)?generation\b")


class NotInFiles(Exception):
    """Only transformers can say it: neither right nor wrong is known."""


class FileTokenizer:
    """What checks of prompts and of a pair ask of a tokenizer, as transformers' classes answer it.

    Args:
        backend: of `tokenizers`.
        named: text of bos, eos, unk and pad token, of those there are.
        chat_template: of its folder; None without.
        name: folder.
    """

    is_fast = True

    def __init__(
        self, backend: Any, named: Mapping[str, str], chat_template: str | None, name: str
    ) -> None:
        self.backend_tokenizer = backend
        self.chat_template = chat_template
        self.name_or_path = name
        self.named = dict(named)
        for role in NAMED:
            text = self.named.get(role)
            number = None if text is None else backend.token_to_id(text)
            if text is not None and number is None:
                raise NotInFiles(f"{role} is not in the vocabulary")
            setattr(self, f"{role}_id", number)

    bos_token_id: int | None
    eos_token_id: int | None
    unk_token_id: int | None
    pad_token_id: int | None

    def __call__(self, texts: Any, *, add_special_tokens: bool = True, **_: Any) -> dict[str, Any]:
        """Token ids of one text, or of several."""
        if isinstance(texts, str):
            return {"input_ids": self.encode(texts, add_special_tokens=add_special_tokens)}
        encoded = self.backend_tokenizer.encode_batch_fast(
            texts, add_special_tokens=add_special_tokens
        )
        return {"input_ids": [e.ids for e in encoded]}

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Token ids of a text."""
        ids = self.backend_tokenizer.encode(text, add_special_tokens=add_special_tokens).ids
        return list(ids)

    def get_vocab(self) -> dict[str, int]:
        """Id of every token, added ones included."""
        return dict(self._vocab)

    @cached_property
    def _vocab(self) -> dict[str, int]:
        return dict(self.backend_tokenizer.get_vocab(with_added_tokens=True))

    def convert_ids_to_tokens(self, number: int) -> str | None:
        """The token of an id."""
        token: str | None = self.backend_tokenizer.id_to_token(number)
        return token

    @cached_property
    def added_tokens_decoder(self) -> dict[int, Any]:
        """Added tokens by id."""
        return dict(self.backend_tokenizer.get_added_tokens_decoder())

    @property
    def all_special_tokens(self) -> list[str]:
        """Texts of the named tokens."""
        return list(self.named.values())

    def apply_chat_template(
        self,
        turns: list[dict[str, str]],
        *,
        tokenize: bool,
        chat_template: Any = None,
        **words: Any,
    ) -> str:
        """The text of a conversation, as transformers renders it.

        Raises:
            NotInFiles: a template or keywords that are left to transformers.
            jinja2.TemplateError: what the template raises.
        """
        template = self.chat_template if chat_template is None else chat_template
        if tokenize or not isinstance(template, str) or words.keys() & {"tools", "documents"}:
            raise NotInFiles("a chat template out of the ordinary")
        return str(_compiled(template).render(messages=turns, **{**self.named, **words}))


def read_file_tokenizer(name: str, *, key: str = "model") -> FileTokenizer:
    """A tokenizer from its folder.

    Args:
        name: folder, or a name on the hub.
        key: configuration key named in errors.

    Raises:
        UserError: no such folder, or one without a tokenizer.
        NotInFiles: it takes transformers to know this tokenizer.
    """
    import tokenizers

    folder = find_tokenizer(split_revision(name)[0], key)
    if folder is None or not (folder / "tokenizer.json").is_file():
        raise NotInFiles("not a local tokenizer.json")
    settings, template = _read_settings(folder)
    defaults = CLASSES.get(str(settings.get("tokenizer_class")))
    if defaults is None or "auto_map" in settings or (folder / OTHER_TEMPLATES).exists():
        raise NotInFiles("a class of its own")
    named = {role: settings.get(role, defaults.get(role)) for role in NAMED}
    texts = {r: t["content"] if isinstance(t, dict) else t for r, t in named.items()}
    given = {r: t for r, t in texts.items() if t is not None}
    if not all(isinstance(text, str) for text in given.values()):
        raise NotInFiles("special tokens out of the ordinary")
    try:
        backend = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    except Exception:  # noqa: BLE001 - its plain Exception; transformers says what is wrong
        raise NotInFiles("a tokenizer.json that cannot be read") from None
    if defaults is _QWEN:
        backend.normalizer = tokenizers.normalizers.NFC()  # whatever the file says
    backend.no_truncation()
    backend.no_padding()
    return FileTokenizer(backend, given, template, name)


def _read_settings(folder: Path) -> tuple[dict[str, Any], str | None]:
    try:
        settings = json.loads((folder / SETTINGS).read_bytes())
        template = read_template(folder)
        added = settings.get("added_tokens_decoder") or {}
        tokens = json.loads((folder / "tokenizer.json").read_bytes()) if added else {}
    except (OSError, ValueError, AttributeError):
        raise NotInFiles("settings that cannot be read") from None
    if not isinstance(template, str | None):
        raise NotInFiles("several chat templates")
    if added:
        known = {str(t.get("id")) for t in tokens.get("added_tokens", [])}
        if not set(added) <= known:
            raise NotInFiles("added tokens that are not in tokenizer.json")
    return settings, template


@lru_cache(maxsize=4)
def _compiled(template: str) -> Any:
    import jinja2.ext
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def refuse(message: str) -> None:
        raise jinja2.TemplateError(message)

    def to_json(value: Any, ensure_ascii: bool = False, **how: Any) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, **how)

    if _UNUSUAL.search(template):
        raise NotInFiles("a chat template out of the ordinary")
    sandbox = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols]
    )
    sandbox.filters["tojson"] = to_json
    sandbox.globals["raise_exception"] = refuse
    sandbox.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return sandbox.from_string(template)
