"""`opd check` with the real vLLM as teacher: the verdict is that of the same teacher in process.

`make test-vllm` runs it. Student and teacher are the demo's, and SmolLM2 with itself after
fine-tuning on a task (`opd_lab.pairs.real`). Variables: OPD_CHECK_BUDGET, seconds of each check;
OPD_REAL_PAIRS, a folder that keeps the fine-tuned model.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from opd.commands.check import run_check
from opd.commands.check.result import TeacherResult
from opd.demo.run_config import PAIR, demo_config
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
SAME = ("teacher_accuracy", "student_accuracy", "gap", "continuation_gain")


def demo(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The demo's pair, and its teacher as vLLM's CPU build can run it."""
    wide = widen_heads(PAIR / "teacher", folder / "wide")
    return demo_config(folder / "run"), {"model": str(wide)}


def smollm2(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """SmolLM2, taught to sort by itself after fine-tuning; and that teacher."""
    cache = Path(os.environ.get("OPD_REAL_PAIRS", folder / "cache"))
    pair = RealRun(0, "sort", ("smollm2", "base"), ("smollm2", "right"))
    cfg, _ = configure_real(pair, cache, folder / "run")
    data = cfg.model_dump(mode="json", exclude_unset=True)
    data["train"] |= {"tokens_per_microbatch": 1024}
    return data, data["teacher"]


def served(teacher: dict[str, Any]) -> dict[str, Any]:
    """A teacher section with the same model behind vLLM."""
    options = {"dtype": teacher.get("dtype", "float32"), "enforce-eager": True}
    launch = {"python": os.environ["OPD_VLLM_PYTHON"], "args": options}
    return {"model": teacher["model"], "launch": launch}


def judge(data: dict[str, Any], file: Path) -> TeacherResult:
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


@pytest.mark.parametrize("pair", [demo, smollm2], ids=["demo", "smollm2"])
def test_a_served_teacher_gets_the_verdict_of_the_same_one_here(pair, tmp_path, monkeypatch):
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    data, teacher = pair(tmp_path)
    # Other than `opd serve-teacher`, vLLM on a CPU does not score the student's own top tokens.
    data["loss"] = data.get("loss", {}) | {"support": "teacher_topk"}
    here = judge(data, tmp_path / "here.yaml")
    there = judge(data | {"teacher": served(teacher)}, tmp_path / "there.yaml")
    report(f"  verdict: in this process {here.verdict}, behind vLLM {there.verdict}")
    for name in SAME:
        show(name, [here.features[name], there.features[name]])
    show("predicted change", [here.forecast.change, there.forecast.change])
    assert there.verdict == here.verdict
    for name in SAME:
        a, b = here.features[name], there.features[name]
        spread = ((a.high - a.low) ** 2 + (b.high - b.low) ** 2) ** 0.5 / 2
        assert abs(a.value - b.value) <= max(spread, 0.05), name
