"""What a resumed run compares with the run it goes on with: prompts, held-out sets, models."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from opd import config
from opd.config import Run
from opd.errors import UserError
from opd.setup.preflight import require_same_inputs


def run_of(folder, **changes) -> Run:
    """A run with one held-out set."""
    section = {"path": "held.jsonl", "n": 1} | changes
    return Run.model_validate(
        {
            "student": {"model": "student"},
            "teacher": {"model": "teacher"},
            "prompts": {"path": "train.jsonl"},
            "eval": [section],
            "output": {"dir": str(folder)},
        }
    )


def inputs_of(digest: str) -> SimpleNamespace:
    return SimpleNamespace(record=lambda: {"hashes": {"prompts": "p", "eval held": digest}})


@pytest.fixture
def begun(tmp_path):
    """The folder of a run whose held-out prompts had the digest a."""
    (tmp_path / "config.json").write_text(json.dumps(config.dump(run_of(tmp_path))))
    (tmp_path / "inputs.json").write_text(json.dumps(inputs_of("a").record()))
    return tmp_path


@pytest.mark.parametrize("change", [{"limit": 2}, {"path": "other/held.jsonl"}, {"template": "x"}])
def test_a_held_out_set_may_be_changed_by_its_keys(begun, change):
    require_same_inputs(run_of(begun, **change), inputs_of("b"))


@pytest.mark.parametrize("change", [{}, {"every": 7}, {"temperature": 0.0}])
def test_a_held_out_file_that_changed_under_the_same_keys_is_refused(begun, change):
    require_same_inputs(run_of(begun, **change), inputs_of("a"))
    with pytest.raises(UserError, match="this has changed: eval held"):
        require_same_inputs(run_of(begun, **change), inputs_of("b"))
