"""One boot sequence: every command accepts the teacher and the loss that `opd train` accepts."""

from __future__ import annotations

from functools import partial

import pytest

from opd import config
from opd.commands.select import run_select
from opd.commands.verify import run_verify
from opd.http import Http
from opd.models.lm import load_lm
from opd.models.tokenizers import load_tokenizer
from opd.run.console import Console
from opd.setup import remote_teacher
from opd.setup.models import open_models
from opd.teachers.vllm_api import VllmDialect
from opd.testing import FakeVllmServer, model_logp
from support.runs import short_demo


def vllm_of(path: str) -> FakeVllmServer:
    """A vLLM server of a model on disk, in memory."""
    lm, tokenizer = load_lm(path), load_tokenizer(path)
    encode = partial(tokenizer.encode, add_special_tokens=False)
    return FakeVllmServer(model_logp(lm), "demo", max_len=lm.context_length, tokenize=encode)


@pytest.fixture
def stock_vllm(monkeypatch, tmp_path):
    """The demo with its teacher behind a vLLM server that cannot score student-chosen tokens."""
    data = short_demo(tmp_path / "run")
    server = vllm_of(data["teacher"]["model"])
    monkeypatch.setattr(remote_teacher, "Http", partial(Http, transport=server))
    monkeypatch.setattr(remote_teacher.ServedTeacher, "generates", False)
    monkeypatch.setattr(remote_teacher, "VllmDialect", partial(VllmDialect, probe_support=False))
    local = data["teacher"]["model"]
    data["teacher"] = {"url": "http://127.0.0.1:9/v1", "model": "demo"}
    data["loss"] |= {"support": "auto"}
    data["train"] |= {"steps": 1, "prompts_per_step": 4}
    data["eval"] = []
    return data, local


def test_a_loss_that_the_teacher_decides_is_settled_before_anything_is_made(stock_vllm, capsys):
    data, _ = stock_vllm
    models = open_models(config.parse(data), Console("plain"))
    assert (models.cfg.loss.support, models.objective.mode) == ("teacher_topk", "tail")
    assert "loss.support=auto" in capsys.readouterr().out


def test_select_settles_the_loss_as_training_does(stock_vllm, tmp_path):
    data, _ = stock_vllm
    data["select"] = {"output": str(tmp_path / "chosen.jsonl"), "limit": 8, "n": 2}
    record = run_select(config.parse(data))
    assert record["output"] == str(tmp_path / "chosen.jsonl")


def test_verify_settles_the_loss_as_training_does(stock_vllm):
    data, local = stock_vllm
    assert run_verify(config.parse(data), local=local)
