"""Rollouts, scores and evaluations on disk: bit for bit, for the right key, or not at all."""

from __future__ import annotations

import json
import math
import os
import struct

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from opd.run.folder import RunFolder
from opd.run.rollouts import StepFile, decode, encode, read_completions
from opd.types import Graded, Prompt, Rollout, Scores
from support.faulty_disk import Unsynced, killed_at
from support.rollouts import batch_of, floats, frozen, make_rollout, make_scores

CONFIG = {"train": {"seed": 3, "steps": 9}, "loss": {"k": 4}, "output": {"dir": "x"}}


def round_trip(batch, scores):
    step = decode(encode(StepFile(batch, scores, None, {})))
    return step.batch, step.scores


@pytest.fixture
def run(tmp_path):
    with RunFolder.create(tmp_path / "run", CONFIG, ops=Unsynced()) as folder:
        yield folder


def path_of(run, step):
    return run.path / "rollouts" / f"step-{step}.parquet"


@pytest.mark.parametrize("lengths", [[7, 0, 1, 30], [0], [0, 0], [1]], ids=str)
@pytest.mark.parametrize("hidden", [torch.bfloat16, torch.float32, torch.float16], ids=str)
def test_every_bit_survives(lengths, hidden):
    batch, scores = batch_of(np.random.default_rng(0), lengths, hidden=hidden)
    assert frozen(round_trip(batch, scores)) == frozen((batch, scores))


def test_no_rollouts():
    assert round_trip([], []) == ([], [])


@pytest.mark.parametrize("absent", list(Scores.__slots__))
def test_absent_scores_stay_absent(absent):
    rng = np.random.default_rng(1)
    full = make_scores(rng, 5)
    some = Scores(**{n: getattr(full, n) for n in Scores.__slots__ if n != absent})
    only = Scores(**{absent: getattr(full, absent)})
    batch = [make_rollout(rng, i, 5) for i in range(3)]
    scores = [some, Scores(), only]
    assert frozen(round_trip(batch, scores)) == frozen((batch, scores))


def test_no_support_at_all():
    rng = np.random.default_rng(2)
    batch = [make_rollout(rng, 0, n, k=0) for n in (3, 0)]
    scores = [Scores(), Scores()]
    assert frozen(round_trip(batch, scores)) == frozen((batch, scores))


def test_arrays_of_wider_types_and_odd_strides_survive():
    rng = np.random.default_rng(3)
    wide = rng.standard_normal(8)[::2]
    transposed = rng.standard_normal((4, 4)).T
    batch = [make_rollout(rng, 0, 4, logp=wide, topk_logp=transposed)]
    assert frozen(round_trip(batch, [Scores()])[0]) == frozen(batch)


@pytest.mark.parametrize(
    "text", ["", "\x00\x1b[2J", "é 漢字 \u202e", "lone \ud800", "\\ud800", "a\n" * 9]
)
def test_any_text_survives(text):
    prompt = Prompt(0, (), text, text, text)
    batch = [make_rollout(np.random.default_rng(0), 0, 2, prompt=prompt, finish="length")]
    batch.append(make_rollout(np.random.default_rng(0), 1, 2, prompt=Prompt(1, (3,), text, None)))
    back, _ = round_trip(batch, [Scores(), Scores()])
    assert [r.prompt for r in back] == [r.prompt for r in batch]


def test_people_can_read_the_file(run):
    batch, scores = batch_of(np.random.default_rng(4), [3, 2])
    run.save_rollouts(1, batch, scores, key={}, texts=["four", "4"])
    rows = pq.read_table(path_of(run, 1)).to_pylist()
    assert [r["completion"] for r in rows] == ["four", "4"]
    assert rows[0]["prompt"] == "2 + 2 = ?"
    assert rows[1]["ids"] == batch[1].ids.tolist()
    assert len(rows[0]["teacher_sampled"]) == 3


def test_lengths_and_types_that_disagree_are_refused():
    rng = np.random.default_rng(5)
    batch, scores = batch_of(rng, [3, 2])
    with pytest.raises(ValueError, match="one score"):
        encode(StepFile(batch, scores[:1], None, {}))
    with pytest.raises(ValueError, match="one score"):
        encode(StepFile(batch, scores, ["one"], {}))
    mixed = [batch[0], make_rollout(rng, 1, 2, logp=np.zeros(2))]
    with pytest.raises(ValueError, match="logp must be 1-D arrays of one dtype"):
        encode(StepFile(mixed, scores, None, {}))
    with pytest.raises(ValueError, match="1-D arrays"):
        encode(StepFile([make_rollout(rng, 1, 2, logp=np.zeros((2, 1)))], scores[:1], None, {}))


