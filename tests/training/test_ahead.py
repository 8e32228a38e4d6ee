"""`rollout.ahead: 1`: rollouts a step older, written before they are needed; resumed bitwise."""

from __future__ import annotations

import random
import threading
from dataclasses import replace
from types import SimpleNamespace

import pytest

from opd import config
from opd.errors import UserError
from opd.recipes.distillation import distill
from opd.reports.dash_data import newest_rollouts
from opd.reports.read import read_run
from opd.run.folder import RunFolder
from opd.run.jsonl import read_jsonl
from opd.run.rollouts import decode, read_step
from opd.samplers.completions import ServerLost
from opd.samplers.decoding import Decoding
from opd.samplers.replay import read_rollouts
from opd.samplers.vllm import VllmSampler
from opd.training import loop
from opd.training.ahead import LookAhead
from opd.training.experience import ExperienceSource, StepSize
from opd.types import Prompt, Rollout
from support.kills import kill_and_resume
from support.runs import digest, opened, run_config, run_to_end

AHEAD = {"rollout": {"ahead": 1}}


def ahead_run(folder, *, steps=4, **changes):
    data = run_config(folder, steps=steps, **changes)
    data["rollout"] |= {"ahead": 1, "n": 2}
    data["train"] |= {"prompts_per_step": 2}
    data["output"] |= {"rollout_sample": 64}
    data["eval"] = []
    return data


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    folder = tmp_path_factory.mktemp("home") / "straight"
    run_to_end(ahead_run(folder))
    return folder


def test_every_batch_but_the_first_is_a_step_older(straight):
    versions = [
        {r.version for r in read_step(straight / "rollouts" / f"step-{n}.parquet")[0]}
        for n in range(1, 5)
    ]
    assert versions == [{0}, {0}, {1}, {2}]
    lines = read_jsonl(straight / "metrics.jsonl")
    assert [line["ahead/steps"] for line in lines] == [0, 1, 1, 1]
    assert lines[0]["ahead/ess"] == pytest.approx(1, abs=1e-4)
    assert lines[0]["ahead/weight"] == pytest.approx(1, abs=1e-4)
    assert all(0 < line["ahead/ess"] < 0.9999 for line in lines[1:])


@pytest.mark.parametrize(
    "at",
    [
        "optimize",
        *(pytest.param(a, marks=pytest.mark.slow) for a in ("begin", "score", "checkpoint_due")),
    ],
)
def test_a_run_that_dies_anywhere_resumes_bit_for_bit(straight, tmp_path, monkeypatch, at):
    """Before the next batch is sampled, after it, before the update, and after the sync."""
    folder = straight.parent / f"died-{at}"
    data = ahead_run(folder)
    with opened(data) as (session, completions):
        inner = session.ahead.begin if at == "begin" else getattr(loop, at)

        def die(*args):
            numbers = [a for a in args if type(a) is int]
            if numbers and numbers[0] == 3:
                raise KeyboardInterrupt
            return inner(*args)

        if at == "begin":
            session.ahead.begin = die
        else:
            monkeypatch.setattr(loop, at, die)
        with pytest.raises(KeyboardInterrupt):
            distill(session, completions)
    monkeypatch.undo()
    run_to_end(data, resume=True)
    assert digest(folder) == digest(straight)


def test_an_interrupted_run_goes_on_with_the_batch_on_disk(straight):
    folder = straight.parent / "stopped"
    data = ahead_run(folder)
    with opened(data) as (session, completions):
        observe = session.interventions.observe

        def stop(batch, limit):
            observe(batch, limit)
            session.stop.set()

        session.interventions.observe = stop
        with pytest.raises(KeyboardInterrupt, match="saved"):
            distill(session, completions)
    waiting = folder / "rollouts" / "step-2.parquet"
    assert decode(waiting.read_bytes()).waits
    report = read_run(folder)
    assert report.rollout_file(2) is None
    assert newest_rollouts(folder)["step"] == 1
    assert len(read_rollouts(folder / "rollouts")) == len(report.rollout_file(1).batch)
    with opened(data, resume=True) as (session, completions):
        sampled = []
        inner = session.ahead.source.sampler.sample

        def note(prompts, **options):
            sampled.append(options["key"])
            return inner(prompts, **options)

        session.ahead.source.sampler.sample = note
        distill(session, completions)
    assert len(sampled) == 2  # the batches of steps 3 and 4
    assert digest(folder) == digest(straight)


@pytest.mark.slow
def test_a_limit_that_an_alarm_set_meanwhile_cuts_the_batch_on_disk(tmp_path):
    with opened(ahead_run(tmp_path / "run", steps=3)) as (session, completions):
        check = session.interventions.check

        def shorten(step):
            check(step)
            if step == 1:
                course = session.interventions.adjustable
                horizon = course.horizon.shorten(16)
                session.interventions.adjustable = replace(course, horizon=horizon)

        session.interventions.check = shorten
        distill(session, completions)
    lengths = [
        max(len(r) for r in read_step(tmp_path / "run" / "rollouts" / f"step-{n}.parquet")[0])
        for n in (1, 2, 3)
    ]
    assert lengths[0] > 16 == lengths[1] == lengths[2]


@pytest.mark.parametrize("lost", [False, True])
def test_a_server_samples_in_the_background(lost, tmp_path, caplog):
    prompt, going_on = Prompt(0, (3, 4), ""), threading.Event()

    def sample_once(prompts, **options):
        assert going_on.wait(30)
        if lost:
            raise ServerLost("gone")
        return [Rollout.of_ids(prompt, [5])]

    server = VllmSampler(SimpleNamespace(), Decoding(4), stop=frozenset())
    server.sample_once = sample_once
    size = StepSize(0, 1, 1, False, 0, 0)
    prompts = SimpleNamespace(batch=lambda *args, **options: [prompt])
    source = ExperienceSource(prompts, None, None, None, None, None, None, (), None, size)
    with RunFolder.create(tmp_path / "run", {}) as folder:
        ahead = LookAhead(source, folder, server, None, 2)
        ahead.begin(1, 4)  # returns although nothing has arrived
        going_on.set()
        ahead.finish()
        saved = folder.load_rollouts(2, folder.rollout_key(2, 1))
    if lost:
        assert saved is None
        assert "step 2 are sampled after the update before it: gone" in caplog.text
    else:
        assert [r.ids.tolist() for r in saved[0]] == [[5]]


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"rollout": {"top_p": 0.9}}, "rollout.top_p"),
        ({"rollout": {"path": "old"}}, "rollout.path"),
        ({"loss": {"terms": {"outcome_weight": 1.0}}}, "outcome_weight"),
        ({"horizon": {"prune": {}}}, "horizon.prune"),
    ],
)
def test_what_weights_do_not_correct_is_refused(tmp_path, changes, named):
    data = run_config(tmp_path / "run", **AHEAD)
    for section, values in changes.items():
        data[section] = data.get(section, {}) | values
    with pytest.raises(UserError, match=named):
        config.parse(data)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_kill_minus_nine(straight, seed):
    folder = straight.parent / f"killed-{seed}"
    changes = {"rollout": {"ahead": 1}, "output": {"save_every": 2, "rollout_sample": 64}}
    kill_and_resume(folder, random.Random(seed), kills=2, **changes)
    straight_again = straight.parent / "straight-again"
    if not straight_again.exists():
        run_to_end(run_config(straight_again, **changes))
    assert digest(folder) == digest(straight_again)
