"""How far along a completion the student is taught: limits, weights, and what comes back."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from opd import config
from opd.config import Grow
from opd.core.batch import Batch
from opd.errors import UserError
from opd.recipes.distillation import distill
from opd.run.jsonl import read_jsonl
from opd.samplers.decoding import Decoding
from opd.samplers.hf import HFSampler
from opd.training.horizon import Horizon, Pruning, growing_limit, next_cap, prune_weights, reach
from opd.training.session import Session
from opd.types import Prompt, Rollout, Scores
from support.runs import open_run, short_demo

LONGEST = 24


def rollout(length: int, finish="stop", k=4) -> Rollout:
    numbers = np.zeros(length, dtype=np.float32)
    top = np.tile(np.arange(k, dtype=np.int32), (length, 1))
    logp = np.log(np.tile(np.array([0.7, 0.1, 0.1, 0.05], dtype=np.float32)[:k], (length, 1)))
    ids = np.zeros(length, dtype=np.int32)
    return Rollout(Prompt(0, (1,), ""), 0, ids, numbers, numbers, top, logp, finish)


def shared(*counts: int, k=4) -> Scores:
    """A teacher whose top k shares so many tokens with the student's, position by position."""
    rows = [[*range(c), *range(100, 100 + k - c)] for c in counts]
    return Scores(topk_ids=np.array(rows, dtype=np.int32))


def test_a_weight_falls_with_every_bad_position_and_never_rises():
    pruning = Pruning(k=4, threshold=0.6, drop=0.4)
    weights = prune_weights(rollout(6), shared(4, 1, 3, 2, 4, 0), pruning)
    # bad: positions 1, 3 and 5 share a quarter, a half and nothing
    np.testing.assert_allclose(weights, [1, 0.6, 0.6, 0.2, 0.2, 0], atol=1e-6)
    assert reach(weights) == 5


def test_the_published_default_dies_at_the_fiftieth_bad_position():
    weights = prune_weights(rollout(60), shared(*[0] * 60), Pruning(4, 0.9))
    assert reach(weights) == 49
    assert weights[0] == pytest.approx(0.98)


def test_fewer_tokens_than_recorded_may_be_compared():
    assert (prune_weights(rollout(1), shared(2), Pruning(2, 1.0, drop=1.0)) == 1).all()
    assert (prune_weights(rollout(1), shared(2), Pruning(4, 1.0, drop=1.0)) == 0).all()


@pytest.mark.parametrize(
    ("lengths", "alive", "finish", "expected"),
    [
        ((10, 10, 10, 10), (3, 4, 5, 6), "length", 6),  # all died: the last of them
        ((10, 10, 10, 10), (10, 4, 5, 6), "length", 13),  # one was cut alive: grow
        ((8, 8, 8, 8), (8, 8, 8, 8), "stop", 8),  # all ended
    ],
)
def test_the_cap_is_where_nearly_all_have_died_or_ended(lengths, alive, finish, expected):
    rollouts = [rollout(n, finish) for n in lengths]
    weights = [(np.arange(n) < a).astype(np.float32) for n, a in zip(lengths, alive, strict=True)]
    assert next_cap(rollouts, weights, 10, ended_fraction=1.0) == expected


def test_a_growing_horizon_grows_in_a_straight_line_and_stays():
    grow = Grow(start=4, until=10)
    assert [growing_limit(grow, LONGEST, s) for s in (0, 1, 5, 10, 99)] == [4, 6, 14, 24, 24]


def settings(**values) -> config.Horizon:
    return config.Horizon.model_validate(values)


def test_the_limit_is_the_smallest_of_all():
    horizon = Horizon(settings(cap=20, grow={"start": 4, "until": 10}), LONGEST)
    assert [horizon.limit(s) for s in (0, 5, 10)] == [4, 14, 20]
    assert horizon.shorten(18).limit(10) == 18
    assert horizon.shorten(1).limit(10) == 16  # MIN_LIMIT
    assert Horizon(None, LONGEST).limit(3) == LONGEST
    again = Horizon(horizon.settings, LONGEST).restore(horizon.shorten(18).state())
    assert again == horizon.shorten(18)


def test_the_cap_follows_the_overlap_and_is_told():
    pruning = Pruning(4, 0.9, ended_fraction=1.0)
    horizon = Horizon(settings(prune={}), LONGEST, pruning, min_tokens=2)
    batch = Batch([rollout(8, "length")] * 2)
    weights = [(np.arange(8) < n).astype(np.float32) for n in (3, 5)]
    batch = replace(batch, pruned=weights)
    assert horizon.after(batch, 8).limit(1) == 5
    found = horizon.metrics(batch, 8)
    assert found["horizon/limit"].value == 8
    assert found["horizon/cut"].value == 1
    assert found["horizon/spared_at_most"].value == 2 * (LONGEST - 8)
    assert found["horizon/reach"].value == 4
    assert found["horizon/weight"].value == 0.5


def test_a_limited_rollout_is_the_beginning_of_the_whole_one(make_lm, make_prompts):
    sampler = HFSampler(make_lm(0), Decoding(12), stop=frozenset({1}), capture=4)
    whole = sampler.sample(make_prompts(4, 7), n=3, key=(0,))
    short = sampler.sample(make_prompts(4, 7), n=3, key=(0,), limit=5)
    assert any(len(r) > 5 for r in whole)
    for a, b in zip(whole, short, strict=True):
        assert len(b) == min(len(a), 5)
        assert (a.ids[:5] == b.ids).all()
        np.testing.assert_allclose(a.logp[:5], b.logp, atol=1e-12)
        assert b.finish == ("stop" if len(a) <= 5 and a.finish == "stop" else "length")


