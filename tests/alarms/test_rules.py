"""Each rule on synthetic metric rows: it raises its alarm, and none on a good run."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from pydantic import ValidationError

from opd import config
from opd.alarms import RULES, History, Monitor, replay, window_size
from opd.config import AlarmName, Alarms
from opd.errors import UserError
from opd.run.jsonl import encode_line

STEPS = 40


def good(t: float) -> dict[str, float]:
    """A good run at t in 0..1, as the lab's look: everything closes, accuracy rises."""
    left = math.exp(-4 * t)
    return {
        "diag/reverse_kl": 0.5 * left,
        "diag/top1_agreement": 1 - 0.15 * left,
        "diag/overlap_ratio": 1 - 0.28 * left,
        "diag/entropy_gap_abs": 0.3 * left + 0.02,
        "diag/overlap_mass_student": 0.97 + 0.02 * t,
        "diag/support_mass": 0.985,
        "diag/student_entropy": 0.6 - 0.1 * t,
        "diag/teacher_entropy": 0.5,
        "diag/student_entropy@pos0-7": 0.7 - 0.1 * t,
        "diag/student_entropy@pos8-15": 0.6 - 0.1 * t,
        "diag/student_entropy@pos16-23": 0.5 - 0.1 * t,
        "diag/student_entropy@pos24-31": 0.4 - 0.05 * t,
        "drift/logp_gap": 5e-7,
        "drift/ess": 1.0,
        "rollout/length": 20.0,
        "rollout/truncated": 0.02,
        "rollout/repetition": 0.01,
        "rollout/reward": 0.2 + 0.6 * (1 - left),
        "rollout/hint_quoted": 0.01,
        "rollout/distinct": 0.9 - 0.2 * t,
        "train/loss": 0.5 * left,
    }


def spike(t: float) -> dict[str, float]:
    """Entropy of the last quarter up from .2 on, of the third from .5 on, of the second from .8."""
    return {
        f"diag/student_entropy@pos{first}-{first + 7}": 2.5 if t > since else 0.5
        for first, since in ((8, 0.8), (16, 0.5), (24, 0.2))
    }


def evaluations(*points: tuple[int, float, float]) -> list[dict]:
    """Rows of (step, accuracy, pass@4) with a wide interval."""
    made = []
    for step, accuracy, passed in points:
        ends = {"accuracy": accuracy, "accuracy_low": accuracy - 0.2, "pass@4": passed}
        ends |= {"accuracy_high": accuracy + 0.2, "pass@1": accuracy}
        made.append({"step": step} | {f"eval/task/{n}": v for n, v in ends.items()})
    return made


def together(*parts: list[dict]) -> list[dict]:
    return sorted((row for part in parts for row in part), key=lambda row: row["step"])


BAD = {
    "overlap-stagnating": lambda t: {
        "diag/reverse_kl": 0.5,
        "diag/top1_agreement": 0.78 - 0.01 * t,
        "diag/overlap_ratio": 0.78,
        "rollout/reward": 0.3,
    },
    "overlap-mass-falling": lambda t: {"diag/overlap_mass_student": 0.97 - 0.3 * t},
    "teacher-off-support": lambda t: {
        "diag/loss_teacher_mass": 0.55 - 0.1 * t,
        "rollout/reward": 0.3,
    },
    "support-mass-draining": lambda t: {"diag/support_mass": 0.997 - 0.05 * t},
    "entropy-gap-open": lambda t: {
        "diag/entropy_gap_abs": 0.3 + 0.4 * t,
        "rollout/reward": 0.3,
    },
    "entropy-collapse": lambda t: {"diag/student_entropy": 0.6 * math.exp(-3 * t)},
    "late-spike": spike,
    "length-inflation": lambda t: {"rollout/length": 20 + 20 * t, "rollout/repetition": 0.3 * t},
    "repetition": lambda t: {"rollout/repetition": 0.5 * t},
    "truncation": lambda t: {"rollout/truncated": 0.6 * t},
    "nothing-to-learn": lambda t: {"diag/reverse_kl": 0.01, "rollout/reward": 0.3},
    "hint-leaking": lambda t: {"rollout/hint_quoted": 0.3 * t},
    "responses-alike": lambda t: {"rollout/distinct": 0.9 - 0.7 * t},
    "drift": lambda t: {"drift/logp_gap": 0.1 * t},
    "stale-rollouts": lambda t: {"ahead/ess": 0.9 - 0.7 * t},
    "reverse-distillation": lambda t: {"rollout/reward": 0.9 - 0.6 * t},
    "accuracy-falling": lambda t: {"rollout/reward": 0.9 - 0.6 * t, "diag/reverse_kl": 0.5 + t},
}


