"""A teacher that is the student itself, seeing more: exact scores, frozen, live and averaged."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from opd import config
from opd.data.teacher_prompts import TeacherPrompts
from opd.errors import UserError
from opd.models.lm import add_lora, load_lm
from opd.models.self_weights import SelfWeights
from opd.run.clock import Clock
from opd.run.console import Console
from opd.run.jsonl import read_jsonl
from opd.setup.models import open_models
from opd.setup.preflight import read_inputs
from opd.setup.prompts import load_training_prompts
from opd.teachers.prompted import StudentAsTeacher
from opd.training.hint_quotes import HintQuotes, hint_metrics
from opd.types import Prompt, Rollout, Want
from support.everyday import everyday
from support.runs import digest, open_run, run_config, run_to_end
from support.teacher_runs import HINT, self_run

KINDS = [("frozen", False), ("frozen", True), ("live", False), ("ema", False), ("ema", True)]


def rollouts_of(models, prompts, count=5):
    rng = np.random.default_rng(0)
    vocab = models.pair.student.vocab
    made = []
    for prompt in prompts.prompts[:count]:
        ids = rng.integers(0, vocab, 6).astype(np.int32)
        topk = np.stack([rng.permutation(vocab)[:4] for _ in ids]).astype(np.int32)
        made.append(Rollout.of_ids(prompt, ids, topk_ids=topk))
    return made


def direct_logp(lm, prompt_ids, ids):
    """Log-probs (T, V) by one forward over the whole text, without anything of the product."""
    text = torch.tensor([[*prompt_ids, *ids.tolist()]])
    with torch.no_grad():
        logits = lm.model(input_ids=text).logits[0, len(prompt_ids) - 1 : -1, : lm.vocab]
    return torch.log_softmax(logits.double(), -1).cpu().numpy()


def test_scores_are_those_of_the_teachers_own_prompt_at_the_completions_positions(tmp_path):
    cfg = config.parse(self_run(tmp_path / "run"))
    models = open_models(cfg, Console("quiet"))
    prompts = load_training_prompts(cfg, models.pair, Console("quiet"))
    models = models.for_prompts(prompts).with_own_weights()
    teacher = models.teacher(tmp_path, Console("quiet"), Clock())
    rollouts = rollouts_of(models, prompts)
    scores = teacher.score(rollouts, Want(sampled=True, support=True, topk=3))
    rows = [json.loads(x) for x in Path(cfg.prompts.path).read_text().splitlines()]
    lengths = set()
    for rollout, score in zip(rollouts, scores, strict=True):
        row = rows[rollout.prompt.index]
        turn = {"role": "user", "content": f"{row['problem']} ANS {row['answer']}"}
        tokenizer = models.pair.tokenizer
        if tokenizer.chat_template is None:
            seen = tokenizer(turn["content"])["input_ids"]
        else:
            text = tokenizer.apply_chat_template([turn], tokenize=False, add_generation_prompt=True)
            seen = tokenizer(text, add_special_tokens=False)["input_ids"]
        lengths.add(len(seen) - len(rollout.prompt.ids))
        exact = direct_logp(models.own.lm, seen, rollout.ids)
        at = np.arange(len(rollout))
        assert np.allclose(score.sampled, exact[at, rollout.ids], atol=2e-5)
        logq = score.support - score.log_z[:, None]
        assert np.allclose(logq, np.take_along_axis(exact, rollout.topk_ids, 1), atol=2e-5)
        without = direct_logp(models.own.lm, rollout.prompt.ids, rollout.ids)
        assert abs(exact - without).max() > 0.01
    assert min(lengths) >= 2


@pytest.mark.parametrize(("weights", "lora"), everyday(KINDS, len(KINDS) - 1))
def test_two_and_two_steps_are_four(tmp_path, weights, lora):
    data = self_run(tmp_path / "a", weights=weights, lora=lora)
    run_to_end(data)
    halves = self_run(tmp_path / "b", weights=weights, lora=lora, steps=2)
    run_to_end(halves)
    halves["train"]["steps"] = 4
    run_to_end(halves, resume=True)
    whole, parts = digest(tmp_path / "a"), digest(tmp_path / "b")
    assert whole == parts
    kept = [name for name in whole if name.endswith("teacher.safetensors")]
    assert bool(kept) == (weights == "ema")


def test_a_damaged_average_would_show(tmp_path):
    """The resumed run reads the average from the checkpoint: another one gives another run."""
    data = self_run(tmp_path / "run", weights="ema", steps=2)
    run_to_end(data)
    data["train"]["steps"] = 4
    session, _ = open_run(data, resume=True)
    session.resume()
    own = session.learner.own_teacher
    student = session.learner.student.weights()
    assert any(not torch.equal(own.average[n], student[n]) for n in student)
    session.folder.close()


def test_the_average_moves_by_its_decay_and_scores_with_its_own_weights(make_lm):
    student = make_lm()
    own = SelfWeights.averaging(student, 0.75)
    before = {n: w.detach().clone() for n, w in student.weights().items()}
    with torch.no_grad():
        for weight in student.weights().values():
            weight.add_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)))
    after = {n: w.detach().clone() for n, w in student.weights().items()}
    own.follow()
    for name in before:
        expected = 0.75 * before[name] + 0.25 * after[name]
        assert torch.allclose(own.average[name], expected, atol=1e-6)
    rollout = Rollout.of_ids([3, 4, 5], np.array([6, 7, 8], np.int32))
    teacher = StudentAsTeacher(own)
    got = teacher.score([rollout], Want(sampled=True, full=[np.arange(3)]))[0]
    assert all(torch.equal(w, after[n]) for n, w in student.weights().items())
    copy = make_lm()
    with torch.no_grad():
        for name, weight in copy.weights().items():
            weight.copy_(own.average[name])
    exact = direct_logp(copy, rollout.prompt.ids, rollout.ids)
    assert np.allclose(got.sampled, exact[np.arange(3), rollout.ids], atol=1e-5)
    logits = own.head.logits(got.hidden).double()
    assert np.allclose(torch.log_softmax(logits, -1).detach().cpu().numpy(), exact, atol=1e-5)


def test_frozen_under_adapters_is_the_base_and_shares_its_memory(make_lm):
    base = make_lm()
    exact = direct_logp(base, [3, 4], np.array([5, 6], np.int32))
    student = add_lora(base, rank=2, alpha=4.0, target_modules="all-linear", seed=0)
    with torch.no_grad():
        for name, weight in student.weights().items():
            weight.add_(0.3 if "lora_B" in name else 0.0)
    own = SelfWeights(student, "frozen")
    teacher = StudentAsTeacher(own)
    rollout = Rollout.of_ids([3, 4], np.array([5, 6], np.int32))
    got = teacher.score([rollout], Want(sampled=True))[0]
    assert np.allclose(got.sampled, exact[np.arange(2), rollout.ids], atol=1e-5)
    trained = direct_logp(student, [3, 4], rollout.ids)
    assert abs(trained - exact).max() > 1e-3  # adapters are on again
    assert all(p.requires_grad for p in student.weights().values())
    assert own.lm is student
    assert not own.average


def test_live_without_a_hint_would_be_a_loss_of_nothing_and_is_refused(tmp_path):
    data = self_run(tmp_path / "run", weights="live")
    del data["teacher"]["prompt"]
    with pytest.raises(UserError, match="is the student itself: the loss is 0"):
        config.parse(data)


def refused(data, match):
    with pytest.raises(UserError, match=match):
        read_inputs(config.parse(data), Console("quiet"))


def test_bad_hints_are_named(tmp_path):
    data = self_run(tmp_path / "run")
    for prompt, match in (
        ("{prompt} {hint}", r"teacher\.prompt: \{hint\} is no column of .*It has answer, "),
        ("Reference: {answer}", r"does not say where the student's own message goes"),
        ("{prompt}" * 40, r"line 1: with teacher\.prompt the teacher's prompt has \d+ tokens, and"),
    ):
        data["teacher"]["prompt"] = prompt
        refused(data, match)
    data["teacher"]["prompt"] = "{prompt} {answer}"
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "sum pig gnu jay", "answer": "1"}\n{"prompt": "sum pig gnu ox"}\n')
    data["prompts"]["path"] = str(path)
    refused(data, r"rows\.jsonl, line 2: teacher\.prompt needs text for \{answer\}")


def test_text_of_a_row_is_no_template(tmp_path):
    data = self_run(tmp_path / "run")
    path = tmp_path / "rows.jsonl"
    rows = [{"prompt": "sum pig {answer} jay", "answer": "{prompt}"}]
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    data["prompts"]["path"] = str(path)
    inputs = read_inputs(config.parse(data), Console("quiet"))
    assert inputs.teacher_prompts["teacher.prompt"].texts[0] == "sum pig {answer} jay ANS {prompt}"


def test_another_hint_is_another_run(tmp_path):
    data = self_run(tmp_path / "run", steps=2)
    run_to_end(data)
    path = Path(data["prompts"]["path"])
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows[0]["answer"] = "7"
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    data["train"]["steps"] = 3
    with pytest.raises(UserError, match=r"teacher\.prompt"):
        run_to_end(data, resume=True)


def test_an_ordinary_teacher_may_see_more_too(tmp_path):
    data = run_config(tmp_path / "run", steps=2)
    data["teacher"]["prompt"] = HINT
    data["eval"] = []
    run_to_end(data)
    rows = [r for r in read_jsonl(tmp_path / "run" / "metrics.jsonl") if "train/loss" in r]
    assert len(rows) == 2
    plain = run_config(tmp_path / "plain" / "run", steps=2) | {"eval": []}
    run_to_end(plain)
    other = [r for r in read_jsonl(tmp_path / "plain/run/metrics.jsonl") if "train/loss" in r]
    assert rows[0]["train/loss"] != other[0]["train/loss"]


def test_the_frozen_copy_is_what_the_run_began_with(tmp_path):
    data = self_run(tmp_path / "run")
    models = open_models(config.parse(data), Console("quiet")).with_own_weights()
    original = load_lm(data["student"]["model"])
    assert all(
        torch.equal(a, b)
        for a, b in zip(models.own.lm.model.parameters(), original.model.parameters(), strict=True)
    )
    assert models.own.lm.model is not models.pair.student.model
    assert models.own.lm.vocab == models.pair.student.vocab


def quotes_of(view: str, hint: str) -> HintQuotes:
    text = view.replace("{prompt}", "Add 2 and 3.").replace("{hint}", hint)
    seen = TeacherPrompts({0: (1, 2)}, {0: text}, "teacher.prompt", "")
    return HintQuotes.of(seen, view)


LONG = "first add the units then carry the ten to the next column and add again"


@pytest.mark.parametrize(
    ("completion", "quoted"),
    [
        ("The sum is 5.", False),
        ("As the reference answer says, 5.", True),
        ("We first add the units then carry the ten, so 5.", True),
        ("First add the units, so 5.", False),
        ("Add 2 and 3. The sum of 2 and 3 is 5, and that is all of it.", False),
    ],
)
def test_quotations_of_the_hint_are_found(completion, quoted):
    finder = quotes_of("{prompt}\n\nReference answer: {hint}", LONG)
    rollout = Rollout.of_ids(Prompt(0, (1,), "Add 2 and 3."), np.arange(6, dtype=np.int32))
    assert finder.find(rollout, completion) is quoted


def test_an_answer_that_is_found_is_no_quotation():
    finder = quotes_of("{prompt} ({hint})", "42")
    rollout = Rollout.of_ids(Prompt(0, (1,), "Add 2 and 3."), np.arange(6, dtype=np.int32))
    assert not finder.find(rollout, "So it is 42")


def test_alike_responses_have_few_distinct_ngrams():
    prompt = Prompt(0, (1,), "x")
    ids = [np.arange(8, dtype=np.int32), np.arange(8, dtype=np.int32)]
    rollouts = [Rollout.of_ids(prompt, x) for x in ids]
    metrics = hint_metrics(rollouts, np.array([True, False]))
    assert metrics["rollout/distinct"].value == 0.5
    assert metrics["rollout/hint_quoted"].value == 0.5
    other = [rollouts[0], Rollout.of_ids(prompt, np.arange(20, 28, dtype=np.int32))]
    assert hint_metrics(other, np.zeros(2))["rollout/distinct"].value == 1.0


def test_the_metrics_of_a_hint_are_logged_with_a_hint_alone(tmp_path):
    data = self_run(tmp_path / "run", steps=1)
    data["teacher"]["prompt"] = "{prompt} ANSW {answer}"
    run_to_end(data)
    row = next(r for r in read_jsonl(tmp_path / "run/metrics.jsonl") if "train/loss" in r)
    assert 0 <= row["rollout/hint_quoted"] <= 1
    assert 0 < row["rollout/distinct"] <= 1


@pytest.mark.slow
def test_an_average_of_master_weights_survives_a_resume(tmp_path):
    def data(folder, steps):
        made = self_run(folder, weights="ema", steps=steps, optim={"lr": 0.005, "offload": "cpu"})
        made["student"]["precision"] = "bf16_mixed"
        return made

    run_to_end(data(tmp_path / "a", 4))
    run_to_end(data(tmp_path / "b", 2))
    run_to_end(data(tmp_path / "b", 4), resume=True)
    assert digest(tmp_path / "a") == digest(tmp_path / "b")
    session, _ = open_run(data(tmp_path / "c", 1))
    own = session.learner.own_teacher
    assert all(x.dtype == torch.float32 for x in own.average.values())
    before = {n: p.data_ptr() for n, p in own.lm.parameters().items()}
    with own.in_place():
        assert {p.dtype for p in own.lm.parameters().values()} == {torch.bfloat16}
    assert {n: p.data_ptr() for n, p in own.lm.parameters().items()} == before
    session.folder.close()
