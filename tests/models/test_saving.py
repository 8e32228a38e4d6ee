"""Saved students: the same bytes in every process, and nothing of somebody else's is lost."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys

import pytest

from opd.models.saved_folder import replaced_folder

SAVE = """
import sys
from pathlib import Path
from opd.models.lm import add_lora
from opd.models.saving import save_final
from opd.testing import tiny_lm, tiny_tokenizer
lm = add_lora(tiny_lm(), rank=2, alpha=4, target_modules="all-linear", seed=0)
save_final(lm, tiny_tokenizer(), Path(sys.argv[1]))
"""


@pytest.mark.slow
def test_two_processes_save_the_same_bytes(tmp_path):
    """peft keeps module names in sets, whose order changes with the hash seed of the process."""
    digests = []
    for seed in ("1", "2"):
        folder = tmp_path / seed
        env = os.environ | {"PYTHONHASHSEED": seed}
        subprocess.run([sys.executable, "-c", SAVE, folder], env=env, check=True)
        files = sorted(p for p in folder.rglob("*") if p.is_file())
        digests.append(
            {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}
        )
    assert "adapter/adapter_config.json" in digests[0]
    assert digests[0] == digests[1]


def test_an_error_leaves_the_old_folder_and_no_temporary_one(tmp_path):
    folder = tmp_path / "final"
    folder.mkdir()
    (folder / "config.json").write_text("old")
    with pytest.raises(FileNotFoundError):
        fail_to_replace(folder)
    assert [p.name for p in tmp_path.iterdir()] == ["final"]
    assert (folder / "config.json").read_text() == "old"


def fail_to_replace(folder) -> None:
    with replaced_folder(folder) as new:
        new.mkdir()
        (new / "config.json").write_text("new")
        (new / "absent").read_text()


def test_files_of_others_move_to_the_new_folder(tmp_path):
    folder = tmp_path / "final"
    (folder / "plots").mkdir(parents=True)
    for name in ("config.json", "notes.md", "plots/a.png"):
        (folder / name).write_text("old")
    with replaced_folder(folder) as new:
        new.mkdir()
        (new / "config.json").write_text("new")
    names = sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())
    assert names == ["config.json", "notes.md", "plots/a.png"]
    assert (folder / "config.json").read_text() == "new"
