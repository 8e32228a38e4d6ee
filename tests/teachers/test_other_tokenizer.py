"""A teacher of another tokenizer: spelling, chunks on real tokenizers, scores, whole runs."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from opd import config
from opd.data.teacher_prompts import TeacherPrompts
from opd.demo.run_config import PAIR
from opd.errors import UserError
from opd.http import Http
from opd.models.lm import LM, load_lm
from opd.models.spelling import Speller, longest_text
from opd.models.tokenizers import load_tokenizer
from opd.run.clock import Clock
from opd.run.console import Console
from opd.run.jsonl import read_jsonl
from opd.setup import remote_teacher
from opd.setup.foreign import describe_alignment
from opd.setup.models import open_models
from opd.setup.preflight import read_inputs
from opd.setup.prompts import load_training_prompts
from opd.teachers.local import LocalTeacher
from opd.teachers.translate import TranslatedTeacher, Translator
from opd.testing import FakeVllmServer, model_logp, tiny_model
from opd.types import Prompt, Rollout, Want
from support.everyday import everyday
from support.foreign import TEXTS, byte_tokenizer, foreign_model
from support.runs import digest, run_config, run_to_end

COARSE = byte_tokenizer(vocab=400, special=("<|begin|>", "<|end|>", "<think>"))
FINE = byte_tokenizer(vocab=280, special=("<s>", "</s>", "<think>"), splits=False)
WORDS = load_tokenizer(str(PAIR / "student"))


def translator(student=FINE, teacher=COARSE):
    return Translator(student, teacher, {student.eos_token_id}, vocab=len(student))


TEXT = st.text(max_size=30) | st.lists(st.sampled_from(TEXTS), max_size=3).map("".join)


@settings(max_examples=80, deadline=None)
@given(TEXT)
def test_chunks_tile_any_text_of_two_real_tokenizers(text):
    ids = [*FINE.encode(text, add_special_tokens=False), FINE.eos_token_id]
    reading = translator().read(ids, ended=True)
    student = [i for c in reading.chunks for i in range(c.student.start, c.student.stop)]
    teacher = [i for c in reading.chunks for i in range(c.teacher.start, c.teacher.stop)]
    assert student == list(range(len(ids)))
    assert teacher == list(range(len(reading.ids)))
    mine, theirs = Speller(FINE), Speller(COARSE)
    for chunk in reading.chunks[:-1]:
        spelled = b"".join(mine.pieces(ids[chunk.student]))
        assert spelled == b"".join(theirs.pieces(reading.ids[chunk.teacher].tolist()))
    assert reading.ids[-1] == COARSE.eos_token_id
    assert reading.chunks[-1].one_to_one


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(3, len(FINE) - 1), min_size=1, max_size=20))
def test_any_ids_are_read_as_far_as_they_are_text(ids):
    reading = translator().read(ids, ended=False)
    text, count = longest_text(Speller(FINE).pieces(ids))
    stops = [c.student.stop for c in reading.chunks]
    assert max(stops, default=0) <= count
    spelled = b"".join(Speller(COARSE).pieces(reading.ids.tolist()))
    assert spelled == text.encode()


def test_bytes_that_split_a_character_are_one_chunk():
    plain = [Speller(FINE).piece(i) for i in FINE.encode("🙃", add_special_tokens=False)]
    assert len(plain) > 1
    assert b"".join(plain).decode() == "🙃"
    words = Translator(FINE, WORDS, {FINE.eos_token_id}, vocab=len(FINE))
    ids = FINE.encode("pig 🙃", add_special_tokens=False)
    assert words.teacher.encode("pig")[1] == [3]
    cut = translator().read(ids[:-1], ended=False)
    assert all(c.student.stop <= len(ids) - len(plain) for c in cut.chunks)


def test_special_tokens_of_both_are_one_token_and_spelled_ones_are_text():
    think = FINE.convert_tokens_to_ids("<think>")
    reading = translator().read([think, *FINE.encode("ox", add_special_tokens=False)], ended=False)
    assert reading.ids[0] == COARSE.convert_tokens_to_ids("<think>")
    assert reading.chunks[0].one_to_one
    spelled = FINE("<think>", add_special_tokens=False, split_special_tokens=True)["input_ids"]
    assert think not in spelled
    reading = translator().read(spelled, ended=False)
    assert COARSE.convert_tokens_to_ids("<think>") not in reading.ids
    mine = translator().read([FINE.bos_token_id], ended=False)  # the teacher has no <s>
    assert b"".join(Speller(COARSE).pieces(mine.ids.tolist())) == b"<s>"


def test_the_begin_token_is_not_doubled(tmp_path):
    chat = "{{ bos_token }}{% for m in messages %}{{ m['content'] }}{% endfor %}"
    tokenizer = byte_tokenizer(template=chat)
    folder = foreign_model(tmp_path / "teacher", tokenizer)
    data = foreign_run(tmp_path, folder)
    inputs = read_inputs(config.parse(data), Console("quiet"))
    ids = next(iter(inputs.teacher_prompts["teacher.prompt"].ids.values()))
    assert list(ids).count(tokenizer.bos_token_id) == 1


def lm_of(tokenizer, seed=3) -> LM:
    model = tiny_model(seed, vocab=len(tokenizer))
    return LM(model, len(tokenizer), "tiny")


def rollout_of(text: str, *, ended=True, index=0, k=6) -> Rollout:
    ids = FINE.encode(text, add_special_tokens=False) + ([FINE.eos_token_id] if ended else [])
    rng = np.random.default_rng(len(ids))
    topk = np.stack([np.r_[i, rng.permutation(len(FINE))[: k - 1]] for i in ids]).astype(np.int32)
    made = Rollout.of_ids(Prompt(index, (3, 4), "x"), np.array(ids, np.int32), topk_ids=topk)
    logp = -rng.random(len(ids)).astype(np.float32)
    finish = "stop" if ended else "length"
    return Rollout(made.prompt, 0, made.ids, logp, logp, topk, made.topk_logp, finish)


def teacher_of(lm):
    seen = TeacherPrompts({0: (5, 6, 7)}, {0: "x"}, "teacher.prompt", "")
    return TranslatedTeacher(LocalTeacher(lm), translator(), seen)


def test_scores_sum_to_the_teachers_log_prob_of_the_text():
    lm = lm_of(COARSE)
    rollout = rollout_of("sum pig gnu jay so naïve 世界")
    score = teacher_of(lm).score([rollout], Want(sampled=True, support=True))[0]
    ids = [*COARSE.encode("sum pig gnu jay so naïve 世界", add_special_tokens=False)]
    ids += [COARSE.eos_token_id]
    with torch.no_grad():
        logits = lm.model(torch.tensor([[5, 6, 7, *ids]])).logits[0, 2:-1]
    whole = logits.double().log_softmax(-1)
    exact = whole[range(len(ids)), ids].sum().item()
    first = np.unique(score.chunk, return_index=True)[1]
    advantage = (score.sampled.astype(float) - rollout.logp)[first].sum()
    assert advantage == pytest.approx(exact - rollout.logp.astype(float).sum(), abs=1e-4)
    assert len(first) < len(rollout)
    same = translator().same_token
    at = np.flatnonzero(score.shared.any(1))
    assert len(at)
    reading = translator().read(rollout.ids.tolist(), ended=True)
    teacher_at = {c.student.start: c.teacher.start for c in reading.chunks if c.one_to_one}
    for t in at:
        for k in np.flatnonzero(score.shared[t]):
            token = same[rollout.topk_ids[t, k]]
            assert score.support[t, k] == pytest.approx(
                whole[teacher_at[t], token].item(), abs=1e-4
            )
    assert (same[rollout.topk_ids[at]] >= 0)[score.shared[at] > 0].all()


def test_a_completion_that_was_cut_has_no_last_chunk_and_no_end():
    rollout = rollout_of("sum pig gnu jay", ended=False)
    score = teacher_of(lm_of(COARSE)).score([rollout], Want(sampled=True, support=True))[0]
    assert score.chunk[-1] == -1
    assert score.chunk[0] == 0
    assert score.sampled[-1] == pytest.approx(rollout.logp[-1])


def test_a_teacher_that_changes_the_text_is_an_error():
    lower = byte_tokenizer(lower=True)
    with pytest.raises(UserError, match="its tokens do not spell 'The Fox', because it changes"):
        Translator(FINE, lower, {1}, vocab=len(FINE)).read(FINE.encode("The Fox"), ended=False)


def test_tokens_that_never_align_are_an_error():
    rollout = rollout_of("x", ended=False)
    bad = np.full(40, FINE.convert_tokens_to_ids("Ģ"), np.int32)  # one half of a character
    topk = np.tile(np.arange(6, dtype=np.int32), (40, 1))
    logp = np.zeros(40, np.float32)
    rollout = Rollout(rollout.prompt, 0, bad, logp, logp, topk, topk.astype(np.float32), "length")
    with pytest.raises(UserError, match="none of the 40 tokens of 1 completions aligns"):
        teacher_of(lm_of(COARSE)).score([rollout], Want(sampled=True))


def test_a_completion_that_is_no_text_has_scores_of_every_kind():
    """Else the loss would miss its whole batch's: a crash at the first such completion."""
    rollout = rollout_of("sum pig")
    byte = FINE.convert_tokens_to_ids("Ĳ")  # 0x90, which begins no character
    none = Rollout(
        rollout.prompt,
        1,
        np.array([byte], np.int32),
        rollout.logp[:1],
        rollout.entropy[:1],
        rollout.topk_ids[:1],
        rollout.topk_logp[:1],
        "length",
    )
    want = Want(sampled=True, support=True)
    scores = teacher_of(lm_of(COARSE)).score([rollout, none], want)
    assert [s.support.shape for s in scores] == [r.topk_ids.shape for r in (rollout, none)]
    assert not scores[1].shared.any()
    assert scores[1].sampled == pytest.approx(none.logp)


