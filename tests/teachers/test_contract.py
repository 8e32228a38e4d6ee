"""What every teacher promises: in this process, behind either API, and the fakes of them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from opd.http import Endpoint, Http
from opd.teachers.dialect import TeacherRecord
from opd.teachers.local import LocalTeacher
from opd.teachers.opd_api import OpdDialect
from opd.teachers.remote import RemoteTeacher
from opd.teachers.scoring_server import Scorer, TeacherServer, make_app
from opd.teachers.sglang_api import SglangDialect
from opd.teachers.vllm_api import VllmDialect
from opd.testing import TINY_VOCAB as VOCAB
from opd.testing import (
    FakeClock,
    FakeSglangServer,
    FakeTeacher,
    FakeTeacherServer,
    FakeVllmServer,
    fake_client,
    random_rollouts,
    tiny_lm,
    tiny_tokenizer,
)
from opd.types import Kind, Want
from support.servers import running

TOLERANCE = 2e-6  # float64 models; the wire and the fake carry float64 values as they are
TOKEN = "a-token-of-tests"


@pytest.fixture(scope="module")
def lm():
    return tiny_lm()


@pytest.fixture(scope="module")
def dense(lm):
    """Reference: the plain Hugging Face forward, ids -> log-probs (L, V) in float64."""

    def logp(ids):
        with torch.no_grad():
            return lm.model(torch.tensor([list(ids)])).logits[0].log_softmax(-1).cpu().numpy()

    return logp


@pytest.fixture(scope="module")
def address(lm):
    """A real server of the model on loopback."""
    scorer = Scorer(lm, tokens_per_batch=64)
    app = make_app(lm, tiny_tokenizer(), token=TOKEN, eos=[1], scorer=scorer)
    with running(TeacherServer(app, "127.0.0.1", 0)) as port:
        yield f"http://127.0.0.1:{port}"


TEACHERS = ["local", "fake", "served", "fake server", "vllm", "vllm with chosen ids"]
TEACHERS += ["sglang", "sglang with chosen ids"]


@pytest.fixture(params=TEACHERS)
def teacher(request, lm, dense, address):
    clock = FakeClock()
    if request.param == "local":
        yield LocalTeacher(lm, tokens_per_batch=64)
        return
    if request.param == "fake":
        yield FakeTeacher.of_model(lm)
        return
    if request.param == "served":
        dialect = OpdDialect(Http(Endpoint(address, "teacher", "teacher.url", TOKEN)))
    elif request.param == "fake server":
        dialect = OpdDialect(fake_client(FakeTeacherServer(dense, VOCAB), clock))
    elif request.param.startswith("sglang"):
        fake = FakeSglangServer(dense, scores_chosen_ids=request.param != "sglang")
        dialect = SglangDialect(fake_client(fake, clock), "m")
    else:
        fake = FakeVllmServer(dense, scores_chosen_ids=request.param != "vllm", clock=clock)
        dialect = VllmDialect(fake_client(fake, clock), "m")
    yield RemoteTeacher(dialect, "tiny-0", vocab=VOCAB, expected=TeacherRecord(dialect.identity()))
    dialect.http.close()


def wanted(teacher) -> Want:
    return Want(sampled=True, support=Kind.SUPPORT in teacher.kinds, topk=5)


def reference(dense, rollout):
    ids = [*rollout.prompt.ids, *rollout.ids.tolist()]
    return dense(ids)[len(rollout.prompt.ids) - 1 : -1]


def test_every_value_is_the_models_own(teacher, dense):
    given = random_rollouts(6, vocab=VOCAB)
    for rollout, scores in zip(given, teacher.score(given, wanted(teacher)), strict=True):
        rows = reference(dense, rollout)
        sampled = np.take_along_axis(rows, rollout.ids[:, None].astype(int), 1)[:, 0]
        np.testing.assert_allclose(scores.sampled, sampled, atol=TOLERANCE)
        best = -np.sort(-rows, 1)[:, :5]
        np.testing.assert_allclose(scores.topk_logp, best, atol=TOLERANCE)
        of_ids = np.take_along_axis(rows, scores.topk_ids.astype(int), 1)
        np.testing.assert_allclose(of_ids, best, atol=TOLERANCE)
        if Kind.SUPPORT in teacher.kinds:
            chosen = np.take_along_axis(rows, rollout.topk_ids.astype(int), 1)
            values = scores.support - scores.log_z[:, None]
            np.testing.assert_allclose(values, chosen, atol=TOLERANCE)
        if scores.entropy is not None:
            np.testing.assert_allclose(scores.entropy, -(np.exp(rows) * rows).sum(1), atol=1e-5)


def test_order_is_kept_and_neighbours_do_not_matter(teacher):
    given = random_rollouts(7, seed=1, vocab=VOCAB)
    together = teacher.score(given, wanted(teacher))
    for i in (6, 0, 3):
        (alone,) = teacher.score([given[i]], wanted(teacher))
        np.testing.assert_allclose(together[i].sampled, alone.sampled, atol=TOLERANCE)
        np.testing.assert_array_equal(together[i].topk_ids, alone.topk_ids)


def test_the_prompt_is_never_scored_and_shortest_completions_are(teacher):
    long = random_rollouts(1, seed=2, vocab=VOCAB)[0]
    one = replace(
        long,
        ids=long.ids[:1],
        logp=long.logp[:1],
        entropy=long.entropy[:1],
        topk_ids=long.topk_ids[:1],
        topk_logp=long.topk_logp[:1],
    )
    none = replace(
        long,
        ids=long.ids[:0],
        logp=long.logp[:0],
        entropy=long.entropy[:0],
        topk_ids=long.topk_ids[:0],
        topk_logp=long.topk_logp[:0],
    )
    scores = teacher.score([one, none, long], wanted(teacher))
    assert [len(s.sampled) for s in scores] == [1, 0, len(long)]
    assert [len(s.topk_ids) for s in scores] == [1, 0, len(long)]


def test_end_tokens_are_tokens(teacher, dense):
    rollout = random_rollouts(1, seed=3, vocab=VOCAB)[0]
    ids = rollout.ids.copy()
    ids[-1] = 1
    ids[0] = 1
    (scores,) = teacher.score([replace(rollout, ids=ids)], wanted(teacher))
    rows = reference(dense, replace(rollout, ids=ids))
    np.testing.assert_allclose(scores.sampled[[0, -1]], rows[[0, -1], 1], atol=TOLERANCE)


def test_the_same_question_gets_the_same_answer(teacher):
    given = random_rollouts(3, seed=4, vocab=VOCAB)
    first, second = (teacher.score(given, wanted(teacher)) for _ in range(2))
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a.sampled, b.sampled)


def test_only_what_was_asked_must_be_there(teacher):
    given = random_rollouts(2, seed=5, vocab=VOCAB)
    for scores in teacher.score(given, Want(sampled=True)):
        assert scores.sampled is not None
        assert scores.topk_ids is None
        assert scores.support is None
