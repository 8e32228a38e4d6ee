"""A run whose student and teacher are behind servers: every command asks them, and agrees."""

from __future__ import annotations

import json
import re
import threading
from contextlib import ExitStack
from functools import partial

import pytest
import yaml

from opd.commands.check import rounds, run_check
from opd.commands.eval import evaluate_target
from opd.commands.select import run_select
from opd.config import load, parse
from opd.demo.run_config import PAIR
from opd.errors import UserError
from opd.models.lm import load_lm
from opd.models.tokenizers import load_tokenizer
from opd.recipes.distillation import distill
from opd.run.console import Console
from opd.run.jsonl import read_jsonl
from opd.run.rollouts import read_step
from opd.samplers.completions import ServerLost
from opd.samplers.hf import HFSampler
from opd.setup.preflight import read_inputs
from opd.testing import (
    FakeSglangServer,
    FakeVllmServer,
    letter_model,
    load_weights_for,
    model_logp,
    serve_on_loopback,
)
from support.runs import digest, opened, run_config, run_to_end, shorten_prompts


def served(role: str) -> FakeVllmServer:
    """A model of the demo's pair behind vLLM's API; it takes the student's weights."""
    lm, tokenizer = load_lm(str(PAIR / role), dtype="float32"), load_tokenizer(str(PAIR / role))
    return FakeVllmServer(
        model_logp(lm),
        role,
        max_len=lm.context_length,
        tokenize=partial(tokenizer.encode, add_special_tokens=False),
        scores_chosen_ids=True,
        load=load_weights_for(lm),
    )


@pytest.fixture
def servers(tmp_path):
    """Both models on loopback, and a run of them."""
    student, teacher = served("student"), served("teacher")
    with ExitStack() as stack:
        urls = [stack.enter_context(serve_on_loopback(server)) for server in (student, teacher)]
        data = run_config(tmp_path / "run", steps=2)
        shorten_prompts(data, 400)
        data["rollout"] |= {"url": urls[0], "model": "student"}
        data["teacher"] = {"url": urls[1], "model": "teacher"}
        data["train"] |= {"prompts_per_step": 2}
        data["eval"] = [e | {"limit": 4, "every": 1} for e in data["eval"][:1]]
        yield student, teacher, data


@pytest.fixture
def nothing_in_process(monkeypatch):
    def refuse(self, *args, **kwargs):
        raise AssertionError(f"{self.lm.name} samples in this process")

    monkeypatch.setattr(HFSampler, "sample", refuse)


def asked(server) -> list[dict]:
    return [body for path, body in server.calls if path == "/v1/completions" and "n" in body]


def test_a_run_trains_and_evaluates_on_its_servers(servers, nothing_in_process, tmp_path, capsys):
    student, teacher, data = servers
    summary = run_to_end(data)
    (accuracies,) = summary["sets"].values()
    assert set(accuracies) >= {"before", "after", "teacher"}
    assert len(asked(teacher)) == 4  # its accuracy, a request a prompt
    assert len(asked(student)) == 2 * 2 + 3 * 4  # rollouts of two steps; three evaluations
    lines = read_jsonl(tmp_path / "run" / "metrics.jsonl")
    drifts = [line["drift/logp_gap"] for line in lines if "drift/logp_gap" in line]
    assert len(drifts) == 2
    assert max(drifts) < 1e-4
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump(data))
    capsys.readouterr()
    evaluate_target(file, [], "plain")
    shown = capsys.readouterr().out
    assert "student" in shown
    assert "teacher" in shown
    select = {"output": str(tmp_path / "chosen.jsonl"), "limit": 4, "n": 2}
    file.write_text(yaml.safe_dump(data | {"select": select}))
    record = run_select(load(file, []))
    assert record["output"] == select["output"]


def test_scoring_begins_before_sampling_ends_and_changes_no_bit(servers, tmp_path):
    student, teacher, data = servers
    data["eval"] = []
    data["train"] |= {"steps": 2, "prompts_per_step": 3}
    log: list[str] = []

    def note(name):
        def look(server, request):
            body = json.loads(request.content or b"{}")
            if "n" in body or "sampling_params" in body:
                log.append(name)

        return look

    student.fault, teacher.fault = note("s"), note("t")
    with opened(data) as (session, completions):
        session.source.sampler.sampler.server.concurrency = 1  # one prompt after the other
        distill(session, completions)
    early = "".join(log)
    log.clear()
    data["output"]["dir"] = str(tmp_path / "plain")
    with opened(data) as (session, completions):
        session.source.sampler.sampler.server.concurrency = 1
        session.source.sampler.arrived = None
        distill(session, completions)
    plain = "".join(log)
    assert sorted(early) == sorted(plain)  # nothing is asked twice
    assert re.search("st+s", early[early.index("s") :])
    assert plain[plain.index("s") :].startswith("ssst")
    assert digest(tmp_path / "run") == digest(tmp_path / "plain")


