"""Every file operation of a save fails once, and kills once: the last good step is always there.

Run as a script (`PYTHONPATH=tests python tests/run/test_save_faults.py`), it prints at how many
points a save was interrupted.
"""

from __future__ import annotations

import errno
import itertools
import logging
import os
import shutil
import sys
import tempfile
from pathlib import Path

import pytest

from opd.errors import UserError
from opd.run.checkpoint import find_newest_checkpoint
from opd.run.disk import FileOps, require_space
from opd.run.manifest import find_fault, list_checkpoints, save_files
from support.everyday import everyday
from support.faulty_disk import (
    Faulty,
    Forgetful,
    PowerCut,
    Unsynced,
    count_operations,
    dead_process,
    killed_at,
    raising,
)


def content(step: int, salt: str = "") -> dict[str, list[bytes]]:
    return {
        "student.safetensors": [f"weights {step} {salt}".encode() * 50, b"tail"],
        "optimizer.safetensors": [f"moments {step} {salt}".encode() * 30],
        "state.json": [b'{"step": %d}' % step],
    }


def save(folder, step, *, keep=1, ops=None, salt=""):
    disk = Unsynced() if ops is None else ops
    return save_files(folder, step, content(step, salt), size=4000, keep=keep, ops=disk)


def weights(path):
    return (path / "student.safetensors").read_bytes()


def damage(path):
    data = bytearray(weights(path))
    data[7] ^= 1
    (path / "student.safetensors").write_bytes(data)


# name -> (what is there before, the step saved, the steps that may be newest if it does not end)
def first(folder):
    pass


def second(folder):
    save(folder, 10)


def same_step(folder):
    save(folder, 20, salt="old")


def same_step_broken(folder):
    save(folder, 10)
    save(folder, 20, keep=2, salt="old")
    damage(folder / "step-20")


def half_replaced(folder):
    """A replacement of step 20 was killed between its two renames."""
    save(folder, 20, salt="old")
    (folder / "step-20").rename(folder / "step-20.old")


def replaced_by_a_broken_one(folder):
    save(folder, 20, salt="old")
    shutil.copytree(folder / "step-20", folder / "step-20.old")
    damage(folder / "step-20")


BEFORE = {
    first: None,
    second: 10,
    same_step: 20,
    same_step_broken: 10,
    half_replaced: 20,
    replaced_by_a_broken_one: 20,
}
CASES = [pytest.param(f, step, id=f.__name__) for f, step in BEFORE.items()]


def newest_step(folder):
    found = find_newest_checkpoint(folder)
    return None if found is None else found.step


def prepared(tmp_path, prepare):
    start = tmp_path / "start"
    start.mkdir()
    prepare(start)
    return start


def check_and_finish(folder, before):
    """The old or the new step is newest and whole; saving again ends with the new one alone."""
    assert newest_step(folder) in (before, 20)
    save(folder, 20)
    assert newest_step(folder) == 20
    assert weights(folder / "step-20") == b"".join(content(20)["student.safetensors"])
    assert [p.name for p in folder.iterdir()] == ["step-20"]


@pytest.mark.parametrize(("prepare", "before"), everyday(CASES, 0, len(CASES) - 1))
def test_killed_at_every_operation(tmp_path, prepare, before):
    start = prepared(tmp_path, prepare)
    for number in itertools.count(1):
        folder = tmp_path / f"run-{number}"
        shutil.copytree(start, folder)
        was_killed = killed_at(number, lambda ops, folder=folder: save(folder, 20, ops=ops))
        check_and_finish(folder, before)
        if not was_killed:
            break
    assert number > 15


FAILURES = [
    pytest.param(errno.ENOSPC, True, id="disk-full"),
    pytest.param(errno.EIO, False, id="io-error"),
    pytest.param(errno.EDQUOT, True, id="quota", marks=pytest.mark.slow),
    pytest.param(errno.ENOSPC, False, id="full-for-a-moment", marks=pytest.mark.slow),
    pytest.param(errno.EFBIG, False, id="file-too-big", marks=pytest.mark.slow),
]


def failure(folder, disk):
    try:
        save(folder, 20, ops=disk)
    except (UserError, OSError) as error:
        return error
    return None


@pytest.mark.parametrize(("code", "sticky"), FAILURES)
@pytest.mark.parametrize(("prepare", "before"), CASES)
def test_every_operation_fails_once(tmp_path, prepare, before, code, sticky):
    start = prepared(tmp_path, prepare)
    probe = tmp_path / "probe"
    shutil.copytree(start, probe)
    total = count_operations(lambda ops: save(probe, 20, ops=ops))
    for number in range(1, total + 1):
        folder = tmp_path / f"run-{number}"
        shutil.copytree(start, folder)
        disk = Faulty(number, raising(code), sticky=sticky)
        error = failure(folder, disk)
        if error is None:
            assert newest_step(folder) == 20
        elif code in (errno.ENOSPC, errno.EDQUOT) and isinstance(error, UserError):
            assert "--resume" in str(error)
        else:
            assert isinstance(error, OSError)
            assert error.errno == code
        check_and_finish(folder, before)


