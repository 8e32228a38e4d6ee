"""What a model's files say before its weights are read: sizes, contexts, damage.

A typing error in a folder, a download that stopped half-way and a config of another kind are found
in milliseconds here, instead of minutes later while weights are loaded.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import math
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from opd.errors import UserError
from opd.models.configs import context_length_of
from opd.models.hub_name import split_revision
from opd.models.tokenizer_files import find_tokenizer

INDEX = "model.safetensors.index.json"
WEIGHTS = "model.safetensors"
EMBEDDING, HEAD = "embed_tokens.weight", "lm_head.weight"
SAMPLES, SAMPLE_BYTES = 16, 4096  # of a weight file, for its identity
HEADER_LIMIT = 100_000_000  # bytes, as the safetensors library allows


@dataclass(frozen=True)
class ModelFacts:
    """What is known of a model without its weights.

    Attributes:
        name: folder or hub name.
        config: its text configuration.
        end_tokens: `eos_token_id` of its generation config.
        identity: changes when its weights or configuration do; of a hub model its commit.
    """

    name: str
    config: Any
    end_tokens: Any
    identity: str

    @property
    def context_length(self) -> int | None:
        """Longest sequence it takes; None if its config does not say."""
        return context_length_of(self.config)

    @property
    def vocab(self) -> int:
        """Rows of its head."""
        return int(self.config.vocab_size)


def read_facts(name: str, key: str) -> ModelFacts:
    """Read a model's configuration, and look at its weight files without loading them.

    Args:
        name: local folder or hub name, with @revision if it is not the newest.
        key: configuration key named in errors.

    Raises:
        UserError: no such model, no causal language model, or weight files that are absent, cut
            off or no safetensors.
    """
    import transformers  # seconds: not before the folder is known to be there

    source, revision = split_revision(name)
    folder = find_folder(source, key)
    if folder is not None:
        _require_config(folder, key)
    try:
        config = transformers.AutoConfig.from_pretrained(
            str(folder) if folder else source, revision=revision, trust_remote_code=False
        )
    except Exception as error:  # noqa: BLE001 - of any kind, as strange values make them
        raise UserError(f"{key}={name}: its config.json cannot be used: {_first(error)}") from None
    if type(config) not in transformers.MODEL_FOR_CAUSAL_LM_MAPPING:
        raise UserError(
            f"{key}={name}: {type(config).__name__} ({config.model_type}) is no causal language "
            "model that transformers knows."
        )
    if folder is not None:
        require_weight_files(folder, key)
    text = _text_config(config, f"{key}={name}")
    identity = _commit(config) if folder is None else identify(folder)
    return ModelFacts(name, text, read_end_tokens(folder or Path(source), text), identity)


def look_at_files(name: str, key: str) -> Path | None:
    """What `read_facts` and loading its tokenizer would find wrong with the files of a model.

    Returns:
        Its folder; None for a name on the hub.

    Raises:
        UserError: as `read_facts`.
    """
    source, _ = split_revision(name)
    folder = find_folder(source, key)
    if folder is not None:
        _require_config(folder, key)
        require_weight_files(folder, key)
        find_tokenizer(source, key)
    return folder


def find_folder(source: str, key: str) -> Path | None:
    """The local folder of a model; None for a name on the hub.

    Raises:
        UserError: a path that is no folder, or that cannot be one.
    """
    if not source.strip():
        raise UserError(f"{key} is empty; give the folder of a model, or its name on the hub.")
    folder = Path(source).expanduser()
    try:
        exists = folder.exists()
    except (OSError, ValueError) as error:
        raise UserError(f"{key}={source[:60]!r}: cannot be a path ({_first(error)}).") from None
    if not exists:
        if not _is_hub_name(source) or (near := _similar_folder(folder)) is not None:
            near = _similar_folder(folder)
            hint = f" Did you mean {near}?" if near is not None else ""
            raise UserError(f"{key}={source}: no such folder.{hint}")
        return None
    if not folder.is_dir():
        raise UserError(f"{key}={source} is a file; give the folder that holds it, or a hub name.")
    return folder


def count_elements(folder: Path) -> int:
    """Elements of all weights of the model in a folder, from the headers of its files."""
    return sum(map(math.prod, weight_shapes(folder).values()))


def weight_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Shapes of the weights of the model in a folder, from the headers of its files.

    A head that is the embedding is left out where both are stored; files that transformers does not
    load are, too (the same weights once more, in another layout).
    """
    try:
        headers = _headers(folder)
        tied = json.loads((folder / "config.json").read_bytes()).get("tie_word_embeddings")
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}
    shapes = {name: s for header in headers for name, s in header.shapes.items()}
    if tied is True and any(name.endswith(EMBEDDING) for name in shapes):
        shapes.pop(HEAD, None)
    return shapes


def stored_bytes(folder: Path) -> int:
    """Bytes of the tensors in a folder's files, from their headers; 0 where there are none."""
    try:
        return sum(header.data for header in _headers(folder))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return 0


def _headers(folder: Path) -> list[Header]:
    """Of the files that transformers loads and that are whole so far.

    Raises:
        OSError, ValueError, KeyError, TypeError, AttributeError: the index cannot be read.
    """
    headers = [read_header(file) for file in _weight_files(folder)]
    return [header for header in headers if isinstance(header, Header)]


def _weight_files(folder: Path) -> list[Path]:
    """Those that transformers loads, whether they are there or not.

    Raises:
        ValueError, KeyError, TypeError, AttributeError: the index is none.
    """
    if (folder / INDEX).is_file():
        index = json.loads((folder / INDEX).read_bytes())
        return [folder / name for name in sorted(set(index["weight_map"].values()))]
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    return sorted(folder.glob("*.safetensors")) or [folder / WEIGHTS]


