"""The lab's machinery: cached runs, supervised baseline, probes, accuracy ranges."""

import json

import numpy as np
import pytest

from opd.errors import UserError
from opd.types import Prompt, Rollout
from opd_lab import checkpoints, commands, probes, runs, zoo
from opd_lab.commands import LabRun
from opd_lab.corpus import Corpus
from opd_lab.experiments.response_length import kl_curves, position_metrics
from opd_lab.experiments.results import SeedResult
from opd_lab.runs import Task
from opd_lab.short_horizon import with_short_horizon
from opd_lab.training_recipes import RLRecipe, SupervisedRecipe
from opd_lab.worlds import Chain, detect_pattern

SMALL = Chain(depth=1)
TASK = Task(SMALL, train=64, test=32)
SHORT = ("train.steps=2", "train.prompts_per_step=4", "eval.0.every=1")


@pytest.fixture
def tiny(monkeypatch, tmp_path):
    """A base, a child by supervised training and one by outcome reward, in a moment."""
    recipes = {
        "a": SupervisedRecipe(SMALL, Corpus(size=64), lr=1e-2, width=16),
        "b": SupervisedRecipe(SMALL, Corpus(size=32), lr=1e-2, parent="a", width=16),
        "c": RLRecipe("a", steps=1, n=2),
        "never": SupervisedRecipe(
            SMALL, Corpus(size=32), lr=1e-2, width=16, accuracy_range=(0.9, 1)
        ),
    }
    monkeypatch.setattr(zoo, "RECIPES", recipes)
    monkeypatch.setattr(checkpoints, "RECIPES", recipes)
    monkeypatch.setattr(zoo, "CARD_PROBLEMS", 16)
    return tmp_path


def test_a_run_is_kept_and_never_made_twice(tiny):
    pair = zoo.build("a", 0, tiny), zoo.build("b", 0, tiny)
    first = runs.run(*pair, TASK, seed=0, cache=tiny, changes=SHORT)
    stamp = (first.path / "metrics.jsonl").stat().st_mtime_ns
    again = runs.run(*pair, TASK, seed=0, cache=tiny, changes=SHORT)
    assert again.path == first.path
    assert (again.path / "metrics.jsonl").stat().st_mtime_ns == stamp
    others = [
        runs.run(*pair, TASK, seed=1, cache=tiny, changes=SHORT),
        runs.run(*pair, TASK, seed=0, cache=tiny, changes=(*SHORT, "loss.k=4")),
        runs.run(*pair[::-1], TASK, seed=0, cache=tiny, changes=SHORT),
    ]
    pruned = (*SHORT, "horizon.prune={}")
    others += [
        runs.run(*pair, TASK, seed=0, cache=tiny, changes=pruned, edit=edit)
        for edit in (None, with_short_horizon)
    ]
    assert len({first.path, *(o.path for o in others)}) == 6
    weights = [run.curve("horizon/weight")[1] for run in others[-2:]]
    assert weights[0] != weights[1]
    assert not list((tiny / "runs").glob("making-*"))


def test_results_read_what_the_run_logged(tiny):
    pair = zoo.build("a", 0, tiny), zoo.build("b", 0, tiny)
    result = runs.run(*pair, TASK, seed=0, cache=tiny, changes=SHORT)
    assert result.curve("eval/task/accuracy")[0] == [0, 1, 2]
    assert result.accuracy() == pytest.approx(result.correct(2).mean())
    assert result.cumulative_tokens()[-1] == sum(result.curve("train/tokens")[1])
    assert result.seconds() > 0
    assert (result.path / "final" / "model.safetensors").is_file()


def test_positions_are_found_however_many_evaluations_come_first(tiny):
    pair = zoo.build("a", 0, tiny), zoo.build("b", 0, tiny)
    task = Task(SMALL, eval_depths=(1, 2), train=64, test=32)
    result = runs.run(*pair, task, seed=0, cache=tiny, changes=(*SHORT, "eval.1.every=1"))
    names = position_metrics(result)
    assert [name.partition("@")[2] for name in names] == [
        f"rel{i}-{i + 10}" for i in range(0, 100, 10)
    ]
    assert all(np.isfinite(curve.y).all() for curve in kl_curves("run", result))


def test_outcome_reward_moves_the_weights_and_is_deterministic(tiny, tmp_path_factory):
    parent, child = zoo.build("a", 0, tiny), zoo.build("c", 0, tiny)
    elsewhere = zoo.build("c", 0, tmp_path_factory.mktemp("other"))
    weights = [(p / "model.safetensors").read_bytes() for p in (parent, child, elsewhere)]
    assert weights[0] != weights[1]
    assert weights[1] == weights[2]


