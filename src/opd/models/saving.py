"""Saving a student as an ordinary Hugging Face folder, byte for byte the same every time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from opd.models.lm import LM, copy_on_cpu
from opd.models.quantised import QuantisedLinear, dequantise
from opd.models.saved_folder import ADAPTER, replaced_folder


def save_final(lm: LM, tokenizer: Any, folder: Path) -> None:
    """Write the student as an ordinary Hugging Face folder that appears by one rename.

    A LoRA student is merged into its base model; the adapter alone is in `adapter/`. Files in an
    older folder that no saving of a model writes are kept.
    """
    with replaced_folder(folder) as new:
        if lm.is_lora:
            save_adapter(lm, new / ADAPTER)
        save_merged(lm, tokenizer, new)


def save_merged(lm: LM, tokenizer: Any, folder: Path) -> None:
    """Write weights and tokenizer into a folder, an adapter merged into its base model."""
    model: Any = merged_copy(lm) if lm.is_lora else lm.model
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def merged_copy(lm: LM) -> Any:
    """The base model of a LoRA student in host memory, adapters merged, nothing quantised.

    Weights that no adapter changes are shared with a student that is in host memory.
    """
    bases: list[Any] = [m.base_layer for m in lm.model.modules() if hasattr(m, "base_layer")]
    plain = [base for base in bases if not isinstance(base, QuantisedLinear)]
    changed = {id(parameter) for layer in plain for parameter in layer.parameters()}
    copy: Any = copy_on_cpu(lm.model, changed)
    dequantise(copy)
    return copy.merge_and_unload()


def save_adapter(lm: LM, folder: Path) -> None:
    """Write a LoRA student's adapter alone.

    peft keeps names of modules in sets, whose order changes from process to process: they are
    sorted, so that two runs of one configuration write the same bytes.
    """
    model: Any = lm.model
    model.save_pretrained(folder)
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text("utf-8"))
    sets = [k for k in config if isinstance(getattr(model.active_peft_config, k, None), set)]
    config |= {key: sorted(config[key]) for key in sets}
    path.write_text(json.dumps(config, indent=2, sort_keys=True), encoding="utf-8")
