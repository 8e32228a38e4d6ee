"""Each rule of a right answer, broken once."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from opd.teachers.local import LocalTeacher
from opd.teachers.validate import WrongAnswer, check_answer
from opd.testing import TINY_VOCAB as VOCAB
from opd.testing import random_rollouts
from opd.types import Want

WANT = Want(sampled=True, support=True, topk=4)


@pytest.fixture
def honest(make_lm):
    (rollout,) = random_rollouts(1, seed=1, vocab=VOCAB, max_length=12)
    (scores,) = LocalTeacher(make_lm()).score([rollout], WANT)
    assert len(rollout) > 2
    check_answer(scores, rollout, WANT, VOCAB)
    return rollout, scores


def put(array, where, value):
    changed = array.copy()
    changed[where] = value
    return changed


BROKEN = {
    "sampled.*missing": lambda s: replace(s, sampled=None),
    "support.*missing": lambda s: replace(s, support=None),
    "topk_ids.*missing": lambda s: replace(s, topk_ids=None),
    "sampled has shape": lambda s: replace(s, sampled=s.sampled[:-1]),
    "support has shape": lambda s: replace(s, support=s.support[:, :-1]),
    "topk_logp has shape": lambda s: replace(s, topk_logp=s.topk_logp[:, :-1]),
    "log_z has shape": lambda s: replace(s, log_z=s.log_z[:-1]),
    "sampled is not finite": lambda s: replace(s, sampled=put(s.sampled, 1, np.nan)),
    "support is not finite": lambda s: replace(s, support=put(s.support, (1, 0), -np.inf)),
    "sampled has a log-prob": lambda s: replace(s, sampled=put(s.sampled, 0, 0.5)),
    "support has a log-prob": lambda s: replace(s, log_z=s.log_z - 90),
    "outside the": lambda s: replace(s, topk_ids=put(s.topk_ids, (0, 3), VOCAB)),
    "token twice": lambda s: replace(s, topk_ids=put(s.topk_ids, (0, 3), s.topk_ids[0, 0])),
    "not sorted": lambda s: replace(s, topk_logp=s.topk_logp[:, ::-1]),
    "top-k probabilities sum": lambda s: replace(s, topk_logp=s.topk_logp * 0 - 0.1),
    "entropy is impossible": lambda s: replace(s, entropy=s.entropy + 9),
    "likelier than the last|disagree": lambda s: replace(s, sampled=s.sampled * 0 - 1e-3),
    "support and top-k|support token": lambda s: replace(s, log_z=s.log_z + 0.5),
}


@pytest.mark.parametrize("words", BROKEN)
def test_a_broken_rule_is_named(honest, words):
    rollout, scores = honest
    with pytest.raises(WrongAnswer, match=words):
        check_answer(BROKEN[words](scores), rollout, WANT, VOCAB)