def foreign_run(tmp_path, folder, name="run", *, steps=4, **changes):
    data = run_config(tmp_path / name, steps=steps, **changes)
    data["teacher"] = {"model": str(folder), "tokenizer": str(folder)}
    data["eval"] = []
    return data


@pytest.mark.parametrize("support", everyday(["student_topk", "sampled"], 0))
def test_two_and_two_steps_are_four(tmp_path, support):
    folder = foreign_model(tmp_path / "teacher", byte_tokenizer())
    loss = {"support": support}
    run_to_end(foreign_run(tmp_path, folder, "a", loss=loss))
    run_to_end(foreign_run(tmp_path, folder, "b", loss=loss, steps=2))
    run_to_end(foreign_run(tmp_path, folder, "b", loss=loss), resume=True)
    assert digest(tmp_path / "a") == digest(tmp_path / "b")
    row = next(r for r in read_jsonl(tmp_path / "a/metrics.jsonl") if "train/loss" in r)
    assert row["align/chunk_length"] >= 1
    assert 0 <= row["align/left_out"] < 1
    assert row["align/advantage"] < 0
    assert row["train/grad_norm"] > 0


def test_a_served_teacher_of_another_tokenizer(tmp_path, monkeypatch):
    folder = foreign_model(tmp_path / "teacher", byte_tokenizer())
    lm, tokenizer = load_lm(str(folder)), load_tokenizer(str(folder))
    encode = partial(tokenizer.encode, add_special_tokens=False)
    server = FakeVllmServer(model_logp(lm), "demo", max_len=lm.context_length, tokenize=encode)
    monkeypatch.setattr(remote_teacher, "Http", partial(Http, transport=server))
    data = foreign_run(tmp_path, folder, "served", steps=1, loss={"support": "sampled"})
    local = foreign_run(tmp_path, folder, "local", steps=1, loss={"support": "sampled"})
    data["teacher"] = {"url": "http://127.0.0.1:9/v1", "model": "demo", "tokenizer": str(folder)}
    with pytest.raises(UserError, match="this server cannot score tokens of the student's choice"):
        run_to_end(data | {"loss": {"support": "student_topk", "k": 4}})
    losses = []
    for each in (data, local):
        run_to_end(each)
        path = Path(each["output"]["dir"]) / "metrics.jsonl"
        losses.append(next(r for r in read_jsonl(path) if "train/loss" in r)["train/loss"])
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)