def test_card_has_the_accuracy_and_is_measured_once(tiny):
    card = zoo.card("a", 0, tiny)
    assert 0 <= card["accuracy"]["low"] <= card["accuracy"]["high"] <= 1
    assert card["seconds"] >= 0
    path = zoo.build("a", 0, tiny).with_suffix(".json")
    path.write_text(json.dumps(card | {"pattern_2": 0.25}))
    assert zoo.card("a", 0, tiny)["pattern_2"] == 0.25


def test_checkpoint_outside_its_accuracy_range_is_refused(tiny):
    with pytest.raises(UserError, match=r"promises 90% to 100%"):
        zoo.checkpoint("never", 0, tiny)


def test_a_model_agrees_with_itself(tiny):
    folder = zoo.build("a", 0, tiny)
    overlap = probes.measure_overlap(folder, folder, TASK, (1, 4), seed=0, cache=tiny)
    assert overlap[1]["diag/overlap_ratio"] == 1
    assert overlap[4]["diag/reverse_kl"] == pytest.approx(0, abs=1e-6)
    gains = probes.continuation_gain(folder, folder, TASK, (0, 3), seed=0, cache=tiny)
    assert [g.value for g in gains] == [0, 0]


def test_auroc_of_a_model_with_itself_is_chance(tiny):
    """All rewards are 0 but for rounding: the interval holds a half, unless a class is missing."""
    auroc = probes.reward_auroc(*[zoo.build("a", 0, tiny)] * 2, TASK, seed=0, cache=tiny)
    assert np.isnan(auroc.value) or auroc.low <= 0.5 <= auroc.high


@pytest.mark.parametrize(("cut", "length"), [(0, 0), (4, 4), (8, 7), (50, 7)])
def test_prefix_never_holds_the_answer(cut, length):
    prompt = Prompt(3, (7, 8), "text", "answer")
    rollout = Rollout.of_ids(prompt, range(10), finish="stop")
    cut_prompt = probes.prefix_prompt(rollout, cut)
    assert cut_prompt.ids == (7, 8, *range(length))
    assert (cut_prompt.index, cut_prompt.answer) == (3, "answer")


@pytest.mark.parametrize("pattern", [1, 2])
@pytest.mark.parametrize("world", [Chain(), *{type(w): w for w in (checkpoints.ROUTE,)}.values()])
def test_pattern_is_read_from_a_text(world, pattern):
    text = world.solve(world.problems(1, 0)[0], pattern, np.random.default_rng(0))
    assert detect_pattern(text) == pattern
    assert detect_pattern("ANS 3") is None


def test_unknown_experiment_is_named(tmp_path):
    request = LabRun(["E99"], seeds=[0], cache=tmp_path, out=tmp_path / "out")
    with pytest.raises(UserError, match=r"No experiment 'E99'.*E1, E2"):
        commands.run_lab(request)


@pytest.mark.parametrize("quick", [False, True])
def test_a_run_without_names_says_at_once_what_it_begins_with(tmp_path, monkeypatch, capfd, quick):
    """`opd lab run` gave no sign for minutes, and forty of them lay ahead."""
    said = []

    def stop(experiment, workspace):
        said.append(capfd.readouterr().err)
        raise KeyboardInterrupt

    monkeypatch.setattr(commands, "run_experiment", stop)
    request = LabRun([], seeds=[0, 1], quick=quick, cache=tmp_path, out=tmp_path / "out")
    with pytest.raises(KeyboardInterrupt):
        commands.run_lab(request)
    names = commands.experiments_when_unnamed(quick)
    first, *_, last = said[0].splitlines()
    assert f"all {len(names)}" in first
    assert all(name in first for name in names)
    assert "opd lab list" in said[0]
    assert "minutes" in said[0]
    assert last == f"seed 0: {names[0]} (1 of {len(names)}) begins"


def test_each_experiment_of_a_run_is_said_when_it_begins_and_ends(tmp_path, monkeypatch, capfd):
    def measured(experiment, workspace):
        return SeedResult(workspace.seed, 2.5, None, [])

    monkeypatch.setattr(commands, "run_experiment", measured)
    monkeypatch.setattr(commands, "save_result", lambda *args, **kwargs: None)
    commands.run_seed(LabRun(["E1", "E9"], seeds=[3], cache=tmp_path), ["E1", "E9"], 3)
    assert capfd.readouterr().err.splitlines() == [
        "seed 3: E1 (1 of 2) begins",
        "seed 3: E1 took 2 s",
        "seed 3: E9 (2 of 2) begins",
        "seed 3: E9 took 2 s",
    ]