def run_config(folder: Path, *, steps=6, **changes) -> dict:
    data = short_demo(folder)
    data["train"] |= {"steps": steps, "prompts_per_step": 2}
    data["output"] |= {"save_every": 2, "rollout_sample": 2}
    data["eval"] = []
    for section, values in changes.items():
        data[section] = None if values is None else data.get(section, {}) | values
    return data


def run(data: dict, *, resume=False, upto=None, pruning: Pruning | None = None) -> dict[str, str]:
    session, completions = open_run(data, resume=resume)
    if pruning is not None:
        session = pruned(session, pruning)
    session.console.show_step = lambda now, *rest: session.stop.set() if now == upto else None
    try:
        distill(session, completions)
    except KeyboardInterrupt:
        assert upto is not None
    finally:
        session.folder.close()
    folder = Path(data["output"]["dir"])
    files = [folder / "metrics.jsonl", *sorted((folder / "checkpoints").rglob("*.safetensors"))]
    return {str(f.relative_to(folder)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


def pruned(session: Session, pruning: Pruning) -> Session:
    """The session with other numbers than those for completions of thousands of tokens."""
    adjustable = session.interventions.adjustable
    horizon = replace(adjustable.horizon, pruning=pruning, min_tokens=4)
    session.interventions.adjustable = replace(adjustable, horizon=horizon)
    return replace(session, source=replace(session.source, pruning=pruning))


def test_what_is_compared_are_the_tokens_of_the_loss(tmp_path):
    data = run_config(tmp_path / "run", horizon={"prune": {"threshold": 0.7}}, loss={"k": 8})
    session, _ = open_run(data)
    session.folder.close()
    assert session.source.pruning == Pruning(k=8, threshold=0.7)
    assert session.interventions.adjustable.horizon.pruning == session.source.pruning


# The two models of the demo disagree on a third of the positions; two of them are enough here.
PRUNING = Pruning(k=1, threshold=1.0, drop=0.5, ended_fraction=0.5)


def test_an_adaptive_cap_comes_back_bit_for_bit(tmp_path):
    straight = run(run_config(tmp_path / "straight", horizon={"prune": {}}), pruning=PRUNING)
    limits = [r["horizon/limit"] for r in read_jsonl(tmp_path / "straight" / "metrics.jsonl")]
    assert limits[0] == LONGEST
    assert len(set(limits)) > 2, "a cap that never moves proves nothing"
    for stop in (1, 3):
        data = run_config(tmp_path / f"{stop}", horizon={"prune": {}})
        run(data, pruning=PRUNING, upto=stop)
        again = run(data, pruning=PRUNING, resume=True)
        names = straight.keys() & again.keys()  # a stop makes a checkpoint of its own
        assert "metrics.jsonl" in names
        assert {n: again[n] for n in names} == {n: straight[n] for n in names}


def test_no_token_beyond_the_limit_is_written_and_all_are_counted(tmp_path):
    run(run_config(tmp_path / "run", steps=3, horizon={"grow": {"start": 3, "until": 2}}))
    rows = read_jsonl(tmp_path / "run" / "metrics.jsonl")
    assert [r["horizon/limit"] for r in rows] == [3, 14, LONGEST]
    assert rows[0]["train/tokens"] == 8 * 3
    assert rows[0]["horizon/cut"] == rows[0]["rollout/truncated"] == 1
    assert rows[0]["horizon/spared_at_most"] == 8 * (LONGEST - 3)
    assert rows[2]["horizon/cut"] == rows[2]["horizon/spared_at_most"] == 0


def test_weights_of_one_are_the_plain_run(tmp_path):
    run(run_config(tmp_path / "plain", steps=2))
    # Nothing ever dies; the cap is at the longest rollout, of which there may be a longer one next.
    never = Pruning(16, 1e-9, ended_fraction=1.0)
    run(run_config(tmp_path / "pruned", steps=2, horizon={"prune": {}}), pruning=never)
    plain, same = (read_jsonl(tmp_path / n / "metrics.jsonl") for n in ("plain", "pruned"))
    for a, b in zip(plain, same, strict=True):
        # the teacher's normaliser, now asked for, cancels up to rounding
        assert a["train/loss"] == pytest.approx(b["train/loss"], rel=1e-4)
        assert b["horizon/weight"] == 1


def test_shares_of_the_gradient_by_position_add_up_to_one(tmp_path):
    run(run_config(tmp_path / "run", steps=1, train={"tokens_per_microbatch": 60}))
    (row,) = read_jsonl(tmp_path / "run" / "metrics.jsonl")
    for kind in ("@pos", "@rel"):
        shares = [v for n, v in row.items() if n.startswith(f"diag/gradient_share{kind}")]
        assert len(shares) > 4
        assert sum(shares) == pytest.approx(1, abs=1e-9)
    assert "diag/gradient_share" not in row


@pytest.mark.parametrize(
    ("horizon", "changes", "word"),
    [
        ({"cap": 99}, {}, "horizon.cap"),
        ({"grow": {"start": 99, "until": 3}}, {}, "horizon.grow.start"),
        ({"prune": {}}, {"teacher": None, "loss": {"terms": {"outcome_weight": 1.0}}}, "null"),
    ],
)
def test_what_does_not_fit_together_is_told(tmp_path, horizon, changes, word):
    with pytest.raises((UserError, ValidationError), match=word):
        config.parse(run_config(tmp_path / "run", horizon=horizon, **changes))