def rows(trouble=None, *, steps=STEPS, noise=0.02, seed=0) -> list[dict]:
    rng = np.random.Generator(np.random.Philox(seed))
    table = []
    for step in range(1, steps + 1):
        t = (step - 1) / steps
        values = good(t) | (trouble(t) if trouble else {})
        shaken = {n: v * (1 + noise * rng.standard_normal()) for n, v in values.items()}
        for name in ("top1_agreement", "overlap_ratio", "overlap_mass_student", "support_mass"):
            v = values[f"diag/{name}"]  # noise of a share near 1 is on its distance from 1
            shaken[f"diag/{name}"] = 1 - (1 - v) * (1 + noise * rng.standard_normal())
        table.append({"step": step} | shaken)
    return table


def names(alarms) -> set[str]:
    return {alarm.name for alarm in alarms}


@pytest.mark.parametrize("seed", range(10))
def test_a_good_run_is_left_alone(seed):
    assert replay(rows(seed=seed), Alarms(), STEPS) == []


@pytest.mark.parametrize("name", BAD)
def test_each_rule_sees_its_trouble_with_numbers_and_a_remedy(name):
    alarms = [a for a in replay(rows(BAD[name]), Alarms(), STEPS) if a.name == name]
    assert alarms, "not raised"
    first = alarms[0]
    assert 2 * window_size(STEPS) < first.step <= STEPS
    assert first.evidence
    assert all(math.isfinite(v) for v in first.evidence.values())
    assert first.remedy
    assert first.action == "warn"


def test_every_rule_has_a_test():
    have_their_own = {"diversity-falling", "forgetting"}  # below
    assert {rule.name for rule in RULES} - set(BAD) == have_their_own


@pytest.mark.parametrize("name", BAD)
def test_a_rule_that_is_off_is_silent_and_others_are_not(name):
    off = Alarms.model_validate({"rules": {name: {"action": "off"}}})
    before = names(replay(rows(BAD[name]), Alarms(), STEPS))
    assert names(replay(rows(BAD[name]), off, STEPS)) == before - {name}


def test_a_distance_that_fell_at_once_and_stays_large_is_stagnation_too():
    def plateau(t: float) -> dict[str, float]:
        return {"diag/reverse_kl": 5.0 if t < 0.08 else 1.4, "rollout/reward": 0.2}

    (alarm,) = replay(rows(plateau), Alarms(), STEPS)
    assert alarm.name == "overlap-stagnating"
    assert alarm.step > 5 * window_size(STEPS)
    small = rows(lambda t: {n: v / 5 if "kl" in n else v for n, v in plateau(t).items()})
    assert replay(small, Alarms(), STEPS) == []  # less than the student's entropy


@pytest.mark.parametrize("name", ["overlap-stagnating", "entropy-gap-open", "nothing-to-learn"])
def test_a_student_that_gets_better_is_not_told_that_it_learns_nothing(name):
    better = rows(lambda t: BAD[name](t) | {"rollout/reward": 0.3 + 0.5 * t})
    assert replay(better, Alarms(), STEPS) == []
    table = rows(BAD[name])
    for step, accuracy in ((0, 0.2), (8, 0.6)):
        ends = {"accuracy": accuracy, "accuracy_low": accuracy - 0.05}
        ends |= {"accuracy_high": accuracy + 0.05}
        table.append({"step": step} | {f"eval/task/{n}": v for n, v in ends.items()})
    assert replay(sorted(table, key=lambda row: row["step"]), Alarms(), STEPS) == []


@pytest.mark.parametrize(("needed", "alarmed"), [(30.0, False), (70.0, True)])
def test_rollouts_that_are_all_cut_are_an_alarm_if_evaluation_needs_three_times_more(
    needed, alarmed
):
    cut = rows(lambda t: {"rollout/truncated": 1.0, "rollout/length": 20.0})
    row = {"step": 0} | {f"eval/task/{n}": 0.5 for n in ("accuracy", "accuracy_low")}
    row |= {"eval/task/accuracy_high": 0.5, "eval/task/length": needed}
    raised = names(replay([row, *cut], Alarms(), STEPS))
    assert raised == ({"truncation"} if alarmed else set())