@pytest.mark.slow
def test_a_check_of_served_models_has_the_verdict_of_the_same_ones_here(
    servers, nothing_in_process, monkeypatch, tmp_path
):
    """Answers, continuations and pilot by the servers; the teacher's answers are as good."""
    monkeypatch.setattr(rounds, "MAX_PROMPTS", 32)
    _, _, data = servers
    data["train"] |= {"steps": 80, "prompts_per_step": 8}
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump(data))
    there = run_check(file, ()).best
    monkeypatch.undo()
    monkeypatch.setattr(rounds, "MAX_PROMPTS", 32)
    local = {k: v for k, v in data["rollout"].items() if k not in ("url", "model")}
    data |= {"rollout": local, "teacher": {"model": str(PAIR / "teacher")}}
    file.write_text(yaml.safe_dump(data))
    here = run_check(file, ()).best
    assert there.verdict == here.verdict == "go"
    for name in ("teacher_accuracy", "student_accuracy", "gap", "continuation_gain", "reverse_kl"):
        a, b = there.features[name], here.features[name]
        spread = (a.high - a.low + b.high - b.low) / 2
        assert abs(a.value - b.value) <= max(spread, 0.05), name


@pytest.mark.slow
def test_a_check_keeps_its_budget_where_a_server_hangs(servers, tmp_path, capsys):
    """Its teacher answers everything until the probe has begun, and nothing after that."""
    _, teacher, data = servers
    never, generated = threading.Event(), []

    def hang(server, request):
        if "n" in json.loads(request.content or b"{}"):
            generated.append(1)
            if len(generated) > 2:  # those that time the server
                never.wait(60)

    teacher.fault = hang
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump(data))
    result = run_check(file, (), budget=30.0)
    never.set()
    assert result.seconds < 40
    assert len(generated) > 2
    assert "ended by the budget of 30 s" in " ".join(result.limitations)
    assert re.search(r"[123]\d of 30 s: probe", capsys.readouterr().err)


@pytest.mark.slow
def test_a_server_samples_the_next_step_while_this_one_is_scored(servers, caplog):
    """And where it goes away meanwhile, the next step is sampled by the weights after this one."""
    student, teacher, data = servers
    data["eval"] = []
    data["train"] |= {"steps": 3}
    data["rollout"] |= {"ahead": 1, "n": 2}
    data["output"] |= {"rollout_sample": 4}
    asked_for, scored = [], []
    started = threading.Event()

    def look(server, request):
        body = json.loads(request.content or b"{}")
        if "n" in body:
            asked_for.append(server.weight_version)
            if len(asked_for) == 3:  # the first of step 2
                started.set()

    def hold(server, request):
        body = json.loads(request.content or b"{}")
        if "sampling_params" in body or "prompt_logprobs" in body:
            scored.append(started.wait(30))

    student.fault = look
    with opened(data) as (session, completions):
        begin = session.ahead.begin

        def begin_or_lose(step, limit):
            if step == 2:
                session.ahead.source.sampler.sample_once = lose
            begin(step, limit)

        def lose(*args, **options):
            raise ServerLost("gone")

        session.ahead.begin = begin_or_lose
        teacher.fault = hold
        distill(session, completions)
    assert all(scored)
    assert asked_for == ["0", "0", "0", "0", "2", "2"]
    folder = session.folder.path / "rollouts"
    versions = [{r.version for r in read_step(folder / f"step-{n}.parquet")[0]} for n in (1, 2, 3)]
    assert versions == [{0}, {0}, {2}]
    assert "sampled after the update" in caplog.text
    lines = read_jsonl(session.folder.path / "metrics.jsonl")
    assert [line["ahead/steps"] for line in lines] == [0, 1, 0]


@pytest.mark.parametrize("speaks", [FakeVllmServer, FakeSglangServer])
def test_a_rollout_server_of_too_short_a_context_is_refused_before_anything_is_sampled(
    tmp_path, speaks
):
    """The server refused the first long prompt, in the middle of the run or of the check."""
    data = run_config(tmp_path / "run", steps=2)
    longest = max(len(p.ids) for p in read_inputs(parse(data), Console("quiet")).prompts.prompts)
    model = speaks(letter_model(0), "student", max_len=longest + 30)
    data["eval"] = [e | {"max_new_tokens": 50} for e in data["eval"][:1]]
    with serve_on_loopback(model) as url:
        data["rollout"] |= {"url": url, "model": "student", "max_new_tokens": 48}
        with pytest.raises(UserError) as refused:
            read_inputs(parse(data), Console("quiet"))
        text = str(refused.value)
        room = longest + (30 if speaks is FakeVllmServer else 28)
        assert f"rollout.max_new_tokens=48 has {longest + 48} tokens" in text
        assert f"at most {room}" in text
        for word in ("rollout.url", "rollout.max_new_tokens=48", "eval.0.max_new_tokens=50"):
            assert word in text
        assert ("--max-model-len" if speaks is FakeVllmServer else "--context-length") in text
        (tmp_path / "run.yaml").write_text(yaml.safe_dump(data))
        with pytest.raises(UserError, match="at most"):
            run_check(tmp_path / "run.yaml", ())
        asked_for_text = [path for path, _ in model.calls if "generate" in path or "comp" in path]
        assert not asked_for_text
        for said in (longest + 62, 0, -1, "60", 60.0, True, None):
            model.max_len = said
            read_inputs(parse(data), Console("quiet"))
