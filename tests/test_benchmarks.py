"""Our sides of the benchmarks run, on tiny shapes; the others need environments of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def run_benchmark(*arguments, threads=True):
    paths = os.pathsep.join([str(ROOT / "benchmarks"), str(ROOT / "src")])
    script, *rest = map(str, arguments)
    command = [sys.executable, str(ROOT / "benchmarks" / script), *rest]
    command += ["--threads", "1"] if threads else []
    env = os.environ | {"PYTHONPATH": paths, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


@pytest.mark.parametrize("side", ["default", "tail", "full"])
def test_the_loss(side):
    assert '"grad_weight"' in run_benchmark(
        "loss.py", "--side", side, "--positions", 64, "--vocab", 4096
    )


@pytest.mark.parametrize("script", ["sampler.py", "grouped.py", "scaling.py", "recurrent.py"])
def test_a_benchmark_without_opponents(script, tmp_path):
    assert "quick" in run_benchmark(script, "--quick", "--out", tmp_path)
    assert len(list(tmp_path.glob("*-quick.json"))) == 1


def test_our_side_of_the_step(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import workload

    student, teacher = workload.tiny_pair(tmp_path)
    sizes = ["--requests", 8, "--limit", 16, "--reps", 2]
    text = run_benchmark(
        "opd_step.py", "--student", student, "--teacher", teacher, *sizes, threads=False
    )
    assert all(f'"{phase}"' in text for phase in ("rollout", "score", "update", "above_mib"))


def test_memory_of_teachers_that_do_not_fit(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import workload

    pair = workload.tiny_pair(tmp_path)
    case = ("--case", "`teacher.dtype: int8`")
    assert '"planned to run"' in run_benchmark("teacher_memory.py", *pair, *case, threads=False)
