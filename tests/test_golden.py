"""Pinned runs: a change that moves these numbers changes the objective and has to say so.

Everything is float64, so that another CPU's rounding (1e-16) cannot flip a sampled token. The
norms of Qwen3 are float32 even so: a sum in another order may flip one of their bits, which five
steps make 3e-8 (prompts run once, instead of with each response, did).
`python tests/test_golden.py` writes the files anew; the commit that does so explains why.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import pytest

from opd.demo.run_config import demo_config
from opd.run.jsonl import read_jsonl
from support.runs import open_run

GOLDEN = Path(__file__).parent / "golden"
RUNS = {
    "paper": {},
    "tail": {"mode": "tail", "k": 4},
    "reference": {"mode": "reference", "k": 4},
    "union": {"support": "union", "k": 4},
    "sampled": {"support": "sampled"},
    "full": {"support": "full"},
    "outcome": {"terms": {"outcome_weight": 1.0}},
}
NAMES = (
    "train/loss",
    "train/grad_norm",
    "diag/reverse_kl",
    "diag/forward_kl",
    "diag/overlap_ratio",
    "diag/overlap_advantage",
    "diag/overlap_mass_teacher",
    "diag/entropy_gap_abs",
    "rollout/length",
    "rollout/reward",
)


def measure(name: str, folder: Path) -> list[dict[str, float]]:
    from opd.recipes.distillation import distill

    data = demo_config(folder / "run")
    data["train"] |= {"steps": 5, "prompts_per_step": 4}
    data["loss"] |= RUNS[name]
    data["eval"] = []
    data["student"]["precision"] = data["teacher"]["dtype"] = "float64"
    session, completions = open_run(data)
    distill(session, completions)
    session.folder.close()
    lines = read_jsonl(folder / "run" / "metrics.jsonl")
    return [{n: line[n] for n in NAMES} for line in lines]


@pytest.mark.parametrize("name", RUNS)
def test_run_is_as_pinned(tmp_path, name):
    pinned = json.loads((GOLDEN / f"{name}.json").read_text())
    found = measure(name, tmp_path)
    assert len(found) == len(pinned)
    for got, want in zip(found, pinned, strict=True):
        assert got == pytest.approx(want, rel=2e-7, abs=1e-9)


if __name__ == "__main__":
    for name in sys.argv[1:] or RUNS:
        with tempfile.TemporaryDirectory() as folder:
            text = json.dumps(measure(name, Path(folder)), indent=1)
        (GOLDEN / f"{name}.json").write_text(text + "\n")