def test_fewer_problems_solved_by_any_try_is_an_alarm_unless_once_or_with_accuracy():
    def raised(*rest: tuple[int, float, float]) -> set[str]:
        return names(replay(together(rows(), evaluations((0, 0.4, 0.8), *rest)), Alarms(), STEPS))

    assert raised((10, 0.45, 0.6), (20, 0.5, 0.6)) == {"diversity-falling"}
    assert raised((10, 0.45, 0.6), (20, 0.5, 0.78)) == set()
    assert raised((10, 0.35, 0.6), (20, 0.3, 0.6)) == set()


def test_a_level_alone_is_no_alarm():
    # The paper's good run starts with a lower overlap than its failing one.
    low = rows(
        lambda t: {"diag/overlap_ratio": 0.3 + 0.3 * t, "diag/top1_agreement": 0.2 + 0.7 * t}
    )
    assert replay(low, Alarms(), STEPS) == []


def test_held_out_accuracy_is_watched_too():
    table = rows()
    for step, accuracy in ((0, 0.8), (20, 0.4)):
        row = {"step": step, "eval/off-task/accuracy": accuracy}
        row |= {"eval/off-task/accuracy_low": accuracy - 0.05}
        row |= {"eval/off-task/accuracy_high": accuracy + 0.05}
        table.append(row)
    table.sort(key=lambda row: row["step"])
    (alarm,) = replay(table, Alarms(), STEPS)
    assert (alarm.name, alarm.step) == ("reverse-distillation", 21)
    assert alarm.evidence["off-task_start"] == 0.8
    assert alarm.message.startswith("On off-task: the student ")


def held_out(**sets: tuple[float, float]) -> list[dict]:
    """Evaluations of several sets at steps 0 and 20, with narrow intervals, in order."""
    table = []
    for step in (0, 20):
        for name, values in sets.items():
            accuracy = values[step > 0]
            row = {"accuracy": accuracy, "accuracy_low": accuracy - 0.02}
            row |= {"accuracy_high": accuracy + 0.02}
            table.append({"step": step} | {f"eval/{name}/{n}": v for n, v in row.items()})
    return table


def test_a_loss_on_another_set_is_forgetting_and_has_its_own_remedy():
    table = together(rows(), held_out(sum=(0.2, 0.9), echo=(0.98, 0.9), code=(0.5, 0.5)))
    (alarm,) = replay(table, Alarms(), STEPS)
    assert (alarm.name, alarm.step) == ("forgetting", 21)
    assert alarm.message.startswith("On echo: the student ")
    assert alarm.evidence == {"echo_start": 0.98, "echo_now": 0.9}
    assert "prompts.path" in alarm.remedy
    assert "teacher" not in alarm.remedy


def test_training_accuracy_that_falls_is_no_alarm_where_the_judged_set_rose():
    falling = rows(BAD["reverse-distillation"])
    assert "reverse-distillation" in names(replay(falling, Alarms(), STEPS))
    table = together(falling, held_out(sum=(0.2, 0.9)))
    late = [a for a in replay(table, Alarms(), STEPS) if a.step > 20]
    assert "reverse-distillation" not in names(late)


def test_forgetting_ends_a_run_only_where_it_is_told_to():
    (rule,) = [rule for rule in RULES if rule.name == "forgetting"]
    assert Monitor(Alarms(action="stop"), STEPS).action(rule) == "warn"
    own = Alarms.model_validate({"rules": {"forgetting": {"action": "stop"}}})
    assert Monitor(own, STEPS).action(rule) == "stop"
    assert own.may_stop


@pytest.mark.parametrize(
    "mass",
    [
        lambda t: 0.9,  # as the loosest good pair that was seen begins
        lambda t: 0.5 + 0.45 * t,  # the student comes to where the teacher is
    ],
)
def test_a_teacher_that_is_on_the_support_or_gets_there_is_no_alarm(mass):
    table = rows(lambda t: {"diag/loss_teacher_mass": mass(t), "rollout/reward": 0.3}, noise=0.005)
    assert "teacher-off-support" not in names(replay(table, Alarms(), STEPS))


