"""Fakes of models, teachers, samplers and servers, for tests of code that uses `opd`.

All of them run in memory on a CPU, without downloads. A fake is built on a function from token ids
to the log-probs of every next token (`NextLogp`): a table (`bigram_model`), letters of English
(`letter_model`), or a model (`model_logp`).

    teacher = FakeTeacher(letter_model())
    server = FakeVllmServer(letter_model(), model="m")
    with serve_on_loopback(server) as url:  # teacher: {url: ..., model: m}
        ...

A server fails or answers wrongly where a test sets its hooks. The product never imports this.
"""

from opd.testing.clients import FakeClock, fake_client, serve_on_loopback
from opd.testing.language import (
    LETTER_EOS,
    LETTER_VOCAB,
    NextLogp,
    bigram_model,
    encode_letters,
    letter_model,
    model_logp,
    random_rollouts,
    token_logp,
)
from opd.testing.models import TINY_VOCAB, load_weights_for, tiny_lm, tiny_model, tiny_tokenizer
from opd.testing.sampler import FakeSampler
from opd.testing.sglang_server import FakeSglangServer
from opd.testing.teacher import FakeTeacher
from opd.testing.teacher_server import FakeTeacherServer
from opd.testing.vllm_server import FakeVllmServer

__all__ = [
    "LETTER_EOS",
    "LETTER_VOCAB",
    "TINY_VOCAB",
    "FakeClock",
    "FakeSampler",
    "FakeSglangServer",
    "FakeTeacher",
    "FakeTeacherServer",
    "FakeVllmServer",
    "NextLogp",
    "bigram_model",
    "encode_letters",
    "fake_client",
    "letter_model",
    "load_weights_for",
    "model_logp",
    "random_rollouts",
    "serve_on_loopback",
    "tiny_lm",
    "tiny_model",
    "tiny_tokenizer",
    "token_logp",
]
