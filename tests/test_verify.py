"""`opd verify` and its older spelling, `opd check --self`, as a user types them."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import yaml
from typer.testing import CliRunner

from opd.cli import app
from opd.commands import verify
from opd.demo.run_config import PAIR
from opd.errors import UserError
from opd.models.lm import load_lm
from opd.recipes.invariants import logp_tolerance, measured_noise
from opd.types import Rollout
from support.runs import short_demo


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(short_demo(tmp_path / "run")))
    return str(path)


SPELLINGS = [["verify"], ["check", "--self"]]


@pytest.mark.parametrize("words", SPELLINGS)
def test_both_spellings_check_the_pair_and_make_no_run(file, tmp_path, words):
    text = CliRunner().invoke(app, [*words, file])
    assert text.exit_code == 0
    assert "7 of 7 invariants hold on this pair" in text.stdout
    printed = CliRunner().invoke(app, [*words, file, "--json"])
    records = json.loads(printed.stdout)
    assert len(records) == 7
    assert all(r["holds"] and r["measured"] <= r["allowed"] for r in records)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("words", SPELLINGS)
def test_a_broken_invariant_ends_with_1(file, monkeypatch, words):
    correct = verify.check_invariants

    def with_a_broken_one(subject):
        first, *rest = correct(subject)
        return [type(first)(first.name, float("nan"), first.allowed, first.meaning), *rest]

    monkeypatch.setattr(verify, "check_invariants", with_a_broken_one)
    result = CliRunner().invoke(app, [*words, file])
    assert result.exit_code == 1
    assert "BROKEN  every completion token" in result.stdout
    assert "6 of 7 invariants hold" in result.stdout


@pytest.mark.usefixtures("retries_at_once")
@pytest.mark.parametrize("words", [SPELLINGS[0]])
def test_a_teacher_server_needs_the_local_model(file, words):
    section = "teacher={url: 'http://127.0.0.1:9', model: m, patience: 0}"
    result = CliRunner().invoke(app, [*words, file, section])
    assert isinstance(result.exception, UserError)
    assert "opd verify run.yaml --local FOLDER" in str(result.exception)
    unreachable = CliRunner().invoke(app, [*words, file, section, "--local", "folder"])
    assert "teacher.url=http://127.0.0.1:9" in str(unreachable.exception)


def test_the_local_model_means_nothing_to_a_check(file):
    result = CliRunner().invoke(app, ["check", file, "--local", "folder"])
    assert isinstance(result.exception, UserError)
    assert "opd verify" in str(result.exception)


def test_the_tolerance_of_bf16_follows_from_the_noise_that_is_measured():
    """Half a nat was allowed whatever the model: four times what its own passes differ by is."""
    rng = np.random.default_rng(0)
    rollouts = [
        Rollout.of_ids(rng.integers(3, 40, 6 + 5 * i).tolist(), rng.integers(3, 40, 20).tolist())
        for i in range(4)
    ]
    lm = load_lm(str(PAIR / "teacher"), dtype="bfloat16", device="cpu")
    noise = measured_noise(lm, rollouts)
    assert 0 <= noise < 0.1
    assert logp_tolerance(lm, rollouts) == min(0.5, max(0.1, 4 * noise))
    with torch.no_grad():
        for parameter in lm.model.parameters():
            parameter.mul_(2.5)  # larger logits, coarser in bf16
    assert measured_noise(lm, rollouts) > noise
    exact = load_lm(str(PAIR / "teacher"), dtype="float64", device="cpu")
    assert logp_tolerance(exact, rollouts) == 1e-8
    assert measured_noise(exact, rollouts) < 1e-8
