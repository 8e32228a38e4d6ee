"""Whole runs on the shipped pair: they learn, they stop, they come back bit for bit."""

from __future__ import annotations

import json
import random
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from opd.demo.run_config import PAIR, demo_config
from opd.errors import UserError
from opd.recipes.distillation import distill
from opd.run.jsonl import read_jsonl
from opd.training.checkpoints import restore
from opd.training.experience import sample, score
from support.everyday import everyday
from support.kills import kill_and_resume
from support.runs import Counting, digest, open_run, run_config, run_to_end, shorten_prompts

FULL: dict = {}
LORA = {"student": {"lora": {"rank": 4}}, "optim": {"lr": 0.005}}
OFFLOAD = {"optim": {"lr": 0.005, "offload": "cpu"}}
MIXED = {"student": {"precision": "bf16_mixed"}, **OFFLOAD}
MIXED_LORA = {
    "student": {"precision": "bf16_mixed", "lora": {"rank": 4}},
    "optim": {"lr": 0.005},
}
INT8 = {"optim": {"lr": 0.005, "moments": "int8"}}
SAMPLED = {"loss": {"support": "sampled"}}
GOLD = {"loss": {"terms": {"sft_weight": 0.5, "sft_path": "gold.jsonl"}}}
OUTCOME = {"loss": {"terms": {"outcome_weight": 1.0}}}


KILLED = [("full", FULL), ("lora", LORA), ("mixed", MIXED), ("mixed_lora", MIXED_LORA)]


@pytest.fixture(scope="module")
def dropout(tmp_path_factory) -> dict:
    """The shipped student as a model whose attention has dropout."""
    folder = tmp_path_factory.mktemp("models") / "dropout"
    shutil.copytree(PAIR / "student", folder)
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(settings | {"attention_dropout": 0.1}))
    return {"student": {"model": str(folder)}}


CHANGES = [FULL, LORA, SAMPLED, OUTCOME, GOLD, MIXED, MIXED_LORA, INT8]


@pytest.mark.parametrize("changes", everyday(CHANGES, 4, 6))
def test_six_steps_are_three_and_three(tmp_path, changes):
    check_halves(tmp_path, changes)


@pytest.mark.slow
def test_dropout_is_the_same_after_a_resume(tmp_path, dropout):
    check_halves(tmp_path, dropout)
    run_to_end(run_config(tmp_path / "plain"))
    plain, with_dropout = (
        [line["train/grad_norm"] for line in lines if "train/grad_norm" in line]
        for lines in (
            read_jsonl(tmp_path / name / "metrics.jsonl") for name in ("plain", "straight")
        )
    )
    assert plain[0] != with_dropout[0]


def check_halves(tmp_path: Path, changes: dict) -> None:
    straight = run_config(tmp_path / "straight", **changes)
    run_to_end(straight)
    for stop in (2, 4):  # at a checkpoint: `train.steps` may change, the numbers may not
        run_to_end(run_config(tmp_path / "halves", steps=stop, **changes), resume=stop > 2)
    run_to_end(run_config(tmp_path / "halves", **changes), resume=True)
    # The halves were also "last" at steps 2 and 4, where evaluations were due anyway.
    assert digest(tmp_path / "halves") == digest(tmp_path / "straight")


def test_a_step_on_disk_is_neither_generated_nor_scored_again(tmp_path):
    run_to_end(run_config(tmp_path / "straight", steps=4))
    data = run_config(tmp_path / "died", steps=4)
    run_to_end(run_config(tmp_path / "died", steps=2))
    session, completions = open_run(data, resume=True)
    # Died after step 3's rollouts and scores were on disk, before its update.
    source, folder, objective = session.source, session.folder, session.learner.objective
    source.sampler.sync(restore(folder, session.learner))
    rollouts, _ = sample(source, folder, 2)
    score(source, folder, objective, 2, rollouts, None)
    folder.close()

    session, completions = open_run(data, resume=True)
    sampled, scored = Counting(session.source.sampler), Counting(session.source.teacher)
    source = replace(session.source, sampler=sampled, teacher=scored)
    distill(replace(session, source=source), completions)
    session.folder.close()
    assert (sampled.calls, scored.calls) == (1, 1)  # step 4 alone
    assert digest(tmp_path / "died") == digest(tmp_path / "straight")