def test_the_right_key_finds_it(run, caplog):
    batch, scores = batch_of(np.random.default_rng(6), [3, 2])
    key = run.rollout_key(1, 0)
    run.save_rollouts(1, batch, scores, key=key)
    assert frozen(run.load_rollouts(1, key)) == frozen((batch, scores))
    assert run.load_rollouts(2, run.rollout_key(2, 1)) is None
    assert caplog.text == ""


@pytest.mark.parametrize("change", [{"seed": 4}, {"step": 2}, {"version": 1}, {"config": "other"}])
def test_another_key_does_not(run, caplog, change):
    key = run.rollout_key(1, 0)
    run.save_rollouts(1, *batch_of(np.random.default_rng(6), [3]), key=key)
    assert run.load_rollouts(1, key | change) is None
    assert str(path_of(run, 1)) in caplog.text


def test_the_key_follows_what_decides_the_numbers(tmp_path):
    keys = []
    for i, (loss, steps) in enumerate([(4, 9), (4, 10), (5, 9)]):
        config = {"train": {"seed": 3, "steps": steps}, "loss": {"k": loss}, "output": {"dir": i}}
        with RunFolder.create(tmp_path / f"run{i}", config, ops=Unsynced()) as folder:
            keys.append(folder.rollout_key(1, 0))
    assert keys[0] == keys[1]
    assert keys[0] != keys[2]


@pytest.mark.parametrize("wreck", ["cut", "zero", "noise"])
def test_broken_files_are_named_and_made_again(run, caplog, wreck):
    batch, scores = batch_of(np.random.default_rng(7), [3, 2])
    key = run.rollout_key(1, 0)
    run.save_rollouts(1, batch, scores, key=key)
    data = path_of(run, 1).read_bytes()
    bad = {"cut": data[:-9], "zero": b"", "noise": os.urandom(500)}[wreck]
    path_of(run, 1).write_bytes(bad)
    assert run.load_rollouts(1, key) is None
    assert str(path_of(run, 1)) in caplog.text
    run.save_rollouts(1, batch, scores, key=key)
    assert frozen(run.load_rollouts(1, key)) == frozen((batch, scores))


@pytest.mark.parametrize("count", [150, pytest.param(20_000, marks=pytest.mark.slow)])
def test_a_flipped_bit_is_noticed_or_harmless(run, count):
    batch, scores = batch_of(np.random.default_rng(8), [6, 0, 3])
    key = run.rollout_key(1, 0)
    run.save_rollouts(1, batch, scores, key=key, texts=["a", "b", "c"])
    good = path_of(run, 1).read_bytes()
    rng = np.random.default_rng(9)
    noticed = 0
    for place in rng.integers(0, len(good), count):
        bad = bytearray(good)
        bad[place] ^= 1 << int(rng.integers(8))
        path_of(run, 1).write_bytes(bad)
        found = run.load_rollouts(1, key)
        noticed += found is None
        assert found is None or frozen(found) == frozen((batch, scores))
    assert noticed == count


def test_thinning_leaves_a_sample_without_hidden_states(run):
    rng = np.random.default_rng(10)
    for step in (1, 2, 3):
        batch, scores = batch_of(rng, [3, 0, 5, 4, 2, 6])
        texts = [f"text {r.prompt.index}" for r in batch]
        run.save_rollouts(step, batch, scores, key=run.rollout_key(step, 0), texts=texts)
    whole = decode(path_of(run, 2).read_bytes())
    kept = path_of(run, 3).read_bytes()
    run.thin_rollouts(2, keep=2)
    assert run.load_rollouts(2, run.rollout_key(2, 0)) is None
    assert path_of(run, 3).read_bytes() == kept
    small = decode(path_of(run, 2).read_bytes())
    assert small.thinned
    assert len(small.batch) == 2
    for rollout, score, text in zip(small.batch, small.scores, small.texts, strict=True):
        index = rollout.prompt.index
        assert text == f"text {index}"
        assert frozen(rollout) == frozen(whole.batch[index])
        assert score.hidden is None
        assert frozen(score.support) == frozen(whole.scores[index].support)
    chosen = [[r.prompt.index for r in decode(path_of(run, s).read_bytes()).batch] for s in (1, 2)]
    assert chosen[0] != chosen[1]

    again = path_of(run, 2).read_bytes()
    run.thin_rollouts(2, keep=2)
    assert path_of(run, 2).read_bytes() == again


def test_thinning_to_nothing_and_of_broken_files(run, caplog):
    for step in (1, 2):
        run.save_rollouts(step, *batch_of(np.random.default_rng(11), [3]), key={})
    path_of(run, 1).write_bytes(b"junk")
    run.thin_rollouts(1, keep=4)
    assert not path_of(run, 1).exists()
    assert str(path_of(run, 1)) in caplog.text
    run.thin_rollouts(2, keep=0)
    assert list((run.path / "rollouts").iterdir()) == []


