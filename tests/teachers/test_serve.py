"""opd's own scoring server: bounded, guarded, and deaf to nonsense."""

from __future__ import annotations

import asyncio

import httpx2
import numpy as np
import pytest

from opd import config
from opd.commands.serve_teacher import announcement, serve
from opd.errors import UserError
from opd.models.lm import LM
from opd.teachers import wire
from opd.teachers.opd_api import ANSWER_ARRAYS, CONTENT_TYPE, PROTOCOL, SCORE
from opd.teachers.scoring_server import Scorer, fingerprint, make_app
from opd.testing import TINY_VOCAB as VOCAB
from opd.testing import random_rollouts, tiny_model, tiny_tokenizer
from support.mistakes import run_yaml

TOKEN = "right"


@pytest.fixture(scope="module")
def lm():
    return LM(tiny_model(0), VOCAB, "tiny")


def talk(lm, *requests, token=TOKEN, scorer=None):
    """Send requests to the application in one event loop; the responses."""

    async def run():
        work = scorer or Scorer(lm, tokens_per_batch=64)
        app = make_app(lm, tiny_tokenizer(), token=TOKEN, scorer=work)
        worker = asyncio.create_task(work.run())
        headers = {"authorization": f"Bearer {token}"} if token else {}
        transport = httpx2.ASGITransport(app)
        async with httpx2.AsyncClient(
            transport=transport, base_url="http://t", headers=headers
        ) as http:
            answers = await asyncio.gather(
                *(http.request(method, path, content=body) for method, path, body in requests)
            )
        worker.cancel()
        return answers

    return asyncio.run(run())


def frame(given, *, meta=None, **arrays):
    ids = [[*r.prompt.ids, *r.ids.tolist()] for r in given]
    fields = {
        "lengths": np.array([len(i) for i in ids], np.int32),
        "completions": np.array([len(r) for r in given], np.int32),
        "ids": np.array([i for row in ids for i in row], np.int32),
    }
    return wire.pack({"protocol": PROTOCOL, "sampled": True} | (meta or {}), fields | arrays)


@pytest.mark.parametrize("token", [None, "wrong", TOKEN[:-1], TOKEN + "x"])
def test_nothing_but_health_without_the_token(lm, token):
    ways = [("GET", "/v1/opd/info", None), ("POST", SCORE, b""), ("POST", "/tokenize", b"{}")]
    health, *guarded = talk(lm, ("GET", "/health", None), *ways, token=token)
    assert health.status_code == 200
    assert [r.status_code for r in guarded] == [401] * 3


def test_requests_that_meet_are_scored_together_and_apart(lm):
    groups = [random_rollouts(2, seed=s, vocab=VOCAB) for s in range(4)]
    frames = [frame(g, meta={"temperature": 1.0 + s % 2}) for s, g in enumerate(groups)]
    ways = [("POST", SCORE, body) for body in frames]
    together = [wire.unpack(r.content, ANSWER_ARRAYS)[1] for r in talk(lm, *ways)]
    for way, arrays in zip(ways, together, strict=True):
        (alone,) = talk(lm, way)
        expected = wire.unpack(alone.content, ANSWER_ARRAYS)[1]["sampled"]
        np.testing.assert_allclose(arrays["sampled"], expected, atol=1e-9)


GIVEN = random_rollouts(2, vocab=VOCAB)
COUNT = sum(len(r) for r in GIVEN)
TOKENS = sum(len(r.prompt.ids) + len(r) for r in GIVEN)
BAD = {
    "no frame": b"hello",
    "nothing": b"",
    "cut off": frame(GIVEN)[:-3],
    "longer": frame(GIVEN) + b"x",
    "other protocol": frame(GIVEN, meta={"protocol": "opd-teacher/9"}),
    "id out of range": frame(GIVEN, ids=np.full(TOKENS, VOCAB, np.int32)),
    "negative id": frame(GIVEN, ids=np.full(TOKENS, -1, np.int32)),
    "no prompt": frame(GIVEN, completions=np.array([99, 1], np.int32)),
    "no completion": frame(GIVEN, completions=np.array([0, 1], np.int32)),
    "lengths lie": frame(GIVEN, lengths=np.array([1, 2], np.int32)),
    "lengths overflow": frame(GIVEN, lengths=np.array([2**31 - 1, 2**31 - 1], np.int32)),
    "nobody": frame([], ids=np.zeros(0, np.int32)),
    "floats for ids": frame(GIVEN, ids=np.zeros(9, np.float32)),
    "support missing": frame(GIVEN, meta={"support": True}),
    "support of another size": frame(
        GIVEN, meta={"support": True}, support_ids=np.zeros((COUNT + 1, 2), np.int32)
    ),
    "support out of range": frame(
        GIVEN, meta={"support": True}, support_ids=np.full((COUNT, 2), VOCAB, np.int32)
    ),
    "topk too large": frame(GIVEN, meta={"topk": VOCAB + 1}),
    "topk a text": frame(GIVEN, meta={"topk": "4"}),
    "temperature zero": frame(GIVEN, meta={"temperature": 0}),
    "something more": frame(GIVEN, extra=np.zeros(1, np.int32)),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_request_is_refused_in_words_and_the_server_goes_on(lm, name):
    bad, good = talk(lm, ("POST", SCORE, BAD[name]), ("POST", SCORE, frame(GIVEN)))
    assert bad.status_code == 400
    assert bad.json()["error"]["message"]
    assert good.status_code == 200
    assert good.headers["content-type"] == CONTENT_TYPE


def test_too_long_a_body_and_too_full_a_queue_are_refused(lm):
    (large,) = talk(lm, ("POST", "/tokenize", b"x" * (2**20 + 1)))
    assert large.status_code == 413
    scorer = Scorer(lm, tokens_per_batch=64, queue_tokens=1)
    answers = talk(lm, *[("POST", SCORE, frame(GIVEN))] * 5, scorer=scorer)
    codes = sorted(r.status_code for r in answers)
    assert codes[0] == 200
    assert codes[-1] == 429
    assert [r.headers["retry-after"] for r in answers if r.status_code == 429]


def test_the_fingerprint_is_of_the_weights(lm):
    assert fingerprint(lm) == fingerprint(LM(tiny_model(0), VOCAB, "other name"))
    assert fingerprint(lm) != fingerprint(LM(tiny_model(1), VOCAB, "tiny"))


@pytest.mark.parametrize(
    ("teacher", "named"),
    [
        ("teacher={url: 'http://h:1/v1', model: m}", "a server itself"),
        ("teacher={from: student, prompt: '{prompt} {answer}'}", "the student itself"),
        ("teacher={python: 'pkg.mod:make'}", "a Python object"),
        ("teachers={a: {model: m}, b: {model: m}}", "several teachers"),
    ],
)
def test_what_cannot_be_served_is_named(teacher, named):
    data = run_yaml()
    if teacher.startswith("teachers"):
        del data["teacher"]
        data["prompts"] = {"files": [{"path": "p.jsonl", "teacher": "a"}]}
    cfg = config.parse(data, [teacher])
    with pytest.raises(UserError, match=named):
        serve(cfg, host="127.0.0.1", port=0)


@pytest.mark.parametrize(
    ("host", "shown"),
    [("127.0.0.1", "127.0.0.1"), ("0.0.0.0", "HOST"), ("::", "HOST"), ("::1", "[::1]")],
)
def test_the_address_that_is_shown_can_be_connected_to(host, shown):
    text = announcement(host, 8400, "secret", "name")
    assert f"url: http://{shown}:8400/v1" in text
    assert "secret" in text
