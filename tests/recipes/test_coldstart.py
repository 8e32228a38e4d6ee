"""The cold start on the shipped pair: it ends by itself, hands over, comes back bit for bit."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from opd import config
from opd.commands.coldstart import run_coldstart
from opd.config import Coldstart, ServerTeacher
from opd.data.duplicates import question_key
from opd.data.sft_examples import make_example
from opd.demo.run_config import PAIR
from opd.errors import UserError
from opd.http import Endpoint, Http
from opd.recipes.coldstart import CompletionSource, before_training, phase
from opd.recipes.coldstart.completions import with_student_end
from opd.recipes.coldstart.phase import even_batches
from opd.recipes.coldstart.progress import Overlap, Progress, reason_to_stop
from opd.recipes.distillation import distill
from opd.run.checkpoint import find_newest_checkpoint
from opd.run.jsonl import read_jsonl
from opd.run.rollouts import read_step
from opd.samplers.decoding import Decoding
from opd.samplers.hf import HFSampler
from opd.setup.coldstart_source import require_one_process, teacher_sampler
from opd.setup.remote_teacher import ServedTeacher
from opd.teachers.vllm_api import VllmDialect
from opd.testing import FakeVllmServer
from support.coldstart_runs import PROMPTS, run_config
from support.runs import Counting, digest, open_run, run_to_end, shorten_prompts
from support.servers import STOP, stopping_model


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def straight(home):
    """An uninterrupted run: its folder and summary."""
    return home / "straight", run_to_end(run_config(home / "straight"))


def test_hands_over_a_trained_student_with_a_fresh_optimizer(straight):
    folder, summary = straight
    record = summary["coldstart"]
    assert record["reason"] == "coldstart.max_rounds=3 were made"
    assert (record["rounds"], record["steps"], record["completions"]) == (3, 6, 192)
    assert len(record["looks"]) == 4
    start = find_newest_checkpoint(folder / "checkpoints")
    begun = load_file(folder / "checkpoints" / "step-0" / "student.safetensors")
    model = load_file(PAIR / "student" / "model.safetensors")
    assert any(not torch.equal(begun[n], model[n]) for n in begun)
    assert load_file(folder / "checkpoints" / "step-0" / "optimizer.safetensors") == {}
    assert start.step == 2
    # The loop's optimizer counts its own steps alone.
    after = load_file(folder / "checkpoints" / "step-2" / "optimizer.safetensors")
    assert {float(v) for n, v in after.items() if n.startswith("step/")} == {2.0}
    assert not (folder / "coldstart" / "checkpoints").exists()


def test_off_policy_tokens_are_those_on_disk(straight):
    folder, summary = straight
    files = sorted((folder / "coldstart" / "rollouts").glob("*.parquet"))
    written = [r for file in files for r in read_step(file)[0]]
    assert len(files) == 3
    assert summary["coldstart"]["written_tokens"] == sum(map(len, written))
    assert summary["coldstart"]["tokens"] == sum(len(r) for r in written if r.finish == "stop")


def test_before_is_the_student_as_it_came_and_the_handover_stands_beside_it(straight):
    folder, summary = straight
    before = json.loads((folder / "eval" / "step-0-sum.json").read_text())
    over = json.loads((folder / "eval" / "step-0-coldstart-sum.json").read_text())
    assert summary["sets"]["sum"]["before"]["value"] == before["accuracy"]["value"]
    assert summary["coldstart"]["sets"]["sum"]["value"] == over["accuracy"]["value"]
    assert before["response_entropy"] != over["response_entropy"]


def test_its_lines_say_the_phase_and_share_no_name_with_training(straight):
    lines = read_jsonl(straight[0] / "metrics.jsonl")
    cold = [line for line in lines if line.get("phase") == "coldstart"]
    assert [line["coldstart/step"] for line in cold if "coldstart/loss" in line] == [*range(1, 7)]
    assert len([line for line in cold if "coldstart/tokens" in line]) == 4
    assert all(
        name.startswith("coldstart/") or name in ("step", "phase") for line in cold for name in line
    )
    assert all(line["step"] == 0 for line in cold)
    assert {line["phase"] for line in lines if "phase" in line} == {"coldstart", "on-policy"}


def test_a_cold_start_that_used_every_question_is_not_lost(straight, monkeypatch, caplog):
    folder, _ = straight
    monkeypatch.setattr(phase, "exclude_questions", lambda prompts, used: [])
    session, completions = open_run(run_config(folder), resume=True)
    asked = before_training(session, completions).source.prompts.prompts
    session.folder.close()
    assert len(asked) == PROMPTS
    assert "used every question" in caplog.text


def test_prompts_of_the_two_phases_are_disjoint(straight, home):
    folder, summary = straight
    files = (folder / "coldstart" / "rollouts").glob("*.parquet")
    learned = {question_key(r.prompt.text) for file in files for r in read_step(file)[0]}
    session, completions = open_run(run_config(folder), resume=True)
    every = session.source.prompts.prompts
    asked = before_training(session, completions).source.prompts.prompts
    session.folder.close()
    assert len(every) == PROMPTS
    assert learned
    assert asked == tuple(p for p in every if question_key(p.text) not in learned)
    assert len(asked) == summary["coldstart"]["prompts_left"]


@pytest.mark.parametrize("stop_after", ["first round", "handover"])
def test_stopped_and_resumed_is_the_same_run(home, straight, stop_after):
    folder = home / f"stopped-{stop_after.replace(' ', '-')}"
    session, completions = open_run(run_config(folder))
    if stop_after == "first round":
        session.stop.set()
        with pytest.raises(KeyboardInterrupt):
            distill(session, completions)
        session.folder.close()
        assert find_newest_checkpoint(folder / "coldstart" / "checkpoints").step == 2
    else:
        session.folder.close()
        record = run_coldstart(config.parse(run_config(folder)), resume=True, style="quiet")
        weights = load_file(folder / "coldstart" / "student" / "model.safetensors")
        begun = load_file(straight[0] / "checkpoints" / "step-0" / "student.safetensors")
        assert all(torch.equal(weights[name], begun[name]) for name in weights)
        assert record["tokens"] == straight[1]["coldstart"]["tokens"]
    assert run_to_end(run_config(folder), resume=True)["coldstart"] == straight[1]["coldstart"]
    assert digest(folder) == digest(straight[0])


def test_a_server_gets_the_restored_weights_before_the_phase_is_evaluated(tmp_path, monkeypatch):
    """Ctrl-C in the last round: what goes on with no round left evaluates, and nothing else."""
    data, seen = run_config(tmp_path / "run"), {}
    shorten_prompts(data, 64)
    data["eval"] = []
    session, completions = open_run(data)
    first = next(iter(session.learner.student.weights().values()))
    sampler = Counting(session.source.sampler)
    sampler.sync = lambda version: seen.update(server=float(first.detach().sum()))

    def restored(run, learner, folder):
        first.data += 1.0
        return 1, {"facts": asdict(Progress(rounds=1, looks=(Overlap(1.0, 1.0),)))}

    monkeypatch.setattr(phase, "restore_phase", restored)
    monkeypatch.setattr(phase, "find_newest_checkpoint", lambda folder: folder)
    source = replace(session.source, sampler=sampler)
    record = phase.run_rounds(
        replace(session, source=source), completions, session.cfg.coldstart, 0
    )
    session.folder.close()
    assert record["rounds"] == 1
    assert seen["server"] == float(first.detach().sum())


@pytest.mark.slow
def test_completions_on_disk_are_not_written_again(home, straight):
    folder = home / "died"
    session, completions = open_run(run_config(folder))
    session.stop.set()
    with pytest.raises(KeyboardInterrupt):
        distill(session, completions)
    session.folder.close()
    newest = find_newest_checkpoint(folder / "coldstart" / "checkpoints")
    newest.path.joinpath("MANIFEST.json").unlink()
    for path in (folder / "coldstart" / "checkpoints").iterdir():
        for file in path.iterdir():
            file.unlink()
        path.rmdir()
    session, completions = open_run(run_config(folder), resume=True)
    writer = Counting(completions.sampler)
    before_training(session, replace(completions, sampler=writer))
    session.folder.close()
    assert writer.calls == 2  # rounds two and three; the first was on disk
    run_to_end(run_config(folder), resume=True)
    assert digest(folder) == digest(straight[0])


@pytest.mark.slow
@pytest.mark.parametrize("when", ["cold start", "after the hand-over"])
def test_kill_minus_nine(home, straight, when):
    folder = home / f"killed-{when.replace(' ', '-')}"
    file = folder.with_suffix(".yaml")
    file.write_text(yaml.safe_dump(run_config(folder)))
    killed = kill_once(folder, file, random.Random(when), after=when == "after the hand-over")
    assert killed == (when == "after the hand-over")
    assert _opd(file).wait(200) == 0
    assert digest(folder) == digest(straight[0])


def kill_once(folder: Path, file: Path, rng: random.Random, *, after: bool) -> bool:
    """Kill a process at a random moment of the phase; whether the hand-over was made by then."""
    process = _opd(file)
    log = folder / "metrics.jsonl"
    mark = b"train/loss" if after else b"coldstart/loss"
    while process.poll() is None and not (log.exists() and mark in log.read_bytes()):
        time.sleep(0.002)
    time.sleep(rng.uniform(0, 0.03))
    process.send_signal(signal.SIGKILL)
    process.wait(30)
    return find_newest_checkpoint(folder / "checkpoints") is not None


def _opd(file: Path) -> subprocess.Popen:
    command = [sys.executable, "-m", "opd", "train", str(file), "--quiet"]
    begun = Path(yaml.safe_load(file.read_text())["output"]["dir"]).exists()
    command += ["--resume"] if begun else []
    return subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"})


def test_several_processes_take_over_where_one_has_warmed_up(straight, tmp_path):
    def begin(folder, *, resume=True):
        cfg = config.parse(run_config(folder))
        require_one_process(cfg, cfg.coldstart, 2, resume=resume)

    with pytest.raises(UserError, match=r"opd coldstart run\.yaml"):
        begin(tmp_path / "new")
    begin(straight[0])
    with pytest.raises(UserError, match=r"opd coldstart run\.yaml"):
        begin(straight[0], resume=False)  # --overwrite takes its checkpoints away


def test_a_teacher_that_only_scores_cannot_make_completions():
    class OnlyScores:
        cfg = config.parse(run_config(Path("unused")))

        def teacher_samplers(self):
            return None

    with pytest.raises(UserError, match=r"coldstart\.path"):
        teacher_sampler(OnlyScores(), OnlyScores.cfg.coldstart)


def test_an_overlap_that_suffices_costs_no_token(tmp_path):
    data = run_config(tmp_path / "run", mass=0.97)
    data["student"]["model"] = str(PAIR / "teacher")
    summary = run_to_end(data)
    record = summary["coldstart"]
    assert (record["rounds"], record["tokens"]) == (0, 0)
    assert "have reached" in record["reason"]
    assert record["prompts_left"] == PROMPTS


def test_given_rollouts_and_gold_rows_need_no_writer(home, straight, tmp_path):
    given = str(straight[0] / "coldstart" / "rollouts")
    record = run_to_end(run_config(home / "given", path=given))["coldstart"]
    assert record["reason"] == "coldstart.max_rounds=3 were made"
    assert record["written_tokens"] == straight[1]["coldstart"]["written_tokens"]
    rows = [
        {"prompt": "sum pig gnu jay", "completion": "so pig 1 ANS 1"},
        {"prompt": "sum owl fox bee", "completion": "so owl 2", "finish_reason": "length"},
    ]
    gold = tmp_path / "gold.jsonl"
    gold.write_text("\n".join(map(json.dumps, rows)))
    record = run_to_end(run_config(home / "gold", path=str(gold)))["coldstart"]
    assert (record["completions"], record["left_out"]["truncated"]) == (1, 1)
    assert record["reason"] == "its completions are used up"


def test_nothing_worth_imitating_is_said(tmp_path):
    with pytest.raises(UserError, match=r"none of the 64 .* \(64 truncated\).*max_new_tokens"):
        run_to_end(run_config(tmp_path / "run", max_new_tokens=2))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (["teacher=null", "loss.terms.outcome_weight=1"], "needs a teacher"),
        (["coldstart.path=x", "coldstart.prompts=y"], "brings its own prompts"),
        (["rollout.path=x"], "those of an earlier run"),
    ],
)
def test_settings_that_cannot_work_are_refused(tmp_path, changes, says):
    with pytest.raises(UserError, match=says):
        config.parse(run_config(tmp_path / "run"), changes)


CFG = Coldstart(mass=0.95)


@pytest.mark.parametrize(
    ("looks", "ends"),
    [
        ([(0.5, 0.2)], None),
        ([(0.96, 0.85)], "reached"),
        ([(0.96, 0.7)], None),
        ([(0.5, 0.2), (0.6, 0.3), (0.6, 0.3), (0.604, 0.304)], None),  # two rounds without a rise
        ([(0.6, 0.3), (0.6, 0.3), (0.604, 0.304), (0.59, 0.304)], "neither"),
        (
            [(0.6, 0.3), (0.6, 0.3), (0.604, 0.304), (0.59, 0.32)],
            None,
        ),  # one of the two still rises
        ([(0.6, 0.3), (0.7, 0.3), (0.5, 0.3), (0.5, 0.3), (0.704, 0.3)], "neither"),  # only a dip
    ],
)
def test_when_it_ends(looks, ends):
    found = reason_to_stop([Overlap(*look) for look in looks], CFG)
    assert found is None if ends is None else ends in found


def test_a_vllm_teacher_writes_and_one_that_only_scores_does_not(make_lm, make_prompts):
    server = FakeVllmServer(stopping_model(), "base")
    http = Http(Endpoint("http://teacher.test", "teacher", "teacher.url"), transport=server)
    spec = ServerTeacher(url="http://teacher.test", model="base")
    remote = ServedTeacher(spec, VllmDialect(http, "base", probe_support=False))
    assert remote.generates
    writer = remote.samplers(make_lm(), frozenset({STOP}))(Decoding(6, 0.7, 0.95), None)
    first = writer.sample(make_prompts(3, 4), n=2, key=(0, 6, 0))
    again = writer.sample(make_prompts(3, 4), n=2, key=(0, 6, 0))
    assert [r.ids.tolist() for r in first] == [r.ids.tolist() for r in again]
    assert {r.finish for r in first} <= {"stop", "length"}
    asked = [body for path, body in server.calls if path == "/v1/completions"]
    assert {(b["model"], b["temperature"], b["top_p"]) for b in asked} == {("base", 0.7, 0.95)}


def test_an_end_token_the_student_does_not_know_is_replaced():
    supply = CompletionSource([], [], None, [], None, frozenset({1}), 1)
    rollout = make_example(0, [5], [7, 8, 2])
    assert with_student_end(rollout, supply).ids.tolist() == [7, 8, 1]
    assert with_student_end(replace(rollout, finish="length"), supply).ids.tolist() == [7, 8, 2]
    assert with_student_end(make_example(0, [5], [7, 1]), supply).ids.tolist() == [7, 1]
    assert rollout.ids.tolist() == [7, 8, 2]


@pytest.mark.parametrize("size", [1, 8, 21, 30])
def test_rounds_take_every_prompt_once(make_prompts, size):
    prompts = make_prompts(*[2] * 21)
    cfg = Coldstart(completions_per_round=size)
    supply = CompletionSource(prompts, [], HFSampler, [], None, frozenset({1}), 1)
    taken = [p.index for i in range(supply.rounds(cfg)) for p in supply.prompts_of(i, cfg)]
    assert taken == [*range(21)]
    assert all(len(supply.prompts_of(i, cfg)) <= size for i in range(21))
    given = [make_example(i, [5], [1]) for i in range(21)]
    supply = CompletionSource([], given, None, [], None, frozenset({1}), 1)
    taken = [r.prompt.index for i in range(supply.rounds(cfg)) for r in supply.given_of(i, cfg)]
    assert taken == [*range(21)]


@pytest.mark.parametrize("count", [0, 1, 5, 6, 7, 64])
def test_batches_use_everything_once_and_evenly(count):
    examples = [make_example(i, [5], [1]) for i in range(count)]
    parts = even_batches(examples, 4)
    assert [r.prompt.index for part in parts for r in part] == [*range(count)]
    sizes = [len(part) for part in parts]
    assert not sizes or max(sizes) - min(sizes) <= 1
    assert all(size <= 6 for size in sizes)
    assert np.mean(sizes or [4]) == pytest.approx(4, abs=2) or count == 1
