"""The lab's machinery: cached runs, imitation, probes, windows, verdicts, the page."""

import json

import numpy as np
import pytest

from opd.core.stats import Estimate
from opd.errors import UserError
from opd.types import Prompt, Rollout
from opd_lab import checkpoints, commands, page, probes, runs, zoo
from opd_lab.corpus import Corpus
from opd_lab.experiments import Claim, Entry, Found, entries, quick_entries, verdict
from opd_lab.experiments.worth import by_position, kl_lines
from opd_lab.imitate import imitate
from opd_lab.runs import Task
from opd_lab.sheet import write_sheet
from opd_lab.worlds import Chain
from opd_lab.worlds.words import pattern_of

SMALL = Chain(horizon=1)
TASK = Task(SMALL, train=64, test=32)
SHORT = ("train.steps=2", "train.prompts_per_step=4", "eval.0.every=1")


@pytest.fixture
def tiny(monkeypatch, tmp_path):
    """A base, a child by supervised training and one by outcome reward, in a moment."""
    recipes = {
        "a": checkpoints.Recipe(SMALL, Corpus(size=64), lr=1e-2, width=16),
        "b": checkpoints.Recipe(SMALL, Corpus(size=32), lr=1e-2, parent="a", width=16),
        "c": checkpoints.Improved("a", steps=1, n=2),
        "never": checkpoints.Recipe(SMALL, Corpus(size=32), lr=1e-2, width=16, window=(0.9, 1)),
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
    assert len({first.path, *(o.path for o in others)}) == 4
    assert not list((tiny / "runs").glob("making-*"))


def test_results_read_what_the_run_logged(tiny):
    pair = zoo.build("a", 0, tiny), zoo.build("b", 0, tiny)
    done = runs.run(*pair, TASK, seed=0, cache=tiny, changes=SHORT)
    assert done.curve("eval/task/accuracy")[0] == [0, 1, 2]
    assert done.accuracy() == pytest.approx(done.correct(2).mean())
    assert done.tokens()[-1] == sum(done.curve("train/tokens")[1])
    assert done.seconds() > 0
    assert (done.path / "final" / "model.safetensors").is_file()


def test_positions_are_found_however_many_evaluations_come_first(tiny):
    pair = zoo.build("a", 0, tiny), zoo.build("b", 0, tiny)
    task = Task(SMALL, held_out=(1, 2), train=64, test=32)
    done = runs.run(*pair, task, seed=0, cache=tiny, changes=(*SHORT, "eval.1.every=1"))
    found = by_position(done)
    assert all(np.isfinite(v) for v in found.values())
    assert len(kl_lines(done)[0].x) == 10


def test_outcome_reward_moves_the_weights_and_is_deterministic(tiny, tmp_path_factory):
    parent, child = zoo.build("a", 0, tiny), zoo.build("c", 0, tiny)
    elsewhere = zoo.build("c", 0, tmp_path_factory.mktemp("other"))
    weights = [(p / "model.safetensors").read_bytes() for p in (parent, child, elsewhere)]
    assert weights[0] != weights[1]
    assert weights[1] == weights[2]


def test_card_tells_accuracy_and_is_measured_once(tiny):
    found = zoo.card("a", 0, tiny)
    assert 0 <= found["accuracy"]["low"] <= found["accuracy"]["high"] <= 1
    assert found["seconds"] >= 0
    path = zoo.build("a", 0, tiny).with_suffix(".json")
    path.write_text(json.dumps(found | {"pattern_2": 0.25}))
    assert zoo.card("a", 0, tiny)["pattern_2"] == 0.25


def test_checkpoint_outside_its_window_is_refused(tiny):
    with pytest.raises(UserError, match=r"promises 90% to 100%"):
        zoo.checkpoint("never", 0, tiny)


def test_imitation_counts_tokens_and_changes_the_student_only(tiny):
    student, teacher = zoo.build("a", 0, tiny), zoo.build("b", 0, tiny)
    before = [(p / "model.safetensors").read_bytes() for p in (student, teacher)]
    done = imitate(student, teacher, TASK, steps=4, seed=0, cache=tiny, batch=8, every=2)
    assert done.steps == [0, 2, 4]
    assert done.tokens == sorted(done.tokens)
    assert done.seconds[0] == 0 < done.seconds[1] < done.seconds[2]
    assert [(p / "model.safetensors").read_bytes() for p in (student, teacher)] == before
    assert (done.path / "model.safetensors").read_bytes() != before[0]
    again = imitate(student, teacher, TASK, steps=4, seed=0, cache=tiny, batch=8, every=2)
    assert again == done


def test_a_model_agrees_with_itself(tiny):
    folder = zoo.build("a", 0, tiny)
    found = probes.overlap(folder, folder, TASK, (1, 4), seed=0, cache=tiny)
    assert found[1]["diag/overlap_ratio"] == 1
    assert found[4]["diag/reverse_kl"] == pytest.approx(0, abs=1e-6)
    gains = probes.continuation_gain(folder, folder, TASK, (0, 3), seed=0, cache=tiny)
    assert [g.value for g in gains] == [0, 0]


def test_auroc_of_a_model_with_itself_is_chance(tiny):
    """All rewards are 0 but for rounding: the interval holds a half, unless a class is missing."""
    found = probes.reward_auroc(*[zoo.build("a", 0, tiny)] * 2, TASK, seed=0, cache=tiny)
    assert np.isnan(found.value) or found.low <= 0.5 <= found.high


@pytest.mark.parametrize(("cut", "length"), [(0, 0), (4, 4), (8, 7), (50, 7)])
def test_prefix_never_holds_the_answer(cut, length):
    ids, zeros = np.arange(10, dtype=np.int32), np.zeros(10, dtype=np.float32)
    wide = np.zeros((10, 0))
    prompt = Prompt(3, (7, 8), "text", "answer")
    rollout = Rollout(prompt, 0, ids, zeros, zeros, wide, wide, "stop")
    cut_prompt = probes.prefix(rollout, cut)
    assert cut_prompt.ids == (7, 8, *range(length))
    assert (cut_prompt.index, cut_prompt.answer) == (3, "answer")


@pytest.mark.parametrize("pattern", [1, 2])
@pytest.mark.parametrize("world", [Chain(), *{type(w): w for w in (checkpoints.ROUTE,)}.values()])
def test_pattern_is_read_from_a_text(world, pattern):
    text = world.solve(world.problems(1, 0)[0], pattern, np.random.default_rng(0))
    assert pattern_of(text) == pattern
    assert pattern_of("ANS 3") is None


def claims(*thresholds):
    return tuple(Claim(f"x >= {t}", lambda n, t=t: n["x"] >= t) for t in thresholds)


def entry(*thresholds):
    return Entry("E0", "t", "d", "p", lambda b: Found({}, []), claims(*thresholds), {"x": "x"})


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ((2, 2, 2), "reproduced"),
        ((2, 2, 0.5), "partly"),
        ((1, 1, 1), "reproduced"),
        ((0.5, 0.5, 0.5), "partly"),
        ((0, 0, 2), "not"),
        ((0, 2, 2), "partly"),
    ],
)
def test_verdict_follows_the_rule(values, expected):
    """First claim x >= .5, second x >= 1."""
    assert verdict(entry(0.5, 1), [{"x": v} for v in values]) == expected