def require_weight_files(folder: Path, key: str) -> None:
    """Check that the weights are there, whole, and safetensors: headers are read, no tensor.

    Raises:
        UserError: naming the file and what is wrong with it.
    """
    try:
        files = _weight_files(folder)
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{key}: {folder / INDEX} is no index of weights.") from None
    absent = [f.name for f in files if not f.is_file()]
    if absent:
        others = sorted(p.name for p in folder.iterdir() if p.suffix in (".bin", ".pt", ".gguf"))
        hint = f" Found {', '.join(others)}, which are not read." if others else ""
        raise UserError(
            f"{key}={folder}: {', '.join(absent[:3])} with the weights is not there.{hint} Only "
            "safetensors weights are read; save them with model.save_pretrained(folder)."
        )
    for file in files:
        if fault := find_weight_fault(file):
            raise UserError(
                f"{key}: {file} {fault}. Was the download or copy interrupted? Get it again."
            )


def identify(folder: Path) -> str:
    """A hash of a model's configuration and of its weight files: size, header and sampled bytes.

    A few milliseconds a file, whatever its size; two trainings of one model differ everywhere.
    """
    digest = hashlib.sha256((folder / "config.json").read_bytes())
    for file in sorted(folder.glob("*.safetensors")):
        size = file.stat().st_size
        digest.update(f"{file.name} {size}".encode())
        with file.open("rb") as stream:
            for i in range(SAMPLES):
                stream.seek(size * i // SAMPLES)
                digest.update(stream.read(SAMPLE_BYTES))
    return digest.hexdigest()


def find_weight_fault(file: Path) -> str | None:
    """Why a safetensors file cannot be whole; None if its size fits its header."""
    header = read_header(file)
    if isinstance(header, str):
        return header
    expected, actual = header.end, file.stat().st_size
    if actual < expected:
        return f"is cut off: it has {actual:,} bytes of {expected:,}"
    if actual > expected:
        return f"has {actual:,} bytes where its header says {expected:,}"
    return None


@dataclass(frozen=True)
class Header:
    """The header of a safetensors file.

    Attributes:
        shapes: of every tensor.
        data: bytes of all tensors.
        end: bytes of the whole file.
    """

    shapes: dict[str, tuple[int, ...]]
    data: int
    end: int


def read_header(file: Path) -> Header | str:
    """The header of a safetensors file, or what is wrong with it."""
    try:
        with file.open("rb") as stream:
            start = stream.read(8)
            if start.startswith(b"version "):
                return "is a pointer of Git LFS, not the weights (`git lfs pull`)"
            size = int.from_bytes(start, "little")
            if len(start) < 8:
                return "is empty" if not start else "is cut off within its first bytes"
            if size > HEADER_LIMIT:
                return "is no safetensors file"
            text = stream.read(size)
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    if len(text) < size:
        return "is cut off within its header"
    try:
        entries = json.loads(text)
        entries.pop("__metadata__", None)
        shapes = {name: tuple(map(int, e["shape"])) for name, e in entries.items()}
        end = max((int(e["data_offsets"][1]) for e in entries.values()), default=0)
    except (ValueError, KeyError, TypeError, AttributeError):
        return "is no safetensors file"
    return Header(shapes, end, 8 + size + end)


def _require_config(folder: Path, key: str) -> None:
    path = folder / "config.json"
    if not path.is_file():
        raise UserError(
            f"{key}={folder}: the folder has no config.json; give a Hugging Face folder."
        )
    try:
        data = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{key}: {path} is not JSON ({_first(error)}).") from None
    if not isinstance(data, dict) or "model_type" not in data:
        raise UserError(
            f"{key}: {path} is no configuration of a model: it must be a JSON object with a "
            "`model_type`."
        )


def _text_config(config: Any, model: str) -> Any:
    """The part of a configuration that is the language model's, with a vocabulary."""
    text = config.get_text_config()
    vocab = getattr(text, "vocab_size", None)
    if type(vocab) is not int or vocab < 1:
        raise UserError(
            f"{model}: its config.json cannot be used: the vocabulary has {vocab!r} tokens."
        )
    return text


def read_end_tokens(source: Path, config: Any) -> Any:
    """`eos_token_id` of generation_config.json, else of a text configuration.

    Raises:
        UserError: a file that is no JSON object, or ids that are no numbers.
    """
    path = source / "generation_config.json"
    try:
        tokens = json.loads(path.read_text("utf-8")).get("eos_token_id")
    except FileNotFoundError:
        tokens = getattr(config, "eos_token_id", None)
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(f"{path} is no JSON object ({_first(error)}).") from None
    several = tokens if isinstance(tokens, list) else [tokens]
    if not all(token is None or type(token) is int for token in several):
        raise UserError(f"{path}: eos_token_id={tokens!r} must be token ids (whole numbers).")
    return SimpleNamespace(eos_token_id=tokens)


def _commit(config: Any) -> str:
    return str(getattr(config, "_commit_hash", None))


def _is_hub_name(source: str) -> bool:
    return not source.startswith((".", "/", "~")) and source.count("/") <= 1


def _similar_folder(folder: Path) -> Path | None:
    parent = folder.parent
    names = [p.name for p in parent.iterdir() if p.is_dir()] if parent.is_dir() else []
    near = difflib.get_close_matches(folder.name, names, n=1, cutoff=0.8)
    return folder.with_name(near[0]) if near else None


def _first(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
