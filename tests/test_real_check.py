"""`opd check` with the real vLLM as teacher: the verdict is that of the same teacher in process.

`make test-vllm` runs it. Student and teacher are the demo's, and SmolLM2 with itself after
fine-tuning on a task (`opd_lab.pairs.real`). Variables: OPD_CHECK_BUDGET, seconds of each check of
the demo; OPD_CHECK_PROMPTS, of SmolLM2; OPD_REAL_PAIRS, a folder that keeps the fine-tuned model.
"""

from __future__ import annotations

import gc
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from opd import config
from opd.commands.check import run_check
from opd.commands.check.candidates import load_candidate
from opd.commands.check.result import TeacherResult
from opd.commands.check.rounds import make_probe_config, student_model
from opd.data.graders import grader_for
from opd.demo.run_config import PAIR, demo_config
from opd.recipes.check.features import compute_features
from opd.recipes.check.forecast import predict
from opd.recipes.check.forecast_model import load_model
from opd.recipes.check.probe import (
    ProbeModel,
    ServedTeacher,
    probe_server,
    probe_student,
    probe_teacher,
)
from opd.recipes.check.settings import RunSettings
from opd.recipes.check.verdict import judge
from opd.run.console import Console
from opd.setup.launch import start_servers
from opd.setup.prompts import load_training_prompts
from opd_lab.pairs.real import RealRun, configure_real
from support.real_vllm import report
from support.wide_heads import widen_heads

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(5400),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.skipif(
        "OPD_VLLM_PYTHON" not in os.environ or "OPD_SMOLLM2" not in os.environ,
        reason="`make test-vllm` sets OPD_VLLM_PYTHON and OPD_SMOLLM2",
    ),
]
BUDGET = float(os.environ.get("OPD_CHECK_BUDGET", "180"))
PROMPTS = int(os.environ.get("OPD_CHECK_PROMPTS", "32"))
SAME = ("teacher_accuracy", "student_accuracy", "gap", "continuation_gain")


@pytest.fixture(autouse=True)
def collected():
    """A check leaves its connections to the garbage collector, which warns of them."""
    yield
    gc.collect()


def smollm2(folder: Path) -> dict[str, Any]:
    """SmolLM2, taught to sort by itself after fine-tuning."""
    cache = Path(os.environ.get("OPD_REAL_PAIRS", folder / "cache"))
    pair = RealRun(0, "sort", ("smollm2", "base"), ("smollm2", "right"))
    cfg, _ = configure_real(pair, cache, folder / "run")
    return cfg.model_dump(mode="json", exclude_unset=True)


def served(teacher: dict[str, Any]) -> dict[str, Any]:
    """A teacher section with the same model behind vLLM."""
    options = {"dtype": teacher.get("dtype", "float32"), "enforce-eager": True}
    launch = {"python": os.environ["OPD_VLLM_PYTHON"], "args": options}
    return {"model": teacher["model"], "launch": launch}


def judge_run(data: dict[str, Any], file: Path) -> TeacherResult:
    """Check a run."""
    file.write_text(yaml.safe_dump(data))
    began = time.monotonic()
    result = run_check(file, (), budget=BUDGET)
    report(f"  {time.monotonic() - began:.0f} s, of them {result.seconds:.0f} of the budget")
    return result.best


def show(name: str, estimates: list) -> None:
    """A row of the table."""
    cells = [f"{e.value:+.3f} ({e.low:+.3f} to {e.high:+.3f})" for e in estimates]
    report(f"  {name:<18} {'   '.join(cells)}")


def compare(here: dict, there: dict, verdicts: tuple, changes: tuple) -> None:
    """Show both ways side by side, and hold them against each other."""
    report(f"  verdict: in this process {verdicts[0]}, behind vLLM {verdicts[1]}")
    for name in (*SAME, "reverse_kl"):
        show(name, [here[name], there[name]])
    show("predicted change", list(changes))
    assert verdicts[0] == verdicts[1]
    for name in SAME:
        a, b = here[name], there[name]
        spread = ((a.high - a.low) ** 2 + (b.high - b.low) ** 2) ** 0.5 / 2
        assert abs(a.value - b.value) <= max(spread, 0.05), name


def test_a_check_of_the_demo_has_the_verdict_of_the_same_teacher_here(tmp_path, monkeypatch):
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    data = demo_config(tmp_path / "run")
    # Other than `opd serve-teacher`, vLLM on a CPU does not score the student's own top tokens.
    data["loss"] |= {"support": "teacher_topk"}
    # The demo's own heads are too small for vLLM's CPU build.
    teacher = {"model": str(widen_heads(PAIR / "teacher", tmp_path / "wide"))}
    here = judge_run(data, tmp_path / "here.yaml")
    there = judge_run(data | {"teacher": served(teacher)}, tmp_path / "there.yaml")
    if "pilot_steps" in there.features:  # a busy machine has no time for one
        assert "pilot_kl_drop" in there.features
    compare(
        here.features,
        there.features,
        (here.verdict, there.verdict),
        (here.forecast.change, there.forecast.change),
    )


def test_smollm2_is_judged_as_with_the_same_teacher_here(tmp_path, monkeypatch):
    """Both teachers score and continue the same rollouts of the student; without a pilot."""
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    data = smollm2(tmp_path)
    data["loss"] = {"support": "teacher_topk"}
    cfg = config.parse(data)
    away = config.parse(data | {"teacher": served(data["teacher"])})
    quiet = Console("quiet")
    local = load_candidate(cfg, "here", None, tmp_path)
    training = load_training_prompts(cfg, local.pair, quiet)
    prompts = training.prompts[:PROMPTS]
    began = time.monotonic()
    with grader_for(training.prompts, cfg.prompts.grader) as grader, torch.no_grad():
        settings = replace(make_probe_config(cfg, local.pair, grader), n=2, m=1, greedy=False)
        student = student_model(local)
        side = probe_student(student, prompts, settings)
        report(f"  {PROMPTS} prompts, the student: {time.monotonic() - began:.0f} s")
        began = time.monotonic()
        teacher = ProbeModel(local.pair.teacher, local.pair.teacher_stop)
        ours = probe_teacher(teacher, student, side, settings)
        report(f"  the teacher in this process: {time.monotonic() - began:.0f} s")
        with start_servers([away], Console("plain"), tmp_path / "check"):
            remote = load_candidate(away, "there", local.pair.student, tmp_path)
            began = time.monotonic()
            server = ServedTeacher(remote.server, remote.teacher_samplers)
            theirs = probe_server(server, student, side, settings)
            report(f"  behind vLLM: {time.monotonic() - began:.0f} s")
    here, there = (compute_features(side, each) for each in (ours, theirs))
    run = RunSettings.of_run(cfg, local.pair.student)
    forecasts = [predict(load_model(), features, run) for features in (here, there)]
    verdicts = tuple(judge(f, x) for f, x in zip(forecasts, (here, there), strict=True))
    compare(here, there, verdicts, tuple(f.change for f in forecasts))
