"""`recipe: auto`: what the check decides, what a resumed run does not decide again."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from transformers import Qwen3ForCausalLM

from opd import config
from opd.commands import auto
from opd.commands.check import gather, rounds
from opd.commands.check.rounds import MIN_PROMPTS
from opd.commands.export import export_run
from opd.commands.train import run_train
from opd.demo.run_config import PAIR
from opd.errors import UserError
from opd.run.console import Console
from opd.run.folder import RunFolder
from support.everyday import everyday
from support.runs import short_demo

QUIET = Console("quiet")


@pytest.fixture(autouse=True)
def few_prompts(monkeypatch):
    monkeypatch.setattr(rounds, "MAX_PROMPTS", 32)


@pytest.fixture
def checks(monkeypatch):
    """Results of the checks that the recipe makes, in order."""
    results, run = [], auto.check

    def recorded(*args, **kwargs):
        results.append(run(*args, **kwargs))
        return results[-1]

    monkeypatch.setattr(auto, "check", recorded)
    return results


def settings(tmp_path, **sections):
    data = short_demo(tmp_path / "run")
    data |= {"recipe": "auto", "eval": []}
    data["train"] |= {"steps": 1}
    return config.parse(data | sections)


@pytest.fixture
def untrained(tmp_path):
    """A student that speaks the teacher's tokens and knows nothing: it needs a cold start."""
    folder = tmp_path / "untrained"
    shutil.copytree(PAIR / "student", folder)
    model = Qwen3ForCausalLM.from_pretrained(folder)
    rng = torch.Generator().manual_seed(0)
    for weight in model.parameters():
        if weight.ndim == 2:
            torch.nn.init.normal_(weight, std=0.5, generator=rng)
    model.save_pretrained(folder)
    return str(folder)


def test_a_pair_that_works_is_trained_as_it_is_with_alarms_that_act(tmp_path):
    given = settings(tmp_path, train={"steps": 80, "prompts_per_step": 16})
    cfg = auto.prepare(given, resume=False, console=QUIET)
    assert cfg.coldstart is None
    assert cfg.alarms.action == "act"


def test_an_untrained_student_gets_a_cold_start(tmp_path, untrained):
    given = settings(tmp_path, student={"model": untrained})
    cfg = auto.prepare(given, resume=False, console=QUIET)
    assert cfg.coldstart is not None
    assert cfg.coldstart.lr == pytest.approx(4e-3)


@pytest.mark.slow
def test_the_check_samples_a_small_fraction_of_the_tokens_of_the_run(tmp_path, monkeypatch, checks):
    """The pilot's tokens count too; no step is timed, no verdict comes from too few prompts."""
    monkeypatch.setattr(gather, "StepTimer", lambda *_: pytest.fail("timed a step"))
    monkeypatch.setattr(rounds, "MAX_PROMPTS", 192)
    for steps in (1, 400):
        given = settings(tmp_path, train={"steps": steps, "prompts_per_step": 16})
        auto.prepare(given, resume=False, console=QUIET)
    few, many = (len(result.student.prompts) for result in checks)
    assert few == MIN_PROMPTS < many < 192
    pilots = [result.best.features["pilot_steps"].value for result in checks]
    assert pilots[0] == 1 < pilots[1] <= gather.LONGER_PILOT
    own, side = checks[-1].student, checks[-1].best.side
    length = sum(map(len, own.rollouts)) / len(own.rollouts)
    each = (own.tokens + side.tokens) / many
    assert each > 8 * length  # four rollouts, answers of both, and continuations of both
    planned = auto.TOKEN_FRACTION * 400 * 16 * given.rollout.n * length
    assert many * each == pytest.approx(planned, rel=0.1)  # later rounds differ a little


def test_what_the_user_asked_for_stays(tmp_path, untrained):
    given = settings(
        tmp_path,
        student={"model": untrained},
        coldstart={"lr": 1e-3},
        alarms={"action": "stop"},
    )
    cfg = auto.prepare(given, resume=False, console=QUIET)
    assert cfg.coldstart.lr == 1e-3
    assert cfg.alarms.action == "stop"


def test_a_no_go_is_not_trained_and_leaves_no_run(tmp_path):
    given = settings(
        tmp_path,
        student={"model": str(PAIR / "teacher")},
        teacher={"model": str(PAIR / "student")},
    )
    with pytest.raises(UserError, match="check says no-go"):
        run_train(given, style="quiet")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_no_go_on_few_prompts_is_checked_again_with_the_full_budget(
    tmp_path, monkeypatch, checks
):
    monkeypatch.setattr(rounds, "MAX_PROMPTS", 48)
    given = settings(
        tmp_path,
        student={"model": str(PAIR / "teacher")},
        teacher={"model": str(PAIR / "student")},
    )
    with pytest.raises(UserError, match="check says no-go"):
        auto.prepare(given, resume=False, console=QUIET)
    assert [len(result.student.prompts) for result in checks] == [MIN_PROMPTS, 48]


@pytest.mark.slow
def test_a_resumed_run_takes_what_was_decided(tmp_path, checks):
    run_train(settings(tmp_path), style="quiet")
    assert len(checks) == 1
    stored = json.loads((tmp_path / "run" / "config.json").read_text())
    assert stored["alarms"]["action"] == "act"
    assert (tmp_path / "run" / "check.json").exists()
    record = (tmp_path / "run" / "check.json").read_bytes()
    given = settings(tmp_path, train=stored["train"] | {"steps": 2})
    summary = run_train(given, resume=True, style="quiet")
    assert summary["steps"] == 2
    assert len(checks) == 1
    assert (tmp_path / "run" / "check.json").read_bytes() == record
    assert json.loads((tmp_path / "run" / "config.json").read_text())["alarms"]["action"] == "act"