def test_entries_are_complete():
    found = entries()
    numbers = (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 13, 15, 16)
    assert {f"E{n}" for n in numbers} == set(found)
    assert set(quick_entries()) == {"E1", "E2", "E3", "E5", "E9"}
    for each in (*found.values(), *quick_entries().values()):
        assert each.claims
        assert each.paper
        assert len(set(each.shown.values())) > 1 or len(each.shown) == 1


@pytest.mark.parametrize(
    ("estimate", "expected"),
    [
        (Estimate(0.5, 0.25, 0.75, 3), ".50 (.25 to .75)"),
        (Estimate(-0.5, -1.5, 0.5, 3), "-.50 (-1.50 to .50)"),
        (Estimate(0.001, -np.inf, np.inf, 1), ".001"),
        (Estimate(1.0, 1.0, 1.0, 3), "1.00 (1.00 to 1.00)"),
        (Estimate(10.0, 9.0, 11.0, 3), "10.00 (9.00 to 11.00)"),
    ],
)
def test_numbers_are_short(estimate, expected):
    assert page.show(estimate) == expected


def test_page_has_table_verdict_and_picture(tmp_path):
    line = {"panel": "p", "label": "l", "x": [0, 1], "y": [0.0, 1.0]}
    seeds = [
        {"seed": seed, "numbers": {"x": x}, "lines": [line], "seconds": 1.0}
        for seed, x in enumerate((2.0, 3.0))
    ]
    path = page.write_page(tmp_path, {"E0": entry(1)}, {"E0": seeds}, [], facts={"Seeds": "0, 1"})
    text = path.read_text()
    assert "**reproduced** (2 seeds)" in text
    assert "| x | 2.50 (-3.85 to 8.85) | 2.00, 3.00 |" in text
    assert (tmp_path / "lab" / "E0.png").stat().st_size > 1000


def test_sheet_says_what_the_page_says(tmp_path):
    seeds = [
        {
            "seed": seed,
            "numbers": {"x": x},
            "lines": [{"panel": "mass outside", "label": "l", "x": [1, 2], "y": [x, 2 * x]}],
            "seconds": 1.5,
        }
        for seed, x in enumerate((2.0, 3.0))
    ]
    html = write_sheet(tmp_path / "lab.html", {"E0": entry(1)}, {"E0": seeds}, facts={"Seeds": "0"})
    sections = json.loads(html.with_suffix(".json").read_text("utf-8"))["sections"]
    assert sections["verdict"]["parts"][0]["headline"] == "1 of 1 findings reproduced."
    parts = sections["E0"]["parts"]
    assert parts[1]["rows"][0][1]["shown"] == "2 of 2 seeds"
    assert parts[2]["charts"][0]["data"]["l"]["y"] == [2.5, 5.0]
    assert parts[2]["charts"][0]["data"]["l"]["high"] == [3.0, 6.0]
    # The interval of the Markdown page, with other rounding.
    assert parts[3]["rows"][0][1]["note"] == "\u22123.85 to 8.85"
    assert "Content-Security-Policy" in html.read_text("utf-8")


def test_unknown_experiment_is_named(tmp_path):
    where = {"cache": tmp_path, "out": tmp_path / "out"}
    with pytest.raises(UserError, match=r"No experiment 'E99'.*E1, E2"):
        commands.run_lab(["E99"], seeds=[0], quick=False, jobs=1, **where)


def test_results_of_other_code_or_size_are_left_out(tmp_path):
    for seed, quick, source in (
        (1, False, runs.source_hash()),
        (0, False, runs.source_hash()),
        (2, True, runs.source_hash()),
        (3, False, "older"),
    ):
        folder = tmp_path / f"seed-{seed}"
        folder.mkdir()
        result = {"seed": seed, "quick": quick, "source": source}
        (folder / "E1.json").write_text(json.dumps(result))
    assert [r["seed"] for r in commands.kept(tmp_path, "E1", False)] == [0, 1]
    assert [r["seed"] for r in commands.kept(tmp_path, "E1", True)] == [2]
