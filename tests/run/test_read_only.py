"""A process that must not write a run folder cannot: nothing it may call changes the disk."""

from __future__ import annotations

import inspect
import os
from pathlib import Path

import numpy as np
import pytest

from opd.run.disk import READ_ONLY, FileOps
from opd.run.folder import RunFolder
from support.rollouts import batch_of

CONFIG = {"train": {"seed": 3, "steps": 9}, "output": {"dir": "x"}}


def disk_state(root: Path) -> dict[str, object]:
    """Names, bytes, modes and times of everything under a folder."""
    state: dict[str, object] = {}
    for path in (root, *sorted(root.rglob("*"))):
        info = path.lstat()
        data = path.read_bytes() if path.is_file() else None
        state[str(path)] = (info.st_mode, info.st_size, info.st_mtime_ns, info.st_ino, data)
    return state


@pytest.fixture
def written(tmp_path):
    """A run folder with something of everything that a method could change."""
    rng, path = np.random.default_rng(0), tmp_path / "run"
    with RunFolder.create(path, CONFIG) as run:
        for step in (1, 2, 3):
            run.log_metrics(step, {"loss": 0.5})
            run.save_rollouts(step, *batch_of(rng, [3, 2, 4]), key=run.rollout_key(step, 0))
        run.save_eval(2, "held-out", {"accuracy": 0.5}, [])
    for name in ("checkpoints/step-2", "coldstart/checkpoints/step-1"):
        (path / name).mkdir(parents=True)
        (path / name / "state.json").write_text("{}")
    (path / "rollouts" / "step-1.parquet").write_bytes(b"broken")
    return path


def public_methods(cls: type) -> list[str]:
    """Names of what an instance offers, class methods and properties aside."""
    names = (n for n, _ in inspect.getmembers(cls, inspect.isfunction) if not n.startswith("_"))
    return sorted(names)


# Arguments of every method; one without an entry fails its test.
ARGUMENTS = {
    "log_alarm": ({"step": 2, "name": "mass"},),
    "close": (),
    "forget": ("coldstart", 1),
    "keep_rollouts": (2,),
    "rollout_key": (1, 0),
    "load_eval": (2, "held-out"),
    "load_rollouts": (1, {}),
    "log_metrics": (4, {"loss": 0.5}),
    "log_digests": (),
    "record_attention": ({"student": "eager"},),
    "save_inputs": ({"hashes": {}},),
    "sync_logs": (),
    "save_eval": (3, "held-out", {"accuracy": 0.5}, []),
    "save_rollouts": (4, [], []),
    "save_summary": ({"steps": 3},),
    "save_token_texts": (lambda: ["a", "b"],),
    "thin_rollouts": (3, 1),
    "log_timings": (4, {"time/step_s": 1.0}),
    "truncate_logs": ({},),
}
KEYWORDS = {"save_rollouts": {"key": {}}}


@pytest.mark.parametrize("method", public_methods(RunFolder))
def test_no_method_of_a_read_only_folder_changes_the_disk(written, method):
    before = disk_state(written)
    folder = RunFolder.read_only(written, CONFIG)
    getattr(folder, method)(*ARGUMENTS[method], **KEYWORDS.get(method, {}))
    assert disk_state(written) == before


@pytest.mark.parametrize("method", public_methods(RunFolder))
def test_every_writing_method_of_a_writable_folder_does_change_the_disk(written, method):
    """The test above means something: its arguments ask for a change."""
    with RunFolder.create(written, CONFIG, resume=True) as folder:
        before = disk_state(written)
        getattr(folder, method)(*ARGUMENTS[method], **KEYWORDS.get(method, {}))
        changed = disk_state(written) != before
    assert changed == (
        method
        not in ("close", "load_eval", "load_rollouts", "rollout_key", "sync_logs", "log_digests")
    )


@pytest.mark.parametrize("method", public_methods(RunFolder))
def test_a_folder_that_only_another_machine_sees_is_not_missed(tmp_path, method):
    """Without a shared disk the other processes find nothing of what the first one wrote."""
    folder = RunFolder.read_only(tmp_path / "absent", CONFIG)
    getattr(folder, method)(*ARGUMENTS[method], **KEYWORDS.get(method, {}))
    assert list(tmp_path.iterdir()) == []


def test_a_read_only_folder_reads_what_another_process_wrote(written):
    with RunFolder.create(written, CONFIG, resume=True) as writer:
        reader = RunFolder.read_only(written, CONFIG)
        assert writer.writes
        assert not reader.writes
        assert reader.rollout_key(2, 0) == writer.rollout_key(2, 0)
        batch, _ = reader.load_rollouts(2, reader.rollout_key(2, 0))
        assert len(batch) == 3
        assert reader.load_eval(2, "held-out") == writer.load_eval(2, "held-out")


@pytest.mark.parametrize("operation", public_methods(FileOps))
def test_no_operation_of_a_read_only_disk_changes_anything(tmp_path, operation):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_bytes(b"abc")
    fd = os.open(tmp_path / "file", os.O_RDWR)
    targets = {
        "mkdir": (tmp_path / "new",),
        "create": (tmp_path / "file",),
        "append": (tmp_path / "new",),
        "write": (fd, b"xyz"),
        "truncate": (tmp_path / "file", 1),
        "fsync": (fd,),
        "sync_folder": (tmp_path,),
        "rename": (tmp_path / "file", tmp_path / "new"),
        "unlink": (tmp_path / "file",),
        "rmdir": (tmp_path / "empty",),
        "free": (tmp_path,),
    }
    before = disk_state(tmp_path)
    result = getattr(READ_ONLY, operation)(*targets[operation])
    if operation in ("create", "append"):
        READ_ONLY.write(result, b"xyz")
        os.close(result)
    os.close(fd)
    assert disk_state(tmp_path) == before