def test_a_resumed_run_takes_alarms_that_are_free_to_change(tmp_path):
    """A run that an alarm stopped goes on with `alarms.action=warn`."""
    given = settings(tmp_path, alarms={"action": "stop"})
    went_on = auto.restore_decisions(settings(tmp_path), config.dump(given))
    assert went_on.alarms.action == "warn"
    decided = config.dump(settings(tmp_path, alarms={"action": "act"}))
    rules = {"rules": {"repetition": {"action": "off"}}}
    again = auto.restore_decisions(settings(tmp_path, alarms=rules), decided)
    assert again.alarms.action == "act"  # decided; the file still says warn
    assert again.alarms.rules["repetition"].action == "off"
    quiet = auto.restore_decisions(settings(tmp_path, alarms={"action": "off"}), decided)
    assert quiet.alarms.action == "off"


def test_what_a_resumed_run_may_not_change_is_not_passed_over(tmp_path):
    """The recipe put the sections that it might have decided back, whatever the file said now."""
    stored = config.dump(settings(tmp_path, coldstart={"when": "start", "lr": 1e-3}))
    prompts = stored["prompts"] | {"max_tokens": 77}
    waits = {"coldstart": {"when": "alarm", "lr": 2e-3}, "alarms": {"action": "act"}}
    changed = settings(tmp_path, prompts=prompts, **waits)
    resumed = auto.restore_decisions(changed, stored)
    assert resumed.prompts.max_tokens == 77
    assert (resumed.coldstart.when, resumed.coldstart.lr) == ("start", 2e-3)
    assert auto.restore_decisions(settings(tmp_path), stored).coldstart.lr == 1e-3
    choosing = settings(tmp_path, prompts=prompts, select={"output": str(tmp_path / "kept.jsonl")})
    chosen = stored | {"prompts": prompts | {"path": "kept.jsonl"}}
    assert auto.restore_decisions(choosing, chosen).prompts.path == "kept.jsonl"


def test_several_processes_are_asked_to_check_first(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    given = settings(tmp_path)
    with pytest.raises(UserError, match=r"--apply.*with recipe=null"):
        auto.prepare(given, resume=False, console=QUIET)
    data = config.dump(given)
    RunFolder.create(
        tmp_path / "run", data | {"alarms": data["alarms"] | {"action": "act"}}
    ).close()
    resumed = auto.prepare(given, resume=True, console=QUIET)  # of one process
    assert (resumed.recipe, resumed.alarms.action) == ("auto", "act")


def test_ctrl_c_during_the_check_ends_the_run_before_it_begins(tmp_path, monkeypatch):
    """`opd check` then gives the verdict so far; here training began on it."""

    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(rounds, "probe_student", interrupt)
    with pytest.raises(KeyboardInterrupt):
        auto.prepare(settings(tmp_path), resume=False, console=QUIET)


def test_without_the_recipe_nothing_changes(tmp_path):
    given = settings(tmp_path, recipe=None)
    assert auto.prepare(given, resume=False, console=QUIET) is given


def trained(tmp_path, **sections):
    """A run of `recipe: auto` without its check."""
    from opd.recipes.distillation import distill
    from opd.setup.session import build

    data = short_demo(tmp_path / "run") | {"recipe": "auto"}
    data["train"] |= {"steps": 3}
    data["eval"] = [data["eval"][0] | {"every": 1, "limit": 48}]
    for section, values in sections.items():
        data[section] = data.get(section, {}) | values
    cfg = config.parse(data)
    session, completions = build(cfg, resume=False, overwrite=False, console=QUIET)
    return distill(session, completions), cfg


def weights(folder):
    return Qwen3ForCausalLM.from_pretrained(folder).state_dict()


DESTRUCTIVE = {"optim": {"lr": 0.05, "grad_clip": 100.0}}


@pytest.mark.parametrize("cold", everyday([False, True], 1))
def test_a_run_that_does_harm_keeps_the_student_it_began_with(tmp_path, cold):
    """Pairs called don't were trained all the same and left students of .15 to .44 at .01."""
    sections = dict(DESTRUCTIVE)
    if cold:
        sections["coldstart"] = {"lr": 0.05, "completions_per_round": 32, "max_rounds": 1}
    sections["student"] = {"model": str(PAIR / "teacher")}
    sections["teacher"] = {"model": str(PAIR / "student")}
    summary, _ = trained(tmp_path, **sections)
    assert summary["kept"] == {"step": 0, "after": 3}
    assert summary["steps"] == 0
    entry = summary["sets"]["sum"]
    assert entry["after"] == entry["before"]
    ours, theirs = weights(tmp_path / "run" / "final"), weights(PAIR / "teacher")
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    made = export_run(tmp_path / "run", tmp_path / "exported")
    assert made.step == 0
    assert all(torch.equal(weights(made.path)[name], theirs[name]) for name in theirs)


def test_a_run_that_helps_keeps_its_last_student(tmp_path):
    summary, _ = trained(tmp_path)
    assert "kept" not in summary
    assert summary["steps"] == 3
