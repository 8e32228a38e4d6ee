"""SGLang as a teacher: found by what it answers, and its answers checked (against a fake)."""

from __future__ import annotations

import pytest

from opd.config import ServerTeacher
from opd.core.objective import Objective
from opd.errors import UserError
from opd.http.sglang import logprob_pairs
from opd.setup import remote_teacher
from opd.setup.remote_teacher import require_kinds
from opd.teachers.handshake import HandshakeInputs, run_handshake
from opd.teachers.sglang_api import SglangDialect
from opd.teachers.validate import WrongAnswer
from opd.teachers.vllm_api import VllmDialect, _parse_row
from opd.testing import (
    LETTER_EOS,
    LETTER_VOCAB,
    FakeClock,
    FakeSglangServer,
    FakeVllmServer,
    encode_letters,
    fake_client,
    letter_model,
    random_rollouts,
    serve_on_loopback,
)
from opd.types import Kind, Want


def dialect_of(**options) -> SglangDialect:
    return SglangDialect(fake_client(FakeSglangServer(letter_model(), **options), FakeClock()), "m")


@pytest.mark.parametrize(
    ("server", "kind"), [(FakeSglangServer, SglangDialect), (FakeVllmServer, VllmDialect)]
)
def test_a_server_is_known_by_its_answers(server, kind):
    with serve_on_loopback(server(letter_model())) as url:
        dialect = remote_teacher.connect(ServerTeacher(url=url, model="m"))
    assert type(dialect) is kind
    assert dialect.context in (4095, 4096)


def test_it_passes_the_handshake():
    inputs = HandshakeInputs(
        LETTER_VOCAB,
        encode_letters,
        [encode_letters("the river was wide"), encode_letters("bread and soup")],
        8,
        max_length=200,
        eos=[LETTER_EOS],
    )
    hands = run_handshake(dialect_of(), inputs)
    hands.require("url")
    assert "m root=m length=4096 weights=default" in hands.teacher.identity


def test_student_chosen_ids_are_refused_with_the_choices_unless_a_probe_finds_them():
    """Stock SGLang has one list for all positions; a server that ignores the field is found."""
    assert dialect_of(scores_chosen_ids=True).kinds >= {Kind.SUPPORT}
    stock = dialect_of()
    assert stock.kinds == {Kind.SAMPLED, Kind.TOPK}
    with pytest.raises(UserError, match=r"teacher_topk(.|\n)*opd serve-teacher"):
        require_kinds(Objective(), stock.kinds)


def test_ids_of_other_positions_are_not_taken_for_the_chosen_ones():
    server = FakeSglangServer(letter_model(), scores_chosen_ids=True)

    def shift(info):
        rows = info.get("input_token_ids_logprobs")
        if rows:
            rows[1:] = [rows[-1], *rows[1:-1]]

    server.edit = shift
    assert Kind.SUPPORT not in SglangDialect(fake_client(server, FakeClock()), "m").kinds


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        (lambda info: info.pop("input_token_logprobs"), "no input_token_logprobs"),
        (lambda info: info["input_token_logprobs"].pop(), "no input_token_logprobs"),
        (lambda info: info["input_token_logprobs"][-1].__setitem__(1, 0), "not the ids"),
        (lambda info: info["input_token_logprobs"][-1].__setitem__(0, None), "has log-prob None"),
        (lambda info: info["input_token_logprobs"][-1].__setitem__(0, -1e9), "has log-prob"),
        (lambda info: info["input_top_logprobs"][-1].pop(), "not 4 log-probs"),
        (lambda info: info.pop("input_top_logprobs"), "no positions"),
        (lambda info: info["input_top_logprobs"].__setitem__(1, "x"), "not 4 log-probs"),
    ],
)
def test_an_answer_of_another_form_is_refused(edit, reason):
    server = FakeSglangServer(letter_model())
    dialect = SglangDialect(fake_client(server, FakeClock()), "m")
    (rollout,) = random_rollouts(1, vocab=LETTER_VOCAB, seed=1)
    server.edit = edit
    with pytest.raises(WrongAnswer, match=reason):
        dialect.score([rollout], Want(sampled=True, topk=4))


def test_another_name_than_it_serves_is_refused():
    with pytest.raises(UserError, match=r"SGLang server .* serves m"):
        SglangDialect(fake_client(FakeSglangServer(letter_model()), FakeClock()), "other")


@pytest.mark.parametrize(
    "row",
    [
        {str(10**30): {"logprob": -1.0}},
        {"-1": {"logprob": -1.0}},
        {"7": {"logprob": -1e300}},
        {"7": {"logprob": 10**400}},
    ],
    ids=["an id of 31 digits", "a negative id", "beyond float32", "beyond float64"],
)
def test_numbers_that_no_model_has_are_refused(row):
    """Found by 10,000 mutated answers: OverflowError, or infinity with a RuntimeWarning."""
    with pytest.raises(WrongAnswer):
        _parse_row(row)


@pytest.mark.parametrize("row", [[-1.0, 10**30], [-1.0, -1], [-(10**400), 7]])
def test_numbers_that_no_model_has_are_no_pairs_of_sglang(row):
    assert logprob_pairs([[-1.0, 7], row], 2) is None