def test_a_refused_step_is_kept_whole(run):
    batch, scores = batch_of(np.random.default_rng(12), [3, 4])
    run.save_rollouts(1, batch, scores, key={})
    kept = run.keep_rollouts(1)
    run.thin_rollouts(1, keep=0)
    step = decode(kept.read_bytes())
    assert frozen((step.batch, step.scores)) == frozen((batch, scores))


def test_killed_while_rollouts_are_written_or_thinned(tmp_path):
    batch, scores = batch_of(np.random.default_rng(13), [3, 4])
    with RunFolder.create(tmp_path / "run", CONFIG, ops=Unsynced()) as run:
        key = run.rollout_key(1, 0)
        want = frozen((batch, scores))

        def thin(ops):
            run.ops = ops
            run.thin_rollouts(1, keep=1)

        def save(ops):
            run.ops = ops
            run.save_rollouts(1, batch, scores, key=key)

        number = 1
        while killed_at(number, save):
            found = run.load_rollouts(1, key)
            assert found is None or frozen(found) == want
            number += 1
        assert number == 6
        number = 1
        while killed_at(number, thin):
            step = decode(path_of(run, 1).read_bytes())
            assert len(step.batch) == (1 if step.thinned else 2)
            run.save_rollouts(1, batch, scores, key=key)
            number += 1
        assert number == 6
    with RunFolder.create(tmp_path / "run", CONFIG, resume=True, ops=Unsynced()) as run:
        assert [p.name for p in (run.path / "rollouts").iterdir()] == ["step-1.parquet"]


GRADED = [
    Graded(0, 0, True, 3, "stop", "4 \ud800", {"reward": 1.0, "note": [None, float("inf")]}),
    Graded(0, 1, False, 0, "length"),
]


def test_evaluations_survive(run):
    result = {"acc": 0.1 + 0.2, "low": math.nan, "deep": {"a": [1, -math.inf, None]}, "n": 2}
    run.save_eval(5, "sums", result, GRADED, key={"seed": 3})
    record, graded = run.load_eval(5, "sums", key={"seed": 3})
    assert math.isnan(record.pop("low"))
    assert record == {k: v for k, v in result.items() if k != "low"}
    assert graded == GRADED
    text = (run.path / "eval" / "step-5-sums.json").read_text()
    assert "NaN" not in text
    assert json.loads(text)["step"] == 5


def test_evaluations_of_another_key_or_broken_ones_are_not_found(run, caplog):
    run.save_eval(5, "sums", {"acc": 0.5}, GRADED, key={"seed": 3})
    assert run.load_eval(5, "sums", key={"seed": 4}) is None
    assert run.load_eval(6, "sums", key={"seed": 3}) is None
    assert caplog.text == ""
    samples = run.path / "eval" / "step-5-sums.parquet"
    samples.write_bytes(samples.read_bytes()[:-1])
    assert run.load_eval(5, "sums", key={"seed": 3}) is None
    assert "step-5-sums" in caplog.text
    run.save_eval(5, "sums", {"acc": 0.5}, GRADED, key={"seed": 3})
    file = run.path / "eval" / "step-5-sums.json"
    good = file.read_bytes()
    for bad in (b"", b"[]", b"{}", b"3", good[:-3], good.replace(b"0.5", b"0.7")):
        file.write_bytes(bad)
        assert run.load_eval(5, "sums", key={"seed": 3}) is None


def test_an_empty_evaluation(run):
    run.save_eval(0, "none", {}, [])
    assert run.load_eval(0, "none") == ({}, [])


def test_the_special_floats_are_really_in_the_fixture():
    raw = floats(np.random.default_rng(0), 6).tobytes()
    assert struct.unpack("<6I", raw) == (0, 0x80000000, 0x7F800000, 0x7FC00001, 0x7FC00002, 1)


def test_completions_are_read_without_the_numbers_of_their_tokens(tmp_path):
    step = StepFile(
        [
            Rollout.of_ids(Prompt(i, (1,), f"p{i}", "a" if i else None), [3] * (i + 1))
            for i in range(3)
        ],
        [Scores() for _ in range(3)],
        ["zero", "one \ud800", "two"],
        {},
    )
    path = tmp_path / "step-1.parquet"
    path.write_bytes(encode(step))
    assert [(c.prompt, c.answer, c.text, c.tokens) for c in read_completions(path, 2)] == [
        ("p0", "", "zero", 1),
        ("p1", "a", "one \ud800", 2),
    ]
    path.write_bytes(b"PAR1 is not enough")
    with pytest.raises(ValueError):
        read_completions(path, 2)
