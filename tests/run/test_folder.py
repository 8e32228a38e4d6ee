"""Which folders a run may use, what it writes there, and that nothing is lost or overwritten."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys

import pytest

from opd.errors import UserError
from opd.run.folder import RunFolder
from opd.run.jsonl import read_jsonl
from opd.run.layout import LOCK
from support.everyday import everyday
from support.faulty_disk import Faulty, Unsynced, killed_at

CONFIG = {
    "train": {"seed": 3, "steps": 9, "prompts_per_step": 2},
    "loss": {"k": 4, "terms": {}},
    "eval": [{"path": "a.jsonl"}],
    "output": {"dir": "x", "keep": 2},
}


def create(path, config=CONFIG, *, ops=None, **flags):
    return RunFolder.create(path, config, ops=Unsynced() if ops is None else ops, **flags)


def used(path):
    """A folder with three logged steps, a checkpoint folder and a note."""
    with create(path) as run:
        for step in (1, 2, 3):
            run.log_metrics(step, {"loss": step / 10})
            run.log_timings(step, {"seconds": 1.0})
        run.log_alarm({"step": 2, "name": "mass"})
        (run.checkpoints / "step-2").mkdir()
    (path / "note.txt").write_text("mine")
    return path


def changed(**sections):
    config = json.loads(json.dumps(CONFIG))
    for name, values in sections.items():
        if isinstance(values, dict):
            config[name] = config.get(name, {}) | values
        else:
            config[name] = values
    return config


def test_a_new_folder_with_its_parents(tmp_path):
    with create(tmp_path / "runs" / "a") as run:
        assert run.fresh
        assert run.config == CONFIG
        assert json.loads((run.path / "config.json").read_text()) == CONFIG
        env = json.loads((run.path / "env.json").read_text())
        assert env["seed"] == 3
        assert env["versions"]["opd"]
        assert env["versions"]["torch"]
        assert env["cpus"] == os.cpu_count()


def test_an_empty_folder_is_fine_with_any_flag(tmp_path):
    for name, flags in (("a", {}), ("b", {"resume": True}), ("c", {"overwrite": True})):
        (tmp_path / name).mkdir()
        with create(tmp_path / name, **flags) as run:
            assert run.fresh


def test_a_used_folder_needs_a_flag(tmp_path):
    path = used(tmp_path / "a")
    before = sorted(path.rglob("*"))
    with pytest.raises(UserError, match=r"--resume.*--overwrite.*output\.dir"):
        create(path)
    assert sorted(path.rglob("*")) == before


def test_both_flags_are_refused(tmp_path):
    with pytest.raises(UserError, match="exclude each other"):
        create(tmp_path / "a", resume=True, overwrite=True)


def test_resume_keeps_everything(tmp_path):
    path = used(tmp_path / "a")
    with create(path, resume=True) as run:
        assert not run.fresh
        assert len(read_jsonl(path / "metrics.jsonl")) == 3
        assert (path / "note.txt").read_text() == "mine"
        assert len(json.loads((path / "env.json").read_text())["resumed"]) == 1


def test_overwrite_starts_over(tmp_path):
    path = used(tmp_path / "a")
    other = changed(loss={"k": 5})
    with create(path, other, overwrite=True) as run:
        assert run.fresh
        assert run.config == other
        assert read_jsonl(path / "metrics.jsonl") == []
        assert list(run.checkpoints.iterdir()) == []
        assert (path / "note.txt").read_text() == "mine"  # no run writes it


@pytest.mark.parametrize(
    "files",
    [
        {"thesis.tex": "ten years"},
        {"config.json": '{"model_type": "qwen3"}', "model.safetensors": ""},
        {"config.json": '{"model_type": "qwen3"}', "env.json": "{}"},
        {"config.json": "", "env.json": '{"versions": {"opd": "1"}}'},
        {"env.json": '{"versions": {"opd": "1"}}', "x": ""},
        {"checkpoints/step-1/MANIFEST.json": "{}"},
    ],
)
@pytest.mark.parametrize("flag", ["resume", "overwrite"])
def test_folders_of_others_are_left_alone(tmp_path, files, flag):
    path = tmp_path / "a"
    for name, text in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_text(text)
    with pytest.raises(UserError, match=f"--{flag} leaves it alone"):
        create(path, **{flag: True})
    assert {str(p.relative_to(path)) for p in path.rglob("*") if p.is_file()} == set(files)
    assert all((path / name).read_text() == text for name, text in files.items())


def test_overwrite_does_not_follow_links(tmp_path):
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "data").write_text("keep")
    path = used(tmp_path / "a")
    (path / "link").symlink_to(precious)
    shutil.rmtree(path / "rollouts")
    (path / "rollouts").symlink_to(precious)
    with pytest.raises(UserError, match="rollouts is a symbolic link"):
        create(path, overwrite=True)
    (path / "rollouts").unlink()
    with create(path, overwrite=True):
        assert (path / "link").is_symlink()  # no run writes it
    assert (precious / "data").read_text() == "keep"


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "a").write_text("")
    with pytest.raises(UserError, match="is a file"):
        create(tmp_path / "a")


@pytest.mark.parametrize("name", ["a b", "-rf", ".hidden", "a\n", "é", "x" * 129, "a;b", "a#b"])
def test_names_that_mislead_are_refused(tmp_path, name):
    with pytest.raises(UserError, match=r"output\.dir"):
        create(tmp_path / name)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["../a", "a/b", "", ".", "..", "a b"])
def test_eval_names_stay_in_their_folder(tmp_path, name):
    with create(tmp_path / "a") as run, pytest.raises(UserError, match=r"eval\.N\.name"):
        run.save_eval(1, name, {}, [])


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (changed(loss={"k": 5}), ["loss.k: 4 -> 5"]),
        (changed(train={"seed": 4}), ["train.seed: 3 -> 4"]),
        (changed(train={"steps": 99, "prompts_per_step": 3}), ["train.prompts_per_step: 2 -> 3"]),
        (changed(optim={"lr": 0.1}), ["optim.lr: (absent) -> 0.1"]),
        (changed(loss={"terms": {"sft": 1}}), ["loss.terms.sft: (absent) -> 1"]),
        (changed(outputs={"dir": "y"}), ["outputs.dir"]),
    ],
)
def test_resume_refuses_another_configuration(tmp_path, config, words):
    path = used(tmp_path / "a")
    before = {p: p.read_bytes() for p in path.rglob("*") if p.is_file()}
    with pytest.raises(UserError) as caught:
        create(path, config, resume=True)
    for word in [*words, "output.*", "train.steps", "eval.*", "alarms.*"]:
        assert word in str(caught.value)
    assert "train.steps:" not in str(caught.value)
    assert {p: p.read_bytes() for p in path.rglob("*") if p.is_file()} == before


def test_resume_allows_what_decides_no_number(tmp_path):
    path = used(tmp_path / "a")
    config = changed(train={"steps": 99}, output={"keep": 5}, eval=[], alarms={"action": "stop"})
    with create(path, config, resume=True):
        assert json.loads((path / "config.json").read_text()) == config


def test_resume_on_other_versions_is_said(tmp_path, caplog):
    path = used(tmp_path / "a")
    env = json.loads((path / "env.json").read_text())
    env["versions"]["torch"] = "1.0"
    (path / "env.json").write_text(json.dumps(env))
    with create(path, resume=True):
        pass
    assert "torch 1.0 ->" in caplog.text


def test_logs_go_back_to_their_checkpoint(tmp_path):
    path = tmp_path / "a"
    with create(path) as run:
        run.log_metrics(1, {"loss": 0.5})
        offsets = run.sync_logs()
        run.log_metrics(2, {"loss": 0.25})
        run.log_alarm({"step": 2})
        want = (path / "metrics.jsonl").read_bytes()
    with (path / "metrics.jsonl").open("ab") as file:
        file.write(b'{"step": 3, "lo')
    with create(path, resume=True) as run:
        assert (path / "metrics.jsonl").read_bytes() == want
        run.truncate_logs(offsets)
        assert [r["step"] for r in read_jsonl(path / "metrics.jsonl")] == [1]
        run.log_metrics(2, {"loss": 0.25})
        assert (path / "metrics.jsonl").read_bytes() == want
        assert read_jsonl(path / "alarms.jsonl") == []
        run.truncate_logs({})
        assert (path / "metrics.jsonl").read_bytes() == b""
        run.log_metrics(1, {"loss": 0.5})
        assert run.sync_logs() == offsets


def test_a_log_shorter_than_its_checkpoint_is_said(tmp_path, caplog):
    with create(tmp_path / "a") as run:
        run.log_metrics(1, {})
        run.truncate_logs({"metrics.jsonl": 999})
        assert "records were lost" in caplog.text
        run.log_metrics(2, {})
        assert [r["step"] for r in read_jsonl(run.path / "metrics.jsonl")] == [1, 2]


def test_offsets_are_synced(tmp_path):
    class Counting(Unsynced):
        synced = 0

        def fsync(self, fd):
            self.synced += 1

    disk = Counting()
    with create(tmp_path / "a", ops=disk) as run:
        before = disk.synced
        run.sync_logs()
        assert disk.synced == before + 3


def test_step_is_not_a_metric(tmp_path):
    with create(tmp_path / "a") as run, pytest.raises(ValueError, match="step"):
        run.log_metrics(1, {"step": 2})


def test_one_writer_at_a_time(tmp_path):
    with create(tmp_path / "a") as run:
        for flags in ({"resume": True}, {"overwrite": True}):
            with pytest.raises(UserError, match=f"process {os.getpid()} on"):
                create(tmp_path / "a", **flags)
        run.log_metrics(1, {})
    with create(tmp_path / "a", resume=True):
        pass


def test_a_start_that_fails_gives_the_lock_back(tmp_path):
    path = used(tmp_path / "a")
    with pytest.raises(OSError, match="full"):
        create(path, resume=True, ops=Faulty(1, lambda: (_ for _ in ()).throw(OSError("full"))))
    with create(path, resume=True):
        pass


def test_the_lock_of_a_killed_process_is_taken_over(tmp_path):
    """A real process holds the lock, is killed with -9, and the next run simply starts."""
    program = (
        "import sys, time; from opd.run.folder import RunFolder;"
        f"run = RunFolder.create(sys.argv[1], {CONFIG!r}); run.log_metrics(1, {{}});"
        "print('ready', flush=True); time.sleep(60)"
    )
    path = tmp_path / "a"
    child = subprocess.Popen(
        [sys.executable, "-c", program, str(path)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert child.stdout.readline() == "ready\n"
        with pytest.raises(UserError, match=f"process {child.pid} on"):
            create(path, resume=True)
    finally:
        child.send_signal(signal.SIGKILL)
        child.communicate()
    with create(path, resume=True) as run:
        assert [r["step"] for r in read_jsonl(run.path / "metrics.jsonl")] == [1]


def test_a_lock_file_full_of_junk_does_no_harm(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / LOCK).write_bytes(b"\xff\x00")
    with create(tmp_path / "a"), pytest.raises(UserError, match="Another run"):
        create(tmp_path / "a", resume=True)


def with_a_phase(path):
    """Rollouts of steps 1 to 12 and checkpoints of an earlier attempt at a phase."""
    with create(path) as run:
        for name in [f"step-{step}.parquet" for step in range(1, 13)] + ["notes.txt"]:
            (run.path / "rollouts" / name).write_text(name)
        for name in ("checkpoints/step-4", "coldstart/checkpoints/step-2", "coldstart/rollouts"):
            (run.path / name).mkdir(parents=True)
            (run.path / name / "state.json").write_text("{}")
    return path


def check_forgotten(path):
    left = {p.name for p in (path / "rollouts").iterdir()}
    assert left == {f"step-{step}.parquet" for step in range(1, 10)} | {"notes.txt"}
    assert [p.name for p in (path / "coldstart").iterdir()] == ["rollouts"]
    assert (path / "checkpoints" / "step-4" / "state.json").exists()


def test_a_phase_forgets_its_earlier_attempt_and_later_rollouts_alone(tmp_path):
    path = with_a_phase(tmp_path / "a")
    with create(path, resume=True) as run:
        run.forget("coldstart", after=9)
        check_forgotten(path)
        run.forget("coldstart", after=9)
        check_forgotten(path)


@pytest.mark.slow
def test_killed_at_every_operation_of_forgetting(tmp_path):
    """Nothing else is lost, and the resumed run forgets the rest."""

    def forget(path, ops):
        with create(path, resume=True, ops=ops) as run:
            before = ops.count
            run.forget("coldstart", after=9)
            return ops.count - before

    start = with_a_phase(tmp_path / "start")
    probe = shutil.copytree(start, tmp_path / "probe")
    assert forget(probe, Faulty(0, lambda: None)) == 8  # 3 rollouts; rename, sync, 3 removals
    number, killed = 0, True
    while killed:
        number += 1
        path = shutil.copytree(start, tmp_path / f"a-{number}")
        killed = killed_at(number, lambda ops, path=path: forget(path, ops))
        with create(path, resume=True) as run:
            run.forget("coldstart", after=9)
            check_forgotten(path)
            assert not [p for p in (path / "rollouts").iterdir() if ".tmp-" in p.name]
    assert number > 10


@pytest.mark.parametrize("flags", everyday([{}, {"resume": True}], 1), ids=str)
def test_killed_at_every_operation_of_a_start(tmp_path, flags):
    """Whatever a start left, the same command starts the run."""
    number, killed = 0, True
    while killed:
        number += 1
        path = tmp_path / f"a-{number}"
        killed = killed_at(number, lambda ops, path=path: create(path, ops=ops, **flags))
        began = (path / "config.json").exists()
        with create(path, resume=began or bool(flags)) as run:
            assert run.fresh != began
            assert not [p for p in path.rglob("*") if ".tmp-" in p.name]
    assert number > 10


@pytest.mark.parametrize("flag", everyday(["resume", "overwrite"], 1))
def test_killed_at_every_operation_of_a_restart(tmp_path, flag):
    """Resume loses nothing; overwrite leaves the old run, or no checkpoint, never a mixture."""
    start = used(tmp_path / "start")
    number, killed = 0, True
    while killed:
        number += 1
        path = tmp_path / f"a-{number}"
        shutil.copytree(start, path)
        killed = killed_at(number, lambda ops, path=path: create(path, ops=ops, **{flag: True}))
        metrics = read_jsonl(path / "metrics.jsonl")
        if flag == "resume" or (path / "checkpoints" / "step-2").exists():
            assert len(metrics) == 3
        with create(path, **{flag: True}) as run:
            assert len(read_jsonl(path / "metrics.jsonl")) == (3 if flag == "resume" else 0)
            assert run.fresh == (flag == "overwrite")
            assert not [p for p in path.rglob("*") if ".tmp-" in p.name]
    assert number > 5


def test_no_torch_until_it_is_needed():
    program = "import sys, opd.run.folder, opd.run.trackers; print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout == "False\n"
