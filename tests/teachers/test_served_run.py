"""Whole runs of the demo pair with its teacher behind a server, behind a cache, or gone."""

from __future__ import annotations

import json
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from opd import config
from opd.commands.score import score_ahead
from opd.demo.run_config import demo_config
from opd.errors import UserError
from opd.models import tokenizers
from opd.models.lm import load_lm
from opd.recipes.distillation import distill
from opd.run.jsonl import read_jsonl
from opd.teachers.remote import TeacherDown
from opd.teachers.scoring_server import Scorer, TeacherServer, make_app
from support.runs import open_run, shorten_prompts
from support.servers import running

TOKEN = "token-of-the-demo"
# One float32 forward batched another way; the update follows it.
SAME = 2e-4


def demo(folder: Path, **sections) -> dict:
    data = demo_config(folder)
    shorten_prompts(data, 100)
    data["train"] |= {"steps": 3, "prompts_per_step": 4}
    data["output"] |= {"save_every": 2}
    data["eval"] = []
    for name, values in sections.items():
        data[name] = data[name] | values
    return data


def run(data: dict, *, resume: bool = False) -> None:
    session, completions = open_run(data, resume=resume)
    try:
        distill(session, completions)
    finally:
        session.folder.close()
        if data["teacher"].get("url"):
            session.source.teacher.dialect.http.close()


class Served:
    """The demo's teacher on loopback, to be stopped and started on one port."""

    def __init__(self) -> None:
        path = demo_config(Path("unused"))["teacher"]["model"]
        self.tokenizer = tokenizers.load_tokenizer(path)
        lm = load_lm(path)
        self.lm = replace(lm, vocab=tokenizers.vocab_size(self.tokenizer))
        self.port = 0
        self.start()

    def start(self, lm=None) -> None:
        eos = sorted(tokenizers.eos_ids(self.tokenizer, self.lm.causal.generation_config))
        scorer = Scorer(lm or self.lm)
        app = make_app(lm or self.lm, self.tokenizer, token=TOKEN, eos=eos, scorer=scorer)
        self._running = ExitStack()
        self.port = self._running.enter_context(running(TeacherServer(app, "127.0.0.1", self.port)))

    def stop(self) -> None:
        self._running.close()

    def section(self, **more) -> dict:
        url = f"http://127.0.0.1:{self.port}/v1"
        named = {"url": url, "model": "demo-teacher", "api_key_env": "DEMO_TEACHER_KEY"}
        return named | {"patience": 0} | more


@pytest.fixture
def served(monkeypatch):
    monkeypatch.setenv("DEMO_TEACHER_KEY", TOKEN)
    teacher = Served()
    yield teacher
    teacher.stop()


def metrics(folder: Path) -> list[dict]:
    return read_jsonl(folder / "metrics.jsonl")


def test_a_served_teacher_teaches_what_the_local_one_does(tmp_path, served):
    run(demo(tmp_path / "local"))
    data = demo(tmp_path / "served")
    data["teacher"] = served.section()
    run(data)
    local, far = metrics(tmp_path / "local"), metrics(tmp_path / "served")
    shared = {
        "train/loss",
        "train/grad_norm",
        "diag/overlap_ratio",
        "diag/overlap_mass_teacher",
        "diag/teacher_entropy",
        "diag/entropy_gap_abs",
        "drift/logp_gap",
    }
    for mine, theirs in zip(local, far, strict=True):
        for name in shared:
            assert theirs[name] == pytest.approx(mine[name], abs=SAME), name
        assert "diag/reverse_kl" not in theirs
        assert theirs["bound/reverse_kl_lower"] <= mine["diag/reverse_kl"] + SAME
    times = read_jsonl(tmp_path / "served" / "timings.jsonl")
    assert all(t["teacher/bytes_received_per_token"] > 0 for t in times)
    remembered = json.loads((tmp_path / "served" / "teacher.json").read_text())
    assert {p["name"] for p in remembered["probes"]} >= {"model", "tokenizer", "signal", "noise"}
    assert TOKEN not in "".join(
        p.read_text("utf-8", "replace") for p in (tmp_path / "served").rglob("*.json*")
    )


@pytest.mark.slow
def test_a_teacher_that_goes_away_and_comes_back_changes_nothing(tmp_path, served):
    straight, broken = demo(tmp_path / "straight"), demo(tmp_path / "broken")
    for data in (straight, broken):
        data["teacher"] = served.section()
    run(straight)
    session, completions = open_run(broken)
    asked = session.source.teacher.score

    def gone_in_step_two(rollouts, want):
        if rollouts[0].version == 1:
            served.stop()
        return asked(rollouts, want)

    session.source.teacher.score = gone_in_step_two
    with pytest.raises(TeacherDown, match="--resume"):
        distill(session, completions)
    session.folder.close()
    session.source.teacher.dialect.http.close()
    assert (tmp_path / "broken" / "checkpoints" / "step-1").is_dir()
    served.start()
    run(broken, resume=True)
    before, after = metrics(tmp_path / "straight"), metrics(tmp_path / "broken")
    assert [m["train/loss"] for m in after] == pytest.approx(
        [m["train/loss"] for m in before], abs=SAME
    )


def test_another_teacher_behind_the_address_is_not_resumed_with(tmp_path, served):
    data = demo(tmp_path / "run", train={"steps": 1, "prompts_per_step": 2})
    data["teacher"] = served.section()
    run(data)
    student = load_lm(demo_config(tmp_path)["student"]["model"])
    served.stop()
    served.start(replace(student, vocab=served.lm.vocab))
    data["train"]["steps"] = 2
    with pytest.raises(UserError, match=r"Another teacher|not fit"):
        run(data, resume=True)


def test_scores_made_ahead_train_like_a_teacher_that_is_there(tmp_path):
    run(demo(tmp_path / "live", output={"rollout_sample": 10**6}))
    data = demo(tmp_path / "offline")
    data["teacher"] |= {"cache": {"dir": str(tmp_path / "cache"), "offline": True}}
    data["rollout"] |= {"path": str(tmp_path / "live" / "rollouts")}
    cfg = config.parse(data)
    scored, known = score_ahead(cfg, tmp_path / "live" / "rollouts")
    assert (scored, known) == (scored, 0)
    assert score_ahead(cfg, tmp_path / "live" / "rollouts") == (scored, scored)
    data["train"]["steps"] = 1
    run(data)
    (first,) = metrics(tmp_path / "offline")
    assert first["train/loss"] == pytest.approx(
        metrics(tmp_path / "live")[0]["train/loss"], abs=SAME
    )
    (timing,) = read_jsonl(tmp_path / "offline" / "timings.jsonl")
    assert timing["teacher/cache_hits"] == 1.0


def test_a_cache_pays_for_nothing_twice(tmp_path, served):
    for name in ("first", "second"):
        data = demo(tmp_path / name)
        data["teacher"] = served.section(cache={"dir": str(tmp_path / "cache")})
        session, completions = open_run(data)
        distill(session, completions)
        session.folder.close()
        session.source.teacher.teacher.dialect.http.close()
    assert (tmp_path / "first" / "metrics.jsonl").read_bytes() == (
        tmp_path / "second" / "metrics.jsonl"
    ).read_bytes()
    hits = [t["teacher/cache_hits"] for t in read_jsonl(tmp_path / "second" / "timings.jsonl")]
    assert np.allclose(hits, 1.0)