def test_check_says_what_aligns():
    words = Translator(WORDS, COARSE, {1}, vocab=len(WORDS))
    text = describe_alignment(words, ["sum pig gnu jay ox", "so pig"])
    assert "one token for the teacher too" in text


def test_what_a_text_comparison_cannot_do_is_refused(tmp_path):
    data = foreign_run(tmp_path, PAIR / "teacher")
    for change, match in (
        ({"coldstart": {}}, r"coldstart imitates .* teacher\.tokenizer"),
        ({"recipe": "auto"}, r"teacher\.tokenizer neither makes sense"),
        ({"horizon": {"prune": {}}}, r"horizon\.prune compares top tokens"),
    ):
        with pytest.raises(UserError, match=match):
            config.parse(data | change)


def test_the_same_vocabulary_as_text_shares_every_token(tmp_path):
    """Compared as text with its own tokenizer, every token is one to one and in the vocabulary."""
    data = foreign_run(tmp_path, PAIR / "teacher", steps=1)
    cfg = config.parse(data)
    models = open_models(cfg, Console("quiet"))
    models = models.for_prompts(load_training_prompts(cfg, models.pair, Console("quiet")))
    teacher = models.teacher(tmp_path, Console("quiet"), Clock())
    ids = np.array([*WORDS.encode("so pig 1 ANS 1"), WORDS.eos_token_id], np.int32)
    topk = np.tile(np.arange(6, 14, dtype=np.int32), (len(ids), 1))
    logp = np.zeros(len(ids), np.float32)
    prompt = load_training_prompts(cfg, models.pair, Console("quiet")).prompts[0]
    rollout = Rollout(prompt, 0, ids, logp, logp, topk, topk.astype(np.float32), "stop")
    text = teacher.score([rollout], Want(sampled=True, support=True))[0]
    plain = LocalTeacher(models.pair.foreign).score([rollout], Want(sampled=True, support=True))[0]
    assert text.shared.all()
    assert np.allclose(text.sampled, plain.sampled, atol=1e-5)
    assert np.allclose(text.support, plain.support - plain.log_z[:, None], atol=1e-5)
