"""Several processes: the same curve as one, the same bits when resumed, one writer."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from opd import config
from opd.demo.run_config import demo_config
from opd.errors import UserError
from opd.run.disk import write_json
from opd.run.jsonl import read_jsonl
from opd.samplers.decoding import Decoding
from opd.samplers.hf import HFSampler
from opd.setup.samplers import require_alone
from opd.teachers.local import LocalTeacher
from opd.teachers.remote import TeacherDown
from opd.training.distributed import (
    SINGLE,
    Ranks,
    ShardedSampler,
    ShardedTeacher,
    check_accelerate_launcher,
)
from opd.types import Want
from support.ranks import ReplayedRanks, run_as_rank_zero
from support.runs import short_demo

# The order in which float32 gradients are added differs between numbers of processes.
CURVE = 1e-5


@pytest.mark.parametrize("size", [2, 3, 5])
def test_shared_work_is_the_work(make_lm, make_prompts, size):
    lm, prompts = make_lm(), make_prompts(3, 5, 2, 4)
    sampler = HFSampler(lm, Decoding(6), stop=frozenset({1}), capture=4)
    alone = sampler.sample(prompts, n=2, key=(0, 1, 2))
    shared = run_as_rank_zero(
        lambda ranks: ShardedSampler(sampler, ranks, lm).sample(prompts, n=2, key=(0, 1, 2)), size
    )
    for a, b in zip(alone, shared, strict=True):
        assert a.prompt == b.prompt
        np.testing.assert_array_equal(a.ids, b.ids)
    teacher = LocalTeacher(make_lm(1))
    want = Want(sampled=True, support=True, full=[np.arange(len(r)) for r in alone])
    scores = teacher.score(alone, want)
    shared = run_as_rank_zero(lambda ranks: ShardedTeacher(teacher, ranks).score(alone, want), size)
    for a, b in zip(scores, shared, strict=True):
        np.testing.assert_allclose(a.support, b.support, atol=1e-9)
        np.testing.assert_allclose(a.hidden.cpu().numpy(), b.hidden.cpu().numpy(), atol=1e-9)


@pytest.mark.parametrize("size", [2, 3])
def test_a_prompt_that_comes_twice_in_a_step_is_answered_anew_by_any_number(
    make_lm, make_prompts, size
):
    """prompts_per_step above the number of prompts: processes drew the same completions twice."""
    lm, (a, b, c) = make_lm(), make_prompts(3, 5, 2)
    prompts = [a, b, c, b, a, a]
    sampler = HFSampler(lm, Decoding(6), stop=frozenset({1}), capture=4)
    alone = sampler.sample(prompts, n=2, key=(0,))
    shared = run_as_rank_zero(
        lambda ranks: ShardedSampler(sampler, ranks, lm).sample(prompts, n=2, key=(0,)), size
    )
    assert [r.sample for r in shared] == [r.sample for r in alone]
    for one, other in zip(alone, shared, strict=True):
        assert one.prompt == other.prompt
        np.testing.assert_array_equal(one.ids, other.ids)


def test_a_teacher_that_leaves_one_process_leaves_all_with_what_they_have(make_lm, make_prompts):
    lm = make_lm()
    sampler = HFSampler(lm, Decoding(6), stop=frozenset({1}), capture=4)
    rollouts = sampler.sample(make_prompts(3, 5, 2), n=1, key=(0,))
    whole = LocalTeacher(lm)

    class Leaving:
        name, kinds = "leaving", whole.kinds

        def score(self, share, want):
            known = whole.score(share, want)
            if len(share) == 2:
                return known
            raise TeacherDown("no answer for 5 s", [None] * len(share))

    want = Want(sampled=True)
    with pytest.raises(TeacherDown, match="no answer for 5 s") as down:
        run_as_rank_zero(lambda ranks: ShardedTeacher(Leaving(), ranks).score(rollouts, want), 2)
    scored = [s is not None and s.sampled is not None for s in down.value.partial]
    assert scored == [True, False, True]


def test_accelerate_and_the_configuration_must_agree_about_shards(monkeypatch):
    check_accelerate_launcher("none")
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_CPU_RAM_EFFICIENT_LOADING", "true")
    with pytest.raises(UserError, match=r"student\.shard=fsdp2"):
        check_accelerate_launcher("none")
    check_accelerate_launcher("fsdp2")
    assert os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] == "false"


def test_a_mistake_one_process_finds_is_raised_by_all():
    ranks = ReplayedRanks.of({1: [b"-its disk is full"]})
    with pytest.raises(UserError, match="its disk is full"):
        ranks.run_everywhere(lambda: b"fine")
    assert SINGLE.run_everywhere(lambda: b"x") == [b"x"]


TORCHRUN = ("-m", "torch.distributed.run", "--standalone")
ACCELERATE = (
    *("-m", "accelerate.commands.launch", "--num_machines=1", "--mixed_precision=no"),
    *("--dynamo_backend=no", "--main_process_port=0"),
)
STARTS = {
    "torchrun": (*TORCHRUN, "--nproc_per_node={n}"),
    "accelerate": (*ACCELERATE, "--multi_gpu", "--num_processes={n}"),
    "accelerate --use_fsdp": (*ACCELERATE, "--use_fsdp", "--num_processes={n}"),
}


def test_one_process_samples_a_step_ahead(tmp_path):
    cfg = config.parse(demo_config(tmp_path / "run"), ["rollout.ahead=1"])
    require_alone(cfg, SINGLE)
    with pytest.raises(UserError, match=r"rollout.ahead=1 with 2 processes.*Set rollout.ahead=0"):
        require_alone(cfg, Ranks(size=2))


@pytest.mark.slow
def test_two_processes_that_would_sample_ahead_are_refused(tmp_path):
    done = start_processes(tmp_path / "run", 2, "rollout.ahead=1")
    assert done.returncode != 0
    assert "rollout.ahead=1 with 2 processes" in done.stderr
    assert "Set rollout.ahead=0" in done.stderr
    assert "exitcode  : 2" in done.stderr  # of each process, as torchrun tells it
    assert "opd/setup" not in done.stderr  # no traceback
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_the_others_wait_for_rank_zero_longer_than_a_collective_may_take():
    """A held-out set that a server sampled for more than an hour ended the run."""
    command = [sys.executable, *TORCHRUN, "--nproc_per_node=2"]
    command.append(str(Path(__file__).with_name("waiting.py")))
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]


def launch(
    folder: Path, processes: int, *options: str, steps: int = 4, start: str = "torchrun"
) -> None:
    done = start_processes(folder, processes, *options, steps=steps, start=start)
    assert done.returncode == 0, done.stderr[-3000:]


def start_processes(
    folder: Path, processes: int, *options: str, steps: int = 4, start: str = "torchrun"
) -> subprocess.CompletedProcess[str]:
    data = short_demo(folder)
    data["train"] |= {"steps": steps, "prompts_per_step": 6, "tokens_per_microbatch": 64}
    data["output"] |= {"save_every": 2}
    data["eval"] = [e | {"limit": 6, "every": 2} for e in data["eval"]]
    file = folder.with_suffix(".yaml")
    file.write_text(yaml.safe_dump(data))
    command = [word.format(n=processes) for word in STARTS[start]] if processes > 1 else []
    return subprocess.run(
        [sys.executable, *command, "-m", "opd", "train", str(file), *options],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        timeout=900,
    )


def digest(folder: Path) -> dict[str, str]:
    files = [folder / "metrics.jsonl", *sorted((folder / "checkpoints").rglob("*.safetensors"))]
    files += sorted((folder / "final").rglob("*.safetensors"))
    return {str(f.relative_to(folder)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


def distance(one: Path, other: Path) -> float:
    worst = 0.0
    for a, b in zip(
        read_jsonl(one / "metrics.jsonl"), read_jsonl(other / "metrics.jsonl"), strict=True
    ):
        assert a.keys() == b.keys()
        numbers = [k for k, v in a.items() if isinstance(v, float | int)]
        worst = max(worst, *(abs(a[k] - b[k]) for k in numbers))
    return worst


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks") / "one"
    launch(folder, 1)
    return folder


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_several_processes_train_like_one_and_resume_bit_for_bit(one, tmp_path):
    sizes = {"two": 2, "three": 3, "four": 4}
    for name, processes in sizes.items():
        launch(tmp_path / name, processes)
    report = {name: distance(one, tmp_path / name) for name in sizes}
    write_json(tmp_path / "distances.json", report)
    assert max(report.values()) < CURVE
    launch(tmp_path / "halves", 2, steps=2)
    launch(tmp_path / "halves", 2, "--resume")
    assert digest(tmp_path / "halves") == digest(tmp_path / "two")
    launch(tmp_path / "mixed", 2, steps=2)
    launch(tmp_path / "mixed", 1, "--resume")
    assert distance(one, tmp_path / "mixed") < CURVE
    launch(tmp_path / "launched", 2, start="accelerate")
    assert digest(tmp_path / "launched") == digest(tmp_path / "two")


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_shards_train_like_one_process_and_resume_bit_for_bit_and_on_other_numbers(one, tmp_path):
    sharded = "student.shard=fsdp2"
    launch(tmp_path / "two", 2, sharded)
    launch(tmp_path / "four", 4, sharded)
    launch(tmp_path / "launched", 2, sharded, start="accelerate --use_fsdp")
    assert digest(tmp_path / "launched") == digest(tmp_path / "two")
    launch(tmp_path / "halves", 2, sharded, steps=2)
    launch(tmp_path / "halves", 2, sharded, "--resume")
    assert digest(tmp_path / "halves") == digest(tmp_path / "two")
    report = {name: distance(one, tmp_path / name) for name in ("two", "four")}
    for others in (1, 3):
        folder = tmp_path / f"mixed{others}"
        launch(folder, 2, sharded, steps=2)
        launch(folder, others, sharded, "--resume")
        report[f"two, then {others}"] = distance(one, folder)
    write_json(tmp_path / "distances.json", report)
    assert max(report.values()) < CURVE