@pytest.mark.parametrize("names_survive", [False, True])
@pytest.mark.parametrize(("prepare", "before"), CASES)
def test_power_cut_at_every_operation(tmp_path, prepare, before, names_survive):
    start = prepared(tmp_path, prepare)
    for number in itertools.count(1):
        folder, left = tmp_path / f"run-{number}", tmp_path / f"left-{number}"
        shutil.copytree(start, folder)
        disk = Forgetful(folder, number)
        try:
            save(folder, 20, ops=disk)
            ended = True
        except PowerCut:
            ended = False
        disk.after_power_cut(left, names_survive=names_survive)
        if ended:
            assert newest_step(left) == 20
        check_and_finish(left, before)
        if ended:
            break
    assert number > 15


def test_a_disk_that_forgets_catches_a_missing_fsync(tmp_path):
    """The power-cut double is worth something: without fsync it leaves a broken checkpoint."""

    class Careless(Forgetful):
        def fsync(self, fd):
            self._tick()

    start = prepared(tmp_path, first)
    disk = Careless(start, 0)
    save(start, 20, ops=disk)
    disk.after_power_cut(tmp_path / "left", names_survive=True)
    assert find_fault(tmp_path / "left" / "step-20") is not None


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_keeps_the_newest_and_never_loses_the_last(tmp_path, keep):
    for step in (10, 20, 30, 40):
        save(tmp_path, step, keep=keep)
        wanted = [s for s in (40, 30, 20, 10) if s <= step][:keep]
        assert [s for s, _ in list_checkpoints(tmp_path)] == wanted


def test_a_new_checkpoint_that_reads_back_wrong_deletes_nothing(tmp_path):
    class Lying(FileOps):
        def write(self, fd, data):
            super().write(fd, bytes(len(data)) if bytes(data).startswith(b"weights 20") else data)

    save(tmp_path, 10)
    with pytest.raises(OSError, match="does not read back as written"):
        save(tmp_path, 20, ops=Lying())
    assert newest_step(tmp_path) == 10


def test_broken_older_ones_do_not_count_and_go(tmp_path):
    save(tmp_path, 10, keep=3)
    save(tmp_path, 20, keep=3)
    (tmp_path / "step-20" / "state.json").unlink()
    save(tmp_path, 30, keep=2)
    assert [s for s, _ in list_checkpoints(tmp_path)] == [30, 10]


def test_leftovers_of_dead_processes_go_and_of_living_ones_stay(tmp_path):
    pid = dead_process()
    for owner in (pid, os.getppid(), os.getpid()):
        (tmp_path / f"step-5.tmp-{owner}").mkdir()
        (tmp_path / f"step-5.tmp-{owner}" / "state.json").write_text("{}")
    save(tmp_path, 10)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-10", f"step-5.tmp-{os.getppid()}"]


class SmallDisk(FileOps):
    def free(self, path):
        return 5_000_000


def test_too_little_space_is_said_before_anything_is_written(tmp_path):
    save(tmp_path, 10)
    with pytest.raises(UserError, match=r"9.05 MB needed, 5 MB free"):
        save_files(tmp_path, 20, content(20), size=8_000_000, keep=1, ops=SmallDisk())
    assert [p.name for p in tmp_path.iterdir()] == ["step-10"]


def test_space_is_measured_where_a_folder_will_be(tmp_path):
    require_space(tmp_path / "not" / "yet", 5_000_000, SmallDisk())
    with pytest.raises(UserError, match=r"output\.dir"):
        require_space(tmp_path / "not" / "yet", 5_000_001, SmallDisk())
    assert not (tmp_path / "not").exists()


def test_keep_zero_is_refused(tmp_path):
    with pytest.raises(ValueError, match="at least one"):
        save(tmp_path, 10, keep=0)


WAYS = ("killed", "disk full", "EIO", "power cut, names kept", "power cut, names lost")


def print_crash_points() -> None:
    logging.disable(logging.CRITICAL)  # every broken checkpoint causes a warning, here on purpose
    write = sys.stdout.write
    write(f"| before the save | operations | {' | '.join(WAYS)} |\n|---|---|" + "---|" * len(WAYS))
    write("\n")
    total = 0
    for prepare, before in BEFORE.items():
        with tempfile.TemporaryDirectory() as folder:
            folders = [Path(folder) / str(i) for i in range(len(WAYS) + 1)]
            for path in folders:
                path.mkdir()
            probe = folders[-1] / "probe"
            shutil.copytree(prepared(folders[-1], prepare), probe)
            count = count_operations(lambda ops, probe=probe: save(probe, 20, ops=ops))
            test_killed_at_every_operation(folders[0], prepare, before)
            test_every_operation_fails_once(folders[1], prepare, before, errno.ENOSPC, True)
            test_every_operation_fails_once(folders[2], prepare, before, errno.EIO, False)
            test_power_cut_at_every_operation(folders[3], prepare, before, True)
            test_power_cut_at_every_operation(folders[4], prepare, before, False)
        total += count * len(WAYS)
        write(f"| {prepare.__name__} | {count} |" + " ok |" * len(WAYS) + "\n")
    write(f"\n{total} crash points: always the last good step, nothing to clean up by hand.\n")


if __name__ == "__main__":
    print_crash_points()