def test_a_student_that_gains_is_not_told_that_its_loss_misses_the_teacher():
    table = rows(lambda t: {"diag/loss_teacher_mass": 0.5})
    assert "teacher-off-support" not in names(
        [a for a in replay(table, Alarms(), STEPS) if a.step > STEPS / 2]
    )


@pytest.mark.parametrize("split", [1, 9, 17, 18, 39])
def test_whoever_comes_in_the_middle_sees_the_same_alarms(split):
    # What a resumed run does: earlier rows from the file, later ones as they come.
    table = rows(BAD["reverse-distillation"])
    straight = replay(table, Alarms(), STEPS)
    monitor = Monitor(Alarms(), STEPS)
    alarms = monitor.replay([json.loads(encode_line(row)) for row in table[:split]])
    for row in table[split:]:
        monitor.add(row)
        alarms += [alarm for _, alarm in monitor.check(row["step"])]
    assert alarms == straight
    assert len(straight) == len({(a.name, a.step) for a in straight})


def test_an_alarm_is_raised_once_while_its_condition_lasts():
    alarms = replay(rows(BAD["repetition"], steps=200), Alarms(), 200)
    assert [a.name for a in alarms].count("repetition") == 1


def test_thresholds_can_be_changed():
    deaf = Alarms.model_validate({"rules": {"repetition": {"threshold": 0.9}}})
    assert "repetition" not in names(replay(rows(BAD["repetition"]), deaf, STEPS))


def test_what_is_not_finite_or_not_there_is_left_out():
    table = rows(BAD["repetition"])
    table[3] |= {
        "train/loss": None,
        "nonfinite": {"train/loss": "nan"},
        "diag/reverse_kl": math.nan,
    }
    for row in table[:20]:
        del row["diag/top1_agreement"]
    assert names(replay(table, Alarms(), STEPS)) == {"repetition"}


def test_rows_of_a_warm_up_belong_to_another_phase():
    before = [{"step": 0, "phase": "coldstart"} | BAD["repetition"](t / 9) for t in range(10)]
    assert replay([*before, *rows()], Alarms(), STEPS) == replay(rows(), Alarms(), STEPS)


def test_noise_is_not_trend():
    history = History(8)
    rng = np.random.Generator(np.random.Philox(1))
    for value in 0.5 + 0.1 * rng.standard_normal(16):
        history.add({"x": value})
    change = history.change("x")
    assert change is not None
    assert change.noise == pytest.approx(0.1 * math.sqrt(2 / 8), rel=0.5)
    assert not change.rises(0.0)
    assert not change.falls(0.0)


def test_a_steady_trend_is_not_noise():
    history = History(8)
    for step in range(16):
        history.add({"x": float(step)})
    change = history.change("x")
    assert (change.start, change.now) == (3.5, 11.5)
    assert change.rises(8.0)
    assert not change.rises(8.1)


def test_yaml_reads_off_as_false():
    assert Alarms.model_validate({"action": False}).action == "off"
    with pytest.raises(ValidationError):
        Alarms.model_validate({"rules": {"no-such-rule": {}}})


def test_the_page_has_every_rule_as_it_is():
    page = (Path(__file__).parents[2] / "docs" / "alarms.md").read_text("utf-8")
    for rule in RULES:
        cells = (
            f"`{rule.name}`",
            rule.message,
            rule.threshold_meaning,
            f"{rule.threshold:g}",
            rule.remedy,
        )
        assert "| " + " | ".join(cells) + " |" in page
    assert {rule.name for rule in RULES} == set(get_args(AlarmName))


@pytest.mark.parametrize("rule", RULES, ids=[rule.name for rule in RULES])
def test_the_config_knows_which_alarms_can_begin_a_cold_start(rule):
    data = {
        "student": {"model": "s"},
        "teacher": {"model": "t"},
        "prompts": {"path": "p"},
        "output": {"dir": "o"},
        "coldstart": {"when": "alarm"},
        "alarms": {"rules": {rule.name: {"action": "act"}}},
    }
    if "cold start" in rule.interventions:
        config.parse(data)
    else:
        with pytest.raises(UserError, match=r"alarms\.action=act"):
            config.parse(data)
