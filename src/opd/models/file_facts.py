"""What config.json says of a model of a known family; no transformers."""

from __future__ import annotations

import json
from types import SimpleNamespace

from opd.models.file_tokenizer import NotInFiles
from opd.models.model_files import ModelFacts, identify, look_at_files, read_end_tokens

# Causal language models whose configuration is that of config.json, with these numbers in it.
FAMILIES = {"llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "olmo2", "smollm3", "granite"}
COUNTS = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads")
LENGTH = "max_position_embeddings"


def read_file_facts(name: str, key: str) -> ModelFacts:
    """As `model_files.read_facts`, from the files of a local model.

    Args:
        name: local folder, or a name on the hub.
        key: configuration key named in errors.

    Raises:
        UserError: as `look_at_files`.
        NotInFiles: it takes transformers to know this model.
    """
    folder = look_at_files(name, key)
    if folder is None:
        raise NotInFiles("a model on the hub")
    data = json.loads((folder / "config.json").read_bytes())
    numbers = [data.get(count) for count in (*COUNTS, LENGTH)]
    if data["model_type"] not in FAMILIES or not all(type(n) is int and n > 0 for n in numbers):
        raise NotInFiles("a configuration out of the ordinary")
    if "eos_token_id" not in data:
        raise NotInFiles("end tokens are those of the family")
    config = SimpleNamespace(**data)
    return ModelFacts(name, config, read_end_tokens(folder, config), identify(folder))
