"""Folders of saved models: which files are of a model, and replacing a folder as a whole.

Needs no torch: `opd.run` asks which files of a run folder are the run's own.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ADAPTER = "adapter"  # folder of a LoRA adapter, inside that of the merged model
SYNC_MARK = ".opd-student"  # file in a folder of weights for a rollout server
_FILE = re.compile(
    r"(model|pytorch_model|adapter_model)(-\d+-of-\d+)?\.safetensors(\.index\.json)?"
    r"|(config|generation_config|adapter_config|tokenizer|tokenizer_config|special_tokens_map"
    r"|added_tokens|vocab|tekken|processor_config|preprocessor_config)\.json"
    r"|merges\.txt|vocab\.txt|tokenizer\.model|spiece\.model|sentencepiece\.bpe\.model"
    r"|chat_template\.jinja|\.opd-student|additional_chat_templates/[^/]+\.jinja|README\.md"
)


def is_model_file(relative: str) -> bool:
    """Whether saving a model and its tokenizer writes a file of this name into the folder."""
    return _FILE.fullmatch(relative.removeprefix(f"{ADAPTER}/")) is not None


def is_model_folder(relative: str) -> bool:
    """Whether saving a model makes a folder of this name in the folder."""
    return relative.removeprefix(f"{ADAPTER}/") in (ADAPTER, "additional_chat_templates")


@contextmanager
def replaced_folder(folder: Path) -> Iterator[Path]:
    """A new folder to write into, which takes the place of `folder` at the end of the block.

    What somebody else put into the old folder is moved to the new one. After an error the old
    folder is untouched and the new one is gone.
    """
    new = folder.with_name(f"{folder.name}.tmp-{os.getpid()}")
    shutil.rmtree(new, ignore_errors=True)
    try:
        yield new
        if folder.is_dir():
            _move_others(folder, new)
            old = folder.with_name(f"{folder.name}.trash.tmp-{os.getpid()}")
            folder.rename(old)
            new.rename(folder)
            shutil.rmtree(old, ignore_errors=True)
        else:
            new.rename(folder)
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        raise


def _move_others(old: Path, new: Path) -> None:
    """Move files that are not of a model, except where the new folder has the name."""
    for folder, names, files in os.walk(old):
        links = [name for name in names if Path(folder, name).is_symlink()]
        for path in (Path(folder, name) for name in [*files, *links]):
            relative = path.relative_to(old)
            if not is_model_file(relative.as_posix()) and not os.path.lexists(new / relative):
                (new / relative).parent.mkdir(parents=True, exist_ok=True)
                path.rename(new / relative)
