"""One file replaced in one step, and folders that stay, at any cut of power."""

from __future__ import annotations

import itertools
import json
import os

import pytest

from opd.run.disk import (
    FileOps,
    human_size,
    make_folder,
    process_exists,
    remove,
    write_bytes,
    write_json,
)
from support.faulty_disk import Faulty, Forgetful, PowerCut, dead_process, raising


@pytest.mark.parametrize("names_survive", [False, True])
@pytest.mark.parametrize("old", [None, b"old" * 100])
def test_a_file_has_its_old_bytes_or_its_new_ones(tmp_path, old, names_survive):
    for number in itertools.count(1):
        place, left = tmp_path / f"place-{number}", tmp_path / f"left-{number}"
        place.mkdir()
        if old is not None:
            (place / "file").write_bytes(old)
        disk = Forgetful(place, number)
        try:
            write_bytes(place / "file", b"new" * 50, disk)
            ended = True
        except PowerCut:
            ended = False
        disk.after_power_cut(left, names_survive=names_survive)
        found = (left / "file").read_bytes() if (left / "file").exists() else None
        assert found in ([b"new" * 50] if ended else [old, b"new" * 50])
        if ended:
            break
    assert number > 4


def test_a_new_folder_and_its_parents_survive_a_power_cut(tmp_path):
    (tmp_path / "place").mkdir()
    disk = Forgetful(tmp_path / "place", 0)
    make_folder(tmp_path / "place" / "a" / "b" / "c", disk)
    disk.after_power_cut(tmp_path / "left", names_survive=False)
    assert (tmp_path / "left" / "a" / "b" / "c").is_dir()


def test_a_failed_write_leaves_the_old_file(tmp_path):
    (tmp_path / "file").write_bytes(b"old")
    for number in range(1, 5):
        with pytest.raises(OSError, match="Input/output"):
            write_bytes(tmp_path / "file", b"new", Faulty(number, raising(5)))
        assert (tmp_path / "file").read_bytes() == b"old"


def test_json_is_strict_and_refused_before_writing(tmp_path):
    write_json(tmp_path / "a.json", {"b": [0.1, None], "a": "é\ud800"})
    assert json.loads((tmp_path / "a.json").read_text("ascii")) == {
        "a": "é\ud800",
        "b": [0.1, None],
    }
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "a.json", float("inf"))
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_a_removed_folder_is_never_seen_half(tmp_path):
    """At every operation of a removal the folder is whole or has lost its name."""
    for number in itertools.count(1):
        folder = tmp_path / f"f-{number}" / "folder"
        (folder / "inner").mkdir(parents=True)
        for name in ("a", "b", "inner/c"):
            (folder / name).write_text(name)
        disk = Faulty(number, raising(5))
        try:
            remove(folder, disk)
        except OSError:
            pass
        else:
            break
        assert not folder.exists() or len(list(folder.rglob("*"))) == 4
    assert not list((tmp_path / f"f-{number}").iterdir())
    assert number == 8


def test_short_writes_are_continued(tmp_path, monkeypatch):
    real = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: real(fd, bytes(data)[:3]))
    write_bytes(tmp_path / "a", b"0123456789", FileOps())
    assert (tmp_path / "a").read_bytes() == b"0123456789"


def test_which_processes_exist():
    pid = dead_process()
    assert process_exists(os.getpid())
    assert process_exists(1)
    assert not process_exists(pid)


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (999, "999 B"), (1500, "1.5 kB"), (2_500_000, "2.5 MB"), (7e12, "7 TB")],
)
def test_sizes_for_people(size, text):
    assert human_size(size) == text