def test_thinning_that_was_cut_off_is_made_up_for(tmp_path):
    run_to_end(run_config(tmp_path / "straight", steps=2))
    data = run_config(tmp_path / "died", steps=2)
    session, completions = open_run(data)

    def die(*args):
        raise KeyboardInterrupt

    session.folder.thin_rollouts = die  # after the last checkpoint, before its step files shrink
    with pytest.raises(KeyboardInterrupt):
        distill(session, completions)
    session.folder.close()
    run_to_end(data, resume=True)
    assert digest(tmp_path / "died") == digest(tmp_path / "straight")


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """One folder for all runs that are compared: paths of prompts are part of a run's identity."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def straight(home):
    """Digests of uninterrupted runs, made once for all kills."""
    made: dict[str, dict[str, str]] = {}

    def of(name: str, changes: dict) -> dict[str, str]:
        if name not in made:
            run_to_end(run_config(home / name, **changes))
            made[name] = digest(home / name)
        return made[name]

    return of


@pytest.mark.parametrize(
    ("seed", "name", "changes"),
    everyday([(0, "full", FULL), (1, "full", FULL), (2, "mixed", MIXED)], 2),
)
def test_kill_minus_nine_at_random_moments(home, straight, seed, name, changes):
    folder = home / f"killed-{seed}"
    kill_and_resume(folder, random.Random(seed), kills=1, **changes)
    assert digest(folder) == straight(name, changes)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100, 110))
@pytest.mark.parametrize(("name", "changes"), KILLED)
def test_kill_minus_nine_many_times(home, straight, seed, name, changes):
    folder = home / f"killed-{name}-{seed}"
    kill_and_resume(folder, random.Random(seed), kills=3, **changes)
    assert digest(folder) == straight(name, changes)


def test_the_demo_pair_learns(tmp_path):
    data = demo_config(tmp_path / "run")
    data["train"]["steps"] = 30
    data["eval"] = [e | {"limit": 100, "every": 0} for e in data["eval"]]
    found = run_to_end(data)["sets"]["sum"]
    # At 30 of 80 steps the pair has recovered about half; a quarter is far outside chance.
    assert found["gap_recovery"]["low"] > 0.25
    assert found["before"]["value"] < 0.3 < 0.9 < found["teacher"]["value"]
    assert found["change"]["low"] > 0


def test_final_is_a_plain_hugging_face_folder(tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    for name, changes, tolerance in (("full", FULL, 0.0), ("lora", LORA, 1e-5)):
        data = run_config(tmp_path / name, steps=2, **changes)
        session, completions = open_run(data)
        distill(session, completions)
        session.folder.close()
        final = tmp_path / name / "final"
        model = AutoModelForCausalLM.from_pretrained(final)
        ids = torch.tensor([AutoTokenizer.from_pretrained(final)("SUM")["input_ids"] + [3, 9, 12]])
        with torch.no_grad():
            trained = session.learner.student.model(input_ids=ids).logits
            assert (model(input_ids=ids).logits - trained).abs().max() <= tolerance


def test_a_poisoned_run_stops_and_names_the_last_good_checkpoint(tmp_path):
    data = run_config(tmp_path / "run", steps=8, optim={"lr": 0.0005})
    session, completions = open_run(data)
    teacher = session.source.teacher
    scored = teacher.score

    class Poison:
        name, kinds = teacher.name, teacher.kinds
        calls = 0

        def score(self, rollouts, want):
            self.calls += 1
            scores = scored(rollouts, want)
            if self.calls > 3:  # finite, but the loss overflows
                for s in scores:
                    s.support[:, 0] = 3e38
                    s.support[:, 1] = -3e38
            return scores

    session = replace(session, source=replace(session.source, teacher=Poison()))
    with pytest.raises(UserError, match=r"3 updates in a row .*checkpoints/step-4\."):
        distill(session, completions)
    session.folder.close()
    kept = sorted(p.name for p in (tmp_path / "run" / "refused").iterdir())
    assert kept == ["step-4.parquet", "step-5.parquet", "step-6.parquet"]
    lines = read_jsonl(tmp_path / "run" / "metrics.jsonl")
    assert [line["step"] for line in lines if line.get("train/refused")] == [4, 5]


def test_metrics_hold_no_clock(tmp_path):
    run_to_end(run_config(tmp_path / "run", steps=2))
    for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines():
        names = json.loads(line)
        assert not any(n.startswith(("time/", "memory/")) for n in names)
    clocks = read_jsonl(tmp_path / "run" / "timings.jsonl")
    assert clocks[0]["time/rollout_s"] > 0


@pytest.mark.slow
def test_a_set_that_is_changed_when_a_finished_run_is_resumed_is_evaluated(tmp_path):
    """The summary is written anew: without it, it would have no accuracy of the student at all."""
    data = run_config(tmp_path / "run", steps=1)
    shorten_prompts(data, 4)
    data["eval"] = [data["eval"][0] | {"limit": 2}]
    run_to_end(data)
    data["eval"][0]["n"] = 3
    entry = run_to_end(data, resume=True)["sets"]["sum"]
    assert entry["after"]["n"] == 2  # prompts
    assert "before training" in entry["note"]
