"""The only shift: fixtures in which an off-by-one cannot hide."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from opd.core.batch import Batch
from opd.types import Prompt, Rollout, Scores, Want


def rollout(prompt_ids, ids, k=3, index=0):
    t = len(ids)
    rng = np.random.default_rng(t)
    return Rollout(
        Prompt(index, tuple(prompt_ids), ""), 0, np.array(ids, np.int32),
        -rng.random(t).astype(np.float32), rng.random(t).astype(np.float32),
        rng.integers(0, 40, (t, k)).astype(np.int32), -rng.random((t, k)).astype(np.float32),
        "length",
    )  # fmt: skip


def test_hidden_states_predict_their_tokens(make_lm):
    lm = make_lm(0)
    rows = [rollout([5, 6, 7], [10, 11]), rollout([8], [12, 13, 14, 15]), rollout([9, 9], [16])]
    micro = Batch(rows).microbatch([0, 1, 2], lm.device, k=3)
    states = lm.hidden(micro.input_ids)[micro.rows, micro.cols]
    logp = lm.head.logits(states).log_softmax(-1)
    got = logp.gather(1, micro.tokens.targets[:, None])[:, 0]
    want = []
    for r in rows:
        whole = torch.tensor([[*r.prompt.ids, *r.ids.tolist()]])
        full = lm.causal(whole).logits[0].log_softmax(-1)
        want += [full[len(r.prompt.ids) - 1 + t, token] for t, token in enumerate(r.ids)]
    torch.testing.assert_close(got, torch.stack(want))
    # The fixture discriminates: neither neighbour gives these numbers.
    shifted = lm.head.logits(
        lm.hidden(micro.input_ids)[micro.rows, micro.cols - 1 + (micro.cols == 0)]
    )
    assert not torch.allclose(
        shifted.log_softmax(-1).gather(1, micro.tokens.targets[:, None])[:, 0], got
    )


def test_layout_by_hand():
    rows = [rollout([5, 6, 7], [10, 11]), rollout([8], [12, 13, 14])]
    micro = Batch(rows).microbatch([0, 1], torch.device("cpu"), k=2)
    assert micro.input_ids.tolist() == [[5, 6, 7, 10], [8, 12, 13, 0]]
    assert micro.rows.tolist() == [0, 0, 1, 1, 1]
    assert micro.cols.tolist() == [2, 3, 0, 1, 2]
    assert micro.tokens.targets.tolist() == [10, 11, 12, 13, 14]
    assert micro.tokens.position.tolist() == [0, 1, 0, 1, 2]
    assert micro.length.tolist() == [2, 2, 3, 3, 3]
    assert micro.tokens.student_topk.shape == (5, 2)


def test_full_positions_find_their_rows(make_lm, make_prompts):
    from opd.samplers.decoding import Decoding
    from opd.samplers.hf import HFSampler
    from opd.teachers.local import LocalTeacher

    lm = make_lm(1)
    rollouts = HFSampler(lm, Decoding(6), stop=frozenset({1}), capture=3).sample(
        make_prompts(3, 5), n=2, key=(0,)
    )
    positions = [np.arange(len(r))[::2] for r in rollouts]
    scores = LocalTeacher(lm).score(rollouts, Want(full=positions))
    micro = Batch(rollouts, scores).microbatch(range(len(rollouts)), lm.device, k=3)
    states = lm.hidden(micro.input_ids)[micro.rows, micro.cols]
    torch.testing.assert_close(states[micro.diagnosed], micro.teacher_hidden)
    assert micro.tokens.position[micro.diagnosed].tolist() == np.concatenate(positions).tolist()


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (Scores(sampled=np.zeros(3, np.float32)), "3 rows for 2 tokens"),
        (Scores(support=np.full((2, 3), np.nan, np.float32)), "not finite"),
    ],
)
def test_scores_that_do_not_fit_are_refused(bad, message):
    with pytest.raises(ValueError, match=message):
        Batch([rollout([5], [10, 11])], [bad])


def test_every_rollout_is_in_exactly_one_micro_batch():
    rows = [rollout([5] * p, list(range(3, 3 + t))) for p, t in ((3, 4), (9, 0), (1, 8), (2, 2))]
    parts = Batch(rows).split(12)
    assert sorted(i for part in parts for i in part) == [0, 2, 3]  # the empty one trains nothing
    assert Batch(rows).num_tokens == 14


def test_every_tensor_goes_to_the_device_that_is_asked_for(make_lm, make_prompts):
    # No accelerator is needed to see a tensor left behind: `meta` is a device too.
    from opd.core.objective import Objective
    from opd.samplers.decoding import Decoding
    from opd.samplers.hf import HFSampler
    from opd.teachers.local import LocalTeacher

    lm = make_lm(1)
    rollouts = HFSampler(lm, Decoding(4), stop=frozenset({1}), capture=3).sample(
        make_prompts(3), n=2, key=(0,)
    )
    full = [np.arange(len(r)) for r in rollouts]
    want = Objective(support="union", k=3).want._replace(full=full)
    scores = LocalTeacher(lm).score(rollouts, want)
    micro = Batch(rollouts, scores).microbatch([0, 1], torch.device("meta"), k=3)
    tensors = [
        v
        for v in (*micro.tokens, micro.input_ids, micro.rows, micro.teacher_hidden)
        if v is not None
    ]
    tensors += [x for pair in micro.teacher.known for x in pair]
    assert len(tensors) > 10
    assert {t.device.type for t in tensors} == {"meta"}
